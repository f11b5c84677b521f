"""A layer of any cell as ONNX's Scan: its body is one step, exported by torch from the cell's own equations."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from torchrnn.activation import Options
from torchrnn.cell import CELLS, Cell
from torchrnn.check import ArgumentError
from torchrnn.onnx.said import Layer, Results, Steps, Value, package, quietly

_numbers = itertools.count()


class _Within:
    """Options of a cell with the limit as a tensor: a number torch.onnx would round to float32."""

    def __init__(self, options: Options, limit: Tensor) -> None:
        self.activation, self.limit = options.activation, limit

    def clip(self, state: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(state, -self.limit), self.limit)


class _Body(nn.Module):
    """One step of one direction: what a Scan repeats."""

    def __init__(self, asked: _Asked) -> None:
        super().__init__()
        self.cell, self.bias, self.projected, self.options = asked.cell, asked.bias, asked.projected, asked.options
        self.limit: Tensor
        self.register_buffer("limit", torch.tensor(asked.options.limit, dtype=asked.dtype))

    def forward(
        self,
        states: list[Tensor],
        x: Tensor,
        counts: Tensor | None,
        begins: Tensor | None,
        initial: list[Tensor],
        weights: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Previous states, W_ih x + b_ih, flags (B, 1), what begins start from, W_hh … -> new states and the output."""
        if begins is not None:
            start = initial or [torch.zeros_like(s) for s in states]
            states = [torch.where(begins, i, s) for i, s in zip(start, states, strict=True)]
        options: Any = self.options if self.options.limit == math.inf else _Within(self.options, self.limit)
        step = self.cell.recurrence(weights[0], weights[1] if self.bias else None, options)
        new = step(x, tuple(states))
        if self.projected:
            new = (F.linear(new[0], weights[-1]), *new[1:])
        if counts is None:
            return *new, new[0].clone()
        output = torch.where(counts, new[0], 0.0)
        return *(torch.where(counts, n, s) for n, s in zip(new, states, strict=True)), output


class _Flags(NamedTuple):
    """Which steps count, and at which a sequence begins, by direction; each (T, B, 1)."""

    counts: Value | None
    begins: list[Value | None]


def run(layer: Layer, x: Value) -> Results:
    """One Scan a direction, and what brings its results into our form."""
    op = package("onnxscript").opset18
    flags = _flags(layer.steps, x, layer.D)
    outputs, finals = [], []
    for d, weights in enumerate(layer.weights):
        states = [op.Gather(s, d, axis=0) for s in layer.states]  # (B, H)
        for state in states:
            state.dtype = x.dtype
        parts = _of_input(layer, x, weights)
        *final, output = _sweep(layer, parts, states, weights, flags.counts, flags.begins[d], reverse=d == 1)
        outputs.append(output)
        finals.append([op.Unsqueeze(f, [0]) for f in final])
    if layer.D == 1:
        return outputs[0], finals[0]
    return op.Concat(*outputs, axis=2), [op.Concat(*pair, axis=0) for pair in zip(*finals, strict=True)]


def step(layer: Layer, x: Value) -> list[Value]:
    """One step of a cell, x (B, I) and states (B, H) -> the new states: a body that nothing repeats."""
    weights = layer.weights[0]
    parts = _of_input(layer, x, weights)
    body = _body(_asked(layer, weights, x, False, False))
    for mine, theirs in zip(body.inputs, [*layer.states, parts, *_of_body(layer, weights)], strict=True):
        mine.replace_all_uses_with(theirs)
    new = list(body.outputs)[:-1]
    body.outputs.clear()
    inner = list(body)
    body.remove(inner)
    package("onnxscript").evaluator.default().nodes.extend(inner)
    return new


def _of_input(layer: Layer, x: Value, weights: list[Value]) -> Value:
    """W_ih x + b_ih."""
    op = package("onnxscript").opset18
    parts = op.MatMul(x, op.Transpose(weights[0], perm=[1, 0]))
    parts = op.Add(parts, weights[2]) if layer.bias else parts
    parts.dtype, parts.shape = x.dtype, package("onnx_ir").Shape([*x.shape[:-1], weights[0].shape[0]])
    return parts


def _flags(steps: Steps | None, x: Value, D: int) -> _Flags:
    op = package("onnxscript").opset18
    if steps is None:
        return _Flags(None, [None] * D)
    last = [2]
    counts = begins = None
    if steps.mask is not None:
        counts = op.Transpose(steps.mask, perm=[1, 0])  # (T, B)
    if steps.lengths is not None:
        T = op.Squeeze(op.Shape(x, start=0, end=1), [0])
        time = op.Unsqueeze(op.Range(0, T, 1), [1])
        counts = op.Less(time, op.Unsqueeze(steps.lengths, [0]))
    if steps.reset is not None:
        begins = op.Transpose(steps.reset, perm=[1, 0])
        if steps.lengths is not None:
            begins = op.And(begins, counts)  # beyond a row's end there is none
    by_direction = [begins]
    if D == 2 and begins is not None:
        # going backward a sequence begins at the step before a reset
        first, end = [1], [2**31 - 1]
        none = op.And(op.Slice(begins, [0], first, [0]), False)
        by_direction.append(op.Concat(op.Slice(begins, first, end, [0]), none, axis=0))
    elif D == 2:
        by_direction.append(None)
    wide = [None if b is None else op.Unsqueeze(b, last) for b in by_direction]
    return _Flags(None if counts is None else op.Unsqueeze(counts, last), wide)


