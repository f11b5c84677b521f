"""The settings that every run has, whatever it is about."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torchrnn.tools.runs.errors import UsageError

# what may be given another value with --resume: it decides when the run ends or where it runs, not what it computes
CHANGEABLE = {"epochs", "steps", "patience", "device", "devices", "threads"}

THREADS_PER_CORE = 4  # beyond one they only wait for each other; four still do no harm


def default_threads() -> int:
    """Half of the cores: threads that wait for a core that is busy elsewhere make a training step many times slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def check_threads(threads: int) -> None:
    """Refuse more threads than this machine can be asked for: very many end the process without a word.

    No part of Settings' own checks, for a run is also read where it was not trained.
    """
    cores = os.cpu_count() or 1
    if threads > THREADS_PER_CORE * cores:
        raise UsageError(
            f"--threads must be at most {THREADS_PER_CORE * cores} here ({THREADS_PER_CORE} times {cores} cores), "
            f"got {threads}; {default_threads()} is a good choice."
        )


def option(name: str) -> str:
    """How the command line spells a setting."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Settings:
    """All that decides a run: the same settings, data and machine give the same weights, bit for bit.

    A job adds its own by deriving from this class: fields with defaults of type int, float, str, bool or tuple of str,
    entries in `choices` and `sizes`, and more checks in `__post_init__`, by `_check`.
    """

    # what the checks know: the values of a word, and the numbers that are sizes of something
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "cell": ("lstm", "gru", "rnn"),
        "lr_decay": ("none", "cosine"),
        "precision": ("32", "bf16"),
        "device": ("auto", "cpu", "cuda", "mps"),
    }
    sizes: ClassVar[tuple[str, ...]] = ("hidden_size", "num_layers", "batch_size", "devices")

    cell: str = "lstm"
    hidden_size: int = 256
    num_layers: int = 1
    dropout: float = 0.2
    batch_size: int = 32
    lr: float = 0.004
    lr_decay: str = "none"
    clip: float = 1.0
    epochs: int = 20
    steps: int = 0
    validate_every: int = 200
    patience: int = 10
    seed: int = 0
    precision: str = "32"
    device: str = "auto"
    devices: int = 1
    threads: int = field(default_factory=default_threads)

    def __post_init__(self) -> None:
        for name, known in self.choices.items():
            self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in self.sizes:
            self._check(name, 1 <= getattr(self, name) < 2**31, "at least 1 and below 2^31")
        for name in ("validate_every", "epochs", "threads"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "patience"):
            self._check(name, getattr(self, name) >= 0, "at least 0 (0: no limit)")
        self._check("clip", 0 <= self.clip < math.inf, "a number from 0 (0: no clipping)")
        self._check("lr", 0 < self.lr <= 1000, "a number above 0 and at most 1000")
        self._check("dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to below 2^63")
        self._check("devices", self.devices <= self.batch_size, f"at most --batch-size, {self.batch_size}")

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise UsageError(f"{option(name)} must be {expected}, got {getattr(self, name)}.")

    @classmethod
    def typed(cls, content: dict[str, Any]) -> Settings:
        """Settings from a table, refusing a value of another type than its default's."""
        default, values = cls(), {}
        for name, value in content.items():
            expected = type(getattr(default, name))
            if expected is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
                value = tuple(value)
            if type(value) is not expected:
                raise TypeError(f"{name} must be {expected.__name__}, got {value!r}")
            values[name] = value
        return cls(**values)
