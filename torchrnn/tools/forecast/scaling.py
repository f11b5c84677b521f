"""Bringing columns to one scale by what the training part says of them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrnn.tools.forecast.panel import Panel
from torchrnn.tools.forecast.steps import Array

KINDS = ("standard", "robust", "none")
CHUNK = 1 << 20  # rows read at once, where the values lie on the disk


@dataclass(frozen=True)
class Scaling:
    """z = (x − center) / spread, for each column, and for each series where `of` names them.

    standard: mean and standard deviation; robust: median and quartile distance / 1.349 (that of a normal
    distribution's is 1); none: 0 and 1. The last row is that of all series together: it serves a series that the
    training part lacks. A column that never changes keeps its spread of 1.
    """

    kind: str
    of: Sequence[str]  # (S,), empty: one scale for all series
    center: Array  # (S + 1, columns)
    spread: Array  # (S + 1, columns)

    @classmethod
    def measure(cls, panel: Panel, train_end: int, kind: str, by_series: bool) -> Scaling:
        """The scale of the rows before the tick `train_end`, and of nothing after."""
        own = by_series and len(panel.names) > 1
        parts = [panel.rows(series, 0, train_end) for series in range(len(panel.names))]
        overall = _measure(panel.values, parts, kind)
        scales = [_measure(panel.values, [part], kind, overall) for part in parts] if own else []
        center, spread = (np.stack([*(scale[i] for scale in scales), overall[i]]) for i in (0, 1))
        return cls(kind, list(panel.names) if own else [], center, spread)

    def rows_for(self, names: Iterable[str]) -> Array:
        """Which row of the scale each of these series takes."""
        known = {name: row for row, name in enumerate(self.of)}
        return np.array([known.get(name, len(self.of)) for name in names])

    def apply(self, values: Array, rows: Array) -> Array:
        """Values (B, T, columns) of series with these rows (B,), scaled."""
        return ((values - self.center[rows][:, None]) / self.spread[rows][:, None]).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers and lists, for config.toml."""
        lists = {"center": self.center.tolist(), "spread": self.spread.tolist()}
        return {"scale": self.kind, "scale_series": list(self.of)} | lists

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scaling:
        """What `to_dict` gave."""
        center, spread = np.array(data["center"], float), np.array(data["spread"], float)
        if center.ndim != 2 or center.shape != spread.shape or len(center) != len(data["scale_series"]) + 1:
            raise ValueError("center and spread must have a row for each of scale_series and one for all together")
        if not np.isfinite(center).all() or not np.isfinite(spread).all() or not (spread > 0).all():
            raise ValueError("center must hold finite numbers, and spread such above 0")
        return cls(str(data["scale"]), list(data["scale_series"]), center, spread)


def _measure(values: Array, parts: list[slice], kind: str, otherwise: tuple[Array, Array] | None = None) -> Any:
    columns = values.shape[1]
    center, spread = np.zeros(columns), np.ones(columns)
    if kind == "none":
        return center, spread
    for column in range(columns):
        found = _robust(values, parts, column) if kind == "robust" else _standard(values, parts, column)
        if found is None and otherwise is not None:
            found = otherwise[0][column], otherwise[1][column]
        if found is not None:
            center[column], spread[column] = found[0], found[1] if found[1] > 0 else 1.0
    return center, spread


def _standard(values: Array, parts: list[slice], column: int) -> tuple[float, float] | None:
    """Mean and standard deviation by chunks: two passes, so that a large mean costs no digits."""
    count, total = 0, 0.0
    for chunk in _chunks(values, parts, column):
        count, total = count + len(chunk), total + chunk.sum()
    if not count:
        return None
    mean = total / count
    squares = sum(((chunk - mean) ** 2).sum() for chunk in _chunks(values, parts, column))
    spread = float(np.sqrt(squares / count))
    return mean, spread if spread > 1e-7 * abs(mean) else 0.0  # below, it is what float32 rounded off


def _robust(values: Array, parts: list[slice], column: int) -> tuple[float, float] | None:
    all_values = np.concatenate([*_chunks(values, parts, column), np.zeros(0)])
    if not len(all_values):
        return None
    low, middle, high = np.quantile(all_values, (0.25, 0.5, 0.75))
    return float(middle), float(high - low) / 1.349


def _chunks(values: Array, parts: list[slice], column: int) -> Any:
    for part in parts:
        for start in range(part.start, part.stop, CHUNK):
            chunk = np.asarray(values[start : min(start + CHUNK, part.stop), column], np.float64)
            yield chunk[np.isfinite(chunk)]
