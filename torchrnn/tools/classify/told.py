"""What is printed and written of the data before training, and of the figures after it."""

from __future__ import annotations

import csv
import io

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from torchrnn.tools.classify import scores, split
from torchrnn.tools.classify.data import Data
from torchrnn.tools.classify.learned import Counts
from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.tables.table import quoted

MANY = 40  # labels that are listed or drawn one by one


def understood(data: Data, counts: Counts) -> list[str]:
    """Columns, labels, lengths, parts, and the first row as the model reads it."""
    lines = []
    for source in data.sources:
        left = f" ({source.left_out:,} without label or steps left out)" if source.left_out else ""
        what = f" in {source.table.rows:,} rows" if source.reader.groups else ""
        lines.append(f"data: {source.table.path}: {len(source.parts):,} sequences{what}{left}")
    lines += [_inputs(data, counts), _labels(data, counts), _lengths(data), _parts(data, counts), _first(data)]
    if any(data.part(part).streamed for part in (split.TRAINING, split.VALIDATION)):
        lines.append(
            f"memory: more than --memory {data.settings.memory} MiB, so it is read block by block in every epoch"
        )
    return lines


def _inputs(data: Data, counts: Counts) -> str:
    reader, learned = data.sources[0].reader, data.learned
    if not learned.vocabulary:
        scales = zip(reader.inputs, learned.mean, learned.deviation, strict=True)
        told = "; ".join(f"{name}: mean {mean:.4g}, deviation {deviation:.4g}" for name, mean, deviation in scales)
        return f"input: {len(reader.inputs)} numbers a step, scaled by the training part ({told})"
    kind = "elements of lists" if reader.lists else data.settings.tokens
    unknown = sum((counts.unknown(learned.vocabulary, part) for part in (1, 2)), start=type(counts.tokens[0])())
    rare = sum(counts.unknown(learned.vocabulary, split.TRAINING).values())
    known = len(learned.vocabulary.tokens)
    line = f"input: column {reader.inputs[0]!r} by {kind}, {known:,} different in the training part"
    if rare:
        line += f" (the most frequent; {rare:,} others there are <unknown>)"
    if not unknown:
        return f"{line}, none unknown in the others"
    shown = ", ".join(quoted(token) for token, _ in unknown.most_common(5))
    return f"{line}; {sum(unknown.values()):,} in the others unknown to it, such as {shown}"


def _labels(data: Data, counts: Counts) -> str:
    labels = data.learned.labels
    total = sum(counts.labels, start=type(counts.labels[0])())
    frequent = sorted(labels, key=lambda label: (-total[label], label))
    shown = ", ".join(f"{label} {total[label]:,}" for label in frequent[:MANY])
    more = f", ... ({len(labels) - MANY} more)" if len(labels) > MANY else ""
    each = "one a step" if data.sources[0].reader.tagging else "one a sequence"
    return f"labels: column {data.settings.label!r}, {each}, {len(labels)} different: {shown}{more}"


def _lengths(data: Data) -> str:
    kept = np.concatenate([source.lengths[source.parts != split.LEFT_OUT] for source in data.sources])
    return f"lengths: {kept.min():,} to {kept.max():,} steps, median {int(np.median(kept)):,}"


def _parts(data: Data, counts: Counts) -> str:
    sizes = [sum(int((source.parts == part).sum()) for source in data.sources) for part in range(3)]
    settings = data.settings
    how = f"column {settings.split!r}" if settings.split else f"seed {settings.seed}"
    if not settings.split and not data.sources[0].reader.tagging:
        how += ", of each label the same fractions"
    files = [name for name in (settings.validation_file, settings.test_file) if name]
    how += f"; {' and '.join(files)}" if files else ""
    few = [label for label in data.learned.labels if not counts.labels[split.TEST][label]] if sizes[split.TEST] else []
    note = f"; not in the test part: {', '.join(few[:5])}{', ...' if len(few) > 5 else ''}" if few else ""
    return f"parts: {sizes[0]:,} to train on, {sizes[1]:,} to validate on, {sizes[2]:,} to test on ({how}){note}"


