"""Loops over a cell, or over a layer with T = 1: their steps share one product for the gradients of the weights.

Where each step gives such gradients of its own, a loop of T steps writes T times as many numbers as there are weights,
reads them back and adds them. Here a step only leaves its inputs and the gradients of its pre-activations with the
`Loop`, whose node comes last of all in backward: it multiplies once.

A loop is found in the graph itself: a step whose previous state comes from a step, or from a layer. So nothing outlives
the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrnn.backends.operators import NUMBERS, again, operators, reference_step

if TYPE_CHECKING:
    from torchrnn.cell import Cell

#: The types of the nodes (``grad_fn``) after which a step is one of a loop.
BEGIN: set[type] = set()

_running, _runs = torch._C._current_graph_task_id, torch._C._will_engine_execute_node  # pyright: ignore[reportAttributeAccessIssue]


def step(cell: Cell, bias: bool, x: Tensor, h: Tensor, c: Tensor, weights: tuple[Tensor, ...]) -> Any:
    """The new states of a step of a loop, as `step.of_two_states`; None: it is none, or its weights are constant."""
    loop = _loop_of(c, cell, bias, weights)
    return loop and _apply_step(loop, x, h, c, loop.token)


def layer(cell: Cell, bias: bool, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
    """The output and final states of a layer with T = 1, one of one direction; None as `step` says."""
    if len(states) > 2 or not torch.is_grad_enabled():
        return None
    h, c = states[0], states[-1]
    if len(states) != len(cell.states) or h.dim() != 3 or c.dim() != 3:
        return None  # the long way has the words
    loop = _loop_of(c, cell, bias, tuple(weights) if bias else (*weights, weights[0], weights[0]))
    if loop is None:
        return None
    y, h, c = _apply_layer(loop, x, h, c, loop.token)
    return (y, h) if c is None else (y, h, c)


def _loop_of(c: Tensor, cell: Cell, bias: bool, weights: tuple[Tensor, ...]) -> Loop | None:
    """The loop of a step with the state ``c``; None: the step is the first, or the weights are constant."""
    before = _before(c.grad_fn)
    if before is None:
        return None
    loop = getattr(before, "loop", None)
    if loop is not None and loop.takes(cell, bias, weights):
        return loop
    return Loop(cell, bias, weights) if any(w.requires_grad for w in weights) else None


def _before(node: Any) -> Any:
    """The step that a state comes from, or None: directly, or by one operation, such as a product with a mask."""
    if node is None or type(node) in BEGIN:
        return node
    return next((before for before, _ in node.next_functions if type(before) in BEGIN), None)


class Left:
    """What the steps of a loop have left behind in one backward pass."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.h: list[Tensor] = []
        self.da: list[Tensor] = []  # gradients of the pre-activations
        self.versions = 0  # of all x and h, summed: they only grow
        self.found: list[Tensor | None] = [None] * 4  # gradients of the weights from steps that gave them, summed

    def step(self, x: Tensor, h: Tensor, da: Tensor) -> None:
        """Keep what a step leaves; of a leaf that an optimiser changes as soon as it has its gradient a copy."""
        if _is_hooked(x):
            x = x.clone()
        if _is_hooked(h):
            h = h.clone()
        self.x.append(x)
        self.h.append(h)
        self.da.append(da)
        self.versions += x._version + h._version

    def gradients(self, number: int, bits: int) -> Sequence[Tensor | None]:
        """The gradients of the weights from all that the steps have left."""
        if self.versions != sum(t._version for t in (*self.x, *self.h)):
            raise RuntimeError(
                "an input or a state of a loop's step, which the gradients of the weights need, was modified by an "
                "inplace operation while backward ran, by a hook: change it after backward, or give the step a clone"
            )
        return operators.loop_backward(number, self.x, self.h, self.da, bits)

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add a step's gradients of the weights."""
        self.found = [a if b is None else b if a is None else a + b for a, b in zip(self.found, gradients, strict=True)]


