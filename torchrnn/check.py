"""Errors that name the argument, what was expected, what came, and how to repair it."""

from __future__ import annotations

import numbers
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from torchrnn.cell import Cell
    from torchrnn.layer import Recurrent
    from torchrnn.step import RecurrentCell


class ArgumentError(ValueError, RuntimeError):
    """A tensor has the wrong shape, dtype or device.

    A ``ValueError`` by nature; also a ``RuntimeError``, which torch.nn raises for the same mistakes.
    """


def sizes(input_size: Any, hidden_size: Any) -> None:
    """Check what layers and cells have in common, in torch.nn's words."""
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(value, int) and not (name == "input_size" and value is None):
            hint = "; None leaves it to the first input" if name == "input_size" else ""
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}{hint}")


def layer_options(layer: Recurrent, dropout: Any) -> None:
    """Check the constructor's arguments of a layer, in torch.nn's words; warn where they have no effect."""
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


def fit(states: Any, alone: bool, cell: Cell, x: Tensor, first: tuple[int, ...], rest: Any = None) -> bool:
    """Whether ``states`` are the cell's, each of its shape, with the dtype and device of ``x``."""
    if not isinstance(states, (tuple, list)) or len(states) != len(cell.states) or alone != (len(states) == 1):
        return False
    expected, dtype, device = first, x.dtype, x.device
    for state in states:
        if (
            not isinstance(state, Tensor)
            or state.shape != expected
            or state.dtype is not dtype
            or state.device != device
        ):
            return False
        expected = rest or first
    return True


def weight(module: Recurrent | RecurrentCell, name: str) -> Tensor:
    """A weight by its name, whether a Parameter or computed."""
    try:
        return getattr(module, name)
    except AttributeError as error:
        # no AttributeError, which nn.Module would take for one of the property that asks
        raise RuntimeError(f"{type(module).__name__} lacks its weight {name}: was it deleted? ({error})") from error


def layer_input(layer: Recurrent, input: Any, weight: Tensor) -> None:
    """Raise for a Tensor or PackedSequence that a layer cannot take; ``weight`` is its first weight."""
    packed = isinstance(input, PackedSequence)
    x: Any = input.data if packed else input
    if not isinstance(x, Tensor):
        hint = _as_tensor(x, "input")
        if isinstance(input, tuple):
            hint = ": of another layer's results take the first, output, states = layer(x); of sequences, list(input)"
        raise TypeError(
            f"input must be a Tensor {batch_letters(layer, 3)}, a list of sequences or a PackedSequence, got "
            f"{type(input).__name__}{hint}"
        )
    _numbers("input", x, weight, "RNN input")
    name = type(layer).__name__
    if packed and x.dim() != 2:
        raise ArgumentError(
            f"{name}: input.data of a PackedSequence must be (N, I), got {_shape(x)}: "
            "pack a batch of sequences of feature vectors"
        )
    if packed and not torch.compiler.is_compiling() and int(input.batch_sizes.sum()) != x.size(0):
        raise ArgumentError(
            f"input.data of a PackedSequence must have as many steps as its batch_sizes add up to, N = "
            f"{int(input.batch_sizes.sum())}, got {_shape(x)}: was a length greater than T when it was packed?"
        )
    if x.dim() < 2:
        raise ArgumentError(
            f"{name}: Expected input to be 2D or 3D, got {x.dim()}D: input must be {batch_letters(layer, 3)} or "
            f"unbatched (T, I), got {_shape(x)}"
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
    _numbers(name, x, weight, "RNN input")
    if I is not None:  # not yet known
        _features(name, x, I, letters)
    _matches_weight(name, x, weight, "RNN input")


def cell_call(cell: RecurrentCell, input: Any, hx: Any, weight: Tensor) -> None:
    """Raise for an input or states that a cell cannot take: sizes first, as torch does, then dtypes and devices."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor (B, I), got {type(input).__name__}{_as_tensor(input, 'input')}")
    _numbers("input", input, weight, f"{type(cell).__name__} input")
    if input.dim() not in (1, 2):
        raise ArgumentError(
            f"{type(cell).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead: a cell takes one step "
            f"(B, I) or unbatched (I,), got {_shape(input)}; give a whole sequence to the layer, or loop over its steps"
        )
    if cell.input_size is not None and input.size(-1) != cell.input_size:
        raise ArgumentError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {cell.input_size}; input must be "
            f"(B, I) = (B, {cell.input_size}), got {_shape(input)}"
        )
    states = [] if hx is None else _each_state(cell, hx, cell.hidden_size)
    for k, (name, state, width) in enumerate(states):
        _cell_state(cell, k, name, state, input, width)
    _matches_weight("input", input, weight, f"{type(cell).__name__} input")
    for name, state, _ in states:
        _matches_input(name, state, input)


def return_all(layer: Recurrent) -> None:
    """Raise where the trace of all steps cannot be returned."""
    if not layer.return_sequences:
        raise ValueError(
            "return_all=True and return_sequences=False do not go together: the latter gives one Tensor, for "
            "nn.Sequential; take torchrnn.last(output) of a layer that returns sequences"
        )


def layer_states(layer: Recurrent, hx: Any, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise for initial states that a layer cannot take: for input ``x`` they are ``shape`` by the state's width."""
    for name, state, width in _each_state(layer, hx, layer.proj_size or layer.hidden_size):
        layer_state(layer, name, state, (*shape, width), x)


def layer_state(
    layer: Recurrent, name: str, state: Any, expected: tuple[int, ...], x: Tensor, of_layer: int | None = None
) -> None:
    """Raise for an initial state that a layer cannot take; of one layer's where layers differ in size."""
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(state).__name__}{_as_tensor(state, name)}")
    came, rows = _shape(state), "L·D" if of_layer is None else "D"
    if not broadcasts(came, expected):
        hint = _state_hint(layer, came, expected, name) if of_layer is None else f": the state of layer {of_layer}"
        batch = ["B"] if len(expected) == 3 else [f"B{k}" for k in range(1, len(expected) - 1)]
        letters = (rows, *batch, "H")
        if layer.batch_first_state and batch:
            # the user's batch came first, and has been moved
            letters, expected = (*batch, rows, "H"), _batch_first(expected)
            if len(came) == len(expected):
                came = _batch_first(came)
                if came == _batch_first(expected):
                    hint = f": with batch_first_state=True the batch comes first; use {name}.transpose(0, 1)"
        raise ArgumentError(f"{name} must be ({', '.join(letters)}) = {expected}, got {came}{hint}")
    _matches_input(name, state, x)


