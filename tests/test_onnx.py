"""Models as ONNX files: onnxruntime computes what they do, at all sizes, with ONNX's own nodes where it has them."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from fused import needs_kernels
from onnx_models import CELLS, NODES, STACKS, Called, H, I, Session, compare, stacks, types
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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
    model, program = stacks(cell)
    run, at = Session(program), STACKS.index((layers, directions))
    number, layer = len(model.layers[0].cell.states) + 1, model.layers[at]
    first = (at + len(STACKS) * lengths) * number
    for T, B in SIZES:
        x, n = torch.randn(T, B, I), torch.randint(0, T + 1, (B,))
        if lengths:
            x[torch.arange(T).unsqueeze(1) >= n] = torch.nan  # what is beyond reaches nothing
        results = layer(x, lengths=n) if lengths else layer(x)
        compare(run(x, n)[first : first + number], tree_leaves(results))


@pytest.mark.parametrize("cell", CELLS)
def test_each_layer_is_one_node_of_its_kind(cell: str) -> None:
    _, program = stacks(cell)
    found = [t for t in types(program) if t in ("RNN", "LSTM", "GRU", "Scan", "Loop")]
    # a Scan has one direction, a node of ONNX's own both
    number = sum(L * (D if NODES[cell] == "Scan" else 1) for L, D in STACKS)
    assert found == [NODES[cell]] * number * 2
    nodes = [n for n in program.model_proto.graph.node if n.op_type in ("RNN", "LSTM", "GRU")]
    lengths = [len(n.input) > 4 and n.input[4] != "" for n in nodes]
    assert lengths == [False] * (len(nodes) // 2) + [True] * (len(nodes) // 2)


def test_the_dimensions_are_declared_by_name() -> None:
    _, program = stacks("lstm")
    graph = program.model_proto.graph

    def shape(value: Any) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: shape(v) for v in graph.input} == {"x": ["T", "B", I], "lengths": ["B"]}
    assert [shape(v) for v in graph.output[:3]] == [["T", "B", H], [1, "B", H], [1, "B", H]]
    onnx.checker.check_model(program.model_proto, full_check=True)


F64: Any = {"dtype": torch.float64}
BOTH: dict[str, Any] = {"num_layers": 2, "bidirectional": True, **F64}


def test_scans_agree_in_double_precision() -> None:
    model = Called(
        torchrnn.LSTM(I, H, proj_size=2, **BOTH),
        torchrnn.RNN(I, H, proj_size=2, bias=False, **BOTH),
        torchrnn.LSTM(I, H, cell_clip=0.1, **BOTH),
        torchrnn.GRU(I, H, proj_size=2, **BOTH),
        torchrnn.GRU(I, H, cell_clip=0.1, activation="softsign", **BOTH),
        CELLS["coupled_lstm"](I, H, cell_clip=0.1, bias=False, **BOTH),
    ).eval()
    for layer in model.layers:
        nn.init.uniform_(layer.weight_ih_l0, -2, 2)  # or nothing is ever clipped
    x, n = torch.randn(5, 2, I, **F64), torch.tensor([0, 3])
    shapes = {"x": TB, "lengths": {0: "B"}}
    program = torchrnn.onnx.export(model, (x,), kwargs={"lengths": n}, dynamic_shapes=shapes, tolerance=1e-12)
    assert types(program).count("Scan") == 4 * len(model.layers)
    run = Session(program)
    for T, B in SIZES[::2]:
        x, n = torch.randn(T, B, I, **F64), torch.randint(0, T + 1, (B,))
        results = model(x, lengths=n)
        assert (results[7].abs() == 0.1).any() or not n.any()  # the clipped state
        compare(run(x, n), results, 1e-12)


class Said(nn.Module):
    """One layer with all that can be said of steps."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor, mask: Tensor, reset: Tensor) -> Any:
        said: list[dict[str, Any]] = [
            {"mask": mask},
            {"reset": reset},
            {"reset": reset, "reset_to": "initial"},
            {"mask": mask, "reset": reset},
            {"mask": mask, "reset": reset, "reset_to": "initial"},
            {"lengths": lengths, "reset": reset},
            {"lengths": lengths, "reset": reset, "reset_to": "initial"},
        ]
        clean = torch.where(mask.unsqueeze(-1), x, 0.0)
        results = [self.layer(x if "mask" in each else clean, (h, c), **each) for each in said]
        return tuple(t for y, states in results for t in (y, *states))


def test_masks_and_resets() -> None:
    model = Said(torchrnn.LSTM(I, H, batch_first=True, bidirectional=True, **F64)).eval()

    def draw(T: int, B: int) -> tuple[Tensor, ...]:
        x, h, c = torch.randn(B, T, I, **F64), torch.randn(2, B, H, **F64), torch.randn(2, B, H, **F64)
        mask = torch.rand(B, T) < 0.6
        x[~mask] = torch.nan  # which reaches nothing
        return x, h, c, torch.randint(0, T + 1, (B,)), mask, torch.rand(B, T) < 0.4

    of_state = {1: "B"}
    shapes = (BT, of_state, of_state, {0: "B"}, BT, BT)
    program = torchrnn.onnx.export(model, draw(5, 2), dynamic_shapes=shapes, tolerance=1e-12)
    run = Session(program)
    for T, B in [*SIZES, (4, 40)]:
        inputs = draw(T, B)
        compare(run(*inputs), model(*inputs), 1e-12)


