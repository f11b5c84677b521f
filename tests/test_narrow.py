"""Our kernels on bfloat16, where the processor multiplies it: rounded where it is stated, and near float64."""

import copy
from typing import Any

import pytest
import rounding
import torch
from agreement import tensors
from fused import needs_kernels

import torchrnn
from torchrnn import _extension
from torchrnn.backends import cpu

pytestmark = needs_kernels
BF16: Any = {"dtype": torch.bfloat16}
EPS = torch.finfo(torch.bfloat16).eps  # 2^-7: a rounding is half of it off
KINDS = ["RNN", "relu", "LSTM", "GRU"]


def here() -> bool:
    """Whether these kernels run on this machine."""
    return _extension.missing() is None and torch.ops.torchrnn.takes_bfloat16()


needs_instructions = pytest.mark.skipif(not here(), reason="the processor does not multiply bfloat16 (avx512_bf16)")


def make(kind: str, *sizes: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    if kind == "relu":
        return torchrnn.RNN(*sizes, nonlinearity="relu", dtype=dtype, **options)
    return getattr(torchrnn, kind)(*sizes, dtype=dtype, **options)


def run(layer: Any, x: torch.Tensor, states: Any, **said: Any) -> dict[str, torch.Tensor]:
    """Output, final states and the gradients of a random weighting of them, by name."""
    x, states = x.detach().requires_grad_(), [s.detach().requires_grad_() for s in states]
    with torchrnn.use("cpu"):
        output, final = layer(x, tuple(states) if len(states) > 1 else states[0], **said)
    results = [output, *tensors(final)]
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(r.shape, generator=generator).bfloat16().to(r.dtype) for r in results]
    inputs = {"x": x, **{f"initial {k}": s for k, s in enumerate(states)}, **dict(layer.named_parameters())}
    found = torch.autograd.grad(results, list(inputs.values()), weights)
    return dict(zip(["output", *(f"final {k}" for k in range(len(states))), *inputs], [*results, *found], strict=True))


def random_call(kind: str, T: int, B: int, I: int, H: int, **options: Any) -> tuple[Any, torch.Tensor, list[Any]]:
    """A layer, its input and its states."""
    layer = make(kind, I, H, **options)
    D = 2 if layer.bidirectional else 1
    sizes = [layer.proj_size or H, H][: len(layer.cell.states)]
    states = [torch.randn(layer.num_layers * D, B, n).bfloat16() for n in sizes]
    return layer, torch.randn(T, B, I).bfloat16(), states


