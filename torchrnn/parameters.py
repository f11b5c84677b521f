"""The parameters and states of a layer: their names, shapes and first values."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent


class State(NamedTuple):
    """A state of all layers, or of one layer where layers differ in size: its parameter's name and its shape."""

    name: str  # of the parameter, if it is learned
    rows: int  # L·D, or D
    width: int  # H, of the output with projection P


def hidden_sizes(layer: Recurrent) -> list[int]:
    """H of every layer."""
    H = layer.hidden_size
    return H if isinstance(H, list) else [H] * layer.num_layers


def weights(layer: Recurrent) -> list[dict[str, tuple[int, ...]]]:
    """Name and shape of the weights of each layer and direction, in torch.nn's order.

    While the input size is not known, the shapes of what depends on it hold None.
    """
    D, shapes, width = 2 if layer.bidirectional else 1, [], layer.input_size
    for k, H in enumerate(hidden_sizes(layer)):
        GH, out = len(layer.cell.gates) * H, layer.proj_size or H
        for end in (f"l{k}", f"l{k}_reverse")[:D]:
            of: dict[str, tuple[int, ...]] = {f"weight_ih_{end}": (GH, width), f"weight_hh_{end}": (GH, out)}
            if layer.bias:
                of[f"bias_ih_{end}"] = (GH,)
            if layer.bias and layer.bias != "single":
                of[f"bias_hh_{end}"] = (GH,)
            if layer.proj_size:
                of[f"weight_hr_{end}"] = (layer.proj_size, H)
            shapes.append(of)
        width = out if layer.merge_mode != "concat" else D * out
    return shapes


def states(layer: Recurrent) -> list[State]:
    """Every state with its name and shape; where layers differ in size, state by state each layer's."""
    D, found = 2 if layer.bidirectional else 1, []
    for s, name in enumerate(layer.cell.states):
        widths = [layer.proj_size or H if s == 0 else H for H in hidden_sizes(layer)]
        if isinstance(layer.hidden_size, list):
            found += [State(f"initial_{name}_l{k}", D, width) for k, width in enumerate(widths)]
        else:
            found.append(State(f"initial_{name}", layer.num_layers * D, widths[0]))
    return found


def draw(layer: Recurrent) -> None:
    """Give all weights of a layer values from U(-1/√H, 1/√H), in order; learned states become zero."""
    bounds = [1.0 / math.sqrt(H) for H in hidden_sizes(layer)]
    for name, weight in layer.named_parameters():
        name = name.removeprefix("parametrizations.")
        if layer.learn_initial_state and name.startswith("initial_"):
            nn.init.zeros_(weight)
            continue
        own = re.search(r"_l(\d+)", name) if isinstance(layer.hidden_size, list) else None
        bound = bounds[int(own[1])] if own else bounds[0]
        nn.init.uniform_(weight, -bound, bound)
