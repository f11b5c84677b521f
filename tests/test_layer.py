"""Layers and cells as modules: the torch.nn interface beyond the numbers."""

import copy
import inspect
import io
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import torchrnn

LAYERS, CELLS = ["RNN", "LSTM", "GRU"], ["RNNCell", "LSTMCell", "GRUCell"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
    {"bias": False, "num_layers": 3},
]


def pair(kind: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's from the same seed."""
    made = []
    for library in (torchrnn, torch.nn):
        torch.manual_seed(1)
        made.append(getattr(library, kind)(*args, **options))
    return made[0], made[1]


def every_module() -> list[tuple[str, dict[str, Any]]]:
    made = [(kind, options) for kind in LAYERS for options in OPTIONS]
    made += [(kind, options) for kind in CELLS for options in ({}, {"bias": False})]
    made += [("RNN", {"nonlinearity": "relu"}), ("RNNCell", {"nonlinearity": "relu"})]
    return [*made, ("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True})]


every = pytest.mark.parametrize(("kind", "options"), every_module(), ids=lambda v: str(v))


@every
def test_same_seed_same_weights_in_the_same_order(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 3, 5, **options)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.reset_parameters()
    assert not torch.equal(ours.weight_ih if "Cell" in kind else ours.weight_ih_l0, next(theirs.parameters()))


@every
def test_repr_and_attributes(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 3, 5, **options)
    assert repr(ours) == repr(theirs)
    public = {n: v for n, v in vars(theirs).items() if not n.startswith("_")}
    assert {n: getattr(ours, n) for n in public} == public


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_as_lists(kind: str) -> None:
    ours, theirs = pair(kind, 3, 5, 2, bidirectional=True)
    for a, b in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    with pytest.raises(AttributeError):
        ours._flat_weights = []
    assert ours.flatten_parameters() is None


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_positional_arguments_are_torchs(kind: str) -> None:
    args: list[Any] = [3, 5]
    if kind in CELLS:
        args += [False] + (["relu"] if kind == "RNNCell" else [])
    else:
        args += [2] + (["relu"] if kind == "RNN" else []) + [False, True, 0.5, True]
    ours, theirs = pair(kind, *args)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_constructors_name_torchs_arguments() -> None:
    names = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size device dtype".split()  # noqa: SIM905

    def positional(kind: type) -> list[str]:
        given = inspect.signature(kind).parameters.values()
        return [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]

    for kind in (torchrnn.LSTM, torchrnn.GRU):
        assert positional(kind) == names
        assert inspect.signature(kind).parameters["num_layers"].default == 1
    names[3:3] = ["nonlinearity"]
    names.remove("proj_size")
    assert positional(torchrnn.RNN) == names


def test_dropout_of_one_layer_warns_where_it_was_written() -> None:
    for make in (lambda: torchrnn.GRU(3, 5, dropout=0.5), lambda: torchrnn.RNN(3, 5, dropout=0.5)):
        with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1") as caught:
            make()
        assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", LAYERS)
def test_deepcopy_of_a_parametrized_layer_after_a_forward(kind: str) -> None:
    layer: Any = parametrizations.weight_norm(getattr(torchrnn, kind)(3, 5), "weight_hh_l0")
    x = torch.randn(4, 2, 3)
    output = layer(x)[0]
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x)[0], output)
    with torch.no_grad():
        twin.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(twin(x)[0], output)
    assert torch.equal(layer(x)[0], output)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["weight_norm", "orthogonal"])
def test_parametrizations_train(kind: str, name: str) -> None:
    ours, theirs = pair(kind, 3, 5)
    losses = []
    for layer in (ours, theirs):
        torch.manual_seed(2)
        getattr(parametrizations, name)(layer, "weight_hh_l0")
        optimizer, x = torch.optim.SGD(layer.parameters(), lr=0.5), torch.randn(4, 2, 3)
        losses.append([])
        for _ in range(4):
            loss = layer(x)[0].square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][-1]


