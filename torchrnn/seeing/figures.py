"""Figures of what `torchrnn.watch` has seen; the only module beside the tools that needs matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from torchrnn.seeing.seen import Seen, squashed
from torchrnn.seeing.shapes import GATES

_MARGIN = 0.1  # of a range, that counts as its end
_MARKS = "osD^vP*X"


class _Shown(Figure):
    """A figure that a notebook shows; made without pyplot, so without a window system or anything global."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=110)
        return data.getvalue()


def _pieces(seen: Seen, name: str) -> Iterator[tuple[str, Tensor]]:
    """A state or gate by layer and direction, with their name: (T, B, H), of one sequence (T, H)."""
    D = 2 if seen.layer.bidirectional else 1
    for k, value in enumerate(getattr(seen.trace, name)):
        for d in range(D):
            yield _where(seen, k, d), value[d]


def _where(seen: Seen, k: int, d: int) -> str:
    direction = ("", "") if not seen.layer.bidirectional else (" forward", " backward")
    return f"layer {k}{direction[d]}"


def states(seen: Seen, row: int) -> Figure:
    """Heat maps of every state of one row."""
    counted = seen.counted
    B = counted[0].numel()
    if not -B <= row < B:
        raise ValueError(f"row must be below the batch of {B}, got {row}")
    steps = counted.flatten(1)[:, row] if counted.dim() > 1 else counted
    panels = [(name, *piece) for name in seen.layer.cell.states for piece in _pieces(seen, name)]
    count = len(seen.layer.cell.states)
    across = len(panels) // count
    figure = _Shown(figsize=(max(5.6, 1 + 4.2 * across), 0.9 + 2.6 * count), layout="constrained")
    grid = figure.subplots(count, across, squeeze=False)
    for (name, where, value), axes in zip(panels, grid.flat, strict=True):
        image = (value.flatten(1, -2)[:, row] if value.dim() > 2 else value)[steps].T.double()  # (H, T)
        most = max(float(image.abs().max()) if image.numel() else 0.0, 1e-12)
        shown = axes.imshow(image.numpy(), aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-most, vmax=most)
        figure.colorbar(shown, ax=axes, pad=0.02)
        axes.set_title(f"{name} of {where}", fontsize=10)
        axes.set_xlabel("step that counts" if not bool(steps.all()) else "step")
        axes.set_ylabel("unit")
        axes.locator_params(integer=True)
    figure.suptitle(f"{_name(seen)}\nstates of row {row}", fontsize=11)
    return figure


def _name(seen: Seen) -> str:
    return f"{type(seen.layer).__name__}({seen.layer.input_size}, {seen.layer.hidden_size})"


def _squares(count: int) -> tuple[Figure, list[Any]]:
    """A figure of so many square panels, not wider than three, that can still be read on a page."""
    across = 2 if count in (2, 4) else min(count, 3)
    down = -(-count // across)
    figure = _Shown(figsize=(max(5.6, 0.8 + 2.9 * across), 1.1 + 3.1 * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for empty in grid[count:]:
        empty.remove()
    return figure, grid[:count]


def gates(seen: Seen) -> Figure:
    """A point a unit: how often its gate is at the lower end of its range, and at the upper one."""
    shares, ranges = seen.saturation(_MARGIN), squashed(seen.layer)
    if not shares:
        raise ValueError(f"no gate or state of {seen.layer.cell.name!r} is squashed into a range, so none can saturate")
    figure, grid = _squares(len(shares))
    words = GATES.get(seen.layer.cell.name, {})
    handles: list[Any] = []
    for (name, layers), axes in zip(shares.items(), grid, strict=True):
        handles = []
        for k, layer in enumerate(layers):
            for d, units in enumerate(layer):
                mark = _MARKS[(2 * k + d) % len(_MARKS)]
                x, y = units.T.tolist()
                handles += axes.plot(x, y, mark, markersize=5, alpha=0.6, clip_on=False, label=_where(seen, k, d))
        axes.plot([0, 1], [1, 0], color="0.7", linewidth=0.8, zorder=0)
        low, high = ranges[name]
        near = _MARGIN * (high - low)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel(f"share of steps < {low + near:g}")
        axes.set_ylabel(f"share of steps > {high - near:g}")
        axes.set_title(f"{name}, {words[name]}" if name in words else name, fontsize=10)
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(f"{_name(seen)}\nhow often each unit is at an end of its range", fontsize=11)
    return figure


def gradients(named: dict[str, Seen]) -> Figure:
    """The norm of ∂loss/∂h_t by step, of several layers beside each other."""
    figure = _Shown(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    several = False
    for title, seen in named.items():
        norms = seen.gradient_norms()
        several = several or norms.size(0) * norms.size(1) > 1
        for k, layer in enumerate(norms.tolist()):
            for d, line in enumerate(layer):
                label = title if norms.size(0) * norms.size(1) == 1 else f"{title}, {_where(seen, k, d)}"
                positive = [value if value > 0 else float("nan") for value in line]
                axes.plot(range(len(line)), positive, marker=".", label=label)
    axes.set_yscale("log")
    axes.set_xlabel("step t")
    axes.set_ylabel("norm of ∂loss/∂h[t]")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    if len(named) > 1 or several:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    axes.set_title("How far back the loss reaches", fontsize=11)
    return figure


def eigenvalues(seen: Seen) -> Figure:
    """The eigenvalues of weight_hh by gate, and the unit circle."""
    found, names = seen.eigenvalues(), seen.layer.cell.gates
    figure, grid = _squares(len(names))
    words = GATES.get(seen.layer.cell.name, {})
    most = max(1.0, *(float(values.abs().max()) for values in found.values())) * 1.1
    handles: list[Any] = []
    for g, (name, axes) in enumerate(zip(names, grid, strict=True)):
        handles = []
        for k, (weight, values) in enumerate(found.items()):
            x, y = values[g].real.tolist(), values[g].imag.tolist()
            handles += axes.plot(x, y, _MARKS[k % len(_MARKS)], markersize=4, alpha=0.7, label=weight)
        turn = [math.tau * k / 200 for k in range(201)]
        axes.plot(list(map(math.cos, turn)), list(map(math.sin, turn)), color="0.5", linewidth=0.9)
        axes.set(xlim=(-most, most), ylim=(-most, most), aspect="equal")
        axes.set_xlabel("real part")
        axes.set_ylabel("imaginary part")
        axes.set_title(f"{name}, {words[name]}" if name in words else f"rows of {name}", fontsize=10)
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    what = "weight_hr · weight_hh" if seen.layer.proj_size else "weight_hh"
    figure.suptitle(f"{_name(seen)}\neigenvalues of {what}, and the unit circle", fontsize=11)
    return figure
