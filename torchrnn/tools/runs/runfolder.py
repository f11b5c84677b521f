"""The run folder: what is in it, and how it is begun, opened again and cleared.

The last checkpoint is the truth about a run. Everything else in the folder is derived from it and is written again
when a run is resumed, so no kill can leave them telling different stories.

A run begins with its first checkpoint; before, nothing of it is in the folder and nothing of an earlier run is touched.
That checkpoint and what goes with it are written to a folder inside, `.torchrnn.new.partial`, which then gets the name
`.torchrnn.new`: from that one instant on the new run is the one that counts, and whoever opens the folder next settles
what is left to do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torchrnn.tools.runs import checkpoint
from torchrnn.tools.runs.config import Config
from torchrnn.tools.runs.errors import ToolError, UsageError, explain_disk
from torchrnn.tools.runs.files import PARTIAL, remove_folder, sync_folder, write_file
from torchrnn.tools.runs.lock import only_process

LOCK, NEW = ".torchrnn.lock", ".torchrnn.new"


@dataclass
class RunFolder:
    """The files of one run."""

    root: Path
    beginning: Config | None = None  # of a new run, until its first checkpoint
    going_on: Config | None = None  # of a run that is resumed: what config.toml is to be, once its checkpoint is read

    @property
    def config(self) -> Path:
        """The command, the settings and what is remembered of the data."""
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
            if not self.root.is_dir() or {path.name for path in self.root.iterdir()} <= {LOCK, NEW + PARTIAL}:
                return
        except OSError as error:
            raise _unusable(self.root, error) from error
        if not self.is_run:
            raise UsageError(
                f"--run {self.root} is not a run folder and not empty. Nothing in it was touched. Choose a folder that "
                f"is new or empty."
            )
        if not overwrite:
            raise UsageError(
                f"--run {self.root} already holds a run. Go on with it: --resume. Put a new one in its place: "
                f"--overwrite. Or choose another folder: --run."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be, and keep other processes from training in it; nothing is left if nothing came."""
        with ExitStack() as stack:
            try:
                made = not self.root.exists()
                self.root.mkdir(parents=True, exist_ok=True)
                if made:
                    stack.callback(_remove_if_empty, self.root)
                stack.enter_context(only_process(self.root / LOCK))
                stack.callback(shutil.rmtree, self.root / (NEW + PARTIAL), ignore_errors=True)
            except OSError as error:
                raise _unusable(self.root, error) from error
            self.settle()
            yield

    def release(self) -> None:
        """Clear away what a process that was killed has left; not if another has the lock."""
        if self.root.is_dir():
            with suppress(ToolError), self.locked():
                pass
            _remove_if_empty(self.root)

    def save(self, write: Callable[[RunFolder], None]) -> None:
        """Let `write` write a checkpoint and what goes with it; with its first one a new run takes its place."""
        if self.beginning is None:
            write(self)
            return
        partial = RunFolder(self.root / (NEW + PARTIAL))
        with explain_disk(partial.root):
            partial.root.mkdir()
        write_file(partial.config, self.beginning.to_bytes())
        for name, data in self.beginning.kept.items():
            write_file(partial.root / name, data)
        write(partial)
        with explain_disk(partial.root):
            os.rename(partial.root, self.root / NEW)
        self.beginning = None
        self.settle()

    def settle(self) -> None:
        """Bring what `save` wrote to its place, clear away what no longer counts; a kill at any step loses nothing."""
        with explain_disk(self.root):
            remove_folder(self.root / (NEW + PARTIAL))
            new = RunFolder(self.root / NEW)
            if not new.root.is_dir():
                return
            sync_folder(self.root)  # its name is on the disk before anything of the earlier run is removed
            begun = checkpoint.found(new.root)
            if begun:  # it is brought last, so till then all checkpoints here are those of the earlier run
                for path in (*checkpoint.found(self.root), self.tensorboard):
                    remove_folder(path)
                self.plot.unlink(missing_ok=True)
                if new.config.exists():  # else the one here is the new run's already
                    self._remove_leaves()
                for path in self.root.glob(f"*{PARTIAL}"):
                    remove_folder(path) if path.is_dir() else path.unlink()
            others = sorted(path for path in new.root.iterdir() if path.is_file() and path != new.config)
            for path in (new.config, *others):
                if path.exists():
                    os.replace(path, self.root / path.name)
            for path in begun:
                os.rename(path, self.root / path.name)
            sync_folder(self.root)
            remove_folder(new.root)

    def _remove_leaves(self) -> None:
        """Remove what the job of the earlier run has written beside what every run has."""
        try:
            earlier = Config.read(self.config, self.root)
        except ToolError:
            return  # a damaged one; its files do no harm
        for name in (*earlier.kept, *earlier.job_class.leaves):
            (self.root / name).unlink(missing_ok=True)

    @property
    def is_run(self) -> bool:
        """Whether there is a run in the folder."""
        return self.whereabouts(self.config).is_file()

    def whereabouts(self, path: Path) -> Path:
        """Where a file of the run is to be read: `path`, or on its way there, if a kill left it on its way."""
        coming = self.root / NEW / path.name
        return coming if coming.is_file() else path

    def read_config(self, meant_for: str) -> Config:
        """The run's config.toml; `meant_for` is the argument that named the folder."""
        try:
            found = self.is_run
        except OSError as error:
            raise UsageError(
                f"{meant_for} {self.root} is not a run folder that can be opened: {error.strerror}. Name one that you "
                f"may read."
            ) from error
        if not found:
            raise UsageError(
                f"{meant_for} {self.root} is not a run folder: it has no config.toml. Expected a folder that "
                f"torchrnn wrote. A run that ended before its first checkpoint left none: start it again."
            )
        return Config.read(self.whereabouts(self.config), self.root / NEW, self.root)


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


def _unusable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--run {path} cannot be used: {error.strerror}. Expected a folder in which you may write: name another."
    )
