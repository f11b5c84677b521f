"""The translation of our two operators: a stack of layers with what is said of its steps, node by node or as Scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchrnn import _extension
from torchrnn.check import ArgumentError
from torchrnn.onnx import nodes, scan
from torchrnn.onnx.said import Layer, Steps, Value, package

_KEY = "torchrnn.steps"


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` needs as its ``custom_translation_table`` to know our layers.

    Raises:
        ModuleNotFoundError: a package of ``torchrnn[onnx]`` is not installed.
        RuntimeError: torchrnn was installed without its library.

    Example:
        ```python
        import torch, torchrnn
        from torchrnn.onnx import translation_table

        layer = torchrnn.GRU(3, 5).eval()
        program = torch.onnx.export(layer, (torch.randn(7, 2, 3),), custom_translation_table=translation_table())
        assert [node.op_type for node in program.model.graph].count("GRU") == 1
        ```
    """
    for name in ("onnx", "onnxscript"):
        package(name)
    missing = _extension.missing()
    if missing is not None:
        raise RuntimeError(f"ONNX graphs are made of the operators of torchrnn's library, which is not here: {missing}")
    return {torch.ops.torchrnn.plan.default: plan, torch.ops.torchrnn.recurrent.default: recurrent}


def plan(
    B: Any,
    T: Any,
    M: Any,
    batch_first: bool,
    lengths: Any,
    first: Any,
    mask: Any,
    reset: Any,
    to_zero: bool,
    D: int,
) -> Any:
    """A value that only carries what was said; the layers look at that, and the value itself is left out."""
    op = package("onnxscript").opset18
    if first is not None:
        raise ArgumentError(
            "a list of sequences or a nested tensor cannot be the input of a layer in an ONNX graph: pad it with "
            "torch.nn.utils.rnn.pad_sequence and say lengths="
        )
    size = op.Reshape(op.Add(op.Mul(M, 2 + D), op.Add(op.Mul(B, D), 4)), [-1])
    value = op.ConstantOfShape(size, value=package("onnx_ir").tensor([0]))
    value.meta[_KEY] = Steps(batch_first, lengths, mask, reset, to_zero)
    return value


def recurrent(
    cell: str,
    x: Any,
    states: Any,
    weights: Any,
    batch_sizes: Any,
    plan: Any,
    bias: bool,
    bidirectional: bool,
    activation: str,
    limit: float | None,
) -> Any:
    """Output and final states of a stack."""
    op, ir = package("onnxscript").opset18, package("onnx_ir")
    if batch_sizes is not None:
        raise ArgumentError(
            "a PackedSequence cannot be the input of a layer in an ONNX graph: give the padded batch and lengths="
        )
    steps = None if plan is None else plan.meta[_KEY]
    if len(states[0].shape) == 2:
        layer = Layer(cell, activation, limit, bias, [list(weights)], list(states), steps)
        return scan.step(layer, x)
    y = x
    if steps is not None and steps.batch_first:
        y = op.Transpose(x, perm=[1, 0, 2])
        y.dtype, y.shape = x.dtype, ir.Shape([x.shape[1], x.shape[0], x.shape[2]])
    finals: list[Any] = []
    for layer in _layers(cell, states, weights, bias, bidirectional, activation, limit, steps):
        run = scan.run if nodes.refuses(layer, x) else nodes.run
        inner = y
        y, final = run(layer, inner)
        y.dtype, y.shape = x.dtype, ir.Shape([*inner.shape[:2], layer.D * states[0].shape[-1]])
        finals.append(final)
    if steps is not None and steps.batch_first:
        y = op.Transpose(y, perm=[1, 0, 2])
    if len(finals) == 1:
        return (y, *finals[0])
    return (y, *(op.Concat(*of, axis=0) for of in zip(*finals, strict=True)))


def _layers(
    cell: str,
    states: list[Value],
    weights: list[Value],
    bias: bool,
    bidirectional: bool,
    activation: str,
    limit: float | None,
    steps: Steps | None,
) -> list[Layer]:
    """The layers of a stack, bottom first."""
    op = package("onnxscript").opset18
    D = 2 if bidirectional else 1
    LD = states[0].shape[0]
    each = len(weights) // LD
    found = []
    for k in range(0, LD, D):
        mine = [list(weights[(k + d) * each : (k + d + 1) * each]) for d in range(D)]
        part = states if LD == D else [op.Slice(s, [k], [k + D], [0]) for s in states]
        for whole, some in zip(states, part, strict=True):
            if some is not whole:
                some.dtype, some.shape = whole.dtype, package("onnx_ir").Shape([D, *whole.shape[1:]])
        found.append(Layer(cell, activation, limit, bias, mine, list(part), steps))
    return found
