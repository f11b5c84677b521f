"""A plan of sequences: which steps of an input make up which independent sequence, and where all of them stand packed.

Lengths, masks, resets, lists and nested tensors say the same thing in different words: the valid steps of an input fall
into segments, each a sequence of its own. A plan packs them, longest first, into the form that every backend takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrnn import _extension
from torchrnn.call import transform


class Plan(NamedTuple):
    """Where the steps and states of a packed batch come from and go to.

    M steps of the input, N of them valid; B rows of the user's batch; S segments with at least one step.
    """

    steps: Tensor  # (N,) which step of the input each packed step is
    places: Tensor  # (M,) where each step of the input stands packed; N: nowhere
    batch_sizes: Tensor  # (longest segment,) segments still running at each step, on the CPU
    begin: tuple[Tensor, ...]  # by direction (one: both alike), (S,): the row whose given state it starts from; B: none
    end: tuple[Tensor, ...]  # likewise (B,): the segment whose end is a row's final state; S + b: the state given for b
    S: int
    fresh: bool  # whether some segment starts from zeros
    idle: bool  # whether some row's final state is no segment's

    def to(self, device: torch.device) -> Plan:
        """The same plan for tensors on ``device``."""
        if device.type == "cpu":
            return self
        begin, end = (tuple(t.to(device) for t in ts) for ts in (self.begin, self.end))
        return self._replace(steps=self.steps.to(device), places=self.places.to(device), begin=begin, end=end)


def make(
    B: int,
    T: int,
    M: int,
    batch_first: bool,
    lengths: Tensor | None,
    first: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    to_zero: bool = True,
    D: int = 1,
) -> Plan:
    """The plan of B rows.

    Args:
        B: rows.
        T: steps of each row, where ``lengths`` does not say.
        M: steps of the input in all. Where they stand: step t of row b is t·B + b, with ``batch_first`` b·T + t.
        batch_first: see M.
        lengths: (B,) int64 on the CPU, as all that follows: what is beyond does not exist, neither steps nor resets.
        first: (B,) where each row begins, if not at step b or b·T.
        mask: (B, T) bool: steps where it is False are left out.
        reset: (B, T) bool: a segment begins there, beside those that begin at each row's first step.
        to_zero: whether the segments that begin at a reset start from zeros, not from the state given for their row.
        D: directions. Where there is no reset, both are alike.
    """
    if reset is None:
        D = 1
    if _by_library():
        given = (B, T, M, batch_first, lengths, first, mask, reset, to_zero, D)
        steps, places, batch_sizes, begin, end, idle = torch.ops.torchrnn.plan.default(*given)
        fresh = to_zero and reset is not None
        return Plan(steps, places, batch_sizes, begin.unbind(0), end.unbind(0), begin.size(1), fresh, idle)
    if reset is not None:
        return _of_resets(reset, to_zero, D, batch_first, lengths, mask)
    if mask is not None:
        return _of_mask(mask, batch_first)
    if lengths is None:
        lengths = torch.full((B,), T)
    if first is None:
        first = torch.arange(B) * (T if batch_first else 1)
    return _of_rows(lengths, M, _pack(lengths, first, 1 if batch_first else B))


def ends(of: Plan, row: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """For each of B rows the segment of its last valid step, and that of its first; S: it has none.

    ``row`` (N,) says of which row each packed step is. The final segment of a row may lack steps, so this is not `end`.
    """
    sizes, none = of.batch_sizes, of.steps.new_full((B,), of.S)
    if not len(sizes):
        return none, none
    before = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    segment = (torch.arange(len(before)) - before).to(row.device)
    M = of.places.numel()
    last = of.steps.new_full((B,), -1).scatter_reduce(0, row, of.steps, "amax")
    first = of.steps.new_full((B,), M).scatter_reduce(0, row, of.steps, "amin")
    there = last >= 0
    found = (segment[of.places[m.clamp(0, M - 1)].clamp(max=len(segment) - 1)] for m in (last, first))
    forward, backward = (torch.where(there, s, none) for s in found)
    return forward, backward


def _by_library() -> bool:
    """Whether our library makes the plan: what looks into each operation shall find torch's."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or transform() is not None:
        return False
    return _extension.missing() is None


def _of_mask(mask: Tensor, batch_first: bool) -> Plan:
    lengths = mask.sum(1)
    packed = _pack(lengths, lengths.cumsum(0) - lengths, 1)
    steps = _valid(mask, batch_first).index_select(0, packed.steps)
    return _of_rows(lengths, mask.numel(), packed._replace(steps=steps))


