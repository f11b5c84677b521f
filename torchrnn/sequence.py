"""The forms in which users give a sequence, brought to the one form that backends take, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check, check_steps, plan
from torchrnn.plan import Plan

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent

States = tuple[Tensor, ...]


class Form(Protocol):
    """How a sequence came, and so how states enter and results leave."""

    def batch(self, x: Tensor) -> tuple[int, ...]:
        """The batch dimensions of the user's states: (B,), unbatched ()."""
        ...

    def rows(self, x: Tensor) -> int:
        """The batch size of the backend's states."""
        ...

    def enter_states(self, states: States) -> States:
        """The user's states -> each (L·D, rows, H), as the backend has them. Not called where they are zeros."""
        ...

    def leave(self, output: Tensor, states: States) -> tuple[Any, States]:
        """The backend's output and final states -> the user's form."""
        ...

    def ends(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Of the backend's output each row's last and first step, (B, F), rows as the user has them; zero if none."""
        ...


class Dense:
    """(T, B, I): nothing to do."""

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (x.size(1),)

    def rows(self, x: Tensor) -> int:
        return x.size(1)

    def enter_states(self, states: States) -> States:
        return states

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        return output, states

    def ends(self, output: Tensor) -> tuple[Tensor, Tensor]:
        if not output.size(0):
            none = output.sum(0)  # zeros, yet differentiable
            return none, none
        return output[-1], output[0]


class BatchFirst(Dense):
    """(B, T, I): batch_first moves the batch of input and output, not that of the states."""

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        return output.transpose(0, 1), states


class Packed(NamedTuple):
    """A PackedSequence: its rows are sorted by length, the user's states are not."""

    sequence: PackedSequence

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (self.rows(x),)

    def rows(self, x: Tensor) -> int:
        return int(self.sequence.batch_sizes[0])

    def enter_states(self, states: States) -> States:
        return _rows(states, self.sequence.sorted_indices)

    def leave(self, output: Tensor, states: States) -> tuple[PackedSequence, States]:
        return self.sequence._replace(data=output), _rows(states, self.sequence.unsorted_indices)

    def ends(self, output: Tensor) -> tuple[Tensor, Tensor]:
        sizes = self.sequence.batch_sizes
        B = int(sizes[0])
        lengths = (sizes > torch.arange(B).unsqueeze(1)).sum(1)  # (B,)
        begins = sizes.cumsum(0) - sizes
        last = (begins[lengths - 1] + torch.arange(B)).to(output.device)
        order = self.sequence.unsorted_indices
        ends = output.index_select(0, last), output[:B]
        return ends if order is None else (ends[0].index_select(0, order), ends[1].index_select(0, order))


class Reshaped(NamedTuple):
    """Any number of batch dimensions but one: none, or several, which were joined into one."""

    form: Form  # of the batch with one dimension
    dims: tuple[int, ...]
    at: int  # where they stand in the output

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return self.dims

    def rows(self, x: Tensor) -> int:
        return self.form.rows(x)

    def enter_states(self, states: States) -> States:
        return self.form.enter_states(tuple(_join(s, 1, len(self.dims)) for s in states))

    def leave(self, output: Tensor, states: States) -> tuple[Tensor, States]:
        output, states = self.form.leave(output, states)
        return _part(output, self.at, self.dims), tuple(_part(s, 1, self.dims) for s in states)

    def ends(self, output: Tensor) -> tuple[Tensor, Tensor]:
        last, first = self.form.ends(output)
        return _part(last, 0, self.dims), _part(first, 0, self.dims)


class Planned:
    """Segments of a batch: steps that do not count are not computed; rows without any keep their initial state."""

    def __init__(
        self,
        of: Plan,
        B: int,
        device: torch.device,
        row: Callable[[Tensor], Tensor],
        restore: Callable[[Tensor], Any],
    ) -> None:
        self.plan, self.B = of.to(device), B
        self.row, self.restore = row, restore  # the rows of steps of the input; a result for each step in its form
        self.initial: list[Tensor] = []  # the user's states where they were given

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (self.B,)

    def rows(self, x: Tensor) -> int:
        return self.plan.S

    def enter_states(self, states: States) -> States:
        self.initial = list(states)
        if self.plan.fresh:  # row B is none of theirs
            states = tuple(torch.cat((s, s.new_zeros(s.size(0), 1, s.size(2))), 1) for s in states)
        return _rows_by_direction(states, self.plan.begin)

    def leave(self, output: Tensor, states: States) -> tuple[Any, States]:
        restored = self.restore(plan.move(output, self.plan.places, self.plan.steps))
        if self.plan.idle:
            given = self.initial or [s.new_zeros(s.size(0), self.B, s.size(2)) for s in states]
            none = [s.new_zeros(s.size(0), 1, s.size(2)) for s in states]
            states = tuple(torch.cat(parts, 1) for parts in zip(states, given, none, strict=True))
        return restored, _rows_by_direction(states, self.plan.end)

    def ends(self, output: Tensor) -> tuple[Tensor, Tensor]:
        steps, places = self.plan.steps, self.plan.places
        rows, none = self.row(steps), places.numel()
        last = steps.new_full((self.B,), -1).scatter_reduce(0, rows, steps, "amax")
        first = steps.new_full((self.B,), none).scatter_reduce(0, rows, steps, "amin")
        padded = torch.cat((output, output.new_zeros(1, output.size(1))))  # row N, the place of what has none
        places = torch.cat((places, places.new_full((1,), len(output))))
        last = torch.where(last < 0, none, last)
        return padded.index_select(0, places[last]), padded.index_select(0, places[first])


_DENSE, _BATCH_FIRST = Dense(), BatchFirst()


class Steps(NamedTuple):
    """What a user says about the steps of a batch beside giving it: the keywords of a layer's forward."""

    lengths: Tensor | Sequence[int] | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None
    reset_to: str = "zero"


def plain(x: Tensor, batch_first: bool) -> tuple[Tensor, None, Form]:
    """A checked batch of three dimensions -> (T, B, I) and its form."""
    return (x.transpose(0, 1), None, _BATCH_FIRST) if batch_first else (x, None, _DENSE)


def enter(layer: Recurrent, input: Any, weight: Tensor, said: Steps) -> tuple[Tensor, Tensor | None, Form]:
    """A user's sequence, checked -> (T, B, I) or packed (N, I), the packed batch sizes or None, and its form."""
    check_steps.together(layer, input, *said)
    if isinstance(input, PackedSequence):
        check.layer_input(layer, input, weight)
        return input.data, input.batch_sizes, Packed(input)
    if isinstance(input, list):
        return _listed(check_steps.sequences(layer, input, weight))
    if isinstance(input, Tensor) and input.is_nested:
        check_steps.nested(layer, input, weight)
        return _jagged(input)
    check.layer_input(layer, input, weight)
    batch_first = layer.batch_first and input.dim() > 2
    at = 0 if batch_first else 1
    dims, T = tuple(input.shape[at : input.dim() - 2 + at]), input.size(-2 if batch_first else 0)
    of = _plan(said, T, dims, batch_first, 2 if layer.bidirectional else 1)
    x = input if len(dims) == 1 else _join(input, at, len(dims))
    x, batch_sizes, form = plain(x, batch_first) if of is None else _planned(x, of, batch_first)
    return x, batch_sizes, form if len(dims) == 1 else Reshaped(form, dims, at)


def _plan(said: Steps, T: int, dims: tuple[int, ...], batch_first: bool, D: int) -> Plan | None:
    """The plan of what was said about the steps of a batch, or None where all of them count in one piece."""
    lengths = mask = reset = None
    B = prod(dims)
    if said.lengths is not None:
        lengths = check_steps.lengths(said.lengths, T, dims)
    if said.mask is not None:
        mask = check_steps.flags("mask", said.mask, T, dims, batch_first)
        mask = None if bool(said.mask.all()) else mask
    if said.reset is not None:
        reset = check_steps.flags("reset", said.reset, T, dims, batch_first)
        reset = reset if bool(said.reset.any()) else None
    if T == 0 or B == 0:
        return None
    if lengths is not None and int(lengths.min()) == T:
        lengths = None
    if lengths is None and mask is None and reset is None:
        return None
    return plan.make(B, T, B * T, batch_first, lengths, None, mask, reset, said.reset_to == "zero", D)


def _planned(x: Tensor, of: Plan, batch_first: bool) -> tuple[Tensor, Tensor, Form]:
    """A batch (T, B, I), with batch_first (B, T, I) -> its packed steps (N, I), batch sizes and form."""
    shape, B = x.shape[:2], x.size(0 if batch_first else 1)

    def row(steps: Tensor) -> Tensor:
        return steps.div(shape[1], rounding_mode="floor") if batch_first else steps % B

    return _gather(x.flatten(0, 1), Planned(of, B, x.device, row, lambda y: y.view(*shape, y.size(1))))


def _listed(sequences: list[Tensor]) -> tuple[Tensor, Tensor, Form]:
    """Sequences (T_i, I), at least one."""
    sizes = [len(s) for s in sequences]
    lengths, x = torch.tensor(sizes), torch.cat(sequences)
    ends = lengths.cumsum(0)
    of = plan.make(len(sizes), 0, len(x), True, lengths, ends - lengths)
    return _gather(x, Planned(of, len(sizes), x.device, _row_of(ends, x.device), lambda y: list(y.split(sizes))))


def _jagged(input: Any) -> tuple[Tensor, Tensor, Form]:
    """A nested tensor (B, j, I) of the jagged layout: its rows stand one after another, perhaps with gaps."""
    x, offsets, given = input.values(), input.offsets(), input.lengths()
    ends = offsets.to("cpu", torch.int64)
    lengths = ends.diff() if given is None else given.to("cpu", torch.int64)

    # without its longest row torch would pad the result to the length of all rows together
    extent: Any = {"min_seqlen": int(lengths.min()), "max_seqlen": int(lengths.max())} if len(lengths) else {}

    def restore(y: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(y, offsets, given, **extent)

    of = plan.make(len(lengths), 0, len(x), True, lengths, ends[:-1])
    return _gather(x, Planned(of, len(lengths), x.device, _row_of(ends[1:], x.device), restore))


def _row_of(ends: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The row of each step, where rows stand one after another."""
    ends = ends.to(device)
    return lambda steps: torch.searchsorted(ends, steps, right=True)


def _gather(x: Tensor, form: Planned) -> tuple[Tensor, Tensor, Form]:
    """The steps of the input (M, I) -> packed (N, I), batch sizes and form."""
    return plan.move(x, form.plan.steps, form.plan.places), form.plan.batch_sizes, form


def _join(x: Tensor, at: int, number: int) -> Tensor:
    """Several dimensions from ``at`` on made one, or none made one."""
    return x.flatten(at, at + number - 1) if number else x.unsqueeze(at)


def _part(x: Tensor, at: int, dims: tuple[int, ...]) -> Tensor:
    """The way back of `_join`."""
    return x.unflatten(at, dims) if dims else x.squeeze(at)


def _rows(states: States, order: Tensor | None) -> States:
    return states if order is None else tuple(s.index_select(1, order) for s in states)


def _rows_by_direction(states: States, orders: tuple[Tensor, ...]) -> States:
    """Each state (L·D, B, H) with the rows ``orders``, of all directions or of each by itself."""
    if len(orders) == 1:
        return _rows(states, orders[0])
    each = [[s[d::2].index_select(1, order) for d, order in enumerate(orders)] for s in states]
    return tuple(torch.stack(directions, 1).flatten(0, 1) for directions in each)
