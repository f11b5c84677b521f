"""The forms in which users give a sequence, brought to the one form that backends take, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check

States = tuple[Tensor, ...]


class Form(Protocol):
    """How a sequence came, and so how states enter and results leave."""

    def batch(self, x: Tensor) -> tuple[int, ...]:
        """The batch dimensions of the user's states: (B,), unbatched ()."""
        ...

    def enter_states(self, states: States) -> States:
        """The user's states -> each (L·D, B, H), rows as the backend has them."""
        ...

    def leave(self, output: Tensor, states: States) -> tuple[Any, States]:
        """The backend's output and final states -> the user's form."""
        ...

    def rows(self, last: Tensor) -> Tensor:
        """One vector for each row (B, F), rows as the backend has them -> as the user has them; empty rows are zero."""
        ...


class Dense:
    """(T, B, I): nothing to do."""

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (x.size(1),)

    def enter_states(self, states: States) -> States:
        return states

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        return output, states

    def rows(self, last: Tensor) -> Tensor:
        return last


class BatchFirst(Dense):
    """(B, T, I): batch_first moves the batch of input and output, not that of the states."""

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        return output.transpose(0, 1), states


class Unbatched:
    """(T, I), states (L·D, H)."""

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return ()

    def enter_states(self, states: States) -> States:
        return tuple(s.unsqueeze(1) for s in states)

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        return output.squeeze(1), tuple(s.squeeze(1) for s in states)

    def rows(self, last: Tensor) -> Tensor:
        return last.squeeze(0)


class Packed(NamedTuple):
    """A PackedSequence: its rows are sorted by length, the user's states are not."""

    sequence: PackedSequence

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (int(self.sequence.batch_sizes[0]),)

    def enter_states(self, states: States) -> States:
        return _rows(states, self.sequence.sorted_indices)

    def leave(self, output: Tensor, states: States) -> tuple[PackedSequence, States]:
        return self.sequence._replace(data=output), _rows(states, self.sequence.unsorted_indices)

    def rows(self, last: Tensor) -> Tensor:
        order = self.sequence.unsorted_indices
        return last if order is None else last.index_select(0, order)


class Padded(NamedTuple):
    """A dense batch with lengths: steps beyond a row's end are not computed, empty rows keep their initial state."""

    order: Tensor  # (B',) rows of length > 0, longest first
    steps: tuple[Tensor, Tensor]  # (N,), (N,): time and row of each packed step
    shape: tuple[int, int]  # T, B
    initial: list[States]  # the user's states, kept for the empty rows
    batch_first: bool

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (self.shape[1],)

    def enter_states(self, states: States) -> States:
        self.initial.append(states)
        return _rows(states, self.order)

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        full = output.new_zeros(*self.shape, output.size(-1)).index_put(self.steps, output)
        if len(self.order) < self.shape[1]:
            states = tuple(
                old.index_copy(1, self.order, new) for old, new in zip(self.initial[-1], states, strict=True)
            )
        else:
            states = _rows(states, self.order.argsort())
        return (full.transpose(0, 1) if self.batch_first else full), states

    def rows(self, last: Tensor) -> Tensor:
        return last.new_zeros(self.shape[1], last.size(-1)).index_copy(0, self.order, last)


_DENSE, _BATCH_FIRST, _UNBATCHED = Dense(), BatchFirst(), Unbatched()


def enter(
    input: Tensor | PackedSequence, batch_first: bool, lengths: Tensor | Sequence[int] | None = None
) -> tuple[Tensor, Tensor | None, Form]:
    """A user's sequence -> (T, B, I) or packed (N, I), the packed batch sizes or None, and its form.

    Types and dimensions of ``input`` have been checked.
    """
    if isinstance(input, PackedSequence):
        return input.data, input.batch_sizes, Packed(input)
    if input.dim() == 2:
        return input.unsqueeze(1), None, _UNBATCHED
    x = input.transpose(0, 1) if batch_first else input
    if lengths is not None:
        return _pack(x, check.lengths(lengths, *x.shape[:2]), batch_first)
    return x, None, _BATCH_FIRST if batch_first else _DENSE


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor, Padded]:
    """Padded (T, B, I) and lengths (B,) on the CPU -> packed (N, I), batch sizes and the way back."""
    T, B = x.shape[:2]
    sorted_lengths, order = lengths.sort(descending=True, stable=True)
    running = torch.arange(T).unsqueeze(1) < sorted_lengths  # (T, B)
    batch_sizes = running.sum(1)
    time, row = running.nonzero(as_tuple=True)
    steps = (time.to(x.device), order[row].to(x.device))
    order = order[: int((lengths > 0).sum())].to(x.device)
    return x[steps], batch_sizes[batch_sizes > 0], Padded(order, steps, (T, B), [], batch_first)


def _rows(states: States, order: Tensor | None) -> States:
    return states if order is None else tuple(s.index_select(1, order) for s in states)
