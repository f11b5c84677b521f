"""A run, whatever it is about: settings, training, checkpoints, the run folder, what is shown."""
