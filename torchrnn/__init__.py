"""torchrnn."""
