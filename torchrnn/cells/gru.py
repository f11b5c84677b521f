"""The gated recurrent unit: the reset gate after the matrix product, as in torch and cuDNN, or before it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import sigmoid

from torchrnn import check
from torchrnn.arguments import ONE
from torchrnn.cell import cell
from torchrnn.layer import Recurrent
from torchrnn.step import RecurrentCell


@cell(gates="r z n", states="h")
def gru(x: Any, h: Any, s: Any, options: Any) -> Any:
    """Reset and update gate, and the new state."""
    r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
    n = options.activation(x.n + r * h.n)
    return options.clip(n + z * (s.h - n))


@cell(gates="r z n", states="h", late="n")
def gru_reset_before(x: Any, h: Any, s: Any, options: Any) -> Any:
    """The same, where the reset gate acts on the state before it is multiplied."""
    r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
    n = options.activation(x.n + h.n(r * s.h))
    return options.clip(n + z * (s.h - n))


@cell(gates="r z n", states="h s")
def gru_projected(x: Any, h: Any, s: Any, options: Any) -> Any:
    """The first with a projection: s is mixed, and h is what the layer projects of it."""
    r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
    n = options.activation(x.n + r * h.n)
    new = options.clip(n + z * (s.s - n))
    return new, new


class GRU(Recurrent):
    r"""A gated recurrent unit over a sequence; drop-in for ``torch.nn.GRU``.

    $$
    \begin{aligned}
    r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
    z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
    n_t &= \phi(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
    h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
    \end{aligned}
    $$

    where $\phi$ is tanh or another ``activation``; with ``cell_clip`` $h_t$ is clipped to ±``cell_clip``. With
    ``reset_after=False`` the reset gate acts before the product, as in the paper and in old Keras models:

    $$
    n_t = \phi(W_{in} x_t + b_{in} + W_{hn} (r_t \odot h_{t-1}) + b_{hn})
    $$

    The second product of a step then waits for the first, so such a layer runs step by step on the reference backend.

    With ``proj_size`` P the layer has two states, as an LSTM with projection has: s, which is mixed and not projected,
    and h, the output, which the weights see:

    $$
    \begin{aligned}
    s_t &= (1 - z_t) \odot n_t + z_t \odot s_{t-1} \\
    h_t &= W_{\mathrm{proj}} s_t
    \end{aligned}
    $$

    with r, z and n of $h_{t-1}$ as above, and ``weight_hr`` (P, H) for $W_{\mathrm{proj}}$; ``cell_clip`` then clips
    $s_t$. ``hx`` and the final state are tuples (h, s). It does not go together with ``reset_after=False``.

    Other arguments and parameters: see [`Recurrent`][torchrnn.Recurrent]; G = 3 gates in the order r z n.

    Args:
        reset_after: whether the reset gate acts after the product with $W_{hn}$; by keyword.
        **options: by keyword, those of `Recurrent` after ``dtype``.

    Shapes: input (T, B, I) and state (L·D, B, H) -> output (T, B, D·H) and the new state; with ``proj_size`` P input
    and states h (L·D, B, P), s (L·D, B, H) -> output (T, B, D·P) and new states.

    Raises:
        ValueError: ``proj_size`` and ``reset_after=False`` are both given; or as `Recurrent`.

    Paper: Cho et al., *Learning Phrase Representations using RNN Encoder–Decoder*, arXiv 1406.1078.

    Example:
        ```python
        import torch
        from torchrnn import nn

        output, h = nn.GRU(10, 20)(torch.randn(5, 3, 10))
        assert output.shape == (5, 3, 20) and h.shape == (1, 3, 20)

        output, (h, s) = nn.GRU(10, 20, proj_size=8)(torch.randn(5, 3, 10))
        assert output.shape == (5, 3, 8) and h.shape == (1, 3, 8) and s.shape == (1, 3, 20)
        ```
    """

    cell = gru

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int | Sequence[int],
        num_layers: int = ONE,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        **options: Any,
    ) -> None:
        _choose(self, reset_after, proj_size)
        args = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__(input_size, hidden_size, *args, **options)

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate acts after the matrix product."""
        return self.cell is not gru_reset_before

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class GRUCell(RecurrentCell):
    """One step of a [`GRU`][torchrnn.GRU]; drop-in for ``torch.nn.GRUCell``.

    Other arguments and parameters: see [`RecurrentCell`][torchrnn.RecurrentCell]. Shapes: input (B, I) and h (B, H) ->
    h (B, H).

    Args:
        reset_after: whether the reset gate acts after the product with $W_{hn}$; by keyword.

    Example:
        ```python
        import torch
        from torchrnn import nn

        cell, h = nn.GRUCell(10, 20), torch.zeros(3, 20)
        for x in torch.randn(5, 3, 10):
            h = cell(x, h)
        assert h.shape == (3, 20)
        ```
    """

    cell = gru

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        bias: bool | str = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        activation: str = "tanh",
        cell_clip: float | None = None,
    ) -> None:
        _choose(self, reset_after)
        super().__init__(input_size, hidden_size, bias, device, dtype, activation=activation, cell_clip=cell_clip)

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate acts after the matrix product."""
        return self.cell is not gru_reset_before

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


def _choose(module: GRU | GRUCell, reset_after: bool, proj_size: int = 0) -> None:
    """Give a module the cell of the paper, or the projected one, where it is asked for.

    The class has torch's, at no cost for a call.
    """
    check.boolean("reset_after", reset_after)
    if not reset_after:
        if proj_size:
            raise ValueError(
                f"proj_size={proj_size} and reset_after=False do not go together: the reset gate has hidden_size (H) "
                "numbers and would act on what weight_hh multiplies, which has proj_size (P); leave one of them out"
            )
        vars(module)["cell"] = gru_reset_before
    elif proj_size and module.cell is gru:  # not where a subclass has a cell of its own
        vars(module)["cell"] = gru_projected
