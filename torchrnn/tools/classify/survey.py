"""The first reading of the data: each sequence's length and label, what is left out, and the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrnn.tools.classify import split
from torchrnn.tools.classify.reading import Reader
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import Table, open_table

FEW = 10  # labels of which each may stand in one row


@dataclass
class Source:
    """One file after the first reading."""

    reader: Reader
    starts: np.ndarray  # (blocks + 1,) the number of its sequences before each block
    lengths: np.ndarray  # (R,)
    rows: np.ndarray  # (R,) where each begins in the file, from 1
    codes: np.ndarray  # (R,) the class of each, numbered by first appearance; -1: none; zeros when tagging
    parts: np.ndarray  # (R,) TRAINING, VALIDATION, TEST or LEFT_OUT

    @property
    def table(self) -> Table:
        """The file."""
        return self.reader.table

    @property
    def left_out(self) -> int:
        """How many sequences have no steps or no label, and are in no part."""
        return int((self.parts == split.LEFT_OUT).sum())


def sources(files: Sequence[Path], settings: ClassifySettings) -> list[Source]:
    """The file, and those of --validation-file and --test-file, each row checked and in a part."""
    if len(files) != 1:
        raise UsageError(f"Expected one FILE with the rows to train on, got {len(files)}. Put them into one table.")
    main = survey(open_table(files[0]), settings)
    found = [main]
    for option, part in (("validation_file", split.VALIDATION), ("test_file", split.TEST)):
        name = getattr(settings, option)
        if name:
            table = open_table(Path(name), f"--{option.replace('_', '-')}")
            other = survey(table, settings)
            other.parts[other.parts != split.LEFT_OUT] = part
            if (other.reader.lists, other.reader.tagging) != (main.reader.lists, main.reader.tagging):
                raise UsageError(
                    f"{table.path} must have columns of the same kinds as {main.table.path}: lists or text."
                )
            found.append(other)
    _check_classes(main, settings)
    _divide(main, settings)
    for part, repair in ((split.TRAINING, "--split"), (split.VALIDATION, "--validation or --validation-file")):
        if not any((source.parts == part).any() for source in found):
            rows = len(main.parts) - main.left_out
            raise UsageError(
                f"{main.table.path}: of {rows:,} rows none is in the {split.PARTS[part]} part. Give more rows, or "
                f"another {repair}."
            )
    return found


def _check_classes(main: Source, settings: ClassifySettings) -> None:
    codes = main.codes[main.parts != split.LEFT_OUT]
    classes = int(codes.max(initial=-1)) + 1
    if classes > FEW and classes > len(codes) / 2:
        raise UsageError(
            f"--label {settings.label!r}: {main.table.path}: {classes:,} different labels in {len(codes):,} rows. "
            f"Expected classes that several rows share: name another column."
        )


def _divide(main: Source, settings: ClassifySettings) -> None:
    kept = main.parts != split.LEFT_OUT
    if settings.split:
        words = main.table.column(settings.split, "--split")
        main.parts = split.by_column(words.gather(main.rows - 1), kept, lambda row: main.table.where(main.rows[row]))
        return
    validation = 0.0 if settings.validation_file else settings.validation
    test = 0.0 if settings.test_file else settings.test
    main.parts = split.by_chance(main.codes, kept, validation, test, settings.seed)


def survey(table: Table, settings: ClassifySettings) -> Source:
    """Read all blocks once; a sequence without steps or label is refused, or left out if the settings say so."""
    reader = Reader(table, settings)
    lengths, rows, codes, kept = [], [], [], []
    known: dict[str, int] = {}
    for index in range(reader.block_count):
        block = reader.block(index)
        missing = _missing(block.labels, block.lengths, reader.tagging)
        bad = missing | (block.lengths == 0)
        if bad.any() and not settings.skip_incomplete:
            raise UsageError(
                _incomplete(reader, int(block.rows[bad.argmax()]), bool(missing[bad.argmax()]), int(bad.sum()))
            )
        codes.append(np.zeros(len(bad), dtype=np.int32) if reader.tagging else _codes(block.labels, known))
        lengths.append(block.lengths)
        rows.append(block.rows)
        kept.append(~bad)
    parts = np.where(np.concatenate(kept), split.TRAINING, split.LEFT_OUT).astype(np.uint8)
    starts = np.cumsum([0, *map(len, lengths)])
    return Source(reader, starts, np.concatenate(lengths), np.concatenate(rows), np.concatenate(codes), parts)


def _missing(labels: pl.Series, lengths: np.ndarray, tagging: bool) -> np.ndarray:
    none = labels.is_null().to_numpy()
    if not tagging:
        return none
    before = np.concatenate([[0], np.cumsum(none)])
    ends = np.cumsum(lengths)
    return before[ends] > before[ends - lengths]


def _codes(labels: pl.Series, known: dict[str, int]) -> np.ndarray:
    for name in labels.drop_nulls().unique(maintain_order=True):
        known.setdefault(name, len(known))
    codes = labels.replace_strict(list(known), list(known.values()), default=-1, return_dtype=pl.Int32)
    return codes.fill_null(-1).to_numpy()


def _incomplete(reader: Reader, row: int, missing: bool, count: int) -> str:
    settings = reader.settings
    if missing:
        column, what = settings.label, "there is no label"
    else:
        column, what = reader.inputs[0], "the sequence is empty"
    return (
        f"{reader.table.where(row)}, column {column!r}: {what}. Fill it in, or give --skip-incomplete to leave out "
        f"such rows (in this part of the file: {count:,})."
    )
