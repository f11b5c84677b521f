"""The fake kernels say of every call what the real ones give: shapes, strides and dtypes."""

from typing import Any

import pytest
import torch
from fused import needs_kernels
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import torchrnn
from torchrnn import _extension
from torchrnn.backends import cpu

pytestmark = needs_kernels
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
KINDS = ["RNN", "LSTM", "GRU"]
FORMS = {
    "dense": {},
    "batch first": {"batch_first": True},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False, "bidirectional": True},
    "lengths": {"bidirectional": True},
    "one step": {},
    "loop": {},
    "projection": {"proj_size": 3, "bidirectional": True},
    "projection, no bias": {"proj_size": 3, "bias": False},
}
CALLS = [(k, f) for k in KINDS for f in FORMS if k != "RNN" or "projection" not in f]


if _extension.missing() is None:
    FORWARD = {torch.ops.torchrnn.stack.default, torch.ops.torchrnn.step.default}
    BACKWARD = {torch.ops.torchrnn.stack_backward.default, torch.ops.torchrnn.step_backward.default}
    LOOP = {torch.ops.torchrnn.loop_backward.default}


class Recorder(TorchDispatchMode):
    """Keeps every call of our operators, with what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FORWARD | BACKWARD | LOOP:
            self.calls.append((func, tree_map_only(torch.Tensor, torch.Tensor.detach, args), list(result)))
        return result


def calls(kind: str, form: str, dtype: torch.dtype = torch.float32) -> list[tuple[Any, Any, list[torch.Tensor]]]:
    """What a training step, one for the weights alone and an inference of a layer ask of our operators."""
    if form in ("one step", "loop"):
        module, x = getattr(torchrnn, kind + "Cell")(4, 5, dtype=dtype), torch.randn(2, 4, dtype=dtype)
    else:
        module = getattr(torchrnn, kind)(4, 5, dtype=dtype, **FORMS[form])
        x = torch.randn((2, 6, 4) if form == "batch first" else (6, 2, 4), dtype=dtype)
    options = {"lengths": [3, 6]} if form == "lengths" else {}
    with torchrnn.use("cpu"), Recorder() as recorder:
        for needed in (True, False):
            result = module(x.requires_grad_(needed), **options)
            if form == "loop":
                result = module(x, module(x, result))
            result = result if isinstance(result, tuple) else (result,)
            result[0].sum().backward()
        with torch.no_grad():
            module(x, **options)
    called = {f for f, _, _ in recorder.calls}
    assert len(called) == (3 if form == "loop" else 2)
    assert called & FORWARD
    assert called & BACKWARD
    return recorder.calls


def layout(tensors: Any) -> list[Any]:
    return [None if t is None else (t.shape, t.stride(), t.dtype, t.storage_offset()) for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "form"), CALLS)
def test_fake_tensors(kind: str, form: str, dtype: torch.dtype) -> None:
    for operator, arguments, real in calls(kind, form, dtype):
        with FakeTensorMode() as mode:
            fake = tree_map_only(torch.Tensor, mode.from_tensor, arguments)
            found = operator(*fake)
        assert layout(list(found)) == layout(real)
        assert all(t is None or t.device.type == "cpu" for t in found)


@pytest.mark.parametrize(
    ("kind", "form"), [("LSTM", f) for f in FORMS] + [("GRU", "lengths"), ("RNN", "one step"), ("GRU", "loop")]
)
def test_torch_s_own_checks(kind: str, form: str) -> None:
    for operator, arguments, _ in calls(kind, form):
        # with lengths nobody writes, nor reads, what is kept of steps that do not count, and this check compares all
        without = form == "lengths" and operator is torch.ops.torchrnn.stack.default and arguments[5] & cpu.TRAINING
        torch.library.opcheck(operator, arguments, test_utils=CHECKS[:3] if without else CHECKS)


def test_a_model_of_fake_tensors() -> None:
    with FakeTensorMode():
        layer = torchrnn.LSTM(4, 5, num_layers=2, bidirectional=True)
        output, (h, c) = layer(torch.randn(6, 2, 4))
        assert output.shape == (6, 2, 10)
        assert h.shape == c.shape == (4, 2, 5)
        output.sum().backward()
        assert layer.weight_hh_l0.grad.shape == (20, 5)  # type: ignore[union-attr]
