"""The picture of a layer unrolled in time: a column a step, a box a layer and direction, the states passed along."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from torchrnn.seeing.letters import Letters
from torchrnn.seeing.svg import GREY, Picture, text_width, widest

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent

_COLOURS = (("#dbeafe", "#1d4ed8"), ("#ffedd5", "#c2410c"))  # forward, backward: ground and edge
_JOIN = ("#f1f5f9", "#475569")
_LANE = 26.0  # from one state's line to the next
_TRUNK = 58.0  # of an arrow upward, beside which a shape stands
_ALL = 6  # steps that are drawn one by one


class Unrolled:
    """The layout of one picture; y grows downward, so the layers stand at negative heights above the input."""

    def __init__(self, layer: Recurrent, T: int | None) -> None:
        self.layer, self.z = layer, Letters(layer)
        self.L, self.D, self.S = layer.num_layers, self.z.D[1], len(layer.cell.states)
        self.steps = _steps(T)
        self.picture = Picture(f"{_title(layer)}, unrolled in time")
        self.width = max(96.0, widest([type(layer).__name__, "layer 10 →"]) + 16)  # of a box
        self.column = self.width + (40 if self.D == 2 else 0)
        self.height = _LANE * max(self.S, 2) + 12
        labels = [self._state(k, s) for k in range(self.L) for s in range(self.S)]
        self.gap = max(widest(labels), text_width(self._named("output", "T-1")) - self.column) + 36
        self.x = []  # of every column
        at = 0.0
        for step in self.steps:
            self.x.append(at)
            at += 44 if step is None else self.column + self.gap
        self.end = at - self.gap
        self.columns = [x for x, step in zip(self.x, self.steps, strict=True) if step is not None]

    def draw(self) -> Picture:
        """The picture."""
        y = 0.0
        for x, step in zip(self.x, self.steps, strict=True):
            label = "…" if step is None else self._named("input", step)
            self.picture.text(self._centre(x, step), y, label, bold=step is not None)
        y -= 12
        size = "I" if self.layer.input_size is None else str(self.layer.input_size)
        for k in range(self.L):
            y = self._layer(k, y, f"(B, {size})")
            size = str(self.z.F(k)[1])
        if self.layer.return_sequences:
            y = self._trunks(y, f"(B, {size})")
            for x, step in zip(self.x, self.steps, strict=True):
                label = "…" if step is None else self._named("output", step)
                self.picture.text(self._centre(x, step), y - 12, label, bold=step is not None)
            y -= 12
        self._words(y)
        return self.picture

    def _centre(self, x: float, step: str | None) -> float:
        return x + (self.column / 2 if step is not None else 22 - self.gap / 2)

    def _named(self, name: str, step: str) -> str:
        return f"{name}[:, {step}]" if self.layer.batch_first else f"{name}[{step}]"

    def _state(self, k: int, s: int) -> str:
        """A state on its arrow."""
        return f"{self.layer.cell.states[s]} (B, {(self.z.P_or_H(k) if s == 0 else self.z.H(k))[1]})"

    def _end(self, k: int, d: int, s: int, when: str) -> str:
        """A state at either end of time, as it is taken from h_0 and h_n."""
        name, layer = f"{self.layer.cell.states[s]}_{when}", self.layer
        first = ":, " if layer.batch_first_state else ""
        if self.z.uneven:
            return f"{name}[{k}][{first}{d}]"
        return f"{name}[{first}{k * self.D + d}]"

    def _trunks(self, y: float, shape: str) -> float:
        """Arrows upward from y with the shape of what goes there; where they end."""
        for x in self.columns:
            centre = x + self.column / 2
            self.picture.line([(centre, y), (centre, y - _TRUNK)])
            self.picture.text(centre + 7, y - _TRUNK / 2, shape, at="start", ink=GREY)
        return y - _TRUNK

    def _layer(self, k: int, y: float, shape: str) -> float:
        """One layer above y, where its input is; the height of its output."""
        split = y - _TRUNK + 20
        low = y - _TRUNK - self.height  # the upper edge of the forward boxes
        top = low if self.D == 1 else low - 22 - self.height
        last = k == self.L - 1 and not self.layer.return_sequences
        join = top if self.D == 1 or last else top - 26 - 26
        plus = join if not (self.layer.residual and k) or last else join - 22 - 26
        for x in self.columns:
            centre = x + self.column / 2
            self.picture.text(centre + 7, (y + split) / 2, shape, at="start", ink=GREY)
            if self.D == 1:
                self.picture.line([(centre, y), (centre, y - _TRUNK)])
            else:
                self._split(x, y, split, low, top)
                if not last:
                    self._join(x, low, top, join)
            if plus != join:
                self._plus(x, split, join, plus)
            for d in range(self.D):
                self._box(k, d, x, low if d == 0 else top)
        for d in range(self.D):
            self._lanes(k, d, low if d == 0 else top)
        return plus if not last else self._last(k, low, top)

    def _split(self, x: float, y: float, split: float, low: float, top: float) -> None:
        """The input goes to both directions, past the forward box to the backward one."""
        ink = [colours[1] for colours in _COLOURS]
        centre, forward, backward = x + self.column / 2, x + self.width / 2 - 20, x + self.width + 14
        self.picture.line([(centre, y), (centre, split)], head=False)
        self.picture.line([(centre, split), (forward, split), (forward, low + self.height)], ink=ink[0])
        self.picture.line([(centre, split), (backward, split), (backward, top + self.height)], ink=ink[1])

    def _join(self, x: float, low: float, top: float, join: float) -> None:
        """Both directions' outputs, the forward one past the backward box, and the box that joins them."""
        ink = [colours[1] for colours in _COLOURS]
        self.picture.line([(x + 20, low), (x + 20, join + 26)], ink=ink[0])
        self.picture.line([(x + 40 + self.width / 2, top), (x + 40 + self.width / 2, join + 26)], ink=ink[1])
        self.picture.node(x, join, self.column, 26, *_JOIN)
        self.picture.text(x + self.column / 2, join + 13, self.layer.merge_mode)

    def _plus(self, x: float, split: float, join: float, plus: float) -> None:
        """A residual layer's input, past its boxes, and what it is added to."""
        centre = x + self.column / 2
        self.picture.line([(centre, join), (centre, plus + 26)])
        self.picture.line([(centre, split), (x - 10, split), (x - 10, plus + 13), (centre - 18, plus + 13)])
        self.picture.node(centre - 18, plus, 36, 26, *_JOIN)
        self.picture.text(centre, plus + 13, "+")

    def _box(self, k: int, d: int, x: float, top: float) -> None:
        x += 40 * d
        self.picture.node(x, top, self.width, self.height, *_COLOURS[d])
        arrow = "" if self.D == 1 else (" →", " ←")[d]
        middle = top + self.height / 2
        self.picture.text(x + self.width / 2, middle - 9, type(self.layer).__name__, bold=True)
        self.picture.text(x + self.width / 2, middle + 9, f"layer {k}{arrow}")

    def _lanes(self, k: int, d: int, top: float) -> None:
        """The lines of a layer's states in one direction, from the initial ones to the final ones."""
        shift, ink = 40 * d, _COLOURS[d][1]
        first = top + (self.height - _LANE * (self.S - 1)) / 2 + (4 if self.S == 1 else 6)
        for s in range(self.S):
            y = first + _LANE * s
            edges = [(x + shift, x + shift + self.width) for x in self.columns]
            left, right = self.x[0] - self.gap, self.end + self.gap
            ends = ("0", "n") if d == 0 else ("n", "0")
            self.picture.text(left - 4, y, self._end(k, d, s, ends[0]), at="end", bold=True)
            self.picture.text(right + 4, y, self._end(k, d, s, ends[1]), at="start", bold=True)
            starts, stops = [left, *(e[1] for e in edges)], [*(e[0] for e in edges), right]
            dots = self.steps.index(None) if None in self.steps else -1
            for n, (a, b) in enumerate(zip(starts, stops, strict=True)):
                if n == dots:
                    self._dotted(a, b, y, ink, d)
                else:
                    self.picture.line([(a, y), (b, y)] if d == 0 else [(b, y), (a, y)], ink=ink)
                self._label(k, d, s, a, y)

    def _dotted(self, a: float, b: float, y: float, ink: str, d: int) -> None:
        """A state's way over the steps that are not drawn."""
        middle = b - (40 if d else 26)
        self.picture.text(middle, y, "…")
        pieces = [[(a, y), (middle - 8, y)], [(middle + 8, y), (b, y)]]
        for piece in pieces if d == 0 else [piece[::-1] for piece in pieces]:
            self.picture.line(piece, ink=ink)

    def _label(self, k: int, d: int, s: int, a: float, y: float) -> None:
        """The state above the line that begins at a, where no line goes upward."""
        past = 18 if self.D == 2 and d == 0 else 6
        self.picture.text(a + past, y - 10, self._state(k, s), at="start", ink=GREY)

    def _last(self, k: int, low: float, top: float) -> float:
        """The last outputs alone: of the last column forward, of the first one backward."""
        size = self.z.P_or_H(k)[1]
        names = ["output"] if self.D == 1 else [f"output[:, :{size}]", f"output[:, {size}:]"]
        if self.layer.merge_mode != "concat":
            names = ["forward part", "backward part"]
        end = top
        for d, name in reversed(list(enumerate(names))):
            x = self.columns[0 if d else -1] + (40 * d if self.D == 2 else 0)
            x = x + 20 if self.D == 2 and d == 0 else x + self.width / 2
            above = _TRUNK + 14 if len(self.columns) == 1 and d < self.D - 1 else 0  # not beside the other part
            end = top - _TRUNK - above
            self.picture.line([(x, (low, top)[d]), (x, end)], ink=_COLOURS[d][1])
            self.picture.text(x + 7, end + _TRUNK / 2, f"(B, {size})", at="start", ink=GREY)
            self.picture.text(x - 24, end - 12, name, at="start", bold=True)
        return end - 12

    def _words(self, y: float) -> None:
        """The title above, and below what the letters are."""
        frame = self.picture.frame
        columns = max(40, int((frame.width - 28) / text_width("x", 13)))
        lines = textwrap.wrap(f"{_title(self.layer)}, unrolled in time", columns)
        for n, line in enumerate(reversed(lines)):
            self.picture.text(frame.x + 14, y - 40 - 18 * n, line, at="start", size=13, bold=True)
        notes = textwrap.wrap(_note(self.layer), int((frame.width - 28) / text_width("x")))
        for n, line in enumerate(notes):
            self.picture.text(frame.x + 14, 34 + 17 * n, line, at="start", ink=GREY)


