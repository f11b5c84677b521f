"""Rows of which each is one step, put together into sequences (--sequence, --time)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import Table
from torchrnn.tools.tables.table import quoted


@dataclass
class Groups:
    """The sequences of a file, in the order in which they begin there."""

    numbers: np.ndarray  # (N, I)
    lengths: np.ndarray  # (R,)
    rows: np.ndarray  # (R,) where each begins
    names: pl.Series  # (R,)
    order: np.ndarray  # (N,) the row of each step in the file, from 0
    labels: pl.Series  # (R,), or (N,) one a step; empty when they are not read


def group(table: Table, settings: ClassifySettings, tagging: bool, labelled: bool) -> Groups:
    """All sequences of the table, which is read whole: their rows may stand anywhere."""
    from torchrnn.tools.classify.reading import label_names

    names = table.column(settings.sequence, "--sequence")
    if names.null_count():
        row = int(np.flatnonzero(names.is_null().to_numpy())[0]) + 1
        raise UsageError(
            f"{table.where(row)}, column {settings.sequence!r}: --sequence needs the name of the row's sequence, found "
            f"nothing. Fill it in or leave the row out."
        )
    _, first, of = np.unique(names.cast(pl.String).to_numpy(), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # by first appearance
    of, first = rank[of], np.sort(first)
    order = np.argsort(of, kind="stable")
    if settings.time:
        times = _times(table, settings.time)
        order = np.lexsort((times, of))
        same = (of[order][1:] == of[order][:-1]) & (times[order][1:] == times[order][:-1])
        if same.any():
            place = int(np.flatnonzero(same)[0])
            one, other = sorted((int(order[place]) + 1, int(order[place + 1]) + 1))
            raise UsageError(
                f"{table.where(other)}, column {settings.time!r}: sequence {quoted(names[other - 1])} has this time "
                f"already in row {one:,}. Correct one of them or leave it out."
            )
    numbers = table.numbers(list(settings.steps_columns), "--steps-columns")[order]
    labels = pl.Series("label", [], dtype=pl.String)
    if labelled:
        labels = label_names(table.column(settings.label, "--label"), table, 0)
        if tagging:
            labels = labels.gather(order)
        else:
            _check_constant(table, settings, names, labels, of, first)
            labels = labels.gather(first)
    return Groups(numbers, np.bincount(of), first + 1, names.gather(first), order, labels)


def _times(table: Table, name: str) -> np.ndarray:
    series = table.column(name, "--time")
    if series.dtype.is_temporal():
        return _whole(table, series.to_physical().cast(pl.Float64), series)
    if series.dtype.is_numeric() or table.is_numeric(name):
        return table.to_numbers(series, "--time")
    text = series.str.strip_chars() if series.dtype == pl.String else series.cast(pl.String)
    try:
        times = text.str.to_datetime(strict=False, time_unit="us", time_zone="UTC" if _zoned(text) else None)
    except pl.exceptions.ComputeError:  # no form of time that polars knows: then what is no number is named
        return table.to_numbers(series, "--time")
    return _whole(table, times.to_physical().cast(pl.Float64), series)


def _zoned(text: pl.Series) -> bool:
    return bool(text.str.contains(r"(Z|[+-]\d\d:?\d\d)$").any())


def _whole(table: Table, values: pl.Series, series: pl.Series) -> np.ndarray:
    lost = np.flatnonzero(values.is_null().to_numpy())
    if len(lost):
        row = int(lost[0])
        raise UsageError(
            f"{table.where(row + 1)}, column {series.name!r}: --time needs a number or a time such as 2026-01-31 "
            f"17:00, found {quoted(series[row])}. Correct it or leave the row out."
        )
    return values.to_numpy()


def _check_constant(
    table: Table, settings: ClassifySettings, names: pl.Series, labels: pl.Series, of: np.ndarray, first: np.ndarray
) -> None:
    wrong = np.flatnonzero(labels.ne_missing(labels.gather(first[of])).to_numpy())
    if len(wrong):
        row = int(wrong[0])
        begin = int(first[of[row]])
        raise UsageError(
            f"{table.where(row + 1)}, column {settings.label!r}: sequence {quoted(names[row])} has the label "
            f"{quoted(labels[begin])} in row {begin + 1:,} and {quoted(labels[row])} here. Expected one label a "
            f"sequence; for one a step give --tagging."
        )
