"""Our own kernels for the CPU: one operator for all layers over the whole sequence, and one for its backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn.activation import ACTIVATIONS, PLAIN
from torchrnn.backends import loop, step, traced
from torchrnn.backends.operators import (
    COMPUTED_IN,
    NUMBERS,
    again,
    missing,
    operators,
    reference_gradients,
    takes_bfloat16,
    tiles,
)
from torchrnn.backends.packing import Packing
from torchrnn.call import Call, transform
from torchrnn.cell import Cell

if TYPE_CHECKING:
    from torchrnn.plan import Steps

# what `flags` says, beside the number of the activation from bit 8 on; as Said in csrc/stack.h
BIAS, TRAINING, ALL, BIDIRECTIONAL, PLANNED = 1, 2, 4, 8, 16
ACTIVATION = {name: number for number, name in enumerate(ACTIVATIONS)}
_tracing, _autocast = torch._C._get_tracing_state, torch._C._is_any_autocast_enabled


def refuses(call: Call) -> str | None:
    """Why our kernels cannot run this call, or None."""
    if torch.compiler.is_compiling():
        return _refuses_in_graph(call)
    if _tracing() is not None:
        return "torch.jit.trace is recording, which torch's kernels let generalise over time"
    if call.cell not in NUMBERS:
        reason = missing(call.cell)
        if reason is not None:
            return reason
    x = call.x
    if not x.is_cpu:
        return f"the input is on {x.device.type}"
    dtype = x.dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        if dtype not in COMPUTED_IN:
            return f"the input is {dtype}; the kernels take float32, float64, bfloat16 and float16"
        plain = call.options is PLAIN  # torch's kernels would take it
        dense = call.batch_sizes is None and call.steps is None
        cast = dtype is not torch.bfloat16 or not takes_bfloat16()
        if plain and (call.one_step or (cast and dense and x.size(0) == 1)):
            return f"a single step in {dtype} costs less than its casts to float32"
        if plain and dtype is torch.bfloat16 and call.cell.name == "lstm" and dense and (cast or tiles()):
            return "torch's LSTM multiplies bfloat16 with the processor's own instructions, where it has them"
    if not x.numel() or not call.states[0].numel():
        return "the input is empty"
    if _autocast():
        return "autocast is active"
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"the input is a {type(x).__name__}, a subclass of Tensor"
    return transform()


def _refuses_in_graph(call: Call) -> str | None:
    """The same where torch.compile or torch.export traces: of tensors only what a graph knows."""
    x = call.x
    if not x.is_cpu:
        return f"the input is on {x.device.type}"
    if x.dtype not in COMPUTED_IN:
        return f"the input is {x.dtype}"
    if _autocast():
        return "autocast is active"
    if call.all_states:
        return "the states of all steps are wanted"
    return traced.refusal(call.cell)


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states; shapes as in the reference."""
    if call.one_step:
        plain = len(call.states) <= 2 and call.options is PLAIN and not torch.compiler.is_compiling()
        return step.run(call) if plain else other_step(call, _stack)
    return run_all(call, _stack)[:2]


