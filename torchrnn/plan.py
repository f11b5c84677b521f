"""A plan of sequences: which steps of an input make up which independent sequence, and where all of them stand packed.

Lengths, masks, resets, lists and nested tensors say the same thing in different words: the valid steps of an input fall
into segments, each a sequence of its own. A plan packs them, longest first: our kernels read and write the steps where
they stand, other backends have them moved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrnn import _extension
from torchrnn.call import transform

_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


class Plan(NamedTuple):
    """Where the steps and states of a packed batch come from and go to.

    M steps of the input, N of them valid; B rows of the user's batch; S segments with at least one step.
    """

    steps: Tensor  # (N,) which step of the input each packed step is
    batch_sizes: Tensor  # (longest segment,) segments still running at each step
    begin: tuple[Tensor, ...]  # by direction (one: both alike), (S,): the row whose given state it starts from; B: none
    end: tuple[Tensor, ...]  # likewise (B,): the segment whose end is a row's final state; S + b: the state given for
    # b; S + B: none
    S: int
    idle: bool  # whether some row's final state is no segment's


class Steps:
    """Which steps of a batch count and where sequences begin, checked: what lengths, masks and the like come to.

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
    """

    def __init__(
        self,
        B: int,
        T: int,
        M: int,
        batch_first: bool,
        lengths: Tensor | None = None,
        first: Tensor | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        to_zero: bool = True,
    ) -> None:
        self.B, self.T, self.M, self.batch_first = B, T, M, batch_first
        self.lengths, self.first, self.mask, self.reset = (constant(t) for t in (lengths, first, mask, reset))
        self.to_zero = to_zero
        self._numbers: dict[int, Tensor] = {}  # by D: each call of a layer by itself asks for the same

    def numbers(self, D: int) -> Tensor:
        """The plan for D directions as our kernels take it: one int64 tensor of what csrc/steps.h says."""
        if D not in self._numbers:
            numbers = torch.ops.torchrnn.plan.default(
                self.B,
                self.T,
                self.M,
                self.batch_first,
                self.lengths,
                self.first,
                self.mask,
                self.reset,
                self.to_zero,
                D,
            )
            self._numbers[D] = constant(numbers)
        return self._numbers[D]

    @staticmethod
    def interleaved(numbers: Tensor, B: int, M: int, D: int, V: int) -> Tensor:
        """Such a tensor for V copies of the batch side by side: row b of copy v is b·V + v, its steps likewise."""
        head, steps, running, begin, end = numbers.split((4, M, M, D * M, D * B))
        copies, S = torch.arange(V), head[1]
        steps = steps.unsqueeze(1) * V + copies
        begin = (begin.view(D, M, 1) * V + copies).clamp(max=B * V)  # B was none of them
        end = torch.minimum(end.view(D, B, 1) * V + copies, (S + B) * V)  # and so was S + B
        parts = (head[:2] * V, head[2:], steps, running * V, running.new_zeros(M * (V - 1)), begin, end)
        return torch.cat([part.flatten() for part in parts])

    def plan(self, D: int) -> Plan:
        """The same for backends that know packed sequences only."""
        if self.reset is None:
            D = 1
        if _by_library():
            return self._unpacked(self.numbers(D), D)
        if self.reset is not None:
            return _of_resets(self.reset, self.to_zero, D, self.batch_first, self.lengths, self.mask)
        if self.mask is not None:
            return _of_mask(self.mask, self.batch_first)
        lengths = torch.full((self.B,), self.T) if self.lengths is None else self.lengths
        return _of_rows(lengths, _pack(lengths, self._begins(), self._stride()))

    @property
    def fresh(self) -> bool:
        """Whether some segment may start from zeros."""
        return self.to_zero and self.reset is not None

    def ends(self) -> tuple[Tensor, Tensor]:
        """Where each row's last and first step that counts stand in the input, (B,); M if none does."""
        if self.mask is None:
            lengths = torch.full((self.B,), self.T) if self.lengths is None else self.lengths
            first, last = torch.zeros_like(lengths), lengths - 1
        else:
            time = torch.arange(self.T)
            first = torch.where(self.mask, time, self.T).amin(1)
            last = torch.where(self.mask, time, -1).amax(1)
        begins, stride, none = self._begins(), self._stride(), last < 0
        return tuple(torch.where(none, self.M, begins + at * stride) for at in (last, first))  # pyright: ignore[reportReturnType]

    def _begins(self) -> Tensor:
        return torch.arange(self.B) * (self.T if self.batch_first else 1) if self.first is None else self.first

    def _stride(self) -> int:
        return 1 if self.batch_first else self.B

    def _unpacked(self, numbers: Tensor, D: int) -> Plan:
        B, M = self.B, self.M
        N, S, longest, idle = numbers[:4].tolist()
        _, steps, running, begin, end = numbers.split((4, M, M, D * M, D * B))
        begins, ends = begin.view(D, M)[:, :S], end.view(D, B)
        return Plan(steps[:N], running[:longest], begins.unbind(0), ends.unbind(0), S, bool(idle))


def constant(t: Any) -> Any:
    """A tensor without gradient, out of the levels of torch.func's grad: they may end before it is needed again."""
    if not torch.compiler.is_compiling():
        while t is not None and _functorch.is_gradtrackingtensor(t):
            t = _functorch.get_unwrapped(t)
    return t


def mapped(t: Any) -> bool:
    """Whether some `torch.vmap` maps over the tensor."""
    while t is not None and _functorch.is_functorch_wrapped_tensor(t):
        if _functorch.is_batchedtensor(t):
            return True
        t = _functorch.get_unwrapped(t)
    return False


def _by_library() -> bool:
    """Whether our library makes the plan: what looks into each operation shall find torch's."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or transform() is not None:
        return False
    return _extension.missing() is None


def _of_mask(mask: Tensor, batch_first: bool) -> Plan:
    lengths = mask.sum(1)
    packed = _pack(lengths, lengths.cumsum(0) - lengths, 1)
    steps = _valid(mask, batch_first).index_select(0, packed.steps)
    return _of_rows(lengths, packed._replace(steps=steps))


def _of_rows(lengths: Tensor, packed: _Packed) -> Plan:
    order, end, S, batch_sizes, steps = packed
    B = lengths.numel()
    if S < B:
        end = torch.where(lengths > 0, end, torch.arange(S, S + B))
    return Plan(steps, batch_sizes, (order[:S],), (end,), S, S < B)


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
    return Plan(steps, batch_sizes, tuple(begins), tuple(ends), S, idle)


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
