"""onnxruntime and openvino: a layer as a graph of ONNX operators, inference only, one thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.cases import GATES, Case
from benchmarks.subjects import Work

#: ONNX's gates by their place in torch: LSTM iofc from ifgo, GRU zrh from rzn.
_ORDER = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def onnxruntime(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
    """A session of the CPU provider."""
    if training or not _expressible(case):
        return None
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(_graph(case, model, inputs), options, providers=["CPUExecutionProvider"])
    feeds = _feeds(case, inputs)
    return Work(lambda: session.run(None, feeds), _reader(case))


def openvino(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
    """A compiled model of the CPU plugin, in float32, shapes fixed."""
    if training or not _expressible(case):
        return None
    core = _core()
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(core.read_model(_graph(case, model, inputs)), "CPU", hints)
    request = compiled.create_infer_request()
    feeds = _feeds(case, inputs)
    results = list(compiled.outputs)

    def run() -> list[Any]:
        answer = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [answer[r] for r in results]

    return Work(run, _reader(case))


@cache
def _core() -> Any:
    return import_module("openvino").Core()  # once: each holds threads until the process ends


def _expressible(case: Case) -> bool:
    return case.steps == 1 and not case.packed and case.by_hand in ("", "lengths")


def _feeds(case: Case, inputs: tuple[Any, ...]) -> dict[str, Any]:
    x, *states = tree_leaves(inputs)
    if case.is_cell:
        x, states = x.unsqueeze(0), [s.unsqueeze(0) for s in states]
    feeds = {"x": x.numpy()} | {f"state{k}": s.numpy() for k, s in enumerate(states)}
    if case.lengths:
        feeds["lengths"] = case.row_lengths().int().numpy()
    return feeds


def _reader(case: Case) -> Callable[[Any], list[Tensor | None]]:
    def read(results: Any) -> list[Tensor | None]:
        tensors = [torch.from_numpy(np.array(r)) for r in results]
        return [t[0] for t in tensors[1:]] if case.is_cell else list(tensors)

    return read


def _graph(case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> bytes:
    """The layers as ONNX nodes, with the weights of the torch.nn module."""
    onnx: Any = import_module("onnx")
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    nodes, constants, finals = [], [], []
    feeds = _feeds(case, inputs)

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, taken: list[str], given: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, taken, given, **attributes))
        return given[0]

    S, D, H = (2 if case.cell == "LSTM" else 1), case.D, case.H
    y = node("Transpose", ["x"], ["x_tbi"], perm=[1, 0, 2]) if case.batch_first else "x"
    weights = _by_layer(case, model)
    attributes: dict[str, Any] = {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
    if case.cell == "GRU":
        attributes["linear_before_reset"] = 1
    if case.relu:
        attributes["activations"] = ["Relu"] * D
    for k, arrays in enumerate(weights):
        taken = [y, *(constant(f"{name}{k}", a) for name, a in zip("WRB", arrays, strict=False))]
        taken += [""] * (4 - len(taken))  # no bias
        taken.append("lengths" if case.lengths else "")
        for s in range(S if len(feeds) > 1 + case.lengths else 0):
            whole = f"state{s}"
            if case.L > 1:
                ends = [constant(f"end{i}_{k}_{s}", np.array([i * D])) for i in (k, k + 1)]
                whole = node("Slice", [whole, *ends], [f"{whole}_{k}"])
            taken.append(whole)
        given = [f"y{k}", *(f"final{s}_{k}" for s in range(S))]
        node(case.cell, taken, given, **attributes)  # y: (T, D, B, H)
        finals.append(given[1:])
        if D == 1:
            y = node("Squeeze", [f"y{k}", constant(f"axis{k}", np.array([1]))], [f"flat{k}"])
        else:
            turned = node("Transpose", [f"y{k}"], [f"turned{k}"], perm=[0, 2, 1, 3])
            y = node("Reshape", [turned, constant(f"shape{k}", np.array([0, 0, D * H]))], [f"flat{k}"])
    y = node("Transpose", [y], ["y"], perm=[1, 0, 2]) if case.batch_first else y
    states = [
        finals[0][s] if case.L == 1 else node("Concat", [f[s] for f in finals], [f"final{s}"], axis=0) for s in range(S)
    ]
    given_types = {"lengths": kinds.INT32}
    graph = helper.make_graph(
        nodes,
        case.name,
        [helper.make_tensor_value_info(n, given_types.get(n, kinds.FLOAT), list(a.shape)) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, kinds.FLOAT, None) for n in (y, *states)],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made.SerializeToString()


def _by_layer(case: Case, model: nn.Module) -> list[tuple[Any, ...]]:
    """W (D, G·H, I), R (D, G·H, H) and B (D, 2·G·H) of each layer, gates in ONNX's order."""
    count = 4 if case.bias else 2
    parameters = [p.detach().unflatten(0, (GATES[case.cell], case.H)) for p in model.parameters()]
    ordered = [p[list(_ORDER[case.cell])].flatten(0, 1).numpy() for p in parameters]
    layers = []
    for k in range(case.L):
        parts = [ordered[count * (k * case.D + d) :][:count] for d in range(case.D)]
        W, R = (np.stack([p[i] for p in parts]) for i in (0, 1))
        biases = (np.stack([np.concatenate(p[2:]) for p in parts]),) if case.bias else ()
        layers.append((W, R, *biases))
    return layers
