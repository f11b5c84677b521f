"""torch.compile and torch.export: one operator in a graph whatever the length; the loop's results and gradients."""

import copy
from typing import Any

import pytest
import torch
from agreement import F64, LAYERS, NO_KERNEL, agree, learned, states_for
from fused import needs_kernels
from torch._dynamo.utils import counters
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

import torchrnn
from torchrnn.plan import Steps

pytestmark = needs_kernels
T, B, I = 5, 4, 3
NAMES = [name for name in LAYERS if name not in NO_KERNEL]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "bias": False},
    "options": {"activation": "softsign", "cell_clip": 0.3, "bias": "single"},
    "beyond": {"num_layers": 2, "residual": True, "learn_initial_state": True},
    "merged": {"num_layers": 2, "bidirectional": True, "merge_mode": "mean"},
}
SAID: dict[str, dict[str, Any]] = {
    "dense": {},
    "lengths": {"lengths": torch.tensor([3, 5, 0, 1])},
    "mask": {"mask": torch.rand(T, B) < 0.6},
    "reset": {"reset": torch.rand(T, B) < 0.4, "reset_to": "initial"},
    "both": {"reset": torch.rand(T, B) < 0.4, "lengths": torch.tensor([5, 5, 2, 3])},
}
IMPOSSIBLE = {("rnn_relu", "activation")}  # it has one


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Dynamo counts all layers of these tests as one that is compiled again and again."""
    torch._dynamo.reset()
    counters.clear()


def called(graph: torch.fx.Graph) -> list[str]:
    """Our operators in a graph."""
    return [str(n.target) for n in graph.nodes if "torchrnn" in str(n.target)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("said", SAID)
def test_compiled_it_is_the_loop(name: str, options: str, said: str) -> None:
    chosen = {k: v for k, v in OPTIONS[options].items() if (name, k) not in IMPOSSIBLE}
    layer = learned(LAYERS[name](I, 4, **chosen, **F64))
    x, call = torch.randn(T, B, I, **F64), dict(SAID[said])
    if layer.batch_first:
        x = x.transpose(0, 1).contiguous()
        call = {k: v.t() if k in ("mask", "reset") else v for k, v in call.items()}
    hx = None if layer.learn_initial_state else states_for(layer, B)
    layer.compile(fullgraph=True, backend="aot_eager")
    agree(layer, None, x, hx, **call)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_cells_and_packed_sequences(kind: str) -> None:
    cell, x = getattr(torchrnn, kind + "Cell")(I, 4, **F64), torch.randn(B, I, **F64)
    compiled: Any = torch.compile(cell, fullgraph=True, backend="aot_eager")
    for a, b in zip(tree_leaves(compiled(x)), tree_leaves(cell(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()
    layer = getattr(torchrnn, kind)(I, 4, num_layers=2, bidirectional=True, **F64)
    packed = pack_sequence([torch.randn(n, I, **F64) for n in (2, 5, 1)], enforce_sorted=False)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = compiled(packed), layer(packed)
    assert isinstance(found[0], PackedSequence)
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dropout_acts_between_layers() -> None:
    layer, x = torchrnn.GRU(I, 64, num_layers=2, dropout=0.5), torch.randn(T, B, I)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    layer.eval()
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_numbers(dtype: torch.dtype) -> None:
    layer, x = torchrnn.GRU(I, 4, dtype=dtype), torch.randn(T, B, I, dtype=dtype)
    seen: list[str] = []

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(called(module.graph))
        return module

    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend=look)(x), layer(x))
    assert seen == ["torchrnn.recurrent"]


@pytest.mark.parametrize("said", ["dense", "lengths", "mask", "reset"])
def test_ten_lengths_compile_once(said: str) -> None:
    layer = torchrnn.LSTM(I, 4, num_layers=2, bidirectional=True)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for t in range(6, 16):
        x = torch.randn(t, 4 + t % 2, I)  # sizes that are equal at first would be taken for one
        call: Any = {
            "dense": {},
            "lengths": {"lengths": torch.randint(0, t + 1, (x.size(1),))},
            "mask": {"mask": torch.rand(t, x.size(1)) < 0.5},
            "reset": {"reset": torch.rand(t, x.size(1)) < 0.5},
        }[said]
        torch.testing.assert_close(compiled(x, **call), layer(x, **call))
    assert counters["stats"]["unique_graphs"] == 1


def test_the_graph_does_not_grow_with_time() -> None:
    sizes = []
    for t in (3, 300):
        torch._dynamo.reset()
        graphs: list[torch.fx.Graph] = []

        def look(module: torch.fx.GraphModule, _: Any, graphs: Any = graphs) -> Any:
            graphs.append(module.graph)
            return module

        torch.compile(torchrnn.GRU(I, 4, num_layers=3, bidirectional=True), backend=look)(torch.randn(t, B, I))
        sizes.append(len(graphs[0].nodes))
        assert called(graphs[0]) == ["torchrnn.recurrent"]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("t", "b"), [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_nothing_to_run(kind: str, lengths: bool, t: int, b: int) -> None:
    layer = getattr(torchrnn, kind)(I, 4, num_layers=2, bidirectional=True)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    x, said = torch.randn(t, b, I), {"lengths": torch.zeros(b, dtype=torch.int64)} if lengths else {}
    hx = states_for(layer.double(), b)
    for _ in range(2):
        found, expected = compiled(x.double(), hx, **said), layer(x.double(), hx, **said)
        for a, e in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, e)
        gradients = [torch.autograd.grad([s.sum() for s in tree_leaves(r)], tree_leaves(hx)) for r in (found, expected)]
        for a, e in zip(*gradients, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("batch_first", [False, True])
def test_bad_lengths_are_refused_when_the_graph_runs(batch_first: bool) -> None:
    layer, x = torchrnn.GRU(I, 4, batch_first=batch_first), torch.randn((B, T, I) if batch_first else (T, B, I))
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x, lengths=torch.tensor([5, 1, 0, 2]))
    # batch_first a row that is too long would run on into the next
    for bad, said in (([5, 6, 0, 2], r"lengths\[1\] = 6"), ([5, 0, 8, 0], r"lengths\[2\] = 8"), ([-2, 1, 1, 1], "-2")):
        with pytest.raises(RuntimeError, match="lengths must be between 0 and T = 5, got .*" + said):
            compiled(x, lengths=torch.tensor(bad))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("make", [torchrnn.GRU, torchrnn.LSTMCell])
def test_scripting_is_refused_with_what_to_use(make: Any) -> None:
    model = torch.nn.Sequential(make(I, 4))
    what_to_use = r"use torch\.export\.export.* or torch\.jit\.trace"
    with pytest.raises(RuntimeError, match=what_to_use):
        torch.jit.script(model)


class Tagger(torch.nn.Module):
    """A model as people export them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = torchrnn.GRU(I, 4, num_layers=2, bidirectional=True, **options)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores at each step, and the final states."""
        output, h = self.layer(x, lengths=lengths)
        return self.head(output), h


def exported(model: Tagger, *, strict: bool) -> torch.export.ExportedProgram:
    batch_first = model.layer.batch_first
    x, lengths = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I), torch.tensor([5, 1, 0, 2])
    time, batch = Dim("time"), Dim("batch")
    shapes = ({0: batch, 1: time} if batch_first else {0: time, 1: batch}, {0: batch})
    return torch.export.export(model, (x, lengths), dynamic_shapes=shapes, strict=strict)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_exported_with_any_batch_and_time(strict: bool, batch_first: bool) -> None:
    model = Tagger(batch_first=batch_first)
    program = exported(model, strict=strict)
    assert called(program.graph) == ["torchrnn.plan.default", "torchrnn.recurrent.default"]
    assert called(program.run_decompositions().graph) == called(program.graph)
    for t, b in ((2, 1), (9, 7), (1, 3)):
        x, lengths = torch.randn(b, t, I) if batch_first else torch.randn(t, b, I), torch.randint(0, t + 1, (b,))
        torch.testing.assert_close(program.module()(x, lengths), model(x, lengths))


def test_what_is_exported_can_be_trained() -> None:
    model = Tagger()
    again: Any = exported(copy.deepcopy(model), strict=False).module()
    x, lengths = torch.randn(7, 3, I), torch.tensor([7, 0, 4])
    for m in (model, again):
        scores, h = m(x, lengths)
        (scores.sin().sum() + h.sin().sum()).backward()
    assert len(list(model.parameters())) == len(list(again.parameters())) == 18
    gradients = dict(again.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)


def test_autograd_of_the_operator_itself() -> None:
    layer = torchrnn.LSTM(I, 4, bidirectional=True)
    x = torch.randn(T, B, I)
    states, weights = [torch.zeros(2, B, 4)] * 2, list(layer.parameters())
    plan = Steps(B, T, T * B, False, torch.tensor([5, 0, 2, 3])).numbers(2)
    given = ("lstm", x.requires_grad_(), states, weights, None, plan, True, True, "tanh", None)
    torch.library.opcheck(torch.ops.torchrnn.recurrent.default, given, test_utils=("test_schema", "test_faketensor"))
    found = torch.ops.torchrnn.recurrent(*given)
    expected, (h, c) = layer(x, lengths=[5, 0, 2, 3])
    for a, b in zip(found, (expected, h, c), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="no activation"):
        torch.ops.torchrnn.recurrent(*given[:-2], "swish", None)
    with pytest.raises(RuntimeError, match="no kernel for the cell"):
        torch.ops.torchrnn.recurrent("peephole", *given[1:])


class Alone(torch.nn.Module):
    """A layer called with what is said about its steps, in a fixed order."""

    def __init__(self, layer: Any, said: list[str], more: dict[str, Any]) -> None:
        super().__init__()
        self.layer, self.said, self.more = layer, said, more

    def forward(self, x: torch.Tensor, *given: Any) -> Any:
        """The layer's results."""
        return self.layer(x, **dict(zip(self.said, given, strict=True)), **self.more)


