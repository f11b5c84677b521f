"""Single steps of a cell on our own kernels, by operators that are quick to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchrnn.backends.loop import Loop
from torchrnn.backends.operators import NUMBERS, batched, operators, reference_gradients
from torchrnn.call import Call

if TYPE_CHECKING:
    from torchrnn.cell import Cell


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of a cell of one or two states, by operators that are quick to call."""
    x, states, bias = call.x, call.states, call.bias
    w_ih, w_hh, b_ih, b_hh = call.weights
    h, c = states[0], states[-1]
    if not bias:
        b_ih = b_hh = w_ih  # in the place of what is not there
    h, c = of_two_states(call.cell, bias, x, h, c, w_ih, w_hh, b_ih, b_hh)
    return h, ((h,) if c is None else (h, c))


def of_two_states(cell: Cell, bias: bool, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> Any:
    """The new states, the second None if the cell has one: then it takes its only one twice."""
    w_ih, w_hh, b_ih, b_hh = weights
    training = torch.is_grad_enabled()
    if training and (loop := _loop_of(c, cell, bias, weights)):
        return _apply_loop_step(loop, x, h, c, loop.token)
    if training and (
        x.requires_grad
        or h.requires_grad
        or c.requires_grad
        or w_ih.requires_grad
        or w_hh.requires_grad
        or b_ih.requires_grad
        or b_hh.requires_grad
    ):
        return _apply_step(cell, bias, x, h, c, w_ih, w_hh, b_ih, b_hh)
    return operators.step(NUMBERS[cell], x, h, c, w_ih, w_hh, b_ih, b_hh, bias, False)[:2]


def _loop_of(c: Tensor, cell: Cell, bias: bool, weights: tuple[Tensor, ...]) -> Loop | None:
    """The loop of a step with the state ``c``; None: the step is the first, or the weights are constant."""
    before = _step_before(c.grad_fn)
    if before is None:
        return None
    if type(before) is _LOOP_STEP and before.loop.takes(cell, bias, weights):
        return before.loop
    return Loop(cell, NUMBERS[cell], bias, weights) if any(w.requires_grad for w in weights) else None


def _step_before(node: Any) -> Any:
    """The step that a state comes from, or None: directly, or by one operation, such as a product with a mask."""
    if node is None or type(node) in _STEPS:
        return node
    return next((before for before, _ in node.next_functions if type(before) in _STEPS), None)


def pack(call: Call, states: tuple[Tensor, Tensor], weights: Sequence[Any]) -> Tensor:
    """The weights of one layer, packed for many steps of ``call``; ``states`` are the first and the last, (B, H)."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if call.bias else (w_ih, w_ih)  # in the place of what is not there
    x = w_ih.new_empty(states[0].size(0), w_ih.size(1))
    return torch.ops.torchrnn.pack(NUMBERS[call.cell], x, *states, w_ih, w_hh, b_ih, b_hh, call.bias)


def packed_step(call: Call, packed: Tensor, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
    """One step with what `pack` has made: the new states, bit for bit those of the same step within a sequence."""
    return operators.packed_step(NUMBERS[call.cell], packed, x, h, c, call.bias)


class _Step(torch.autograd.Function):
    """The operators of a step for autograd: x, states h and c, and weights -> the new states."""

    @staticmethod
    def forward(ctx: Any, cell: Any, bias: bool, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        h, c, kept = operators.step(NUMBERS[cell], *tensors, bias, True)
        ctx.save_for_backward(*tensors, kept)
        ctx.form = cell, bias
        ctx.set_materialize_grads(False)
        return h, c

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, h, c, w_ih, w_hh, b_ih, b_hh, kept = ctx.saved_tensors
        dh, dc = gradients
        cell, bias = ctx.form
        needs = ctx.needs_input_grad
        if _again(dh, dc):
            return _reference_step(cell, bias, (x, h, c, w_ih, w_hh, b_ih, b_hh), needs, gradients)
        bits = _BITS.get(needs) or _bits(needs)
        found = operators.step_backward(NUMBERS[cell], x, h, c, w_ih, w_hh, b_ih, b_hh, bias, kept, dh, dc, bits)
        return (None, None, *found[:7])


class _LoopStep(torch.autograd.Function):
    """A further step of a loop: x, states h and c, and the loop's token -> the new states."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, x: Tensor, h: Tensor, c: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = loop.weights
        new_h, new_c, kept = operators.step(loop.number, x, h, c, *weights, loop.bias, True)
        ctx.save_for_backward(x, h, c, *weights, kept)
        ctx.loop = loop
        ctx.set_materialize_grads(False)
        return new_h, new_c

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        dh, dc = gradients
        x, h, c, w_ih, w_hh, b_ih, b_hh, kept = ctx.saved_tensors
        _, need_x, need_h, need_c, _ = ctx.needs_input_grad
        loop = ctx.loop
        left = loop.left()
        if _again(dh, dc):
            needs = (False, False, need_x, need_h, need_c, *(loop.needs if left else (False,) * 4))
            found = _reference_step(loop.cell, loop.bias, (x, h, c, w_ih, w_hh, b_ih, b_hh), needs, (dh, dc))[2:]
            if left:
                left.add(found[3:])
            return (None, *found[:3], None)
        bits = need_x + 2 * need_h + 4 * need_c + (128 if left else 0)
        dx, dh, dc, _, _, _, _, da = operators.step_backward(
            loop.number, x, h, c, w_ih, w_hh, b_ih, b_hh, loop.bias, kept, dh, dc, bits
        )
        if left:
            left.x.append(x)
            left.h.append(h)
            left.da.append(da)
        return None, dx, dh, dc, None


def _again(dh: Tensor | None, dc: Tensor | None) -> bool:
    """Whether the gradients of a step are to be differentiated again, or stand for many."""
    return (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or (dh is not None and batched(dh))
        or (dc is not None and batched(dc))
    )


_BITS: dict[tuple[bool, ...], int] = {}


def _bits(needs: tuple[bool, ...]) -> int:
    """What a step's backward is asked for, as the operator takes it: the first bit is x."""
    _BITS[needs] = sum(need << i for i, need in enumerate(needs[2:]))
    return _BITS[needs]


# Function.apply would first look for a torch.func transform, which `refuses` has done
_apply_step = super(torch.autograd.Function, _Step).apply  # pyright: ignore[reportAttributeAccessIssue]
_apply_loop_step = super(torch.autograd.Function, _LoopStep).apply  # pyright: ignore[reportAttributeAccessIssue]
_LOOP_STEP = _LoopStep._backward_cls
_STEPS = {_Step._backward_cls, _LOOP_STEP}  # the types of what their results call grad_fn


def _reference_step(
    cell: Cell, bias: bool, tensors: Sequence[Tensor], needs: Sequence[bool], gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """What `_Step.backward` gives, by differentiating the reference."""
    S = len(cell.states)
    real = [*range(1 + S), *range(3, 7 if bias else 5)]  # not what stands in the place of what is not there
    call = Call(cell, tensors[0], (), (), bias, one_step=True)
    found = reference_gradients(call, [tensors[i] for i in real], [needs[2 + i] for i in real], gradients[:S])
    by_place = dict(zip(real, found, strict=True))
    return (None, None, *(by_place.get(i) for i in range(7)))
