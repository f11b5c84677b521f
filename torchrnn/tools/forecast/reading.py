"""A file of series to a Panel: columns checked, times checked, values in memory or in a file on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrnn.tools.forecast.panel import Panel
from torchrnn.tools.forecast.stamps import Clock, Order
from torchrnn.tools.forecast.steps import Array
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import Table

IN_MEMORY = 256 * 2**20  # bytes of values; more are kept in a file on the disk
FILLED = 20  # gaps may make a table this many times longer, not more: then it is the step that is wrong


@dataclass(frozen=True)
class Source:
    """How a file is to be read."""

    table: Table
    time: str
    id: str  # "": one series
    columns: dict[str, str]  # the columns of numbers, and the option that named each
    time_format: str = ""
    fill_gaps: bool = False

    def check(self) -> None:
        """UsageError unless the file has all the columns, each named once."""
        self.table.require([self.time], "--time")
        if self.id:
            self.table.require([self.id], "--id")
        for name, option in self.columns.items():
            self.table.require([name], option)
            for other, column in (("--time", self.time), ("--id", self.id)):
                if name == column:
                    raise UsageError(
                        f"{option} {name!r}: {self.table.path}: it is the column of {other}. Name another."
                    )
        if self.id == self.time:
            raise UsageError(f"--id {self.id!r}: {self.table.path}: it is the column of --time. Name another.")


def read_panel(source: Source) -> Panel:
    """The series of a file; UsageError names the first rows that cannot be used.

    Two passes: times and ids of all rows (about 40 bytes of memory a row), then the numbers, block by block, to their
    places.
    """
    source.check()
    order = _order(source)
    step = order.step()
    ticks, origin = order.ticks(step, source.fill_gaps)
    begins = np.concatenate([[0], np.flatnonzero(np.diff(order.codes)) + 1])
    ends = np.concatenate([begins[1:], [len(ticks)]])
    first = ticks[begins]
    lengths = ticks[ends - 1] - first + 1
    starts = np.concatenate([[0], lengths.cumsum()])
    if starts[-1] > FILLED * len(ticks):
        raise UsageError(
            f"--fill-gaps would make {starts[-1]:,} rows out of {len(ticks):,}, with a step of {step}. Bring the rows "
            f"to one step first (resample)."
        )
    places = starts[order.codes] + ticks - first[order.codes]
    if order.rows is not None:
        by_row = np.empty_like(places)
        by_row[order.rows] = places
        places = by_row
    values = _values(source, places, int(starts[-1]))
    return Panel(order.names, starts, first, step, origin, list(source.columns), values)


def _order(source: Source) -> Order:
    """Times and series of all rows, the series in the order in which they appear."""
    table, clock = source.table, Clock(source.table, source.time, source.time_format)
    times, codes = np.empty(table.rows, np.int64), np.zeros(table.rows, np.int32)
    names: dict[str, int] = {}
    for before, block in table.blocks([source.time, *([source.id] if source.id else [])]):
        place = slice(before, before + len(block))
        times[place] = clock.read(block[source.time], before)
        if source.id:
            codes[place] = _codes(source, block[source.id], names, before)
    rows = None
    if (np.diff(codes) < 0).any():
        rows = codes.argsort(kind="stable")
        times, codes = times[rows], codes[rows]
    return Order(table, clock, list(names) or [""], times, codes, rows)


def _codes(source: Source, ids: pl.Series, names: dict[str, int], before: int) -> Array:
    if isinstance(ids.dtype, pl.List | pl.Array | pl.Struct):
        raise UsageError(f"--id {source.id!r}: {source.table.path}: the column must hold names, not {ids.dtype}.")
    if ids.null_count():
        row = before + int(ids.is_null().to_numpy().argmax()) + 1
        raise UsageError(
            f"{source.table.where(row)}, column {source.id!r}: the name of the series is missing. Write it in, or "
            f"leave the row out."
        )
    ids = ids.cast(pl.String)
    for name in ids.unique(maintain_order=True):
        names.setdefault(name, len(names))
    return ids.replace_strict(list(names), list(names.values()), return_dtype=pl.Int32).to_numpy()


def _values(source: Source, places: Array, rows: int) -> Array:
    """The numbers of all columns (rows, columns), NaN where one is missing."""
    shape = (rows, len(source.columns))
    values = _on_disk(shape) if rows * len(source.columns) * 4 > IN_MEMORY else np.empty(shape, np.float32)
    if rows > len(places):
        values[:] = np.nan  # the rows that --fill-gaps puts in
    for before, block in source.table.blocks(list(source.columns)):
        place = places[before : before + len(block)]
        for number, (name, option) in enumerate(source.columns.items()):
            found = source.table.to_numbers(block[name], option, missing=True, before=before)
            _refuse_huge(source, found, name, before)
            values[place, number] = found
    for number, (name, option) in enumerate(source.columns.items()):
        if not any(np.isfinite(part[:, number]).any() for part in _parts(values)):
            raise UsageError(f"{option} {name!r}: {source.table.path}: the column has no value at all. Leave it out.")
    return values


def _refuse_huge(source: Source, values: Array, name: str, before: int) -> None:
    huge = np.abs(values) > 1e30  # squares must stay finite in float32 after scaling
    if huge.any():
        row = int(huge.argmax())
        raise UsageError(
            f"{source.table.where(before + row + 1)}, column {name!r}: expected a number of at most 1e30, got "
            f"{values[row]:g}. If it stands for a missing value, leave it empty."
        )


def _on_disk(shape: tuple[int, int]) -> Array:
    """An array in a file that has no name any more: it is gone when the process ends, however it ends."""
    with tempfile.TemporaryDirectory(prefix="torchrnn-", ignore_cleanup_errors=True) as folder:
        return np.memmap(Path(folder) / "values", np.float32, "w+", shape=shape)


def _parts(values: Array, size: int = 1 << 20) -> Iterator[Array]:
    return (values[start : start + size] for start in range(0, len(values), size))
