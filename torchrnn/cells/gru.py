"""The gated recurrent unit, with the reset gate after the matrix product, as in torch and cuDNN."""

from typing import Any

from torch import sigmoid

from torchrnn.cell import cell
from torchrnn.layer import Recurrent
from torchrnn.step import RecurrentCell


@cell(gates="r z n", states="h")
def gru(x: Any, h: Any, s: Any, options: Any) -> Any:
    """Reset and update gate, and the new state."""
    r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
    n = options.activation(x.n + r * h.n)
    return options.clip(n + z * (s.h - n))


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

    where $\phi$ is tanh or another ``activation``; with ``cell_clip`` $h_t$ is clipped to ±``cell_clip``.

    Arguments and parameters: see [`Recurrent`][torchrnn.Recurrent]; G = 3 gates in the order r z n. There is no
    projection.

    Shapes: input (T, B, I) and state (L·D, B, H) -> output (T, B, D·H) and the new state.

    Paper: Cho et al., *Learning Phrase Representations using RNN Encoder–Decoder*, arXiv 1406.1078. There the reset
    gate acts on h before the product; here, as in torch and cuDNN, after it.

    Example:
        ```python
        import torch
        from torchrnn import nn

        output, h = nn.GRU(10, 20)(torch.randn(5, 3, 10))
        assert output.shape == (5, 3, 20) and h.shape == (1, 3, 20)
        ```
    """

    cell = gru


class GRUCell(RecurrentCell):
    """One step of a [`GRU`][torchrnn.GRU]; drop-in for ``torch.nn.GRUCell``.

    Arguments and parameters: see [`RecurrentCell`][torchrnn.RecurrentCell]. Shapes: input (B, I) and h (B, H) ->
    h (B, H).

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
