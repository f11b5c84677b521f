"""CSV and TSV, every record checked: polars fills short lines with nulls in silence, and here that is an error."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from torchrnn.tools.runs.errors import UsageError

CHUNK = 65_536  # records that exist as Python strings at a time
NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def read(path: Path, text: str, argument: str) -> tuple[pl.DataFrame, np.ndarray]:
    """All rows as strings, empty ones null, and the line on which each begins."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    with _any_length():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        records = _records(reader, path, argument)
        try:
            line, header = next((line, record) for line, record in records if record)
        except StopIteration:
            raise UsageError(
                f"{argument} {path} is empty: expected a line of names, then rows. Name another file."
            ) from None
        names = _header(header, path, argument, line)
        frames, lines = [], []
        rows: list[list[str]] = []
        blank: list[int] = []
        for line, record in records:
            if not record:
                blank.append(line)
                continue
            if len(names) == 1:  # a line with nothing on it is a row, too; at the end of the file it is none
                rows += [[""]] * len(blank)
                lines += blank
            blank = []
            if len(record) != len(names):
                raise UsageError(_ragged(path, argument, line, len(lines) + 1, record, names, delimiter))
            rows.append(record)
            lines.append(line)
            if len(rows) >= CHUNK:
                frames.append(_frame(rows, names))
                rows = []
    frames.append(_frame(rows, names))
    return pl.concat(frames), np.array(lines, dtype=np.int64)


def _delimiter(text: str) -> str:
    # a comma, unless the header has none and has one of those that programs write where the comma is the decimal point
    header = text[: text.find("\n") if "\n" in text else len(text)]
    return next((mark for mark in ",;\t" if mark in header), ",")


@contextmanager
def _any_length() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(reader: Iterator[list[str]], path: Path, argument: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line on which it begins; a blank line is an empty one."""
    line = 1
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ends = getattr(reader, "line_num", line)
            raise UsageError(
                f"{argument} {path}, line {line:,}: a value in double quotes does not end as it must ({error}, line "
                f"{ends:,}). Close the quote; a quote inside a quoted value is written twice."
            ) from error
        yield line, record
        line = getattr(reader, "line_num", line) + 1


def _header(header: list[str], path: Path, argument: str, line: int) -> list[str]:
    """The columns' names; one without a name, as an index written by pandas is, gets one."""
    names = [name.strip() or f"column_{place}" for place, name in enumerate(header, start=1)]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UsageError(
                f"{argument} {path}, line {line:,}: columns {names.index(name) + 1} and {place + 1} are both called "
                f"{name!r}. Rename one of them."
            )
    return names


def _ragged(path: Path, argument: str, line: int, row: int, record: list[str], names: list[str], mark: str) -> str:
    shown = mark.join(record)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return (
        f"{argument} {path}, row {row:,} (line {line:,}): expected {len(names)} values, one for each column, got "
        f"{len(record)}: {shown!r}. A value with a {NAMES[mark]} in it must stand in double quotes."
    )


def _frame(rows: list[list[str]], names: list[str]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    frame = pl.DataFrame(
        [pl.Series(name, list(column), dtype=pl.String) for name, column in zip(names, columns, strict=True)]
    )
    return frame.with_columns(pl.when(pl.all() == "").then(None).otherwise(pl.all()).name.keep())
