"""The step of time of a series: what it is, and which stamps lie on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MICRO = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
MONTHS = {1: (28, 31), 3: (89, 92), 12: (365, 366)}  # how many days so many months may have
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Step:
    """The distance of two rows: `size` microseconds, months, or (for a time column of whole numbers) numbers."""

    unit: str  # "microseconds", "months" or "numbers"
    size: int
    month_end: bool = False  # months, and every stamp is the last day of its month

    @classmethod
    def guess(cls, times: Array, gaps: Array, is_number: bool) -> Step:
        """The step of most of the `gaps` between the `times` of neighbouring rows.

        ```python
        import numpy as np
        from torchrnn.tools.forecast.steps import Step

        hours = np.arange(5) * 3_600_000_000
        assert str(Step.guess(hours, np.diff(hours), is_number=False)) == "1 hour"
        ```
        """
        sizes, counts = np.unique(gaps, return_counts=True)
        common = int(sizes[counts.argmax()])
        if is_number:
            return cls("numbers", common)
        days = sizes / MICRO["day"]
        month_end = _is_month_end(times)
        same_day = len(np.unique(_within_month(times, False))) == 1
        for months, (least, most) in MONTHS.items():
            if (
                (month_end or same_day)
                and (days % 1 == 0).all()
                and days.min() >= least
                and common <= most * MICRO["day"]
            ):
                return cls("months", months, month_end)
        return cls("microseconds", common)

    def __str__(self) -> str:
        if self.unit == "numbers":
            return str(self.size)
        if self.unit == "months":
            return f"{self.size} month{'s' * (self.size > 1)}"
        for name, size in MICRO.items():
            if self.size % size == 0:
                count = self.size // size
                return f"{count} {name}{'s' * (count > 1)}"
        return f"{self.size:,} microseconds"

    def ticks(self, times: Array, origin: int) -> Array:
        """How many steps each time is after `origin`; not a whole number where it lies between two."""
        if self.unit != "months":
            return (times - origin) / self.size
        month, day = _months(times), _within_month(times, self.month_end)
        first = np.array([origin])
        whole = (month - _months(first)) / self.size
        return whole + np.where(day == _within_month(first, self.month_end), 0.0, 0.5 / self.size)

    def times(self, ticks: Array, origin: int) -> Array:
        """The time so many steps after `origin`."""
        if self.unit != "months":
            return origin + np.asarray(ticks) * self.size
        first = np.array([origin])
        month = _months(first) + np.asarray(ticks) * self.size
        if self.month_end:
            return _month_start(month + 1) - MICRO["day"] + first % MICRO["day"]
        return _month_start(month) + _within_month(first, False)

    def season(self) -> int:
        """The season that a step suggests: a day of hours or minutes, a week of days, a year of months; else 1."""
        if self.unit == "months":
            return max(1, 12 // self.size)
        if self.unit == "numbers":
            return 1
        if self.size >= MICRO["day"]:
            return 7 if self.size == MICRO["day"] else 52 if self.size == 7 * MICRO["day"] else 1
        return MICRO["day"] // self.size if MICRO["day"] % self.size == 0 else 1

    def show(self, time: int) -> str:
        """A time as a person writes it, to the precision that the step needs."""
        if self.unit == "numbers":
            return str(int(time))
        text = str(np.datetime64(int(time), "us")).replace("T", " ")
        if time % MICRO["day"] == 0 and (self.unit == "months" or self.size % MICRO["day"] == 0):
            return text[:10]
        text = text[:-7] if time % MICRO["second"] == 0 else text
        return text[:-3] if time % MICRO["minute"] == 0 else text


def _months(times: Array) -> Array:
    return times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)


def _month_start(months: Array) -> Array:
    return months.astype("datetime64[M]").astype("datetime64[us]").astype(np.int64)


def _within_month(times: Array, from_end: bool) -> Array:
    return times - _month_start(_months(times) + 1 if from_end else _months(times))


def _is_month_end(times: Array) -> bool:
    return bool((_months(times + MICRO["day"]) != _months(times)).all())
