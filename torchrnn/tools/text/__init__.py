"""The job `torchrnn text`: a model of the next token of a text, and text written by it."""
