"""The Elman network, with tanh or ReLU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import relu

from torchrnn.arguments import ONE
from torchrnn.cell import Cell, cell
from torchrnn.layer import Recurrent
from torchrnn.step import RecurrentCell


@cell(gates="a", states="h")
def rnn_tanh(x: Any, h: Any, s: Any, options: Any) -> Any:
    """One activation, tanh unless the options say otherwise."""
    return options.clip(options.activation(x.a + h.a))


@cell(gates="a", states="h")
def rnn_relu(x: Any, h: Any, s: Any) -> Any:
    """One activation, rectified."""
    return relu(x.a + h.a)


class _Unsaid(str):
    """The default of ``nonlinearity``, which a caller's own "tanh" is not: it may contradict ``activation``."""


_TANH = _Unsaid("tanh")


def _named(nonlinearity: str, activation: str | None) -> str:
    """The one function that both arguments name."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(
            f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or 'relu'; activation= knows more, and "
            "any other is a cell of three lines, see torchrnn.cell"
        )
    if activation is not None and activation != nonlinearity and not isinstance(nonlinearity, _Unsaid):
        raise ValueError(
            f"nonlinearity and activation name the same function, got nonlinearity={nonlinearity!r} and "
            f"activation={activation!r}: leave one out"
        )
    return str(nonlinearity) if activation is None else activation


class _OfNonlinearity:
    """The cell of a module's nonlinearity; of the class, where none is chosen yet, that of the default."""

    def __get__(self, module: Any, owner: Any) -> Cell:
        return rnn_relu if module is not None and module.nonlinearity == "relu" else rnn_tanh


class RNN(Recurrent):
    r"""An Elman network over a sequence; drop-in for ``torch.nn.RNN``.

    $$
    h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})
    $$

    where $\phi$ is tanh, ReLU or another ``activation``; with ``cell_clip`` $h_t$ is clipped to ±``cell_clip``; with
    ``proj_size`` $h_t = W_{hr} \phi(\ldots)$. Other arguments and parameters: see [`Recurrent`][torchrnn.Recurrent];
    G = 1.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``; the fourth positional argument.
        activation: the same, with more to choose from.
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

    cell: Any = _OfNonlinearity()

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int | Sequence[int],
        num_layers: int = ONE,
        nonlinearity: str = _TANH,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        activation: str | None = None,
        **options: Any,
    ) -> None:
        self.nonlinearity = _named(nonlinearity, activation)  # the base class asks for the cell
        args = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        activation = "tanh" if self.nonlinearity == "relu" else self.nonlinearity  # rnn_relu has a cell of its own
        super().__init__(input_size, hidden_size, *args, activation=activation, **options)
        if self._options.function != "tanh":
            self.mode = f"RNN_{self.nonlinearity.upper()}"

    @property
    def activation(self) -> str:
        """The nonlinearity."""
        return self.nonlinearity


class RNNCell(RecurrentCell):
    """One step of an [`RNN`][torchrnn.RNN]; drop-in for ``torch.nn.RNNCell``.

    Other arguments and parameters: see [`RecurrentCell`][torchrnn.RecurrentCell]. Shapes: input (B, I) and h (B, H) ->
    h (B, H).

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.
        activation: the same, with more to choose from.

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

    cell: Any = _OfNonlinearity()

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        bias: bool | str = True,
        nonlinearity: str = _TANH,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        cell_clip: float | None = None,
    ) -> None:
        self.nonlinearity = _named(nonlinearity, activation)
        activation = "tanh" if self.nonlinearity == "relu" else self.nonlinearity
        super().__init__(input_size, hidden_size, bias, device, dtype, activation=activation, cell_clip=cell_clip)

    @property
    def activation(self) -> str:
        """The nonlinearity."""
        return self.nonlinearity

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        relu = ", nonlinearity=relu" if self.nonlinearity == "relu" else ""
        return super().extra_repr() + relu
