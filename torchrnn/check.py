"""Errors that name the argument, what was expected, what came, and how to repair it."""

from __future__ import annotations

import inspect
import numbers
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent
    from torchrnn.step import RecurrentCell


class ArgumentError(ValueError, RuntimeError):
    """A tensor has the wrong shape, dtype or device.

    A ``ValueError`` by nature; also a ``RuntimeError``, which torch.nn raises for the same mistakes.
    """


def has_cell(module: Recurrent | RecurrentCell) -> None:
    """Raise for a class of one's own that lacks its cell."""
    if not hasattr(module, "cell"):
        name = type(module).__name__
        raise TypeError(f"{name} has no cell: give the class one, as in cell = my_step, which @torchrnn.cell has made")


def sizes(input_size: Any, hidden_size: Any) -> None:
    """Check what layers and cells have in common, in torch.nn's words."""
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(value, int) and not (name == "input_size" and value is None):
            hint = "; None leaves it to the first input" if name == "input_size" else ""
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}{hint}")


def layer_options(layer: Recurrent, dropout: Any) -> None:
    """Check the constructor's arguments of a layer, in torch.nn's words; warn where they have no effect."""
    for name in ("num_layers", "proj_size"):
        if not isinstance(getattr(layer, name), int):
            raise TypeError(f"{name} should be of type int, got: {type(getattr(layer, name)).__name__}")
    if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:  # type: ignore[operator]
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {dropout!r}"
        )
    if dropout and layer.num_layers == 1:  # type: ignore[truthy-bool]
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
            f"greater than 1, but got dropout={dropout} and num_layers={layer.num_layers}; output_dropout= acts on the "
            "output of the last layer",
            stacklevel=caller_of_constructor(),
        )
    smallest = min(layer.hidden_size) if isinstance(layer.hidden_size, list) else layer.hidden_size
    sizes(layer.input_size, smallest)
    bias(layer.bias)
    boolean("batch_first", layer.batch_first)
    if layer.bidirectional not in (True, False):  # torch.nn takes 0 and 1, which programs give
        boolean("bidirectional", layer.bidirectional)
    for name, value in (("input_size", layer.input_size), ("hidden_size", smallest), ("num_layers", layer.num_layers)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")
    if layer.proj_size < 0:
        raise ValueError(
            f"proj_size should be a positive integer or zero to disable projections, got {layer.proj_size}"
        )
    if layer.proj_size >= smallest:
        raise ValueError(f"proj_size has to be smaller than hidden_size, got {layer.proj_size} and {smallest}")
    if layer.proj_size and layer.cell.reads_output:
        raise ValueError(
            f"proj_size needs a cell that sees its output through weight_hh only; {layer.cell.name!r} reads it directly"
        )


def boolean(name: str, value: Any) -> None:
    """Check an argument that is True or False, in torch.nn's words."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def bias(value: Any) -> None:
    """Check the ``bias`` of a layer or cell."""
    if isinstance(value, str) and value != "single":
        raise TypeError(f"bias should be of type bool, got: str {value!r}; the only word it may be is 'single'")
    if value != "single":
        boolean("bias", value)


def caller_of_constructor() -> int:
    """The stack level of the line that constructs the layer, counted from the caller of this function."""
    import sys

    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
        level, frame = level + 1, frame.f_back
    return level


def weight(module: Recurrent | RecurrentCell, name: str) -> Tensor:
    """A weight by its name, whether a Parameter or computed."""
    try:
        return getattr(module, name)
    except AttributeError as error:
        # no AttributeError, which nn.Module would take for one of the property that asks
        raise RuntimeError(f"{type(module).__name__} lacks its weight {name}: was it deleted? ({error})") from error


def weights(module: Recurrent | RecurrentCell) -> None:
    """Raise for a weight that is not what the module's sizes say, or unlike those before it in type or device."""
    kind, first = type(module).__name__, None
    for name, shape in module._parameter_shapes().items():
        found: Any = weight(module, name)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"{kind}: {name} must be a Tensor {shape}, got {type(found).__name__}: bias=False makes a module "
                "without biases"
            )
        if first is None:
            first = found
        if found.shape != shape:
            raise ArgumentError(
                f"{kind}: {name} must be {shape}, got {shape_of(found)}: what decides the shapes is given when a "
                f"module is made, so make a new one; this one is {module}"
            )
        if found.dtype != first.dtype or found.device != first.device:
            on_meta = "meta" in (found.device.type, first.device.type)
            repair = (
                "load every weight, or use to_empty(device='cpu')" if on_meta else "to(…) moves and casts all of them"
            )
            raise ArgumentError(
                f"{kind}: {name} must be {first.dtype} on {first.device} as the weights before it, got "
                f"{found.dtype} on {found.device}: {repair}"
            )


