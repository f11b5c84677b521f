"""The settings of `torchrnn classify`: which columns, which part trains, which model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.settings import Settings


@dataclass(frozen=True)
class ClassifySettings(Settings):
    """All that decides a run of `torchrnn classify`; the defaults are the command line's."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        **Settings.choices,
        "tokens": ("characters", "words", "bytes"),
        "pool": ("last", "mean", "max"),
        "class_weights": ("none", "balanced"),
    }
    sizes: ClassVar[tuple[str, ...]] = (*Settings.sizes, "embedding_size", "vocabulary_size", "memory")

    cell: str = "gru"
    hidden_size: int = 128
    batch_size: int = 64
    lr: float = 0.003
    lr_decay: str = "cosine"
    epochs: int = 10

    label: str = ""
    text: str = ""
    tokens: str = "characters"
    steps_columns: tuple[str, ...] = ()
    sequence: str = ""
    time: str = ""
    tagging: bool = False
    skip_incomplete: bool = False
    vocabulary_size: int = 20_000
    split: str = ""
    validation: float = 0.1
    test: float = 0.1
    validation_file: str = ""
    test_file: str = ""
    embedding_size: int = 64
    bidirectional: bool = False
    pool: str = "last"
    class_weights: str = "none"
    memory: int = 1024  # MiB of encoded sequences to hold; more is read again in every epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validation", "test"):
            self._check(name, 0 <= getattr(self, name) < 1, "a fraction from 0 to below 1")
        self._check("validation", self.validation + self.test < 1, "with --test below 1 together")

    def check_columns(self) -> None:
        """UsageError unless the options say what the sequences and the labels are."""
        if not self.label:
            raise UsageError("--label is needed: the column that holds what is to be predicted.")
        if bool(self.text) == bool(self.steps_columns):
            raise UsageError(
                "Expected --text COLUMN (texts or tokens) or --steps-columns A,B,C (numbers at each step), one of the "
                f"two, got {'both' if self.text else 'neither'}."
            )
        if self.sequence and self.text:
            raise UsageError("--sequence groups rows of numbers: give it with --steps-columns, not with --text.")
        if self.time and not self.sequence:
            raise UsageError("--time orders the rows of a sequence: give it with --sequence.")
        inputs = self.steps_columns or (self.text,)
        for place, name in enumerate(inputs):
            if name in inputs[:place]:
                raise UsageError(f"--steps-columns names {name!r} twice. Name each column once.")
        for option, name in (("--sequence", self.sequence), ("--time", self.time), ("--split", self.split)):
            if name and name == self.label:
                raise UsageError(f"{option} and --label are both {name!r}: they must be two columns.")
        if self.label in inputs:
            raise UsageError(
                f"--label {self.label!r} is also read by the model, which would then only copy it. Name another column."
            )
        if self.split and (self.validation_file or self.test_file):
            raise UsageError(
                "--split says which row is in which part, and --validation-file, --test-file do too: give one."
            )
