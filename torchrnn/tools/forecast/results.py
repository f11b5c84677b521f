"""What a back-test says, as lines to print and as CSV files of the run folder."""

from __future__ import annotations

import csv
import io

import numpy as np

from torchrnn.tools.forecast.backtest import NETWORK, Backtest
from torchrnn.tools.forecast.steps import Array

LEVEL = 0.01  # errors that differ by less are called the same
COLUMNS = ("mse", "mae", "mse_in_units", "mae_in_units")
BACKTEST, STEPS, QUANTILES, LAGS = "backtest.csv", "error_by_step.csv", "quantiles.csv", "lag.csv"


def told(test: Backtest) -> list[str]:
    """The errors of the network and the baselines, what the quantiles are worth, and the verdicts on lateness."""
    count = len(test.windows)
    units = "" if len(test.windows.roles.targets) > 1 else "; in brackets in units of the file"
    lines = [f"back-test: {count:,} windows, from every origin; errors of scaled values{units}"]
    width = max(map(len, test.errors))
    overall = {name: errors.overall() for name, errors in test.errors.items()}
    for name, (mse, mae, unit_mse, unit_mae) in overall.items():
        units = "" if len(test.windows.roles.targets) > 1 else f"   ({unit_mse:.4g}, {unit_mae:.4g})"
        lines.append(f"  {name:<{width}}   MSE {mse:.4f}   MAE {mae:.4f}{units}")
    lines.append(f"  {_comparison(overall)}")
    for name, quantiles in test.quantiles.items():
        pairs = zip(test.levels, quantiles.coverage(), strict=True)
        parts = ", ".join(f"{part:.1%} below {level:g}" for level, part in pairs)
        lines.append(f"  {name:<{width}}   pinball {quantiles.pinball().mean():.4f}   of the values that came {parts}")
    lines += [f"  step {lag.step}: {lag.verdict}" for lag in test.lags]
    return lines


def _comparison(overall: dict[str, Array]) -> str:
    network = overall[NETWORK][0]
    best = min((name for name in overall if name != NETWORK), key=lambda name: overall[name][0])
    change = network / overall[best][0] - 1 if overall[best][0] > 0 else np.inf if network > 0 else 0.0
    if change < -LEVEL:
        return f"the network is better than all baselines: its MSE is {-change:.1%} below that of {best}"
    if change <= LEVEL:
        return f"THE NETWORK IS NO BETTER THAN {best}: its MSE is within {LEVEL:.0%} of it; use the simpler one"
    return f"THE NETWORK IS WORSE THAN {best}: its MSE is {change:.1%} above; use that, or train otherwise"


def tables(test: Backtest) -> dict[str, bytes]:
    """The CSV files by their names."""
    targets = test.windows.roles.targets
    found = {BACKTEST: [["model", "target", *COLUMNS]], STEPS: [["model", "step", *COLUMNS]]}
    for name, errors in test.errors.items():
        found[BACKTEST].append([name, "all", *_cells(errors.overall())])
        for number, target in enumerate(targets):
            found[BACKTEST].append([name, target, *_cells(errors.by_target()[:, number])])
        for step, row in enumerate(errors.by_step().T, start=1):
            found[STEPS].append([name, str(step), *_cells(row)])
    if test.quantiles:
        found[QUANTILES] = [["model", "quantile", "coverage", "pinball"]]
    for name, quantiles in test.quantiles.items():
        for level, *row in zip(test.levels, quantiles.coverage(), quantiles.pinball(), strict=True):
            found[QUANTILES].append([name, f"{level:g}", *_cells(row)])
    found[LAGS] = [["step", "lag", "mean_squared_distance"]]
    for lag in test.lags:
        found[LAGS] += [[str(lag.step), str(k), *_cells([value])] for k, value in enumerate(lag.distance)]
    return {name: _csv(rows) for name, rows in found.items()}


def _cells(values: Array | list[float]) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.6g}" for value in values]


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
