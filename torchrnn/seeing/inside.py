"""The inside of a cell as a graph: its step, run on symbols, with operations as nodes and the names of its gates."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer, TraceError

from torchrnn.activation import PLAIN, Options
from torchrnn.cell import Cell

_SIGNS: dict[str, str] = {"add": "+", "sub": "−", "mul": "×", "truediv": "÷", "div": "÷", "pow": "^", "neg": "−"}
_SIGNS |= {"gt": ">", "lt": "<", "ge": "≥", "le": "≤", "eq": "=", "ne": "≠", "sigmoid": "σ"}
_SYMMETRIC = {"+", "×", "maximum", "minimum", "=", "≠"}
_LETTERS = "abcdefgh"
_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ipow"}  # of Python's operators


@dataclass(eq=False)
class Node:
    """A part of x or h, a previous state, an operation, or a new state."""

    kind: str  # "x", "h", "previous", "operation", "new"
    label: str
    args: list[Node] = field(default_factory=list)
    name: str = ""  # of the local variable that holds it
    lettered: bool = False  # whether the order of its arguments matters
    apply: Callable[..., Any] | None = None  # an operation on the values of its arguments


@dataclass
class Inside:
    """A cell's graph.

    Attributes:
        nodes: all nodes that a new state is computed from, each after its arguments.
        gates: the node of each gate by its name.
    """

    nodes: list[Node]
    gates: dict[str, Node]


class _Symbol(fx.Proxy):
    """torch.fx's symbol, which takes ``y += z`` for a new y; of a Tensor it changes all names of y."""

    def __iadd__(self, other: Any) -> Any:
        return self._changed(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._changed(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._changed(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._changed(operator.itruediv, other)

    def __ipow__(self, other: Any) -> Any:
        return self._changed(operator.ipow, other)

    def _changed(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(GraphAppendingTracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Symbol(node, self)


def trace(cell: Cell, options: Options = PLAIN) -> Inside:
    """The graph of a cell's step.

    Raises:
        ValueError: the step cannot be followed: it branches on a value.
    """
    graph = fx.Graph()
    tracer = _Tracer(graph)
    leaves = [("x", name) for name in cell.gates] + [("h", name) for name in cell.gates]
    leaves += [("previous", name) for name in cell.states]
    nodes: dict[fx.Node, Node] = {}
    proxies: dict[str, list[fx.Proxy]] = {"x": [], "h": [], "previous": []}
    for kind, name in leaves:
        proxy = tracer.proxy(graph.placeholder(f"{kind}_{name}"))
        nodes[proxy.node] = Node(kind, f"{name}[t-1]" if kind == "previous" else f"{kind}.{name}")
        proxies[kind].append(proxy)
    try:
        new, local = cell.watched(lambda: _step(cell, proxies, options))
    except TraceError as error:
        raise ValueError(
            f"cell {cell.name!r} cannot be drawn, its step depends on a value that is known only when it runs: write "
            f"it with torch.where instead of if ({error})"
        ) from error
    same = _operations(graph, nodes)

    def node_of(value: fx.Proxy) -> Node:
        return nodes[same.get(value.node, value.node)]

    of = [node_of(state) if isinstance(state, fx.Proxy) else _constant(state) for state in new]
    for name, value in local.items():
        if isinstance(value, fx.Proxy) and node_of(value).kind == "operation":
            node_of(value).name = node_of(value).name or name
    ends = [Node("new", f"{name}[t]", [node]) for name, node in zip(cell.states, of, strict=True)]
    found = _sorted(ends)
    return Inside(found, _gates(cell, found))


def _step(cell: Cell, proxies: dict[str, list[fx.Proxy]], options: Options) -> tuple[Any, ...]:
    """The new states; beyond a step of three arguments, what `Cell.advance` does to them."""
    parts = cell._gates(*proxies["x"]), cell._gates(*proxies["h"]), cell._states(*proxies["previous"])
    if cell.takes_options:
        new = cell.step(*parts, options)
        return tuple(new) if isinstance(new, (tuple, list)) else (new,)
    new = cell.step(*parts)
    new = tuple(new) if isinstance(new, (tuple, list)) else (new,)
    first = 1 if len(new) > 1 else 0
    return (*new[:first], *(options.clip(state) for state in new[first:]))


def _constant(value: Any) -> Node:
    """A new state that depends on nothing."""
    return Node("operation", _number(value) if isinstance(value, (int, float)) else "constant", apply=lambda: value)


def _operations(graph: fx.Graph, nodes: dict[fx.Node, Node]) -> dict[fx.Node, fx.Node]:
    """A node for every operation; the same operation on the same arguments is one.

    Returns:
        Of each operation in place, whose memory its result is: who reads that, reads what was written last.
    """
    known: dict[Any, Node] = {}
    same: dict[fx.Node, fx.Node] = {}
    for one in graph.nodes:
        if one in nodes:
            continue
        name, in_place = _name(one)
        args: list[fx.Node] = []
        map_arg((one.args, one.kwargs), lambda n, args=args: args.append(n) or n)
        made = Node("operation", "", [nodes[same.get(a, a)] for a in args], apply=_apply(one))
        if name == "detach":  # the same memory
            same[one] = same.get(args[0], args[0])
            nodes[one] = made.args[0]
            continue
        made.label, made.lettered = _label(name, one, args)
        ids = [id(a) for a in made.args]
        said = repr(map_arg((one.args, one.kwargs), lambda n: "·"))  # the numbers in full, which the label rounds
        key = (name, made.label, said, *(ids if made.lettered else sorted(ids)))
        nodes[one] = known.setdefault(key, made)
        first = one.args[0] if in_place else None
        if isinstance(first, fx.Node):
            same[one] = same.get(first, first)
            nodes[same[one]] = nodes[one]
    return same


def _name(one: fx.Node) -> tuple[str, bool]:
    """The name of an operation, and whether it is done in place; then the name is that of its other form."""
    name = one.target if isinstance(one.target, str) else getattr(one.target, "__name__", "operation")
    if one.op == "call_method" and name.endswith("_") and not name.endswith("__"):
        return name[:-1], True
    if one.op == "call_function" and getattr(one.target, "__module__", "") == "_operator" and name in _IN_PLACE:
        return name[1:], True
    return name, False


def _apply(one: fx.Node) -> Callable[..., Any]:
    """What an operation does to the values of its arguments; in place is done elsewhere."""

    def run(*values: Any) -> Any:
        waiting = iter(values)
        args, kwargs = map_arg((one.args, one.kwargs), lambda _: next(waiting))
        name, in_place = _name(one)
        if one.op == "call_method":
            return getattr(args[0], name)(*args[1:], **kwargs)
        function: Any = getattr(operator, name) if in_place else one.target
        return function(*args, **kwargs)

    return run


def _label(name: str, one: fx.Node, args: list[fx.Node]) -> tuple[str, bool]:
    """What stands in a node, and whether its arguments are told apart by letters."""
    sign, plain = _SIGNS.get(name, name), all(isinstance(a, fx.Node) for a in one.args) and not one.kwargs
    if len(args) == 1 and plain and len(one.args) == 1:
        return (f"{sign} a" if name == "neg" else sign), False
    if plain and len(args) == 2 and sign in _SYMMETRIC:
        return sign, False
    letters = iter(_LETTERS if len(args) > 1 else "·" * len(args))
    said = [next(letters) if isinstance(a, fx.Node) else _number(a) for a in one.args]
    said += [f"{k}={next(letters) if isinstance(v, fx.Node) else _number(v)}" for k, v in one.kwargs.items()]
    if sign != name and len(said) == 2 and not one.kwargs:
        return f"{said[0]} {sign} {said[1]}", len(args) > 1
    return f"{sign}({', '.join(said)})", len(args) > 1


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sorted(ends: list[Node]) -> list[Node]:
    """All that the ends are computed from, each after its arguments."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in found:
            for arg in node.args:
                visit(arg)
            found[node] = None

    for end in ends:
        visit(end)
    return list(found)


def _gates(cell: Cell, nodes: list[Node]) -> dict[str, Node]:
    """A gate is what the step calls so, else the sum of both parts: as in a `Trace`."""
    gates = {node.name: node for node in nodes if node.name in cell.gates}
    for name in cell.gates:
        if name not in gates:
            parts = {f"x.{name}", f"h.{name}"}
            for node in nodes:
                if node.label == "+" and {a.label for a in node.args} == parts and not node.name:
                    gates[name], node.name = node, name
    return gates
