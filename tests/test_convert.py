"""convert swaps classes and nothing else: objects, Parameters, hooks, parametrizations, modes and ties stay."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import torchrnn

# torch's kernels say so once a process, for torch.nn's LSTM and for ours on them alike
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
LAYERS = NAMES[:3]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias": {"bias": False},
    "stacked": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25},
    "relu": {"nonlinearity": "relu"},
    "proj": {"proj_size": 2},
}
CONFIGURATIONS = [
    (name, options)
    for name in NAMES
    for options in OPTIONS
    if options in ("plain", "nobias")
    or (options == "stacked" and name in LAYERS)
    or (options == "relu" and name.startswith("RNN"))
    or (options == "proj" and name == "LSTM")
]
configurations = pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=["-".join(c) for c in CONFIGURATIONS])
names = pytest.mark.parametrize("name", NAMES)


class Subclass(nn.LSTM):
    pass


class OurSubclass(torchrnn.GRU):
    pass


class Speller(nn.Module):
    """Every one of the six, and other things between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.RNN(4, 4), nn.Sequential(nn.Dropout(0.0), nn.LSTM(4, 4))])
        self.more = nn.ModuleDict({"gru": nn.GRU(4, 4)})
        self.cells = nn.ModuleList([nn.RNNCell(4, 4), nn.LSTMCell(4, 4), nn.GRUCell(4, 4)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in (*self.layers, self.more["gru"]):
            x = layer(x)[0]
        results = [tree_leaves(cell(x[-1]))[0] for cell in self.cells]
        return torch.stack(results).sum(0)


def _make(name: str, options: str = "plain", where: Any = nn) -> nn.Module:
    return getattr(where, name)(4, 5, **OPTIONS[options])


def _input(name: str) -> Tensor:
    return torch.randn((3, 4) if name.endswith("Cell") else (6, 3, 4))


def _results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, states and all gradients; the same dropout each time."""
    torch.manual_seed(5)
    outputs = tree_leaves(module(x))
    return [*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], list(module.parameters()))]


def _same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)


def _convert(module: nn.Module, to: str = "torchrnn") -> list[str]:
    lines: list[str] = []
    assert torchrnn.convert(module, to, report=lines.append) is module
    return lines


@configurations
def test_there_and_back(name: str, options: str) -> None:
    """The same object, attributes, Parameters and results; nothing is left over on the way back."""
    m, x = _make(name, options), _input(name)
    expected, parameters, attributes, text = _results(m, x), dict(m.named_parameters()), set(vars(m)), repr(m)
    state = {k: v.clone() for k, v in m.state_dict().items()}
    for to, where in (("torchrnn", torchrnn), ("torch", nn), ("torchrnn", torchrnn)):
        _convert(m, to)
        assert type(m) is getattr(where, name)
        assert list(dict(m.named_parameters())) == list(parameters)
        assert all(p is parameters[k] for k, p in m.named_parameters())
        assert list(m.state_dict()) == list(state)
        assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
        assert set(vars(m)) == set(vars(_make(name, options, where)))
        assert repr(m) == text
        _same(_results(m, x), expected)
    assert set(vars(torchrnn.convert(m, "torch", report=None))) == attributes


@configurations
def test_from_ours(name: str, options: str) -> None:
    """A module born ours becomes a sound one of torch.nn."""
    m, x = _make(name, options, torchrnn), _input(name)
    expected = _results(m, x)
    _convert(m, "torch")
    assert type(m) is getattr(nn, name)
    _same(_results(m, x), expected)
    m.double().float()
    if name in LAYERS:
        assert [id(w) for w in m._flat_weights] == [id(p) for p in m.parameters()]  # type: ignore[union-attr]
    _same(_results(m, x), expected)


def test_a_whole_model() -> None:
    model, tokens = Speller(), torch.randint(7, (5, 3))
    expected = _results(model, tokens)
    modules, parameters = list(model.modules()), list(model.parameters())
    lines = _convert(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    recurrent = [m for m in model.modules() if torchrnn.is_recurrent(m)]
    assert [type(m) for m in recurrent] == [getattr(torchrnn, n) for n in NAMES]
    assert lines == [
        "layers.0: RNN(4, 4) is now torchrnn.RNN",
        "layers.1.1: LSTM(4, 4) is now torchrnn.LSTM",
        "more.gru: GRU(4, 4) is now torchrnn.GRU",
        "cells.0: RNNCell(4, 4) is now torchrnn.RNNCell",
        "cells.1: LSTMCell(4, 4) is now torchrnn.LSTMCell",
        "cells.2: GRUCell(4, 4) is now torchrnn.GRUCell",
    ]
    _same(_results(model, tokens), expected)
    assert _convert(model, "torch")[2] == "more.gru: GRU(4, 4) is now torch.nn.GRU"
    assert not any(isinstance(m, (torchrnn.Recurrent, torchrnn.RecurrentCell)) for m in model.modules())
    _same(_results(model, tokens), expected)


def test_report_says_what_is_left_and_why() -> None:
    def mixed() -> nn.ModuleList:
        ours = torchrnn.GRU(2, 3), OurSubclass(2, 3), CoupledLSTM(2, 3)
        return nn.ModuleList([Subclass(2, 3), nn.LSTM(2, 3, 2), *ours])

    model = mixed()
    assert _convert(model) == [
        "0: Subclass(2, 3) is left: a subclass of torch's LSTM has a behaviour of its own",
        "1: LSTM(2, 3, num_layers=2) is now torchrnn.LSTM",
        "2: GRU(2, 3) is left: it is torchrnn's already",
        "3: OurSubclass(2, 3) is left: a subclass of torchrnn's GRU has a behaviour of its own",
        "4: CoupledLSTM(2, 3) is left: it is none of the six classes of torch.nn",
    ]
    assert [type(m) for m in model] == [Subclass, torchrnn.LSTM, torchrnn.GRU, OurSubclass, CoupledLSTM]
    model = mixed()
    assert _convert(model, "torch") == [
        "0: Subclass(2, 3) is left: a subclass of torch's LSTM has a behaviour of its own",
        "1: LSTM(2, 3, num_layers=2) is left: it is torch's already",
        "2: GRU(2, 3) is now torch.nn.GRU",
        "3: OurSubclass(2, 3) is left: a subclass of torchrnn's GRU has a behaviour of its own",
        "4: CoupledLSTM(2, 3) is left: torch.nn has no such cell",
    ]
    assert _convert(nn.Linear(2, 2)) == []
    assert _convert(nn.GRU(2, 3)) == ["the model itself: GRU(2, 3) is now torchrnn.GRU"]


def test_report_prints_by_default_and_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    torchrnn.convert(nn.Sequential(nn.GRU(2, 3)))
    assert capsys.readouterr().out == "0: GRU(2, 3) is now torchrnn.GRU\n"
    torchrnn.convert(nn.Sequential(nn.GRU(2, 3)), report=None)
    assert capsys.readouterr() == ("", "")


def test_wrong_arguments_change_nothing() -> None:
    m = nn.LSTM(2, 3)
    with pytest.raises(ValueError, match="to must be 'torchrnn' or 'torch', got 'keras'"):
        torchrnn.convert(m, to="keras")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        torchrnn.convert([m])  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got type"):
        torchrnn.convert(nn.LSTM)  # type: ignore[type-var]
    assert type(m) is nn.LSTM


def test_is_recurrent() -> None:
    for name in NAMES:
        assert torchrnn.is_recurrent(_make(name))
        assert torchrnn.is_recurrent(_make(name, where=torchrnn))
    assert torchrnn.is_recurrent(Subclass(2, 3))
    assert torchrnn.is_recurrent(CoupledLSTM(2, 3))
    assert not torchrnn.is_recurrent(nn.Sequential(nn.LSTM(2, 3)))
    assert not torchrnn.is_recurrent(nn.Linear(2, 3))


@names
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimiser_made_before_goes_on(name: str, optimiser: Callable[..., torch.optim.Optimizer]) -> None:
    x = _input(name)
    ours = _make(name)
    theirs = copy.deepcopy(ours)

    def step(module: nn.Module, opt: torch.optim.Optimizer) -> None:
        opt.zero_grad()
        tree_leaves(module(x))[0].square().sum().backward()
        opt.step()

    pairs = [(m, optimiser(m.parameters(), lr=0.05)) for m in (ours, theirs)]
    for k in range(6):
        if k == 3:
            _convert(ours)
        for module, opt in pairs:
            step(module, opt)
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert_close(a, b, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(next(ours.parameters()), next(_make(name).parameters()))


@names
@pytest.mark.parametrize("to", ["torchrnn", "torch"])
def test_hooks_stay(name: str, to: str) -> None:
    m, called = _make(name, where=nn if to == "torchrnn" else torchrnn), []
    m.register_forward_pre_hook(lambda module, args: called.append("pre"))
    m.register_forward_pre_hook(lambda module, args, kwargs: called.append("pre kwargs"), with_kwargs=True)
    m.register_forward_hook(lambda module, args, output: called.append("forward"))
    m.register_full_backward_hook(lambda module, grad_input, grad_output: called.append("backward"))
    m.register_state_dict_post_hook(lambda *args: called.append("state_dict"))
    handle = m.register_forward_hook(lambda *args: called.append("removed later"))
    next(m.parameters()).register_hook(lambda grad: called.append("gradient"))
    _convert(m, to)
    handle.remove()
    tree_leaves(m(_input(name).requires_grad_()))[0].sum().backward()
    m.state_dict()
    assert called[:3] == ["pre", "pre kwargs", "forward"]
    assert sorted(called[3:]) == ["backward", "gradient", "state_dict"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_mode_and_what_users_set_stay(name: str, training: bool) -> None:
    m = nn.Sequential(_make(name, "stacked")).train(training)
    m[0].note = "mine"  # type: ignore[assignment]
    next(m.parameters()).requires_grad_(False)
    _convert(m)
    assert m[0].training is training
    assert m[0].note == "mine"
    assert [p.requires_grad for p in m.parameters()].count(False) == 1
    x = _input(name)
    assert torch.equal(m(x)[0], m(x)[0]) is not training  # dropout


def test_ties_stay() -> None:
    """The same module in two places, the same Parameter in two modules."""
    model = nn.ModuleDict({"a": nn.GRU(4, 4), "b": nn.GRU(4, 4)})
    model["again"] = model["a"]
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    assert _convert(model) == ["a: GRU(4, 4) is now torchrnn.GRU", "b: GRU(4, 4) is now torchrnn.GRU"]
    assert model["a"] is model["again"]
    shared = model["a"].weight_hh_l0
    assert shared is model["b"].weight_hh_l0
    x = torch.randn(5, 2, 4)
    both = model["again"](model["b"](x)[0])[0].sum()
    both.backward()
    assert isinstance(shared, Tensor)
    apart = copy.deepcopy(model)
    apart["b"].weight_hh_l0 = nn.Parameter(shared.detach().clone())
    apart.zero_grad()
    apart["again"](apart["b"](x)[0])[0].sum().backward()
    assert_close(shared.grad, apart["a"].weight_hh_l0.grad + apart["b"].weight_hh_l0.grad)  # type: ignore[operator]


@names
def test_copies_and_files_after(name: str) -> None:
    m, x = torchrnn.convert(_make(name), report=None), _input(name)
    expected = _results(m, x)
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    for other in (copy.deepcopy(m), copy.copy(m), pickle.loads(pickle.dumps(m)), torch.load(file, weights_only=False)):
        assert type(other) is getattr(torchrnn, name)
        _same(_results(other, x), expected)
    theirs = _make(name)
    theirs.load_state_dict(m.state_dict())
    _same(_results(theirs, x), expected)


def test_meta_and_half_modules() -> None:
    m = torchrnn.convert(nn.LSTM(4, 5, device="meta", dtype=torch.bfloat16), report=None)
    output, _ = m(torch.empty(6, 3, 4, device="meta", dtype=torch.bfloat16))
    assert (output.device.type, output.dtype, output.shape) == ("meta", torch.bfloat16, (6, 3, 5))
