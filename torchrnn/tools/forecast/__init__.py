"""The job `torchrnn forecast`: series in a table, windows over them, a recurrent model, baselines, a rolling back-test."""