def _steps(T: int | None) -> list[str | None]:
    """The steps that are drawn; None stands for those between."""
    if T is None:
        return ["0", "1", None, "T-1"]
    if isinstance(T, bool) or not isinstance(T, int):
        raise TypeError(f"T must be a whole number of steps or None, got {type(T).__name__}")
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}: without a step there is nothing to draw")
    return [str(t) for t in range(T)] if T <= _ALL else ["0", "1", None, str(T - 1)]


def _title(layer: Recurrent) -> str:
    return f"{type(layer).__name__}({layer.extra_repr()})"


def _note(layer: Recurrent) -> str:
    said = ["B sequences side by side. A box is one step; at all steps a layer has the same weights."]
    if layer.bidirectional:
        said.append("→ reads forward in time, ← backward.")
    if layer.proj_size:
        said.append(f"h is projected to {layer.proj_size} numbers inside the box.")
    summed = layer.num_layers > (1 if layer.return_sequences else 2)
    if layer.residual and summed:
        said.append("+ adds the layer's input to its output.")
    if layer.dropout and layer.num_layers > 1:
        said.append(f"In training the output of every layer but the last has dropout {layer.dropout}.")
    if layer.learn_initial_state:
        said.append("The initial states are learned.")
    if not layer.return_sequences:
        said.append("Only each row's last output is returned.")
        if layer.residual and layer.num_layers > 1:
            said.append("The last layer's input at the same step is added to it.")
        if layer.merge_mode != "concat":
            said.append(f"Its two parts are joined by {layer.merge_mode}.")
    return " ".join(said)
