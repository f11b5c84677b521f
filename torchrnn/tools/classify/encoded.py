"""Sequences as numbers, one after another without padding, and batches of them with padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # the class of a step of padding, which cross_entropy leaves out


class Batch(NamedTuple):
    """Some sequences side by side."""

    values: Tensor  # (T, B) token numbers, or (T, B, I) numbers
    lengths: Tensor  # (B,)
    classes: Tensor  # (B,); tagging: (T, B), IGNORED in the padding


@dataclass
class Encoded:
    """R sequences of N steps together."""

    flat: np.ndarray  # (N,) or (N, I)
    lengths: np.ndarray  # (R,)
    classes: np.ndarray  # (R,); tagging: (N,)
    tagging: bool

    def __post_init__(self) -> None:
        self.starts = np.cumsum(self.lengths) - self.lengths  # (R,)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.flat.nbytes + self.lengths.nbytes * 2 + self.classes.nbytes

    def take(self, rows: np.ndarray) -> Encoded:
        """These sequences, in this order."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        steps = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[rows] - (ends - lengths), lengths)
        return Encoded(self.flat[steps], lengths, self.classes[steps if self.tagging else rows], self.tagging)

    def batch(self) -> Batch:
        """All sequences, padded with zeros to the longest."""
        T = int(self.lengths.max(initial=0))
        valid = np.arange(T)[:, None] < self.lengths  # (T, B)
        places = np.where(valid, self.starts + np.arange(T)[:, None], 0)  # (T, B)
        values = self.flat[places]
        values[~valid] = 0
        classes = np.where(valid, self.classes[places], IGNORED) if self.tagging else self.classes
        tokens = torch.from_numpy(values).long() if values.ndim == 2 else torch.from_numpy(values)
        return Batch(tokens, torch.from_numpy(self.lengths), torch.from_numpy(classes).long())


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The sequences of several, one after another."""
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        np.concatenate([part.flat for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.classes for part in parts]),
        parts[0].tagging,
    )
