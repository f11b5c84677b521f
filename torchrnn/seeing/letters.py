"""The sizes of a layer and of a call by their letters, which shapes are told in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.utils.rnn import PackedSequence

from torchrnn import parameters
from torchrnn.seeing.table import Size

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent

Dim = tuple[str, Size]
Whole = tuple[str, int]


class Letters:
    """The sizes of a layer by their letters."""

    def __init__(self, layer: Recurrent) -> None:
        self.sizes = parameters.hidden_sizes(layer)
        self.uneven = isinstance(layer.hidden_size, list)
        self.P = layer.proj_size
        self.concat = layer.merge_mode == "concat"
        self.I: Whole = ("I", layer.input_size)
        self.G = len(layer.cell.gates)
        self.L: Whole = ("L", layer.num_layers)
        self.D: Whole = ("D", 2 if layer.bidirectional else 1)
        self.LD: Whole = ("L·D", self.L[1] * self.D[1])

    def H(self, k: int) -> Whole:
        """Of a state of layer k."""
        return (f"H{k}" if self.uneven else "H", self.sizes[k])

    def GH(self, k: int) -> Whole:
        """Rows of a weight of layer k."""
        letter, size = self.H(k)
        return f"G·{letter}", self.G * size

    def P_or_H(self, k: int) -> Whole:
        """Of the first state of layer k, one direction's output."""
        return ("P", self.P) if self.P else self.H(k)

    def F(self, k: int) -> Whole:
        """Features of the output of layer k, both directions joined."""
        letter, size = self.P_or_H(k)
        return (f"D·{letter}", self.D[1] * size) if self.concat else (letter, size)


class Given:
    """A call's arguments, and the dimensions of its input."""

    def __init__(self, layer: Recurrent, arguments: dict[str, Any]) -> None:
        self.arguments, self.input = arguments, arguments["input"]
        x, self.ragged = self.input, True
        if isinstance(x, PackedSequence):
            self.kind, self.T, batch = "packed", len(x.batch_sizes), [int(x.batch_sizes[0])]
        elif isinstance(x, (list, tuple)):
            self.kind, self.T, batch = "list", max(len(one) for one in x), [len(x)]
        elif x.is_nested:
            self.kind, batch = "nested", [x.size(0)]
            sizes = x.offsets().diff() if x.lengths() is None else x.lengths()
            self.T = int(sizes.max()) if sizes.numel() else 0
        else:
            self.kind, self.ragged = "dense", False
            self.batch_first = layer.batch_first and x.dim() > 2
            self.T = x.size(-2 if self.batch_first else 0)
            batch = list(x.shape[:-2] if self.batch_first else x.shape[1:-1])
        letters = ["B"] if len(batch) == 1 else [f"B{k + 1}" for k in range(len(batch))]
        self.batch: list[Whole] = list(zip(letters, batch, strict=True))
        # whether each row's last output stands at the last step
        self.even = not self.ragged and not any(self.says(name) for name in ("lengths", "mask", "reset"))

    def says(self, name: str) -> bool:
        """Whether an argument was given."""
        return self.arguments.get(name) is not None

    def sequence(self, features: Dim) -> tuple[Dim, ...]:
        """The dimensions of an input or output that is one Tensor."""
        time: Dim = ("j", "j") if self.kind == "nested" else ("T", self.T)
        first = self.kind == "nested" or (self.kind == "dense" and self.batch_first)
        return (*self.batch, time, features) if first else (time, *self.batch, features)
