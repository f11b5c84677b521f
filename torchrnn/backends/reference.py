"""The declared truth: pure, functional torch, step by step, for any device, dtype, cell and transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn.backends.packing import by_packing
from torchrnn.call import Call

#: Who looks on, if anybody: is told the states of every sweep, step by step, the very Tensors of the recurrence.
onlooker: ContextVar[Callable[[list[tuple[Tensor, ...]]], None] | None] = ContextVar("torchrnn_onlooker", default=None)


def refuses(call: Call) -> str | None:
    """Never refuses."""
    return None


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states of a call.

    Returns:
        (T, B, D·H), packed (N, D·H), one step (B, H); and the states, each (L·D, B, H), one step (B, H).
    """
    return run_all(call)[:2]


def run_all(call: Call) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output, final states, and the last layer's states at all steps, each (D, …, H) with the output's dimensions."""
    if call.steps is not None:
        return by_packing(run_all, call)
    if call.one_step:
        w_ih, w_hh, *biases = call.weights
        b_ih, b_hh = biases or (None, None)
        states = call.cell.recurrence(w_hh, b_hh, call.options)(F.linear(call.x, w_ih, b_ih), call.states)
        return states[0], states, ()

    D = 2 if call.bidirectional else 1
    per_direction = len(call.weights) // (call.num_layers * D)
    initial = list(zip(*(s.unbind(0) for s in call.states), strict=True))  # L·D tuples of (B, H)
    sizes = None if call.batch_sizes is None else call.batch_sizes.tolist()
    wanted = len(call.states) if call.all_states else 1
    y, finals, everything = call.x, [], []
    for layer in range(call.num_layers):
        everything = []  # by direction
        for direction in range(D):
            k = layer * D + direction
            weights = call.weights[k * per_direction : (k + 1) * per_direction]
            states, final = _sweep(call, y, initial[k], weights, sizes, wanted, reverse=direction == 1)
            everything.append(states)
            finals.append(final)
        y = everything[0][0] if D == 1 else torch.cat([states[0] for states in everything], -1)
        if layer < call.num_layers - 1 and call.training and call.dropout:
            y = F.dropout(y, call.dropout)
    all_states = () if not call.all_states else tuple(torch.stack(s) for s in zip(*everything, strict=True))
    return y, tuple(torch.stack(s) for s in zip(*finals, strict=True)), all_states


def _sweep(
    call: Call,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Any],
    sizes: list[int] | None,
    wanted: int,
    *,
    reverse: bool,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One layer and direction over time: (T, B, I) or packed (N, I) -> its first states, the same with H, and the last.

    In a packed batch the rows are sorted by length: going forward the rows that end leave at the bottom, going
    backward they join there.
    """
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if call.bias else (None, None)
    w_hr = weights[-1] if len(weights) == (5 if call.bias else 3) else None
    step = call.cell.recurrence(w_hh, b_hh, call.options)
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
        states = step(x_t, states)
        if w_hr is not None:
            states = (F.linear(states[0], w_hr), *states[1:])
        outputs.append(states)
    if ended:
        states = tuple(torch.cat(parts) for parts in zip(states, *reversed(ended), strict=True))
    if reverse:
        outputs.reverse()
    if not torch.compiler.is_compiling() and (look := onlooker.get()) is not None:
        look(outputs)
    if not outputs:
        return tuple(x[..., : s.size(-1)] for s in states[:wanted]), states  # empty, yet differentiable
    join = torch.stack if sizes is None else torch.cat
    return tuple(join([step[k] for step in outputs]) for k in range(wanted)), states
