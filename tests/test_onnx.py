"""Models as ONNX files: onnxruntime computes what they do, at all sizes, with ONNX's own nodes where it has them."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from fused import needs_kernels
from onnx_models import CELLS, NODES, STACKS, Called, H, I, Session, compare, plainly, stacks, types
from torch import Tensor, nn

import torchrnn
import torchrnn.onnx
from torchrnn.activation import ACTIVATIONS

pytestmark = needs_kernels
SIZES = [(T, B) for T in (1, 7, 19) for B in (1, 3, 8)]  # none of them the example's
TB, BT = {0: "T", 1: "B"}, {0: "B", 1: "T"}


@pytest.fixture(scope="module", autouse=True)
def _exports_are_made_once():
    yield
    stacks.cache_clear()


@pytest.mark.parametrize("lengths", [False, True], ids=["dense", "lengths"])
@pytest.mark.parametrize(("layers", "directions"), STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_combination_agrees_at_other_sizes(cell: str, layers: int, directions: int, lengths: bool) -> None:
    model, program = stacks(cell, lengths)
    run, at = Session(program), STACKS.index((layers, directions))
    number = len(model.layers[at].cell.states) + 1
    for T, B in SIZES:
        x, inputs = torch.randn(T, B, I), {}
        if lengths:
            n = torch.randint(0, T + 1, (B,))
            x[torch.arange(T).unsqueeze(1) >= n] = torch.nan  # what is beyond reaches nothing
            inputs["lengths"] = n
        results = run(x, *inputs.values())
        compare(results[at * number : (at + 1) * number], Called(model.layers[at])(x, **inputs))


def flat(states: Any) -> tuple[Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


@pytest.mark.parametrize("lengths", [False, True], ids=["dense", "lengths"])
@pytest.mark.parametrize("cell", CELLS)
def test_each_layer_is_one_node_of_its_kind(cell: str, lengths: bool) -> None:
    _, program = stacks(cell, lengths)
    found = [t for t in types(program) if t in ("RNN", "LSTM", "GRU", "Scan", "Loop")]
    # a Scan has one direction, a node of ONNX's own both
    number = sum(L * (D if NODES[cell] == "Scan" else 1) for L, D in STACKS)
    assert found == [NODES[cell]] * number
    for node in program.model_proto.graph.node:
        if node.op_type in ("RNN", "LSTM", "GRU"):
            assert bool(node.input[4:5] and node.input[4]) is lengths  # sequence_lens


def test_the_dimensions_are_declared_by_name() -> None:
    _, program = stacks("lstm", True)
    graph = program.model_proto.graph

    def shape(value: Any) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: shape(v) for v in graph.input} == {"x": ["T", "B", I], "lengths": ["B"]}
    assert [shape(v) for v in graph.output[:3]] == [["T", "B", H], [1, "B", H], [1, "B", H]]
    onnx.checker.check_model(program.model_proto, full_check=True)


LSTM: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
SCANS: dict[str, tuple[Any, dict[str, Any]]] = {
    "projected": (torchrnn.LSTM, {"proj_size": 2}),
    "projected rnn": (torchrnn.RNN, {"proj_size": 2, "bias": False}),
    "clipped": (torchrnn.LSTM, {"cell_clip": 0.1}),
    "clipped gru": (torchrnn.GRU, {"cell_clip": 0.1, "activation": "elu"}),
    "coupled": (CELLS["coupled_lstm"], {}),
    "coupled and clipped": (CELLS["coupled_lstm"], {"cell_clip": 0.1, "bias": False}),
    "relu": (CELLS["rnn_relu"], {}),
}


def given(layer: Any, B: int) -> tuple[Tensor, ...]:
    """Random initial states for a layer."""
    return tuple(torch.randn(4, B, w, dtype=torch.float64) for w in widths(layer))


def widths(layer: Any) -> list[int]:
    return [layer.proj_size or layer.hidden_size, *(layer.hidden_size for _ in layer.cell.states[1:])]


@pytest.mark.parametrize("name", SCANS)
def test_scans_agree_in_double_precision(name: str) -> None:
    kind, options = SCANS[name]
    layer = kind(I, H, **LSTM, **options)
    if options.get("cell_clip"):
        nn.init.uniform_(layer.weight_ih_l0, -4, 4)  # or nothing is ever clipped
    model, hx = Called(layer).eval(), given(layer, 2)
    x, n = torch.randn(5, 2, I, dtype=torch.float64), torch.tensor([0, 3])
    hx, of_hx = (hx, ({1: "B"}, {1: "B"})) if len(hx) == 2 else (hx[0], {1: "B"})
    shapes = {"x": TB, "hx": of_hx, "lengths": {0: "B"}}
    program = torchrnn.onnx.export(model, (x, hx), kwargs={"lengths": n}, dynamic_shapes=shapes, tolerance=1e-12)
    assert types(program).count("Scan") == 4
    run = Session(program)
    for T, B in SIZES[::2]:
        x, hx = torch.randn(T, B, I, dtype=torch.float64), given(layer, B)
        n = torch.randint(0, T + 1, (B,))
        n[0] = 0
        again = hx if len(hx) == 2 else hx[0]
        compare(run(x, *hx, n), model(x, again, lengths=n), 1e-12)


@pytest.mark.parametrize("to", ["zero", "initial"])
@pytest.mark.parametrize("said", ["mask", "reset", "mask reset", "lengths reset"])
def test_masks_and_resets(said: str, to: str) -> None:
    if said == "mask" and to == "initial":
        to = "zero"  # there is nothing to set back
    layer = torchrnn.LSTM(I, H, batch_first=True, **LSTM)
    model = Called(layer, reset_to=to).eval()

    def draw(T: int, B: int) -> tuple[Tensor, Any, dict[str, Tensor]]:
        inputs = {"mask": torch.rand(B, T) < 0.6, "reset": torch.rand(B, T) < 0.4, "lengths": torch.randint(0, T + 1, (B,))}
        x = torch.randn(B, T, I, dtype=torch.float64)
        if "mask" in said:
            x[~inputs["mask"]] = torch.nan
        return x, given(layer, B), {name: inputs[name] for name in said.split()}

    x, hx, inputs = draw(5, 2)
    shapes: dict[str, Any] = {"x": BT, "hx": ({1: "B"}, {1: "B"})}
    shapes |= {name: {0: "B"} if name == "lengths" else BT for name in inputs}
    program = torchrnn.onnx.export(model, (x.nan_to_num(), hx), kwargs=inputs, dynamic_shapes=shapes, tolerance=1e-12)
    run = Session(program)
    for T, B in [*SIZES, (4, 40)]:
        x, hx, inputs = draw(T, B)
        compare(run(x, *hx, *inputs.values()), model(x, hx, **inputs), 1e-12)


@pytest.mark.parametrize("kind", [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU])
def test_activations_are_attributes(kind: Any) -> None:
    layers = [kind(I, H, activation=name, bidirectional=True) for name in ACTIVATIONS]
    model, x = Called(*layers).eval(), torch.randn(5, 2, I)
    program = torchrnn.onnx.export(model, (x,), dynamic_shapes={"x": TB}, check=False)
    assert types(program).count(kind.__name__) == len(ACTIVATIONS)
    x = torch.randn(7, 3, I)
    compare(Session(program)(x), model(x))


@pytest.mark.parametrize("cell", CELLS)
def test_initial_states_of_rows_without_steps(cell: str) -> None:
    layer = CELLS[cell](I, H, 2, bidirectional=True)
    number = len(layer.cell.states)

    def states(B: int) -> Any:
        made = tuple(torch.randn(4, B, H) for _ in range(number))
        return made if number == 2 else made[0]

    model, x, n = Called(layer).eval(), torch.randn(5, 2, I), torch.tensor([0, 5])
    of_hx = ({1: "B"}, {1: "B"}) if number == 2 else {1: "B"}
    shapes = {"x": TB, "hx": of_hx, "lengths": {0: "B"}}
    program = torchrnn.onnx.export(model, (x, states(2)), kwargs={"lengths": n}, dynamic_shapes=shapes, check=False)
    x, hx, n = torch.randn(4, 3, I), states(3), torch.tensor([4, 0, 1])
    compare(Session(program)(x, *flat(hx), n), model(x, hx, lengths=n))


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "coupled_lstm"])  # onnxruntime 1.31 aborts in a GRU node
def test_no_steps_at_all(cell: str) -> None:
    layer = CELLS[cell](I, H)
    number = len(layer.cell.states)
    of_hx = ({1: "B"}, {1: "B"}) if number == 2 else {1: "B"}
    hx = tuple(torch.randn(1, 2, H) for _ in range(number))
    hx = hx if number == 2 else hx[0]
    model = Called(layer).eval()
    program = torchrnn.onnx.export(model, (torch.randn(5, 2, I), hx), dynamic_shapes={"x": TB, "hx": of_hx})
    compare(Session(program)(torch.randn(0, 2, I), *flat(hx)), (torch.zeros(0, 2, H), *flat(hx)))


def test_options_of_a_stack() -> None:
    made: list[Any] = [
        torchrnn.GRU(I, H, 2, bidirectional=True, merge_mode="sum", bias="single"),
        torchrnn.LSTM(I, [3, 4], bias=False),
        torchrnn.RNN(I, I, 2, residual=True, learn_initial_state=True),
        torchrnn.LSTM(I, H, batch_first_state=True, dropout=0.5, num_layers=2),
        torchrnn.GRU(I, H, bidirectional=True, return_sequences=False),
    ]
    nn.init.normal_(made[2].initial_h)
    model, x, n = Called(*made), torch.randn(5, 2, I), torch.tensor([3, 5])
    shapes = {"x": TB, "lengths": {0: "B"}}
    program = torchrnn.onnx.export(model, (x,), kwargs={"lengths": n}, dynamic_shapes=shapes, check=False)
    assert all(module.training for module in model.modules())  # it was made in evaluation, and left as it was
    found = types(program)
    assert [found.count(t) for t in ("RNN", "LSTM", "GRU", "Scan", "Dropout")] == [2, 4, 3, 0, 0]
    run = Session(program)
    for T, B in SIZES[:-1]:
        x, n = torch.randn(T, B, I), torch.randint(0, T + 1, (B,))
        compare(run(x, n), model.eval()(x, lengths=n))


class Steps(nn.Module):
    """Three steps of each cell, written out."""

    def __init__(self) -> None:
        super().__init__()
        cells = [torchrnn.RNNCell(I, H), torchrnn.LSTMCell(I, H, bias=False), torchrnn.GRUCell(I, H, cell_clip=0.2)]
        self.cells = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> list[Any]:
        found = []
        for cell in self.cells:
            state = None
            for _ in range(3):
                state = cell(x, state)
            found.append(state)
        return found


def test_single_steps() -> None:
    model = Steps().eval()
    program = torchrnn.onnx.export(model, (torch.randn(2, I),), dynamic_shapes=({0: "B"},))
    assert "Scan" not in types(program)
    x = torch.randn(7, I)
    rnn, lstm, gru = model(x)
    compare(Session(program)(x), (rnn, *lstm, gru))


def test_unbatched_and_several_batch_dimensions() -> None:
    model = Called(torchrnn.LSTM(I, H, 2, bidirectional=True)).eval()
    program = torchrnn.onnx.export(model, (torch.randn(5, I),), dynamic_shapes={"x": {0: "T"}})
    x = torch.randn(9, I)
    compare(Session(program)(x), model(x))
    program = torchrnn.onnx.export(model, (torch.randn(5, 2, 4, I),), dynamic_shapes={"x": {0: "T", 1: "B"}})
    x = torch.randn(9, 3, 4, I)
    compare(Session(program)(x), model(x))


def test_the_table_alone_serves_torch_s_exporter() -> None:
    model = Called(torchrnn.GRU(I, 70, bidirectional=True)).eval()
    program = plainly(model, torch.randn(5, 2, I), dynamic_shapes={"x": TB})
    x = torch.randn(9, 3, I)
    compare(Session(program)(x), model(x))


def test_large_weights_stand_in_the_file_as_the_nodes_take_them() -> None:
    model = Called(torchrnn.LSTM(I, 70, bidirectional=True)).eval()
    program = torchrnn.onnx.export(model, (torch.randn(5, 2, I),), dynamic_shapes={"x": TB})
    assert types(program) == ["LSTM", "Transpose", "Reshape"]
    sizes = [list(v.shape) for v in program.model.graph.initializers.values() if v.dtype.is_floating_point()]
    assert sizes == [[2, 280, I], [2, 280, 70], [2, 560]]


@pytest.mark.parametrize("opset", [18, 23])
def test_opsets(opset: int) -> None:
    model, x = Called(torchrnn.LSTM(I, H), CELLS["coupled_lstm"](I, H)), torch.randn(5, 2, I)
    program = torchrnn.onnx.export(model, (x,), dynamic_shapes={"x": TB}, opset_version=opset)
    assert program.model.opset_imports[""] == opset
