"""The Elman network, with tanh or ReLU."""

from typing import Any

import torch
from torch import relu, tanh

from torchrnn.cell import Cell, cell
from torchrnn.layer import Recurrent
from torchrnn.step import RecurrentCell


@cell(gates="a", states="h")
def rnn_tanh(x: Any, h: Any, s: Any) -> Any:
    """One activation."""
    return tanh(x.a + h.a)


@cell(gates="a", states="h")
def rnn_relu(x: Any, h: Any, s: Any) -> Any:
    """One activation, rectified."""
    return relu(x.a + h.a)


_BY_NONLINEARITY = {"tanh": rnn_tanh, "relu": rnn_relu}


def _known(nonlinearity: str) -> str:
    if nonlinearity not in _BY_NONLINEARITY:
        raise ValueError(
            f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or 'relu'; any other is a cell of three lines, "
            "see torchrnn.cell"
        )
    return nonlinearity


class RNN(Recurrent):
    r"""An Elman network over a sequence; drop-in for ``torch.nn.RNN``.

    $$
    h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})
    $$

    or ReLU in place of tanh. Other arguments and parameters: see [`Recurrent`][torchrnn.Recurrent]; G = 1. There is no
    projection.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``; the fourth positional argument.

    Shapes: input (T, B, I) and state (L·D, B, H) -> output (T, B, D·H) and the new state.

    Paper: Elman, *Finding Structure in Time*, Cognitive Science 1990.

    Example:
        ```python
        import torch
        from torchrnn import nn

        rnn = nn.RNN(10, 20, num_layers=2, nonlinearity="relu")
        output, h = rnn(torch.randn(5, 3, 10))
        assert output.shape == (5, 3, 20) and h.shape == (2, 3, 20)
        assert torch.equal(output[-1], h[-1])
        ```
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.nonlinearity = _known(nonlinearity)  # the base class asks for the cell
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """The cell of this layer's nonlinearity."""
        return _BY_NONLINEARITY[self.nonlinearity]


class RNNCell(RecurrentCell):
    """One step of an [`RNN`][torchrnn.RNN]; drop-in for ``torch.nn.RNNCell``.

    Other arguments and parameters: see [`RecurrentCell`][torchrnn.RecurrentCell]. Shapes: input (B, I) and h (B, H) ->
    h (B, H).

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Example:
        ```python
        import torch
        from torchrnn import nn

        cell, h = nn.RNNCell(10, 20), torch.zeros(3, 20)
        for x in torch.randn(5, 3, 10):
            h = cell(x, h)
        assert h.shape == (3, 20)
        ```
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.nonlinearity = _known(nonlinearity)
        super().__init__(input_size, hidden_size, bias, device, dtype)

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """The cell of this module's nonlinearity."""
        return _BY_NONLINEARITY[self.nonlinearity]

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")
