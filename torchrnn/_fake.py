"""What the operators give without computing it: shapes for fake and meta tensors, as csrc/ops.cpp makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.register_fake("torchrnn::layer")
def layer(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bias: bool,
    training: bool,
    all: bool,
) -> list[Tensor]:
    """Output, final states, all states if asked for, and in training what backward needs.

    A single step has no output beside its states.
    """
    return _layer(x, states, weights, bias, torch.ops.torchrnn.saved(cell) if training else None, all)


@torch.library.register_fake("torchrnn::layer_open")
def layer_open(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bias: bool,
    training: bool,
    all: bool,
    activation: int,
    limit: float,
) -> list[Tensor]:
    """The same with options, which may need more for backward."""
    plain = activation == 0 and limit == math.inf
    return _layer(x, states, weights, bias, torch.ops.torchrnn.saved(cell, plain) if training else None, all)


def _layer(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], bias: bool, saved: int | None, all: bool
) -> list[Tensor]:
    """What both give; ``saved`` numbers are kept for each unit and step in training."""
    one_step = states[0].dim() == 2
    D = 1 if one_step else states[0].size(0)
    per_direction = len(weights) // D
    projected = per_direction == (5 if bias else 3)
    P = states[0].size(-1)
    H = weights[per_direction - 1].size(1) if projected else P
    results = [] if one_step else [x.new_empty((*x.shape[:-1], D * P))]
    results += [x.new_empty(s.shape) for s in states]
    N = x.numel() // x.size(-1)
    results += [x.new_empty((D, N, H)) for _ in states[1:] if all]
    if saved is not None:
        results.append(x.new_empty(results[0].shape))
        kept = saved + len(states) - 1 + projected
        results.append(x.new_empty((D * N * H * kept,)))
    return results


@torch.library.register_fake("torchrnn::layer_backward")
def layer_backward(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bias: bool,
    y: Tensor,
    reserve: Tensor,
    dy: Tensor | None,
    dfinal: Sequence[Tensor | None],
    dall: Sequence[Tensor | None],
    needs: Sequence[int],
) -> list[Tensor]:
    """Gradients of the input, the states and the weights; an empty tensor where nobody asks."""
    return _layer_backward(x, states, weights, needs)


@torch.library.register_fake("torchrnn::layer_open_backward")
def layer_open_backward(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bias: bool,
    y: Tensor,
    reserve: Tensor,
    dy: Tensor | None,
    dfinal: Sequence[Tensor | None],
    dall: Sequence[Tensor | None],
    needs: Sequence[int],
    activation: int,
    limit: float,
) -> list[Tensor]:
    """The same with options."""
    return _layer_backward(x, states, weights, needs)


def _layer_backward(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], needs: Sequence[int]
) -> list[Tensor]:
    inputs = (x, *states, *weights)
    return [x.new_empty(t.shape if need else (0,)) for t, need in zip(inputs, needs, strict=True)]


@torch.library.register_fake("torchrnn::step")
def step(
    cell: int,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    bias: bool,
    training: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The new states, and in training what backward needs."""
    states, kept = torch.ops.torchrnn.numbers(cell)
    return (
        x.new_empty(h.shape),
        x.new_empty(c.shape) if states == 2 else None,
        x.new_empty((h.numel() * kept,)) if training else None,
    )


@torch.library.register_fake("torchrnn::step_backward")
def step_backward(
    cell: int,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    bias: bool,
    kept: Tensor,
    dh: Tensor | None,
    dc: Tensor | None,
    needs: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, h, c and the weights, where the bit of ``needs`` is set and there is such a thing."""
    inputs = (x, h, c, w_ih, w_hh, b_ih, b_hh)
    there = (True, True, torch.ops.torchrnn.numbers(cell)[0] == 2, True, True, bias, bias)
    return tuple(x.new_empty(t.shape) if there[i] and needs >> i & 1 else None for i, t in enumerate(inputs))
