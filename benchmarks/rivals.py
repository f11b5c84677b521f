"""Who else is timed, where it is installed: the extra ``torchrnn[bench]``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from benchmarks.cases import Case
from benchmarks.subjects import Subject, Work, torch_nn


def _later(module: str, name: str) -> Subject:
    """A subject whose library is imported when it is first timed."""

    def subject(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
        made: Callable[..., Work | None] = getattr(import_module(f"benchmarks.{module}"), name)
        return made(case, model, inputs, training)

    return subject


# openvino starts a process when it is imported, which jax warns of when it is there already
_NEEDS = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "flax": ("jax", "flax"),
    "equinox": ("jax", "equinox"),
    "keras": ("jax", "keras"),
}
_MODULES = {"flax": "on_jax", "equinox": "on_jax", "keras": "on_jax", "onnxruntime": "on_onnx", "openvino": "on_onnx"}

#: By name; torch.nn is always there.
RIVALS: dict[str, Subject] = {"torch.nn": torch_nn}


def installed() -> dict[str, Subject]:
    """The other libraries that can be imported here."""
    return {
        name: _later(_MODULES[name], name)
        for name, needs in _NEEDS.items()
        if all(find_spec(package) is not None for package in needs)
    }
