"""Text as a job: the next token of contiguous streams, with the state carried from chunk to chunk.

Stateful truncated backpropagation through time: the gradient ends at the beginning of the chunk, the state does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.job import Job, Measure, Share
from torchrnn.tools.text import corpus as corpora
from torchrnn.tools.text import tokens
from torchrnn.tools.text.model import CharModel, State, detach
from torchrnn.tools.text.settings import TextSettings

Chunk = tuple[Tensor, Tensor]  # (T, B): tokens, and the token after each


class TextJob(Job):
    """A text, laid out in streams, and the model of its next token."""

    name: ClassVar[str] = "text"
    settings_class: ClassVar = TextSettings

    def __init__(self, corpus: corpora.Corpus, settings: TextSettings, digest: str) -> None:
        self.corpus = corpus
        self.settings = settings
        self.digest = digest
        self.unit = corpus.vocabulary.unit
        self.measures = measures(self.unit)
        self._counts = corpus.vocabulary.counts  # (V,)

    @classmethod
    def prepare(cls, files: Sequence[Path], settings: TextSettings) -> TextJob:
        """A new run's text."""
        text = corpora.read_text(files)
        vocabulary = partial(tokens.learn, settings.tokens, size=settings.vocabulary_size)
        return cls(_corpus(text, settings, vocabulary, files), settings, corpora.digest(text))

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
        return cls(_corpus(text, settings, tokens.known(settings.tokens, data), files), settings, data["sha256"])

    def remember(self) -> dict[str, Any]:
        """The digest of the text, and the vocabulary."""
        return {"sha256": self.digest, **self.corpus.vocabulary.remember()}

    @classmethod
    def check(cls, settings: TextSettings, data: dict[str, Any]) -> None:
        """The digest, and the characters in their order, by which they are found."""
        super().check(settings, data)
        if not isinstance(data["sha256"], str):
            raise TypeError("sha256 must be a string")
        if settings.tokens == "characters":
            characters = data["characters"]
            if not isinstance(characters, str) or not characters or characters != "".join(sorted(set(characters))):
                raise ValueError("characters must be different characters in the order of their code points")

    def understood(self) -> list[str]:
        """How much text there is."""
        corpus = self.corpus
        unknown = f" ({corpus.unknown:,} not in the training text)" if corpus.unknown else ""
        training, validation = (streams.inputs.numel() for streams in (corpus.training, corpus.validation))
        return [
            f"text: {training:,} {self.unit} to train on, {validation:,} to validate on{unknown}, a vocabulary of "
            f"{len(corpus.vocabulary) - 1:,}"
        ]

    @property
    def steps_per_epoch(self) -> int:
        """The chunks of the streams."""
        return len(self.corpus.training)

    def batch(self, step: int, share: Share) -> Chunk:
        """The next chunk of this process's streams."""
        return _columns(self.corpus.training[step % len(self.corpus.training)], share)

    def units(self, batch: Chunk) -> int:
        """Its tokens."""
        return batch[1].numel()

    def validation(self, share: Share) -> Iterator[Chunk]:
        """The validation text in its streams."""
        chunks = (_columns(chunk, share) for chunk in self.corpus.validation)
        return (chunk for chunk in chunks if chunk[0].numel())

    @classmethod
    def build(cls, settings: TextSettings, data: dict[str, Any]) -> CharModel:
        """The model of a run, with fresh weights."""
        return CharModel.of(settings, len(tokens.known(settings.tokens, data)))

    def sums(self, model: nn.Module, batch: Chunk, carried: State) -> tuple[dict[str, Tensor | float], State]:
        """The negative log-likelihood of the tokens that came, in nats, and their characters."""
        return sums(model, batch, carried, self._counts)

    def measured(self, sums: dict[str, float]) -> dict[str, float]:
        """Bits and nats per token, and bits per character."""
        return measured(sums)

    @classmethod
    def evaluate(cls, model: nn.Module, files: Sequence[Path], settings: TextSettings, data: dict[str, Any]) -> str:
        """The figures on another text, read like the validation text."""
        text = corpora.read_text(files)
        vocabulary = tokens.known(settings.tokens, data)
        indices = vocabulary.encode(text)
        if len(indices) < 2:
            raise UsageError(
                f"FILE {files[0]} has {len(indices)} {vocabulary.unit}, where at least 2 are needed. Give more text."
            )
        rows = max(1, min(settings.batch_size, len(indices) // settings.sequence_length))
        counts = vocabulary.counts
        total: dict[str, float] = {}
        carried: State = None
        with torch.inference_mode():
            for chunk in corpora.Streams.of(indices, rows, settings.sequence_length):
                found, carried = sums(model, chunk, carried, counts)
                total = {name: total.get(name, 0.0) + float(value) for name, value in found.items()}
        figures = measured(total)
        told = [f"{figures[measure.column]:.4f} {measure.title}" for measure in measures(vocabulary.unit)]
        told.append(f"perplexity {math.exp(min(figures['nats'], 700)):.4f}")
        unknown = int((indices == tokens.UNKNOWN).sum())
        note = f", {unknown:,} of the text unknown to the model" if unknown else ""
        return f"{', '.join(told)}\n{int(total['terms']):,} {vocabulary.unit}{note}"


def measures(unit: str) -> tuple[Measure, ...]:
    """The figures of a text in these units: bits per token first."""
    one = unit.removesuffix("s")
    token = () if unit == "characters" else (Measure("bpt", f"bits per {one}"),)
    return (*token, Measure("bpc", "bits per character"), Measure("nats", f"nats per {one}"))


def sums(model: nn.Module, batch: Chunk, carried: State, counts: Tensor) -> tuple[dict[str, Tensor | float], State]:
    """What a chunk adds to the figures, and the state after it; `counts` are the characters of each token."""
    inputs, targets = batch  # (T, B), (T, B)
    scores, state = model(inputs, carried)  # (T, B, V)
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores  # a sum over thousands of terms
    loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")
    characters = counts.to(targets.device)[targets].sum()
    return {"loss": loss, "terms": targets.numel(), "characters": characters}, detach(state)


def measured(sums: dict[str, float]) -> dict[str, float]:
    """Bits and nats per token, and bits per character."""
    nats = sums["loss"] / sums["terms"]
    bits = sums["loss"] / math.log(2)
    return {"bpt": bits / sums["terms"], "bpc": bits / max(sums["characters"], 1), "nats": nats}


def _corpus(
    text: str,
    settings: TextSettings,
    vocabulary: tokens.Vocabulary | Callable[[str], tokens.Vocabulary],
    files: Sequence[Path],
) -> corpora.Corpus:
    source = " ".join(map(str, files)) or "Python's documentation"
    sizes = settings.batch_size, settings.sequence_length
    return corpora.prepare(text, settings.validation, *sizes, vocabulary, source)


def _columns(chunk: Chunk, share: Share) -> Chunk:
    rows = share.rows(chunk[0].shape[1])
    return chunk[0][:, rows], chunk[1][:, rows]
