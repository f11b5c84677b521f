"""Where the nodes of a graph stand if all its edges go from left to right: columns, few crossings, nothing overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchrnn.seeing.svg import Point

Edge = tuple[int, int]
_SWEEPS = 24
_BETWEEN = 14.0  # least room between two nodes of a column
PORT = 13.0  # between two edges into a node
_COLUMNS = 44.0  # between two columns, where the edges bend


class Placed(NamedTuple):
    """Where everything stands.

    Attributes:
        centres: of each node.
        routes: of each edge the points from the right of its first node to the left of its second; between two points
            of one height it is straight.
    """

    centres: list[Point]
    routes: list[list[Point]]


class _Graph:
    """The nodes, and a bend wherever an edge goes through a column: so every edge goes from a column to the next."""

    def __init__(self, sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], column: Sequence[int]) -> None:
        self.column = list(column)
        self.heights = [height for _, height in sizes]
        self.chains: list[list[int]] = []  # of each edge its nodes and bends
        self.before: list[list[int]] = [[] for _ in sizes]
        self.after: list[list[int]] = [[] for _ in sizes]
        shared: dict[tuple[int, int], int] = {}  # edges from one node bend at the same place
        for u, v in edges:
            chain = [u]
            for at in range(column[u] + 1, column[v]):
                if (u, at) not in shared:
                    shared[u, at] = len(self.column)
                    self.column.append(at)
                    self.heights.append(4.0)
                    self.before.append([])
                    self.after.append([])
                chain.append(shared[u, at])
            self.chains.append([*chain, v])
            for a, b in zip(self.chains[-1], self.chains[-1][1:], strict=False):
                if b not in self.after[a] or b == v:
                    self.after[a].append(b)
                    self.before[b].append(a)
        self.columns = [[n for n, c in enumerate(self.column) if c == at] for at in range(max(self.column) + 1)]

    def crossings(self) -> int:
        """How many pairs of edges cross."""
        count = 0
        for left, right in zip(self.columns, self.columns[1:], strict=False):
            place = {n: k for k, n in enumerate(right)}
            ends = [place[m] for n in left for m in sorted(self.after[n], key=place.__getitem__)]
            count += sum(a > b for k, a in enumerate(ends) for b in ends[k + 1 :])
        return count

    def order(self) -> None:
        """Give each column an order with few crossings: that of the means of the neighbours, to and fro."""
        best, fewest = [list(c) for c in self.columns], self.crossings()
        for sweep in range(_SWEEPS):
            back = sweep % 2
            near = self.after if back else self.before
            place = {n: float(k) for c in self.columns for k, n in enumerate(c)}
            for column in reversed(self.columns) if back else self.columns:
                means = {n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else place[n] for n in column}
                column.sort(key=means.__getitem__)
                place |= {n: float(k) for k, n in enumerate(column)}
            if (now := self.crossings()) < fewest:
                best, fewest = [list(c) for c in self.columns], now
        self.columns = best

    def settle(self) -> list[float]:
        """The height of each node and bend: as near to its neighbours as the order and the room allow."""
        y = [0.0] * len(self.column)
        for column in self.columns:
            for k, n in enumerate(column):
                y[n] = 60.0 * (k - (len(column) - 1) / 2)
        for sweep in range(_SWEEPS):
            for column in reversed(self.columns) if sweep % 2 else self.columns:
                wanted = []
                for n in column:
                    near = [*self.before[n], *self.after[n]]
                    wanted.append(sum(y[m] for m in near) / len(near) if near else y[n])
                for n, at in zip(column, self._apart(column, wanted), strict=True):
                    y[n] = at
        return y

    def _apart(self, column: list[int], wanted: list[float]) -> list[float]:
        """The heights nearest to the wanted ones, by least squares, that keep the order and the room between."""
        offsets, at = [], 0.0
        for k, n in enumerate(column):
            at += (self.heights[column[k - 1]] + self.heights[n]) / 2 + _BETWEEN if k else 0.0
            offsets.append(at)
        blocks: list[list[float]] = []  # mean and number of what moves together
        for want, offset in zip(wanted, offsets, strict=True):
            blocks.append([want - offset, 1.0])
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (a, m), (b, n) = blocks[-2:]
                blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
        means = [mean for mean, number in blocks for _ in range(int(number))]
        return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _ports(graph: _Graph, y: Sequence[float], ordered: Sequence[bool]) -> list[float]:
    """Of each edge how far below the middle of its second node it ends: where it comes from above, above."""
    ports = [0.0] * len(graph.chains)
    for v, fixed in enumerate(ordered):
        into = [e for e, chain in enumerate(graph.chains) if chain[-1] == v]
        if not fixed:
            into.sort(key=lambda e: y[graph.chains[e][-2]])
        for k, e in enumerate(into):
            ports[e] = (k - (len(into) - 1) / 2) * PORT
    return ports


def place(
    sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], column: Sequence[int], ordered: Sequence[bool]
) -> Placed:
    """Place a graph.

    Args:
        sizes: width and height of each node.
        edges: pairs of nodes; the first stands in a column further left.
        column: of each node, from 0.
        ordered: of each node whether the edges into it must arrive in their order, from the top.

    Returns:
        The centres of the nodes and the ways of the edges.
    """
    graph = _Graph(sizes, edges, column)
    graph.order()
    y = graph.settle()
    widths = [max((sizes[n][0] for n in c if n < len(sizes)), default=0.0) for c in graph.columns]
    left = [sum(widths[:k]) + _COLUMNS * k for k in range(len(widths))]
    centres = [(left[column[n]] + widths[column[n]] / 2, y[n]) for n in range(len(sizes))]
    routes = []
    for chain, port in zip(graph.chains, _ports(graph, y, ordered), strict=True):
        (u, *bends, v), way = chain, []
        way.append((centres[u][0] + sizes[u][0] / 2, y[u]))
        way.append((left[column[u]] + widths[column[u]], y[u]))
        for n in bends:
            at = graph.column[n]
            way += [(left[at], y[n]), (left[at] + widths[at], y[n])]
        way.append((left[column[v]], y[v] + port))
        way.append((centres[v][0] - sizes[v][0] / 2, y[v] + port))
        routes.append([p for k, p in enumerate(way) if not k or p != way[k - 1]])
    return Placed(centres, routes)
