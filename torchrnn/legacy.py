"""Calls that torch.jit records for `torch.onnx.export(dynamo=False)`, which gives all arguments by position."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from torchrnn.call import BACKENDS, choose
from torchrnn.check import ArgumentError

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent


def arguments(layer: Recurrent, given: Sequence[Any], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, where the exporter gives all of them by position.

    Raises:
        check.ArgumentError: the call goes into an ONNX file in which it would be wrong for other sequences.
    """
    names = list(inspect.signature(layer.forward).parameters)
    if len(given) > len(names):
        raise TypeError(f"{type(layer).__name__} takes {len(names)} arguments, got {len(given)}")
    said = dict(zip(names, given, strict=False)) | named
    if torch.onnx.is_in_onnx_export():
        _refuse(layer, said)
    return said


def _refuse(layer: Recurrent, said: dict[str, Any]) -> None:
    call, _ = layer.request(**said)
    if call.steps is None and not call.all_states and choose(call) is not BACKENDS["reference"]:
        return
    raise ArgumentError(
        f"{type(layer).__name__}({layer.extra_repr()}) cannot be exported by torch.onnx.export(dynamo=False), whose "
        "file would hold the steps of this call one by one, right for no other length: use "
        "torchrnn.onnx.export(model, args)"
    )
