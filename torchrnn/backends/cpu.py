"""Our own kernels for the CPU: one operator for a layer over the whole sequence, and one for its backward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn import _extension
from torchrnn.backends import reference
from torchrnn.call import Call, transform

# narrow numbers are stored, never accumulated
_COMPUTED_IN = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


@cache
def _missing(cell: str) -> str | None:
    """Why there is no kernel for a cell, or None."""
    reason = _extension.missing()
    if reason is None and not torch.ops.torchrnn.has(cell):
        reason = f"no kernel was generated for the cell {cell!r}"
    return reason


@cache
def _operators() -> tuple[Any, Any]:
    """The two operators, looked up once: a look-up through torch.ops costs as much as checking a call."""
    return torch.ops.torchrnn.layer.default, torch.ops.torchrnn.layer_backward.default


def refuses(call: Call) -> str | None:
    """Why our kernels cannot run this call, or None."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording, which torch's kernels let generalise over time"
    reason = _missing(call.cell.name)
    if reason is not None:
        return reason
    x = call.x
    if x.device.type != "cpu":
        return f"the input is on {x.device.type}"
    if x.dtype not in _COMPUTED_IN:
        return f"the input is {x.dtype}; the kernels take float32, float64, bfloat16 and float16"
    if x.dtype.itemsize == 2 and (call.one_step or (call.batch_sizes is None and x.size(0) == 1)):
        return f"a single step in {x.dtype} costs less than its casts to float32"
    if x.dtype is torch.bfloat16 and call.cell.name == "lstm" and call.batch_sizes is None:
        return "torch's LSTM multiplies bfloat16 with the processor's own instructions, where it has them"
    if not x.numel() or not call.states[0].numel():
        return "the input is empty"
    if torch._C._is_any_autocast_enabled():
        return "autocast is active"
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"the input is a {type(x).__name__}, a subclass of Tensor"
    return transform()


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states; shapes as in the reference."""
    stored, computed = call.x.dtype, _COMPUTED_IN[call.x.dtype]
    if stored is not computed:
        x, states, weights = call.x.to(computed), call.states, call.weights
        states, weights = ([None if t is None else t.to(computed) for t in ts] for ts in (states, weights))
        y, states = run(call._replace(x=x, states=tuple(states), weights=weights))
        return y.to(stored), tuple(s.to(stored) for s in states)
    if call.one_step:
        states = _layer(call, call.x, call.states, call.weights if call.bias else call.weights[:2])
        return states[0], tuple(states)
    D = 2 if call.bidirectional else 1
    per_layer = len(call.weights) // call.num_layers
    y, finals = call.x, []
    for layer in range(call.num_layers):
        states = call.states
        if call.num_layers > 1:
            states = tuple(s[layer * D : (layer + 1) * D] for s in states)
        weights = call.weights[layer * per_layer : (layer + 1) * per_layer]
        y, *final = _layer(call, y, states, weights)
        finals.append(final)
        if call.dropout and layer < call.num_layers - 1:
            y = F.dropout(y, call.dropout)
    if call.num_layers == 1:
        return y, tuple(finals[0])
    return y, tuple(torch.cat(s) for s in zip(*finals, strict=True))


def _layer(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """One layer: output and final states; of a single step the new states alone."""
    if torch.is_grad_enabled() and (
        x.requires_grad or any(t.requires_grad for t in weights) or any(t.requires_grad for t in states)
    ):
        # Function.apply would first look for a torch.func transform, which `refuses` has excluded
        return super(torch.autograd.Function, _Layer).apply(call, x, *states, *weights)  # pyright: ignore[reportAttributeAccessIssue]
    return _operators()[0](call.cell.name, x, states, weights, call.batch_sizes, call.bias, False)


class _Layer(torch.autograd.Function):
    """The operators for autograd: x, states and weights -> output and final states."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        S = len(call.cell.states)
        *results, outputs, reserve = _operators()[0](
            call.cell.name, x, tensors[:S], tensors[S:], call.batch_sizes, call.bias, True
        )
        ctx.save_for_backward(x, *tensors, outputs, reserve)
        # not the call itself: it would hold tensors past the hooks of saved tensors
        ctx.cell, ctx.batch_sizes, ctx.bias, ctx.one_step = call.cell, call.batch_sizes, call.bias, call.one_step
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, *tensors, y, reserve = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or any(_batched(g) for g in gradients if g is not None):
            return (None, *_reference_gradients(ctx, (x, *tensors), needs, gradients))
        dy, dfinal = (None, gradients) if ctx.one_step else (gradients[0], gradients[1:])
        S = len(ctx.cell.states)
        found = _operators()[1](
            ctx.cell.name, x, tensors[:S], tensors[S:], ctx.batch_sizes, ctx.bias, y, reserve, dy, dfinal, needs
        )
        return (None, *found) if all(needs) else (None, *(g if n else None for g, n in zip(found, needs, strict=True)))


_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def _batched(gradient: Tensor) -> bool:
    """Whether a gradient stands for many: autograd.grad was asked for ``is_grads_batched``, or runs inside vmap."""
    return _functorch.is_legacy_batchedtensor(gradient) or _functorch.is_functorch_wrapped_tensor(gradient)


def _reference_gradients(
    ctx: Any, inputs: tuple[Tensor, ...], needs: tuple[bool, ...], gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The same gradients by differentiating the reference, so that they can be differentiated again, or batched."""
    again = torch.is_grad_enabled()
    if not again:
        inputs = tuple(t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True))
    S = len(ctx.cell.states)
    states, weights = inputs[1 : 1 + S], inputs[1 + S :]
    bidirectional = not ctx.one_step and states[0].size(0) == 2
    call = Call(ctx.cell, inputs[0], states, weights, ctx.bias, bidirectional=bidirectional)
    with torch.enable_grad():
        y, finals = reference.run(call._replace(batch_sizes=ctx.batch_sizes, one_step=ctx.one_step))
    results = finals if ctx.one_step else (y, *finals)
    outputs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    given = [g for _, g in outputs]
    found = iter(torch.autograd.grad([r for r, _ in outputs], wanted, given, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needs]
