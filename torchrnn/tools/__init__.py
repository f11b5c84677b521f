"""The command line `torchrnn` (extra `torchrnn[tools]`): training, sampling, pictures; the library never imports it."""
