"""The library of our own kernels: loaded with the first layer, and the reason where it cannot be."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("libtorchrnn.so")


@cache
def missing() -> str | None:
    """Load the operators into ``torch.ops.torchrnn``: None, or the reason why they are not there."""
    if not LIBRARY.exists():
        return (
            "torchrnn was built without its own kernels: with a C++ compiler installed, "
            "pip install --force-reinstall --no-deps --no-cache-dir torchrnn"
        )
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"torchrnn's own kernels do not load: {error.__cause__ or error}"
    from torchrnn import _fake, _flops  # noqa: F401  # not before: they register for operators that are now there

    return None


def load() -> None:
    """Load what there is, when a layer is built: at its first call somebody may already be counting its operators."""
    if not torch.compiler.is_compiling():
        missing()
