"""Text as a job: the next character of contiguous streams, with the state carried from chunk to chunk.

Stateful truncated backpropagation through time: the gradient ends at the beginning of the chunk, the state does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.job import Job, Measure, Share
from torchrnn.tools.text import corpus as corpora
from torchrnn.tools.text.model import CharModel, State, detach
from torchrnn.tools.text.settings import TextSettings

Chunk = tuple[Tensor, Tensor]  # (T, B): characters, and the character after each


class TextJob(Job):
    """A text, laid out in streams, and the model of its next character."""

    name: ClassVar[str] = "text"
    settings_class: ClassVar = TextSettings
    measures: ClassVar = (Measure("bpc", "bits per character"), Measure("nats", "nats per character"))
    unit: ClassVar[str] = "characters"

    def __init__(self, corpus: corpora.Corpus, settings: TextSettings, digest: str) -> None:
        self.corpus = corpus
        self.settings = settings
        self.digest = digest

    @classmethod
    def prepare(cls, files: Sequence[Path], settings: TextSettings) -> TextJob:
        """A new run's text."""
        text = corpora.read_text(files)
        corpus = corpora.prepare(text, settings.validation, settings.batch_size, settings.sequence_length)
        return cls(corpus, settings, corpora.digest(text))

    @classmethod
    def again(cls, files: Sequence[Path], settings: TextSettings, data: dict[str, Any]) -> TextJob:
        """The same text again."""
        text = corpora.read_text(files)
        if corpora.digest(text) != data["sha256"]:
            raise UsageError(
                f"--resume goes on with the text of the run, and this is another: "
                f"{' '.join(map(str, files)) or 'the documentation of this Python'} has changed. "
                f"Name the FILE with that text, or start a new run with --overwrite."
            )
        corpus = corpora.prepare(text, settings.validation, settings.batch_size, settings.sequence_length)
        return cls(corpus, settings, data["sha256"])

    def remember(self) -> dict[str, Any]:
        """The digest of the text, and the vocabulary."""
        return {"sha256": self.digest, "characters": self.corpus.vocabulary.characters}

    def understood(self) -> list[str]:
        """How much text there is."""
        corpus = self.corpus
        unknown = f" ({corpus.unknown:,} not in the training text)" if corpus.unknown else ""
        return [
            f"text: {corpus.training.inputs.numel():,} characters to train on, "
            f"{corpus.validation.inputs.numel():,} to validate on{unknown}, "
            f"{len(corpus.vocabulary.characters):,} different"
        ]

    @property
    def steps_per_epoch(self) -> int:
        """The chunks of the streams."""
        return len(self.corpus.training)

    def batch(self, step: int, share: Share) -> Chunk:
        """The next chunk of this process's streams."""
        return _columns(self.corpus.training[step % len(self.corpus.training)], share)

    def units(self, batch: Chunk) -> int:
        """Its characters."""
        return batch[1].numel()

    def validation(self, share: Share) -> Iterator[Chunk]:
        """The validation text in its streams."""
        chunks = (_columns(chunk, share) for chunk in self.corpus.validation)
        return (chunk for chunk in chunks if chunk[0].numel())

    @classmethod
    def build(cls, settings: TextSettings, data: dict[str, Any]) -> CharModel:
        """The model of a run, with fresh weights."""
        return CharModel.of(settings, len(corpora.Vocabulary(data["characters"])))

    def sums(self, model: nn.Module, batch: Chunk, carried: State) -> tuple[dict[str, Tensor | float], State]:
        """The negative log-likelihood of the characters that came, in nats."""
        return sums(model, batch, carried)

    def measured(self, sums: dict[str, float]) -> dict[str, float]:
        """Bits and nats per character."""
        return measured(sums)

    @classmethod
    def evaluate(cls, model: nn.Module, files: Sequence[Path], settings: TextSettings, data: dict[str, Any]) -> str:
        """The figures on another text, read like the validation text."""
        text = corpora.read_text(files)
        if len(text) < 2:
            raise UsageError(f"FILE {files[0]} holds {len(text)} character, where at least 2 are needed.")
        indices = corpora.Vocabulary(data["characters"]).encode(text)
        rows = max(1, min(settings.batch_size, len(text) // settings.sequence_length))
        total: dict[str, float] = {}
        carried: State = None
        with torch.inference_mode():
            for chunk in corpora.Streams.of(indices, rows, settings.sequence_length):
                found, carried = sums(model, chunk, carried)
                total = {name: total.get(name, 0.0) + float(value) for name, value in found.items()}
        figures = measured(total)
        unknown = int((indices == corpora.UNKNOWN).sum())
        return (
            f"{figures['nats']:.4f} nats per character, {figures['bpc']:.4f} bits per character, perplexity "
            f"{math.exp(min(figures['nats'], 700)):.4f}\n{int(total['terms']):,} characters, {unknown:,} of the text "
            f"unknown to the model"
        )


def sums(model: nn.Module, batch: Chunk, carried: State) -> tuple[dict[str, Tensor | float], State]:
    """What a chunk adds to the figures, and the state after it."""
    characters, targets = batch  # (T, B), (T, B)
    scores, state = model(characters, carried)  # (T, B, V)
    loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")
    return {"loss": loss, "terms": targets.numel()}, detach(state)


def measured(sums: dict[str, float]) -> dict[str, float]:
    """Bits and nats per character."""
    nats = sums["loss"] / sums["terms"]
    return {"bpc": nats / math.log(2), "nats": nats}


def _columns(chunk: Chunk, share: Share) -> Chunk:
    rows = share.rows(chunk[0].shape[1])
    return chunk[0][:, rows], chunk[1][:, rows]
