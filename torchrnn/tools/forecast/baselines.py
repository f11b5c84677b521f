"""What a forecast is measured against: the last value, the last season, and a linear map of the past."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from torchrnn.tools.forecast.steps import Array

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of an input; the validation part chooses


def persistence(history: Tensor, horizon: int) -> Tensor:
    """The last observed value for the whole horizon: (T, B, K) to (h, B, K); 0 where none was observed.

    ```python
    import torch
    from torchrnn.tools.forecast.baselines import persistence

    history = torch.tensor([1.0, 3.0, float("nan")]).view(3, 1, 1)
    assert persistence(history, 2).flatten().tolist() == [3, 3]
    ```
    """
    return filled(history)[-1].expand(horizon, -1, -1)


def seasonal_naive(history: Tensor, horizon: int, season: int) -> Tensor:
    """The value a season before, or as many seasons before as the past takes: (T, B, K) to (h, B, K).

    ŷ_{t+i} = y_{t+i−season·⌈i/season⌉}; where that is missing, a season earlier, at last the last observed value.
    """
    T = len(history)
    if not 1 <= season <= T:
        raise ValueError(f"season must be from 1 to T = {T}, got {season}")
    result = history.new_full((horizon, *history.shape[1:]), torch.nan)
    steps = torch.arange(horizon)
    for back in range(1, -(-T // season) + 1):
        earlier = T - back * season + steps % season  # the i-th step of the season that ended `back - 1` seasons ago
        there = (earlier >= 0).view(-1, 1, 1) & result.isnan()
        result = torch.where(there, history[earlier.clamp(min=0)], result)
    return torch.where(result.isnan(), persistence(history, horizon), result)


def filled(history: Tensor) -> Tensor:
    """Each missing value becomes the one observed before it, or else the first after it, or else 0: (T, B, K)."""
    T = len(history)
    at = torch.arange(T, device=history.device).view(T, 1, 1)
    seen = ~history.isnan()
    before = torch.where(seen, at, -1).cummax(0).values
    after = torch.where(seen, at, T).flip(0).cummin(0).values.flip(0)
    source = torch.where(before >= 0, before, after.clamp(max=T - 1))
    return history.gather(0, source).nan_to_num(0.0)


@dataclass(frozen=True)
class Linear:
    """ŷ = W (y − y_last) + b + y_last: for each target by itself, all its series together, the horizon at once.

    W and b are the ridge regression of the training windows, in closed form, the penalty chosen on the validation
    part. So this is what the past of a target says linearly of its future. Its quantiles are ŷ and the quantiles of
    y − ŷ on the validation part, for each step of the horizon.
    """

    weight: Tensor  # (K, T, h)
    bias: Tensor  # (K, h)
    offsets: Tensor  # (h, K, Q): of the quantiles; zero, and Q = 1, for a point forecast

    def __call__(self, history: Tensor) -> Tensor:
        """(T, B, K) to (h, B, K)."""
        past = filled(history)
        last = past[-1]  # (B, K)
        change = torch.einsum("tbk,kth->hbk", past - last, self.weight.to(past))
        return change + self.bias.to(past).t()[:, None] + last

    def quantiles(self, history: Tensor) -> Tensor:
        """(T, B, K) to (h, B, K, Q)."""
        point = self(history)
        return point[..., None] + self.offsets.to(point)[:, None]

    def with_offsets(self, windows: Iterable[tuple[Tensor, Tensor]], levels: Sequence[float]) -> Linear:
        """The same with the quantiles of its errors on these (history, target) batches."""
        errors = torch.cat([target - self(past) for past, target in windows], 1).double()  # (h, n, K)
        offsets = errors.nanquantile(torch.tensor(levels, dtype=torch.float64), 1)  # (Q, h, K)
        return replace(self, offsets=offsets.permute(1, 2, 0).nan_to_num(0.0).contiguous())


class RidgeFit:
    """The sums of a ridge regression over windows, added batch by batch, and its solutions."""

    def __init__(self, history: int, horizon: int, targets: int) -> None:
        size = history + 1  # the last input is the constant 1
        self.gram = torch.zeros(targets, size, size, dtype=torch.float64)
        self.moment = torch.zeros(targets, size, horizon, dtype=torch.float64)

    def add(self, history: Tensor, target: Tensor) -> None:
        """Windows (T, B, K) and what came (h, B, K).

        Missing values of the past are filled, as for a forecast; a window that misses a value of the horizon is left
        out.
        """
        whole = ~(history.isnan().all(0) | target.isnan().any(0))  # (B, K)
        history = filled(history)
        for k in range(history.shape[2]):
            past = history[:, whole[:, k], k].double().t()  # (B, T)
            if not len(past):
                continue
            last = past[:, -1:]
            inputs = torch.cat([past - last, torch.ones_like(last)], 1)  # (B, T + 1)
            change = target[:, whole[:, k], k].double().t() - last  # (B, h)
            self.gram[k] += inputs.t() @ inputs
            self.moment[k] += inputs.t() @ change

    def solve(self, ridge: float) -> Linear:
        """The weights with a penalty of `ridge` times the mean of the inputs' squares, but for the constant."""
        size = self.gram.shape[1]
        diagonal = self.gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1)  # (K,)
        penalty = torch.eye(size, dtype=torch.float64)
        penalty[-1, -1] = 0
        # a target without windows, or one that never changes, has no equations: then ŷ = y_last
        floor = 1e-9 * torch.eye(size, dtype=torch.float64)
        system = self.gram + ridge * diagonal[:, None, None] * penalty + floor
        solution = torch.linalg.solve(system, self.moment)  # (K, T + 1, h)
        targets, _, horizon = solution.shape
        return Linear(solution[:, :-1], solution[:, -1], solution.new_zeros(horizon, targets, 1))


def fit_linear(
    windows: Iterable[tuple[Tensor, Tensor]],
    validation: Iterable[tuple[Tensor, Tensor]],
    history: int,
    horizon: int,
    targets: int,
    ridges: Sequence[float] = RIDGES,
) -> tuple[Linear, float]:
    """The linear baseline of these (history, target) batches, and the ridge that the validation batches chose."""
    fit = RidgeFit(history, horizon, targets)
    for past, target in windows:
        fit.add(past, target)
    candidates = [fit.solve(ridge) for ridge in ridges]
    errors: Array = np.zeros(len(ridges))
    for past, target in validation:
        for number, candidate in enumerate(candidates):
            errors[number] += (candidate(past) - target).double().square().nansum().item()
    best = int(errors.argmin())
    return candidates[best], ridges[best]
