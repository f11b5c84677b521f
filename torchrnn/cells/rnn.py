"""The Elman network, with tanh or ReLU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import relu, tanh

from torchrnn.arguments import ONE
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

    or ReLU in place of tanh; with ``proj_size`` $h_t = W_{hr} \tanh(\ldots)$. Other arguments and parameters: see
    [`Recurrent`][torchrnn.Recurrent]; G = 1.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``; the fourth positional argument.
        proj_size: P, by keyword: torch.nn's RNN has none.
        **options: by keyword, those of `Recurrent` after ``dtype``.

    Shapes: input (T, B, I) and state (L·D, B, H) -> output (T, B, D·H) and the new state; with ``proj_size`` P the
    output is (T, B, D·P) and the state (L·D, B, P).

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
        input_size: int | None,
        hidden_size: int | Sequence[int],
        num_layers: int = ONE,
        nonlinearity: str = "tanh",
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        **options: Any,
    ) -> None:
        self.nonlinearity = _known(nonlinearity)  # the base class asks for the cell
        args = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__(input_size, hidden_size, *args, **options)

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
        input_size: int | None,
        hidden_size: int,
        bias: bool | str = True,
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
