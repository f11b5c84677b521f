"""Calls of few rows, which multiply with the weights as they lie: to the bit the rows of a call of many."""

import os
import resource

import pytest
import torch
from fused import needs_kernels
from test_cpu_processes import finish, start
from torch import Tensor

import torchrnn

pytestmark = needs_kernels

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
ROWS = (5, 11, 12, 16, 17, 24, 25, 32, 33, 47, 48, 63, 64, 65)
SIZES = ((3, 5), (17, 33), (50, 67), (64, 32))


def step(cell: torch.nn.Module, rows: tuple[Tensor, ...]) -> list[Tensor]:
    """The new states, and the gradients of the rows."""
    x, *states = (t.detach().requires_grad_() for t in rows)
    found = cell(x, tuple(states) if len(states) > 1 else states[0])
    found = found if isinstance(found, tuple) else (found,)
    return [*found, *torch.autograd.grad([t.sin().sum() for t in found], [x, *states])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("I", "H"), SIZES)
@pytest.mark.parametrize("kind", CELLS)
def test_a_step(kind: str, I: int, H: int, dtype: torch.dtype) -> None:
    cell = getattr(torchrnn, kind)(I, H, dtype=dtype)
    rows = tuple(torch.randn(100, n, dtype=dtype) for n in (I, *[H] * (2 if kind == "LSTMCell" else 1)))
    many = step(cell, rows)
    for B in ROWS:
        for one, other in zip(step(cell, tuple(t[:B] for t in rows)), many, strict=True):
            assert torch.equal(one, other[:B]), B
    with torch.no_grad():
        for B in ROWS:
            x, *states = (t[:B] for t in rows)
            found = cell(x, tuple(states) if len(states) > 1 else states[0])
            assert torch.equal(found[0] if isinstance(found, tuple) else found, many[0][:B]), B


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("T", "B"), [(2, 6), (5, 3), (3, 16), (13, 1), (4, 15), (30, 2)])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_short_sequence(kind: str, T: int, B: int, dtype: torch.dtype) -> None:
    layer = getattr(torchrnn, kind)(19, 21, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(T, 70, 19, dtype=dtype)
    lengths = torch.randint(1, T + 1, (70,))
    for options, few in (({}, {}), ({"lengths": lengths}, {"lengths": lengths[:B]})):
        many, one = x.clone().requires_grad_(), x[:, :B].clone().requires_grad_()
        y, z = layer(many, **options)[0], layer(one, **few)[0]
        assert torch.equal(z, y[:, :B])
        y.sin().sum().backward()
        z.sin().sum().backward()
        assert many.grad is not None
        assert one.grad is not None
        assert torch.equal(one.grad, many.grad[:, :B])


EACH_SET = """
import itertools, torch, torchrnn
torch.manual_seed(0)
for kind, B, H in itertools.product(["RNNCell", "LSTMCell", "GRUCell"], range(5, 40), [5, 16, 19]):
    cell = getattr(torchrnn, kind)(7, H)
    exact = getattr(torch.nn, kind)(7, H, dtype=torch.float64)
    exact.load_state_dict(cell.state_dict())
    results = []
    for module in cell, exact:
        x, h = (torch.linspace(-1, 1, B * n).view(B, n).to(module.weight_ih.dtype).requires_grad_() for n in (7, H))
        found = module(x, (h, h) if kind == "LSTMCell" else h)
        found = found if isinstance(found, tuple) else (found,)
        results.append([*found, *torch.autograd.grad(sum(t.sin().sum() for t in found), [x, h, *module.parameters()])])
    for a, b in zip(*results):
        torch.testing.assert_close(a.double(), b, atol=3e-5, rtol=3e-5)
print(torch.ops.torchrnn.isa())
"""


def test_each_instruction_set() -> None:
    processes = {isa: start(EACH_SET, TORCHRNN_ISA=isa, OMP_NUM_THREADS="1") for isa in ("baseline", "avx2", "avx512")}
    for isa, (out, err) in zip(processes, finish(*processes.values()), strict=True):
        if "must be one of those that this processor has" not in err:
            assert out == isa, err


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="there all is freed at once")
@pytest.mark.parametrize("B", [6, 20, 70])
def test_what_a_large_step_packs_is_not_fetched_from_the_system_each_time(B: int) -> None:
    cell, x = torchrnn.LSTMCell(900, 900), torch.randn(B, 900)
    with torch.no_grad():
        for _ in range(3):
            cell(x, (x, x))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            cell(x, (x, x))
        pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
    assert pages < 1000, "of the 6,000 that the weights have"
