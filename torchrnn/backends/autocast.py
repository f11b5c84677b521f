"""Calls under torch.autocast: in its type whatever the cell, lengths or backend, as a layer of that type would run."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from torchrnn.call import Call, choose


def refuses(call: Call) -> str | None:
    """Why a call is none for autocast, or None."""
    device, dtype = call.x.device.type, call.x.dtype
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device):
        return f"no autocast is active for {device}"
    if not dtype.is_floating_point or dtype is torch.float64:
        return f"the input is {dtype}, which autocast leaves alone"
    return None


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states in autocast's type; shapes as in the reference."""
    with torch.autocast(call.x.device.type, enabled=False):
        backend, narrow = _cast(call)
        return backend.run(narrow)


def run_all(call: Call) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output, final states, and the last layer's states at all steps if wanted; shapes as in the reference."""
    with torch.autocast(call.x.device.type, enabled=False):
        backend, narrow = _cast(call)
        return backend.run_all(narrow)


def _cast(call: Call) -> tuple[ModuleType, Call]:
    dtype = torch.get_autocast_dtype(call.x.device.type)
    states = tuple(s.to(dtype) for s in call.states)
    weights = [None if w is None else w.to(dtype) for w in call.weights]
    call = call._replace(x=call.x.to(dtype), states=states, weights=weights)
    return choose(call), call
