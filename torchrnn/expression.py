"""The values of a step as expressions, shared and simplified."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch

_FOLD = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COMPARISONS = {"<", ">", "<=", ">=", "==", "!="}


class Value:
    """A leaf, a number, or an operation on other values; made by a [`Graph`][torchrnn.expression.Graph]."""

    __slots__ = ("args", "content", "graph", "op", "order")

    def __init__(self, graph: Graph, op: str, args: tuple[Value, ...], content: Any) -> None:
        self.graph, self.op, self.args, self.content = graph, op, args, content
        self.order = len(graph.values)

    @property
    def is_mask(self) -> bool:
        """Whether it is true or false instead of a number."""
        return self.op in _COMPARISONS or self.op in ("&", "|", "!")

    def __add__(self, other: Any) -> Value:
        return self.graph.make("+", self, other)

    def __radd__(self, other: Any) -> Value:
        return self.graph.make("+", other, self)

    def __sub__(self, other: Any) -> Value:
        return self.graph.make("-", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.graph.make("-", other, self)

    def __mul__(self, other: Any) -> Value:
        return self.graph.make("*", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.graph.make("*", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self.graph.make("/", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self.graph.make("/", other, self)

    def __neg__(self) -> Value:
        return self.graph.make("-", 0, self)

    def __lt__(self, other: Any) -> Value:
        return self.graph.make("<", self, other)

    def __gt__(self, other: Any) -> Value:
        return self.graph.make(">", self, other)

    def __le__(self, other: Any) -> Value:
        return self.graph.make("<=", self, other)

    def __ge__(self, other: Any) -> Value:
        return self.graph.make(">=", self, other)


class Graph:
    """All values of one step. Asking twice for the same operation on the same values gives the same value."""

    def __init__(self) -> None:
        self.values: dict[Any, Value] = {}

    def leaf(self, name: str) -> Value:
        """A value that comes from outside."""
        return self._shared("leaf", (), name)

    def number(self, number: float) -> Value:
        """A constant."""
        # repr tells 0.0 from -0.0 and lets nan meet itself
        return self._shared("number", (), float(number), repr(float(number)))

    def lift(self, value: Any) -> Value:
        """Numbers and masks as values one can calculate with."""
        if not isinstance(value, Value):
            return self.number(value)
        return self.make("select", value, 1, 0) if value.is_mask else value

    def make(self, op: str, *args: Any) -> Value:
        """The value of an operator or function, simplified where that changes no result."""
        if op in ("&", "|", "!"):
            return self._shared(op, tuple(a if a.is_mask else self.make("!=", a, 0) for a in args))
        if op == "select":
            mask = args[0] if args[0].is_mask else self.make("!=", args[0], 0)
            a, b = map(self.lift, args[1:])
            return a if a is b else self._shared(op, (mask, a, b))
        values = tuple(self.lift(a) for a in args)
        if op in _COMPARISONS:
            return self._shared(op, values)
        return _simpler(op, *values) or self._shared(op, values)

    def find(self, op: str, *args: Value) -> Value | None:
        """The value of an operation if it was ever made."""
        return self.values.get(_key(op, args, None))

    def _shared(self, op: str, args: tuple[Value, ...], content: Any = None, mark: Any = None) -> Value:
        key = _key(op, args, content if mark is None else mark)
        if key not in self.values:
            self.values[key] = Value(self, op, args, content)
        return self.values[key]


def reach(roots: Iterable[Value], stop: Iterable[Value] = ()) -> set[Value]:
    """The roots and all that they are computed from; ``stop`` is included, what it is computed from is not."""
    found, todo, border = set(), list(roots), set(stop)
    while todo:
        value = todo.pop()
        if value not in found:
            found.add(value)
            todo.extend(() if value in border else value.args)
    return found


def _key(op: str, args: tuple[Value, ...], content: Any) -> tuple[Any, ...]:
    order = [a.order for a in args]
    return (op, *(sorted(order) if op in ("+", "*") else order), content)


def _simpler(op: str, *args: Value) -> Value | None:
    """The same value with less work, if there is one. Exact but for the sign of a zero; x * 0 may be nan and stays."""
    graph = args[0].graph
    if all(a.op == "number" for a in args):
        return _folded(graph, op, [a.content for a in args])
    if op not in ("+", "-", "*", "/"):
        return None
    a, b = args
    negated = [v.args[0] if v.op == "neg" else None for v in args]
    if op == "+":
        if b.content == 0 or a.content == 0:
            return a if b.content == 0 else b
        if negated[1] or negated[0]:
            return a - negated[1] if negated[1] else b - negated[0]
    elif op == "-":
        if b.content == 0:
            return a
        if negated[1]:
            return a + negated[1]
        if a.content == 0:
            return graph._shared("neg", (b,))
    else:
        if b.content == 1:
            return a
        if b.content == -1:
            return -a
        if op == "*" and a.content in (1, -1):
            return b * a
        if negated[0] or negated[1]:  # a minus goes outwards, where a sum may take it in
            product = graph.make(op, negated[0] or a, negated[1] or b)
            return product if negated[0] and negated[1] else -product
    return None


def _folded(graph: Graph, op: str, numbers: list[float]) -> Value | None:
    if op in _FOLD:
        return graph.number(_FOLD[op](*numbers))
    function = {"/": "true_divide", "max": "maximum", "min": "minimum"}.get(op, op)
    tensors = [torch.tensor(n, dtype=torch.float64, device="cpu") for n in numbers]
    return graph.number(getattr(torch, function)(*tensors).item())
