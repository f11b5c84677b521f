"""A cell's step and its backward as expressions: PyTorch traces and derives, a table has each ATen operator."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from torchrnn.cell import Cell
from torchrnn.expression import Graph, Value

_FUNCTIONS = ("exp", "log", "log1p", "expm1", "sqrt", "abs", "erf", "sigmoid", "tanh", "relu")
_ALIASES = {"alias", "detach"}  # operators whose result is the same memory: an in-place write shows in both
_PLACEMENT = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"}


class Step(NamedTuple):
    """A traced step: its inputs, what it gives, and the gradients, as values of one graph."""

    x: list[Value]
    h: list[Value]
    previous: list[Value]
    dnext: list[Value]
    next: list[Value]
    dx: list[Value]
    dh: list[Value]
    dprevious: list[Value]
    names: dict[Value, str]


def trace(cell: Cell) -> Step:
    """The step of a cell and its backward, on scalars."""
    G, S = len(cell.gates), len(cell.states)
    module, labels = _traced(cell)
    graph = Graph()
    results: list[Value] = []
    leaves = [f"{part}{k}" for part, count in (("x", G), ("h", G), ("s", S), ("d", S)) for k in range(count)]
    inputs = [graph.leaf(name) for name in leaves]
    values: dict[Any, Value] = {}
    owner: dict[Any, Any] = {}  # of a node that shares another's memory, that other
    waiting = iter(inputs)

    def of(node: Any) -> Value:
        return values[owner.get(node, node)]

    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(waiting)
        elif node.op == "get_attr":
            values[node] = graph.number(_constant(cell, getattr(module, node.target)))
        elif node.op == "call_function":
            value = _apply(cell, graph, node, of)
            name = node.target._schema.name.split("::")[1]
            if name in _ALIASES or name.endswith("_"):
                owner[node] = owner.get(node.args[0], node.args[0])
            values[owner.get(node, node)] = value
        elif node.op == "output":
            results = [graph.number(0) if n is None else of(n) for n in node.args[0]]
    next_, dx, dh, ds, rest = _split(results, S, G, G, S)
    names = {}
    for value, label in zip(rest, labels, strict=True):
        if value.op != "number":
            names.setdefault(value, label)
    x, h, previous, dnext, _ = _split(inputs, G, G, S, S)
    return Step(x, h, previous, dnext, [graph.lift(v) for v in next_], dx, dh, ds, names)


def _split(values: list[Any], *counts: int) -> list[list[Any]]:
    rest, parts = list(values), []
    for count in counts:
        parts.append(rest[:count])
        rest = rest[count:]
    return [*parts, rest]


def _traced(cell: Cell) -> tuple[fx.GraphModule, list[str]]:
    """The step as ATen operators: new states, gradients of x, h and s, then the named values and their gradients."""
    G, S = len(cell.gates), len(cell.states)
    labels: list[str] = []

    def flat(*leaves: Tensor) -> list[Tensor | None]:
        x, h, previous, dnext, _ = _split(list(leaves), G, G, S, S)
        new, variables = _run(cell, x, h, previous)
        ends = [(n, d) for n, d in zip(new, dnext, strict=True) if n.requires_grad]
        inner = {name: v for name, v in variables.items() if v.requires_grad}
        wanted = [*leaves[: 2 * G + S], *inner.values()]
        grads: list[Tensor | None] = [None] * len(wanted)
        if ends:
            grads = list(torch.autograd.grad([n for n, _ in ends], wanted, [d for _, d in ends], allow_unused=True))
        labels[:] = [*variables, *("d" + name for name in inner)]
        return [*new, *grads[: 2 * G + S], *variables.values(), *grads[2 * G + S :]]

    inputs = [torch.full((), 0.5, dtype=torch.float64, device="cpu") for _ in range(2 * G + 2 * S)]
    for leaf in inputs[: 2 * G + S]:
        leaf.requires_grad_()
    rules: Any = {op: rule for op, rule in core_aten_decompositions().items() if _decomposed(op)}
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return make_fx(flat, decomposition_table=rules)(*inputs), labels
        except NotImplementedError:
            raise
        except RuntimeError as error:
            raise NotImplementedError(
                f"cell {cell.name!r} has no C++ form, its step cannot be followed on single numbers (one unit of one "
                f"sequence, no branch that depends on a value): {error}"
            ) from error


def _decomposed(op: Any) -> bool:
    return isinstance(op, OpOverload) and _known(op) not in RULES and torch.Tag.nondeterministic_seeded not in op.tags


def _run(cell: Cell, x: list[Tensor], h: list[Tensor], s: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The new states, and the tensors among the local variables of the step when it returns."""
    code, found = getattr(inspect.unwrap(cell.step), "__code__", None), {}

    def watch(frame: Any, event: str, result: Any) -> None:
        if event == "return" and frame.f_code is code:
            found.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        new = cell.step(cell._gates(*x), cell._gates(*h), cell._states(*s))
    finally:
        sys.setprofile(before)
    new = [new] if isinstance(new, Tensor) else list(new)
    if len(new) != len(s):
        raise TypeError(f"cell {cell.name!r}: the step function must return {len(s)} states, got {len(new)}")
    for name, state in zip(cell.states, new, strict=True):
        if state.dim():
            raise NotImplementedError(
                f"cell {cell.name!r} has no C++ form: from single numbers its step makes the state {name} of shape "
                f"{tuple(state.shape)}; a constant tensor must be a single number"
            )
    return new, {name: v for name, v in found.items() if isinstance(v, Tensor) and v.dim() == 0}


