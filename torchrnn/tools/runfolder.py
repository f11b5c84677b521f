"""The run folder: what is in it, and how it is begun, opened again and cleared.

The last checkpoint is the truth about a run. Everything else in the folder is derived from it and is written again
when a run is resumed, so no kill can leave them telling different stories.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torchrnn.tools import checkpoint
from torchrnn.tools.errors import UsageError, explain_disk
from torchrnn.tools.files import PARTIAL, remove_folder, write_file
from torchrnn.tools.settings import Config

COLUMNS = ("step", "epoch", "train_bpc", "validation_bpc")


@dataclass
class Record:
    """How far a run has come: its step, one row for every validation, the best of them, and how many since."""

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: float = math.inf
    stale: int = 0

    def add(self, epoch: float, train: float, validation: float) -> bool:
        """Add the row of a validation; say whether it is the best so far."""
        self.rows.append(dict(zip(COLUMNS, (self.step, epoch, train, validation), strict=True)))
        improved = validation < self.best
        self.best = min(self.best, validation)
        self.stale = 0 if improved else self.stale + 1
        return improved

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and lists, for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The command, the settings and the vocabulary."""
        return self.root / "config.toml"

    @property
    def model(self) -> Path:
        """The weights at the best validation."""
        return self.root / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """One row for every validation."""
        return self.root / "metrics.csv"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.root / "loss.png"

    @property
    def tensorboard(self) -> Path:
        """The logs for TensorBoard."""
        return self.root / "tensorboard"

    def check_new(self, overwrite: bool) -> None:
        """Refuse a folder that holds another run (unless it is to be overwritten) or anything else."""
        try:
            if self.root.is_file():
                raise UsageError(f"--run {self.root} must be a folder, and it is a file. Choose another.")
            if not self.root.is_dir() or not any(self.root.iterdir()):
                return
        except OSError as error:
            raise _unusable(self.root, error) from error
        if not self.config.is_file():
            raise UsageError(
                f"--run {self.root} is not a run folder and not empty. Nothing in it was touched. Choose a folder that "
                f"is new or empty."
            )
        if not overwrite:
            raise UsageError(
                f"--run {self.root} already holds a run. Go on with it: --resume. Put a new one in its place: "
                f"--overwrite. Or choose another folder: --run."
            )

    def begin(self, config: Config) -> None:
        """Make the folder, clear away an earlier run, write config.toml."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.root, error) from error
        with explain_disk(self.root):
            for path in checkpoint.found(self.root):
                remove_folder(path)
            remove_folder(self.tensorboard)
            for path in (self.model, self.metrics, self.plot):
                path.unlink(missing_ok=True)
            for path in self.root.glob(f"*{PARTIAL}"):
                remove_folder(path) if path.is_dir() else path.unlink()
        write_file(self.config, config.to_toml().encode())

    def read_config(self, meant_for: str) -> Config:
        """The run's config.toml; `meant_for` is the argument that named the folder."""
        if not self.config.is_file():
            raise UsageError(
                f"{meant_for} {self.root} is not a run folder: it has no config.toml. Expected a folder that "
                f"`torchrnn train` wrote."
            )
        return Config.read(self.config)

    def write_metrics(self, record: Record) -> None:
        """Write metrics.csv; it has no column of times, so that equal runs have equal files."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in record.rows:
            writer.writerow([row["step"], *(f"{row[name]:.6f}" for name in COLUMNS[1:])])
        write_file(self.metrics, text.getvalue().encode())


def _unusable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--run {path} cannot be used: {error.strerror}. Expected a folder in which you may write.")
