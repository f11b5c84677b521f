"""PyTorch's ModuleInfo samples for the six recurrent modules, with our classes in them, and what their tests share."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.testing._internal.common_modules import ModuleInfo, module_db
from torch.utils._pytree import tree_flatten

import torchrnn

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


def _ours(name: str) -> ModuleInfo:
    info = copy.copy(next(i for i in module_db if i.module_cls is getattr(torch.nn, name)))
    info.module_cls = getattr(torchrnn, name)
    return info


INFOS = {name: _ours(name) for name in NAMES}
DTYPES = sorted({dtype for info in INFOS.values() for dtype in info.dtypes}, key=str)
MODES = [(name, mode) for name, i in INFOS.items() for mode in ("train", "eval")[: 1 + i.train_and_eval_differ]]


def readable(value: Any) -> str:
    return str(value).removeprefix("torch.")


modules = pytest.mark.parametrize("info", NAMES, indirect=True)
modes = pytest.mark.parametrize(("info", "training"), MODES, indirect=True, ids=[f"{n}-{m}" for n, m in MODES])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=readable)
backends = pytest.mark.parametrize("backend", ["chosen", "reference"])


@pytest.fixture
def training(request: pytest.FixtureRequest) -> bool:
    return request.param == "train"


@pytest.fixture
def info(request: pytest.FixtureRequest) -> ModuleInfo:
    """The ModuleInfo with our class; what module_db marks as skipped or failing on this device is so here."""
    info = INFOS[request.param]
    dtype = request.node.callspec.params.get("dtype", torch.float32)

    class Probe:  # PyTorch's decorators read the device from the test case
        device_type = "cpu"

    def probe(self: Probe) -> None: ...

    test = request.node.originalname
    for decorator in info.get_decorators("TestModule", test, "cpu", dtype, {}):
        probe = decorator(probe)
    if getattr(probe, "__unittest_expecting_failure__", False):
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"module_db expects {test} to fail"))
    else:
        try:
            probe(Probe())
        except unittest.SkipTest as reason:
            pytest.skip(f"module_db: {reason}")
    return info


def samples(
    info: ModuleInfo, dtype: torch.dtype, *, grad: bool = False, training: bool = True, device: str = "cpu", **more: Any
) -> Iterator[tuple[str, Any, torch.nn.Module]]:
    """Each sample with a name for messages and our module made from it."""
    given = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=grad, training=training, **more)
    assert given
    for k, sample in enumerate(given):
        made = sample.constructor_input
        name = f"sample {k}: {info.module_cls.__name__}{made.args}{made.kwargs}"
        yield name, sample, info.module_cls(*made.args, **made.kwargs).to(device, dtype).train(training)


def backend_of(backend: str) -> AbstractContextManager[None]:
    return nullcontext() if backend == "chosen" else torchrnn.use(backend)


def run(module: torch.nn.Module, sample: Any, backend: str = "chosen") -> Any:
    with backend_of(backend):
        return module(*sample.forward_input.args, **sample.forward_input.kwargs)


def theirs(module: torch.nn.Module, sample: Any) -> torch.nn.Module:
    """The module of torch.nn made from the same arguments, with the same weights."""
    made = sample.constructor_input
    made_of = getattr(torch.nn, type(module).__name__)(*made.args, **made.kwargs)
    first = next(module.parameters())
    made_of = made_of.to(first.device, first.dtype).train(module.training)
    made_of.load_state_dict(module.state_dict())
    return made_of


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def same(got: Any, expected: Any, name: str, **tolerance: Any) -> None:
    got, expected = tensors(got), tensors(expected)
    assert got
    assert len(got) == len(expected), name
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, msg=lambda text, name=name: f"{name}\n{text}", **tolerance)


def all_are(module: torch.nn.Module, device: str, dtype: torch.dtype) -> None:
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {(device, dtype)}
    assert not list(module.buffers())
