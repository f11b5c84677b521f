"""What was measured, as lines of a table, geometric means, JSON and a picture."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import torchrnn
from benchmarks.measure import BESIDE, OURS, Ratio, Row, geometric_mean


def heading() -> str:
    """The first line of the table."""
    return (
        f"{'case':<20}{'mode':<10}{f'{OURS} µs':>12}{'torch.nn µs':>13}{'ours/torch.nn [10–90 %]':>26}"
        f"{'best rival':>13}{'ours/best [10–90 %]':>22}{'GF/s':>8}{'torch.nn':>9}{'sgemm':>8}"
    )


def line(row: Row) -> str:
    """A row of the table; the last column is our share of the sgemm rate."""
    best = row.best_rival() or (BESIDE if BESIDE in row.ratios else None)
    against = _spread(row.ratios[best]) if best else "–"
    return (
        f"{row.case.name:<20}{row.mode:<10}{row.microseconds[OURS]:>12.1f}{row.microseconds['torch.nn']:>13.1f}"
        f"{_spread(row.ratios['torch.nn']):>26}{best or '–':>13}{against:>22}"
        f"{row.gflops(OURS):>8.1f}{row.gflops('torch.nn'):>9.1f}{row.gflops(OURS) / row.sgemm:>8.0%}"
    )


def markdown(rows: Iterable[Row]) -> str:
    """The table of the README: a line a case, ratios with torch.nn and with the best rival in each mode, or, where
    torch.nn's part is done by hand, with what was timed beside.
    """
    rows = list(rows)
    other = "beside" if all(row.case.by_hand for row in rows) else "best rival"
    by_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault(row.case.name, {})[row.mode] = row
    modes = list(dict.fromkeys(mode for own in by_case.values() for mode in own))
    columns = [f"{mode}: ours µs | torch.nn | {other} | GF/s (sgemm)" for mode in modes]
    lines = [f"| case | {' | '.join(columns)} |", "|---|" + "---:|---|---|---:|" * len(modes)]
    for name, own in by_case.items():
        lines.append(f"| {name} | " + " | ".join(_cells(own[m]) if m in own else "– | | |" for m in modes) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> str:
    best = row.best_rival()
    against = f"**{row.ratios[best].median:.2f}** {best}" if best else "–"
    if row.case.by_hand:
        against = _bold(row.ratios[BESIDE])
    rates = f"{row.gflops(OURS):.1f} ({row.gflops(OURS) / row.sgemm:.0%})"
    return f"{row.microseconds[OURS]:.1f} | {_bold(row.ratios['torch.nn'])} | {against} | {rates}"


def _spread(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.2f}–{ratio.high:.2f}]"


def _bold(ratio: Ratio) -> str:
    return f"**{ratio.median:.2f}** [{ratio.low:.2f}–{ratio.high:.2f}]"


def geometric_means(rows: Iterable[Row]) -> dict[tuple[str, str, str], float]:
    """The geometric mean of the ratios by (kind or group of cases, mode, rival)."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for rival, ratio in row.ratios.items():
            groups.setdefault((row.case.group, row.mode, rival), []).append(ratio.median)
    return {key: geometric_mean(values) for key, values in groups.items()}


def summary(rows: list[Row]) -> str:
    """Geometric mean and worst case by kind and mode: against torch.nn, and against the best rival of each case."""
    lines = [f"{'kind':<14}{'mode':<10}{'torch.nn':>9}{'worst':>7} {'':<20}{'best rival':>11}{'worst':>7}"]
    for kind, mode in dict.fromkeys((r.case.group, r.mode) for r in rows):
        own = [r for r in rows if (r.case.group, r.mode) == (kind, mode)]
        worst = max(own, key=lambda r: r.ratios["torch.nn"].median)
        text = f"{kind:<14}{mode:<10}{geometric_mean(r.ratios['torch.nn'].median for r in own):>9.3f}"
        text += f"{worst.ratios['torch.nn'].median:>7.3f} {worst.case.name:<20}"
        best = [(r.ratios[name].median, r.case.name, name) for r in own if (name := r.best_rival())]
        if best:
            value, case, name = max(best)
            text += f"{geometric_mean(b[0] for b in best):>11.3f}{value:>7.3f} {case} ({name})"
        lines.append(text)
    return "\n".join(lines)


def as_json(rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """All that was measured."""
    return {
        "date": date.today().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "torch": torch.__version__,
        "torchrnn": torchrnn.__version__,
        "options": {k: v for k, v in vars(options).items() if k not in ("json", "picture")},
        "rows": [
            row._asdict()
            | {
                "case": row.case._asdict(),
                "ratios": {name: ratio._asdict() for name, ratio in row.ratios.items()},
                "best_rival": row.best_rival(),
                "gflops": {name: row.gflops(name) for name in row.microseconds},
            }
            for row in rows
        ],
        "geometric_means": [
            {"kind": kind, "mode": mode, "rival": rival, "ratio": mean}
            for (kind, mode, rival), mean in geometric_means(rows).items()
        ],
    }


def picture(rows: list[Row], file: str | Path) -> None:
    """Bars of how many times faster we are than torch.nn, and a mark for the best rival of each case; log scale."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("agg")
    plt: Any = import_module("matplotlib.pyplot")
    modes = list(dict.fromkeys(row.mode for row in rows))
    names = list(dict.fromkeys(row.case.name for row in rows))
    height = 1.5 + 0.19 * len(names)
    figure, axes = plt.subplots(1, len(modes), figsize=(1 + 5 * len(modes), height), sharey=True, squeeze=False)
    colours = {"RNN": "tab:green", "LSTM": "tab:blue", "GRU": "tab:orange"}
    for ax, mode in zip(axes[0], modes, strict=True):
        own = [row for row in rows if row.mode == mode]
        at = [names.index(row.case.name) for row in own]
        speedups = [1 / row.ratios["torch.nn"].median for row in own]
        ax.barh(at, [s - 1 for s in speedups], left=1, color=[colours[row.case.cell] for row in own])
        best = [(k, 1 / row.ratios[name].median) for k, row in zip(at, own, strict=True) if (name := row.best_rival())]
        if best:
            ax.plot(
                [b for _, b in best],
                [k for k, _ in best],
                "k|",
                markersize=7,
                label="the best other library's time over ours",
            )
            ax.legend(loc="lower right", fontsize=8)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}×"))
        ax.set_title(f"{mode}: torch.nn's time over ours", fontsize=10)
        ax.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
