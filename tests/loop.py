"""What a layer must give, stated once more as plain loops: row by row, step by step, one state after another."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM
from fused import CPU
from torch import Tensor

import torchrnn

F64: Any = {"dtype": torch.float64}
LAYERS: dict[str, Any] = {
    "rnn_tanh": torchrnn.RNN,
    "rnn_relu": lambda *a, **k: torchrnn.RNN(*a, nonlinearity="relu", **k),
    "lstm": torchrnn.LSTM,
    "lstm_projected": lambda *a, **k: torchrnn.LSTM(*a, proj_size=2, **k),
    "gru": torchrnn.GRU,
    "coupled_lstm": CoupledLSTM,
}
#: every cell on every backend that has it
EVERY = [
    pytest.param(name, backend, marks=CPU.marks if backend == "cpu" else (), id=f"{name} {backend}")
    for name in LAYERS
    for backend in ("cpu", "aten", "reference")
    if name != "coupled_lstm" or backend == "reference"  # there is no kernel yet for a user's own cell
]
everywhere = pytest.mark.parametrize(("name", "backend"), EVERY)


def loop(
    layer: Any,
    x: Tensor,
    hx: Any = None,
    *,
    lengths: Any = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to: str = "zero",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states (always a tuple) of a layer for a batch, without dropout.

    Which steps count: those before a row's length, or where the mask is True; a reset beyond a row's length is none,
    a reset at a masked step is one.
    """
    if layer.batch_first:
        x = x.transpose(0, 1)
        mask, reset = (None if t is None else t.transpose(0, 1) for t in (mask, reset))
    T, B = x.shape[:2]
    length = [T] * B if lengths is None else [int(n) for n in lengths]
    states = start(layer, x, hx)
    rows = []
    for b in range(B):
        counts = [t < length[b] and (mask is None or bool(mask[t, b])) for t in range(T)]
        begins = [t < length[b] and reset is not None and bool(reset[t, b]) for t in range(T)]
        initial = [tuple(s[k, b] for s in states) for k in range(states[0].size(0))]
        rows.append(one_row(layer, x[:, b], initial, counts, begins, reset_to))
    if not B:
        return x.new_zeros(*((0, T) if layer.batch_first else (T, 0)), width(layer)), states
    output = torch.stack([output for output, _ in rows], 0 if layer.batch_first else 1)
    return output, tuple(
        torch.stack([torch.stack([k[s] for k in final]) for _, final in rows], 1) for s in range(len(states))
    )


def start(layer: Any, x: Tensor, hx: Any) -> tuple[Tensor, ...]:
    """The initial states, each (L·D, B, its width)."""
    rows = (layer.num_layers * (1 + layer.bidirectional), x.size(1))
    widths = [layer.proj_size or layer.hidden_size] + [layer.hidden_size] * (len(layer.cell.states) - 1)
    if hx is None:
        return tuple(x.new_zeros(*rows, w) for w in widths)
    states = hx if isinstance(hx, tuple) else (hx,)
    return tuple(s.expand(*rows, w) for s, w in zip(states, widths, strict=True))


def width(layer: Any) -> int:
    """Features of the output."""
    return (1 + layer.bidirectional) * (layer.proj_size or layer.hidden_size)


def one_row(
    layer: Any, x: Tensor, initial: list[tuple[Tensor, ...]], counts: list[bool], begins: list[bool], reset_to: str
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """One row through all layers: its output (T, F), and the final states of each layer and direction."""
    y = {t: x[t] for t in range(len(counts)) if counts[t]}  # the steps that count, and no others
    finals = []
    for k in range(layer.num_layers):
        halves = []
        for d in range(1 + layer.bidirectional):
            first = initial[k * (1 + layer.bidirectional) + d]
            half, final = sweep(layer, k, d, y, first, begins, reset_to)
            halves.append(half)
            finals.append(final)
        y = {t: torch.cat([half[t] for half in halves]) for t in y}
    nothing = x.new_zeros(width(layer))
    rows = [y.get(t, nothing) for t in range(len(counts))]
    return torch.stack(rows) if rows else x.new_zeros(0, width(layer)), finals


def sweep(
    layer: Any, k: int, d: int, y: dict[int, Tensor], state: tuple[Tensor, ...], begins: list[bool], reset_to: str
) -> tuple[dict[int, Tensor], tuple[Tensor, ...]]:
    """Layer ``k`` in direction ``d``: its output at each step that counts, and its final state."""
    fresh = state if reset_to == "initial" else tuple(torch.zeros_like(s) for s in state)
    output = {}
    for t in range(len(begins))[:: -1 if d else 1]:
        if d == 0 and begins[t]:
            state = fresh
        if t in y:
            state = step(layer, f"l{k}" + "_reverse" * d, y[t], state)
            output[t] = state[0]
        if d == 1 and begins[t] and t > 0:  # a sequence began here: what comes next belongs to the one before
            state = fresh
    return output, state


def step(layer: Any, end: str, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step of one row: W x + b, W h + b, the cell's function, the projection."""
    a = getattr(layer, f"weight_ih_{end}") @ x
    h = getattr(layer, f"weight_hh_{end}") @ state[0]
    if layer.bias:
        a, h = a + getattr(layer, f"bias_ih_{end}"), h + getattr(layer, f"bias_hh_{end}")
    new = layer.cell(a, h, state)
    if layer.proj_size:
        new = (getattr(layer, f"weight_hr_{end}") @ new[0], *new[1:])
    return new


def tensors(states: Any) -> Any:
    """The states of any layer as a tuple."""
    return tuple(states) if isinstance(states, (tuple, list)) else (states,)


def states_for(layer: Any, B: int) -> Any:
    """Random initial states for which a gradient is wanted."""
    made: Any = tuple(torch.randn_like(s).requires_grad_() for s in start(layer, torch.zeros(1, B, 1, **F64), None))
    return made if len(made) > 1 else made[0]


def agree(layer: Any, backend: str | None, x: Tensor, hx: Any = None, **said: Any) -> tuple[Tensor, Any]:
    """Run a call (on a backend, or on the one that is chosen) and the loop, which must give the same outputs, final
    states and gradients; give the call's results.
    """
    inputs = {"x": x.requires_grad_(), **{f"hx[{k}]": s for k, s in enumerate(tensors(hx)) if s is not None}}
    inputs |= dict(layer.named_parameters())
    with torchrnn.use(backend) if backend else nullcontext():
        output, final = layer(x, hx, **said)
    expected, expected_final = loop(layer, x, hx, **said)
    close("output", output, expected)
    for k, (got, wanted) in enumerate(zip(tensors(final), expected_final, strict=True)):
        close(f"final[{k}]", got, wanted)
    ours, theirs = (output, *tensors(final)), (expected, *expected_final)
    weights = [torch.randn_like(t) for t in ours]
    found = [_gradients(results, weights, inputs) for results in (ours, theirs)]
    for name in inputs:
        close(f"gradient of {name}", found[0][name], found[1][name])
    return output, final


def _gradients(results: Any, weights: list[Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs = [(r, w) for r, w in zip(results, weights, strict=True) if r.requires_grad]
    if not pairs:
        return {name: torch.zeros_like(t) for name, t in inputs.items()}
    found = torch.autograd.grad([r for r, _ in pairs], list(inputs.values()), [w for _, w in pairs], allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(inputs.items(), found, strict=True)}


def close(what: str, got: Tensor, expected: Tensor) -> None:
    """The same to 1e-12, NaN nowhere."""
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12, msg=lambda text: f"{what}: {text}")
