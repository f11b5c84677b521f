"""The picture of the inside of a cell: its equations as a graph, from the previous states to the new ones."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

from torchrnn.activation import Options
from torchrnn.cell import Cell
from torchrnn.seeing.inside import Node, trace
from torchrnn.seeing.layered import PORT, place
from torchrnn.seeing.shapes import GATES
from torchrnn.seeing.svg import GREY, Picture, text_width, widest

_SIZE, _LINE = 12.0, 16.0
_COLOURS = {  # ground and edge
    "source": ("#f8fafc", "#475569"),
    "x": ("#dbeafe", "#1d4ed8"),
    "h": ("#ede9fe", "#6d28d9"),
    "previous": ("#f8fafc", "#475569"),
    "operation": ("#ffffff", "#64748b"),
    "new": ("#e2e8f0", "#1a202c"),
}
_GATES = [("#dcfce7", "#15803d"), ("#fee2e2", "#b91c1c"), ("#fef9c3", "#a16207"), ("#cffafe", "#0e7490")]
_GATES += [("#fce7f3", "#be185d"), ("#ffedd5", "#c2410c")]


class _Item(NamedTuple):
    """A box of the picture: its lines of text, its colours, and those whose arrows come in, from the top."""

    lines: tuple[str, ...]
    colours: tuple[str, str]
    column: int
    node: Node | None = None
    lettered: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        ports = len(self.node.args) if self.node and self.node.kind == "operation" else 1
        height = max(_LINE * len(self.lines) + 12, PORT * ports + 6)
        return max(widest(self.lines) + 18 + (24 if self.lettered else 0), 34.0), height


class Equations:
    """The layout of one picture."""

    def __init__(self, cell: Cell, options: Options, sizes: Any) -> None:
        if cell.late:
            raise ValueError(
                f"cell {cell.name!r} cannot be drawn: it multiplies with weight_hh within its step, for "
                f"{' '.join(cell.late)}, and the picture is of operations that act number by number"
            )
        self.cell, self.options, self.sizes = cell, options, sizes
        self.graph = trace(cell, options)
        self.items: list[_Item] = []
        self.edges: list[tuple[int, int]] = []
        self.at: dict[Node, int] = {}

    def draw(self) -> Picture:
        """The picture."""
        self._sources()
        for node in self.graph.nodes:
            if node not in self.at:
                self._add(node)
        placed = place([i.size for i in self.items], self.edges, self._columns(), [i.lettered for i in self.items])
        name = f"{type(self.sizes).__name__}({self.sizes.extra_repr()})" if self.sizes else self.cell.name
        picture = Picture(f"{name}: the inside of one step")
        for (u, _), way in zip(self.edges, placed.routes, strict=True):
            picture.curve(way, ink=self.items[u].colours[1])
        for item, (x, y) in zip(self.items, placed.centres, strict=True):
            self._box(picture, item, x, y)
        self._words(picture)
        return picture

    def _dims(self, letter: str, factor: int = 1) -> str:
        """(B, I) or (B, 4·H), in numbers where they are known."""
        number = self.sizes and {"I": self.sizes.input_size, "H": self.sizes.hidden_size}[letter]
        if number:
            return f"(B, {factor * number})"
        return f"(B, {letter})" if factor == 1 else f"(B, {factor}·{letter})"

    def _sources(self) -> None:
        """The input, the previous states, the two products, and the parts of these that the step uses."""
        G, first = len(self.cell.gates), self.cell.states[0]
        used = {node.label: node for node in self.graph.nodes if node.kind in ("x", "h", "previous")}
        bias = self.sizes.bias if self.sizes else True
        source = self._put(_Item(("input", self._dims("I")), _COLOURS["source"], 0))
        for part, letter, of in (("x", "ih", "input"), ("h", "hh", f"{first}[t-1]")):
            if part == "h":
                source = self._put(_Item((of, self._dims("H")), _COLOURS["previous"], 0))
                if of in used:
                    self.at[used[of]] = source
            added = (f"+ bias_{letter}",) if bias and not (part == "h" and bias == "single") else ()
            lines = (f"{part} {self._dims('H', G)}", f"= weight_{letter} · {of}", *added)
            product = self._put(_Item(lines, _COLOURS[part], 1))
            self.edges.append((source, product))
            for gate in self.cell.gates:
                if f"{part}.{gate}" in used:
                    node = used[f"{part}.{gate}"]
                    self.at[node] = self._put(_Item((node.label,), _COLOURS[part], 2, node))
                    self.edges.append((product, self.at[node]))
        for name in self.cell.states[1:]:
            if f"{name}[t-1]" in used:
                item = _Item((f"{name}[t-1]", self._dims("H")), _COLOURS["previous"], 0)
                self.at[used[f"{name}[t-1]"]] = self._put(item)

    def _add(self, node: Node) -> None:
        gates = {id(of): name for name, of in self.graph.gates.items()}
        colours = _COLOURS[node.kind]
        lines = (node.label, self._dims("H")) if node.kind == "new" else (node.label,)
        if id(node) in gates:
            colours = _GATES[self.cell.gates.index(gates[id(node)]) % len(_GATES)]
        if node.name and node.kind == "operation":
            lines = (node.name, node.label)
        column = 1 + max((self.items[self.at[a]].column for a in node.args), default=1)
        self.at[node] = self._put(_Item(lines, colours, max(column, 3), node, node.lettered))
        self.edges += [(self.at[arg], self.at[node]) for arg in node.args]

    def _put(self, item: _Item) -> int:
        self.items.append(item)
        return len(self.items) - 1

    def _columns(self) -> list[int]:
        """The new states stand in the last column."""
        last = max(item.column for item in self.items)
        return [last if item.node and item.node.kind == "new" else item.column for item in self.items]

    def _box(self, picture: Picture, item: _Item, x: float, y: float) -> None:
        width, height = item.size
        picture.node(x - width / 2, y - height / 2, width, height, *item.colours)
        for k, line in enumerate(item.lines):
            bold = len(item.lines) > 1 and k == 0
            picture.text(x + (6 if item.lettered else 0), y + _LINE * (k - (len(item.lines) - 1) / 2), line, bold=bold)
        if item.lettered and item.node:
            count = len(item.node.args)
            for k in range(count):
                at = y + (k - (count - 1) / 2) * PORT
                picture.text(x - width / 2 + 4, at, "abcdefgh"[k], at="start", size=10, ink=GREY)

    def _words(self, picture: Picture) -> None:
        """The title above, and below what the names mean."""
        frame, words = picture.frame, GATES.get(self.cell.name, {})
        columns = int((frame.width - 28) / text_width("x", 13))
        for n, line in enumerate(reversed(textwrap.wrap(picture.title, columns))):
            picture.text(frame.x + 14, frame.y - 8 - 18 * n, line, at="start", size=13, bold=True)
        gates = ", ".join(f"{name} {words[name]}" if name in words else name for name in self.cell.gates)
        said = [f"Gates: {gates}." if len(self.cell.gates) > 1 else f"One gate: {gates}."]
        if len(self.cell.gates) > 1:
            said.append(f"x and h are cut into {len(self.cell.gates)} parts, one for each gate.")
        said.append(f"Every part, gate and state is {self._dims('H')}; all operations act number by number.")
        if any(item.lettered for item in self.items):
            said.append("a, b: the arrows into a box, from the top.")
        for n, line in enumerate(textwrap.wrap(" ".join(said), int((frame.width - 28) / text_width("x")))):
            picture.text(frame.x + 14, frame.y + frame.height + 12 + 17 * n, line, at="start", ink=GREY)
