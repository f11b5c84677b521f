"""Rows of a table to sequences and labels, with errors that name row and column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from torchrnn.tools.classify import tokens
from torchrnn.tools.classify.groups import Groups, group
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import Table
from torchrnn.tools.tables.table import described, quoted

NONE = pl.Series("label", [], dtype=pl.String)


@dataclass
class Block:
    """Some sequences as they stand in the file."""

    flat: Any  # their tokens, or their numbers (N, I), one sequence after another
    lengths: np.ndarray  # (R,)
    rows: np.ndarray  # (R,) the row of the file where each begins, from 1
    labels: pl.Series  # (R,), or (N,) one a step; null: there is none; empty when they are not read


class Reader:
    """The sequences in a table, block by block: a row each, or (--sequence) all rows with the same name.

    `labelled` is False for rows that are to be predicted: then no label is read.
    """

    def __init__(self, table: Table, settings: ClassifySettings, labelled: bool = True) -> None:
        self.table, self.settings, self.labelled = table, settings, labelled
        self.numeric = bool(settings.steps_columns)
        self.inputs = list(settings.steps_columns or (settings.text,))
        self.option = "--steps-columns" if self.numeric else "--text"
        table.require(self.inputs, self.option)
        for option in ("label", "split", "sequence", "time"):
            name = getattr(settings, option)
            if name and (labelled or option in ("sequence", "time")):
                table.require([name], f"--{option}")
        self.lists = isinstance(table.columns[self.inputs[0]], pl.List | pl.Array)
        self._check_inputs()
        label = table.columns[settings.label] if labelled else pl.Null()
        self.tagging = settings.tagging or (isinstance(label, pl.List | pl.Array) and not settings.sequence)
        self.groups: Groups | None = group(table, settings, self.tagging, labelled) if settings.sequence else None

    def _check_inputs(self) -> None:
        for name in self.inputs:
            dtype = self.table.columns[name]
            inner = getattr(dtype, "inner", None)  # of a list
            if self.numeric and not self.settings.sequence:
                good = inner is not None and inner.is_numeric()
                expected = (
                    "a list of numbers in each row (JSON lines, Parquet), or --sequence COLUMN where each row is a step"
                )
            elif self.numeric:
                good, expected = inner is None, "a number in each row, as --sequence makes each row a step"
            else:
                good = dtype == pl.String or (inner is not None and (inner == pl.String or inner.is_integer()))
                expected = "text or lists of tokens; for numbers there is --steps-columns"
            if not good:
                raise UsageError(
                    f"{self.option} {name!r}: {self.table.path}: the column holds {described(dtype)}, "
                    f"expected {expected}."
                )

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return 1 if self.groups else self.table.block_count

    def block(self, index: int) -> Block:
        """The sequences of a block."""
        if self.groups:
            return Block(self.groups.numbers, self.groups.lengths, self.groups.rows, self.groups.labels)
        names = [*self.inputs, *([self.settings.label] if self.labelled else [])]
        frame = self.table.block(index, names)
        before = index * self.table.block_rows
        rows = np.arange(before + 1, before + len(frame) + 1)
        flat, lengths = self._numbers(frame, before) if self.numeric else self._tokens(frame)
        labels = self._labels(frame[self.settings.label], lengths, before) if self.labelled else NONE
        return Block(flat, lengths, rows, labels)

    def _tokens(self, frame: pl.DataFrame) -> tuple[Any, np.ndarray]:
        return tokens.split(frame[self.inputs[0]], self.settings.tokens)

    def _numbers(self, frame: pl.DataFrame, before: int) -> tuple[np.ndarray, np.ndarray]:
        columns, first = [], np.empty(0, dtype=np.int64)
        for name in self.inputs:
            lists = frame[name].cast(pl.List(pl.Float64))
            lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
            values = lists.explode(empty_as_null=False, keep_nulls=False).fill_null(float("nan")).to_numpy()
            if name == self.inputs[0]:
                first = lengths
            self._check_lengths(name, lengths, first, before)
            wrong = np.flatnonzero(~np.isfinite(values))
            if len(wrong):
                row = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
                step = int(wrong[0] - lengths[:row].sum()) + 1
                raise UsageError(
                    f"{self.table.where(before + row + 1)}, column {name!r}: value {step} of the list must be a finite "
                    f"number, found {frame[name][row][step - 1]}. Fill it in or leave the row out."
                )
            columns.append(values)
        return np.stack(columns, axis=1), first

    def _check_lengths(self, name: str, lengths: np.ndarray, first: np.ndarray, before: int) -> None:
        wrong = np.flatnonzero(lengths != first)
        if len(wrong):
            row = int(wrong[0])
            raise UsageError(
                f"{self.table.where(before + row + 1)}, column {name!r}: the lists of a row must be of one length, "
                f"found {lengths[row]} values where {self.inputs[0]!r} has {first[row]}. Correct one of them."
            )

    def _labels(self, series: pl.Series, lengths: np.ndarray, before: int) -> pl.Series:
        if not self.tagging:
            return label_names(series, self.table, before)
        if series.dtype == pl.String:
            lists = series.fill_null("").str.extract_all(r"\S+")
        elif isinstance(series.dtype, pl.List | pl.Array):
            lists = series
        else:
            raise UsageError(
                f"--label {series.name!r}: {self.table.path}: --tagging needs a list of labels, or labels with spaces "
                f"between them, and the column holds {described(series.dtype)}."
            )
        found = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        wrong = np.flatnonzero((found != lengths) & (found > 0))
        if len(wrong):
            row = int(wrong[0])
            what = "steps" if self.numeric else "tokens"
            raise UsageError(
                f"{self.table.where(before + row + 1)}, column {series.name!r}: expected a label for each of the "
                f"{lengths[row]} {what}, found {found[row]}. Correct one of them."
            )
        names = label_names(lists.explode(empty_as_null=False, keep_nulls=False), None, 0)
        none = np.repeat(found == 0, lengths)  # a row without labels keeps its steps: whoever reads on refuses the row
        if not none.any():
            return self._no_gaps(names, lengths, before)
        whole = pl.Series(names.name, [None] * len(none), dtype=pl.String)
        return whole.scatter(np.flatnonzero(~none), names)

    def _no_gaps(self, names: pl.Series, lengths: np.ndarray, before: int) -> pl.Series:
        if names.null_count():
            place = int(np.flatnonzero(names.is_null().to_numpy())[0])
            row = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise UsageError(
                f"{self.table.where(before + row + 1)}, column {names.name!r}: label {place - lengths[:row].sum() + 1} "
                f"of the list is empty. Fill it in or leave the row out."
            )
        return names


def label_names(series: pl.Series, table: Table | None, before: int) -> pl.Series:
    """Labels as text without white space around it, null where there is none; 1.0 is 1, and 1.5 is refused."""
    dtype = series.dtype
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        text = series.cast(pl.String).str.strip_chars()
        return text.to_frame().select(pl.when(pl.all() == "").then(None).otherwise(pl.all()).name.keep()).to_series()
    if dtype.is_float():
        series = series.fill_nan(None)
        wrong = np.flatnonzero((series.fill_null(0.0) % 1 != 0).to_numpy())
        if len(wrong):
            row = int(wrong[0])
            where = f"{table.where(before + row + 1)}, column" if table else "column"
            raise UsageError(
                f"{where} {series.name!r}: --label needs classes, found the number {quoted(series[row])}. To predict "
                f"numbers there is `torchrnn forecast`."
            )
        return series.cast(pl.Int64).cast(pl.String)
    if dtype.is_integer() or dtype in (pl.Boolean, pl.Null):
        return series.cast(pl.String)
    raise UsageError(
        f"--label {series.name!r}: expected text, whole numbers or truth values, found {described(dtype)}."
    )