def _of_rows(lengths: Tensor, M: int, packed: _Packed) -> Plan:
    order, end, S, batch_sizes, steps = packed
    B = lengths.numel()
    if S < B:
        end = torch.where(lengths > 0, end, torch.arange(S, S + B))
    return Plan(steps, _places(steps, M), batch_sizes, (order[:S],), (end,), S, False, S < B)


def _of_resets(
    reset: Tensor, to_zero: bool, D: int, batch_first: bool, lengths: Tensor | None, mask: Tensor | None
) -> Plan:
    B, T = reset.shape
    if lengths is not None:
        reset = reset & (torch.arange(T) < lengths.unsqueeze(1))
    starts = reset.clone(memory_format=torch.contiguous_format)
    starts.select(1, 0).fill_(True)
    begin = starts.view(-1).nonzero().view(-1)  # (all segments,) b·T + t
    row = begin.div(T, rounding_mode="floor")
    stop = torch.cat((begin[1:], begin.new_full((1,), B * T)))
    if mask is not None:
        before = torch.cat((begin.new_zeros(1), mask.flatten().cumsum(0)))  # valid steps before each step
        begin, stop = before[begin], before[stop]
        order, rank, S, batch_sizes, steps = _pack(stop - begin, begin, 1)
        steps = _valid(mask, batch_first).index_select(0, steps)
    else:
        if lengths is not None:
            stop = torch.minimum(stop, row * T + lengths[row])
        at = begin if batch_first else torch.add(begin * B, row, alpha=1 - B * T)  # b·T + t -> t·B + b
        order, rank, S, batch_sizes, steps = _pack(stop - begin, at, 1 if batch_first else B)
    last = starts.sum(1).cumsum(0) - 1  # (B,) the last segment of each row
    begins, ends, idle = [], [], False
    for given, end in _sources(reset, to_zero, row, last)[:D]:
        to = rank.index_select(0, end)
        if S < row.numel():
            empty = to >= S
            to = torch.where(empty, S + given[end], to)
            idle = idle or bool(empty.any())
        begins.append(given.index_select(0, order[:S]))
        ends.append(to)
    return Plan(steps, _places(steps, B * T), batch_sizes, tuple(begins), tuple(ends), S, to_zero, idle)


def _sources(reset: Tensor, to_zero: bool, row: Tensor, last: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each direction: the row whose given state each segment starts from (B: none), and each row's final segment.

    The given state enters a row at its first segment going forward, unless that is reset, and at its last one going
    backward.
    """
    first = torch.cat((last.new_zeros(1), last[:-1] + 1))
    if not to_zero:
        return [(row, last), (row, first)]
    B = first.numel()
    rows = torch.arange(B)
    forward = row.new_full((row.numel(),), B)
    backward = forward.clone()
    forward[first] = torch.where(reset.select(1, 0), B, rows)
    backward[last] = rows
    return [(forward, last), (backward, first)]


class _Packed(NamedTuple):
    """Segments, packed."""

    order: Tensor  # (all segments,) longest first
    rank: Tensor  # the inverse
    S: int  # how many have steps
    batch_sizes: Tensor
    steps: Tensor  # (N,)


def _pack(lengths: Tensor, first: Tensor, stride: int) -> _Packed:
    """Pack segments of ``lengths`` steps, from step ``first`` of the input on every ``stride``-th."""
    ordered, order = lengths.sort(descending=True, stable=True)
    numbers = torch.arange(max(int(lengths.sum()), lengths.numel()))
    rank = torch.empty_like(order).scatter_(0, order, numbers[: order.numel()])
    S = int(lengths.count_nonzero())
    longest = int(ordered[0]) if S else 0
    # a step is run by the segments that are longer than it
    batch_sizes = S - torch.searchsorted(ordered[:S].flip(0), numbers[:longest], right=True)
    step = torch.repeat_interleave(batch_sizes)  # (N,) how far into its segment each packed step is
    segment = numbers[: step.numel()] - (batch_sizes.cumsum(0) - batch_sizes).index_select(0, step)
    steps = first.index_select(0, order).index_select(0, segment)
    return _Packed(order, rank, S, batch_sizes, torch.add(steps, step, alpha=stride))


def _valid(mask: Tensor, batch_first: bool) -> Tensor:
    """The steps of the input where ``mask`` (B, T) is True, row by row."""
    if batch_first:
        return mask.flatten().nonzero().squeeze(1)
    row, time = mask.nonzero(as_tuple=True)
    return time * mask.size(0) + row


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
