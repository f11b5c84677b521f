"""Features of graphs: compiled, exported, decomposed, traced. Who runs a layer there is read off the graph."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dynamo import lookup_backend
from torch._dynamo.utils import counters
from torch.export import Dim, ExportedProgram, default_decompositions, export

import torchrnn
import torchrnn.onnx
from docs.features.subject import Feature, I, NotSo, Subject, batch, same, same_with_gradients

TORCH = ("lstm", "gru", "rnn_tanh")
ELEMENTWISE = ("tanh", "sigmoid")


def who(graph: fx.Graph) -> str:
    """Who runs the layer, by the operators of a graph."""
    called = [str(node.target) for node in graph.nodes if node.op in ("call_function", "call_method")]
    if any("torchrnn.recurrent" in name for name in called):
        return "kernels"
    names = [getattr(node.target, "__name__", str(node.target)).split(".")[0] for node in graph.nodes]
    if any(name in TORCH for name in names):
        return "torch"
    return "steps" if any(name in ELEMENTWISE for name in names) else "not in the graph"


def compiled(layer: Any, **options: Any) -> tuple[Any, list[fx.Graph]]:
    """The layer compiled with fullgraph, and its graphs as they come."""
    torch._dynamo.reset()
    counters.clear()
    graphs: list[fx.Graph] = []

    def look(module: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module.graph)
        return lookup_backend("aot_eager")(module, inputs)

    return torch.compile(layer, fullgraph=True, backend=look, **options), graphs


def fullgraph(of: Subject) -> str:
    """Forward and backward."""
    layer, x = of.layer(2, bidirectional=True), batch().requires_grad_()
    run, graphs = compiled(layer)
    same_with_gradients(layer, x, run(x), of.expected(layer, x))
    return who(graphs[-1])


def ten_lengths(of: Subject) -> str:
    """With dynamic=True; the batch changes, too."""
    layer = of.layer()
    run, graphs = compiled(layer, dynamic=True)
    for t in range(5, 15):
        x = batch(t, 8 + t % 2, I)  # sizes that are equal at first would be taken for one
        same(run(x), of.expected(layer, x))
        if counters["stats"]["unique_graphs"] != 1:  # a backend may be called twice for one
            raise NotSo("it is compiled again for the second length")
    return who(graphs[-1])


def exported(layer: Any, dynamic: tuple[int, ...] = (), t: int = 5) -> ExportedProgram:
    """The layer, with some dimensions of its input dynamic."""
    dims = {0: Dim("time"), 1: Dim("batch")}
    return export(layer.eval(), (batch(t, 3, I),), dynamic_shapes=({d: dims[d] for d in dynamic},) if dynamic else None)


def any_batch_and_time(of: Subject) -> str:
    """Exported at (5, 3, I), run at others."""
    layer = of.layer(2, bidirectional=True)
    program = exported(layer, (0, 1))
    for t, b in ((2, 1), (9, 7)):
        x = batch(t, b, I)
        same(program.module()(x), of.expected(layer, x))
    return who(program.graph)


def core_aten(of: Subject) -> str:
    """`run_decompositions`, T fixed and any batch; no operator may remain that is not tagged as core."""
    layer, table = of.layer(), default_decompositions()
    if of.ours:
        table.update(torchrnn.decompositions())
    program = exported(layer, (1,)).run_decompositions(table)
    x = batch(5, 7, I)
    same(program.module()(x), of.expected(layer, x))
    called = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    others = sorted(str(op) for op in called if torch.Tag.core not in op.tags)
    if others:
        raise NotSo(f"the graph calls {', '.join(others)}")
    return who(program.graph)


def does_not_grow(of: Subject) -> str:
    """Exported at T = 3 and at T = 12, as it leaves torch.export."""
    return _size(of, decompose=False)


def does_not_grow_decomposed(of: Subject) -> str:
    """The same after `run_decompositions()` without a table, which is what runtimes get."""
    return _size(of, decompose=True)


def _size(of: Subject, *, decompose: bool) -> str:
    programs = [exported(of.layer(), t=t) for t in (3, 12)]
    if decompose:
        programs = [program.run_decompositions() for program in programs]
    sizes = [len(program.graph.nodes) for program in programs]
    if sizes[0] != sizes[1]:
        raise NotSo("the graph has more nodes for 12 steps than for 3")
    return who(programs[0].graph)


def traced(of: Subject) -> str:
    """Traced at (5, 3, I), run at others."""
    layer = of.layer(2, bidirectional=True)
    run: Any = torch.jit.trace(layer, batch(), check_trace=False)
    for t, b in ((2, 1), (9, 7)):
        x = batch(t, b, I)
        same(run(x), of.expected(layer, x))
    kinds = {node.kind().removeprefix("aten::") for node in run.inlined_graph.nodes()}
    return "torch" if kinds & {*TORCH} else "steps"


def onnx(of: Subject) -> str:
    """As `torch.onnx.export` does it if nothing else is asked for; with torchrnn's own table for ours."""
    layer, call = of.layer(dtype=torch.float32).eval(), (batch().float(),)
    more: dict[str, Any] = {"dynamic_shapes": ({0: "T", 1: "B"},), "verbose": False}
    if of.ours:
        program = torchrnn.onnx.export(layer, call, check=False, **more)
    else:
        program = torch.onnx.export(layer, call, dynamo=True, **more)
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder, "layer.onnx"))
        _run(of, layer, Path(folder, "layer.onnx"))
    kinds = {node.op_type for node in program.model.graph}
    return ", ".join(f"a node {kind}" for kind in ("RNN", "LSTM", "GRU", "Scan") if kind in kinds)


def onnx_by_trace(of: Subject) -> str:
    """By the exporter that came before, which traces."""
    layer, call = of.layer(dtype=torch.float32).eval(), (batch().float(),)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "layer.onnx")
        axes = {"x": {0: "T", 1: "B"}}
        torch.onnx.export(layer, call, file, dynamo=False, input_names=["x"], dynamic_axes=axes)
        _run(of, layer, file)
    return "torch"


def _run(of: Subject, layer: Any, file: Path) -> None:
    """Exported at (5, 3, I), run by onnxruntime at others; in float32, for which it has everything."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error is raised, too
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    for t, b in ((2, 1), (9, 7)):
        x = batch(t, b, I).float()
        results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        same([torch.from_numpy(r) for r in results], of.expected(layer, x), 1e-4)


FEATURES = [
    Feature("`torch.compile(fullgraph=True)`, forward and backward", fullgraph),
    Feature("one compilation for ten lengths (`fullgraph=True, dynamic=True`)", ten_lengths),
    Feature("`torch.export` with dynamic batch and time", any_batch_and_time),
    Feature("exported and decomposed to core ATen operators, any batch", core_aten),
    Feature("an exported graph does not grow with T", does_not_grow),
    Feature("… nor after `run_decompositions()`", does_not_grow_decomposed),
    Feature("`torch.jit.trace`, run with other lengths", traced),
    Feature("`torch.onnx.export` or `torchrnn.onnx.export` with dynamic batch and time, run by onnxruntime", onnx),
    Feature("… by the older exporter (`dynamo=False`)", onnx_by_trace),
]
