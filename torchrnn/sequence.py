"""The forms in which users give a sequence, brought to those that backends take, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check, check_steps
from torchrnn.plan import Steps, constant, mapped

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
        # torch.compile gives an empty tuple for _replace (torch 2.13)
        return PackedSequence._make((output, *self.sequence[1:])), _rows(states, self.sequence.unsorted_indices)

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


class Counted(NamedTuple):
    """(T, B, I), (B, T, I), or rows one after another, of which only the steps that count are computed."""

    steps: Steps
    restore: Callable[[Tensor], Any] | None = None  # a result for each step in the user's form

    def batch(self, x: Tensor) -> tuple[int, ...]:
        return (self.steps.B,)

    def rows(self, x: Tensor) -> int:
        return self.steps.B

    def enter_states(self, states: States) -> States:
        return states

    def leave(self, output: Tensor, states: States) -> tuple[Any, States]:
        return (output if self.restore is None else self.restore(output)), states

    def ends(self, output: Tensor) -> tuple[Tensor, Tensor]:
        rows = output.flatten(0, -2)
        rows = torch.cat((rows, rows.new_zeros(1, rows.size(1))))  # row M, the place of what has none
        last, first = self.steps.ends()
        return rows.index_select(0, last.to(rows.device)), rows.index_select(0, first.to(rows.device))


_DENSE, _BATCH_FIRST = Dense(), BatchFirst()


class Said(NamedTuple):
    """What a user says about the steps of a batch beside giving it: the keywords of a layer's forward."""

    lengths: Tensor | Sequence[int] | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None
    reset_to: str = "zero"


Entered = tuple[Tensor, Tensor | None, "Steps | None", Form]


def plain(x: Tensor, batch_first: bool) -> Entered:
    """A checked batch of three dimensions -> (T, B, I) and its form."""
    return (x.transpose(0, 1), None, None, _BATCH_FIRST) if batch_first else (x, None, None, _DENSE)


def enter(layer: Recurrent, input: Any, weight: Tensor, said: Said) -> Entered:
    """A user's sequence, checked -> its steps, the batch sizes of packed ones, which of them count, and its form."""
    check_steps.together(layer, input, *said)
    if isinstance(input, PackedSequence):
        check.layer_input(layer, input, weight)
        return input.data, constant(input.batch_sizes), None, Packed(input)
    if isinstance(input, list):
        return _listed(check_steps.sequences(layer, input, weight))
    if isinstance(input, Tensor) and input.is_nested:
        check_steps.nested(layer, input, weight)
        return _jagged(input)
    check.layer_input(layer, input, weight)
    batch_first = layer.batch_first and input.dim() > 2
    at = 0 if batch_first else 1
    dims, T = tuple(input.shape[at : input.dim() - 2 + at]), input.size(-2 if batch_first else 0)
    steps = _steps(said, T, dims, batch_first)
    x = input if len(dims) == 1 else _join(input, at, len(dims))
    x, batch_sizes, _, form = plain(x, batch_first) if steps is None else (x, None, None, Counted(steps))
    return x, batch_sizes, steps, form if len(dims) == 1 else Reshaped(form, dims, at)


def steps_of_batch(layer: Recurrent, x: Tensor, said: Said, T: int, B: int) -> Steps | None:
    """Which steps of an ordinary batch count, as in `enter`; what was said is checked, ``x`` is not."""
    check_steps.together(layer, x, *said)
    return _steps(said, T, (B,), layer.batch_first)


def _steps(said: Said, T: int, dims: tuple[int, ...], batch_first: bool) -> Steps | None:
    """What was said about the steps of a batch, or None where all of them count in one piece."""
    lengths = mask = reset = None
    B = prod(dims)
    if not torch.compiler.is_compiling():
        _same_for_all(said)
    if said.lengths is not None:
        lengths = check_steps.lengths(said.lengths, T, dims)
    if said.mask is not None:
        mask = check_steps.flags("mask", said.mask, T, dims, batch_first)
    if said.reset is not None:
        reset = check_steps.flags("reset", said.reset, T, dims, batch_first)
    if not torch.compiler.is_compiling():  # a graph knows no numbers
        if T == 0 or B == 0:
            return None
        if mask is not None and bool(mask.all()):
            mask = None
        if reset is not None and not bool(reset.any()):
            reset = None
        if lengths is not None and int(lengths.min()) == T:
            lengths = None
    if lengths is None and mask is None and reset is None:
        return None
    return Steps(B, T, B * T, batch_first, lengths, None, mask, reset, said.reset_to == "zero")


def _same_for_all(said: Said) -> None:
    """Raise where torch.vmap maps what was said."""
    for name, given in zip(("lengths", "mask", "reset"), said, strict=False):
        if isinstance(given, Tensor) and mapped(given):
            raise check.ArgumentError(
                f"{name} must be the same for all that torch.vmap maps, got one of each: put all into the batch of one "
                "call, or loop over them"
            )


def _listed(sequences: list[Tensor]) -> Entered:
    """Sequences (T_i, I), at least one."""
    sizes = [len(s) for s in sequences]
    lengths, x = torch.tensor(sizes), torch.cat(sequences)
    steps = Steps(len(sizes), 0, len(x), True, lengths, lengths.cumsum(0) - lengths)
    return x, None, steps, Counted(steps, lambda y: list(y.split(sizes)))


def _jagged(input: Any) -> Entered:
    """A nested tensor (B, j, I) of the jagged layout: its rows stand one after another, perhaps with gaps."""
    x, offsets, given = input.values(), input.offsets(), input.lengths()
    begins = offsets.to("cpu", torch.int64)
    lengths = begins.diff() if given is None else given.to("cpu", torch.int64)

    # without its longest row torch would pad the result to the length of all rows together
    extent: Any = {"min_seqlen": int(lengths.min()), "max_seqlen": int(lengths.max())} if len(lengths) else {}

    def restore(y: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(y, offsets, given, **extent)

    steps = Steps(len(lengths), 0, len(x), True, lengths, begins[:-1])
    return x, None, steps, Counted(steps, restore)


def _join(x: Tensor, at: int, number: int) -> Tensor:
    """Several dimensions from ``at`` on made one, or none made one."""
    return x.flatten(at, at + number - 1) if number else x.unsqueeze(at)


def _part(x: Tensor, at: int, dims: tuple[int, ...]) -> Tensor:
    """The way back of `_join`."""
    return x.unflatten(at, dims) if dims else x.squeeze(at)


def _rows(states: States, order: Tensor | None) -> States:
    return states if order is None else tuple(s.index_select(1, order) for s in states)