def run_all(
    call: Call, stack: Callable[[Call], Sequence[Tensor]] | None = None
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output, final states, and the last layer's states at all steps if wanted; shapes as in the reference.

    After those the gates, where no gradient is asked for and they are among what the kernels keep. ``stack`` does
    the work, by default `_stack`.
    """
    stack = stack or _stack
    if _is_cast(call.x.dtype):
        y, *more = run_all(_widened(call), stack)
        finals, everything = (tuple(s.to(call.x.dtype) for s in states) for states in more)
        return y.to(call.x.dtype), finals, everything
    if call.dropout and call.num_layers > 1:
        return _with_dropout(call, stack)
    y, *rest = stack(call)
    S = len(call.states)
    finals, everything = tuple(rest[:S]), tuple(rest[S:])
    if not call.all_states:
        return y, finals, ()
    D, steps = 2 if call.bidirectional else 1, y.shape[:-1]
    first = y.unflatten(-1, (D, -1)).movedim(-2, 0)
    all_states = (first, *(s.view(D, *steps, -1).to(y.dtype) for s in everything[: S - 1]))
    return y, finals, (*all_states, *_gates(call, everything[S - 1 :], y, D))


@cache
def _kept(cell: Cell, plain: bool) -> list[str]:
    """What the kernels keep of a step, by name."""
    return torch.ops.torchrnn.kept(NUMBERS[cell], plain).split()


def _keeps_gates(call: Call) -> bool:
    """Whether all gates are among what the kernels keep of a layer."""
    return call.num_layers == 1 and {*call.cell.gates} <= {*_kept(call.cell, call.options == PLAIN)}


def _gates(call: Call, reserve: Sequence[Tensor], y: Tensor, D: int) -> list[Tensor]:
    """The gates, shaped as the states: for each direction what was kept begins with (N, names, H)."""
    if not reserve:
        return []
    names = _kept(call.cell, call.options == PLAIN)
    H, N = call.weights[0].size(0) // len(call.cell.gates), y.shape[:-1].numel()
    packing = None if call.steps is None else Packing(call)
    if packing is not None:
        N = packing.steps.numel()
    # before it come the outputs: of bfloat16 two in the room of one number
    all_kept = reserve[0][y.numel() if y.dtype is reserve[0].dtype else (y.numel() + 1) // 2 :]
    projected = len(call.weights) // D == (5 if call.bias else 3)
    size = N * H * (len(names) + len(call.states) - 1 + projected)
    kept = all_kept[: D * size].view(D, size)[:, : N * len(names) * H].view(D, N, len(names), H)
    found = [kept[:, :, names.index(gate)].to(y.dtype) for gate in call.cell.gates]
    return [g.unflatten(1, y.shape[:-1]) if packing is None else packing.by_direction(g) for g in found]


def _is_cast(dtype: torch.dtype) -> bool:
    """Whether tensors are cast around the kernels; in a graph always, since it may run on another processor."""
    if COMPUTED_IN[dtype] is dtype:
        return False
    return torch.compiler.is_compiling() or dtype is not torch.bfloat16 or not takes_bfloat16()


def _widened(call: Call) -> Call:
    """The call in the type that it is computed in."""
    wide = COMPUTED_IN[call.x.dtype]
    states, weights = ([None if t is None else t.to(wide) for t in ts] for ts in (call.states, call.weights))
    return call._replace(x=call.x.to(wide), states=tuple(states), weights=weights)


def _with_dropout(
    call: Call, stack: Callable[[Call], Sequence[Tensor]]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Layer by layer, since dropout acts between them."""
    D, per_layer = 2 if call.bidirectional else 1, len(call.weights) // call.num_layers
    y, finals, everything = call.x, [], ()
    for k in range(call.num_layers):
        states = tuple(s[k * D : (k + 1) * D] for s in call.states)
        weights = call.weights[k * per_layer : (k + 1) * per_layer]
        one = call._replace(x=y, states=states, weights=weights, num_layers=1, dropout=0.0)
        y, final, everything = run_all(one, stack)
        finals.append(final)
        if k < call.num_layers - 1:
            y = F.dropout(y, call.dropout)
    return y, tuple(torch.cat(s) for s in zip(*finals, strict=True)), everything


def other_step(call: Call, stack: Callable[[Call], Sequence[Tensor]]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of a cell of more states, or with options; ``stack`` does the work."""
    if COMPUTED_IN[call.x.dtype] is not call.x.dtype:
        states = other_step(_widened(call), stack)[1]
        return states[0].to(call.x.dtype), tuple(s.to(call.x.dtype) for s in states)
    states = stack(call._replace(weights=call.weights if call.bias else call.weights[:2]))
    return states[0], tuple(states)


def _stack(call: Call) -> Sequence[Tensor]:
    """Output, final states and all states if wanted; of a single step the new states alone."""
    if torch.compiler.is_compiling():
        return traced.stack(call)
    x, states, weights = call.x, call.states, call.weights
    flags = call.bias + ALL * call.all_states + BIDIRECTIONAL * call.bidirectional
    numbers, options = call.batch_sizes, call.options
    if call.steps is not None:
        numbers = call.steps.numbers(2 if call.bidirectional else 1)
        flags += PLANNED
    if options is not PLAIN:
        flags += ACTIVATION[options.function] << 8
    if _wants_gradients(x, states, weights):
        # the call itself would hold tensors past the hooks of saved tensors
        form = call.cell, flags + TRAINING, options, call.steps, call.one_step
        return _apply(form, numbers, x, *states, *weights)
    if call.all_states and _keeps_gates(call):
        flags += TRAINING
    return operators.stack(NUMBERS[call.cell], x, states, weights, numbers, flags, options.limit)


def _wants_gradients(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(t.requires_grad for t in weights) or any(t.requires_grad for t in states)


def plain_stack(
    cell: Cell, x: Tensor, states: Sequence[Tensor], weights: Sequence[Any], flags: int, steps: Steps | None
) -> Sequence[Tensor]:
    """Output and final states of layers without options over a batch: dense (T, B, I), or its ``steps`` that count."""
    numbers = None
    if steps is not None:
        numbers = steps.numbers(2 if flags & BIDIRECTIONAL else 1)
        flags += PLANNED
    if _wants_gradients(x, states, weights):
        return _apply((cell, flags + TRAINING, PLAIN, steps, False), numbers, x, *states, *weights)
    return operators.stack(NUMBERS[cell], x, states, weights, numbers, flags, math.inf)


class _Stack(torch.autograd.Function):
    """The operators for autograd: x, states and weights -> output and final states."""

    @staticmethod
    def forward(ctx: Any, form: Any, numbers: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        cell, flags, options = form[:3]
        S = len(cell.states)
        stack = operators.stack
        *results, reserve = stack(NUMBERS[cell], x, tensors[:S], tensors[S:], numbers, flags, options.limit)
        ctx.save_for_backward(x, *tensors, reserve)
        ctx.form, ctx.numbers = form, numbers
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, *tensors, reserve = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        cell, flags, options, _, one_step = ctx.form
        S = len(cell.states)
        if again(*gradients):
            call = _call_again(ctx.form, ctx.numbers, x, tensors)
            return (None, None, *reference_gradients(call, (x, *tensors), needs, gradients))
        dy, dfinal = (None, gradients) if one_step else (gradients[0], gradients[1 : 1 + S])
        dall = () if one_step else gradients[1 + S :]
        given = NUMBERS[cell], x, tensors[:S], tensors[S:], ctx.numbers, flags, options.limit
        found = operators.stack_backward(*given, reserve, dy, dfinal, dall, needs)
        return (None, None, *found) if all(needs) else (None, None, *_asked(found, needs))


def _asked(found: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(found, needs, strict=True)]


def _call_again(form: Any, numbers: Tensor | None, x: Tensor, tensors: Sequence[Tensor]) -> Call:
    """The call for the reference, but for the tensors that are differentiated."""
    cell, flags, options, steps, one_step = form
    bidirectional = bool(flags & BIDIRECTIONAL)
    layers = 1 if one_step else tensors[0].size(0) // (2 if bidirectional else 1)
    call = Call(cell, x, (), (), bool(flags & BIAS), layers, bidirectional=bidirectional, one_step=one_step)
    return call._replace(options=options, steps=steps, batch_sizes=None if steps is not None else numbers)


# Function.apply would first look for a torch.func transform, which `refuses` has done
_apply = super(torch.autograd.Function, _Stack).apply  # pyright: ignore[reportAttributeAccessIssue]
loop.BEGIN.add(_Stack._backward_cls)
