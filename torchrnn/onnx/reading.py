"""Layers of ours with the weights of the LSTM, GRU and RNN nodes of an ONNX model."""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrnn.cells import GRU, LSTM, RNN
from torchrnn.check import ArgumentError
from torchrnn.layer import Recurrent
from torchrnn.onnx.nodes import ACTIVATIONS, KINDS
from torchrnn.onnx.said import package

_KINDS = {"RNN": KINDS["rnn_tanh"], "LSTM": KINDS["lstm"], "GRU": KINDS["gru"]}
_LAYERS: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
_OURS = {theirs.lower(): ours for ours, theirs in ACTIVATIONS.items()}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def from_onnx(model: Any, name: str | None = None) -> Any:
    """Make our layers from the recurrent nodes of an ONNX model.

    A node becomes one layer of one or two directions, with ``batch_first=True`` where the node has layout 1. What the
    graph does around it is not read: stacked nodes are one layer each, to be called one after another;
    ``sequence_lens`` is the call's ``lengths=``, and an initial state that is no constant is its ``hx``. A constant one
    becomes the layer's own, with ``learn_initial_state=True``.

    Args:
        model: the path of a file, an ``onnx.ModelProto``, or what ``torchrnn.onnx.export`` gives.
        name: of the one node to read.

    Returns:
        The layer; a list of layers, in the order of the graph, if there are several and no name is given.

    Raises:
        check.ArgumentError: there is no such node, or it has what our layers lack; the message says what.
        ModuleNotFoundError: a package of ``torchrnn[onnx]`` is not installed.

    Example:
        ```python
        import torch, torchrnn
        import torchrnn.onnx

        layer, x = torchrnn.GRU(3, 5, bidirectional=True), torch.randn(7, 2, 3)
        again = torchrnn.from_onnx(torchrnn.onnx.export(layer, (x,)))
        assert torch.equal(again.weight_hh_l0_reverse, layer.weight_hh_l0_reverse)
        ```
    """
    onnx = package("onnx")
    if isinstance(model, (str, PathLike)):
        model = onnx.load(model)
    model = getattr(model, "model_proto", model)
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model must be a path, an onnx.ModelProto or an ONNXProgram, got {type(model).__name__}")
    constants = _Constants(model)
    found = [n for n in model.graph.node if n.op_type in _LAYERS and n.domain in ("", "ai.onnx")]
    names = ", ".join(repr(n.name) for n in found) or "none"
    if name is not None:
        found = [n for n in found if n.name == name]
    if not found:
        kinds = ", ".join(sorted({n.op_type for n in model.graph.node}))
        which = f"a node called {name!r}" if name is not None else "a node"
        raise ArgumentError(
            f"model must have {which} of type RNN, LSTM or GRU in its main graph; of these there is {names}, and its "
            f"nodes are of the types {kinds}"
        )
    layers = [_layer(_Read(node, constants)) for node in found]
    return layers[0] if name is not None or len(layers) == 1 else layers


class _Constants:
    """Values of a graph that depend on no input, computed when they are asked for."""

    def __init__(self, model: Any) -> None:
        onnx = package("onnx")
        self.model = model
        self.known = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
        self.inputs = {i.name for i in model.graph.input} - self.known.keys()
        self.makers = {out: node for node in model.graph.node for out in node.output}

    def get(self, name: str) -> Tensor | None:
        """A value, or None if it depends on an input."""
        if name not in self.known:
            nodes: list[Any] = []
            if not self._needed(name, nodes, set()):
                return None
            helper, reference = package("onnx").helper, package("onnx.reference")
            inputs = {i: self.known[i] for n in nodes for i in n.input if i in self.known}
            unknown = [helper.make_tensor_value_info(i, 0, None) for i in inputs]
            graph = helper.make_graph(nodes, "constant", unknown, [helper.make_tensor_value_info(name, 0, None)])
            one = helper.make_model(graph, opset_imports=self.model.opset_import)
            self.known[name] = reference.ReferenceEvaluator(one).run(None, inputs)[0]
        return torch.from_numpy(self.known[name].copy())

    def _needed(self, name: str, nodes: list[Any], seen: set[str]) -> bool:
        """Collect the nodes that make a value, in order; False if they need an input."""
        if not name or name in self.known or name in seen:
            return True
        node = self.makers.get(name)
        if node is None:
            return False
        seen.update(node.output)
        if not all(self._needed(i, nodes, seen) for i in node.input):
            return False
        nodes.append(node)
        return True


