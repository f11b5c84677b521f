"""A trained classifier on other tables: its figures, and its answers beside the rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from torchrnn.tools.classify.data import encode
from torchrnn.tools.classify.encoded import IGNORED, Batch, Encoded
from torchrnn.tools.classify.learned import Learned
from torchrnn.tools.classify.reading import Block, Reader
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.classify.survey import survey
from torchrnn.tools.runs.errors import UsageError, disk_error
from torchrnn.tools.runs.files import PARTIAL
from torchrnn.tools.tables import Table, open_table
from torchrnn.tools.tables.table import explained, quoted

ROWS = 512  # of a batch: without gradients there is room for more


def batches(path: Path, settings: ClassifySettings, learned: Learned, tagging: bool) -> Iterator[Batch]:
    """All labelled sequences of a table; a label that the model does not know is refused."""
    source = survey(open_table(path), settings)
    _check_kind(source.reader, learned, tagging)
    for index in range(source.reader.block_count):
        block = source.reader.block(index)
        encoded = encode(block, source.parts[source.starts[index] : source.starts[index + 1]] == 0, learned, tagging)
        strange = np.flatnonzero(encoded.classes < 0)
        if len(strange):
            raise UsageError(_strange(source.reader, block, learned))
        for _, rows in _by_length(encoded):
            yield rows.batch()


def _check_kind(reader: Reader, learned: Learned, tagging: bool) -> None:
    if learned.vocabulary and learned.vocabulary.single and reader.lists:
        raise UsageError(
            f"--text {reader.inputs[0]!r}: {reader.table.path}: the column holds lists, and the model was trained on "
            f"text by {reader.settings.tokens}. Give text."
        )
    if reader.labelled and reader.tagging != tagging:
        raise UsageError(
            f"--label {reader.settings.label!r}: {reader.table.path}: the model was trained on "
            f"{'a label for each step' if tagging else 'one label a row'}, and the column has the other. "
            f"Give such labels."
        )


def _strange(reader: Reader, block: Block, learned: Learned) -> str:
    known = block.labels.is_in(learned.labels) | block.labels.is_null()
    place = int(np.flatnonzero(~known.to_numpy())[0])
    row = int(np.searchsorted(np.cumsum(block.lengths), place, side="right")) if reader.tagging else place
    shown = ", ".join(map(quoted, learned.labels[:10])) + (", ..." if len(learned.labels) > 10 else "")
    return (
        f"{reader.table.where(int(block.rows[row]))}, column {reader.settings.label!r}: expected one of the model's "
        f"{len(learned.labels)} labels ({shown}), found {quoted(block.labels[place])}. Correct it or leave the row out."
    )


def _by_length(encoded: Encoded) -> Iterator[tuple[np.ndarray, Encoded]]:
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        yield rows, encoded.take(rows)


def predict(
    model: nn.Module,
    file: Path,
    settings: ClassifySettings,
    learned: Learned,
    tagging: bool,
    out: Path | None,
    top: int,
) -> str:
    """The rows of a table with the `top` likeliest labels of each and their probabilities."""
    if not 1 <= top <= len(learned.labels):
        raise UsageError(f"--top must be from 1 to the number of labels, {len(learned.labels)}, got {top}.")
    if out is not None:
        _check_out(out)
    reader = Reader(open_table(file), settings, labelled=False)
    _check_kind(reader, learned, tagging)
    likeliest, lengths = _answers(model, reader, learned, tagging, top)
    found = _columns(reader, likeliest, lengths, learned, tagging, top)
    if reader.groups and not tagging:
        table = pl.DataFrame([reader.groups.names]).lazy()
    else:
        table = reader.table.lazy
    answers = pl.concat([table, found.lazy()], how="horizontal")
    empty = int((lengths == 0).sum())
    with explained(reader.table.path, "FILE"):
        return _print(answers) if out is None else _write(answers, out, len(lengths), empty)


def _answers(
    model: nn.Module, reader: Reader, learned: Learned, tagging: bool, top: int
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The classes (R, top) and their probabilities of all sequences, with tagging (N, top); and the lengths (R,)."""
    device = next(model.parameters()).device
    classes, probabilities, lengths = [], [], []
    for index in range(reader.block_count):
        block = reader.block(index)
        encoded = encode(block, np.ones(len(block.lengths), dtype=bool), learned, tagging)
        count = len(encoded.classes)
        said, how_likely = np.zeros((count, top), dtype=np.int32), np.zeros((count, top), dtype=np.float32)
        for rows, part in _by_length(encoded):
            values, steps, wanted = part.batch()
            if not len(values):
                continue  # empty sequences alone
            with torch.inference_mode():
                found = model(values.to(device), steps).softmax(-1).topk(top)
            if tagging:
                valid = (wanted != IGNORED).T  # (B, T): the steps of a sequence one after another
                spans = zip(encoded.starts[rows], part.lengths, strict=True)
                places = np.concatenate([np.arange(begin, begin + n) for begin, n in spans])
                said[places] = found.indices.cpu().transpose(0, 1)[valid].numpy()
                how_likely[places] = found.values.cpu().transpose(0, 1)[valid].numpy()
            else:
                said[rows], how_likely[rows] = found.indices.cpu().numpy(), found.values.cpu().numpy()
        classes.append(said)
        probabilities.append(how_likely)
        lengths.append(encoded.lengths)
    return (np.concatenate(classes), np.concatenate(probabilities)), np.concatenate(lengths)


