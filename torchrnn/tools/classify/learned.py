"""What the training part teaches before training: the tokens, the scale of numbers, the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from torchrnn.tools.classify import split, tokens
from torchrnn.tools.classify.reading import Block
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.classify.survey import Source
from torchrnn.tools.classify.tokens import Vocabulary
from torchrnn.tools.runs.errors import ToolError, UsageError
from torchrnn.tools.tables.table import quoted


@dataclass
class Learned:
    """What makes numbers of a sequence and of a label, and labels of numbers."""

    labels: list[str]
    vocabulary: Vocabulary | None = None
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (I,)
    deviation: np.ndarray = field(default_factory=lambda: np.ones(0))  # (I,)

    def encode(self, flat: Any) -> np.ndarray:
        """Tokens to their numbers (N,), numbers to (x − mean) / deviation (N, I)."""
        if self.vocabulary:
            return self.vocabulary.encode(flat)
        return ((flat - self.mean) / self.deviation).astype(np.float32)

    def classes(self, labels: pl.Series) -> np.ndarray:
        """The number of each label, −1 for one that the training part lacks."""
        numbers = np.arange(len(self.labels), dtype=np.int32)
        found = labels.replace_strict(self.labels, numbers, default=-1, return_dtype=pl.Int32)
        return found.to_numpy().astype(np.int32)

    def to_dict(self) -> dict[str, Any]:
        """For config.toml."""
        data: dict[str, Any] = {"labels": self.labels}
        if self.vocabulary:
            return data | {"vocabulary": self.vocabulary.tokens, "single": self.vocabulary.single}
        return data | {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Learned:
        """From config.toml, or ToolError if it was changed."""
        try:
            return cls.read(data)
        except (KeyError, TypeError, ValueError) as error:
            raise ToolError(
                f"config.toml of the run is damaged or was changed by hand: [data] {error}. Bring it back from a copy, "
                f"or start the run again with --overwrite."
            ) from error

    @classmethod
    def read(cls, data: dict[str, Any]) -> Learned:
        """What `to_dict` gave; KeyError, TypeError or ValueError if it is something else."""
        labels = _strings(data["labels"])
        if "vocabulary" in data:
            tokens, single = _strings(data["vocabulary"]), bool(data["single"])
            if single and max(map(len, tokens)) > 1:
                raise ValueError("vocabulary must hold single characters")
            return cls(labels, Vocabulary(tokens, single))
        mean, deviation = (np.array(data[name], dtype=float) for name in ("mean", "deviation"))
        if mean.ndim != 1 or mean.shape != deviation.shape or not np.isfinite([mean, deviation]).all():
            raise ValueError("mean and deviation must be lists of as many finite numbers")
        if not (deviation > 0).all():
            raise ValueError("deviation must hold numbers above 0")
        return cls(labels, None, mean, deviation)


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise TypeError(f"must hold lists of strings, got {quoted(value)}")
    if len(set(value)) < len(value):
        raise ValueError("must hold lists without a string twice")
    return value


@dataclass
class Counts:
    """What was counted on the way, by part."""

    labels: list[Counter[str]] = field(default_factory=lambda: [Counter() for _ in split.PARTS])
    tokens: list[Counter[str]] = field(default_factory=lambda: [Counter() for _ in split.PARTS])
    first: dict[str, str] = field(default_factory=dict)  # where each label was met first
    values: int = 0
    mean: Any = 0.0  # (I,)
    squares: Any = 0.0  # (I,) of the distances from the mean

    def add(self, values: np.ndarray) -> None:
        """Numbers (n, I) of the training part: the mean and the squares of two samples give those of both."""
        if not len(values):
            return
        mean = values.mean(0)
        total = self.values + len(values)
        away = mean - self.mean
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + away**2 * (self.values * len(values) / total)
        self.mean = self.mean + away * (len(values) / total)
        self.values = total

    def unknown(self, vocabulary: Vocabulary, part: int) -> Counter[str]:
        """The tokens of a part that the vocabulary lacks."""
        known = set(vocabulary.tokens)
        return Counter({token: n for token, n in self.tokens[part].items() if token not in known})


def learn(found: Sequence[Source], settings: ClassifySettings) -> tuple[Learned, Counts]:
    """Read all blocks once more, now that each sequence has a part."""
    counts = Counts()
    for source in found:
        for index in range(source.reader.block_count):
            _count(counts, source, source.reader.block(index), index)
    labels = sorted(counts.labels[split.TRAINING])
    _check_labels(found[0], counts, labels)
    reader = found[0].reader
    if reader.numeric:
        mean = counts.mean
        deviation = np.sqrt(counts.squares / counts.values)
        # a column that never changes, or only by rounding, is not blown up
        deviation[deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)] = 1.0
        return Learned(labels, None, mean, deviation), counts
    single = not reader.lists and settings.tokens != "words"
    return Learned(labels, Vocabulary.of(counts.tokens[split.TRAINING], single, settings.vocabulary_size)), counts


def _count(counts: Counts, source: Source, block: Block, index: int) -> None:
    parts = source.parts[source.starts[index] : source.starts[index + 1]]
    of_steps = np.repeat(parts, block.lengths)
    of_labels = of_steps if source.reader.tagging else parts
    for part in range(len(split.PARTS)):
        here = np.flatnonzero(of_labels == part)
        labels = tokens.count(block.labels.gather(here))
        counts.labels[part].update(labels)
        for label in labels:
            if label not in counts.first:
                place = here[(block.labels.gather(here) == label).arg_max() or 0]
                row = np.searchsorted(np.cumsum(block.lengths), place, side="right") if source.reader.tagging else place
                counts.first[label] = source.table.where(int(block.rows[row]))
        if not source.reader.numeric:
            counts.tokens[part].update(tokens.count(tokens.only(block.flat, of_steps == part)))
        elif part == split.TRAINING:
            counts.add(tokens.only(block.flat, of_steps == part))


def _check_labels(source: Source, counts: Counts, labels: list[str]) -> None:
    name, path = source.reader.settings.label, source.table.path
    for part in (split.VALIDATION, split.TEST):
        strange = sorted(set(counts.labels[part]) - set(labels))
        if strange:
            raise UsageError(
                f"{counts.first[strange[0]]}, column {name!r}: the label {quoted(strange[0])} is in the "
                f"{split.PARTS[part]} part and not in the training part, so it cannot be learned (labels like this: "
                f"{len(strange)}). Put rows with it into the training part, or leave it out."
            )
    if len(labels) < 2:
        raise UsageError(
            f"--label {name!r}: {path}: expected at least two different labels in the training part, found only "
            f"{quoted(labels[0])}. Name another column, or add rows of another label."
        )
