"""Errors about states: what an initial state of a layer, or the states of a cell, must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrnn import check
from torchrnn.check import ArgumentError

if TYPE_CHECKING:
    from torchrnn.cell import Cell
    from torchrnn.layer import Recurrent
    from torchrnn.step import RecurrentCell


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
            or state.layout is not torch.strided
        ):
            return False
        expected = rest or first
    return True


def cell_call(cell: RecurrentCell, input: Any, hx: Any, weight: Tensor) -> None:
    """Raise for an input or states that a cell cannot take: sizes first, as torch does, then dtypes and devices."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor (B, I), got {type(input).__name__}{check.as_tensor(input, 'input')}")
    check.floating("input", input, weight, f"{type(cell).__name__} input")
    if input.dim() not in (1, 2):
        raise ArgumentError(
            f"{type(cell).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead: a cell takes one step "
            f"(B, I) or unbatched (I,), got {check.shape_of(input)}; give a whole sequence to the layer, or loop over "
            "its steps"
        )
    if cell.input_size is not None and input.size(-1) != cell.input_size:
        raise ArgumentError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {cell.input_size}; input must be "
            f"(B, I) = (B, {cell.input_size}), got {check.shape_of(input)}"
        )
    states = [] if hx is None else _each_state(cell, hx, cell.hidden_size)
    for k, (name, state, width) in enumerate(states):
        _cell_state(cell, k, name, state, input, width)
    check.matches_weight("input", input, weight, f"{type(cell).__name__} input")
    for name, state, _ in states:
        _matches_input(name, state, input)


def layer_states(layer: Recurrent, hx: Any, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise for initial states that a layer cannot take: for input ``x`` they are ``shape`` by the state's width."""
    for name, state, width in _each_state(layer, hx, layer.proj_size or layer.hidden_size):
        layer_state(layer, name, state, (*shape, width), x)


def layer_state(
    layer: Recurrent, name: str, state: Any, expected: tuple[int, ...], x: Tensor, of_layer: int | None = None
) -> None:
    """Raise for an initial state that a layer cannot take; of one layer's where layers differ in size."""
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(state).__name__}{check.as_tensor(state, name)}")
    came, rows = check.shape_of(state), "L·D" if of_layer is None else "D"
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
        return f"one Tensor {check.shape_of(given)}"
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
            f"is (B, H), without the dimension of layers that a layer's has; got {check.shape_of(state)}"
        )
    expected = (*x.shape[:-1], width)
    if state.shape == expected or (x.dim() == 2 and state.shape == (1, width)):  # one of batch 1 is for all rows
        return
    detail = f"{name} must be {'(B, H)' if x.dim() == 2 else '(H,)'} = {expected}, got {check.shape_of(state)}"
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
            raise TypeError(f"hx must be a Tensor, got {type(hx).__name__}{check.as_tensor(hx, 'hx')}")
        return [("hx", hx, first_width)]
    tuple_of = f"({', '.join(names)})"
    if isinstance(hx, Tensor):
        raise TypeError(
            f"hx must be a tuple {tuple_of}, got one Tensor {check.shape_of(hx)}: {kind} has {len(names)} states; "
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


def _matches_input(name: str, state: Tensor, x: Tensor) -> None:
    check.dense(name, state)
    if state.dtype != x.dtype and not torch._C._is_any_autocast_enabled():
        raise ArgumentError(
            f"{name} must have the dtype of the input, {x.dtype}, got {state.dtype}: use {name}.to({x.dtype})"
        )
    if state.device != x.device:
        raise ArgumentError(
            f"{name} must be on the device of the input, {x.device}, got {state.device}: "
            f"use {name}.to({str(x.device)!r})"
        )
