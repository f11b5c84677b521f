"""The backends: each has ``refuses(call)``, a reason or None, and ``run(call)``, which gives (output, final states)."""
