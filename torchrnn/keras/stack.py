"""Layers on top of each other, of any kinds and sizes, each taking the output of the one below."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchrnn.layer import Recurrent


class Stack(nn.Sequential):
    """Recurrent layers in a row, as in a ``keras.Sequential``: the output of one is the input of the next.

    What `from_keras` makes of layers that are no single one of ours.

    Args:
        *layers: layers of ours, all but the last with ``return_sequences=True``.

    Raises:
        TypeError: one is no layer of ours.
        ValueError: there is none, or one before the last gives its last output alone.

    Example:
        ```python
        import torch
        from torchrnn import GRU, LSTM
        from torchrnn.keras import Stack

        model = Stack(LSTM(3, 5, bidirectional=True), GRU(10, 4, return_sequences=False))
        assert model(torch.randn(7, 2, 3)).shape == (2, 4)
        ```
    """

    def __init__(self, *layers: Recurrent) -> None:
        if not layers:
            raise ValueError("a Stack needs at least one layer, got none")
        for k, layer in enumerate(layers):
            if not isinstance(layer, Recurrent):
                raise TypeError(f"layers of a Stack must be torchrnn layers, got {type(layer).__name__} as layer {k}")
            if not layer.return_sequences and k < len(layers) - 1:
                raise ValueError(
                    f"layer {k} of a Stack has return_sequences=False, and layer {k + 1} needs its whole sequence"
                )
        super().__init__(*layers)

    def forward(self, input: Any, **steps: Any) -> Any:
        """Run the layers, each from its own initial state.

        Args:
            input: a sequence in any form that the first layer takes.
            **steps: ``lengths``, ``mask`` or ``reset``, for every layer.

        Returns:
            The output of the last layer alone, without states; with ``return_sequences=False`` its last output.
        """
        for layer in self:
            input = layer(input, **steps)
            if isinstance(input, tuple):
                input = input[0]
        return input
