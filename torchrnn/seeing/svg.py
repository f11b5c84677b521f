"""A picture as SVG: boxes, lines and texts that know where they stand, so that a test can see what overlaps."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

Point = tuple[float, float]
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
#: Width of a character by height of the font, of the widest of these fonts: so a text's width is known.
WIDTH = 0.61
INK, GREY = "#1a202c", "#718096"
_HEAD = 7.0  # of an arrow
_MARGIN = 14.0


class Box(NamedTuple):
    """A rectangle, with what stands in it."""

    x: float
    y: float
    width: float
    height: float
    text: str = ""

    def overlaps(self, other: Box) -> bool:
        """Whether both have a point inside in common."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def holds(self, other: Box) -> bool:
        """Whether the other is within."""
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


class Picture:
    """An SVG picture; a notebook shows it, ``save`` writes it, ``str`` is its text.

    Attributes:
        title: what it shows, for those who cannot see it.
        texts: where each text stands.
        nodes: the boxes that are drawn.
        lines: the corners of every line; of a curve, points along it.

    Example:
        ```python
        import torchrnn

        picture = torchrnn.draw(torchrnn.GRU(3, 5), T=3)
        assert str(picture).startswith("<svg")
        ```
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.texts: list[Box] = []
        self.nodes: list[Box] = []
        self.lines: list[list[Point]] = []
        self._drawn: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, at: str = "middle", size: float = 12, bold: bool = False, ink: str = INK
    ) -> None:
        """A text whose middle line is y; x is its ``start``, ``middle`` or ``end``."""
        width = text_width(text, size)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[at]
        self.texts.append(Box(left, y - size * 0.6, width, size * 1.2, text))
        weight = ' font-weight="bold"' if bold else ""
        self._drawn.append(
            f'<text x="{_(x)}" y="{_(y + size * 0.35)}" font-size="{_(size)}" text-anchor="{at}" fill="{ink}"{weight}>'
            f"{escape(text)}</text>"
        )

    def node(self, x: float, y: float, width: float, height: float, fill: str, edge: str) -> None:
        """A box with round corners; x and y are its left upper one."""
        self.nodes.append(Box(x, y, width, height))
        self._drawn.append(
            f'<rect x="{_(x)}" y="{_(y)}" width="{_(width)}" height="{_(height)}" rx="5" fill="{fill}" '
            f'stroke="{edge}" stroke-width="1.4"/>'
        )

    def line(self, points: Sequence[Point], *, ink: str = INK, head: bool = True) -> None:
        """A line along the axes through points, by default with an arrow's head at its end."""
        self.lines.append(list(points))
        self._stroke("M" + " L".join(f"{_(x)} {_(y)}" for x, y in _shortened(points, head)), ink)
        if head:
            self._head(points[-2], points[-1], ink)

    def curve(self, points: Sequence[Point], *, ink: str = INK, head: bool = True) -> None:
        """A line from left to right: straight between points of one height, else bent, and level at both ends."""
        way = [*points[:-1], (points[-1][0] - (_HEAD - 1) * head, points[-1][1])]
        path, seen = f"M{_(way[0][0])} {_(way[0][1])}", [way[0]]
        for a, b in itertools.pairwise(way):
            middle = (a[0] + b[0]) / 2
            if a[1] == b[1]:
                path += f" L{_(b[0])} {_(b[1])}"
                seen.append(b)
            else:
                path += f" C{_(middle)} {_(a[1])} {_(middle)} {_(b[1])} {_(b[0])} {_(b[1])}"
                seen += [_bent(a, b, middle, t / 8) for t in range(1, 9)]
        self.lines.append(seen)
        self._stroke(path, ink)
        if head:
            self._head((points[-1][0] - 1, points[-1][1]), points[-1], ink)

    def _stroke(self, path: str, ink: str) -> None:
        self._drawn.append(f'<path d="{path}" fill="none" stroke="{ink}" stroke-width="1.3"/>')

    def _head(self, before: Point, end: Point, ink: str) -> None:
        """The head of an arrow, along one of the axes."""
        dx, dy = ((end[0] > before[0]) - (end[0] < before[0]), (end[1] > before[1]) - (end[1] < before[1]))
        x, y, side = end[0] - _HEAD * dx, end[1] - _HEAD * dy, _HEAD / 2
        corners = [end, (x + side * dy, y + side * dx), (x - side * dy, y - side * dx)]
        self._drawn.append(f'<polygon points="{" ".join(f"{_(x)},{_(y)}" for x, y in corners)}" fill="{ink}"/>')

    @property
    def frame(self) -> Box:
        """The least box around all that is drawn, and a margin."""
        boxes = [*self.texts, *self.nodes, *(Box(x, y, 0, 0) for line in self.lines for x, y in line)]
        left, top = min(b.x for b in boxes) - _MARGIN, min(b.y for b in boxes) - _MARGIN
        right = max(b.x + b.width for b in boxes) + _MARGIN
        bottom = max(b.y + b.height for b in boxes) + _MARGIN
        return Box(left, top, right - left, bottom - top)

    def __str__(self) -> str:
        f = self.frame
        size = f'width="{_(f.width)}" height="{_(f.height)}" viewBox="{_(f.x)} {_(f.y)} {_(f.width)} {_(f.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" role="img">'
        # a ground of its own, since the page may be dark
        ground = f'<rect x="{_(f.x)}" y="{_(f.y)}" width="{_(f.width)}" height="{_(f.height)}" fill="#ffffff"/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", ground, *self._drawn, "</svg>\n"])

    def _repr_svg_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<picture: {self.title}>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file, ``.svg``."""
        Path(path).write_text(str(self), encoding="utf-8")


def text_width(text: str, size: float = 12) -> float:
    """How wide a text is, at most."""
    return WIDTH * size * len(text)


def widest(texts: Iterable[str], size: float = 12) -> float:
    """The width of the widest."""
    return max((text_width(text, size) for text in texts), default=0.0)


def _shortened(points: Sequence[Point], head: bool) -> list[Point]:
    """Without the piece that the arrow's head covers."""
    *rest, (x0, y0), (x, y) = points
    if not head:
        return list(points)
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    return [*rest, (x0, y0), (x - (_HEAD - 1) * dx, y - (_HEAD - 1) * dy)]


def _bent(a: Point, b: Point, middle: float, t: float) -> Point:
    """A point of the cubic curve that is level at both ends."""
    u = 1 - t
    p, q, r, s = u**3, 3 * u * u * t, 3 * u * t * t, t**3
    return p * a[0] + (q + r) * middle + s * b[0], (p + q) * a[1] + (r + s) * b[1]


def _(number: float) -> str:
    """A coordinate, as short as it can be told."""
    return f"{round(number, 1) + 0.0:.1f}".removesuffix(".0")
