"""What a run shows while it works: a line for every validation, a progress bar on a terminal, TensorBoard logs."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.tensorboard import SummaryWriter

from torchrnn.tools.runs.errors import explain_disk
from torchrnn.tools.runs.files import remove_folder
from torchrnn.tools.runs.runfolder import Record, RunFolder


class Report(lightning.Callback):
    """Shows a run on `console`; a context manager, so that the bar and the logs are closed whatever happens."""

    def __init__(self, console: Console, folder: RunFolder, record: Record, deadline: float | None) -> None:
        self.console = console
        self._board: SummaryWriter | None = None
        self.folder = folder
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
        self._round_step, self._round_begun = record.step, self.begun

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
        done = pl_module.record.step / pl_module.total_steps
        if self.deadline:
            done = max(done, (time.monotonic() - self.begun) / (self.deadline - self.begun))
        self._bar.update(self._task, completed=done, step=f"{pl_module.record.step:,}")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the time of the round's steps."""
        streams = pl_module.corpus.training
        characters = (pl_module.record.step - self._round_step) * streams.sequence_length * streams.inputs.shape[1]
        self._speed = characters / max(time.monotonic() - self._round_begun, 1e-9)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """One line, and the same row for TensorBoard."""
        row = pl_module.record.rows[-1]
        best = " · best" if pl_module.record.stale == 0 else ""
        speed = f"{self._speed:,.0f} characters/s"
        self.console.print(
            f"step {row['step']:>6,} · epoch {row['epoch']:5.2f} · bits per character: train {row['train_bpc']:.3f}, "
            f"validation {row['validation_bpc']:.3f} · {speed}{best}",
            highlight=False,
            soft_wrap=True,
        )
        self._bar.update(self._task, speed=speed)
        with explain_disk(self.folder.tensorboard):
            self._log(pl_module.record.rows)
        self._round_step, self._round_begun = pl_module.record.step, time.monotonic()

    def _log(self, rows: list[dict[str, float]]) -> None:
        if self._board is None:
            # written anew from the checkpoint's rows: what a killed run logged after it would be there twice
            remove_folder(self.folder.tensorboard)
            self._board = SummaryWriter(str(self.folder.tensorboard))
        else:
            rows = rows[-1:]
        for row in rows:
            self._board.add_scalar("bits_per_character/train", row["train_bpc"], int(row["step"]))
            self._board.add_scalar("bits_per_character/validation", row["validation_bpc"], int(row["step"]))
        self._board.flush()