@pytest.mark.parametrize(
    ("name", "options"), [("lstm_projected", "stack"), ("gru", "batch first"), ("lstm", "options")]
)
@pytest.mark.parametrize("said", SAID)
def test_decomposed_it_is_the_same(name: str, options: str, said: str) -> None:
    chosen = {k: v for k, v in OPTIONS[options].items() if (name, k) not in IMPOSSIBLE}
    layer = LAYERS[name](I, 4, **chosen, **F64).eval()
    x, call = torch.randn(T, B, I, **F64), dict(SAID[said])
    if layer.batch_first:
        x, call = x.transpose(0, 1), {k: v.t() if k in ("mask", "reset") else v for k, v in call.items()}
    more = {k: v for k, v in call.items() if isinstance(v, str)}
    given = {k: v for k, v in call.items() if k not in more}
    table = torch.export.default_decompositions()
    table.update(torchrnn.decompositions())
    plain = torch.export.export(Alone(layer, list(given), more), (x, *given.values())).run_decompositions(table)
    assert not called(plain.graph)
    results = plain.module()(x, *given.values())
    for a, b in zip(tree_leaves(results), tree_leaves(layer(x, **call)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_decomposed_cells_and_what_cannot_be() -> None:
    table = torch.export.default_decompositions()
    table.update(torchrnn.decompositions())
    cell, x = torchrnn.LSTMCell(I, 4).eval(), torch.randn(B, I)
    plain = torch.export.export(cell, (x,)).run_decompositions(table)
    assert not called(plain.graph)
    torch.testing.assert_close(plain.module()(x), cell(x))
    layer = torchrnn.GRU(I, 4).eval()
    program = torch.export.export(layer, (torch.randn(T, B, I),), dynamic_shapes=({0: Dim("time"), 1: Dim("batch")},))
    with pytest.raises(ValueError, match="T must be fixed for a graph without torchrnn's operators"):
        program.run_decompositions(table)
    program = torch.export.export(layer, (torch.randn(T, B, I),), dynamic_shapes=({1: Dim("batch")},))
    other = torch.randn(T, 9, I)
    torch.testing.assert_close(program.run_decompositions(table).module()(other), layer(other))
