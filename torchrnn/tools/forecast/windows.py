"""Windows over series: which rows each one reads and predicts, and the tensors of a batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrnn.tools.forecast.calendar import circles
from torchrnn.tools.forecast.panel import Panel
from torchrnn.tools.forecast.scaling import Scaling
from torchrnn.tools.forecast.steps import Array


@dataclass(frozen=True)
class Roles:
    """What each column is for; `marked` are those with a channel that says where their values are missing."""

    targets: tuple[str, ...]  # K: predicted; their past is read
    past: tuple[str, ...] = ()  # P: known up to now only
    known: tuple[str, ...] = ()  # N: known for the horizon, too
    calendar: tuple[str, ...] = ()  # features of the time stamp: known, two numbers each
    marked: tuple[str, ...] = ()  # M

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read from the file, the targets first."""
        return (*self.targets, *self.past, *self.known)

    @property
    def future_size(self) -> int:
        """The numbers known of each step of the horizon."""
        marks = sum(name in self.known for name in self.marked)
        return len(self.known) + 2 * len(self.calendar) + marks

    @property
    def input_size(self) -> int:
        """The numbers that the network reads at each step of the past."""
        marks = sum(name not in self.known for name in self.marked)
        return len(self.targets) + len(self.past) + marks + self.future_size


class Batch(NamedTuple):
    """The tensors of B windows: T steps of past, h steps of horizon, K targets; values are scaled."""

    past: Tensor  # (T, B, I − K): what the network reads beside the targets; 0 where missing
    future: Tensor  # (h, B, F): what is known of the horizon
    mask: Tensor | None  # (T, B): False where nothing at all was observed; None if there is no such step
    history: Tensor  # (T, B, K): the targets' past, NaN where missing
    level: Tensor  # (B, K): the last observed value of each target, from which forecasts are measured
    target: Tensor  # (h, B, K): what came, NaN where missing
    rows: Tensor  # (B,): the row of the first step of the horizon


@dataclass(frozen=True)
class Windows:
    """The windows of one part of the split, in order of series and time."""

    panel: Panel
    scaling: Scaling
    roles: Roles
    history: int  # T
    horizon: int  # h
    rows: Array  # (windows,): the row of the first step that each predicts

    @classmethod
    def between(
        cls, panel: Panel, scaling: Scaling, roles: Roles, history: int, horizon: int, begin: int, end: int
    ) -> Windows:
        """All windows whose whole horizon lies from the tick `begin` to before `end`; their past may lie before it.

        Left out are those with nothing to learn from: no target observed in the past, or none in the horizon.
        """
        found = []
        for series in range(len(panel.names)):
            part = panel.rows(series, begin, end)
            earliest = max(part.start, int(panel.starts[series]) + history)
            rows = np.arange(earliest, max(earliest, part.stop - horizon + 1))
            if not len(rows):
                continue
            targets = panel.values[rows[0] - history : rows[-1] + horizon, : len(roles.targets)]
            seen = np.concatenate([[0], np.isfinite(targets).any(1).cumsum()])
            at = rows - rows[0]
            past, future = seen[at + history] - seen[at], seen[at + history + horizon] - seen[at + history]
            found.append(rows[(past > 0) & (future > 0)])
        every = np.concatenate([np.zeros(0, np.int64), *found])
        return cls(panel, scaling, roles, history, horizon, every)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: Array) -> Batch:
        """The tensors of the windows with these numbers."""
        return self.at(self.rows[chosen])

    def at(self, rows: Array, beyond: Array | None = None) -> Batch:
        """The tensors of the windows that predict from these rows on.

        `beyond` (B, h, columns) stands for the rows of the horizon where the file has ended (it holds what is known).
        """
        panel, roles, T, K = self.panel, self.roles, self.history, len(self.roles.targets)
        series = panel.series_of(rows - 1)
        ticks = panel.ticks_before(rows)
        span = np.arange(-T, self.horizon if beyond is None else 0)
        values = np.asarray(panel.values[rows[:, None] + span])  # (B, T + h, columns)
        if beyond is not None:
            values = np.concatenate([values, beyond], 1)
        values = self.scaling.apply(values, self.scaling.rows_for([panel.names[one] for one in series]))
        times = panel.step.times(ticks[:, None] + np.arange(-T, self.horizon), panel.origin)
        missing = ~np.isfinite(values)
        full = np.where(missing, 0, values)
        marks = missing.astype(np.float32)
        known = self._channels(full, marks, roles.known)
        known = np.concatenate([known, circles(times, roles.calendar)], -1)
        own = self._channels(full[:, :T], marks[:, :T], (*roles.targets, *roles.past))[..., K:]
        observed = np.any(~missing[:, :T, : K + len(roles.past)], -1)  # (B, T)
        history = values[:, :T, :K]
        return Batch(
            past=_by_time(np.concatenate([own, known[:, :T]], -1)),
            future=_by_time(known[:, T:]),
            mask=None if observed.all() else _by_time(np.asarray(observed)),
            history=_by_time(history),
            level=torch.from_numpy(last_observed(history)),
            target=_by_time(values[:, T:, :K]),
            rows=torch.from_numpy(rows),
        )

    def _channels(self, full: Array, marks: Array, names: tuple[str, ...]) -> Array:
        """The values of columns, and for the marked ones whether each is missing."""
        columns = self.panel.indices(names)
        marked = self.panel.indices([name for name in names if name in self.roles.marked])
        return np.concatenate([full[..., columns], marks[..., marked]], -1)

    def sentence(self) -> str:
        """The first windows in words: which rows they read and predict, counted from 1 as in the file."""
        if not len(self):
            return "no window fits"
        told = [self._told(number) for number in range(min(2, len(self)))]
        return "; ".join(told)

    def _told(self, number: int) -> str:
        row = int(self.rows[number])
        series = int(self.panel.series_of(np.array([row]))[0])
        start = int(self.panel.starts[series])
        tick = int(self.panel.first[series]) + row - start
        read = self._span(row - start - self.history, self.history, tick - self.history)
        predicted = self._span(row - start, self.horizon, tick)
        name = self.panel.names[series]
        of = f" of series {name!r}" if name else ""
        return f"window {number + 1} reads {read}{of} and predicts {predicted}"

    def _span(self, row: int, count: int, tick: int) -> str:
        times = f"{self.panel.show(tick)} … {self.panel.show(tick + count - 1)}"
        if count == 1:
            return f"row {row + 1:,} ({self.panel.show(tick)})"
        return f"rows {row + 1:,}–{row + count:,} ({times})"


def last_observed(values: Array) -> Array:
    """The last value of (B, T, K) that is not NaN; 0, the mean of the training part, where all are: (B, K)."""
    seen = np.isfinite(values)
    last = values.shape[1] - 1 - seen[:, ::-1].argmax(1)  # (B, K)
    found = np.take_along_axis(values, last[:, None], 1)[:, 0]
    return np.where(seen.any(1), found, 0).astype(np.float32)


def _by_time(values: Array) -> Tensor:
    """(B, T, …) to (T, B, …)."""
    return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1)))
