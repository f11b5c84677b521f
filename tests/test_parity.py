"""Drawn configurations of the layers and cells against torch.nn: outputs, states and every gradient, by name."""

from typing import Any, NamedTuple

import pytest
import torch
from fused import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import torchrnn

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SIZES = st.sampled_from([1, 2, 3, 5, 7])


class Case(NamedTuple):
    kind: str
    options: dict[str, Any]
    I: int
    H: int
    form: str  # dense, unbatched, packed or packed unsorted
    lengths: list[int]
    given_states: bool
    training: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["RNN", "LSTM", "GRU"]))
    H = draw(st.sampled_from([1, 2, 3, 7, 17]))
    options: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind == "LSTM" and H > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, H - 1))
    if options["num_layers"] > 1 and draw(st.booleans()):
        options["dropout"] = draw(st.sampled_from([0.3, 1.0]))
    form = draw(st.sampled_from(["dense", "unbatched", "packed", "packed unsorted"]))
    B = 1 if form == "unbatched" else draw(SIZES)
    lengths = [draw(SIZES)] * B if form in ("dense", "unbatched") else draw(st.lists(SIZES, min_size=B, max_size=B))
    if form == "packed":
        lengths = sorted(lengths, reverse=True)
    return Case(
        kind, options, draw(SIZES), H, form, lengths, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 99))
    )


def inputs(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor | PackedSequence, Any, list[torch.Tensor]]:
    """Input, initial states and the leaves among them, the same at every call."""
    generator = torch.Generator().manual_seed(case.seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    B, LD = len(case.lengths), case.options["num_layers"] * (1 + case.options["bidirectional"])
    if case.form.startswith("packed"):
        leaves = [leaf(T, case.I) for T in case.lengths]
        x: Any = pack_sequence(leaves, enforce_sorted=case.form == "packed")
    else:
        T, first = case.lengths[0], case.options["batch_first"]
        x = leaf(T, case.I) if case.form == "unbatched" else leaf(*((B, T) if first else (T, B)), case.I)
        leaves = [x]
    hx = None
    if case.given_states:
        batch = () if case.form == "unbatched" else (B,)
        h = leaf(LD, *batch, case.options.get("proj_size") or case.H)
        hx = (h, leaf(LD, *batch, case.H)) if case.kind == "LSTM" else h
        leaves += [*hx] if case.kind == "LSTM" else [h]
    return x, hx, leaves


def results(library: Any, case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Everything that a training step computes, by name."""
    torch.manual_seed(case.seed)
    layer = getattr(library, case.kind)(case.I, case.H, dtype=dtype, **case.options).train(case.training)
    x, hx, leaves = inputs(case, dtype)
    output, states = layer(x, hx)
    assert type(output) is type(x)
    found = {"output": output.data if isinstance(output, PackedSequence) else output}
    found |= {f"state {k}": s for k, s in enumerate(states if isinstance(states, tuple) else [states])}
    weights = torch.Generator().manual_seed(case.seed)
    loss = sum(
        (r * torch.randn(r.shape, generator=weights, dtype=torch.float64).to(dtype)).sum() for r in found.values()
    )
    gradients = torch.autograd.grad(loss, [*leaves, *layer.parameters()], allow_unused=True)  # type: ignore[arg-type]
    names = [f"gradient of leaf {k}" for k in range(len(leaves))] + [n for n, _ in layer.named_parameters()]
    # dropout of everything cuts the layers below off: torch gives them no gradient, or one of zeros
    found |= {n: torch.zeros(()) if g is None else g for n, g in zip(names, gradients, strict=True)}
    return found


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            ours[name], expected, atol=tolerance, rtol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("backend", [CPU, "aten", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own, of both
@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases())
def test_layers_agree_with_torch(backend: str, dtype: torch.dtype, case: Case) -> None:
    with torchrnn.use(backend):
        compare(results(torchrnn, case, dtype), results(torch.nn, case, dtype), dtype)


@pytest.mark.parametrize("backend", [CPU, "aten", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["RNNCell", "LSTMCell", "GRUCell"]),
    I=SIZES,
    H=SIZES,
    B=st.sampled_from([None, 1, 3, 7]),
    bias=st.booleans(),
    relu=st.booleans(),
    given_states=st.booleans(),
)
def test_cells_agree_with_torch(backend, dtype, kind, I, H, B, bias, relu, given_states) -> None:
    options = {"bias": bias, "dtype": dtype} | ({"nonlinearity": "relu"} if kind == "RNNCell" and relu else {})
    batch = () if B is None else (B,)
    x = torch.randn(*batch, I, dtype=dtype, requires_grad=True)
    states = [torch.randn(*batch, H, dtype=dtype, requires_grad=True) for _ in range(2 if kind == "LSTMCell" else 1)]
    hx = None if not given_states else tuple(states) if len(states) > 1 else states[0]

    def step(library: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        cell = getattr(library, kind)(I, H, **options)
        new = cell(x, hx)
        assert isinstance(new, tuple) == (kind == "LSTMCell")
        new = new if isinstance(new, tuple) else (new,)
        leaves = [x, *(states if given_states else []), *cell.parameters()]
        gradients = torch.autograd.grad(sum((s**2).sum() for s in new), leaves)  # type: ignore[arg-type]
        return {f"state {k}": s for k, s in enumerate(new)} | {f"gradient {k}": g for k, g in enumerate(gradients)}

    with torchrnn.use(backend):
        compare(step(torchrnn), step(torch.nn), dtype)
