"""Sums over windows from which errors are read: by model, by target and by step of the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from torchrnn.tools.forecast.steps import Array


@dataclass
class Errors:
    """The errors of one model's point forecasts.

    With e = ŷ − y in scaled units and s the spread of the target, MSE is the mean of e², MAE of |e|; in original
    units of (s·e)² and |s·e|. A value that is missing counts nowhere.
    """

    horizon: int
    targets: int
    count: Tensor = field(init=False)  # (h, K)
    sums: Tensor = field(init=False)  # (4, h, K): of e², |e|, (s·e)², |s·e|

    def __post_init__(self) -> None:
        self.count = torch.zeros(self.horizon, self.targets, dtype=torch.float64)
        self.sums = torch.zeros(4, self.horizon, self.targets, dtype=torch.float64)

    def add(self, forecast: Tensor, target: Tensor, spread: Tensor) -> None:
        """Forecasts and what came (h, B, K), scaled, and the spread of each window's targets (B, K)."""
        error = forecast.double() - target.double()
        self.count += (~error.isnan()).sum(1)
        scaled = error * spread
        for number, term in enumerate((error.square(), error.abs(), scaled.square(), scaled.abs())):
            self.sums[number] += term.nansum(1)

    def overall(self) -> Array:
        """MSE, MAE, MSE and MAE in original units, of all steps and targets: (4,)."""
        return (self.sums.sum((1, 2)) / self.count.sum()).numpy()

    def by_target(self) -> Array:
        """The four of each target: (4, K)."""
        return (self.sums.sum(1) / self.count.sum(0)).numpy()

    def by_step(self) -> Array:
        """The four of each step of the horizon: (4, h)."""
        return (self.sums.sum(2) / self.count.sum(1)).numpy()


@dataclass
class QuantileErrors:
    """How often what came lies below each quantile, and the pinball loss: by step of the horizon."""

    quantiles: Sequence[float]
    horizon: int
    count: Tensor = field(init=False)  # (h,)
    below: Tensor = field(init=False)  # (h, Q)
    loss: Tensor = field(init=False)  # (h, Q), scaled units

    def __post_init__(self) -> None:
        self.count = torch.zeros(self.horizon, dtype=torch.float64)
        self.below = torch.zeros(self.horizon, len(self.quantiles), dtype=torch.float64)
        self.loss = torch.zeros(self.horizon, len(self.quantiles), dtype=torch.float64)

    def add(self, forecast: Tensor, target: Tensor) -> None:
        """Forecasts (h, B, K, Q) and what came (h, B, K), scaled."""
        seen = ~target.isnan()
        self.count += seen.sum((1, 2))
        self.below += ((target[..., None] <= forecast) & seen[..., None]).sum((1, 2))
        self.loss += pinball(forecast.double(), target.double(), self.quantiles).nansum((1, 2))

    def coverage(self) -> Array:
        """The part of values at or below each quantile, (Q,): a right forecast has the quantiles themselves."""
        return (self.below.sum(0) / self.count.sum()).numpy()

    def pinball(self) -> Array:
        """The mean pinball loss of each quantile, (Q,)."""
        return (self.loss.sum(0) / self.count.sum()).numpy()


def pinball(forecast: Tensor, target: Tensor, quantiles: Sequence[float]) -> Tensor:
    """q·(y − ŷ) where y is above ŷ, (1 − q)·(ŷ − y) where it is below; NaN where y is missing.

    Forecasts (…, Q) and what came (…) give (…, Q). Its mean is least where ŷ is the q-quantile.

    ```python
    import torch
    from torchrnn.tools.forecast.scores import pinball

    loss = pinball(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]), (0.25, 0.75))
    assert loss.tolist() == [[0.25, 0.25]]
    ```
    """
    q = torch.tensor(quantiles, dtype=forecast.dtype, device=forecast.device)
    error = target[..., None] - forecast
    return torch.maximum(q * error, (q - 1) * error)


@dataclass(frozen=True)
class Lag:
    """How near the forecasts for one step of the horizon are to the series k steps before what they foretell."""

    step: int  # of the horizon, from 1
    season: int
    distance: Array  # (lags,): mean of (ŷ_t − y_{t−k})² for k = 0, 1, …; scaled units
    change: float  # correlation of the foretold change since the last value with the one that came; NaN: no change
    against: float  # MSE of persistence at this step

    @property
    def nearest(self) -> int:
        """The lag at which the series is nearest to the forecast; 0 is what the forecast is of."""
        return int(np.nanargmin(self.distance))

    @property
    def verdict(self) -> str:
        """What that means, in words."""
        if not self.against > 0:
            return "says nothing: the series did not change, so that the last value was right"
        ratio = self.distance[0] / self.against
        near = self.distance[self.nearest] < 0.9 * self.distance[0]
        foretells = f"it foretells the change since then with a correlation of {self.change:.2f}"
        measured = f"and has {ratio:.2f} times the error of persistence"
        if not near:
            return f"follows what came: {foretells}, {measured}"
        if self.nearest == self.step:
            if not self.change > 0.3:
                return f"ONLY THE LAST VALUE: nearest to the last value seen; {foretells}, {measured}"
            return f"leans on the last value seen, but {foretells}, {measured}"
        if self.season > 1 and self.nearest % self.season == 0:
            if not ratio < 1:
                return f"ONLY THE SEASON BEFORE: nearest to {self.nearest} steps earlier; {foretells}, {measured}"
            return f"leans on the season before ({self.nearest} steps earlier), {measured}"
        if ratio < 0.5 and self.change > 0.8:  # a period that is not the season: the same value stood there
            also = f"follows what came, and the series {self.nearest} steps earlier, which may be its --season"
            return f"{also}: {foretells}, {measured}"
        return f"LATE: nearest to the series {self.nearest} steps earlier; {foretells}, {measured}"


def lag_of(step: int, season: int, forecast: Array, past: Array, last: Array) -> Lag:
    """The `Lag` of forecasts (n, K) for one step, of the series before and at it (n, lags, K), the newest first.

    `last` (n, K) is the last value seen.
    """
    with np.errstate(invalid="ignore"):
        squares = (forecast[:, None] - past) ** 2  # (n, lags, K)
        distance = _mean(squares, (0, 2))
        foretold, came = (forecast - last).ravel(), (past[:, 0] - last).ravel()
        both = np.isfinite(foretold) & np.isfinite(came)
        moving = both.sum() > 2 and foretold[both].std() > 0 and came[both].std() > 0
        change = float(np.corrcoef(foretold[both], came[both])[0, 1]) if moving else np.nan
    return Lag(step, season, distance, change, float(_mean((past[:, 0] - last) ** 2, (0, 1))))


def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    count = np.isfinite(values).sum(axes)
    return np.where(count > 0, np.nansum(values, axes, dtype=np.float64) / np.maximum(count, 1), np.nan)
