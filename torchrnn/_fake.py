"""What torch must know of the operators: shapes for fake and meta tensors, as csrc makes them, and autograd's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from torchrnn.backends import traced
from torchrnn.backends.cpu import ALL, BIAS, BIDIRECTIONAL, TRAINING
from torchrnn.backends.operators import unseen


@torch.library.register_fake("torchrnn::plan")
def plan(
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
    """A plan of M steps: room for the most that it may hold."""
    return torch.empty(4 + M * (2 + D) + D * B, dtype=torch.int64)


def _on_one_device(*tensors: Tensor) -> None:
    """One tensor on meta among others brings torch here, where nothing is computed."""
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise RuntimeError(f"the input, states and weights must be on one device, got {', '.join(map(str, devices))}")


@torch.library.register_fake("torchrnn::stack")
def stack(
    cell: int,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    numbers: Tensor | None,
    flags: int,
    limit: float,
) -> list[Tensor]:
    """Output, final states, all states if asked for, and in training what backward needs.

    A single step has no output beside its states.
    """
    plain = flags >> 8 & 255 == 0 and limit == math.inf
    saved = torch.ops.torchrnn.saved(cell, plain) if flags & TRAINING else None
    D = 2 if flags & BIDIRECTIONAL else 1
    return _stack(x, states, weights, bool(flags & BIAS), D, saved, bool(flags & ALL))


@torch.library.register_fake("torchrnn::recurrent")
def recurrent(
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
    """Output and final states."""
    return _stack(x, states, weights, bias, 2 if bidirectional else 1, None, False)


@torch.library.register_fake("torchrnn::recurrent_training")
def recurrent_training(
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
    """Output, final states, and what backward needs."""
    saved = _saved(cell, activation == "tanh" and limit is None)
    return _stack(x, states, weights, bias, 2 if bidirectional else 1, saved, False)


@cache
def _saved(cell: str, plain: bool) -> int:
    return unseen(torch.ops.torchrnn.saved, unseen(torch.ops.torchrnn.number, cell), plain)


def _stack(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    D: int,
    saved: int | None,
    all: bool,
) -> list[Tensor]:
    """What they give; ``saved`` numbers are kept for each unit and step in training."""
    _on_one_device(x, *states, *weights)
    one_step = states[0].dim() == 2
    L = 1 if one_step else states[0].size(0) // D
    per_direction = len(weights) // (L * D)
    projected = per_direction == (5 if bias else 3)
    P = states[0].size(-1)
    H = weights[per_direction - 1].size(1) if projected else P
    M = math.prod(x.shape[:-1])
    results = [] if one_step else [x.new_empty((*x.shape[:-1], D * P))]
    results += [x.new_empty(s.shape) for s in states]
    computed = torch.float32 if x.dtype is torch.bfloat16 else x.dtype  # what the kernels keep for themselves
    if all:
        results += [x.new_empty((D, M, H), dtype=computed) for _ in states[1:]]
    if saved is not None:
        outputs = M * D * P if x.dtype is not torch.bfloat16 else (M * D * P + 1) // 2
        kept = L * (outputs + M * D * H * (saved + len(states) - 1 + projected))
        results.append(x.new_empty((kept,), dtype=computed))
    return results


@torch.library.register_fake("torchrnn::recurrent_backward")
def recurrent_backward(
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
    reserve: Tensor,
    dy: Tensor | None,
    dfinal: Sequence[Tensor | None],
    needs: Sequence[int],
) -> list[Tensor]:
    """As `stack_backward`."""
    return _gradients((x, *states, *weights), needs)


@torch.library.register_fake("torchrnn::stack_backward")
def stack_backward(
    cell: int,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    numbers: Tensor | None,
    flags: int,
    limit: float,
    reserve: Tensor,
    dy: Tensor | None,
    dfinal: Sequence[Tensor | None],
    dall: Sequence[Tensor | None],
    needs: Sequence[int],
) -> list[Tensor]:
    """Gradients of the input, the states and the weights, those of each sample; an empty tensor where nobody asks."""
    found, first, samples = _gradients((x, *states, *weights), needs), 1 + len(states), flags >> 16
    of_weights = zip(found[first:], needs[first:], strict=True)
    each = [g.new_empty((samples, *g.shape)) if samples and need else g for g, need in of_weights]
    return found[:first] + each


def _gradients(inputs: Sequence[Tensor], needs: Sequence[int]) -> list[Tensor]:
    return [t.new_empty(t.shape if need else (0,)) for t, need in zip(inputs, needs, strict=True)]


torch.library.impl("torchrnn::recurrent", "Autograd")(traced.differentiably)


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
    _on_one_device(x, h, c, w_ih, w_hh, b_ih, b_hh)
    states, kept, _, _ = torch.ops.torchrnn.numbers(cell)
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
    """Gradients of x, h, c, weights and pre-activations, where the bit of ``needs`` is set and there is such a one."""
    inputs = (x, h, c, w_ih, w_hh, b_ih, b_hh)
    states, _, _, columns = torch.ops.torchrnn.numbers(cell)
    there = (True, True, states == 2, True, True, bias, bias)
    found = [x.new_empty(t.shape) if there[i] and needs >> i & 1 else None for i, t in enumerate(inputs)]
    return (*found, x.new_empty((x.size(0), columns * h.size(1))) if needs >> 7 & 1 else None)


@torch.library.register_fake("torchrnn::loop_backward")
def loop_backward(
    cell: int, x: list[Tensor], h: list[Tensor], da: list[Tensor], needs: int
) -> tuple[Tensor | None, ...]:
    """Gradients of the weights, where the bit of ``needs`` is set."""
    gates, H = torch.ops.torchrnn.numbers(cell)[2], h[0].size(1)
    shapes = ((gates * H, x[0].size(1)), (gates * H, H), (gates * H,), (gates * H,))
    return tuple(x[0].new_empty(shape) if needs >> i & 1 else None for i, shape in enumerate(shapes))
