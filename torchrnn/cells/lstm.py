"""Long short-term memory."""

from typing import Any

from torch import sigmoid

from torchrnn.cell import cell
from torchrnn.layer import Recurrent
from torchrnn.step import RecurrentCell


@cell(gates="i f g o", states="h c")
def lstm(x: Any, h: Any, s: Any, options: Any) -> Any:
    """Input, forget, cell and output gate."""
    i, f, g, o = sigmoid(x.i + h.i), sigmoid(x.f + h.f), options.activation(x.g + h.g), sigmoid(x.o + h.o)
    c = options.clip(f * s.c + i * g)
    return o * options.activation(c), c


class LSTM(Recurrent):
    r"""Long short-term memory over a sequence; drop-in for ``torch.nn.LSTM``.

    $$
    \begin{aligned}
    i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
    f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
    g_t &= \phi(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
    o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
    c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
    h_t &= o_t \odot \phi(c_t)
    \end{aligned}
    $$

    where $\phi$ is tanh or another ``activation``; with ``cell_clip`` $c_t$ is clipped to ±``cell_clip`` before it is
    used; with ``proj_size`` $h_t = W_{hr} (o_t \odot \phi(c_t))$. Arguments and parameters: see
    [`Recurrent`][torchrnn.Recurrent]; G = 4 gates in the order i f g o.

    Shapes: input (T, B, I) and states h (L·D, B, H), c (L·D, B, H) -> output (T, B, D·H) and new states; with
    ``proj_size`` P the output is (T, B, D·P) and h is (L·D, B, P).

    Paper: Hochreiter and Schmidhuber, *Long Short-Term Memory*, Neural Computation 1997; the forget gate: Gers,
    Schmidhuber and Cummins, 2000; the projection: Sak, Senior and Beaufays, arXiv 1402.1128.

    Example:
        ```python
        import torch
        from torchrnn import nn

        lstm = nn.LSTM(10, 20, num_layers=2)
        output, (h, c) = lstm(torch.randn(5, 3, 10))  # zero states
        assert output.shape == (5, 3, 20) and h.shape == c.shape == (2, 3, 20)
        ```
    """

    cell = lstm


class LSTMCell(RecurrentCell):
    """One step of an [`LSTM`][torchrnn.LSTM]; drop-in for ``torch.nn.LSTMCell``.

    Arguments and parameters: see [`RecurrentCell`][torchrnn.RecurrentCell]. Shapes: input (B, I) and (h, c), each
    (B, H) -> (h, c), each (B, H).

    Example:
        ```python
        import torch
        from torchrnn import nn

        cell = nn.LSTMCell(10, 20)
        h, c = torch.zeros(3, 20), torch.zeros(3, 20)
        for x in torch.randn(5, 3, 10):
            h, c = cell(x, (h, c))
        assert h.shape == c.shape == (3, 20)
        ```
    """

    cell = lstm
