"""Single steps of a cell on our own kernels, by operators that are quick to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrnn.backends import loop
from torchrnn.backends.operators import NUMBERS, again, operators, reference_step
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
    if training and (found := loop.step(cell, bias, x, h, c, weights)):
        return found
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


def pack(call: Call, states: tuple[Tensor, Tensor], weights: Sequence[Any]) -> Tensor:
    """The weights of one layer, packed for many steps of ``call``; ``states`` are the first and the last, (B, H)."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if call.bias else (w_ih, w_ih)  # in the place of what is not there
    x = w_ih.new_empty(states[0].size(0), w_ih.size(1))
    return torch.ops.torchrnn.pack(NUMBERS[call.cell], x, *states, w_ih, w_hh, b_ih, b_hh, call.bias)


def packed_step(call: Call, packed: Tensor, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """One step with what `pack` has made, from states (S, B, H): output and new states, bit for bit a sequence's."""
    return operators.packed_step(NUMBERS[call.cell], packed, x, states, call.bias)


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
        *tensors, kept = ctx.saved_tensors  # once: a checkpoint hands them out a single time
        dh, dc = gradients
        cell, bias = ctx.form
        needs = ctx.needs_input_grad
        if again(dh, dc):
            return (None, None, *reference_step(cell, bias, tensors, needs[2:], gradients))
        bits = _BITS.get(needs) or _bits(needs)
        found = operators.step_backward(NUMBERS[cell], *tensors, bias, kept, dh, dc, bits)
        return (None, None, *found[:7])


_BITS: dict[tuple[bool, ...], int] = {}


def _bits(needs: tuple[bool, ...]) -> int:
    """What a step's backward is asked for, as the operator takes it: the first bit is x."""
    _BITS[needs] = sum(need << i for i, need in enumerate(needs[2:]))
    return _BITS[needs]


# Function.apply would first look for a torch.func transform, which `refuses` has done
_apply_step = super(torch.autograd.Function, _Step).apply  # pyright: ignore[reportAttributeAccessIssue]
loop.BEGIN.add(_Step._backward_cls)