def _known(op: Any) -> str:
    """The name under which an operator has its rule; an in-place operator has that of its other form."""
    return op._schema.name.split("::")[1].removesuffix("_")


def _constant(cell: Cell, tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise NotImplementedError(
            f"cell {cell.name!r} uses a constant tensor of shape {tuple(tensor.shape)}: only single numbers can be "
            "printed; make it a gate or a state, or a Python number"
        )
    return float(tensor.item())


def _apply(cell: Cell, graph: Graph, node: fx.Node, of: Any) -> Value:
    """The value of one ATen operator, by its rule."""
    name = _known(node.target)
    args: Any = map_arg(list(node.args), of)
    options = {k: v for k, v in map_arg(dict(node.kwargs), of).items() if k not in _PLACEMENT}
    made, rule = node.meta.get("val"), RULES.get(name, _number(graph, name))
    try:
        if rule is None:
            raise ValueError("nothing elementwise")
        inspect.signature(rule).bind(*args, **options)
        value = rule(*args, **options)
        if value.op == "number":
            return value
        if not isinstance(made, Tensor) or made.dim():
            raise ValueError("its result is no single number")
        # 0 and 1 chosen by a mask are integers in some of PyTorch's own formulas; rounding and bit arithmetic are not
        if not (made.is_floating_point() or made.dtype == torch.bool or name == "where" or value.is_mask):
            raise ValueError("its result is an integer")
        return graph.make("!=", value, 0) if made.dtype == torch.bool and not value.is_mask else value
    except (TypeError, ValueError) as error:
        raise NotImplementedError(
            f"cell {cell.name!r} uses {node.target}, which has no C++ form ({error}): write the step with elementwise "
            "operations (torchrnn.trace.RULES has those that are known), add a rule to that table, or run the cell on "
            "the reference"
        ) from None


def _number(graph: Graph, name: str) -> Callable[..., Value] | None:
    """The rule of the operators that make a number from nothing."""
    rules: dict[str, Callable[..., Value]] = {
        "full": lambda size, value: graph.number(value),
        "scalar_tensor": graph.number,
        "empty_permuted": lambda size, layout: graph.number(math.nan),
    }
    return rules.get(name)


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
}
