"""What may vary inside a cell's equations: the function that squashes the candidate, and the limit of the state."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _linear(x: Tensor) -> Tensor:
    return x


#: The functions by name. The derivative of each is a function of its result, so that backward needs nothing else.
#: Their order is that of ``Activation`` in csrc/layer.h.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "linear": _linear,
    "softsign": F.softsign,
    "elu": F.elu,
}


class Options(NamedTuple):
    """What a cell's step gets as its fourth argument.

    Example:
        ```python
        import torch
        from torchrnn.activation import Options

        options = Options("relu", 2.0)
        state = options.clip(options.activation(torch.tensor([-1.0, 1.0, 3.0])))
        assert state.tolist() == [0, 1, 2]
        ```
    """

    function: str = "tanh"
    limit: float = math.inf

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """The function that squashes the candidate."""
        return ACTIVATIONS[self.function]

    def clip(self, state: Tensor) -> Tensor:
        """A state within ±limit; no gradient goes through where it was beyond."""
        return state if self.limit == math.inf else state.clamp(-self.limit, self.limit)

    def __str__(self) -> str:
        said = [f"activation={self.function!r}"] if self.function != "tanh" else []
        return ", ".join([*said, f"cell_clip={self.limit}"] if self.limit != math.inf else said)


#: The options of a cell whose constructor was given none. The fused kernels have a shorter way for it.
PLAIN = Options()


def takes_options(step: Callable[..., Any]) -> bool:
    """Whether a step has a fourth argument; one with a default is its own affair."""
    try:
        parameters = inspect.signature(step).parameters.values()
    except ValueError:  # of a function in C
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters) > 3


def options(cell: Any, activation: Any, cell_clip: Any) -> Options:
    """The options that a constructor's arguments ask for.

    Args:
        cell: the cell that is to have them.
        activation: a name of ``ACTIVATIONS``.
        cell_clip: a positive number, or None.

    Raises:
        ValueError: there is no such function, the cell has no place for it, or the clip is not positive.
        TypeError: the clip is no number.
    """
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}: their "
            "derivative is a function of their result; with any other function write a cell, see torchrnn.cell"
        )
    if activation != "tanh" and not cell.takes_options:
        raise ValueError(
            f"activation={activation!r} has no effect on the cell {cell.name!r}: give its step a fourth "
            "argument, as in step(x, h, s, options), and write options.activation(…) where the function may vary"
        )
    if cell_clip is not None and (not isinstance(cell_clip, (int, float)) or isinstance(cell_clip, bool)):
        raise TypeError(f"cell_clip must be a positive number or None, got {type(cell_clip).__name__}")
    if cell_clip is not None and not cell_clip > 0:
        raise ValueError(f"cell_clip must be a positive number or None, got {cell_clip}: None is for no clip")
    made = Options(activation, math.inf if cell_clip is None else float(cell_clip))
    return PLAIN if made == PLAIN else made
