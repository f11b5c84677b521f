"""The declared truth: pure, functional torch, step by step, for any device, dtype, cell and transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn.call import Call
from torchrnn.cell import Cell


def refuses(call: Call) -> str | None:
    """Never refuses."""
    return None


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states of a call.

    Returns:
        (T, B, D·H), packed (N, D·H), one step (B, H); and the states, each (L·D, B, H), one step (B, H).
    """
    if call.one_step:
        w_ih, w_hh, *biases = call.weights
        b_ih, b_hh = biases or (None, None)
        states = call.cell(F.linear(call.x, w_ih, b_ih), F.linear(call.states[0], w_hh, b_hh), call.states)
        return states[0], states

    D = 2 if call.bidirectional else 1
    per_direction = len(call.weights) // (call.num_layers * D)
    initial = list(zip(*(s.unbind(0) for s in call.states), strict=True))  # L·D tuples of (B, H)
    sizes = None if call.batch_sizes is None else call.batch_sizes.tolist()
    y, finals = call.x, []
    for layer in range(call.num_layers):
        outputs = []
        for direction in range(D):
            k = layer * D + direction
            weights = call.weights[k * per_direction : (k + 1) * per_direction]
            output, final = _sweep(call.cell, y, initial[k], weights, call.bias, sizes, reverse=direction == 1)
            outputs.append(output)
            finals.append(final)
        y = outputs[0] if D == 1 else torch.cat(outputs, -1)
        if layer < call.num_layers - 1 and call.training and call.dropout:
            y = F.dropout(y, call.dropout)
    return y, tuple(torch.stack(s) for s in zip(*finals, strict=True))


def _sweep(
    cell: Cell,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Any],
    bias: bool,
    sizes: list[int] | None,
    *,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer and direction over time: (T, B, I) or packed (N, I) -> the same with H, and the final states (B, H).

    In a packed batch the rows are sorted by length: going forward the rows that end leave at the bottom, going
    backward they join there.
    """
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if bias else (None, None)
    w_hr = weights[-1] if len(weights) == (5 if bias else 3) else None
    x = F.linear(x, w_ih, b_ih)  # (…, G·H)
    steps = x.unbind(0) if sizes is None else x.split(sizes)
    waiting = states  # reverse: the initial states of the rows not yet begun
    ended: list[tuple[Tensor, ...]] = []
    if reverse and sizes:
        states = tuple(s[: sizes[-1]] for s in states)
    outputs = []
    for x_t in reversed(steps) if reverse else steps:
        if sizes is not None:
            B, running = x_t.size(0), states[0].size(0)
            if B < running:
                ended.append(tuple(s[B:] for s in states))
                states = tuple(s[:B] for s in states)
            elif B > running:
                states = tuple(torch.cat((s, w[running:B])) for s, w in zip(states, waiting, strict=True))
        states = cell(x_t, F.linear(states[0], w_hh, b_hh), states)
        if w_hr is not None:
            states = (F.linear(states[0], w_hr), *states[1:])
        outputs.append(states[0])
    if ended:
        states = tuple(torch.cat(parts) for parts in zip(states, *reversed(ended), strict=True))
    if reverse:
        outputs.reverse()
    if not outputs:
        return x[..., : states[0].size(-1)], states  # empty, yet differentiable
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), states
