"""The settings of a run about text."""

from dataclasses import dataclass
from typing import ClassVar

from torchrnn.tools.runs.settings import Settings


@dataclass(frozen=True)
class TextSettings(Settings):
    """What a text model has beside the settings of every run."""

    sizes: ClassVar[tuple[str, ...]] = (*Settings.sizes, "embedding_size", "sequence_length")

    choices: ClassVar[dict[str, tuple[str, ...]]] = {**Settings.choices, "tokens": ("characters", "bytes", "bpe")}

    tokens: str = "characters"
    vocabulary_size: int = 2048
    embedding_size: int = 64
    sequence_length: int = 64
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("vocabulary_size", 257 <= self.vocabulary_size < 2**31, "at least 257 (the 256 bytes and a piece)")
        self._check("validation", 0 < self.validation < 1, "a fraction between 0 and 1")
