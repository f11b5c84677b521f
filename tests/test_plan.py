"""Plans: which steps go where, and moving rows there and back."""

from typing import Any

import pytest
import torch
from agreement import F64, agree, states_for
from fused import needs_kernels
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._pytree import tree_leaves, tree_map

import torchrnn
from torchrnn import _extension, plan
from torchrnn.backends import cpu
from torchrnn.backends.packing import move


@pytest.fixture(params=["library", "torch"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plans are made by our library and, where it is missing, by torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "missing", lambda: "for a test")
    elif _extension.missing() is not None:
        pytest.skip(_extension.missing() or "")
    return request.param


def random_steps(seed: int, batch_first: bool) -> tuple[plan.Steps, int, torch.Tensor]:
    """Steps of some kind, for how many directions, and which of them count (B, T)."""
    torch.manual_seed(seed)
    B, T = torch.randint(1, 9, (2,)).tolist()
    mask, reset = torch.rand(T, B).t() < 0.6, torch.rand(B, T) < 0.3
    lengths = torch.randint(0, T + 1, (B,))
    kind = seed % 5
    valid = torch.arange(T) < lengths.unsqueeze(1) if kind in (0, 1) else mask if kind < 4 else mask | True
    given: dict[str, Any] = {"lengths": lengths if kind in (0, 1) else None, "mask": mask if kind in (2, 3) else None}
    if kind in (1, 3, 4):
        given |= {"reset": reset, "to_zero": seed % 2 == 0}
    return plan.Steps(B, T, B * T, batch_first, **given), 1 + seed % 3 // 2, valid


@pytest.mark.parametrize("batch_first", [False, True])
def test_every_valid_step_has_its_place(batch_first: bool, maker: str) -> None:
    for seed in range(60):
        steps, D, mask = random_steps(seed, batch_first)
        made, valid = steps.plan(D), mask.flatten() if batch_first else mask.t().flatten()
        assert torch.equal(made.steps.sort()[0], valid.nonzero().squeeze(1))
        assert int(made.batch_sizes.sum()) == len(made.steps)
        assert bool((made.batch_sizes.diff() <= 0).all())
        assert bool((made.batch_sizes > 0).all())
        assert made.S == (int(made.batch_sizes[0]) if len(made.steps) else 0)


@needs_kernels
@pytest.mark.parametrize("batch_first", [False, True])
def test_both_makers_make_the_same(batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [random_steps(seed, batch_first)[:2] for seed in range(200)]
    by_library = [steps.plan(D) for steps, D in asked]
    monkeypatch.setattr(_extension, "missing", lambda: "for a test")
    for seed, fast in enumerate(by_library):
        slow = asked[seed][0].plan(asked[seed][1])
        for name, a, b in zip(plan.Plan._fields, fast, slow, strict=True):
            same = tree_map(lambda p, q: torch.equal(p, q) if isinstance(p, torch.Tensor) else p == q, a, b)
            assert all(tree_leaves(same)), f"{name} of {seed}"


def test_the_longest_comes_first_and_equals_keep_their_order(maker: str) -> None:
    made = plan.Steps(4, 0, 7, True, torch.tensor([1, 3, 0, 3]), torch.tensor([0, 1, 4, 4])).plan(1)
    assert made.batch_sizes.tolist() == [3, 2, 2]
    assert made.steps.tolist() == [1, 4, 0, 2, 5, 3, 6]
    assert made.begin[0].tolist() == [1, 3, 0]
    assert made.end[0].tolist() == [2, 0, 3 + 2, 1]  # the empty row keeps its own state


def test_calls_do_not_need_the_library(maker: str) -> None:
    layer, T, B = torchrnn.GRU(3, 4, num_layers=2, bidirectional=True, **F64), 6, 4
    mask, reset = torch.rand(T, B) < 0.7, torch.rand(T, B) < 0.3
    said: Any
    for said in ({"lengths": [4, 0, 6, 1]}, {"mask": mask}, {"reset": reset}, {"mask": mask, "reset": reset}):
        agree(layer, "reference", torch.randn(T, B, 3, **F64), states_for(layer, B), **said)


@needs_kernels
def test_the_library_reads_no_memory_that_is_not_its_own() -> None:
    wrong: Any
    for wrong in (
        {"lengths": torch.tensor([3, 5])},
        {"lengths": torch.tensor([3, -1])},
        {"lengths": torch.tensor([3])},
        {"lengths": torch.tensor([3, 4], dtype=torch.int32)},
        {"lengths": None, "mask": torch.ones(2, 3) > 0},
        {"lengths": None, "reset": torch.ones(2, 4)},
        {"lengths": None, "first": torch.tensor([0, 5])},
        {"lengths": None, "first": torch.tensor([-1, 0])},
    ):
        with pytest.raises(RuntimeError):
            plan.Steps(2, 4, 8, True, **wrong).numbers(1)
    steps = plan.Steps(2, 4, 8, True, torch.tensor([3, 2]))
    with pytest.raises(RuntimeError):
        steps.numbers(3)
    given = 0, torch.randn(2, 4, 3), [torch.zeros(1, 2, 5)], [torch.randn(5, 3), torch.randn(5, 5)]
    good = steps.numbers(1)
    for at, value in ((0, 9), (0, 4), (1, 9), (2, 9), (4, 8), (4, -1), (12, 3), (20, 3), (28, 5)):
        bad = good.clone()
        bad[at] = value
        with pytest.raises(RuntimeError, match=r"a plan|batch_sizes"):
            torch.ops.torchrnn.stack(*given, bad, cpu.PLANNED, 1.0)
    with pytest.raises(RuntimeError, match="a plan must be"):
        torch.ops.torchrnn.stack(*given, good[:-1], cpu.PLANNED, 1.0)


@pytest.mark.parametrize("batch_first", [False, True])
def test_where_rows_begin_and_end(batch_first: bool) -> None:
    for seed in range(60):
        steps, _, valid = random_steps(seed, batch_first)
        B, T = valid.shape
        for b, (last, first) in enumerate(zip(*(t.tolist() for t in steps.ends()), strict=True)):
            there = [t for t in range(T) if valid[b, t]]
            at = [b * T + t if batch_first else t * B + b for t in there] or [B * T]
            assert (first, last) == (at[0], at[-1])


@pytest.mark.parametrize("M", [4, 7])
def test_moving_there_and_back(M: int) -> None:
    steps = torch.randperm(M)[:4]
    places = torch.full((M,), 4)
    places[steps] = torch.arange(4)
    x, y = torch.randn(M, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(move(x, steps, places), x[steps])
    assert torch.equal(move(move(y, places, steps), steps, places), y)
    for rows, to, back in ((x, steps, places), (y, places, steps)):
        rows = rows.clone().requires_grad_()
        assert gradcheck(lambda r, to=to, back=back: move(r, to, back), (rows,), check_forward_ad=True)
        assert gradgradcheck(lambda r, to=to, back=back: move(r, to, back).square(), (rows,))
        copies = torch.func.vmap(lambda r, to=to, back=back: move(r, to, back))(torch.stack((rows, 3 * rows)))
        assert torch.equal(copies[1], move(3 * rows, to, back))