def _is_hooked(t: Tensor) -> bool:
    if not t.requires_grad:
        return False
    leaf = t if t._base is None else t._base
    return leaf._post_accumulate_grad_hooks is not None


class Loop:
    """The steps of a cell with the same weights, in one graph.

    Its ``token`` stands for the weights among the inputs of a step; it holds no numbers.
    """

    def __init__(self, cell: Cell, bias: bool, weights: tuple[Tensor, ...]) -> None:
        self.cell, self.number, self.bias, self.weights = cell, NUMBERS[cell], bias, weights
        self.needs = tuple(w.requires_grad for w in weights)
        self.passes: dict[int, Left] = {}
        self.token: Any = _apply_weights(self.passes, self.number, bias, *weights)
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

    def backward(
        self, tensors: Sequence[Tensor], needs: Sequence[bool], dh: Tensor | None, dc: Tensor | None
    ) -> Sequence[Tensor | None]:
        """A step's gradients of x, h and c; ``tensors`` are x, h, c, the weights and what was kept."""
        left, (x, h, c, w_ih, w_hh, b_ih, b_hh, kept) = self.left(), tensors
        if again(dh, dc):
            needs = (*needs, *(self.needs if left else (False,) * 4))
            found = reference_step(self.cell, self.bias, tensors[:7], needs, (dh, dc))
            if left:
                left.add(found[3:])
            return found[:3]
        bits = needs[0] + 2 * needs[1] + 4 * needs[2] + (128 if left else 0)
        dx, dh, dc, _, _, _, _, da = operators.step_backward(
            self.number, x, h, c, w_ih, w_hh, b_ih, b_hh, self.bias, kept, dh, dc, bits
        )
        if left:
            left.step(x, h, da)
        return dx, dh, dc


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
            left.add(left.gradients(ctx.number, bits))
        return (None, None, None, *left.found)


class _LoopStep(torch.autograd.Function):
    """A further step of a loop: x, states h and c, and the loop's token -> the new states."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, x: Tensor, h: Tensor, c: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None]:
        new_h, new_c, kept = operators.step(loop.number, x, h, c, *loop.weights, loop.bias, True)
        ctx.save_for_backward(x, h, c, *loop.weights, kept)
        ctx.loop = loop
        ctx.set_materialize_grads(False)
        return new_h, new_c

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return None, *ctx.loop.backward(ctx.saved_tensors, ctx.needs_input_grad[1:4], *gradients), None


class _LoopLayer(torch.autograd.Function):
    """The same of a layer, whose tensors have a dimension of size 1 more -> output and final states."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, x: Tensor, h: Tensor, c: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        given = x.squeeze(0), h.squeeze(0), c.squeeze(0)
        new_h, new_c, kept = operators.step(loop.number, *given, *loop.weights, loop.bias, True)
        ctx.save_for_backward(x, h, c, *loop.weights, kept)
        ctx.loop = loop
        ctx.set_materialize_grads(False)
        y = new_h.clone()  # whoever changes one of them in place shall not change the other
        for t in (y, new_h) if new_c is None else (y, new_h, new_c):
            t.unsqueeze_(0)  # a view could not be changed
        return y, new_h, new_c

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, h, c, *rest = ctx.saved_tensors
        dy, dh, dc = (None if g is None else g.squeeze(0) for g in gradients)
        dh = dh if dy is None else dy if dh is None else dh + dy
        tensors = x.squeeze(0), h.squeeze(0), c.squeeze(0), *rest
        found = ctx.loop.backward(tensors, ctx.needs_input_grad[1:4], dh, dc)
        return None, *(None if g is None else g.unsqueeze(0) for g in found), None


# Function.apply would first look for a torch.func transform, which the callers have done
_apply_weights, _apply_step, _apply_layer = (
    super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]
    for function in (_Weights, _LoopStep, _LoopLayer)
)
BEGIN |= {_LoopStep._backward_cls, _LoopLayer._backward_cls}
