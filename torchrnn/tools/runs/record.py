"""How far a run has come: its step, one row for every validation, the best of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from torchrnn.tools.runs.job import Measure


@dataclass
class Record:
    """The step, the rows of metrics.csv, the best value so far, and how many validations since."""

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    stale: int = 0

    def add(self, epoch: float, train: dict[str, float], validation: dict[str, float], measure: Measure) -> bool:
        """Add the row of a validation; say whether it is the best so far, by `measure`."""
        row: dict[str, float] = {"step": self.step, "epoch": epoch}
        row |= {f"train_{name}": value for name, value in train.items()}
        row |= {f"validation_{name}": value for name, value in validation.items()}
        self.rows.append(row)
        value = validation[measure.column]
        improved = measure.better(value, self.best)
        self.best = value if improved else self.best
        self.stale = 0 if improved else self.stale + 1
        return improved

    def best_row(self, measure: Measure) -> dict[str, float]:
        """The row of the best validation."""
        choose = min if measure.best == "min" else max
        return choose(self.rows, key=lambda row: row[f"validation_{measure.column}"])

    def check(self, measures: Sequence[Measure]) -> None:
        """Raise a TypeError or ValueError unless this is a record with these measures."""
        columns = {f"{part}_{measure.column}" for measure in measures for part in ("train", "validation")}
        numbers = [value for row in self.rows for value in row.values()]
        if not all(isinstance(value, int | float) for value in (self.step, self.stale, self.best, *numbers)):
            raise TypeError("its record must hold numbers")
        if not self.rows or any(set(row) != {"step", "epoch", *columns} for row in self.rows):
            raise ValueError("its record lacks figures of this job")

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and lists, for a checkpoint."""
        return asdict(self)

    def to_csv(self, measures: Sequence[Measure]) -> str:
        """metrics.csv; it has no column of times, so that equal runs have equal files."""
        columns = [f"{part}_{measure.column}" for measure in measures for part in ("train", "validation")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "epoch", *columns])
        for row in self.rows:
            writer.writerow([int(row["step"]), *(f"{row[name]:.6f}" for name in ("epoch", *columns))])
        return text.getvalue()