def _first(data: Data) -> str:
    """The first sequence of the training part in the file, as text and as numbers."""
    source = data.sources[0]
    first = int(np.flatnonzero(source.parts == split.TRAINING)[0])
    index = int(np.searchsorted(source.starts, first, side="right")) - 1
    block = source.reader.block(index)
    begin = int(block.lengths[: first - source.starts[index]].sum())
    length = int(source.lengths[first])
    shown = min(length, 12 if data.learned.vocabulary else 2)
    values = data.learned.encode(block.flat[begin : begin + shown])
    place = begin if source.reader.tagging else first - int(source.starts[index])
    label = block.labels[place]
    number = data.learned.labels.index(label)
    more = ", ..." if length > shown else ""
    if data.learned.vocabulary:
        told = f"[{', '.join(map(str, values.tolist()))}{more}]"
        text = "".join if data.learned.vocabulary.single else " ".join
        flat = block.flat[begin : begin + shown]
        parts = [chr(code) for code in flat.tolist()] if data.learned.vocabulary.single else flat.to_list()
        told = f"{quoted(text(parts))}{' ...' if more else ''} is {told}"
    else:
        told = "[" + ", ".join(str([round(float(number), 3) for number in step]) for step in values) + more + "]"
    what = "its first label" if source.reader.tagging else "its label"
    return f"first: {source.table.where(int(source.rows[first]))}: {told}, {what} {label!r} is {number}"


def results(
    folder: RunFolder, part: str, measured: dict[str, float], matrix: np.ndarray, labels: list[str]
) -> list[str]:
    """Write report.csv, confusion.csv and confusion.png; the lines that say what is in them."""
    from torchrnn.tools.classify.picture import confusion_picture

    rows = scores.report(matrix, labels)
    write_file(folder.root / "report.csv", report_csv(rows).encode())
    write_file(folder.root / "confusion.csv", confusion_csv(matrix, labels).encode())
    write_file(folder.root / "confusion.png", confusion_picture(matrix, labels, part))
    where = [
        f"report:     {folder.root / 'report.csv'}",
        f"confusion:  {folder.root / 'confusion.png'} and confusion.csv",
    ]
    return [*figures(f"{part} part", measured, matrix, labels), *where]


def figures(what: str, measured: dict[str, float], matrix: np.ndarray, labels: list[str]) -> list[str]:
    """The measures, and a line a class."""
    first = (
        f"{what}: accuracy {measured['accuracy']:.4f}, macro F1 {measured['macro_f1']:.4f}, {measured['loss']:.4f} "
        f"nats a label, {int(matrix.sum()):,} labels"
    )
    return [first, *report_lines(scores.report(matrix, labels))]


def report_lines(rows: list[scores.Row]) -> list[str]:
    """The report as a table of text; of many classes those with the lowest F1."""
    shown = rows if len(rows) <= MANY else sorted(rows, key=lambda row: (row.f1, row.label))[:MANY]
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("label", overflow="ellipsis", no_wrap=True, max_width=40)
    for name in ("precision", "recall", "F1", "support"):
        grid.add_column(name, justify="right")
    for row in shown:
        figures = (f"{value:.3f}" for value in (row.precision, row.recall, row.f1))
        grid.add_row(printable(row.label), *figures, f"{row.support:,}")
    text = io.StringIO()
    Console(file=text, width=100, color_system=None, markup=False, highlight=False, emoji=False).print(grid)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return lines + ([f"(the {MANY} of {len(rows)} labels with the lowest F1)"] if len(rows) > MANY else [])


def printable(label: str) -> str:
    """A label on one line."""
    return label if label.isprintable() else label.encode("unicode_escape").decode("ascii")


def report_csv(rows: list[scores.Row]) -> str:
    """report.csv."""
    lines = [[row.label, *(f"{v:.6f}" for v in (row.precision, row.recall, row.f1)), row.support] for row in rows]
    return _csv([["label", "precision", "recall", "f1", "support"], *lines])


def confusion_csv(matrix: np.ndarray, labels: list[str]) -> str:
    """confusion.csv: a row a true label, a column a predicted one."""
    rows = [[label, *counts] for label, counts in zip(labels, matrix.tolist(), strict=True)]
    return _csv([["true \\ predicted", *labels], *rows])


def _csv(rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