def _columns(
    reader: Reader,
    likeliest: tuple[np.ndarray, np.ndarray],
    lengths: np.ndarray,
    learned: Learned,
    tagging: bool,
    top: int,
) -> pl.DataFrame:
    """The answers as columns with names that the table has not; nothing for an empty sequence."""
    classes, probabilities = likeliest
    if reader.groups and tagging:  # back to the rows of the file
        back = np.argsort(reader.groups.order)
        classes, probabilities = classes[back], probabilities[back]
    labels = pl.Series(learned.labels)
    columns = []
    for place in range(top):
        end = "" if place == 0 else f"_{place + 1}"
        for name, values in (
            ("predicted", labels.gather(classes[:, place])),
            ("probability", pl.Series(probabilities[:, place])),
        ):
            if tagging and not reader.groups:
                values = _lists(values, lengths)
            elif not tagging:
                values = pl.select(pl.when(pl.Series(lengths > 0)).then(values)).to_series()
            columns.append(values.alias(_free(reader.table, f"{name}{end}")))
    return pl.DataFrame(columns)


def _lists(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    rows = pl.Series("row", np.repeat(np.arange(len(lengths)), lengths))
    lists = pl.DataFrame({"row": rows, "value": values}).group_by("row", maintain_order=True).agg("value")
    every = pl.DataFrame({"row": np.arange(len(lengths))}).join(lists, on="row", how="left", maintain_order="left")
    return every["value"].fill_null(pl.Series([[]], dtype=every["value"].dtype).implode().explode())


def _free(table: Table, name: str) -> str:
    while name in table.columns:
        name += "_"
    return name


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"):
        raise UsageError(f"--out {out} must end in .csv, .tsv, .parquet or .jsonl, got {out.suffix or 'no ending'!r}.")
    if out.exists():
        raise UsageError(f"--out {out} is there already, and nothing was written. Choose another name or remove it.")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}. Make it first.")


def _flat(answers: pl.LazyFrame) -> pl.LazyFrame:
    """Lists as CSV can hold them: with spaces between."""
    lists = [name for name, dtype in answers.collect_schema().items() if isinstance(dtype, pl.List | pl.Array)]
    return answers.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists)


def _print(answers: pl.LazyFrame) -> str:
    text = io.StringIO()
    _flat(answers).collect().write_csv(text, float_precision=6)
    return text.getvalue()


def _write(answers: pl.LazyFrame, out: Path, count: int, empty: int) -> str:
    partial = out.with_name(out.name + PARTIAL)
    ending = out.suffix.lower()
    options: dict[str, Any] = {"separator": "\t"} if ending == ".tsv" else {}
    try:
        if ending == ".parquet":
            answers.sink_parquet(partial)
        elif ending in (".csv", ".tsv"):
            _flat(answers).sink_csv(partial, float_precision=6, **options)
        else:
            answers.sink_ndjson(partial)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(out, error) from error
    note = f" ({empty:,} empty ones without an answer)" if empty else ""
    return f"{out}: {count:,} sequences{note}\n"
