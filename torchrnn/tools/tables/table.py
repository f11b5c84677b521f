"""A table: its columns by name, whole or block by block, and where in the file a row stands."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrnn.tools.runs.errors import UsageError

MISSING = ("", "na", "n/a", "nan", "null", "none")  # words for "no value" in a column of numbers, in small letters
BLOCK_ROWS = 65_536
BLOCK_BYTES = 2**20  # of rows in memory: what is made of them may be tens of times that

MANY = 20  # columns that a message lists


@dataclass
class Table:
    """One file of rows. Rows are counted from 1, without the header, as in the messages.

    `lazy` reads nothing until asked. Of CSV and JSON lines it holds what was read already; of Parquet `block` reads the
    rows that it gives and no more, so the file may be larger than memory. All columns of CSV are strings, empty ones
    null.
    """

    path: Path
    argument: str  # that named the file
    lazy: pl.LazyFrame
    columns: dict[str, pl.DataType]
    rows: int
    digest: str  # SHA-256 of the file
    lines: np.ndarray | None = None  # the line of each row; None: there are no lines
    unusable: dict[str, str] = field(default_factory=dict)  # columns that exist and cannot be read, and why
    block_rows: int = BLOCK_ROWS

    def where(self, row: int) -> str:
        """The place of a row (from 1) for a message: "names.csv, row 17 (line 18)"."""
        line = "" if self.lines is None else f" (line {self.lines[row - 1]:,})"
        return f"{self.path}, row {row:,}{line}"

    def require(self, names: Sequence[str], argument: str) -> None:
        """UsageError unless all of `names` are columns that can be read; `argument` is the option that named them."""
        for name in names:
            if name in self.unusable:
                raise UsageError(f"{argument} {name!r}: {self.path}: {self.unusable[name]}")
            if name not in self.columns:
                raise UsageError(self._no_such(name, argument))

    def _no_such(self, name: str, argument: str) -> str:
        known = list(self.columns)
        listed = ", ".join(repr(column) for column in known[:MANY])
        more = f" and {len(known) - MANY} more" if len(known) > MANY else ""
        small = {column.lower().strip(): column for column in reversed(known)}
        close = difflib.get_close_matches(name.lower().strip(), list(small), n=1, cutoff=0.5)
        hint = f" Did you mean {small[close[0]]!r}?" if close else " Name one of them."
        return f"{argument} {name!r}: {self.path} has no such column; its columns are {listed}{more}.{hint}"

    def column(self, name: str, argument: str) -> pl.Series:
        """A whole column, in memory."""
        return self.frame([name], argument)[name]

    def frame(self, names: Sequence[str], argument: str) -> pl.DataFrame:
        """Several whole columns, in memory."""
        self.require(names, argument)
        with self._explained():
            return self.lazy.select(list(dict.fromkeys(names))).collect()

    @property
    def block_count(self) -> int:
        """How many blocks of at most `block_rows` rows there are."""
        return -(-self.rows // self.block_rows)

    def block(self, index: int, names: Sequence[str]) -> pl.DataFrame:
        """These columns of the rows index·block_rows + 1 to (index + 1)·block_rows."""
        with self._explained():
            rows = self.lazy.slice(index * self.block_rows, self.block_rows)
            return rows.select(list(dict.fromkeys(names))).collect()

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """All blocks in order, each with the number of rows before it."""
        for index in range(self.block_count):
            yield index * self.block_rows, self.block(index, names)

    def is_numeric(self, name: str) -> bool:
        """Whether every value of the column is a number or missing, and one at least is a number."""
        self.require([name], "column")
        dtype = self.columns[name]
        if dtype.is_numeric():
            return True
        if dtype != pl.String:
            return False
        values, bad = _numbers(self.column(name, "column"))
        return not len(bad) and bool(np.isfinite(values).any())

    def numbers(self, names: Sequence[str], argument: str, missing: bool = False) -> np.ndarray:
        """The columns as float64, (rows, names); UsageError names the first row and column that is no finite number.

        With `missing`, what is empty (or NA, NaN, null) becomes NaN; without, it is refused.
        """
        frame = self.frame(names, argument)
        return np.stack([self.to_numbers(frame[name], argument, missing) for name in names], axis=1)

    def to_numbers(self, series: pl.Series, argument: str, missing: bool = False, before: int = 0) -> np.ndarray:
        """One column, or the part of it after `before` rows, as float64 (rows,), checked as `numbers` does."""
        dtype, name = series.dtype, series.name
        if not (dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Null)):
            raise UsageError(
                f"{argument} {name!r}: {self.path}: the column must hold numbers, and it holds {described(dtype)}."
            )
        values, bad = _numbers(series)
        if len(bad):
            raise UsageError(
                f"{self.where(before + int(bad[0]) + 1)}, column {name!r}: {argument} needs a number, found "
                f"{quoted(series[int(bad[0])])}. Correct it{'' if missing else ' or leave the row out'}."
            )
        lost = np.flatnonzero(np.isnan(values))
        if len(lost) and not missing:
            raise UsageError(
                f"{self.where(before + int(lost[0]) + 1)}, column {name!r}: {argument} needs a number, found "
                f"{quoted(series[int(lost[0])])} (rows without one: {len(lost):,}). Fill it in or leave the row out."
            )
        return values

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with explained(self.path, self.argument):
            yield


def _numbers(series: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64, NaN where missing, and the places of those that are neither missing nor a finite number."""
    if series.dtype == pl.String:
        text = series.str.strip_chars()
        gone = text.is_null() | text.str.to_lowercase().is_in(MISSING)
        values = text.cast(pl.Float64, strict=False)
        wrong = ~gone & (values.is_null() | ~values.is_finite())
        values = pl.select(pl.when(gone | wrong).then(None).otherwise(values)).to_series()
    else:
        values = series.cast(pl.Float64, strict=False)
        wrong = values.is_infinite().fill_null(False)
    array = values.fill_null(float("nan")).to_numpy().astype(np.float64, copy=True)
    return array, np.flatnonzero(wrong.to_numpy())


@contextmanager
def explained(path: Path, argument: str) -> Iterator[None]:
    """Turn what polars says of a file that it cannot read into one sentence."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{argument} {path} could not be read: {reason}. The file is damaged or was changed meanwhile; write it "
            f"anew."
        ) from error


def described(dtype: pl.DataType) -> str:
    """A column's type in plain words."""
    if isinstance(dtype, pl.List | pl.Array):
        return f"lists ({dtype})"
    words: dict[Any, str] = {pl.String: "text", pl.Boolean: "truth values", pl.Null: "nothing"}
    return words.get(dtype, "numbers" if dtype.is_numeric() else f"values of type {dtype}")


def quoted(value: Any) -> str:
    """A value as a message shows it: short, on one line."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
