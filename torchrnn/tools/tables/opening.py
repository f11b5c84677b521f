"""Opening a table by its ending."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import polars as pl

from torchrnn.tools.runs.encoding import check_file, decode, unreadable
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import delimited, jsonl
from torchrnn.tools.tables.table import BLOCK_BYTES, BLOCK_ROWS, Table, explained

SAMPLE = 256  # rows that tell how large one is
ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")


def open_table(path: Path, argument: str = "FILE") -> Table:
    """The table in a .csv, .tsv, .parquet, .jsonl or .ndjson file; UsageError says what is wrong with the file.

    `argument` is what the messages call it: the option of the command line that named it.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS and not os.path.isdir(path):  # which, unlike Path's, raises nothing
        raise UsageError(f"{argument} {path} must end in {', '.join(ENDINGS)}, got {ending or 'no ending'!r}.")
    check_file(path, argument, "a table")
    try:
        if ending == ".parquet":
            return _open_parquet(path, argument)
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, argument, "a table", error) from error
    text = decode(path, data, argument)
    digest = hashlib.sha256(data).hexdigest()
    del data
    unusable: dict[str, str] = {}
    if ending in (".csv", ".tsv"):
        frame, lines = delimited.read(path, text, argument)
    else:
        frame, lines, unusable = jsonl.read(path, text, argument)
    _refuse_empty(path, argument, len(lines))
    return Table(path, argument, frame.lazy(), dict(frame.schema), len(lines), digest, lines, unusable)


def _open_parquet(path: Path, argument: str) -> Table:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(4)
        sha.update(start)
        while chunk := file.read(2**20):
            sha.update(chunk)
    if start != b"PAR1":
        raise UsageError(
            f"{argument} {path} must be Parquet, which begins with PAR1, and it begins with {start!r}. Give it the "
            f"ending of what it is: {', '.join(ENDINGS)}."
        )
    with explained(path, argument):
        lazy = pl.scan_parquet(path, glob=False)
        columns = dict(lazy.collect_schema())
        rows = lazy.select(pl.len()).collect().item()
        _refuse_empty(path, argument, rows)
        first = lazy.head(SAMPLE).collect()
    # polars does not tell where row groups begin; a slice reads the pages that it needs and no others
    block = int(np.clip(BLOCK_BYTES * len(first) // max(first.estimated_size(), 1), 1, BLOCK_ROWS))
    return Table(path, argument, lazy, columns, rows, sha.hexdigest(), block_rows=block)


def _refuse_empty(path: Path, argument: str, rows: int) -> None:
    if not rows:
        raise UsageError(f"{argument} {path} has no rows. Expected at least one: name a file with rows.")