def test_activations_are_attributes() -> None:
    kinds = (torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU)
    model = Called(*(kind(I, H, activation=name, bidirectional=True) for kind in kinds for name in ACTIVATIONS)).eval()
    program = torchrnn.onnx.export(model, (torch.randn(5, 2, I),), dynamic_shapes={"x": TB}, check=False)
    assert all(types(program).count(kind.__name__) == len(ACTIVATIONS) for kind in kinds)
    x = torch.randn(7, 3, I)
    compare(Session(program)(x), model(x))


class Given(nn.Module):
    """Layers of cells that begin where they are told."""

    def __init__(self, *cells: str) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(CELLS[cell](I, H, 2, bidirectional=True) for cell in cells)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Any = None) -> Any:
        found = [layer(x, (h, c) if len(layer.cell.states) == 2 else h, lengths=lengths) for layer in self.layers]
        return tuple(tree_leaves(found))


OF_GIVEN = {"x": TB, "h": {1: "B"}, "c": {1: "B"}}


def test_initial_states_are_those_of_rows_without_steps() -> None:
    model = Given(*CELLS).eval()
    inputs = torch.randn(5, 2, I), torch.randn(4, 2, H), torch.randn(4, 2, H), torch.tensor([0, 5])
    shapes = OF_GIVEN | {"lengths": {0: "B"}}
    program = torchrnn.onnx.export(model, inputs, dynamic_shapes=shapes, check=False)
    inputs = torch.randn(4, 3, I), torch.randn(4, 3, H), torch.randn(4, 3, H), torch.tensor([4, 0, 1])
    results = Session(program)(*inputs)
    compare(results, model(*inputs))
    assert torch.equal(results[1][:, 1], inputs[1][:, 1])


def test_no_steps_at_all() -> None:
    model = Given("rnn_tanh", "lstm").eval()  # onnxruntime 1.31 aborts in a GRU node then, and refuses a Scan
    inputs = torch.randn(5, 2, I), torch.randn(4, 2, H), torch.randn(4, 2, H)
    program = torchrnn.onnx.export(model, inputs, dynamic_shapes=OF_GIVEN)
    none, h, c = torch.randn(0, 2, I), *inputs[1:]
    y = torch.zeros(0, 2, 2 * H)
    compare(Session(program)(none, h, c), (y, h, y, h, c))


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
        cells = [torchrnn.LSTMCell(I, H, bias=False), torchrnn.GRUCell(I, H, cell_clip=0.2)]
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
    compare(Session(program)(x), tree_leaves(model(x)))


class Shapes(nn.Module):
    """One layer on one sequence and on several dimensions of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torchrnn.LSTM(I, H, 2, bidirectional=True)

    def forward(self, one: Tensor, many: Tensor) -> Any:
        return tuple(tree_leaves([self.layer(one), self.layer(many)]))


def test_unbatched_and_several_batch_dimensions() -> None:
    model, args = Shapes().eval(), (torch.randn(5, I), torch.randn(6, 2, 4, I))
    program = torchrnn.onnx.export(model, args, dynamic_shapes=({0: "T"}, {0: "S", 1: "B"}))
    args = torch.randn(9, I), torch.randn(8, 3, 4, I)
    compare(Session(program)(*args), model(*args))


def test_the_table_alone_serves_torch_s_exporter() -> None:
    model = Called(torchrnn.GRU(I, 70, bidirectional=True)).eval()
    table = torchrnn.onnx.translation_table()
    args = (torch.randn(5, 2, I),)
    program = torch.onnx.export(model, args, dynamic_shapes=[TB], custom_translation_table=table, verbose=False)
    assert program is not None
    x = torch.randn(9, 3, I)
    compare(Session(program)(x), model(x))


def test_large_weights_stand_in_the_file_as_the_nodes_take_them() -> None:
    model = Called(torchrnn.LSTM(I, 70, bidirectional=True)).eval()
    program = torchrnn.onnx.export(model, (torch.randn(5, 2, I),), dynamic_shapes={"x": TB})
    assert types(program) == ["LSTM", "Transpose", "Reshape"]
    sizes = [list(v.shape) for v in program.model.graph.initializers.values() if v.dtype.is_floating_point()]
    assert sorted(sizes) == [[2, 280, I], [2, 280, 70], [2, 560]]


def test_another_opset() -> None:
    opset = 23
    model, x = Called(torchrnn.LSTM(I, H), CELLS["coupled_lstm"](I, H)), torch.randn(5, 2, I)
    program = torchrnn.onnx.export(model, (x,), dynamic_shapes={"x": TB}, opset_version=opset)
    assert program.model.opset_imports[""] == opset
