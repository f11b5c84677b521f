"""The interface between a run and what it is about: texts, tables to classify, series to forecast.

`runs` keeps the time, the folder, the checkpoints and the processes; a `Job` knows the data, the model and the figures.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchrnn.tools.runs.runfolder import RunFolder

JOBS = {
    "text": "torchrnn.tools.text.job:TextJob",
    "classify": "torchrnn.tools.classify.job:ClassifyJob",
    "forecast": "torchrnn.tools.forecast.job:ForecastJob",
}


@dataclass(frozen=True)
class Measure:
    """A figure of a model: columns train_<column> and validation_<column> of metrics.csv."""

    column: str
    title: str  # "bits per character": in the report, the picture and the last lines
    best: str = "min"  # or "max"; of the first measure of a job alone, which decides what is best
    form: str = ".3f"  # how it is printed

    def told(self, value: float) -> str:
        """The figure as it is printed."""
        return format(value, self.form)

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than the best before (None: there is none)."""
        return than is None or (value < than if self.best == "min" else value > than)


@dataclass(frozen=True)
class Share:
    """Which process of how many this is."""

    rank: int = 0
    world: int = 1

    def rows(self, count: int) -> slice:
        """The rows of this process out of `count`; if there are fewer than processes, the first have one each."""
        return slice(-(-self.rank * count // self.world), -(-(self.rank + 1) * count // self.world))


class Job(ABC):
    """What a run is about.

    Made by `prepare` for a new run, or by `again` to go on with one. What an optimiser step reads follows from the
    settings (their seed, too) and the step's number alone, so that a run goes on exactly after a kill.

    The gradient of a step is that of sums["loss"] / sums["terms"], each added over all processes first: W processes
    with the same batch compute what one computes.
    """

    name: ClassVar[str]  # of the command and in config.toml
    settings_class: ClassVar[type[Settings]]
    measures: tuple[Measure, ...]  # the first decides what is best, and when patience ends
    unit: str  # of the speed: "characters"
    leaves: ClassVar[tuple[str, ...]] = ()  # the names of the files that `finish` may write into the run folder

    settings: Any  # of settings_class

    # the data

    @classmethod
    @abstractmethod
    def prepare(cls, files: Sequence[Path], settings: Any) -> Job:
        """A new run's job: reads and checks everything, raises UsageError."""

    @classmethod
    @abstractmethod
    def again(cls, files: Sequence[Path], settings: Any, data: dict[str, Any]) -> Job:
        """The job of a run that goes on; `data` is what `remember` gave. UsageError if `files` are other data."""

    @abstractmethod
    def remember(self) -> dict[str, Any]:
        """What else than the settings makes the model, and the digest of the data: the table [data] of config.toml.

        Strings, numbers, truth values, and lists of them. A value of type bytes is kept as a file of that name in the
        run folder (named like "tokenizer.json"), and is there again when the run is read.
        """

    @classmethod
    def check(cls, settings: Any, data: dict[str, Any]) -> None:
        """Raise a KeyError, TypeError or ValueError if `data`, read from config.toml, was not what was remembered."""
        if not isinstance(data, dict):
            raise TypeError("data must be a table")

    @abstractmethod
    def understood(self) -> list[str]:
        """The lines printed before training: what it understood of the data, and how they are split."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimiser steps until all training data were read once; what is carried begins anew then."""

    @abstractmethod
    def batch(self, step: int, share: Share) -> Any:
        """This process's rows of the batch of an optimiser step; None if it has none of them."""

    @abstractmethod
    def units(self, batch: Any) -> int:
        """How many of `unit` are in a batch."""

    @abstractmethod
    def validation(self, share: Share) -> Iterator[Any]:
        """This process's batches of the validation part, in order; never None."""

    # the model

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, data: dict[str, Any]) -> nn.Module:
        """A model with fresh weights, from the settings and what `remember` gave alone."""

    @abstractmethod
    def sums(self, model: nn.Module, batch: Any, carried: Any) -> tuple[dict[str, Tensor | float], Any]:
        """What a batch adds to the figures, and the state to carry to the next batch or None.

        "loss" (a sum over terms, with its gradient) and "terms" (of how many) are among the sums; the rest is what
        `measured` needs: numbers, or Tensors of any shape, always the same one by name, which it gets as lists. For
        training and for validation; `model.training` tells which. `carried` is None at the beginning of an epoch and
        of a validation, else what the batch before gave: a Tensor or a tuple of Tensors with the rows of the batch at
        dimension 1, as torch.nn's states. Its gradient ends here.
        """

    @abstractmethod
    def measured(self, sums: dict[str, float]) -> dict[str, float]:
        """The measures by column (others are left out), from the sums over many batches of all processes."""

    # what comes after training

    def finish(self, folder: RunFolder, model: nn.Module) -> list[str]:
        """After training, with the best weights, in one process: the test part, pictures and tables; lines to print.

        It comes again when a run that has ended is resumed and ends again.
        """
        return []

    @classmethod
    @abstractmethod
    def evaluate(cls, model: nn.Module, files: Sequence[Path], settings: Any, data: dict[str, Any]) -> str:
        """`torchrnn evaluate RUN FILE`: the figures of a trained model on other data, as they are printed."""

    @classmethod
    def predict(
        cls, model: nn.Module, file: Path, settings: Any, data: dict[str, Any], out: Path | None, top: int
    ) -> str:
        """`torchrnn predict RUN FILE`: predictions into `out`, or None: as the text that is returned.

        `top` is how many of the likeliest answers are wanted, where there are such.
        """
        raise UsageError(
            f"A run of `torchrnn {cls.name}` predicts no rows of a table. Give one of "
            f"`torchrnn classify` or `torchrnn forecast`."
        )


def job_named(name: str) -> type[Job]:
    """The class of the job with this name in config.toml."""
    if name not in JOBS:
        raise ValueError(f"job must be one of {', '.join(JOBS)}, got {name!r}")
    module, _, attribute = JOBS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
