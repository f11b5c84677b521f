"""`torchrnn.draw`: the picture of a layer unrolled in time, or of the inside of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchrnn.activation import PLAIN
from torchrnn.cell import Cell

if TYPE_CHECKING:
    from torchrnn.seeing.svg import Picture


def draw(what: Any, T: int | None = None) -> Picture:
    """Draw a layer unrolled in time, or the inside of a cell.

    Of a layer: a column for each step, a box for each layer and direction, the states passed along, and on every arrow
    the shape of what goes there. Of a cell: its equations as a graph, from the input and the previous states on the
    left to the new states on the right, with the gates by name; it is made by running the step on symbols, so it shows
    what the step does.

    Args:
        what: a layer, a single step such as ``LSTMCell(3, 5)``, or a cell such as ``LSTM.cell``.
        T: the steps to draw of a layer: all up to 6, else the first two and the last. By default a sequence of any
            length.

    Returns:
        An SVG [`Picture`][torchrnn.seeing.svg.Picture]: a notebook shows it, ``picture.save(path)`` writes it.

    Raises:
        TypeError: ``what`` is none of ours, or ``T`` is no whole number.
        ValueError: ``T`` is below 1 or given for a cell; or the cell's step branches on a value.

    Example:
        ```python
        import torchrnn

        network = torchrnn.draw(torchrnn.LSTM(50, 100, num_layers=2), T=3)
        inside = torchrnn.draw(torchrnn.LSTM.cell)
        assert "layer 1" in str(network) and "c[t-1]" in str(inside)
        ```
    """
    from torchrnn.seeing.equations import Equations  # here, since few programs draw
    from torchrnn.seeing.unrolled import Unrolled

    if isinstance(what, Cell):
        cell, sizes, options = what, None, PLAIN
    elif isinstance(getattr(what, "cell", None), Cell) and hasattr(what, "request"):
        if hasattr(what, "num_layers"):
            return Unrolled(what, T).draw()
        cell, sizes, options = what.cell, what, what._options
    else:
        raise TypeError(
            f"what must be a torchrnn layer, single step or cell, got {type(what).__name__}: "
            "torchrnn.convert(model) turns those of torch.nn into ours"
        )
    if T is not None:
        raise ValueError(f"T={T} is for a layer, unrolled in time; a cell is one step")
    return Equations(cell, options, sizes).draw()
