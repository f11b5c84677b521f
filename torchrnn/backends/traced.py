"""Calls that torch.compile or torch.export traces: one operator for a stack of layers, whatever the length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from torchrnn import _extension
from torchrnn.backends.operators import missing
from torchrnn.call import Call, transform

_any_cell: ContextVar[bool] = ContextVar("torchrnn_any_cell", default=False)


def refusal(cell: Any) -> str | None:
    """Why a graph cannot have the operator for a cell, or for a transform that is active; for a graph a constant."""
    reason = _extension.missing() if _any_cell.get() else missing(cell)
    return reason or transform()


# as torch.compiler.assume_constant_result does, which imports all of the compiler: a second and more
refusal._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@contextmanager
def of_any_cell() -> Iterator[None]:
    """Graphs that are traced within have the operator for cells without a kernel, too: for who translates it."""
    token = _any_cell.set(True)
    try:
        yield
    finally:
        _any_cell.reset(token)


def stack(call: Call) -> list[Tensor]:
    """Output and final states; of a single step the new states alone."""
    steps = call.steps
    return torch.ops.torchrnn.recurrent(
        call.cell.name,
        call.x,
        list(call.states),
        list(call.weights),
        call.batch_sizes,
        None if steps is None else steps.numbers(2 if call.bidirectional else 1),
        call.bias,
        call.bidirectional,
        call.options.function,
        None if call.options.limit == math.inf else call.options.limit,
    )


def differentiably(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    plan: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    """The operator `recurrent` where gradients may be asked for: what autograd calls."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *weights)):
        return list(_Recurrent.apply((cell, len(states), *rest), batch_sizes, plan, x, *states, *weights))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.torchrnn.recurrent(cell, x, states, weights, batch_sizes, plan, *rest)


class _Recurrent(torch.autograd.Function):
    """x, states and weights -> output and final states."""

    @staticmethod
    def forward(
        ctx: Any, said: Any, batch_sizes: Tensor | None, plan: Tensor | None, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        cell, S, *rest = said
        given = cell, x, list(tensors[:S]), list(tensors[S:]), batch_sizes, plan, *rest
        *results, reserve = torch.ops.torchrnn.recurrent_training(*given)
        ctx.save_for_backward(batch_sizes, plan, x, *tensors, reserve)
        ctx.said = said
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        batch_sizes, plan, x, *tensors, reserve = ctx.saved_tensors
        cell, S, *rest = ctx.said
        needs = ctx.needs_input_grad[3:]
        one_step = tensors[0].dim() == 2
        dy, dfinal = (None, gradients) if one_step else (gradients[0], gradients[1:])
        given = cell, x, list(tensors[:S]), list(tensors[S:]), batch_sizes, plan, *rest
        asked = [int(need) for need in needs]
        found = torch.ops.torchrnn.recurrent_backward(*given, reserve, dy, list(dfinal), asked)
        return (None, None, None, *(g if need else None for g, need in zip(found, needs, strict=True)))
