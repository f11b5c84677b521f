"""Errors about what counts of a sequence: lengths, masks, resets, lists of sequences, nested tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check
from torchrnn.check import ArgumentError

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent


def together(layer: Recurrent, input: Any, lengths: Any, mask: Any, reset: Any, reset_to: Any) -> None:
    """Raise where two things are said that do not go together."""
    if lengths is None and mask is None and reset is None and reset_to == "zero":
        return
    if reset_to not in ("zero", "initial"):
        raise ValueError(f"reset_to must be 'zero' or 'initial', got {reset_to!r}")
    if lengths is not None and mask is not None:
        raise ArgumentError(
            "lengths and mask do not go together: give one of them; a row of length n is a mask that is True in its "
            "first n steps and False beyond"
        )
    if reset_to != "zero" and reset is None:
        raise ValueError(
            f"reset_to={reset_to!r} says what a reset sets the state to, but there is no reset=: give it, or leave "
            "reset_to out; without resets a sequence begins with hx anyway"
        )
    said = [name for name, given in (("lengths", lengths), ("mask", mask), ("reset", reset)) if given is not None]
    came = ""
    if isinstance(input, PackedSequence):
        came = "a PackedSequence, which carries its own lengths: pad it first with pad_packed_sequence"
    elif isinstance(input, list):
        came = "a list of sequences, each of its own length: pad them first with pad_sequence"
    elif isinstance(input, Tensor) and input.is_nested:
        came = "a nested tensor, which carries its own lengths: use input.to_padded_tensor(0.0) first"
    elif isinstance(input, Tensor) and input.dim() == 2 and lengths is not None:
        said, came = ["lengths"], "one unbatched sequence: cut it instead"
    if came:
        letters = "(B, T, I)" if layer.batch_first else "(T, B, I)"
        raise ArgumentError(f"{said[0]} goes with a padded batch {letters}; input is {came}")


def lengths(lengths: Any, T: int, batch: tuple[int, ...]) -> Tensor:
    """Check the lengths of a batch; give them as one dimension of int64 on the CPU."""
    try:
        given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
        if given.dim() == 0:
            raise TypeError("a single number")
    except (TypeError, ValueError, RuntimeError) as error:
        expected = f"{_letters(batch)} = {batch}"
        raise TypeError(f"lengths must be {expected} integers, a Tensor or a list, got {lengths!r}") from error
    if not isinstance(lengths, Tensor):
        _numbers(lengths)
    if not given.numel():  # an empty list has neither a dtype nor all dimensions
        given = torch.zeros(batch if given.shape == batch[: given.dim()] else given.shape, dtype=torch.int64)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        repair = "lengths.long()" if isinstance(lengths, Tensor) else "torch.as_tensor(lengths).long()"
        flags = ": they count steps; flags are for mask=" if given.dtype == torch.bool else f": use {repair}"
        raise TypeError(f"lengths must be integers, got {given.dtype}{flags}")
    if given.shape != batch:
        raise ArgumentError(
            f"lengths must be {_letters(batch)} = {batch}, got {tuple(given.shape)}: one length for each row of the "
            "batch"
        )
    check.readable("lengths", given)
    given = given.detach().to("cpu", torch.int64)
    if torch.compiler.is_compiling():  # a graph knows no numbers: the kernels check them
        return given.flatten()
    if given.numel() and (int(given.min()) < 0 or int(given.max()) > T):
        at = ((given < 0) | (given > T)).nonzero()[0].tolist()
        raise ArgumentError(
            f"lengths must be between 0 and T = {T}, got lengths{at} = {int(given[tuple(at)])}: "
            "lengths count steps of the padded input, not bytes or tokens before truncation"
        )
    return given.flatten()


def _numbers(lengths: Any) -> None:
    """Raise where a list has a truth value among its numbers, which torch takes for 0 or 1."""
    for at, one in enumerate(lengths):
        if isinstance(one, bool):
            raise TypeError(
                f"lengths must be integers, got lengths[{at}] = {one}: they count steps; flags are for mask="
            )
        if isinstance(one, (list, tuple)):
            _numbers(one)


def flags(name: str, given: Any, T: int, batch: tuple[int, ...], batch_first: bool) -> Tensor:
    """Check a mask or resets, (T, B) or with batch_first (B, T); give them as (B, T) on the CPU, in any strides."""
    shape = (*batch, T) if batch_first else (T, *batch)
    if not isinstance(given, Tensor) or given.dtype != torch.bool or given.shape != shape:
        _wrong_flags(name, given, shape, batch_first)
    check.readable(name, given)
    if given.device.type != "cpu":
        given = given.to("cpu")
    if len(batch) != 1:
        given = given.reshape(prod(batch), T) if batch_first else given.reshape(T, prod(batch))
    return given if batch_first else given.t()


def _wrong_flags(name: str, given: Any, shape: tuple[int, ...], batch_first: bool) -> None:
    dims = ["B"] if len(shape) == 2 else [f"B{k}" for k in range(1, len(shape))]
    letters = _tuple([*dims, "T"] if batch_first else ["T", *dims])
    if not isinstance(given, Tensor):
        came = f"{type(given).__name__}: use torch.as_tensor({name}, dtype=torch.bool)"
        raise TypeError(f"{name} must be a bool Tensor {letters} = {shape}, got {came}")
    if given.dtype != torch.bool:
        raise TypeError(
            f"{name} must be a bool Tensor {letters} = {shape}, got {given.dtype}: if its numbers are 0 and 1, "
            f"use {name}.bool()"
        )
    hint = _flags_hint(name, given, shape, batch_first)
    raise ArgumentError(f"{name} must be {letters} = {shape}, got {tuple(given.shape)}{hint}")


def _flags_hint(name: str, given: Tensor, shape: tuple[int, ...], batch_first: bool) -> str:
    if given.dim() == len(shape) + 1 and given.shape[:-1] == shape and given.size(-1) == 1:
        return f": one flag for each step, not for each feature; use {name}.squeeze(-1)"
    if given.dim() == len(shape) + 1 and given.shape[:-1] == shape:
        return f": one flag for each step, not for each feature; use {name}[..., 0] if they are all alike"
    if given.dim() == len(shape) == 2 and given.shape == shape[::-1]:
        why = "the layer is batch_first, so the batch comes first here too" if batch_first else "the time comes first"
        return f": {why}; use {name}.t()"
    return ": one flag for each step of each row"


def sequences(layer: Recurrent, input: Any, weight: Tensor) -> list[Tensor]:
    """Check a list of sequences (T_i, I); give it as a list."""
    if not len(input):
        raise ArgumentError(
            f"input must be a list of sequences (T_i, I), at least one, got an empty list: "
            f"an empty batch is torch.zeros({'0, T' if layer.batch_first else 'T, 0'}, {layer.input_size})"
        )
    for k, x in enumerate(input):
        name = f"input[{k}]"
        if not isinstance(x, Tensor):
            arrays = type(x).__module__ == "numpy" and getattr(x, "ndim", 0)
            repair = "[torch.from_numpy(x) for x in input]" if arrays else "torch.tensor(input)"
            raise TypeError(
                f"input must be a Tensor or a list of Tensors (T_i, I), got a list with {type(x).__name__} at {k}: "
                f"use {repair}"
            )
        if x.dim() != 2 or x.is_nested:
            raise ArgumentError(
                f"{name} must be one sequence (T_{k}, I), got {tuple(x.shape)}: a list holds sequences without a batch "
                "dimension; join batches with torch.cat"
            )
        check.sequence(name, x, layer.input_size, weight, f"(T_{k}, I)")
    return input


def nested(layer: Recurrent, input: Tensor, weight: Tensor) -> None:
    """Check a nested tensor."""
    if input.layout != torch.jagged:
        raise TypeError(
            "input must be a Tensor or a nested tensor of the jagged layout, got one of the strided layout: "
            "use torch.nested.nested_tensor(list, layout=torch.jagged), or input.to_padded_tensor(0.0) with lengths="
        )
    if input.dim() != 3 or input._ragged_idx != 1:  # pyright: ignore[reportAttributeAccessIssue]
        raise ArgumentError(
            f"a nested input must be (B, j, I), got {input.dim()} dimensions with the ragged one at "
            f"{input._ragged_idx}: {type(layer).__name__} takes sequences of feature vectors"  # pyright: ignore[reportAttributeAccessIssue]
        )
    check.sequence("input", input.values(), layer.input_size, weight, "(B, j, I)")


def _letters(batch: Sequence[int]) -> str:
    """The batch dimensions in letters: (B,), (B1, B2)."""
    return _tuple(["B"] if len(batch) == 1 else [f"B{k}" for k in range(1, len(batch) + 1)])


def _tuple(letters: list[str]) -> str:
    return f"({letters[0]},)" if len(letters) == 1 else f"({', '.join(letters)})"
