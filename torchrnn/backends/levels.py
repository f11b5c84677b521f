"""Rules for differentiating and mapping a call, applied through the levels of torch.func.

``torch.autograd.Function`` can do this by itself, but makes a class, reads a signature and walks pytrees at every level
of every call: half of the 1.4 ms of a tiny layer under ``vmap(grad(…))``. Here the same steps are taken on flat tuples,
with one class for all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction

_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
GRAD, VMAP = _functorch.TransformType.Grad, _functorch.TransformType.Vmap
COVERED = (VMAP, GRAD)


class Rule(torch.autograd.Function):
    """An autograd function that knows what to do when it is mapped. Its results are a tuple of tensors.

    ``ctx.needs_input_grad`` may begin with more than its own arguments: count from the end.
    """

    @staticmethod
    def over(V: int, dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """The results of V calls, whose argument i is mapped over ``dims[i]``, and the dimension of each result."""
        raise NotImplementedError


def applied(rule: type[Rule], *args: Any) -> tuple[Tensor, ...]:
    """``rule`` on arguments of the innermost level; below all levels, recorded by autograd where somebody asks."""
    args = tuple(_functorch.unwrap_if_dead(t) if isinstance(t, Tensor) else t for t in args)
    if _functorch.peek_interpreter_stack() is None:
        watched = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args)
        return rule.apply(*args) if watched else rule.forward(*args)
    level: Any = retrieve_current_functorch_interpreter()
    if level.key() == VMAP:
        return _mapped(rule, level, args)
    if level.key() == GRAD:
        own = (level._cptr.lift(t) if isinstance(t, Tensor) else t for t in args)
        with enable_single_level_autograd_function():
            return _Level.apply(level, rule, *own)  # pyright: ignore[reportAttributeAccessIssue]
    return rule.apply(*args)


def _mapped(rule: type[Rule], level: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    at = level.level()
    apart = [_functorch._unwrap_batched(t, at) if isinstance(t, Tensor) else (t, None) for t in args]
    dims = tuple(d for _, d in apart)
    with level.lower():
        if all(d is None for d in dims):
            return applied(rule, *args)
        results, to = rule.over(level.batch_size(), dims, *(t for t, _ in apart))
    return tuple(t if d is None else _functorch._add_batch_dim(t, d, at) for t, d in zip(results, to, strict=True))


class _Level(_SingleLevelFunction):
    """A rule recorded by one level of ``torch.func.grad``; arguments and results are tensors of this level."""

    @staticmethod
    def forward(level: Any, rule: type[Rule], *args: Any) -> tuple[Tensor, ...]:
        at = level.level()
        given = (_functorch._unwrap_for_grad(t, at) if isinstance(t, Tensor) else t for t in args)
        with torch.enable_grad(), _set_fwd_grad_enabled(True), level.lower():
            results = applied(rule, *given)
        return tuple(_functorch._wrap_for_grad(t, at) for t in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule = inputs[1]
        ctx.rule.setup_context(ctx, inputs[2:], output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.rule.backward(ctx, *gradients))
