"""The split in time: moments that part training, validation and test, the same for all series."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrnn.tools.forecast.panel import Panel
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.forecast.stamps import FORMATS, parsed
from torchrnn.tools.runs.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Ticks: training is [0, train), validation [train, validation), test [validation, test); what follows is unused.

    One series must not tell another its future, so the borders are moments and not numbers of rows of each series.
    """

    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, panel: Panel, settings: ForecastSettings) -> Split:
        """The borders that --train, --validation and --test ask for."""
        end = panel.end
        if settings.train:
            train = _size(panel, settings.train, "--train", end, 0, False)
            validation = train + _size(panel, settings.validation, "--validation", end, train, False)
            test = validation + _size(panel, settings.test, "--test", end, validation, False)
            if test > end:
                raise UsageError(
                    f"--train {settings.train} --validation {settings.validation} --test {settings.test} need {test:,} "
                    f"steps of time, and the file has {end:,}. Ask for less."
                )
        else:
            test = end
            validation = end - _size(panel, settings.test, "--test", end, end, True)
            train = validation - _size(panel, settings.validation, "--validation", end, validation, True)
        split = cls(train, validation, test)
        if not 0 < train < validation < test:
            raise UsageError(
                f"--validation {settings.validation} --test {settings.test} leave {max(train, 0):,} of {end:,} "
                f"steps of time to train on, {validation - train:,} to validate on and {test - validation:,} to test "
                f"on, and each must have some, in this order. Give other borders."
            )
        return split

    def parts(self) -> dict[str, tuple[int, int]]:
        """The first tick of each part, and the one after its last."""
        return {
            "training": (0, self.train),
            "validation": (self.train, self.validation),
            "test": (self.validation, self.test),
        }


def _size(panel: Panel, text: str, option: str, end: int, border: int, back: bool) -> int:
    """How many steps a fraction, a number of steps or a date asks for.

    A date is where the part begins if the parts are told from the end (`back`), and where it ends otherwise.
    """
    if re.fullmatch(r"\d{1,18}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"\d*\.\d+|\d+\.\d*", text, re.ASCII):
        fraction = float(text)
        if not 0 < fraction < 1:
            raise UsageError(f"{option} must be a fraction between 0 and 1, got {text}.")
        return round(end * fraction)
    tick = _tick(panel, text, option)
    return border - tick if back else tick - border


def _tick(panel: Panel, text: str, option: str) -> int:
    known = [format for format in FORMATS if not format.endswith("z")]
    dates = [parsed(pl.Series([text]), format).cast(pl.Int64)[0] for format in known]
    found = [date for date in dates if date is not None]
    if not found or panel.step.unit == "numbers":
        date = "" if panel.step.unit == "numbers" else ", or a date such as 2017-06-26"
        raise UsageError(
            f"{option} must be a fraction such as 0.2, a number of steps of time such as 2880{date}, got {text!r}."
        )
    # the first tick that is not before the date
    ticks = panel.step.ticks(np.array([int(found[0])]), panel.origin)
    return int(np.ceil(ticks[0]))
