"""Benchmarks: named cases, answers checked first, ours and the others timed in turn in one process."""
