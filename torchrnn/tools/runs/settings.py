"""The settings of a run, and config.toml, where a run keeps them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchrnn.tools.runs.errors import ToolError, UsageError

# what may be given another value with --resume: it decides when the run ends or where it runs, not what it computes
CHANGEABLE = {"epochs", "steps", "patience", "device", "threads"}

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
    """All that decides a run: the same settings, text and machine give the same weights, bit for bit."""

    cell: str = "lstm"
    embedding_size: int = 64
    hidden_size: int = 256
    num_layers: int = 1
    dropout: float = 0.2
    batch_size: int = 32
    sequence_length: int = 64
    lr: float = 0.004
    clip: float = 1.0
    epochs: int = 20
    steps: int = 0
    validation: float = 0.1
    validate_every: int = 200
    patience: int = 10
    seed: int = 0
    device: str = "auto"
    threads: int = field(default_factory=default_threads)

    def __post_init__(self) -> None:
        choices = {"cell": ("lstm", "gru", "rnn"), "device": ("auto", "cpu", "cuda", "mps")}
        for name, known in choices.items():
            self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in ("embedding_size", "hidden_size", "num_layers", "batch_size", "sequence_length"):
            self._check(name, 1 <= getattr(self, name) < 2**31, "at least 1 and below 2^31")
        for name in ("validate_every", "epochs", "threads"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "patience"):
            self._check(name, getattr(self, name) >= 0, "at least 0 (0: no limit)")
        self._check("clip", 0 <= self.clip < math.inf, "a number from 0 (0: no clipping)")
        self._check("lr", 0 < self.lr < math.inf, "a number above 0")
        self._check("dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        self._check("validation", 0 < self.validation < 1, "a fraction between 0 and 1")
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to below 2^63")

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise UsageError(f"{option(name)} must be {expected}, got {getattr(self, name)}.")


@dataclass
class Config:
    """What config.toml holds: how the run was started, on which text, with which settings and vocabulary."""

    command: str
    files: list[str]
    text_sha256: str
    characters: str
    settings: Settings
    versions: str = ""
    resumed: list[str] = field(default_factory=list)

    def to_toml(self) -> str:
        """The text of config.toml."""
        lines = ["# written by `torchrnn train`; `torchrnn train --resume` and `torchrnn sample` read it"]
        content = asdict(self)
        settings = content.pop("settings")
        lines += [f"{name} = {_toml(value)}" for name, value in content.items()]
        lines += ["", "[settings]"]
        lines += [f"{name} = {_toml(value)}" for name, value in settings.items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read config.toml, or say what is wrong with it."""
        try:
            content = _parse(path.read_bytes().decode())
            return cls(settings=_typed(content.pop("settings")), **content)
        except OSError as error:
            raise ToolError(f"{path} could not be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError, AttributeError, ToolError) as error:
            raise ToolError(
                f"{path} is damaged or was changed by hand: {error}. Bring it back from a copy, or start the run again "
                f"with --overwrite."
            ) from error


def _parse(toml: str) -> dict[str, Any]:
    """The tables of a TOML text as `to_toml` writes it: one `name = value` a line, the values spelled as in JSON.

    Python 3.10 has no TOML reader; this one asks nothing of the user's Python.
    """
    tables: dict[str, Any] = {}
    table = tables
    for line in toml.split("\n"):
        if line.startswith("["):
            table = tables.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            table[name] = json.loads(value)
    return tables


def _typed(content: dict[str, Any]) -> Settings:
    """Settings from a table, refusing a value of another type than its default's."""
    default = Settings()
    for name, value in content.items():
        expected = type(getattr(default, name))
        if type(value) is not expected:
            raise TypeError(f"{name} must be {expected.__name__}, got {value!r}")
    return Settings(**content)


def _toml(value: Any) -> str:
    """A string, number, truth value or list in TOML; JSON's spelling is TOML's, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
