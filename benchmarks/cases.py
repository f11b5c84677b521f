"""What a case is: a recurrent module, the shape of what it is called with, and the work that it does."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
RESETS = 0.03  # of the steps
HOLES = 0.25


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
    bias: bool = True
    relu: bool = False  # an RNN's nonlinearity in place of tanh
    packed: bool = False  # a PackedSequence, lengths evenly from T down to T / 10
    lengths: bool = False  # a padded batch and its lengths, the same ones in mixed order
    states: bool = False  # a layer is called with its initial states; a cell always is
    steps: int = 1  # calls in a Python loop, each with the states of the one before
    by_hand: str = ""  # what a user of torch.nn writes by hand: lengths, holes, left, resets, all or stream

    @property
    def is_cell(self) -> bool:
        """Whether it is one step of a cell."""
        return self.kind.endswith("Cell")

    @property
    def cell(self) -> str:
        """RNN, LSTM or GRU."""
        return self.kind.removesuffix("Cell")

    @property
    def group(self) -> str:
        """What it is averaged with."""
        return f"{self.kind} {self.by_hand}".rstrip()

    @property
    def modes(self) -> tuple[str, ...]:
        """A stream is for inference."""
        return ("inference",) if self.by_hand == "stream" else ("inference", "training")

    @property
    def D(self) -> int:
        """Directions."""
        return 2 if self.bidirectional else 1

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the class is constructed with."""
        options: dict[str, Any] = {}
        if not self.is_cell:
            options = {"num_layers": self.L, "batch_first": self.batch_first, "bidirectional": self.bidirectional}
        if not self.bias:
            options["bias"] = False
        if self.relu:
            options["nonlinearity"] = "relu"
        return (self.I, self.H), options

    def inputs(self, generator: torch.Generator) -> tuple[Any, ...]:
        """What it is called with: a sequence, or a cell's step with its states; a loop's steps come first in x."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def draw_states(*shape: int) -> Any:
            return (draw(*shape), draw(*shape)) if self.cell == "LSTM" else draw(*shape)

        loop = (self.steps,) if self.steps > 1 else ()
        if self.is_cell:
            return draw(*loop, self.B, self.I), draw_states(self.B, self.H)
        sizes = (self.B, self.T) if self.batch_first else (self.T, self.B)
        x = draw(*loop, *sizes, self.I)
        sequence = self._pack(x) if self.packed else x
        if not self.states:
            return (sequence,)
        return sequence, draw_states(self.L * self.D, self.B, self.H)

    def row_lengths(self) -> Tensor:
        """How many steps of each row count: (B,); lengths evenly from T to T / 10, in mixed order unless packed."""
        if self.by_hand == "holes":
            return self.flags().sum(0)
        if not self.packed and not self.lengths and self.by_hand != "left":
            return torch.full((self.B,), max(1, self.T))
        lengths = torch.linspace(self.T, max(1, self.T // 10), self.B).long()
        return lengths if self.packed else lengths[torch.randperm(self.B, generator=torch.Generator().manual_seed(2))]

    def flags(self) -> Tensor:
        """The mask, or where a sequence begins anew: (T, B)."""
        if self.by_hand == "left":
            return torch.arange(self.T).unsqueeze(1) >= self.T - self.row_lengths()
        drawn = torch.rand(self.T, self.B, generator=torch.Generator().manual_seed(3))
        return drawn < RESETS if self.by_hand == "resets" else drawn >= HOLES

    def flops(self, training: bool) -> float:
        """Floating-point operations of the matrix products: two a weight and step, thrice that in training."""
        H, D = self.H, self.D
        inputs = [self.I] + [D * H] * (self.L - 1)
        per_step = sum(2 * GATES[self.cell] * H * (I + H) * D for I in inputs)
        return per_step * int(self.row_lengths().sum()) * self.steps * (3 if training else 1)

    def _pack(self, x: Tensor) -> PackedSequence:
        return pack_padded_sequence(x, self.row_lengths(), batch_first=self.batch_first)
