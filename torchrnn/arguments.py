"""Arguments of a layer that torch.nn lacks: their defaults, what they may be, and which do not go together."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import TYPE_CHECKING, Any

from torchrnn import check

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent

#: Every option by its name. A layer has an attribute of its own where it differs.
DEFAULTS: dict[str, Any] = {
    "return_sequences": True,
    "merge_mode": "concat",
    "residual": False,
    "forget_bias": None,
    "learn_initial_state": False,
    "batch_first_state": False,
    "output_dropout": 0.0,
}
MERGES = ("concat", "sum", "mean", "mul")


class _Default(int):
    """A number that nobody gave: equal to the default, and known from the same number given."""


ONE = _Default(1)


def sizes(hidden_size: Any, num_layers: int) -> tuple[Any, int]:
    """``hidden_size`` and ``num_layers`` as given -> a list only where layers differ in size, and their number.

    Raises:
        TypeError: the list holds something else than integers.
        ValueError: the list is empty, or its length is not ``num_layers``.
    """
    given = None if num_layers is ONE else num_layers
    if not isinstance(hidden_size, (list, tuple)):
        return hidden_size, 1 if given is None else given
    for H in hidden_size:
        if not isinstance(H, int) or isinstance(H, bool):
            raise TypeError(f"hidden_size should be an int or a list of ints, got {H!r} in {list(hidden_size)}")
    if not hidden_size:
        raise ValueError("hidden_size must name the size of every layer, got an empty list")
    if given is not None and given != len(hidden_size):
        raise ValueError(
            f"hidden_size={list(hidden_size)} and num_layers={given} do not go together: the list has one size for "
            f"each of {len(hidden_size)} layers; leave num_layers out"
        )
    same = len(set(hidden_size)) == 1
    return hidden_size[0] if same else list(hidden_size), len(hidden_size)


def keep(layer: Recurrent, given: dict[str, Any]) -> None:
    """Check the options of a layer whose other arguments are set; keep those that differ from their defaults.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range, or does not go together with another argument.
    """
    for name in ("return_sequences", "residual", "learn_initial_state", "batch_first_state"):
        check.boolean(name, given[name])
    if given["merge_mode"] not in MERGES:
        raise ValueError(f"merge_mode must be one of {', '.join(map(repr, MERGES))}, got {given['merge_mode']!r}")
    dropout, forget = given["output_dropout"], given["forget_bias"]
    if not _number(dropout) or not 0 <= dropout <= 1:
        raise ValueError(f"output_dropout should be a number in range [0, 1], got {dropout!r}")
    if forget is not None and (not _number(forget) or not math.isfinite(forget)):
        raise ValueError(f"forget_bias must be a finite number or None, got {forget!r}")
    for name, value in given.items():
        if value != DEFAULTS[name]:
            setattr(layer, name, value)
    if layer.bias == "single" or isinstance(layer.hidden_size, list):
        layer._beyond = True
    _together(layer)
    if layer.residual and layer.num_layers == 1:
        warnings.warn(
            "residual adds its input to the output of all layers but the first, so it expects num_layers greater "
            "than 1, but got residual=True and num_layers=1",
            stacklevel=check.caller_of_constructor(),
        )


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _together(layer: Recurrent) -> None:
    """Raise for options that do not go together."""
    merge = f"merge_mode={layer.merge_mode!r}"
    if layer.merge_mode != "concat" and not layer.bidirectional:
        raise ValueError(f"{merge} and bidirectional=False do not go together: there is one direction only")
    if layer.merge_mode != "concat" and layer.residual and not layer.return_sequences:
        raise ValueError(
            f"{merge}, residual=True and return_sequences=False do not go together: the last outputs of the two "
            "directions stand at different steps, so there is no one input to add to their "
            f"{layer.merge_mode}; use merge_mode='concat' or return_sequences=True"
        )
    if layer.residual and not layer.proj_size and isinstance(layer.hidden_size, list):
        raise ValueError(
            f"residual=True and hidden_size={layer.hidden_size} do not go together: a layer's input can be added to "
            "its output only if both are of one size"
        )
    if layer.forget_bias is not None:
        if "f" not in layer.cell.gates:
            raise ValueError(
                f"forget_bias needs a cell with a gate f; {layer.cell.name!r} has the gates "
                f"{' '.join(layer.cell.gates)}"
            )
        if not layer.bias:
            raise ValueError(f"forget_bias={layer.forget_bias} and bias=False do not go together: there is no bias")


def beyond_torch(layer: Recurrent) -> list[str]:
    """The options of a layer that differ from their defaults, as they are written, ``residual=True``."""
    return [f"{name}={getattr(layer, name)!r}" for name, value in DEFAULTS.items() if getattr(layer, name) != value]
