"""The job of `torchrnn forecast`: what runs/ needs to train one, and its back-test after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from torchrnn.tools.forecast import backtest, prediction, results, told
from torchrnn.tools.forecast.data import LINEAR_FILE, Data, check, linear_from, linear_to, roles_of
from torchrnn.tools.forecast.model import Forecaster
from torchrnn.tools.forecast.scores import pinball
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.forecast.windows import Batch, Windows
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.job import Job, Measure, Share
from torchrnn.tools.runs.runfolder import RunFolder

PICTURES = ("forecasts.png", "error_by_step.png", "lag.png")


class ForecastJob(Job):
    """Windows over series, a recurrent forecaster that corrects a linear one, the baselines beside it."""

    name = "forecast"
    settings_class = ForecastSettings
    measures = (
        Measure("loss", "loss of scaled values", form=".4f"),
        Measure("mse", "mean squared error", form=".4f"),
        Measure("mae", "mean absolute error", form=".4f"),
    )
    unit = "windows"
    leaves = (results.BACKTEST, results.STEPS, results.QUANTILES, results.LAGS, *PICTURES)

    def __init__(self, settings: ForecastSettings, data: Data) -> None:
        self.settings: ForecastSettings = settings
        self.data = data
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @classmethod
    def prepare(cls, files: Sequence[Path], settings: ForecastSettings) -> ForecastJob:
        """A new run: the file read and checked, scaled by its training part, the linear baseline fitted."""
        return cls(settings, Data.prepare(_one(files), settings))

    @classmethod
    def again(cls, files: Sequence[Path], settings: ForecastSettings, data: dict[str, Any]) -> ForecastJob:
        """A run that goes on, with the scales and the linear baseline that it had."""
        return cls(settings, Data.again(_one(files), settings, data))

    @classmethod
    def check(cls, settings: ForecastSettings, data: dict[str, Any]) -> None:
        """Roles, scales, step and borders."""
        super().check(settings, data)
        check(settings, data)

    def remember(self) -> dict[str, Any]:
        """Scales, season, borders, and the linear baseline as a file."""
        return self.data.to_dict() | {LINEAR_FILE: linear_to(self.data.linear)}

    def understood(self) -> list[str]:
        """What the file holds, its split, its scales and its windows."""
        return told.told(self.data)

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every training window was read once."""
        return -(-len(self.data.training) // self.settings.batch_size)

    def batch(self, step: int, share: Share) -> Batch | None:
        """The windows of a step: an epoch's order follows from the seed and its number."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self.settings.seed, epoch))
            self._epoch, self._order = epoch, order.permutation(len(self.data.training))
        size = self.settings.batch_size
        chosen = self._order[number * size : (number + 1) * size]
        chosen = chosen[share.rows(len(chosen))]
        return self.data.training.batch(chosen) if len(chosen) else None

    def units(self, batch: Batch) -> int:
        """Windows."""
        return batch.target.shape[1]

    def validation(self, share: Share) -> Iterator[Batch]:
        """This process's validation windows, in order."""
        windows = self.data.validation
        chosen = np.arange(0, len(windows), self.data.validated_every)
        mine = chosen[share.rows(len(chosen))]
        for start in range(0, len(mine), backtest.ROWS):
            yield windows.batch(mine[start : start + backtest.ROWS])

    @classmethod
    def build(cls, settings: ForecastSettings, data: dict[str, Any]) -> nn.Module:
        """The network with fresh weights, on top of the run's linear baseline."""
        model = Forecaster(roles_of(settings, data), settings)
        if settings.linear:
            model.start_from(linear_from(data, settings))
        return model

    def sums(self, model: nn.Module, batch: Batch, carried: Any) -> tuple[dict[str, Tensor | float], Any]:
        """The sum of the losses of all values that came, their number, and the sums of squares and amounts."""
        forecast = model(batch)  # (h, B, K, Q)
        levels = self.settings.levels
        seen = ~batch.target.isnan()
        target = batch.target.nan_to_num(0.0)
        error = (forecast[..., levels.index(0.5) if levels else 0] - target) * seen
        squares, amounts = error.square().sum(), error.abs().sum()
        if levels:
            loss = (pinball(forecast, target, levels).mean(-1) * seen).sum()
        else:
            loss = squares if self.settings.loss == "mse" else amounts
        return {"loss": loss, "terms": seen.sum(), "squares": squares, "amounts": amounts}, None

    def measured(self, sums: dict[str, float]) -> dict[str, float]:
        """The means."""
        return {
            name: sums[of] / sums["terms"] for name, of in (("loss", "loss"), ("mse", "squares"), ("mae", "amounts"))
        }

    def finish(self, folder: RunFolder, model: nn.Module) -> list[str]:
        """The back-test on the test part; its tables and pictures."""
        from torchrnn.tools.forecast.pictures import pictures

        test = self._backtest(model, self.data.test)
        for name, content in (results.tables(test) | pictures(test)).items():
            write_file(folder.root / name, content)
        return [*results.told(test), f"tables and pictures: {folder.root}"]

    def _backtest(self, model: nn.Module, windows: Windows) -> backtest.Backtest:
        training = model.training
        model.eval()
        test = backtest.run(model, windows, self.data.linear, self.data.season, self.settings.levels)
        model.train(training)
        return test

    @classmethod
    def evaluate(cls, model: nn.Module, files: Sequence[Path], settings: ForecastSettings, data: dict[str, Any]) -> str:
        """A back-test over all of another file, or over the test part of the run's own."""
        found = Data.other(_one(files), settings, data)
        own = found.digest == data["digest"]
        windows = found.test if own else found.everything()
        if not len(windows):
            raise UsageError(
                f"FILE {files[0]} has no window: a series needs {settings.history} + {settings.horizon} rows at least."
            )
        lines = [*told.described(found)]
        if own:
            lines.append("this is the file of the training: only its test part is used")
        test = cls(settings, found)._backtest(model, windows)
        return "\n".join([*lines, *results.told(test)])

    @classmethod
    def predict(
        cls, model: nn.Module, file: Path, settings: ForecastSettings, data: dict[str, Any], out: Path | None, top: int
    ) -> str:
        """The next horizon after the end of a file."""
        if top != 1:
            raise UsageError(f"--top is for classes; a forecast has none, got {top}. Leave it out.")
        return prediction.write(prediction.predict(model, file, settings, data), out)


def _one(files: Sequence[Path]) -> Path:
    if len(files) != 1:
        raise UsageError(
            f"torchrnn forecast reads one FILE, got {len(files)}. Put several series into one file, with a column that "
            f"names them: --id."
        )
    return files[0]
