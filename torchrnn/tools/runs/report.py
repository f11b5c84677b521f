"""What a run shows while it works: a line for every validation, a progress bar on a terminal, TensorBoard logs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.tensorboard import SummaryWriter

from torchrnn.tools.runs.errors import explain_disk
from torchrnn.tools.runs.files import remove_folder

if TYPE_CHECKING:
    from torchrnn.tools.runs.training import Training


class Report(lightning.Callback):
    """Shows a run on `console`; a context manager, so that the bar and the logs are closed whatever happens."""

    def __init__(self, console: Console, training: Training, deadline: float | None) -> None:
        self.console = console
        self.training = training
        self._board: SummaryWriter | None = None
        self.deadline = deadline
        self.begun = time.monotonic()
        self._bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, step="", speed="")
        self._round_begun = self.begun

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._bar.stop()
        try:
            if self._board:
                self._board.close()
        except OSError:
            if error is None:  # else the disk is full here too, and `error` is what is to be told
                raise

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar: by steps or by time, whichever ends first."""
        step = self.training.record.step
        done = step / self.training.total_steps
        if self.deadline:
            done = max(done, (time.monotonic() - self.begun) / (self.deadline - self.begun))
        self._bar.update(self._task, completed=done, step=f"{step:,}")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the time of the round's steps."""
        units = self.training.units * self.training.share.world
        self._speed = units / max(time.monotonic() - self._round_begun, 1e-9)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """One line, and the same row for TensorBoard."""
        record, (first, *others) = self.training.record, self.training.job.measures
        row = record.rows[-1]
        speed = f"{self._speed:,.0f} {self.training.job.unit}/s"
        parts = [
            f"step {row['step']:>6,}",
            f"epoch {row['epoch']:5.2f}",
            f"{first.title}: train {first.told(row[f'train_{first.column}'])}, "
            f"validation {first.told(row[f'validation_{first.column}'])}",
            *(f"{measure.title} {measure.told(row[f'validation_{measure.column}'])}" for measure in others),
            speed,
            *(["best"] if record.stale == 0 else []),
        ]
        self.console.print(" · ".join(parts), highlight=False, soft_wrap=True)
        self._bar.update(self._task, speed=speed)
        folder = self.training.folder.tensorboard
        with explain_disk(folder):
            self._log(folder, record.rows)
        self._round_begun = time.monotonic()

    def _log(self, folder: Path, rows: list[dict[str, float]]) -> None:
        board = self._board
        if board is None:
            # written anew from the checkpoint's rows: what a killed run logged after it would be there twice
            remove_folder(folder)
            board = self._board = SummaryWriter(str(folder))
        else:
            rows = rows[-1:]
        for row in rows:
            for measure in self.training.job.measures:
                for part in ("train", "validation"):
                    tag = f"{measure.title.replace(' ', '_')}/{part}"
                    board.add_scalar(tag, row[f"{part}_{measure.column}"], int(row["step"]))
        board.flush()
