"""The next horizon after the end of a file: what `torchrnn predict` writes for a run of `torchrnn forecast`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from torchrnn.tools.forecast import backtest
from torchrnn.tools.forecast.data import Data
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.forecast.steps import Array
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.files import write_file

ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")


@torch.no_grad()
def predict(model: nn.Module, path: Path, settings: ForecastSettings, data: dict[str, Any]) -> pl.DataFrame:
    """A row for each series, target and step of the horizon: the time, the forecast, and its quantiles (q0.1, …).

    The horizon of a series begins after its last row with an observed target. What is known of it (--known) is read
    from the rows after that one.
    """
    found = Data.other(path, settings, data)
    rows = _first_rows(found, settings)
    parts = [rows[start : start + backtest.ROWS] for start in range(0, len(rows), backtest.ROWS)]
    return pl.concat([_frame(model, found, part, settings) for part in parts])


def write(frame: pl.DataFrame, out: Path | None) -> str:
    """Write to a new file of the ending's kind and say so; without one, the table as CSV."""
    if out is None:
        return frame.write_csv()
    ending = out.suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"--out {out} must end in {', '.join(ENDINGS)}, got {ending or 'no ending'!r}.")
    if out.exists():
        raise UsageError(f"--out {out} is there already, and nothing was overwritten. Name a new file.")
    content = io.BytesIO()
    if ending == ".parquet":
        frame.write_parquet(content)
    elif ending in (".jsonl", ".ndjson"):
        frame.write_ndjson(content)
    else:
        frame.write_csv(content, separator="\t" if ending == ".tsv" else ",")
    write_file(out, content.getvalue())
    return f"{out}: {len(frame):,} rows\n"


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
            tick = int(panel.ticks_before(rows[place : place + 1])[0]) + step
            of = f" of series {panel.names[series]!r}" if panel.names[series] else ""
            raise UsageError(
                f"FILE {found.path}: {', '.join(found.roles.known)} must be known for the {settings.horizon} steps "
                f"after the last observed target{of}, and at {panel.show(tick)} there is nothing. Add these rows, with "
                f"the known columns filled in and the targets empty."
            )
    return values


def _frame(model: nn.Module, found: Data, rows: Array, settings: ForecastSettings) -> pl.DataFrame:
    panel, horizon, levels = found.panel, settings.horizon, settings.levels
    batch = found.test.at(rows, _beyond(found, rows, settings))
    center, spread = backtest.scales(found.test, rows)
    values = backtest.forecast(model, batch).double()  # (h, B, K, Q)
    values = (values * spread[..., None] + center[..., None]).permute(1, 2, 0, 3).flatten(0, 2).numpy()
    ticks = panel.ticks_before(rows)[:, None] + np.arange(horizon)  # (B, h)
    K, B = len(found.roles.targets), len(rows)
    names = [panel.names[series] for series in panel.series_of(rows - 1)]
    columns: dict[str, Any] = {settings.time: [panel.show(tick) for line in ticks for tick in [*line] * K]}
    if settings.id:
        columns[settings.id] = [name for name in names for _ in range(K * horizon)]
    columns["target"] = [target for target in found.roles.targets for _ in range(horizon)] * B
    columns["forecast"] = values[:, levels.index(0.5) if levels else 0]
    return pl.DataFrame(columns | {f"q{level:g}": values[:, number] for number, level in enumerate(levels)})
