"""Our own kernels for the CPU: one operator for a layer over the whole sequence, and one for its backward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn import _extension
from torchrnn.activation import ACTIVATIONS, PLAIN, Options
from torchrnn.backends import reference
from torchrnn.call import Call, transform

if TYPE_CHECKING:
    from torchrnn.cell import Cell

# narrow numbers are stored, never accumulated
_COMPUTED_IN = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


# cells that have kernels, with their numbers there: asked for at each step of a loop
_NUMBERS: dict[Cell, int] = {}
_tracing, _autocast = torch._C._get_tracing_state, torch._C._is_any_autocast_enabled


def _missing(cell: Cell) -> str | None:
    """Why there is no kernel for a cell, or None."""
    reason = _extension.missing()
    if reason is None:
        number = torch.ops.torchrnn.number(cell.name)
        if number < 0:
            return f"no kernel was generated for the cell {cell.name!r}"
        _NUMBERS[cell] = number
    return reason


class _Operators:
    """The operators, looked up once: a look-up through torch.ops costs as much as checking a call."""

    def __getattr__(self, name: str) -> Any:
        overload = getattr(torch.ops.torchrnn, name).default
        found = getattr(overload, "_op", overload)  # what the overload calls
        setattr(self, name, found)
        return found


_operators = _Operators()


@cache
def _with(options: Options) -> tuple[Any, Any]:
    """The two operators for a layer with options."""
    given: Any = {"activation": list(ACTIVATIONS).index(options.function), "limit": options.limit}
    return partial(_operators.layer_open, **given), partial(_operators.layer_open_backward, **given)


def refuses(call: Call) -> str | None:
    """Why our kernels cannot run this call, or None."""
    if _tracing() is not None:
        return "torch.jit.trace is recording, which torch's kernels let generalise over time"
    if call.cell not in _NUMBERS:
        reason = _missing(call.cell)
        if reason is not None:
            return reason
    x = call.x
    if not x.is_cpu:
        return f"the input is on {x.device.type}"
    dtype = x.dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        if dtype not in _COMPUTED_IN:
            return f"the input is {dtype}; the kernels take float32, float64, bfloat16 and float16"
        plain = call.options is PLAIN  # torch's kernels would take it
        if plain and (call.one_step or (call.batch_sizes is None and x.size(0) == 1)):
            return f"a single step in {dtype} costs less than its casts to float32"
        if plain and dtype is torch.bfloat16 and call.cell.name == "lstm" and call.batch_sizes is None:
            return "torch's LSTM multiplies bfloat16 with the processor's own instructions, where it has them"
    if not x.numel() or not call.states[0].numel():
        return "the input is empty"
    if _autocast():
        return "autocast is active"
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"the input is a {type(x).__name__}, a subclass of Tensor"
    return transform()


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states; shapes as in the reference."""
    if call.one_step:
        return _step(call) if len(call.states) <= 2 and call.options is PLAIN else _other_step(call)
    return run_all(call)[:2]


def run_all(call: Call) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output, final states, and the last layer's states at all steps if wanted; shapes as in the reference."""
    stored, computed = call.x.dtype, _COMPUTED_IN[call.x.dtype]
    if stored is not computed:
        x, states, weights = call.x.to(computed), call.states, call.weights
        states, weights = ([None if t is None else t.to(computed) for t in ts] for ts in (states, weights))
        y, *more = run_all(call._replace(x=x, states=tuple(states), weights=weights))
        finals, everything = (tuple(s.to(stored) for s in states) for states in more)
        return y.to(stored), finals, everything
    D, S = 2 if call.bidirectional else 1, len(call.states)
    per_layer = len(call.weights) // call.num_layers
    y, finals = call.x, []
    rest: tuple[Tensor, ...] = ()
    for layer in range(call.num_layers):
        states = call.states
        if call.num_layers > 1:
            states = tuple(s[layer * D : (layer + 1) * D] for s in states)
        weights = call.weights[layer * per_layer : (layer + 1) * per_layer]
        y, *results = _layer(call, y, states, weights)
        finals.append(results[:S])
        rest = tuple(results[S:])
        if call.dropout and layer < call.num_layers - 1:
            y = F.dropout(y, call.dropout)
    if call.all_states:
        rest = _everything(y, rest, D)
    if call.num_layers == 1:
        return y, tuple(finals[0]), rest
    return y, tuple(torch.cat(s) for s in zip(*finals, strict=True)), rest


