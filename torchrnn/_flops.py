"""What FlopCounterMode counts for our operators: the matrix products, as it does for torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchrnn.backends.cpu import BIAS, BIDIRECTIONAL, PLANNED

_ops = torch.ops.torchrnn


class _Products:
    """Sizes of the products of a call: N steps that count, in B independent sequences."""

    def __init__(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], plan: Tensor | None, bias: bool, D: int
    ) -> None:
        one_step = states[0].dim() == 2
        self.L, self.D, self.out = 1 if one_step else states[0].size(0) // D, D, states[0].size(-1)
        self.N, self.B = x.shape[:-1].numel(), states[0].size(-2)
        if plan is not None and type(plan) is Tensor and not plan.is_meta:
            self.N, self.B = plan[:2].tolist()
        self.per_direction = len(weights) // (self.L * D)
        self.projected = self.per_direction == (5 if bias else 3)
        self.GH, self.I = weights[0].shape
        self.H = weights[self.per_direction - 1].size(1) if self.projected else self.out
        self.S = len(states)

    def inputs(self, layer: int) -> int:
        return self.D * self.out if layer else self.I

    def forward(self) -> int:
        """x, previous output, and projection, for each layer and direction."""
        projection = self.H * self.out if self.projected else 0
        each = [self.GH * (self.inputs(layer) + self.out) + projection for layer in range(self.L)]
        return 2 * self.N * self.D * sum(each)

    def backward(self, needs: Sequence[int]) -> int:
        """Gradients of the inputs, of the previous outputs and of the weights, of layers that matter."""
        first = 1 + self.S
        lowest = min((max(i - first, 0) // (self.D * self.per_direction) for i, n in enumerate(needs) if n), default=0)
        lowest = 0 if any(needs[:first]) else lowest
        total = 0
        for layer in range(lowest, self.L):
            for d in range(self.D):
                mine = needs[first + (layer * self.D + d) * self.per_direction :][: self.per_direction]
                inputs = self.N * self.GH * self.inputs(layer)
                total += inputs * (bool(mine[0]) + bool(layer > lowest or needs[0]))
                # nothing goes through the first step of a sequence unless its state's gradient is asked for
                through = self.N if any(needs[1:first]) else self.N - self.B
                total += (through + self.N * bool(mine[1])) * self.GH * self.out
                if self.projected:
                    total += self.N * self.H * self.out * (1 + bool(mine[-1]))
        return 2 * total


def _of_flags(x: Tensor, states: Any, weights: Any, numbers: Tensor | None, flags: int) -> _Products:
    plan = numbers if flags & PLANNED else None
    return _Products(x, states, weights, plan, bool(flags & BIAS), 2 if flags & BIDIRECTIONAL else 1)


@register_flop_formula(_ops.stack, get_raw=True)
def _stack(cell: int, x: Any, states: Any, weights: Any, numbers: Any, flags: int, *_: Any, **__: Any) -> int:
    return _of_flags(x, states, weights, numbers, flags).forward()


@register_flop_formula(_ops.stack_backward, get_raw=True)
def _stack_backward(
    cell: int, x: Any, states: Any, weights: Any, numbers: Any, flags: int, *rest: Any, **_: Any
) -> int:
    return _of_flags(x, states, weights, numbers, flags).backward(rest[-1])


@register_flop_formula([_ops.recurrent, _ops.recurrent_training], get_raw=True)
def _recurrent(
    cell: str, x: Any, states: Any, weights: Any, sizes: Any, plan: Any, bias: bool, both: bool, *_: Any, **__: Any
) -> int:
    return _Products(x, states, weights, plan, bias, 2 if both else 1).forward()


@register_flop_formula(_ops.recurrent_backward, get_raw=True)
def _recurrent_backward(
    cell: str, x: Any, states: Any, weights: Any, sizes: Any, plan: Any, bias: bool, both: bool, *rest: Any, **_: Any
) -> int:
    return _Products(x, states, weights, plan, bias, 2 if both else 1).backward(rest[-1])


@register_flop_formula(_ops.step, get_raw=True)
def _step(cell: int, x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, *_: Any, **__: Any) -> int:
    return 2 * x.size(0) * (w_ih.numel() + w_hh.numel())


@register_flop_formula(_ops.step_backward, get_raw=True)
def _step_backward(cell: int, x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, *rest: Any, **_: Any) -> int:
    x_too, h_too, _, w_ih_too, w_hh_too = (rest[-1] >> i & 1 for i in range(5))
    return 2 * x.size(0) * ((x_too + w_ih_too) * w_ih.numel() + (h_too + w_hh_too) * w_hh.numel())


@register_flop_formula(_ops.loop_backward, get_raw=True)
def _loop_backward(cell: int, x: Any, h: Any, da: Any, needs: int, **_: Any) -> int:
    GH = _ops.numbers(cell)[2] * h[0].size(1)
    columns = (needs & 1) * x[0].size(1) + (needs >> 1 & 1) * h[0].size(1)
    return 2 * GH * columns * sum(t.size(0) for t in x)