def stated(kind: str, layer: Any, x: torch.Tensor, states: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `run` gives, by tests/rounding.py."""
    x, states = x.double().requires_grad_(), [s.double().requires_grad_() for s in states]
    w = {n.removesuffix("_l0"): p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    results = rounding.layer(kind, w, x, tuple(s[0] for s in states))
    results = [results[0], *(r.unsqueeze(0) for r in results[1:])]
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(r.shape, generator=generator).bfloat16().double() for r in results]
    inputs = {"x": x, **{f"initial {k}": s for k, s in enumerate(states)}}
    found = torch.autograd.grad(results, [*inputs.values(), *w.values()], weights)
    names = ["output", *(f"final {k}" for k in range(len(states))), *inputs, *(n for n, _ in layer.named_parameters())]
    return dict(zip(names, [*results, *found], strict=True))


def agrees(kind: str, *sizes: int, **options: Any) -> None:
    """All numbers as stated but for their own rounding; where a sum in float32 and one in float64 fall on two sides of
    a middle, an operand differs by one rounding, and what depends on it by a part of that."""
    layer, x, states = random_call(kind, *sizes, **options)
    found, expected = run(layer, x, states), stated(kind, layer, x, states)
    far = total = 0
    for name, wanted in expected.items():
        error, scale = (found[name].double() - wanted).detach().abs(), wanted.detach().abs()
        assert found[name].dtype == torch.bfloat16
        assert (error <= EPS * scale.max()).all(), (name, sizes, options)
        far += int((error > EPS / 2 * scale + 1e-4 * scale.max()).sum())
        total += error.numel()
    assert far <= 3 + 0.03 * total, (far, total, sizes, options)


@needs_instructions
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_where_it_is_stated_every_size_up_to_67(kind: str) -> None:
    for n in range(1, 68):
        agrees(kind, 3, 2, n, 5)
        agrees(kind, 3, 2, 3, n, bias=n % 2 == 0)
        if n < 18 or n > 60:
            agrees(kind, n, 2, 3, 5)
            agrees(kind, 3, n, 3, 5)
    agrees(kind, 40, 13, 65, 131)
    agrees(kind, 300, 3, 4, 6)  # more steps than a panel of weight gradients takes at once


@needs_instructions
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_where_it_is_stated_with_projection(kind: str) -> None:
    for H in (5, 16, 17, 33, 66):
        for P in (1, 2, 3, 4):
            agrees(kind, 6, 5, 7, H, proj_size=P)


CASES: list[dict[str, Any]] = [
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "bias": False},
    {"proj_size": 3, "num_layers": 2, "bidirectional": True},
    {"activation": "elu", "cell_clip": 0.4},
    {"bias": "single", "merge_mode": "sum", "bidirectional": True},
]
SAID: list[dict[str, Any]] = [
    {},
    {"lengths": [7, 0, 3, 6, 1]},
    {"mask": torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) > 0.4},
    {"reset": torch.rand(7, 5, generator=torch.Generator().manual_seed(2)) > 0.6, "reset_to": "initial"},
]


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("options", CASES, ids=lambda o: " ".join(o))
@pytest.mark.parametrize("said", SAID, ids=lambda s: " ".join(s) or "dense")
def test_near_float64(kind: str, options: dict[str, Any], said: dict[str, Any]) -> None:
    # An operand of a product is off by up to EPS / 2, a sum of many by less, and a path through three layers and seven
    # steps meets some ten of them: 4 EPS of the largest gradient is what that comes to.
    for H in (5, 16, 33):
        layer, x, states = random_call(kind, 7, 5, 9, H, **options)
        if kind == "LSTM" and not here() and not said and "activation" not in options:
            pytest.skip("the dense LSTM is torch's on this processor")
        exact = make(kind, 9, H, **{**options, "dtype": torch.float64})
        exact.load_state_dict(layer.state_dict())
        found, expected = run(layer, x, states, **said), run(exact, x.double(), [s.double() for s in states], **said)
        largest = max(float(t.detach().abs().max()) for t in expected.values())
        for name, wanted in expected.items():
            assert found[name].dtype == torch.bfloat16
            scale = max(float(wanted.detach().abs().max()), 0.1 * largest)
            torch.testing.assert_close(
                found[name].double(), wanted, atol=4 * EPS * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_and_inf_travel_as_in_float32(kind: str, bad: float) -> None:
    for I, H in (3, 5), (4, 16), (33, 18):
        layer, x, states = random_call(kind, 6, 3, I, H)
        x[2, 1, I - 1] = bad  # the last of a row may be the half of a pair
        found = run(layer, x, states)
        expected = run(copy.deepcopy(layer).float(), x.float(), [s.float() for s in states])
        for name, wanted in expected.items():
            assert torch.equal(found[name].isnan(), wanted.isnan()), name
            assert found[name][~wanted.isnan()].isfinite().all(), name


@needs_instructions
def test_what_is_too_large_becomes_infinite() -> None:
    layer = torchrnn.RNN(2, 3, nonlinearity="relu", **BF16)
    x = torch.full((2, 1, 2), 3e38, **BF16)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(2)
    assert layer(x)[0].isinf().all()


@needs_instructions
def test_states_are_carried_in_float32() -> None:
    # each step adds a part of 2^-10, which a bfloat16 next to 1 would not notice
    layer = torchrnn.GRU(1, 1, **BF16)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.bias_ih_l0[1] = 7  # type: ignore[index] # z = 0.9991
    h = layer(torch.zeros(1000, 1, 1, **BF16), torch.ones(1, 1, 1, **BF16))[1]
    torch.testing.assert_close(h.double().squeeze(), torch.tensor(7.0).double().sigmoid() ** 1000, rtol=EPS, atol=0)


@needs_instructions
@pytest.mark.parametrize("sizes", [(40, 9, 33, 65), (103, 10, 20, 650)], ids=["short", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_threads(kind: str, sizes: tuple[int, int, int, int]) -> None:
    layer, x, states = random_call(kind, *sizes, bidirectional=True)
    lengths = torch.randint(1, sizes[0] + 1, sizes[1:2]).tolist()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(layer, x, states))
            packed = run(layer, x, states, lengths=lengths)
            found[-1] |= {f"{name} with lengths": t for name, t in packed.items()}
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, expected in found[0].items():
            assert torch.equal(other[name], expected), name


@needs_instructions
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_give_each_row_what_it_is_alone(kind: str) -> None:
    layer, x, states = random_call(kind, 9, 4, 5, 19, bidirectional=True)
    lengths = [9, 2, 5, 1]
    with torchrnn.use("cpu"):
        together = layer(x, tuple(states) if len(states) > 1 else states[0], lengths=lengths)
        for b, n in enumerate(lengths):
            given = [s[:, b : b + 1] for s in states]
            alone = layer(x[:n, b : b + 1], tuple(given) if len(given) > 1 else given[0])
            assert torch.equal(together[0][:n, b], alone[0][:, 0])
            assert not together[0][n:, b].any()
            for a, t in zip(tensors(alone[1]), tensors(together[1]), strict=True):
                assert torch.equal(t[:, b], a[:, 0])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradient_penalty(kind: str) -> None:
    found = []
    layer, x, _ = random_call(kind, 4, 3, 5, 6)
    for dtype in (torch.bfloat16, torch.float64):
        module, y = copy.deepcopy(layer).to(dtype), x.detach().to(dtype).requires_grad_()
        with torchrnn.use("cpu"):
            output = module(y, lengths=[4, 4, 4])[0]
        (slope,) = torch.autograd.grad(output.square().sum(), y, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), list(module.parameters())))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=4 * EPS * float(wanted.abs().max()), rtol=0)


def test_many_gradients_at_once() -> None:
    layer, x, _ = random_call("GRU", 4, 3, 5, 6)
    x.requires_grad_()
    with torchrnn.use("cpu"):
        output = layer(x)[0]
    many = torch.randn(3, *output.shape).bfloat16()
    found = torch.autograd.grad(output, [x, layer.weight_hh_l0], many, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        for got, wanted in zip(
            found, torch.autograd.grad(output, [x, layer.weight_hh_l0], many[k], retain_graph=True), strict=True
        ):
            scale = float(wanted.abs().max())
            torch.testing.assert_close(got[k], wanted, atol=4 * EPS * scale, rtol=0)


def test_a_trace_is_that_of_the_call() -> None:
    layer, x, states = random_call("LSTM", 5, 3, 4, 6, bidirectional=True)
    said: dict[str, Any] = {"lengths": [5, 3, 2]}
    with torchrnn.use("cpu"):
        output, final = layer(x, tuple(states), **said)
        again, final_again, trace = layer(x.requires_grad_(), tuple(states), return_all=True, **said)
    assert torch.equal(output, again)
    assert all(torch.equal(a, b) for a, b in zip(final, final_again, strict=True))
    assert trace.c[0].dtype == torch.bfloat16
    assert torch.equal(trace.c[0][0, 4, 0], final[1][0, 0])
    (trace.c[0].square().sum() + again.sum()).backward()
    exact, wide = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    exact.zero_grad()
    again, _, trace = exact(wide, tuple(s.double() for s in states), return_all=True, **said)
    (trace.c[0].square().sum() + again.sum()).backward()
    for got, wanted in zip([x, *layer.parameters()], [wide, *exact.parameters()], strict=True):
        a, b = got.grad, wanted.grad
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a.double(), b, atol=4 * EPS * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gates_that_were_kept_are_those_of_the_equations(kind: str) -> None:
    for H in (7, 8):  # 7: the outputs fill half a number of what is kept
        layer, x, states = random_call(kind, 5, 3, 4, H)
        hx = tuple(states) if len(states) > 1 else states[0]
        with torchrnn.use("cpu"):
            expected = layer(x, hx, lengths=[5, 3, 2], return_all=True)[2]
            with torch.no_grad():
                found = layer(x, hx, lengths=[5, 3, 2], return_all=True)[2]
        for name in expected:
            got, wanted = getattr(found, name), getattr(expected, name).detach()
            assert got.dtype == torch.bfloat16
            torch.testing.assert_close(got, wanted, atol=2 * EPS, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@needs_instructions
def test_the_dense_lstm_is_ours_unless_there_are_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, _ = random_call("LSTM", 5, 3, 4, 6)
    monkeypatch.setattr(cpu, "tiles", lambda: False)
    assert torchrnn.explain(layer, x).backend == "cpu"
    assert torchrnn.explain(layer, x[:1]).backend == "cpu"
    monkeypatch.setattr(cpu, "tiles", lambda: True)
    told = torchrnn.explain(layer, x)
    assert told.backend == "aten"
    assert told.refusals["cpu"].startswith("torch's LSTM multiplies bfloat16 with the processor's own instructions")
    assert torchrnn.explain(layer, x, lengths=[5, 2, 1]).backend == "cpu"


@needs_instructions
def test_memory_kept_for_backward() -> None:
    layer, x, states = random_call("LSTM", 6, 3, 4, 6)
    kept: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x, tuple(states))
    (reserve,) = (t for t in kept if t.dtype == torch.float32)
    assert reserve.numel() == 6 * 3 * 6 * 5 + 6 * 3 * 6 // 2  # i f g o c, and the output in half a number each
