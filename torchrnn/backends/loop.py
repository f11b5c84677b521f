"""Loops over a cell: their steps share one product for the gradients of the weights.

Where each step gives such gradients of its own, a loop of T steps writes T times as many numbers as there are weights,
reads them back and adds them. Here a step only leaves its inputs and the gradients of its pre-activations with the
`Loop`, whose node comes last of all in backward: it multiplies once.

A loop is found in the graph itself: a step whose previous state comes from a step. So nothing outlives the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrnn.backends.operators import operators

if TYPE_CHECKING:
    from torchrnn.cell import Cell

_running, _runs = torch._C._current_graph_task_id, torch._C._will_engine_execute_node  # pyright: ignore[reportAttributeAccessIssue]


class Left:
    """What the steps of a loop have left behind in one backward pass."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.h: list[Tensor] = []
        self.da: list[Tensor] = []  # gradients of the pre-activations
        self.found: list[Tensor | None] = [None] * 4  # gradients of the weights from steps that gave them, summed

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add a step's gradients of the weights."""
        self.found = [a if b is None else b if a is None else a + b for a, b in zip(self.found, gradients, strict=True)]


class Loop:
    """The steps of a cell with the same weights, in one graph.

    Its ``token`` stands for the weights among the inputs of a step; it holds no numbers.
    """

    def __init__(self, cell: Cell, number: int, bias: bool, weights: tuple[Tensor, ...]) -> None:
        self.cell, self.number, self.bias, self.weights = cell, number, bias, weights
        self.needs = tuple(w.requires_grad for w in weights)
        self.passes: dict[int, Left] = {}
        self.token: Any = _apply(self.passes, number, bias, *weights)
        self.node = self.token.grad_fn

    def takes(self, cell: Cell, bias: bool, weights: tuple[Tensor, ...]) -> bool:
        """Whether a step of that cell with those weights is one of this loop."""
        mine = self.weights
        return (
            weights[0] is mine[0]
            and weights[1] is mine[1]
            and weights[2] is mine[2]
            and weights[3] is mine[3]
            and cell is self.cell
            and bias is self.bias
            and self.needs == tuple([w.requires_grad for w in weights])
        )

    def left(self) -> Left | None:
        """Where a step leaves something in this backward pass; None: nobody asks for the weights' gradients."""
        if not _runs(self.node):
            return None
        now = _running()
        found = self.passes.get(now)
        if found is None:
            found = self.passes[now] = Left()
        return found


class _Weights(torch.autograd.Function):
    """Weights -> the token of a loop; backward, after all its steps: the gradients of the weights."""

    @staticmethod
    def forward(ctx: Any, passes: dict[int, Left], number: int, bias: bool, *weights: Tensor) -> Tensor:
        ctx.passes, ctx.number, ctx.bias = passes, number, bias
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: None) -> tuple[Tensor | None, ...]:
        left = ctx.passes.pop(_running(), None)
        if left is None:
            return (None,) * 7
        if left.x:
            needs = ctx.needs_input_grad[3:] if ctx.bias else ctx.needs_input_grad[3:5]
            bits = sum(need << i for i, need in enumerate(needs))
            left.add(operators.loop_backward(ctx.number, left.x, left.h, left.da, bits))
        return (None, None, None, *left.found)


# Function.apply would first look for a torch.func transform, which the callers have done
_apply = super(torch.autograd.Function, _Weights).apply  # pyright: ignore[reportAttributeAccessIssue]
