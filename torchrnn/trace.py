"""A cell's step and its backward as expressions, as PyTorch traces and derives them, and what is kept in between."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from torchrnn.activation import PLAIN
from torchrnn.cell import Cell
from torchrnn.expression import OPTIONS, RULES, Graph, Value, reach

_ALIASES = {"alias", "detach"}  # operators whose result is the same memory: an in-place write shows in both
_PLACEMENT = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"}


class _Open:
    """Options that are known only when the kernel runs: operators that nobody looks into while a step is traced.

    What PyTorch is told of their derivatives is what there is to know: that of an activation is a function of its
    result, that of the clip of its argument. The rest of the chain rule is PyTorch's.
    """

    def __init__(self) -> None:
        self.library = torch.library.Library("torchrnn_trace", "DEF")
        self.activation = self._operator("activate", torch.tanh, saves=1)
        self.clip = self._operator("clip", torch.clone, saves=0)

    def _operator(self, name: str, standing_in: Callable[..., Tensor], saves: int) -> Any:
        """An operator of one argument; its backward gets the gradient, and the argument (0) or the result (1)."""
        self.library.define(f"{name}(Tensor x) -> Tensor")
        self.library.define(f"{name}_backward(Tensor gradient, Tensor saved) -> Tensor")
        self.library.impl(name, standing_in, "CPU")
        self.library.impl(f"{name}_backward", torch.mul, "CPU")
        operators = torch.ops.torchrnn_trace
        torch.library.register_autograd(
            f"torchrnn_trace::{name}",
            lambda ctx, gradient: getattr(operators, f"{name}_backward")(gradient, *ctx.saved_tensors),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward((*inputs, output)[saves]),
            lib=self.library,
        )
        return getattr(operators, name)


_OPEN = _Open()


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


def trace(cell: Cell, *, plain: bool = True) -> Step:
    """The step of a cell and its backward, on scalars; not ``plain``: with options that are open."""
    if cell.late:
        raise NotImplementedError(
            f"cell {cell.name!r} has no C++ form: it multiplies with weight_hh within its step, for "
            f"{' '.join(cell.late)}, and a kernel's step is pointwise"
        )
    G, S = len(cell.gates), len(cell.states)
    module, labels = _traced(cell, plain)
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


def _traced(cell: Cell, plain: bool) -> tuple[fx.GraphModule, list[str]]:
    """The step as ATen operators: new states, gradients of x, h and s, then the named values and their gradients."""
    G, S = len(cell.gates), len(cell.states)
    labels: list[str] = []

    def flat(*leaves: Tensor) -> list[Tensor | None]:
        x, h, previous, dnext, _ = _split(list(leaves), G, G, S, S)
        new, variables = _run(cell, x, h, previous, PLAIN if plain else _OPEN)
        ends = [(n, d) for n, d in zip(new, dnext, strict=True) if n.requires_grad]
        inner = {name: v for name, v in variables.items() if v.requires_grad}
        wanted = [*leaves[: 2 * G + S], *inner.values()]
        grads: list[Tensor | None] = [None] * len(wanted)
        if ends:
            grads = list(torch.autograd.grad([n for n, _ in ends], wanted, [d for _, d in ends], allow_unused=True))
        labels[:] = [*variables, *("d" + name for name in inner)]
        return [*new, *grads[: 2 * G + S], *variables.values(), *grads[2 * G + S :]]

    rules: Any = {op: rule for op, rule in core_aten_decompositions().items() if _decomposed(op)}
    # the header must not depend on the modes of its caller
    no_autocast = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast, torch.device("cpu"):
        inputs = [torch.full((), 0.5, dtype=torch.float64) for _ in range(2 * G + 2 * S)]
        for leaf in inputs[: 2 * G + S]:
            leaf.requires_grad_()
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


def _run(
    cell: Cell, x: list[Tensor], h: list[Tensor], s: list[Tensor], options: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The new states, and the tensors among the local variables of the step when it returns."""
    new, found = cell.watched(lambda: cell.advance(x, h, s, options))
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
            "operations (torchrnn.expression.RULES has those that are known), add a rule to that table, or run the "
            "cell on the reference"
        ) from None


def _number(graph: Graph, name: str) -> Callable[..., Value] | None:
    """The rule of the operators that make a number from nothing."""
    rules: dict[str, Callable[..., Value]] = {
        "full": lambda size, value: graph.number(value),
        "scalar_tensor": graph.number,
        "empty_permuted": lambda size, layout: graph.number(math.nan),
    }
    return rules.get(name)


# --- what stands where


class Plan(NamedTuple):
    """Where the values stand: which column each gate's parts have, and what is kept for backward."""

    columns: dict[Value, int]
    h_column: list[int]
    kept: list[Value]


def arrange(step: Step) -> Plan:
    """The columns of a step, and the fewest values to keep."""
    users: dict[Value, set[Value]] = {v: set() for v in (*step.x, *step.h)}
    roots = [*step.next, *step.dx, *step.dh, *step.dprevious]
    for value in reach(roots):
        for arg in value.args:
            if arg in users:
                users[arg].add(value)
    G, columns, h_column = len(step.x), {}, []
    for k, (x, h) in enumerate(zip(step.x, step.h, strict=True)):
        total = x.graph.find("+", x, h)
        additive = users[x] == users[h] == {total} and x not in roots and h not in roots
        h_column.append(k if additive else G + sum(c >= G for c in h_column))
        columns |= {total: k} if additive and total is not None else {x: k, h: h_column[k]}
    return Plan(columns, h_column, _kept(step, columns))


def _kept(step: Step, columns: Iterable[Value]) -> list[Value]:
    """As few values of forward as will do: from them and the states, backward can compute what else it needs."""
    columns = set(columns)
    known = reach(step.next, columns) | columns
    free = {*step.previous, *step.next, step.x[0].graph.leaf(OPTIONS)}
    used = reach([*step.dx, *step.dh, *step.dprevious], known | free) & known

    def again(value: Value, have: set[Value]) -> bool:
        return value in have or value.op == "number" or (value not in columns and anew(value, have))

    def anew(value: Value, have: set[Value]) -> bool:
        return value.op != "leaf" and all(again(a, have) for a in value.args)

    def fewer(kept: set[Value]) -> set[Value]:
        for value in sorted(kept - columns, key=lambda v: -v.order):
            kept = kept - {value} if anew(value, free | kept - {value}) else kept
        return kept

    kept = fewer({v for v in used - free if v.op != "number"})
    for value in sorted(known - free, key=lambda v: v.order):  # one value may stand for several that come of it
        kept = min(kept, fewer(kept | {value}), key=len)
    return sorted(kept, key=lambda v: (v in columns, v.order))
