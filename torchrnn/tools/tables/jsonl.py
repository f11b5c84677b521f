"""JSON lines: an object a line, each column of one type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables.table import quoted

TYPES = {
    "text": pl.String,
    "a number": pl.Float64,
    "an integer": pl.Int64,
    "a truth value": pl.Boolean,
    "a list of text": pl.List(pl.String),
    "a list of numbers": pl.List(pl.Float64),
    "a list of integers": pl.List(pl.Int64),
    "an empty list": pl.List(pl.String),
    "nothing": pl.Null,
}
WIDER = {  # of two kinds that go together, the one that holds both
    frozenset({"a number", "an integer"}): "a number",
    frozenset({"a list of numbers", "a list of integers"}): "a list of numbers",
    frozenset({"an empty list", "a list of text"}): "a list of text",
    frozenset({"an empty list", "a list of numbers"}): "a list of numbers",
    frozenset({"an empty list", "a list of integers"}): "a list of integers",
}


class _Column:
    """The values of a column so far, their kind, and the row that decided it."""

    def __init__(self, before: int) -> None:
        self.values: list[Any] = [None] * before  # rows that did not have it
        self.kind, self.row = "nothing", 0
        self.trouble = ""


def read(path: Path, text: str, argument: str) -> tuple[pl.DataFrame, np.ndarray, dict[str, str]]:
    """All rows, the line of each, and the columns that cannot be used with the reason."""
    columns: dict[str, _Column] = {}
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{argument} {path}, line {number:,}")
        for name, value in row.items():
            if name not in columns:
                columns[name] = _Column(len(lines))
            _add(columns[name], name, value, len(lines) + 1, number)
        lines.append(number)
        for column in columns.values():
            if len(column.values) < len(lines):
                column.values.append(None)
    if not columns:
        raise UsageError(f"{argument} {path} is empty: expected a JSON object a line. Name another file.")
    unusable = {name: column.trouble for name, column in columns.items() if column.trouble}
    series = [
        pl.Series(name, column.values, dtype=TYPES[column.kind], strict=False)  # integers where others are not
        for name, column in columns.items()
        if name not in unusable
    ]
    return pl.DataFrame(series), np.array(lines, dtype=np.int64), unusable


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_object)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        message = f"{where}: expected a JSON object, got {quoted(line)} ({error}). Write one object a line."
        raise UsageError(message) from error
    if not isinstance(row, dict):
        raise UsageError(
            f'{where}: expected a JSON object such as {{"text": "...", "label": "..."}}, got {quoted(row)}. Write one '
            f"object a line."
        )
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _add(column: _Column, name: str, value: Any, row: int, line: int) -> None:
    kind = _kind(value)
    if kind != column.kind and kind != "nothing":
        if column.kind == "nothing":
            column.kind, column.row = kind, row
        elif wider := WIDER.get(frozenset({kind, column.kind})):
            column.kind = wider
        elif not column.trouble:
            column.trouble = (
                f"the column must be of one type: row {column.row:,} has {column.kind}, row {row:,} (line {line:,}) "
                f"has {kind}: {quoted(value)}. Make them the same."
            )
    if kind not in TYPES and not column.trouble:
        column.trouble = (
            f"row {row:,} (line {line:,}) holds {kind}, where text, a number, or a list of one of them is needed: "
            f"{quoted(value)}."
        )
    column.values.append(value)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        if not value:
            return "an empty list"
        kinds = {_kind(part) for part in value}
        if kinds == {"an integer", "a number"}:
            return "a list of numbers"
        kind = kinds.pop() if len(kinds) == 1 else ""
        lists = {"text": "a list of text", "a number": "a list of numbers", "an integer": "a list of integers"}
        return lists.get(kind, "a list of several types, of nulls or of lists")
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        return "an integer" if -(2**63) <= value < 2**63 else "an integer beyond 64 bits"
    if isinstance(value, float):
        return "a number"
    return "nothing" if value is None else "an object"
