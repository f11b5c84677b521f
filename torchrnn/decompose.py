"""The operators of a graph as plain torch operations, step by step: for whoever cannot run ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn import _extension
from torchrnn.activation import Options
from torchrnn.cell import CELLS


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `torch.export.ExportedProgram.run_decompositions` puts in the place of our operators.

    The exported graph of a model holds one operator for each stack of layers, which needs torchrnn where it runs. With
    these it holds core ATen operations alone, unrolled over time, which ExecuTorch and other runtimes know. The batch
    may be dynamic; T must be fixed, and the graph grows with it.

    Returns:
        A table; add it to ``torch.export.default_decompositions()``.

    Raises:
        RuntimeError: torchrnn was built without its own kernels: then nothing needs to be decomposed.
        ValueError: from ``run_decompositions``, where T is dynamic, or the graph takes a PackedSequence.

    Example:
        ```python
        import torch
        import torchrnn

        layer, x = torchrnn.GRU(3, 5).eval(), torch.randn(4, 2, 3)
        program = torch.export.export(layer, (x,))
        table = torch.export.default_decompositions()
        table.update(torchrnn.decompositions())
        plain = program.run_decompositions(table)
        torch.testing.assert_close(plain.module()(x), layer(x))
        ```
    """
    reason = _extension.missing()
    if reason is not None:
        raise RuntimeError(f"there are no operators to decompose: {reason}")
    operators = torch.ops.torchrnn
    return {operators.plan.default: _plan, operators.recurrent.default: _recurrent}


class _Counted(NamedTuple):
    """What happens before and after each step of each row, (T, B, 1) bool."""

    valid: Tensor
    zero: Tensor  # a sequence begins there, from zeros
    initial: Tensor  # likewise, from the row's initial state


_VALID, _ZERO, _INITIAL = 1, 2, 4


def _plan(
    B: int,
    T: int,
    M: int,
    batch_first: bool,
    lengths: Tensor | None,
    first: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    to_zero: bool,
    D: int,
) -> Tensor:
    """In the place of a plan the flags of each step (B, T), with batch_first (B, T, 1)."""
    if first is not None:
        raise ValueError("lists and nested tensors cannot be decomposed: export a padded batch with lengths=")
    some = next(t for t in (lengths, mask, reset) if t is not None)
    flags = some.new_zeros((B, T), dtype=torch.int64)
    valid = mask if mask is not None else flags == 0
    if lengths is not None:
        there = torch.arange(T, device=some.device) < lengths.unsqueeze(1)
        valid = valid & there
        reset = reset if reset is None else reset & there
    flags = flags + _VALID * valid
    if reset is not None:
        flags = flags + (_ZERO if to_zero else _INITIAL) * reset
    return flags.unsqueeze(-1) if batch_first else flags


def _recurrent(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    plan: Tensor | None,
    bias: bool,
    bidirectional: bool,
    activation: str,
    limit: float | None,
) -> list[Tensor]:
    if batch_sizes is not None:
        raise ValueError("a PackedSequence cannot be decomposed: export the model with a padded batch and lengths=")
    one_step = states[0].dim() == 2
    if one_step:
        x, states = x.unsqueeze(0), [s.unsqueeze(0) for s in states]
    batch_first = plan is not None and plan.dim() == 3
    if batch_first:
        x = x.transpose(0, 1)
    if not isinstance(x.size(0), int):
        raise ValueError(
            "T must be fixed for a graph without torchrnn's operators, which is unrolled over time: export the model "
            "without naming its time dimension in dynamic_shapes"
        )
    counted = None
    if plan is not None:
        flags = plan.view(plan.shape[:2]).t().unsqueeze(-1)
        counted = _Counted((flags & _VALID) > 0, (flags & _ZERO) > 0, (flags & _INITIAL) > 0)
    D, options = 2 if bidirectional else 1, Options(activation, math.inf if limit is None else limit)
    step = partial(CELLS[cell], options=options)
    per_direction = len(weights) // states[0].size(0)
    finals: list[tuple[Tensor, ...]] = []
    for k in range(0, states[0].size(0), D):
        outputs = []
        for d in range(D):
            at = (k + d) * per_direction
            w = _Weights.of(weights[at : at + per_direction], bias)
            given = tuple(s[k + d] for s in states)
            output, final = _sweep(step, x, given, w, counted, reverse=d == 1)
            outputs.append(output)
            finals.append(final)
        x = torch.cat(outputs, -1)
    ends = [torch.stack(s) for s in zip(*finals, strict=True)]
    if one_step:
        return [s[0] for s in ends]
    return [x.transpose(0, 1) if batch_first else x, *ends]


class _Weights(NamedTuple):
    """Those of one direction."""

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    hr: Tensor | None

    @classmethod
    def of(cls, given: Sequence[Tensor], bias: bool) -> _Weights:
        b_ih, b_hh = given[2:4] if bias else (None, None)
        return cls(given[0], given[1], b_ih, b_hh, given[-1] if len(given) == (5 if bias else 3) else None)


def _sweep(
    step: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    initial: tuple[Tensor, ...],
    w: _Weights,
    counted: _Counted | None,
    *,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer and direction: (T, B, I) -> (T, B, H) and the final states."""
    steps = F.linear(x, w.ih, w.b_ih).unbind(0)
    states, outputs = initial, []
    order = range(len(steps) - 1, -1, -1) if reverse else range(len(steps))
    for t in order:
        # a sequence begins at step t: going backward the boundary lies behind it
        boundary = t + 1 if reverse else t
        if counted is not None and boundary < len(steps):
            zero, begin = counted.zero[boundary], counted.initial[boundary]
            states = tuple(
                torch.where(zero, 0.0, torch.where(begin, i, s)) for s, i in zip(states, initial, strict=True)
            )
        new = step(steps[t], F.linear(states[0], w.hh, w.b_hh), states)
        if w.hr is not None:
            new = (F.linear(new[0], w.hr), *new[1:])
        if counted is None:
            states = new
            outputs.append(new[0])
        else:
            valid = counted.valid[t]
            states = tuple(torch.where(valid, n, s) for n, s in zip(new, states, strict=True))
            outputs.append(torch.where(valid, new[0], 0.0))
    if reverse:
        outputs.reverse()
    return torch.stack(outputs), states
