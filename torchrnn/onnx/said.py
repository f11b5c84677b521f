"""What a translation knows of its call: sizes, weights by layer, and which steps count, as values of the ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

Value = Any  # of onnx_ir, which the core does not need


def package(name: str) -> Any:
    """A package of the extra, imported when it is needed.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"torchrnn.onnx needs the package {error.name}: pip install 'torchrnn[onnx]'", name=error.name
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without what torch says of its own code and of packages that nobody asked for."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")  # torchvision is not installed
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")
            warnings.filterwarnings("ignore", category=UserWarning, message=".*axis name.*shares the same shape")
            yield
    finally:
        log.setLevel(level)


class Steps(NamedTuple):
    """Which steps count and where sequences begin: the arguments of the operator ``plan`` that say so."""

    batch_first: bool
    lengths: Value | None  # (B,) int64
    mask: Value | None  # (B, T) bool
    reset: Value | None  # (B, T) bool
    to_zero: bool


class Layer(NamedTuple):
    """One layer of a stack, both directions."""

    cell: str
    activation: str
    limit: float | None
    bias: bool
    weights: list[list[Value]]  # by direction
    states: list[Value]  # each (D, B, H)
    steps: Steps | None

    @property
    def D(self) -> int:
        """Directions."""
        return len(self.weights)

    @property
    def projected(self) -> bool:
        """Whether there is a weight_hr."""
        return len(self.weights[0]) == (5 if self.bias else 3)


Results = tuple[Value, Sequence[Value]]  # (T, B, D·H) and each final state (D, B, H)