def layer_input(layer: Recurrent, input: Any, weight: Tensor) -> None:
    """Raise for a Tensor or PackedSequence that a layer cannot take; ``weight`` is its first weight."""
    packed = isinstance(input, PackedSequence)
    x: Any = input.data if packed else input
    if not isinstance(x, Tensor):
        hint = as_tensor(x, "input")
        if isinstance(input, tuple):
            hint = ": of another layer's results take the first, output, states = layer(x); of sequences, list(input)"
        raise TypeError(
            f"input must be a Tensor {batch_letters(layer, 3)}, a list of sequences or a PackedSequence, got "
            f"{type(input).__name__}{hint}"
        )
    floating("input", x, weight, "RNN input")
    name = type(layer).__name__
    if packed and x.dim() != 2:
        raise ArgumentError(
            f"{name}: input.data of a PackedSequence must be (N, I), got {shape_of(x)}: "
            "pack a batch of sequences of feature vectors"
        )
    if packed and not torch.compiler.is_compiling() and int(input.batch_sizes.sum()) != x.size(0):
        raise ArgumentError(
            f"input.data of a PackedSequence must have as many steps as its batch_sizes add up to, N = "
            f"{int(input.batch_sizes.sum())}, got {shape_of(x)}: was a length greater than T when it was packed?"
        )
    if x.dim() < 2:
        raise ArgumentError(
            f"{name}: Expected input to be 2D or 3D, got {x.dim()}D: input must be {batch_letters(layer, 3)} or "
            f"unbatched (T, I), got {shape_of(x)}"
        )
    sequence("input", x, layer.input_size, weight, "(N, I)" if packed else batch_letters(layer, x.dim()))


def batch_letters(layer: Recurrent, dims: int) -> str:
    """What an input of so many dimensions is, in letters."""
    if dims == 2:
        return "(T, I)"
    batch = "B" if dims == 3 else ", ".join(f"B{k}" for k in range(1, dims - 1))
    return f"({batch}, T, I)" if layer.batch_first else f"(T, {batch}, I)"


def sequence(name: str, x: Tensor, I: int | None, weight: Tensor, letters: str) -> None:
    """Raise unless ``x``, whose dimensions are right, has I features and the dtype and device of the weights."""
    floating(name, x, weight, "RNN input")
    if I is not None:  # not yet known
        features(name, x, I, letters)
    matches_weight(name, x, weight, "RNN input")


def unknown(kind: type, constructor: Any, given: Iterable[str]) -> str:
    """What is wrong with keywords that a constructor does not know: named for the class that was called."""
    import difflib  # few make mistakes

    known = [*inspect.signature(kind).parameters, *inspect.signature(constructor).parameters]
    known = [name for name in known if name not in ("self", "args", "kwargs", "options", "unknown")]
    first = next(iter(given))
    near = difflib.get_close_matches(first, known, 1)
    hint = f": did you mean {near[0]!r}?" if near else f"; it takes {', '.join(dict.fromkeys(known))}"
    return f"{kind.__name__}() got an unexpected keyword argument {first!r}{hint}"


def return_all(layer: Recurrent, value: Any) -> None:
    """Raise where the trace of all steps cannot be returned."""
    boolean("return_all", value)
    if not layer.return_sequences:
        raise ValueError(
            "return_all=True and return_sequences=False do not go together: the latter gives one Tensor, for "
            "nn.Sequential; take torchrnn.last(output) of a layer that returns sequences"
        )


def features(name: str, x: Tensor, I: int, letters: str) -> None:
    """Raise unless ``x`` has I features."""
    if x.size(-1) == I:
        return
    where = [d for d in range(x.dim() - 1) if x.size(d) == I]
    hint = f"; dimension {where[-1]} has size {I}: move it last with {name}.transpose({where[-1]}, -1)" if where else ""
    raise ArgumentError(
        f"{name}.size(-1) must be equal to input_size. Expected {I}, got {x.size(-1)}: "
        f"{name} must be {letters} with I = {I}, got {shape_of(x)}{hint}"
    )


def as_tensor(given: Any, name: str) -> str:
    """The repair of an argument that is a NumPy array, or nothing."""
    return f": use torch.from_numpy({name})" if type(given).__module__ == "numpy" else ""


def floating(name: str, x: Tensor, weight: Tensor, called: str) -> None:
    """Raise for integers and booleans: they are no features."""
    if not x.is_floating_point() and not x.is_complex():
        raise ArgumentError(
            f"{called} dtype ({x.dtype}) does not match weight dtype ({weight.dtype}): numbers that stand for tokens "
            f"or classes go through nn.Embedding or F.one_hot first, counts through {name}.to({weight.dtype})"
        )


def matches_weight(name: str, x: Tensor, weight: Tensor, called: str) -> None:
    """Raise unless ``x`` is dense and has the dtype and device of the weights."""
    dense(name, x)
    if x.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        real = f"torch.view_as_real({name}).flatten(-2)" if x.is_complex() else f"{name}.to({weight.dtype})"
        raise ArgumentError(
            f"{called} dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: {real}, or convert model: model.to({x.dtype})"
        )
    if x.device != weight.device:
        repair = f"use {name}.to({str(weight.device)!r}) or move the model"
        if x.is_meta:
            repair = "a tensor on meta has no numbers; for shapes alone use model.to('meta')"
        raise ArgumentError(f"{name} must be on the device of the weights, {weight.device}, got {x.device}: {repair}")


def dense(name: str, x: Tensor) -> None:
    """Raise for the sparse and other layouts that no kernel takes."""
    if x.layout not in (torch.strided, torch.jagged):
        raise ArgumentError(f"{name} must be a dense Tensor, got {x.layout}: use {name}.to_dense()")


def readable(name: str, x: Tensor) -> None:
    """Raise for a Tensor whose numbers cannot be looked at."""
    dense(name, x)
    if x.is_meta:
        raise ArgumentError(f"{name} must have numbers, got a Tensor on meta: make it on the CPU")


def shape_of(x: Tensor) -> tuple[int, ...]:
    """A shape as a tuple, which prints shorter."""
    return tuple(x.shape)
