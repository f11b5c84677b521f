"""Our operators as the CPU backend calls them, and what stands in for their backward to be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchrnn import _extension
from torchrnn.backends import reference
from torchrnn.call import Call

if TYPE_CHECKING:
    from torchrnn.cell import Cell

# narrow numbers are stored, never accumulated
COMPUTED_IN = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}

# cells that have kernels, with their numbers there: asked for at each step of a loop
NUMBERS: dict[Cell, int] = {}


def unseen(operator: Any, *args: Any) -> Any:
    """What an operator gives, outside of any graph that is being traced: no question shall stand in one."""
    from torch.utils._python_dispatch import _disable_current_modes  # loads sympy

    with _disable_current_modes():
        return operator(*args)


def missing(cell: Cell) -> str | None:
    """Why there is no kernel for a cell, or None."""
    reason = _extension.missing()
    if reason is None and cell.late:
        reason = f"the cell {cell.name!r} multiplies with weight_hh within its step, which no kernel does"
    if reason is None:
        number = unseen(torch.ops.torchrnn.number, cell.name)
        if number < 0:
            return f"no kernel was generated for the cell {cell.name!r}"
        NUMBERS[cell] = number
    return reason


@cache
def takes_bfloat16() -> bool:
    """Whether the kernels take bfloat16, and multiply it as this processor does: elsewhere it is cast to float32."""
    return torch.ops.torchrnn.takes_bfloat16()


@cache
def tiles() -> bool:
    """Whether the processor has matrix instructions for bfloat16, which torch's LSTM uses and our kernels do not."""
    return torch.ops.torchrnn.tiles()


class _Operators:
    """The operators, looked up once: a look-up through torch.ops costs as much as checking a call."""

    def __getattr__(self, name: str) -> Any:
        overload = getattr(torch.ops.torchrnn, name).default
        found = getattr(overload, "_op", overload)  # what the overload calls
        setattr(self, name, found)
        return found


operators = _Operators()


_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_legacy_batched, _wrapped = _functorch.is_legacy_batchedtensor, _functorch.is_functorch_wrapped_tensor


def again(*gradients: Tensor | None) -> bool:
    """Whether a backward is to be differentiated again, or its gradients stand for many: the reference does both."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return True
    for g in gradients:  # noqa: SIM110 (asked at each step of a loop)
        if g is not None and (_legacy_batched(g) or _wrapped(g)):
            return True
    return False


def reference_gradients(
    call: Call, inputs: Sequence[Tensor], needs: Sequence[bool], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The same gradients by differentiating the reference, so that they can be differentiated again, or batched.

    ``inputs`` are x, states and weights, which ``call`` is given.
    """
    further = torch.is_grad_enabled()
    if further:  # an input may come from another, or from a weight: what is asked for is this call's part alone
        inputs = tuple(t.view_as(t) for t in inputs)
        needs = [need and t.requires_grad for t, need in zip(inputs, needs, strict=True)]  # or has been frozen since
    else:
        inputs = tuple(t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True))
    S = len(call.cell.states)
    with torch.enable_grad():
        x, *tensors = (t.to(COMPUTED_IN[t.dtype]) for t in inputs)
        call = call._replace(x=x, states=tuple(tensors[:S]), weights=tensors[S:])
        y, finals, everything = reference.run_all(call._replace(all_states=len(gradients) > 1 + S))
        results = finals if call.one_step else (y, *finals, *(s.flatten(1, -2) for s in everything[1:]))
        outputs = [(r.to(g.dtype), g) for r, g in zip(results, gradients, strict=True) if g is not None]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    given = [g for _, g in outputs]
    if not wanted:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad([r for r, _ in outputs], wanted, given, create_graph=further, allow_unused=True))
    return [next(found) if need else None for need in needs]


def reference_step(
    cell: Cell, bias: bool, tensors: Sequence[Tensor], needs: Sequence[bool], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of x, h, c, w_ih, w_hh, b_ih, b_hh of a step, by differentiating the reference.

    What stands in the place of what is not there has none.
    """
    S = len(cell.states)
    real = [*range(1 + S), *range(3, 7 if bias else 5)]
    call = Call(cell, tensors[0], (), (), bias, one_step=True)
    found = reference_gradients(call, [tensors[i] for i in real], [needs[i] for i in real], gradients[:S])
    by_place = dict(zip(real, found, strict=True))
    return [by_place.get(i) for i in range(7)]
