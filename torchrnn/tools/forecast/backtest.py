"""The back-test: forecasts from every origin of a part, beside the baselines, and the tables of their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from torchrnn.tools.forecast.baselines import Linear, persistence, seasonal_naive
from torchrnn.tools.forecast.scores import Errors, Lag, QuantileErrors, lag_of
from torchrnn.tools.forecast.steps import Array
from torchrnn.tools.forecast.windows import Batch, Windows

NETWORK, PERSISTENCE, SEASONAL, LINEAR = "network", "persistence", "seasonal naive", "linear"
SHOWN = 4  # windows in the picture
LAGS = 400  # at most
ROWS = 256  # windows computed at once


@dataclass
class Example:
    """One window of the picture: scaled back to the units of the file."""

    row: int  # the first of the horizon
    series: str
    history: Array  # (T, K)
    target: Array  # (h, K)
    forecasts: dict[str, Array]  # of each model (h, K)
    quantiles: Array | None  # (h, K, Q)


@dataclass
class Backtest:
    """What a back-test found."""

    windows: Windows
    season: int
    levels: tuple[float, ...]
    errors: dict[str, Errors]
    quantiles: dict[str, QuantileErrors]  # of the network and the linear baseline; none for a point forecast
    lags: list[Lag]
    examples: list[Example]


def baselines(linear: Linear, horizon: int, season: int, history: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The baselines by name; seasonal naive is there if the past holds a season."""
    found: dict[str, Callable[[Tensor], Tensor]] = {PERSISTENCE: lambda past: persistence(past, horizon)}
    if 1 < season <= history:
        found[SEASONAL] = lambda past: seasonal_naive(past, horizon, season)
    return found | {LINEAR: linear}


def in_batches(windows: Windows, rows: int = ROWS) -> Iterator[Batch]:
    """All windows in order."""
    for start in range(0, len(windows), rows):
        yield windows.batch(np.arange(start, min(start + rows, len(windows))))


@torch.no_grad()
def run(model: nn.Module, windows: Windows, linear: Linear, season: int, levels: tuple[float, ...]) -> Backtest:
    """Forecast every window with the model (in its evaluating state) and the baselines, and measure."""
    horizon, K = windows.horizon, len(windows.roles.targets)
    models = baselines(linear, horizon, season, windows.history)
    errors = {name: Errors(horizon, K) for name in (NETWORK, *models)}
    quantiles = {name: QuantileErrors(levels, horizon) for name in (NETWORK, LINEAR) if levels}
    lags = _Lags(windows, season)
    chosen = set(np.linspace(0, len(windows) - 1, min(SHOWN, len(windows))).astype(int).tolist())
    examples, before = [], 0
    for batch in in_batches(windows):
        sorted_quantiles = forecast(model, batch)  # (h, B, K, Q)
        point = sorted_quantiles[..., levels.index(0.5) if levels else 0]
        points = {NETWORK: point} | {name: model(batch.history) for name, model in models.items()}
        center, spread = scales(windows, batch.rows.numpy())
        for name, values in points.items():
            errors[name].add(values, batch.target, spread)
        if levels:
            quantiles[NETWORK].add(sorted_quantiles, batch.target)
            quantiles[LINEAR].add(linear.quantiles(batch.history), batch.target)
        lags.add(point, batch)
        for place in range(len(batch.rows)):
            if before + place in chosen:
                shown = sorted_quantiles if levels else None
                examples.append(_example(windows, batch, place, points, shown, center[place], spread[place]))
        before += len(batch.rows)
    return Backtest(windows, season, levels, errors, quantiles, lags.found(), examples)


def forecast(model: nn.Module, batch: Batch) -> Tensor:
    """The model's forecasts (h, B, K, Q), its quantiles in order: where two cross, they change places."""
    device = next(model.parameters()).device
    moved = Batch._make(None if part is None else part.to(device) for part in batch)
    return model(moved).sort(-1).values.cpu()


def scales(windows: Windows, rows: Array) -> tuple[Tensor, Tensor]:
    """Center and spread (B, K) of the targets of the windows that predict from these rows on."""
    series = [windows.panel.names[one] for one in windows.panel.series_of(rows - 1)]
    at, K = windows.scaling.rows_for(series), len(windows.roles.targets)
    return torch.from_numpy(windows.scaling.center[at, :K]), torch.from_numpy(windows.scaling.spread[at, :K])


def _example(
    windows: Windows,
    batch: Batch,
    place: int,
    points: dict[str, Tensor],
    quantiles: Tensor | None,
    c: Tensor,
    s: Tensor,
) -> Example:
    row = int(batch.rows[place])
    series = windows.panel.names[int(windows.panel.series_of(np.array([row - 1]))[0])]
    return Example(
        row,
        series,
        (batch.history[:, place] * s + c).numpy(),
        (batch.target[:, place] * s + c).numpy(),
        {name: (values[:, place] * s + c).numpy() for name, values in points.items()},
        None if quantiles is None else (quantiles[:, place] * s[:, None] + c[:, None]).numpy(),
    )


class _Lags:
    """Collects the forecasts for a few steps of the horizon, and the series at and before them."""

    def __init__(self, windows: Windows, season: int) -> None:
        self.windows, self.season = windows, season
        h = windows.horizon
        self.steps = sorted({1, min(max(season, 2), h), h})
        self.kept: dict[int, list[tuple[Array, Array, Array]]] = {step: [] for step in self.steps}
        # beyond some thousands of windows the means no longer change, and the memory would
        self.every = max(1, len(windows) // 4096)
        self.count = 0

    def add(self, point: Tensor, batch: Batch) -> None:
        first = -self.count % self.every
        self.count += point.shape[1]
        some = slice(first, None, self.every)
        whole = torch.cat([batch.history, batch.target])[:, some].numpy()  # (T + h, B, K)
        T = self.windows.history
        for step in self.steps:
            at = T + step - 1
            lags = min(at + 1, LAGS, max(step + 2, 2 * self.season + 2, 12))
            past = whole[at - lags + 1 : at + 1][::-1].swapaxes(0, 1)  # (B, lags, K)
            self.kept[step].append((point[step - 1, some].numpy(), past, batch.level[some].numpy()))

    def found(self) -> list[Lag]:
        parts = {step: [np.concatenate(each) for each in zip(*kept, strict=True)] for step, kept in self.kept.items()}
        return [lag_of(step, self.season, *part) for step, part in parts.items()]