def _everything(y: Tensor, rest: Sequence[Tensor], D: int) -> tuple[Tensor, ...]:
    """The states at all steps as in the reference: the first is the output, the others come (D, N, H)."""
    steps = y.shape[:-1]
    first = y.unflatten(-1, (D, -1)).movedim(-2, 0)
    return (first, *(s.view(D, *steps, -1) for s in rest))


def _step(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of a cell of one or two states, by operators that are quick to call."""
    x, states, bias = call.x, call.states, call.bias
    w_ih, w_hh, b_ih, b_hh = call.weights
    h, c = states[0], states[-1]
    if not bias:
        b_ih = b_hh = w_ih  # in the place of what is not there
    if torch.is_grad_enabled() and (
        x.requires_grad
        or h.requires_grad
        or c.requires_grad
        or w_ih.requires_grad
        or w_hh.requires_grad
        or b_ih.requires_grad
        or b_hh.requires_grad
    ):
        h, c = _apply_step(call.cell, bias, x, h, c, w_ih, w_hh, b_ih, b_hh)
    else:
        h, c, _ = _operators.step(_NUMBERS[call.cell], x, h, c, w_ih, w_hh, b_ih, b_hh, bias, False)
    return h, ((h,) if c is None else (h, c))


def pack(call: Call, states: tuple[Tensor, Tensor], weights: Sequence[Any]) -> Tensor:
    """The weights of one layer, packed for many steps of ``call``; ``states`` are the first and the last, (B, H)."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if call.bias else (w_ih, w_ih)  # in the place of what is not there
    x = w_ih.new_empty(states[0].size(0), w_ih.size(1))
    return torch.ops.torchrnn.pack(_NUMBERS[call.cell], x, *states, w_ih, w_hh, b_ih, b_hh, call.bias)


def packed_step(call: Call, packed: Tensor, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
    """One step with what `pack` has made: the new states, bit for bit those of the same step within a sequence."""
    return _operators.packed_step(_NUMBERS[call.cell], packed, x, h, c, call.bias)


def _other_step(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of a cell of more states, or with options."""
    stored, computed = call.x.dtype, _COMPUTED_IN[call.x.dtype]
    if stored is not computed:
        x, states, weights = call.x.to(computed), call.states, call.weights
        states, weights = ([None if t is None else t.to(computed) for t in ts] for ts in (states, weights))
        states = _other_step(call._replace(x=x, states=tuple(states), weights=weights))[1]
        return states[0].to(stored), tuple(s.to(stored) for s in states)
    states = _layer(call, call.x, call.states, call.weights if call.bias else call.weights[:2])
    return states[0], tuple(states)


def _layer(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """One layer: output and final states; of a single step the new states alone."""
    if torch.is_grad_enabled() and (
        x.requires_grad or any(t.requires_grad for t in weights) or any(t.requires_grad for t in states)
    ):
        return _apply_layer(call, x, *states, *weights)
    layer = _operators.layer if call.options is PLAIN else _with(call.options)[0]
    return layer(call.cell.name, x, states, weights, call.batch_sizes, call.bias, False, call.all_states)


class _Step(torch.autograd.Function):
    """The operators of a step for autograd: x, states h and c, and weights -> the new states."""

    @staticmethod
    def forward(ctx: Any, cell: Any, bias: bool, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        h, c, kept = _operators.step(_NUMBERS[cell], *tensors, bias, True)
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
        if torch.is_grad_enabled() or (dh is not None and _batched(dh)) or (dc is not None and _batched(dc)):
            return _reference_step(cell, bias, (x, h, c, w_ih, w_hh, b_ih, b_hh), needs, gradients)
        bits = _BITS.get(needs) or _bits(needs)
        found = _operators.step_backward(_NUMBERS[cell], x, h, c, w_ih, w_hh, b_ih, b_hh, bias, kept, dh, dc, bits)
        return (None, None, *found)


_BITS: dict[tuple[bool, ...], int] = {}


def _bits(needs: tuple[bool, ...]) -> int:
    """What a step's backward is asked for, as the operator takes it: the first bit is x."""
    _BITS[needs] = sum(need << i for i, need in enumerate(needs[2:]))
    return _BITS[needs]


class _Layer(torch.autograd.Function):
    """The operators for autograd: x, states and weights -> output and final states."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        S = len(call.cell.states)
        layer = _operators.layer if call.options is PLAIN else _with(call.options)[0]
        *results, outputs, reserve = layer(
            call.cell.name, x, tensors[:S], tensors[S:], call.batch_sizes, call.bias, True, call.all_states
        )
        ctx.save_for_backward(x, *tensors, outputs, reserve)
        # not the call itself: it would hold tensors past the hooks of saved tensors
        ctx.cell, ctx.batch_sizes, ctx.bias, ctx.one_step = call.cell, call.batch_sizes, call.bias, call.one_step
        ctx.options = call.options
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, *tensors, y, reserve = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or any(_batched(g) for g in gradients if g is not None):
            call = Call(ctx.cell, x, (), (), ctx.bias, batch_sizes=ctx.batch_sizes, one_step=ctx.one_step)
            call = call._replace(options=ctx.options)
            return (None, *_reference_gradients(call, (x, *tensors), needs, gradients))
        S = len(ctx.cell.states)
        dy, dfinal = (None, gradients) if ctx.one_step else (gradients[0], gradients[1 : 1 + S])
        dall = () if ctx.one_step else gradients[1 + S :]
        layer_backward = _operators.layer_backward if ctx.options is PLAIN else _with(ctx.options)[1]
        found = layer_backward(
            ctx.cell.name, x, tensors[:S], tensors[S:], ctx.batch_sizes, ctx.bias, y, reserve, dy, dfinal, dall, needs
        )
        return (None, *found) if all(needs) else (None, *(g if n else None for g, n in zip(found, needs, strict=True)))


# Function.apply would first look for a torch.func transform, which `refuses` has done
_apply_step = super(torch.autograd.Function, _Step).apply  # pyright: ignore[reportAttributeAccessIssue]
_apply_layer = super(torch.autograd.Function, _Layer).apply  # pyright: ignore[reportAttributeAccessIssue]

_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_legacy_batched, _wrapped = _functorch.is_legacy_batchedtensor, _functorch.is_functorch_wrapped_tensor


def _batched(gradient: Tensor) -> bool:
    """Whether a gradient stands for many: autograd.grad was asked for ``is_grads_batched``, or runs inside vmap."""
    return _legacy_batched(gradient) or _wrapped(gradient)


def _reference_step(
    cell: Cell, bias: bool, tensors: Sequence[Tensor], needs: Sequence[bool], gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """What `_Step.backward` gives, by differentiating the reference."""
    S = len(cell.states)
    real = [*range(1 + S), *range(3, 7 if bias else 5)]  # not what stands in the place of what is not there
    call = Call(cell, tensors[0], (), (), bias, one_step=True)
    found = _reference_gradients(call, [tensors[i] for i in real], [needs[2 + i] for i in real], gradients[:S])
    by_place = dict(zip(real, found, strict=True))
    return (None, None, *(by_place.get(i) for i in range(7)))


def _reference_gradients(
    call: Call, inputs: Sequence[Tensor], needs: Sequence[bool], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The same gradients by differentiating the reference, so that they can be differentiated again, or batched.

    ``inputs`` are x, states and weights, which ``call`` is given.
    """
    again = torch.is_grad_enabled()
    if not again:
        inputs = tuple(t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True))
    S = len(call.cell.states)
    states, weights = tuple(inputs[1 : 1 + S]), inputs[1 + S :]
    bidirectional = not call.one_step and states[0].size(0) == 2
    call = call._replace(x=inputs[0], states=states, weights=weights, bidirectional=bidirectional)
    with torch.enable_grad():
        y, finals, everything = reference.run_all(call._replace(all_states=len(gradients) > 1 + S))
    results = finals if call.one_step else (y, *finals, *(s.flatten(1, -2) for s in everything[1:]))
    outputs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    given = [g for _, g in outputs]
    found = iter(torch.autograd.grad([r for r, _ in outputs], wanted, given, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needs]
