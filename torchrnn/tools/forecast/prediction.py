"""The next horizon after the end of a file: what `torchrnn predict` writes for a run of `torchrnn forecast`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchrnn.tools.forecast import backtest
from torchrnn.tools.forecast.data import Data
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.forecast.steps import Array
from torchrnn.tools.runs.errors import UsageError

COLUMNS = ("time", "series", "target", "forecast")


@torch.no_grad()
def predict(model: nn.Module, path: Path, settings: ForecastSettings, data: dict[str, Any]) -> str:
    """CSV: a row for each series, target and step of the horizon, with the time, the forecast and its quantiles.

    The horizon of a series begins after its last row with an observed target. What is known of it (--known) is read from
    the rows after that one.
    """
    found = Data.other(path, settings, data)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"q{level:g}" for level in settings.levels)])
    rows = _first_rows(found, settings)
    for start in range(0, len(rows), backtest.ROWS):
        writer.writerows(_told(model, found, rows[start : start + backtest.ROWS], settings))
    return text.getvalue()


def _first_rows(found: Data, settings: ForecastSettings) -> Array:
    """The row after the last observed target of each series."""
    panel, K, rows = found.panel, len(found.roles.targets), []
    for series, name in enumerate(panel.names):
        part = panel.values[panel.starts[series] : panel.starts[series + 1], :K]
        seen = np.flatnonzero(np.isfinite(part).any(1))
        of = f"series {name!r}" if name else "the series"
        if not len(seen) or seen[-1] + 1 < settings.history:
            count = int(seen[-1]) + 1 if len(seen) else 0
            raise UsageError(
                f"FILE {found.path}: {of} has {count:,} rows up to its last observed target, and the run reads "
                f"{settings.history} (--history). Give a file with more of its past."
            )
        rows.append(int(panel.starts[series]) + int(seen[-1]) + 1)
    return np.array(rows)


def _beyond(found: Data, rows: Array, settings: ForecastSettings) -> Array:
    """What the file says of the horizons that begin at these rows: (B, h, columns), NaN where nothing."""
    panel, known = found.panel, found.panel.indices(found.roles.known)
    values = np.full((len(rows), settings.horizon, len(panel.columns)), np.nan, np.float32)
    for place, row in enumerate(rows):
        series = int(panel.series_of(np.array([row - 1]))[0])
        there = panel.values[row : min(row + settings.horizon, int(panel.starts[series + 1]))]
        values[place, : len(there), known] = there[:, known].T
        unmarked = [name for name in found.roles.known if name not in found.roles.marked]
        wanted = values[place][:, panel.indices(unmarked if len(there) == settings.horizon else found.roles.known)]
        if np.isnan(wanted).any():
            step = int(np.isnan(wanted).any(1).argmax())
            tick = int(panel.first[series]) + int(row) - int(panel.starts[series]) + step
            of = f" of series {panel.names[series]!r}" if panel.names[series] else ""
            raise UsageError(
                f"FILE {found.path}: {', '.join(found.roles.known)} must be known for the {settings.horizon} steps after "
                f"the last observed target{of}, and at {panel.show(tick)} there is nothing. Add these rows, with the known "
                f"columns filled in and the targets empty."
            )
    return values


def _told(model: nn.Module, found: Data, rows: Array, settings: ForecastSettings) -> Iterator[Sequence[str]]:
    panel, horizon, levels = found.panel, settings.horizon, settings.levels
    windows = found.test
    batch = windows.at(rows, _beyond(found, rows, settings))
    center, spread = backtest.scales(windows, rows)
    values = backtest.forecast(model, batch)  # (h, B, K, Q)
    values = (values.double() * spread[..., None] + center[..., None]).numpy()
    point = levels.index(0.5) if levels else 0
    for place, row in enumerate(rows):
        series = int(panel.series_of(np.array([row - 1]))[0])
        tick = int(panel.first[series]) + int(row) - int(panel.starts[series])
        for number, target in enumerate(found.roles.targets):
            for step in range(horizon):
                numbers = values[step, place, number]
                shown = [f"{one:.7g}" for one in (numbers[point], *(numbers if levels else ()))]
                yield [panel.show(tick + step), panel.names[series], target, *shown]