def test_a_parametrized_weight_is_computed_once_a_forward() -> None:
    # so spectral_norm does one power iteration, as in nn.Linear; torch.nn's layers do several
    class Counted(torch.nn.Module):
        calls = 0

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            Counted.calls += 1
            return weight

    layer = torchrnn.GRU(3, 5, num_layers=2)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight_hh_l1", Counted())
    before = Counted.calls
    layer(torch.randn(4, 2, 3))
    assert Counted.calls == before + 1


def test_pruning_is_followed() -> None:
    layer, x = torchrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    prune.l1_unstructured(layer, "weight_hh_l0", amount=0.9)
    plain = torchrnn.LSTM(3, 5)
    plain.load_state_dict({n: getattr(layer, n) for n in plain.state_dict()})
    assert torch.equal(layer(x)[0], plain(x)[0])


def test_weight_drop_by_hand() -> None:
    layer: Any = torchrnn.GRU(3, 5)
    x = torch.randn(4, 2, 3)
    raw = layer.weight_hh_l0
    del layer._parameters["weight_hh_l0"]
    layer.weight_hh_l0 = raw * 0
    layer(x)[0].sum().backward()
    assert raw.grad is not None
    with torch.no_grad():
        dropped = layer(x)[0]
        layer.weight_hh_l0 = raw
        assert not torch.equal(layer(x)[0], dropped)


def test_functional_call_uses_the_weights_given() -> None:
    layer, x = torchrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    zeros = {n: torch.zeros_like(p) for n, p in layer.named_parameters()}
    assert not torch.func.functional_call(layer, zeros, (x,))[0].any()
    assert layer(x)[0].any()


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_saving_sharing_and_moving(kind: str) -> None:
    module, x = getattr(torchrnn, kind)(3, 5), torch.randn(*((2,) if "Cell" in kind else (4, 2)), 3)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert repr(loaded) == repr(module)
    module.share_memory()
    assert all(p.is_shared() for p in module.parameters())
    assert all(p.dtype == torch.float64 for p in module.double().parameters())
    module(x.double())
    assert all(p.is_meta for p in module.to("meta").parameters())


@pytest.mark.parametrize("kind", LAYERS)
def test_assigned_state_dict_is_used(kind: str) -> None:
    layer, other, x = getattr(torchrnn, kind)(3, 5), getattr(torchrnn, kind)(3, 5), torch.randn(4, 2, 3)
    layer(x)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(layer(x)[0], other(x)[0])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", OPTIONS[:2], ids=["plain", "stacked"])
def test_trace_generalises_over_batch_and_time(kind: str, options: dict[str, Any]) -> None:
    layer = getattr(torchrnn, kind)(3, 5, **options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says so
        traced: Any = torch.jit.trace(layer, (torch.randn(4, 2, 3),))
    for shape in ((7, 3, 3), (2, 6, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), layer(x))


def test_trace_as_the_first_call_of_a_process() -> None:
    code = (
        "import torch, torchrnn, warnings; warnings.simplefilter('ignore');"
        "t = torch.jit.trace(torchrnn.LSTM(3, 4), torch.randn(5, 2, 3)); t(torch.randn(7, 3, 3))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_fx_takes_the_module_whole(kind: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.recurrent = getattr(torchrnn, kind)(3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.recurrent(self.first(x))[0].sum()

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["first", "recurrent"]
    for shape in ((4, 2, 3), (6, 1, 3)):
        x = torch.randn(shape[1:] if kind in CELLS else shape)
        assert torch.equal(graph(x), model(x))


def test_fx_passes_the_keywords_on() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = torchrnn.GRU(3, 5)

        def forward(self, x: torch.Tensor, h: torch.Tensor, mask: torch.Tensor, reset: torch.Tensor) -> torch.Tensor:
            return self.recurrent(x, h, mask=mask, reset=reset, reset_to="initial")[0]

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    (node,) = [n for n in graph.graph.nodes if n.op == "call_module"]
    assert set(node.kwargs) == {"mask", "reset", "reset_to"}
    x, h, reset = torch.randn(4, 2, 3), torch.randn(1, 2, 5), torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1]]) > 0
    assert torch.equal(graph(x, h, ~reset, reset), model(x, h, ~reset, reset))