def _batch_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:-1], shape[0], shape[-1])


def lists_of_states(layer: Recurrent, hx: Any) -> list[Any]:
    """The initial states of layers that differ in size: for each state a list of L; raises for another structure."""
    names, L = layer.cell.states, layer.num_layers
    sizes = f"hidden_size={layer.hidden_size}"
    one = f"a list of {L} Tensors, one (D, B, H) for each layer"
    groups = [hx] if len(names) == 1 else hx
    if not isinstance(groups, (list, tuple)) or len(groups) != len(names):
        raise TypeError(
            f"hx must be a tuple ({', '.join(names)}) of lists, got {_kind(hx)}: with {sizes} each state is {one}"
        )
    for k, group in enumerate(groups):
        if not isinstance(group, (list, tuple)) or len(group) != L:
            name = "hx" if len(names) == 1 else f"hx[{k}]"
            raise TypeError(f"{name} must be {one}, got {_kind(group)}: {sizes}")
    return list(groups)


def _kind(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"one Tensor {_shape(given)}"
    return f"{len(given)} items" if isinstance(given, (tuple, list)) else f"a {type(given).__name__}"


def broadcasts(came: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a state of one shape stands for one of another: it may have batch 1 for all rows alike."""
    if len(came) != len(expected) or came[0] != expected[0] or came[-1] != expected[-1]:
        return False
    return all(a in (1, b) for a, b in zip(came[1:-1], expected[1:-1], strict=True))


def _cell_state(cell: RecurrentCell, k: int, name: str, state: Tensor, x: Tensor, width: int) -> None:
    if state.dim() not in (1, 2):
        called = "hidden" if len(cell.cell.states) == 1 else name
        raise ArgumentError(
            f"{type(cell).__name__}: Expected {called} to be 1D or 2D, got {state.dim()}D instead: a cell's state "
            f"is (B, H), without the dimension of layers that a layer's has; got {_shape(state)}"
        )
    expected = (*x.shape[:-1], width)
    if state.shape == expected or (x.dim() == 2 and state.shape == (1, width)):  # one of batch 1 is for all rows
        return
    detail = f"{name} must be {'(B, H)' if x.dim() == 2 else '(H,)'} = {expected}, got {_shape(state)}"
    if state.dim() == x.dim() == 2 and state.size(0) != x.size(0):
        raise ArgumentError(
            f"Input batch size {x.size(0)} doesn't match hidden{k} batch size {state.size(0)}; {detail}"
        )
    if state.size(-1) == width:
        raise ArgumentError(f"{detail}: input and state must both have a batch, or neither")
    raise ArgumentError(f"hidden{k} has inconsistent hidden_size: got {state.size(-1)}, expected {width}; {detail}")


def _each_state(module: Recurrent | RecurrentCell, hx: Any, first_width: int) -> list[tuple[str, Tensor, int]]:
    """(name, state, width) for each state in hx; raises when hx has the wrong structure."""
    names = module.cell.states
    kind = type(module).__name__
    if len(names) == 1:
        if isinstance(hx, (tuple, list)):
            came = f"a {type(hx).__name__}"
            raise TypeError(
                f"hx must be one Tensor, got {came}: {kind} has the one state {names[0]}, no ({names[0]}, c)"
            )
        if not isinstance(hx, Tensor):
            raise TypeError(f"hx must be a Tensor, got {type(hx).__name__}{_as_tensor(hx, 'hx')}")
        return [("hx", hx, first_width)]
    tuple_of = f"({', '.join(names)})"
    if isinstance(hx, Tensor):
        raise TypeError(
            f"hx must be a tuple {tuple_of}, got one Tensor {_shape(hx)}: {kind} has {len(names)} states; "
            f"pass ({names[0]}_0, {', '.join(f'{n}_0' for n in names[1:])}), zeros for those you have not"
        )
    if not isinstance(hx, (tuple, list)) or len(hx) != len(names):
        came = f"{len(hx)} items" if isinstance(hx, (tuple, list)) else f"a {type(hx).__name__}"
        raise TypeError(f"hx must be a tuple {tuple_of} of {len(names)} Tensors, got {came}")
    for k, state in enumerate(hx):
        if not isinstance(state, Tensor):
            raise TypeError(f"hx[{k}] must be a Tensor, got {type(state).__name__}")
    widths = (first_width, *(module.hidden_size,) * (len(names) - 1))
    return [(f"hx[{k}]", state, width) for k, (state, width) in enumerate(zip(hx, widths, strict=True))]


def _state_hint(layer: Recurrent, came: tuple[int, ...], expected: tuple[int, ...], name: str) -> str:
    if len(came) == len(expected) - 1 and expected[0] == 1 and came == expected[1:]:
        return f": the dimension of layers is missing; use {name}.unsqueeze(0)"
    if len(came) == len(expected) - 1:
        return ": it lacks a dimension; a layer's state has one row for each layer and direction"
    if len(came) != len(expected):
        return f": it has {len(came)} dimensions, not {len(expected)}"
    if len(came) == 3 and came == (expected[1], expected[0], expected[2]):
        why = "batch_first does not move the batch of hx" if layer.batch_first else "the batch comes second"
        return f": {why}; use {name}.transpose(0, 1), or build the layer with batch_first_state=True"
    if came[-1] != expected[-1]:
        which = "proj_size" if expected[-1] == layer.proj_size else "hidden_size"
        return f": H is the layer's {which}"
    if came[0] != expected[0]:
        D = 2 if layer.bidirectional else 1
        return f": L·D is num_layers · directions = {layer.num_layers} · {D}"
    return f": input has batch size {expected[1]}"


def _features(name: str, x: Tensor, I: int, letters: str) -> None:
    if x.size(-1) == I:
        return
    where = [d for d in range(x.dim() - 1) if x.size(d) == I]
    hint = f"; dimension {where[-1]} has size {I}: move it last with {name}.transpose({where[-1]}, -1)" if where else ""
    raise ArgumentError(
        f"{name}.size(-1) must be equal to input_size. Expected {I}, got {x.size(-1)}: "
        f"{name} must be {letters} with I = {I}, got {_shape(x)}{hint}"
    )


def _as_tensor(given: Any, name: str) -> str:
    return f": use torch.from_numpy({name})" if type(given).__module__ == "numpy" else ""


def _numbers(name: str, x: Tensor, weight: Tensor, called: str) -> None:
    if not x.is_floating_point() and not x.is_complex():
        raise ArgumentError(
            f"{called} dtype ({x.dtype}) does not match weight dtype ({weight.dtype}): numbers that stand for tokens "
            f"or classes go through nn.Embedding or F.one_hot first, counts through {name}.to({weight.dtype})"
        )


def _matches_weight(name: str, x: Tensor, weight: Tensor, called: str) -> None:
    if x.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ArgumentError(
            f"{called} dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: {name}.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.device != weight.device:
        raise ArgumentError(
            f"{name} must be on the device of the weights, {weight.device}, got {x.device}: "
            f"use {name}.to({str(weight.device)!r}) or move the model"
        )


def _matches_input(name: str, state: Tensor, x: Tensor) -> None:
    if state.dtype != x.dtype and not torch._C._is_any_autocast_enabled():
        raise ArgumentError(
            f"{name} must have the dtype of the input, {x.dtype}, got {state.dtype}: use {name}.to({x.dtype})"
        )
    if state.device != x.device:
        raise ArgumentError(
            f"{name} must be on the device of the input, {x.device}, got {state.device}: "
            f"use {name}.to({str(x.device)!r})"
        )


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
