"""The job `torchrnn forecast`: windows over series, a recurrent model, baselines, a rolling back-test."""