class _Read(NamedTuple):
    """A node and what it is computed with."""

    node: Any
    constants: _Constants

    @property
    def called(self) -> str:
        """The node, in words."""
        return f"the {self.node.op_type} node {self.node.name!r}"

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, texts as str."""
        said = {a.name: package("onnx").helper.get_attribute_value(a) for a in self.node.attribute}
        value = said.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        return [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, list) else value

    def input(self, name: str, needed: bool = False) -> Tensor | None:
        """An input that is a constant; None if it is none, or there is none."""
        at = _INPUTS.index(name)
        given = self.node.input[at] if at < len(self.node.input) else ""
        value = self.constants.get(given) if given else None
        if value is None and given and needed:
            raise ArgumentError(f"{self.called} has {name} that depend on the graph's inputs: a layer's are constants")
        return value


def _layer(read: _Read) -> Recurrent:
    kind = read.node.op_type
    w, r = (read.input(name, needed=True) for name in ("W", "R"))
    b = read.input("B", needed=True)
    if w is None or r is None:
        raise ArgumentError(f"{read.called} has no weights")
    _refuse(read)
    D, _, I = w.shape
    H = r.shape[-1]
    options: dict[str, Any] = {"bias": b is not None, "bidirectional": D == 2, "dtype": w.dtype}
    options["batch_first"] = read.attribute("layout", 0) == 1
    if kind == "GRU":
        options["reset_after"] = bool(read.attribute("linear_before_reset", 0))
    activation = _activation(read, D)
    options["nonlinearity" if kind == "RNN" and activation == "relu" else "activation"] = activation
    initial = _initial(read, 2 if kind == "LSTM" else 1)
    layer = _LAYERS[kind](I, H, learn_initial_state=initial is not None, **options)
    order = torch.tensor(_KINDS[kind].order).argsort()
    with torch.no_grad():
        for d in range(D):
            parts = [w[d], r[d], *([] if b is None else b[d].chunk(2))]
            for parameter, part in zip(layer.all_weights[d], parts, strict=True):
                gates = part.unflatten(0, (len(order), H))
                parameter.copy_(gates.index_select(0, order).flatten(0, 1))
        for name, value in zip(("initial_h", "initial_c"), initial or (), strict=False):
            getattr(layer, name).copy_(value)
    return layer


def _refuse(read: _Read) -> None:
    """Raise for what our layers do not have."""
    reasons = []
    if read.attribute("direction", "forward") == "reverse":
        reasons.append("direction='reverse': our layers run forward, or both ways; flip the input and the output")
    if read.attribute("clip", 0.0):
        reasons.append("clip, which acts on what goes into the activations; cell_clip acts on the state")
    if read.attribute("input_forget", 0):
        reasons.append("input_forget=1, which couples two gates")
    peepholes = read.input("P", needed=True)
    if peepholes is not None and bool(peepholes.any()):
        reasons.append("peepholes P")
    if reasons:
        raise ArgumentError(f"{read.called} has {'; and '.join(reasons)}")


def _activation(read: _Read, D: int) -> str:
    """Our name of the one function that a node squashes with."""
    kind = _KINDS[read.node.op_type]
    default = ["Sigmoid"] * kind.sigmoid + ["Tanh"] * kind.squashed
    said = read.attribute("activations", default * D)
    each = [[f.lower() for f in said[k : k + len(default)]] for k in range(0, len(said), len(default))]
    gates, squashed = each[0][: int(kind.sigmoid)], each[0][int(kind.sigmoid) :]
    alphas, betas = read.attribute("activation_alpha", []), read.attribute("activation_beta", [])
    plain = all(a == 1 for a in alphas) and not any(betas)
    if any(e != each[0] for e in each) or any(g != "sigmoid" for g in gates) or len(set(squashed)) > 1:
        raise ArgumentError(f"{read.called} has activations={said}: our layers have one, and the sigmoid of the gates")
    if squashed[0] not in _OURS or not plain:
        numbers = f" with activation_alpha={alphas} and activation_beta={betas}" if alphas or betas else ""
        raise ArgumentError(f"{read.called} has activations={said}{numbers}: ours are {', '.join(_OURS.values())}")
    return _OURS[squashed[0]]


def _initial(read: _Read, number: int) -> list[Tensor] | None:
    """Constant initial states for all rows alike, (D, H) each; None where all are zeros or no constants."""
    found = [read.input(name) for name in ("initial_h", "initial_c")[:number]]
    if not any(f is not None and bool(f.any()) for f in found):
        return None
    given = [f for f in found if f is not None]
    if read.attribute("layout", 0) == 1:
        given = [f.transpose(0, 1) for f in given]
    if len(given) < number or not all(bool((f == f[:, :1]).all()) for f in given):
        raise ArgumentError(
            f"{read.called} has constant initial states that differ from row to row, or one of two: such are given by "
            "hx at each call"
        )
    return [f[:, 0] for f in given]
