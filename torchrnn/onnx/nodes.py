"""A layer as a node of ONNX's own: RNN, LSTM or GRU, both directions in one."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchrnn.onnx.said import Layer, Results, Value, package


class Kind(NamedTuple):
    """What ONNX calls a cell, and the order in which it has the gates of ours."""

    op: str
    order: tuple[int, ...]  # its gate k is our gate order[k]
    squashed: int  # how many of its functions are the activation of ours, after the sigmoid of gates
    sigmoid: bool
    states: int


#: Our cells that are nodes of ONNX.
KINDS = {
    "rnn_tanh": Kind("RNN", (0,), 1, False, 1),
    "rnn_relu": Kind("RNN", (0,), 1, False, 1),
    "lstm": Kind("LSTM", (0, 3, 1, 2), 2, True, 2),  # i o f c, ours i f g o
    "gru": Kind("GRU", (1, 0, 2), 1, True, 1),  # z r h, ours r z n
    "gru_reset_before": Kind("GRU", (1, 0, 2), 1, True, 1),
}
#: Activations by ONNX's names; those that take numbers, with them.
ACTIVATIONS = {
    "tanh": "Tanh",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "linear": "Affine",
    "softsign": "Softsign",
    "elu": "Elu",
}
_NUMBERS = {"Affine": (1.0, 0.0), "Elu": (1.0, None)}  # alpha, beta


def refuses(layer: Layer, x: Value) -> str | None:
    """Why a layer is no node of ONNX's own, or None."""
    ir = package("onnx_ir")
    if layer.cell not in KINDS:
        return f"ONNX has no node for the cell {layer.cell!r}"
    if layer.projected:
        return "ONNX's nodes have no projection"
    if layer.limit is not None:
        return "the clip of ONNX's nodes acts before the activations, cell_clip on the state"
    if layer.steps is not None and (layer.steps.mask is not None or layer.steps.reset is not None):
        return "ONNX's nodes know lengths, but neither masks nor resets"
    if x.dtype != ir.DataType.FLOAT:
        return "onnxruntime has these nodes for float32 only"
    return None


def run(layer: Layer, x: Value) -> Results:
    """The node, and what brings its results into our form."""
    op = package("onnxscript").opset18
    kind = KINDS[layer.cell]
    w, r, b = _weights(layer, kind)
    H = layer.weights[0][1].shape[-1]
    lengths = None if layer.steps is None else layer.steps.lengths
    sizes = None if lengths is None else op.Cast(lengths, to=package("onnx_ir").DataType.INT32)
    given = [None if is_zero(s) else s for s in layer.states]
    attributes = _attributes(layer, kind) | {"hidden_size": H}
    if kind.op == "GRU":
        attributes["linear_before_reset"] = int(layer.cell == "gru")
    output, *finals = getattr(op, kind.op)(x, w, r, b, sizes, *given, **attributes)
    # (T, D, B, H) -> (T, B, D·H)
    if layer.D == 1:
        output = op.Squeeze(output, [1])
    else:
        output = op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), [0, 0, layer.D * H])
    # of a row without steps the node gives zeros, whatever its initial state
    if any(s is not None for s in given) and (lengths is not None or not isinstance(x.shape[0], int)):
        none = _without_steps(x, lengths)
        finals = [f if s is None else op.Where(none, s, f) for f, s in zip(finals, given, strict=True)]
    return output, finals


def _attributes(layer: Layer, kind: Kind) -> dict[str, Any]:
    squash = "Relu" if layer.cell == "rnn_relu" else ACTIVATIONS[layer.activation]
    direction = "bidirectional" if layer.D == 2 else "forward"
    functions = (["Sigmoid"] if kind.sigmoid else []) + [squash] * kind.squashed
    found: dict[str, Any] = {"direction": direction, "activations": functions * layer.D}
    if squash in _NUMBERS:  # one for each function that takes it, in order
        for name, number in zip(("activation_alpha", "activation_beta"), _NUMBERS[squash], strict=True):
            if number is not None:
                found[name] = [number] * (kind.squashed * layer.D)
    return found


def _weights(layer: Layer, kind: Kind) -> tuple[Value, Value, Value | None]:
    """W (D, G·H, I), R (D, G·H, H) and B (D, 2·G·H) with the gates in ONNX's order."""
    op = package("onnxscript").opset18

    def arranged(weight: Value) -> Value:
        if len(kind.order) == 1:
            return weight
        G, (rows, *columns) = len(kind.order), weight.shape
        parts = op.Reshape(weight, [G, rows // G, *columns])
        return op.Reshape(op.Gather(parts, list(kind.order), axis=0), [rows, *columns])

    def joined(directions: list[Value]) -> Value:
        each = [op.Unsqueeze(d, [0]) for d in directions]
        return each[0] if len(each) == 1 else op.Concat(*each, axis=0)

    w, r = (joined([arranged(d[k]) for d in layer.weights]) for k in (0, 1))
    if not layer.bias:
        return w, r, None
    return w, r, joined([op.Concat(arranged(d[2]), arranged(d[3]), axis=0) for d in layer.weights])


def _without_steps(x: Value, lengths: Value | None) -> Value:
    """Which rows have no step, (B, 1); of rows all alike one number."""
    op = package("onnxscript").opset18
    zero = [0]
    if lengths is None:
        return op.Equal(op.Shape(x, start=0, end=1), zero)
    return op.Unsqueeze(op.Equal(lengths, zero), [1])


def is_zero(value: Value) -> bool:
    """Whether a value is known to be zeros, as initial states are where none are given."""
    ir = package("onnx_ir")
    node = value.producer()
    while node is not None and node.op_type in ("Expand", "Cast", "CastLike", "Identity", "Slice"):
        value = node.inputs[0]
        node = value.producer()
    constant = ir.convenience.get_const_tensor(value)
    return constant is not None and not constant.numpy().any()
