"""Calls of which only some steps count, on backends that know packed sequences only: steps are moved there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchrnn.call import Call, transform

States = tuple[Tensor, ...]
Results = tuple[Tensor, States, States]


class Packing:
    """The way of a call's steps and states into a packed batch of segments, and back."""

    def __init__(self, call: Call) -> None:
        steps = call.steps
        assert steps is not None
        plan, device = steps.plan(2 if call.bidirectional else 1), call.x.device
        self.call, self.plan, self.fresh = call, plan, steps.fresh
        self.steps, self.places = plan.steps.to(device), _places(plan.steps, steps.M).to(device)
        self.begin, self.end = (tuple(t.to(device) for t in ts) for ts in (plan.begin, plan.end))

    def enter(self) -> Call:
        """The same call of the packed segments."""
        states = self.call.states
        if self.fresh:  # row B is none of theirs
            states = tuple(torch.cat((s, s.new_zeros(s.size(0), 1, s.size(2))), 1) for s in states)
        states = _rows_by_direction(states, self.begin)
        sizes = self.plan.batch_sizes
        return self.call._replace(x=self.move(self.call.x), states=states, batch_sizes=sizes, steps=None)

    def move(self, x: Tensor) -> Tensor:
        """(…, F) -> packed (N, F)."""
        return move(x.flatten(0, -2), self.steps, self.places)

    def move_back(self, y: Tensor) -> Tensor:
        """Packed (N, F) -> (…, F), zero where a step does not count."""
        return move(y, self.places, self.steps).unflatten(0, self.call.x.shape[:-1])

    def leave(self, results: Results) -> Results:
        """Output, final states and all states of the packed call -> those of the call."""
        y, states, everything = results
        if self.plan.idle:
            none = [s.new_zeros(s.size(0), 1, s.size(2)) for s in states]
            states = tuple(torch.cat(parts, 1) for parts in zip(states, self.call.states, none, strict=True))
        return self.move_back(y), _rows_by_direction(states, self.end), tuple(map(self.by_direction, everything))

    def by_direction(self, s: Tensor) -> Tensor:
        """(D, N, H) -> (D, …, H)."""
        return self.move_back(s.movedim(0, 1).flatten(1)).unflatten(-1, (s.size(0), -1)).movedim(-2, 0)


def by_packing(run_all: Callable[[Call], Results], call: Call) -> Results:
    """Run a call of which only some steps count."""
    packing = Packing(call)
    return packing.leave(run_all(packing.enter()))


def _rows_by_direction(states: States, orders: tuple[Tensor, ...]) -> States:
    """Each state (L·D, B, H) with the rows ``orders``, of all directions or of each by itself."""
    if len(orders) == 1:
        return tuple(s.index_select(1, orders[0]) for s in states)
    each = [[s[d::2].index_select(1, order) for d, order in enumerate(orders)] for s in states]
    return tuple(torch.stack(directions, 1).flatten(0, 1) for directions in each)


def _places(steps: Tensor, M: int) -> Tensor:
    """The inverse of ``steps`` (N,): for each of M steps its place, or N."""
    N = steps.numel()
    return steps.new_full((M,), N).scatter_(0, steps, torch.arange(N))


def move(x: Tensor, to: Tensor, back: Tensor) -> Tensor:
    """The rows ``to`` (K,) of ``x`` (M, F), no row twice; where ``to`` is M, zeros. ``back`` (M,) is the way back.

    Both ways read rows in the order in which they are written: with torch's own backward, which adds rows at an index,
    the RNN of 256 units would spend a tenth of its time here.
    """
    if x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling() and transform() is None:
        return _apply(x, (to, back))
    return _moved(x, to, back)


def _moved(x: Tensor, to: Tensor, back: Tensor) -> Tensor:
    if to.numel() > back.numel():
        x = torch.cat((x, x.new_zeros(1, x.size(1))))
    return x.index_select(0, to)


class _Move(torch.autograd.Function):
    """`move` for autograd: the gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ways: tuple[Tensor, Tensor]) -> Tensor:
        ctx.ways = ways  # one argument and not saved: autograd looks at each tensor that is given to it
        return _moved(x, *ways)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        to, back = ctx.ways
        return move(gradients[0], back, to), None


# Function.apply would first look for a torch.func transform, which `move` has excluded
_apply = super(torch.autograd.Function, _Move).apply  # pyright: ignore[reportAttributeAccessIssue]
