"""Text as a recurrent network reads it: files, and the streams of a batch.

A batch row is one contiguous stream: chunk after chunk continues where the row ended, so the state that the network
carried out of one chunk is the right state for the next.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from torchrnn.tools.runs.encoding import check_file, decode, unreadable
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.text.tokens import UNKNOWN, Vocabulary, learn


def read_text(files: Sequence[Path]) -> str:
    """The text of `files` one after another, or Python's own documentation when there are none."""
    if not files:
        return python_documentation()
    return "\n".join(_read_file(path) for path in files)


def python_documentation() -> str:
    """The English text that `help()` shows for Python's keywords and topics; every CPython carries it."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UsageError(
            "FILE is needed: with no FILE the text is the documentation in pydoc_data.topics, and this Python was "
            "installed without it. Name one or more UTF-8 text files: torchrnn text book.txt."
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def _read_file(path: Path) -> str:
    check_file(path, "FILE", "a UTF-8 text file")
    try:
        text = decode(path, path.read_bytes(), "FILE")
    except OSError as error:
        raise unreadable(path, "FILE", "a UTF-8 text file", error) from error
    if not text.strip():
        raise UsageError(f"FILE {path} is empty: there is nothing to read. Name another.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def digest(text: str) -> str:
    """The SHA-256 by which a resumed run knows its text again."""
    return hashlib.sha256(text.encode()).hexdigest()


def split(text: str, fraction: float) -> tuple[str, str]:
    """The text to train on, and the last `fraction` of it, contiguous and never trained on, to validate."""
    cut = len(text) - round(len(text) * fraction)
    return text[:cut], text[cut:]


@dataclass(frozen=True)
class Streams:
    """A text laid out as B contiguous streams, cut in time into chunks of at most T characters."""

    inputs: Tensor  # (N, B): the characters; column b continues where column b-1 ends
    targets: Tensor  # (N, B): the character after each
    sequence_length: int

    @classmethod
    def of(cls, indices: Tensor, batch_size: int, sequence_length: int) -> Streams:
        """Lay out `indices` (characters,); fewer than `batch_size` characters at the end are left over."""
        length = (len(indices) - 1) // batch_size
        used = length * batch_size
        inputs = indices[:used].view(batch_size, length).t().contiguous()  # (N, B)
        targets = indices[1 : used + 1].view(batch_size, length).t().contiguous()  # (N, B)
        return cls(inputs, targets, sequence_length)

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.sequence_length)

    def __getitem__(self, chunk: int) -> tuple[Tensor, Tensor]:
        times = slice(chunk * self.sequence_length, (chunk + 1) * self.sequence_length)
        return self.inputs[times], self.targets[times]  # (T, B), (T, B)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[chunk] for chunk in range(len(self)))


@dataclass(frozen=True)
class Corpus:
    """A text made ready: its vocabulary, and the streams to train on and to validate on."""

    vocabulary: Vocabulary
    training: Streams
    validation: Streams
    unknown: int  # validation characters that the training text lacks


def prepare(
    text: str,
    fraction: float,
    batch_size: int,
    sequence_length: int,
    vocabulary: Vocabulary | Callable[[str], Vocabulary] | None = None,
    source: str = "this",
) -> Corpus:
    """Split `text` and lay out its streams; without a vocabulary it learns that of the training text's characters.

    `source` is what the messages call the files that it came from.
    """
    training, validation = split(text, fraction)
    if not isinstance(vocabulary, Vocabulary):
        vocabulary = vocabulary(training) if vocabulary else learn("characters", training, 0)
    indices, others = vocabulary.encode(training), vocabulary.encode(validation)
    needed = batch_size * sequence_length + 1
    if len(indices) < needed:
        raise UsageError(
            f"The text is too short: {len(indices):,} {vocabulary.unit} to train on, where {batch_size} streams of "
            f"{sequence_length} need at least {needed:,}. Give more text than {source}, or lower "
            f"--batch-size or --sequence-length."
        )
    if len(others) < 2:
        raise UsageError(
            f"--validation {fraction} of {len(text):,} characters leaves {len(others)} to validate on, where at "
            f"least 2 are needed. Give more text than {source}, or a larger --validation."
        )
    rows = max(1, min(batch_size, len(others) // sequence_length))
    return Corpus(
        vocabulary,
        Streams.of(indices, batch_size, sequence_length),
        Streams.of(others, rows, sequence_length),
        int((others == UNKNOWN).sum()),
    )
