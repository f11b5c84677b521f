"""A stack of layers stated once more, for the tests of its options: row by row, step by step, plain Python."""

from __future__ import annotations

from typing import Any

import torch
from coupled import CoupledLSTM
from torch import Tensor

import torchrnn

F64: Any = {"dtype": torch.float64}
LAYERS: dict[str, Any] = {
    "rnn": torchrnn.RNN,
    "lstm": torchrnn.LSTM,
    "gru": torchrnn.GRU,
    "coupled": CoupledLSTM,
}
JOINED = {
    "concat": lambda f, b: torch.cat((f, b)),
    "sum": lambda f, b: f + b,
    "mean": lambda f, b: 0.5 * f + 0.5 * b,
    "mul": lambda f, b: f * b,
}


def product(x: Tensor, weights: dict[str, Tensor], kind: str, end: str) -> Tensor:
    y = weights[f"weight_{kind}_{end}"] @ x
    return y + weights[f"bias_{kind}_{end}"] if f"bias_{kind}_{end}" in weights else y


def sweep(layer: Any, xs: list[Tensor], state: list[Tensor], end: str) -> tuple[list[Tensor], list[Tensor]]:
    """One direction of one layer over one row: its outputs, each (H,), and its final states."""
    weights, outputs = dict(layer.named_parameters()), []
    for x in xs:
        a, b = product(x, weights, "ih", end), product(state[0], weights, "hh", end)
        state = list(layer.cell(a, b, tuple(state)))
        if f"weight_hr_{end}" in weights:
            state[0] = weights[f"weight_hr_{end}"] @ state[0]
        outputs.append(state[0])
    return outputs, state


def one_row(layer: Any, xs: list[Tensor], states: list[list[list[Tensor]]]) -> tuple[list[Tensor], Tensor | None, Any]:
    """All layers over one row, from states by layer, direction and name: outputs, the last one, final states likewise.

    The last output is the forward direction's at the last step joined with the backward direction's at the first.
    """
    D, finals, last = 2 if layer.bidirectional else 1, [], None
    for k, of_layer in enumerate(states):
        by_direction, finals_here = [], []
        for d in range(D):
            ys, final = sweep(layer, xs[::-1] if d else xs, of_layer[d], f"l{k}" + "_reverse" * d)
            by_direction.append(ys[::-1] if d else ys)
            finals_here.append(final)
        finals.append(finals_here)
        if D == 2:
            join = JOINED[layer.merge_mode]
            ys = [join(f, b) for f, b in zip(*by_direction, strict=True)]
        else:
            ys = by_direction[0]
        if layer.residual and k:
            ys = [y + x for y, x in zip(ys, xs, strict=True)]
        if xs:
            last = ys[-1]
            if D == 2 and layer.residual and k:
                half = len(ys[0]) // 2
                last = torch.cat((ys[-1][:half], ys[0][half:]))
            elif D == 2:
                last = JOINED[layer.merge_mode](by_direction[0][-1], by_direction[1][0])
        xs = ys
    return xs, last, finals


def loop(layer: Any, x: Tensor, hx: list[list[list[Tensor]]] | None, lengths: list[int]) -> Any:
    """(T, B, I) and states by layer, direction and name, each (B, H) -> outputs, last outputs, final states likewise.

    Without states: zeros, or what the layer has learned.
    """
    rows, weights = [], dict(layer.named_parameters())
    sizes = layer.hidden_size if isinstance(layer.hidden_size, list) else [layer.hidden_size] * layer.num_layers
    L, D, S = layer.num_layers, 2 if layer.bidirectional else 1, len(layer.cell.states)
    for b, n in enumerate(lengths):
        states: list[Any] = []
        for k in range(L):
            states.append([])
            for d in range(D):
                if hx is not None:
                    states[k].append([s[b] for s in hx[k][d]])
                elif layer.learn_initial_state and isinstance(layer.hidden_size, list):
                    states[k].append([weights[f"initial_{name}_l{k}"][d] for name in layer.cell.states])
                elif layer.learn_initial_state:
                    states[k].append([weights[f"initial_{name}"][k * D + d] for name in layer.cell.states])
                else:
                    widths = [layer.proj_size or sizes[k], *[sizes[k]] * (S - 1)]
                    states[k].append([torch.zeros(w, **F64) for w in widths])
        rows.append(one_row(layer, list(x[:n, b]), states))
    width = next(len(last) for _, last, _ in rows if last is not None)
    zero = torch.zeros(width, **F64)
    T = x.size(0)
    output = torch.stack([torch.stack([*ys, *[zero] * (T - len(ys))]) for ys, _, _ in rows], 1)
    last = torch.stack([zero if last is None else last for _, last, _ in rows])
    finals = [[[torch.stack([r[2][k][d][s] for r in rows]) for s in range(S)] for d in range(D)] for k in range(L)]
    return output, last, finals


def in_our_form(layer: Any, states: Any) -> Any:
    """States by layer, direction and name -> as the layer takes and returns them."""
    found: list[Any] = []
    for s in range(len(layer.cell.states)):
        by_layer = [torch.stack([of[s] for of in of_layer]) for of_layer in states]
        if layer.batch_first_state:
            by_layer = [of.transpose(0, 1) for of in by_layer]
        if isinstance(layer.hidden_size, list):
            found.append(by_layer)
        else:
            found.append(torch.cat(by_layer, 1 if layer.batch_first_state else 0))
    return found[0] if len(found) == 1 else tuple(found)


def flat(result: Any) -> list[Tensor]:
    """All tensors of nested tuples and lists."""
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]
