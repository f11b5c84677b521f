"""A table of names, shapes and sentences: its rows as data, and as text and HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

Size = int | str  # "j" where every sequence has its own
_NAME, _SHAPE, _WIDTH = 26, 38, 100


class Shape(NamedTuple):
    """A shape in letters and in numbers."""

    letters: tuple[str, ...]
    sizes: tuple[Size, ...]

    def __str__(self) -> str:
        return f"{_tuple(self.letters)} = {_tuple(self.sizes)}"


class Row(NamedTuple):
    """A Tensor: how it is written, its shape, and what it holds."""

    name: str
    shape: Shape | None
    what: str
    same: str = ""  # how else the same numbers are written

    @property
    def sentence(self) -> str:
        """What it holds, and what it is equal to."""
        return f"{self.what}; equal to {self.same}" if self.same else self.what


class Section(NamedTuple):
    """Rows that belong together, under a title."""

    title: str
    rows: list[Row]


def shape(*dims: tuple[str, Size]) -> Shape:
    """The shape of dimensions, each a letter and a size."""
    return Shape(tuple(letter for letter, _ in dims), tuple(size for _, size in dims))


def text(heads: Iterable[str], sections: Sequence[Section]) -> str:
    """Lines of at most 100 columns: the heads, then a table."""
    lines = [line for head in heads for line in wrapped(head)]
    rows = [row for section in sections for row in section.rows]
    name = min(_NAME, max((len(row.name) for row in rows), default=0))
    shape = min(_SHAPE, max((len(str(row.shape or "")) for row in rows), default=0))
    widths = name, shape, _WIDTH - name - shape - 6
    for section in sections:
        lines += ["", *textwrap.wrap(section.title, _WIDTH)]
        for row in section.rows:
            cells = (row.name, str(row.shape or ""), row.sentence)
            lines += _side_by_side([textwrap.wrap(c, w) for c, w in zip(cells, widths, strict=True)], widths)
    return "\n".join(lines)


def wrapped(line: str) -> list[str]:
    """A line in pieces of at most 100 columns; its indentation is kept."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, _WIDTH, subsequent_indent=indent + "    ") or [""]


def _side_by_side(cells: list[list[str]], widths: Sequence[int]) -> list[str]:
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        ("  " + "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True))).rstrip()
        for parts in zip(*padded, strict=True)
    ]


def html(heads: Iterable[str], sections: Sequence[Section]) -> str:
    """The same as an HTML table, of its own and without scripts."""
    left = ' style="text-align: left"'
    body = []
    for section in sections:
        body.append(f'<tr><th colspan="3"{left}>{escape(section.title)}</th></tr>')
        for row in section.rows:
            name, size = f"<code>{escape(row.name)}</code>", escape(str(row.shape or ""))
            body.append(f"<tr><td{left}>{name}</td><td{left}>{size}</td><td{left}>{escape(row.sentence)}</td></tr>")
    lines = "<br>\n".join(escape(head) for head in heads if head)
    return f"<div>\n<p>{lines}</p>\n<table>\n" + "\n".join(body) + "\n</table>\n</div>"


def _tuple(items: Sequence[Size]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(map(str, items))})"
