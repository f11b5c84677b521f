"""The values of a step as expressions, shared and simplified, and what each ATen operator is in them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch

_FUNCTIONS = ("exp", "log", "log1p", "expm1", "sqrt", "abs", "erf", "sigmoid", "tanh", "relu")
_FOLD = {"+": operator.add, "-": operator.sub, "*": operator.mul}
OPTIONS = "options"  # the leaf that stands for the options of a cell
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


# --- what the operators are


def select(mask: Value, a: Any, b: Any) -> Value:
    """Where the mask is true a, else b."""
    return mask.graph.make("select", mask, a, b)


def _function(name: str) -> Callable[..., Value]:
    return lambda *args: next(a for a in args if isinstance(a, Value)).graph.make(name, *args)


exp, sigmoid, tanh, sqrt, erf, maximum, minimum = map(
    _function, ("exp", "sigmoid", "tanh", "sqrt", "erf", "max", "min")
)


def _power(x: Value, exponent: float) -> Value:
    if not isinstance(exponent, (int, float)) or 2 * exponent != int(2 * exponent) or abs(exponent) > 16:
        raise ValueError(f"only powers that are a multiple of 1/2, at most 16, not {exponent}")
    if exponent < 0:
        return 1 / _power(x, -exponent)
    whole = int(exponent)
    result = sqrt(x) if exponent > whole else x.graph.number(1)
    for _ in range(whole):
        result = result * x
    return result


def _sign(x: Value) -> Value:
    return select(x > 0, 1, select(x < 0, -1, 0))


def _clamp(x: Value, min: Any = None, max: Any = None) -> Value:
    x = x if min is None else maximum(x, min)
    return x if max is None else minimum(x, max)


def _gelu(x: Value, approximate: str = "none") -> Value:
    if approximate == "tanh":
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _elu(x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    return select(x > 0, x * scale, _function("expm1")(x * input_scale) * (alpha * scale))


def _lerp(a: Value, b: Value, weight: Any) -> Value:
    near = a + weight * (b - a)
    if not isinstance(weight, Value):
        return near if abs(weight) < 0.5 else b - (b - a) * (1 - weight)
    return select(_function("abs")(weight) < 0.5, near, b - (b - a) * (1 - weight))


def _same(x: Value) -> Value:
    return x


def _open(name: str) -> Callable[..., Value]:
    """A function whose meaning is an option, known when the kernel runs."""
    return lambda *args: args[0].graph.make(name, args[0].graph.leaf(OPTIONS), *args)


#: What each ATen operator is. Operators that PyTorch itself decomposes into these need no line.
RULES: dict[str, Callable[..., Value]] = {
    "add": lambda a, b, alpha=1: a + b * alpha,
    "sub": lambda a, b, alpha=1: a - b * alpha,
    "rsub": lambda a, b, alpha=1: b - a * alpha,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "reciprocal": lambda a: 1 / a,
    "square": lambda a: a * a,
    "pow": _power,
    "rsqrt": lambda a: 1 / sqrt(a),
    **{name: _function(name) for name in _FUNCTIONS},
    "sign": _sign,
    "sgn": _sign,
    "maximum": maximum,
    "minimum": minimum,
    "clamp": _clamp,
    "clamp_min": lambda a, min: maximum(a, min),
    "clamp_max": lambda a, max: minimum(a, max),
    "hardtanh": lambda a, min_val=-1, max_val=1: _clamp(a, min_val, max_val),
    "leaky_relu": lambda a, negative_slope=0.01: select(a > 0, a, a * negative_slope),
    "elu": _elu,
    "gelu": _gelu,
    "silu": lambda a: a * sigmoid(a),
    "lerp": _lerp,
    "sigmoid_backward": lambda d, o: d * o * (1 - o),
    "tanh_backward": lambda d, t: d * (1 - t * t),
    "threshold_backward": lambda d, a, threshold: select(a <= threshold, 0, d),
    "where": select,
    "masked_fill": lambda a, mask, value: select(mask, value, a),
    "gt": lambda a, b: a > b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "le": lambda a, b: a <= b,
    "eq": _function("=="),
    "ne": _function("!="),
    **dict.fromkeys(("logical_and", "bitwise_and"), _function("&")),
    **dict.fromkeys(("logical_or", "bitwise_or"), _function("|")),
    **dict.fromkeys(("logical_not", "bitwise_not"), _function("!")),
    "full_like": lambda a, value: a.graph.number(value),
    "zeros_like": lambda a: a.graph.number(0),
    "ones_like": lambda a: a.graph.number(1),
    **dict.fromkeys(("alias", "detach", "clone", "lift_fresh_copy", "_to_copy"), _same),
    "copy": lambda a, b: b,
    **{name: _open(name) for name in ("activate", "activate_backward", "clip", "clip_backward")},
}