def _sweep(
    layer: Layer,
    x: Value,
    states: list[Value],
    weights: list[Value],
    counts: Value | None,
    begins: Value | None,
    *,
    reverse: bool,
) -> list[Value]:
    """A Scan over (T, B, G·H): the final states (B, H) and the outputs (T, B, H)."""
    ir, evaluator = package("onnx_ir"), package("onnxscript").evaluator.default()
    to_initial = begins is not None and layer.steps is not None and not layer.steps.to_zero
    outside = [*(states if to_initial else []), *_of_body(layer, weights)]
    body = _body(_asked(layer, weights, x, counts is not None, begins is not None))
    S = len(states)
    over = [v for v in (x, counts, begins) if v is not None]
    inside = list(body.inputs)
    for mine, theirs in zip(inside[S + len(over) :], outside, strict=True):  # a body sees what is around it
        mine.replace_all_uses_with(theirs)
    del body.inputs[S + len(over) :]
    directions = [int(reverse)] * len(over), [int(reverse)]
    attributes = [
        ir.AttrGraph("body", body),
        ir.AttrInt64("num_scan_inputs", len(over)),
        ir.AttrInt64s("scan_input_directions", directions[0]),
        ir.AttrInt64s("scan_output_directions", directions[1]),
    ]
    op = package("onnxscript").opset18
    # the evaluator makes the values that know operators, such as +; a node of many outputs it does not make itself
    node = ir.Node("", "Scan", [*states, *over], attributes, num_outputs=S + 1, version=16)
    evaluator.nodes.append(node)
    T, B = x.shape[:2]
    widths = [s.shape[-1] for s in layer.states]
    for value, size in zip(node.outputs, [*((B, w) for w in widths), (T, B, widths[0])], strict=True):
        value.dtype, value.shape = x.dtype, ir.Shape(size)
    return [op.Identity(v) for v in node.outputs]


def _of_body(layer: Layer, weights: list[Value]) -> list[Value]:
    """The weights that a body needs: weight_hh, its bias, weight_hr."""
    return [weights[1], *([weights[3]] if layer.bias else []), *([weights[-1]] if layer.projected else [])]


def _asked(layer: Layer, weights: list[Value], x: Value, counts: bool, begins: bool) -> _Asked:
    dtypes = {"FLOAT": torch.float32, "DOUBLE": torch.float64}
    if x.dtype.name not in dtypes:
        raise ArgumentError(f"a layer in an ONNX graph is of float32 or float64, got {x.dtype.name}: use model.float()")
    limit = math.inf if layer.limit is None else layer.limit
    states = tuple((s.shape[-1],) for s in layer.states)
    sizes = (*states, (weights[0].shape[0],), *(tuple(w.shape) for w in _of_body(layer, weights)))
    return _Asked(
        CELLS[layer.cell],
        Options(layer.activation, limit),
        layer.bias,
        layer.projected,
        dtypes[x.dtype.name],
        sizes,
        counts,
        begins,
        begins and layer.steps is not None and not layer.steps.to_zero,
    )


class _Asked(NamedTuple):
    """What a body depends on: bodies that are alike are exported once."""

    cell: Cell
    options: Options
    bias: bool
    projected: bool
    dtype: torch.dtype
    sizes: tuple[tuple[int, ...], ...]  # of the states (H,), of the gates (G·H,), of the weights
    counts: bool
    begins: bool
    to_initial: bool


def _body(asked: _Asked) -> Any:
    """The graph of one step, with names that no other has."""
    graph = _exported(asked).model.graph.clone()
    graph.name = unique = f"step{next(_numbers)}"
    inner = [value for node in graph for value in node.outputs]
    for value in [*graph.inputs, *graph.initializers.values(), *inner]:
        value.name = f"{unique}_{value.name}"
    for value in [*graph.inputs, *inner]:
        value.shape = None  # its B is not that of the graph around
    _constants_inside(graph)
    return graph


def _constants_inside(graph: Any) -> None:
    """Make the initializers of a graph nodes, so that the nodes can stand in any graph."""
    ir = package("onnx_ir")
    for value in list(graph.initializers.values()):
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
        node.outputs[0].name, node.outputs[0].dtype = f"{value.name}_constant", value.dtype
        value.replace_all_uses_with(node.outputs[0])
        graph.insert_before(graph[0], node)
    graph.initializers.clear()


@lru_cache(maxsize=32)
def _exported(asked: _Asked) -> Any:
    """The step as a model of its own."""
    S, B = len(asked.cell.states), 3
    states, gates, weights = asked.sizes[:S], asked.sizes[S], asked.sizes[S + 1 :]
    flag = torch.ones(B, 1, dtype=torch.bool)

    def rows(sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [torch.zeros(B, *size, dtype=asked.dtype) for size in sizes]

    args: Any = (
        rows(states),
        *rows([gates]),
        flag if asked.counts else None,
        flag.clone() if asked.begins else None,
        rows(states) if asked.to_initial else [],
        [torch.zeros(size, dtype=asked.dtype) for size in weights],
    )
    of_rows = {0: torch.export.Dim("B")}
    shapes = [pytree.tree_map(lambda t: None if t is None else of_rows, a) for a in args[:-1]] + [[{} for _ in weights]]
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names of dimensions are lost, which are not needed
        program = torch.onnx.export(
            _Body(asked).eval(), args, dynamic_shapes=tuple(shapes), opset_version=18, dynamo=True, verbose=False
        )
    if program is None or program.model.functions:
        raise ArgumentError(f"the step of the cell {asked.cell.name!r} needs ONNX functions, which a Scan cannot have")
    return program
