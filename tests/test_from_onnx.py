"""Layers from the nodes of ONNX models: they compute what onnxruntime does, or say what they lack."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import Session, compare

import torchrnn
from torchrnn import from_onnx
from torchrnn.check import ArgumentError

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
SQUASHED = {"RNN": 1, "LSTM": 2, "GRU": 1}
I, H, T, B = 3, 4, 6, 2


def model(op: str, D: int = 1, bias: bool = True, extra: Any = None, initial: Any = None, **attributes: Any) -> Any:
    """A model of one node with random weights, X (T, B, I) its input."""
    GH, rng = GATES[op] * H, np.random.default_rng(0)
    arrays = {"W": (D, GH, I), "R": (D, GH, H)} | ({"B": (D, 2 * GH)} if bias else {})
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()} | (initial or {})
    values |= extra or {}
    names = ["X", "W", "R", "B" if bias else "", "", *(n if n in values else "" for n in ("h", "c", "P"))]
    while not names[-1]:
        names.pop()
    if op == "GRU":
        attributes = {"linear_before_reset": 1} | attributes
    direction = "bidirectional" if D == 2 else "forward"
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, name="it", **({"hidden_size": H, "direction": direction} | attributes))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", I])
    initializers = [numpy_helper.from_array(v, n) for n, v in values.items()]
    return made([node], [x], info, initializers)


def made(nodes: Any, inputs: Any, outputs: Any, initializers: Any) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def agree(model: Any, layer: Any) -> None:
    """Whether a layer computes what onnxruntime does."""
    x = torch.randn(T, B, I)
    y, *states = Session(model)(x)
    output, final = layer(x)
    D = 2 if layer.bidirectional else 1
    expected = output.unflatten(-1, (D, H)).transpose(1, 2)
    compare([y, *states], [expected, *(final if isinstance(final, tuple) else (final,))])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_layers_agree_with_onnxruntime(op: str, D: int, bias: bool) -> None:
    node = model(op, D, bias)
    layer = from_onnx(node)
    assert type(layer) is getattr(torchrnn, op)
    assert (layer.input_size, layer.hidden_size, layer.bidirectional, layer.bias) == (I, H, D == 2, bias)
    agree(node, layer)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("D", [1, 2])
def test_a_gru_whose_reset_gate_acts_before_the_product(D: int, bias: bool) -> None:
    node = model("GRU", D, bias, linear_before_reset=0)
    layer = from_onnx(node)
    assert not layer.reset_after
    agree(node, layer)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        agree(node, from_onnx(model("GRU", D, bias)))  # the same weights in the other GRU


@pytest.mark.parametrize("name", ["Tanh", "Relu", "Sigmoid", "Affine", "Softsign", "Elu"])
@pytest.mark.parametrize("op", GATES)
def test_activations(op: str, name: str) -> None:
    functions = (["Sigmoid"] if op != "RNN" else []) + [name] * SQUASHED[op]
    numbers: dict[str, Any] = {"activation_alpha": [1.0] * SQUASHED[op]} if name in ("Affine", "Elu") else {}
    numbers |= {"activation_beta": [0.0] * SQUASHED[op]} if name == "Affine" else {}
    node = model(op, 2, activations=functions * 2, **{k: v * 2 for k, v in numbers.items()})
    agree(node, from_onnx(node))


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_constant_initial_states_become_the_layer_s_own(op: str) -> None:
    rows = np.random.default_rng(1).normal(size=(2, 2, 1, H)).astype(np.float32).repeat(B, 2)
    names = ["h", "c"][: 2 if op == "LSTM" else 1]
    node = model(op, 2, initial=dict(zip(names, rows, strict=False)))
    layer = from_onnx(node)
    assert layer.learn_initial_state
    agree(node, layer)
    assert not from_onnx(model(op, 2, initial={n: np.zeros((2, B, H), np.float32) for n in names})).learn_initial_state


def test_a_layout_of_batches_first_is_batch_first() -> None:
    plain, layout = from_onnx(model("GRU")), from_onnx(model("GRU", layout=1))
    assert layout.batch_first
    x = torch.randn(T, B, I)
    torch.testing.assert_close(layout(x.transpose(0, 1))[0].transpose(0, 1), plain(x)[0], rtol=0, atol=0)


def test_weights_that_are_computed_from_constants() -> None:
    """As in a file that torch wrote with the table alone: gates are put in order by nodes."""
    node = model("LSTM", 1)
    w = next(i for i in node.graph.initializer if i.name == "W")
    w.name = "turned"
    array = numpy_helper.to_array(w)
    w.CopyFrom(numpy_helper.from_array(array.transpose(2, 1, 0).copy(), "turned"))
    turn = helper.make_node("Transpose", ["turned"], ["W"], perm=[2, 1, 0])
    node.graph.node.insert(0, turn)
    agree(node, from_onnx(node))


def test_several_nodes_and_one_by_its_name(tmp_path: Any) -> None:
    stack = torch.nn.Sequential(torchrnn.LSTM(I, H, 2, bidirectional=True), Output(), torchrnn.GRU(2 * H, 5))
    path = tmp_path / "model.onnx"
    x = torch.randn(T, B, I)
    program = torchrnn.onnx.export(stack, (x,), path)
    for source in (path, str(path), program, onnx.load(path)):
        layers = from_onnx(source)
        assert [type(layer).__name__ for layer in layers] == ["LSTM", "LSTM", "GRU"]
    y = layers[1](layers[0](x)[0])[0]
    compare([layers[2](y)[1].detach()], [stack(x)[1]], 1e-6)
    name = next(n.name for n in program.model.graph if n.op_type == "GRU")
    assert isinstance(from_onnx(path, name), torchrnn.GRU)
    with pytest.raises(ArgumentError, match=f"a node called 'none' of type RNN, LSTM or GRU .*'{name}'.* types .*LSTM"):
        from_onnx(path, "none")


class Output(torch.nn.Module):
    def forward(self, results: Any) -> Any:
        return results[0]


def test_a_float64_node_is_a_float64_layer() -> None:
    layer: Any = torchrnn.GRU(I, H, dtype=torch.float64)
    node = model("GRU")
    for name, value in (("W", layer.weight_ih_l0), ("R", layer.weight_hh_l0)):
        at = next(i for i in node.graph.initializer if i.name == name)
        at.CopyFrom(numpy_helper.from_array(value.detach()[None].numpy(), name))
    again: Any = from_onnx(node)
    assert again.weight_ih_l0.dtype == torch.float64
    order = torch.tensor([1, 0, 2])  # z r n there, r z n here
    assert torch.equal(again.weight_hh_l0.view(3, H, H), layer.weight_hh_l0.view(3, H, H)[order])


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "direction='reverse': our layers run forward, or both ways": ("GRU", {"direction": "reverse"}),
    "clip, which acts on what goes into the activations": ("LSTM", {"clip": 0.5}),
    "input_forget=1, which couples two gates": ("LSTM", {"input_forget": 1}),
    "peepholes P": ("LSTM", {"extra": {"P": np.ones((1, 3 * H), np.float32)}, "initial": {}}),
    "our layers have one, and the sigmoid": ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}),
    "our layers have one, and": ("GRU", {"activations": ["HardSigmoid", "Tanh"]}),
    "ours are tanh, relu, sigmoid, linear, softsign, elu": ("RNN", {"activations": ["Softplus"]}),
    "activation_alpha=.* ours are": ("RNN", {"activations": ["Elu"], "activation_alpha": [0.5]}),
    "differ from row to row": ("GRU", {"initial": {"h": np.random.default_rng(0).normal(size=(1, B, H)).astype("f4")}}),
    "or one of two": ("LSTM", {"initial": {"h": np.ones((1, B, H), np.float32)}}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_our_layers_lack_is_named(words: str) -> None:
    op, attributes = REFUSED[words]
    with pytest.raises(ArgumentError, match=f"the {op} node 'it' has .*{words}"):
        from_onnx(model(op, **attributes))


def test_what_is_no_layer() -> None:
    node = model("GRU")
    node.graph.initializer.remove(next(i for i in node.graph.initializer if i.name == "W"))
    node.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, None))
    with pytest.raises(ArgumentError, match="the GRU node 'it' has W that depend on the graph's inputs"):
        from_onnx(node)
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1])
    with pytest.raises(ArgumentError, match=r"a node of type RNN, LSTM or GRU .* there is none, .* types Relu"):
        from_onnx(made([helper.make_node("Relu", ["X"], ["Y"])], [x], [y], []))
    with pytest.raises(TypeError, match=r"model must be a path, an onnx\.ModelProto or an ONNXProgram, got int"):
        from_onnx(3)
