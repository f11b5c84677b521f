"""The pictures of a back-test: forecasts beside what came, the error by step, and whether a forecast is only late."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchrnn.tools.forecast.backtest import LINEAR, NETWORK, PERSISTENCE, SEASONAL, Backtest, Example
from torchrnn.tools.forecast.scores import Lag

COLORS = {NETWORK: "#d62728", LINEAR: "#1f77b4", SEASONAL: "#2ca02c", PERSISTENCE: "#888888"}
FORECASTS, BY_STEP, LATE = "forecasts.png", "error_by_step.png", "lag.png"
TARGETS = 3  # shown beside each other


def pictures(test: Backtest) -> dict[str, bytes]:
    """The PNG files by their names."""
    return {FORECASTS: _png(_forecasts(test)), BY_STEP: _png(_by_step(test)), LATE: _png(_late(test))}


def _forecasts(test: Backtest) -> Figure:
    targets = test.windows.roles.targets[:TARGETS]
    rows = max(1, len(test.examples))
    figure = Figure(figsize=(6.2 * len(targets) + 1.2, 2.5 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, len(targets), squeeze=False)
    for line, example in zip(grid, test.examples, strict=False):
        for number, axes in enumerate(line):
            _window(axes, test, example, number)
    for number, target in enumerate(targets):
        grid[0, number].annotate(
            target,
            (0.5, 1),
            xytext=(0, 22),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=11,
        )
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One for all axes, below them, where it covers nothing."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 3))


def _window(axes: Axes, test: Backtest, example: Example, number: int) -> None:
    horizon = test.windows.horizon
    read = min(len(example.history), max(2 * test.season, horizon, 12))
    past, future = np.arange(-read, 0), np.arange(horizon)
    came = np.concatenate([example.history[-1:, number], example.target[:, number]])
    # values between missing ones have no line
    dot = "." if np.isnan(example.history[-read:, number]).any() or np.isnan(came).any() else None
    axes.plot(past, example.history[-read:, number], color="black", linewidth=1, marker=dot)
    axes.plot(np.arange(-1, horizon), came, color="black", linewidth=1.6, marker=dot, label="what came")
    for name, values in example.forecasts.items():
        # the baselines lie above the network, so that one shows which is the same
        style: dict[str, Any] = {"linewidth": 2.2} if name == NETWORK else {"linewidth": 1, "linestyle": "--"}
        marker = "." if horizon == 1 else None
        label = f"{name} (median)" if name == NETWORK and example.quantiles is not None else name
        axes.plot(future, values[:, number], color=COLORS[name], label=label, marker=marker, **style)
    if example.quantiles is not None:
        low, high = example.quantiles[:, number, 0], example.quantiles[:, number, -1]
        label = f"quantiles {test.levels[0]:g} to {test.levels[-1]:g}"
        axes.fill_between(future, low, high, color=COLORS[NETWORK], alpha=0.18, linewidth=0, label=label)
    axes.axvline(-0.5, color="black", linewidth=0.6, linestyle=":")
    panel = test.windows.panel
    of = f"series {example.series}, " if example.series else ""
    tick = int(panel.ticks_before(np.array([example.row]))[0])
    axes.set_title(f"{of}from {panel.show(tick)}", fontsize=9)
    axes.set_xlabel(f"steps of {panel.step} from the first that is foretold", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def _by_step(test: Backtest) -> Figure:
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    steps = np.arange(1, test.windows.horizon + 1)
    for name, errors in test.errors.items():
        style: dict[str, Any] = {"linewidth": 2} if name == NETWORK else {"linewidth": 1.2, "linestyle": "--"}
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, errors.by_step()[0], color=COLORS[name], label=name, marker=marker, **style)
    axes.set_xlabel(f"step of the horizon ({test.windows.panel.step} each)")
    axes.set_ylabel("mean squared error, scaled")
    axes.set_ylim(bottom=0)
    axes.set_title("error by step of the horizon", fontsize=11)
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _late(test: Backtest) -> Figure:
    figure = Figure(figsize=(5.2 * len(test.lags) + 0.8, 5.0), layout="constrained")
    for axes, lag in zip(figure.subplots(1, len(test.lags), squeeze=False)[0], test.lags, strict=True):
        _lag(axes, lag)
    figure.suptitle("Is the forecast only yesterday's value? Its distance to the series at earlier times", fontsize=11)
    _legend(figure)
    return figure


def _lag(axes: Axes, lag: Lag) -> None:
    shifts = np.arange(len(lag.distance))
    axes.plot(shifts, lag.distance, color=COLORS[NETWORK], marker=".", markersize=4)
    marks = [(0, "what came", "black"), (lag.step, "the last value seen", COLORS[PERSISTENCE])]
    if lag.season > 1 and lag.season != lag.step:  # else both are one
        marks.append((lag.season, "a season before", COLORS[SEASONAL]))
    for shift, label, color in marks:
        if shift < len(shifts):
            axes.plot(shift, lag.distance[shift], "o", color=color, markersize=8, label=label)
    axes.plot(
        lag.nearest, lag.distance[lag.nearest], "o", color="black", fillstyle="none", markersize=14, label="nearest"
    )
    axes.set_xlabel("steps that the series is shifted back")
    axes.set_ylabel("mean squared distance to the forecast, scaled")
    axes.set_ylim(bottom=0)
    verdict = textwrap.fill(lag.verdict, 58)
    axes.set_title(f"forecast for step {lag.step}\n{verdict}", fontsize=8.5, loc="left")
    axes.grid(alpha=0.3)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
