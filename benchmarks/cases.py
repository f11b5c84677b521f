"""What is timed: named shapes, each one layer or cell with its input."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


class Case(NamedTuple):
    """A recurrent module and the shape of what it is called with.

    T time (0: a cell, one step without a time dimension), B batch, I input, H hidden, L layers.
    """

    name: str
    kind: str  # the class: RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell
    T: int
    B: int
    I: int
    H: int
    L: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    packed: bool = False  # lengths evenly from T down to T / 10
    states: bool = False  # a layer is called with its initial states; a cell always is

    @property
    def is_cell(self) -> bool:
        """Whether it is one step of a cell."""
        return self.kind.endswith("Cell")

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the class is constructed with."""
        if self.is_cell:
            return (self.I, self.H), {}
        options = {"num_layers": self.L, "batch_first": self.batch_first, "bidirectional": self.bidirectional}
        return (self.I, self.H), options

    def inputs(self, generator: torch.Generator) -> tuple[Any, ...]:
        """What it is called with: a sequence, or a cell's step with its states."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def draw_states(*shape: int) -> Any:
            return (draw(*shape), draw(*shape)) if self.kind.startswith("LSTM") else draw(*shape)

        if self.is_cell:
            return draw(self.B, self.I), draw_states(self.B, self.H)
        x = draw(self.B, self.T, self.I) if self.batch_first else draw(self.T, self.B, self.I)
        sequence = self._pack(x) if self.packed else x
        if not self.states:
            return (sequence,)
        return sequence, draw_states(self.L * (2 if self.bidirectional else 1), self.B, self.H)

    def _pack(self, x: Tensor) -> PackedSequence:
        lengths = torch.linspace(self.T, max(1, self.T // 10), self.B).long()
        return pack_padded_sequence(x, lengths, batch_first=self.batch_first)


_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"T": 5, "B": 1, "I": 4, "H": 4},
    "onestep": {"T": 1, "B": 1, "I": 128, "H": 128, "states": True},  # as a loop calls a layer
    "small": {"T": 10, "B": 8, "I": 16, "H": 32},
    "medium": {"T": 50, "B": 32, "I": 64, "H": 128},
    "batchfirst": {"T": 20, "B": 16, "I": 32, "H": 64, "batch_first": True},
    "bi2": {"T": 20, "B": 16, "I": 32, "H": 64, "L": 2, "bidirectional": True},
    "packed": {"T": 20, "B": 16, "I": 32, "H": 64, "packed": True},
}
_LAYERS = ("RNN", "LSTM", "GRU")

#: The grid that is timed by default: each layer in seven shapes, each cell at two batch sizes.
CASES: tuple[Case, ...] = (
    *(Case(f"{k.lower()}-{name}", k, **shape) for name, shape in _SHAPES.items() for k in _LAYERS),
    *(Case(f"{k.lower()}cell-b{B}", f"{k}Cell", T=0, B=B, I=128, H=128) for B in (1, 32) for k in _LAYERS),
)


def select(pattern: str) -> list[Case]:
    """The cases whose name matches a pattern such as ``lstm-*``; several are separated by commas.

    Raises:
        ValueError: none matches.
    """
    chosen = [c for c in CASES if any(fnmatch(c.name, p.strip()) for p in pattern.split(","))]
    if not chosen:
        raise ValueError(f"no case matches {pattern!r}; there are {', '.join(c.name for c in CASES)}")
    return chosen
