"""The account of a call: what every tensor of it is, which backend runs it, and why the others do not."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from torchrnn import call

if TYPE_CHECKING:
    from torchrnn.seeing.table import Section


class _Decision(NamedTuple):
    backend: str
    refusals: dict[str, str]


class Explanation(_Decision):
    """What every tensor of a call is, which backend runs it, and why those before it do not.

    Printing it gives a table of at most 100 columns; a notebook shows the same as HTML.

    Attributes:
        backend: the backend that runs the call.
        refusals: those before it, each with its reason.
        title: the layer, as it prints itself.
        legend: the letters of the shapes with their numbers.
        sections: the table, a list of titles with rows (name, shape, sentence).
    """

    title: str
    legend: str
    sections: list[Section]

    @property
    def decision(self) -> str:
        """The backend and the refusals, a line each."""
        lines = [f"backend: {self.backend}", *(f"  not {name}: {why}" for name, why in self.refusals.items())]
        return "\n".join(lines)

    def __repr__(self) -> str:
        from torchrnn.seeing import table

        heads = [*self.decision.split("\n"), "", self.title, self.legend]
        return table.text(heads, self.sections)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from torchrnn.seeing import table

        return table.html([*self.decision.split("\n"), self.title, self.legend], self.sections)


def explain(layer: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Tell what every tensor of ``layer(*args, **kwargs)`` is, and which backend runs it. The layer is not run.

    Each parameter, input, state and result is told with its shape in letters and numbers and a sentence; and which rows
    of a weight are which gate, which half of the output is which direction, where the last output and the final
    states of a layer stand.

    Args:
        layer: one of our layers or cells.
        *args: what the layer would be called with.
        **kwargs: likewise.

    Returns:
        An `Explanation`; printing it gives a table, a notebook shows it as one.

    Raises:
        TypeError: ``layer`` is none of ours, or does not take these arguments.
        check.ArgumentError: a tensor has the wrong shape, dtype or device.

    Example:
        ```python
        import torch
        import torchrnn

        told = torchrnn.explain(torchrnn.LSTM(3, 5), torch.randn(7, 2, 3))
        print(told)  # backend: cpu, and a table
        assert told.backend in ("cpu", "aten") and told.legend.startswith("T time 7 · B batch 2 · I input 3")
        ```
    """
    from torchrnn.seeing import shapes  # here, since few programs explain

    request = getattr(layer, "request", None)
    if request is None:
        raise TypeError(
            f"layer must be a torchrnn layer or cell, got {type(layer).__name__}: "
            "torchrnn.convert(model) turns those of torch.nn into ours"
        )
    try:
        arguments = inspect.signature(request).bind(*args, **kwargs).arguments
    except TypeError as error:
        name = type(layer).__name__
        taken = ", ".join(inspect.signature(request).parameters)
        raise TypeError(
            f"explain needs what the {name} would be called with, as in explain(layer, x): {error}; a call of {name} "
            f"takes {taken}"
        ) from None
    made, _ = request(*args, **kwargs)
    told = Explanation(*call.account(made))
    told.title = f"{type(layer).__name__}({layer.extra_repr()})"
    of: Any = shapes.of_cell if made.one_step else shapes.of_layer
    told.legend, told.sections = of(layer, arguments)
    return told
