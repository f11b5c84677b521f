"""One or many series as one table of numbers, the rows of a series together and a step of time apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrnn.tools.forecast.steps import Array, Step


@dataclass(frozen=True)
class Panel:
    """Series on one grid of time: row r of series s stands at the tick `first[s] + r`.

    Tick 0 is the earliest time of all series; a missing value is NaN.
    """

    names: list[str]  # (S,) of the series; one, "", where there is no id column
    starts: Array  # (S + 1,): the rows of series s are starts[s]:starts[s + 1]
    first: Array  # (S,): its first tick
    step: Step
    origin: int  # the time of tick 0
    columns: Sequence[str]
    values: Array  # (rows, columns) float32; a file on the disk where it is large

    @classmethod
    def of(cls, values: Array, columns: Sequence[str], step: Step | None = None, origin: int = 0) -> Panel:
        """One series from an array (rows, columns), by default of hours."""
        rows = np.array([0, len(values)])
        step = step or Step("microseconds", 3_600_000_000)
        return cls([""], rows, np.zeros(1, np.int64), step, origin, list(columns), values.astype(np.float32))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def lengths(self) -> Array:
        """The rows of each series."""  # (S,)
        return np.diff(self.starts)

    @property
    def end(self) -> int:
        """The tick after the last of all series."""
        return int((self.first + self.lengths).max())

    def series_of(self, rows: Array) -> Array:
        """The series to which each row belongs."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def ticks_before(self, rows: Array) -> Array:
        """The tick of each row, told by the row before it: so of the row after a series' last one, too."""
        series = self.series_of(rows - 1)
        return self.first[series] + rows - self.starts[series]

    def rows(self, series: int, begin: int, end: int) -> slice:
        """The rows of a series at the ticks from `begin` to before `end`."""
        length = int(self.lengths[series])
        low, high = (int(min(max(tick - self.first[series], 0), length)) for tick in (begin, end))
        return slice(int(self.starts[series]) + low, int(self.starts[series]) + high)

    def show(self, tick: int) -> str:
        """The time of a tick, to read."""
        return self.step.show(int(self.step.times(np.array([tick]), self.origin)[0]))

    def indices(self, names: Sequence[str]) -> list[int]:
        """Where columns stand in `values`."""
        return [list(self.columns).index(name) for name in names]