@pytest.mark.parametrize("kind", LAYERS)
def test_non_contiguous_input_and_states(kind: str) -> None:
    ours, theirs = pair(kind, 3, 5)
    x, h = torch.randn(3, 4, 2).permute(1, 2, 0), torch.randn(1, 5, 2).transpose(1, 2)
    hx = (h, h) if kind == "LSTM" else h
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))


def test_no_gradient_where_none_is_asked() -> None:
    layer = torchrnn.LSTM(3, 5)
    layer.weight_hh_l0.requires_grad_(False)
    layer(torch.randn(4, 2, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad is None
    assert layer.weight_ih_l0.grad is not None


def test_autocast_gives_what_torch_gives() -> None:
    """Of the LSTM: torch.nn's RNN and GRU stay in float32 on the CPU; for what ours do see test_compat_torch."""
    ours, theirs = pair("LSTM", 3, 5)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(x)[0], theirs(x)[0]
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected)


def test_projection_needs_a_cell_that_allows_it() -> None:
    @torchrnn.cell(gates="f n", states="h")
    def minimal(x: Any, h: Any, s: Any) -> Any:
        f = torch.sigmoid(x.f + h.f)
        return s.h + f * (torch.tanh(x.n + f * h.n) - s.h)

    class Own(torchrnn.GRU):
        cell = minimal

    for kind in (type("Minimal", (torchrnn.Recurrent,), {"cell": minimal}), Own):
        with pytest.raises(ValueError, match="'minimal' reads it directly"):
            kind(3, 5, proj_size=2)
    assert torchrnn.RNN(3, 5, proj_size=2).weight_hr_l0.shape == (2, 5)


def test_a_gru_with_projection() -> None:
    layer, lstm = (kind(3, 5, 2, proj_size=2, bidirectional=True) for kind in (torchrnn.GRU, torchrnn.LSTM))
    shapes = {n: tuple(p.shape) for n, p in layer.named_parameters()}
    ratio = {"ih": 4 / 3, "hh": 4 / 3, "hr": 1}
    found = {n: tuple(p.shape) for n, p in lstm.named_parameters()}
    assert list(shapes) == list(found)
    for name, (rows, *columns) in shapes.items():
        kind = name.split("_")[1]
        assert found[name] == (2 if kind == "hr" else rows * ratio[kind], *columns)
    assert repr(layer) == "GRU(3, 5, proj_size=2, num_layers=2, bidirectional=True)"
    assert layer.cell.states == ("h", "s")
    assert layer.reset_after is True
    output, (h, s) = layer(torch.randn(4, 2, 3))
    assert (output.shape, h.shape, s.shape) == ((4, 2, 4), (4, 2, 2), (4, 2, 5))
    plain = torchrnn.GRU(3, 5)
    assert plain.cell is torchrnn.GRU.cell
    assert "cell" not in vars(plain)


def test_a_projection_of_everything_is_a_gru() -> None:
    """Where weight_hr takes the first P of the H units as they are, h is what a GRU of P units has."""
    H, P = 6, 4
    projected, plain = torchrnn.GRU(3, H, proj_size=P, dtype=torch.float64), torchrnn.GRU(3, P, dtype=torch.float64)
    wide = dict(projected.named_parameters())
    with torch.no_grad():
        wide["weight_hr_l0"].copy_(torch.eye(P, H))
        for name, p in plain.named_parameters():
            wide[name].unflatten(0, (3, H))[:, :P].copy_(p.unflatten(0, (3, P)))
    x, h = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(1, 2, P, dtype=torch.float64)
    output, (final, s) = projected(x, (h, torch.cat((h, torch.randn(1, 2, H - P, dtype=torch.float64)), -1)))
    expected, state = plain(x, h)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(final, state, rtol=0, atol=1e-14)
    torch.testing.assert_close(s[..., :P], state, rtol=0, atol=1e-14)
