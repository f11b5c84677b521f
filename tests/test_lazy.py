"""Layers and cells that take their input size from the first input."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM, CoupledLSTMCell
from stacked import flat
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import pack_sequence

import torchrnn

LAYERS: dict[str, Any] = {"RNN": torchrnn.RNN, "LSTM": torchrnn.LSTM, "GRU": torchrnn.GRU, "coupled": CoupledLSTM}
CELLS: dict[str, Any] = {
    "RNNCell": torchrnn.RNNCell,
    "LSTMCell": torchrnn.LSTMCell,
    "GRUCell": torchrnn.GRUCell,
    "coupled cell": CoupledLSTMCell,
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": "single"},
    {"num_layers": 2, "bidirectional": True, "merge_mode": "sum", "learn_initial_state": True},
    {"hidden_size": [5, 4], "return_sequences": False, "batch_first": True},
]
CASES = [(make, options, (4, 2, 3)) for make in LAYERS.values() for options in OPTIONS]
CASES += [(make, options, shape) for make in CELLS.values() for options in OPTIONS[:2] for shape in ((2, 3), (3,))]
everything = pytest.mark.parametrize(("make", "options", "shape"), CASES, ids=str)


def built(make: Any, input_size: int | None, options: dict[str, Any], **more: Any) -> Any:
    options = {"hidden_size": 5, **options}
    return make(input_size, options.pop("hidden_size"), **options, **more)


@everything
def test_the_first_input_makes_the_layer_that_an_eager_one_is(make: Any, options: Any, shape: Any) -> None:
    torch.manual_seed(9)
    state = torch.get_rng_state()
    lazy = built(make, None, options)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn before
    assert all(map(is_lazy, lazy.parameters()))
    assert "None, " in repr(lazy)
    parameters = list(lazy.parameters())
    x = torch.randn(shape)
    torch.manual_seed(1)
    got = flat(lazy(x))
    torch.manual_seed(1)
    eager = built(make, 3, options)
    assert repr(lazy) == repr(eager)
    assert [n for n, _ in lazy.named_parameters()] == [n for n, _ in eager.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(lazy.parameters(), eager.parameters(), strict=True))
    assert all(type(p) is torch.nn.Parameter for p in lazy.parameters())
    assert all(a is b for a, b in zip(lazy.parameters(), parameters, strict=True))  # an optimiser goes on working
    for a, b in zip(got, flat(eager(x)), strict=True):
        assert torch.equal(a, b)
    torch.stack([t.sum() for t in got]).sum().backward()
    assert lazy.weight_ih_l0.grad is not None if hasattr(lazy, "weight_ih_l0") else lazy.weight_ih.grad is not None
    with pytest.raises(torchrnn.ArgumentError):
        lazy(torch.randn(*shape[:-1], 4))


@everything
def test_state_dicts_before_and_after(make: Any, options: Any, shape: Any) -> None:
    eager, x = built(make, 3, options), torch.randn(shape)
    lazy = built(make, None, options)
    before = lazy.state_dict()
    assert before.keys() == eager.state_dict().keys()
    assert all(map(is_lazy, before.values()))
    for assign in (False, True):
        lazy = built(make, None, options)
        lazy.load_state_dict(eager.state_dict(), assign=assign)
        assert repr(lazy) == repr(eager)
        for a, b in zip(flat(lazy(x)), flat(eager(x)), strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(v, eager.state_dict()[k]) for k, v in lazy.state_dict().items())
    still = built(make, None, options)
    still.load_state_dict(before)
    assert all(map(is_lazy, still.parameters()))
    still(x)
    with pytest.raises(RuntimeError, match="uninitialized parameter"):
        eager.load_state_dict(before)


@everything
def test_copies_and_moves_before_the_first_input(make: Any, options: Any, shape: Any) -> None:
    lazy = built(make, None, options, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(lazy, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(shape, dtype=torch.float64)
    for twin in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy)), loaded):
        assert all(t.dtype == torch.float64 for t in flat(twin(x)))
        assert twin.input_size == 3
    assert lazy.input_size is None
    lazy.float()
    assert all(t.dtype == torch.float32 for t in flat(lazy(x.float())))
    lazy.reset_parameters()
    assert all(p.isfinite().all() for p in lazy.parameters())


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_other_forms_of_the_first_input(make: Any) -> None:
    for x, options in (
        (pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]), {}),
        (torch.randn(4, 3), {}),
        (torch.randn(4, 2, 3), {"lengths": [0, 3]}),
    ):
        lazy = make(None, 5)
        lazy(x, **options)
        assert lazy.input_size == 3


def test_a_wrong_first_input_makes_nothing() -> None:
    layer, cell = torchrnn.GRU(None, 5), torchrnn.GRUCell(None, 5)
    for wrong in (torch.randn(2, 2, 2, 2, 3, 3).long(), torch.randn(4, 2, 3).double(), torch.ones(3).long()):
        with pytest.raises(RuntimeError):
            layer(wrong)
        with pytest.raises(RuntimeError):
            cell(wrong)
    assert layer.input_size is cell.input_size is None


def test_forget_bias_is_set_when_the_weights_are_drawn() -> None:
    layer: Any = torchrnn.LSTM(None, 5, forget_bias=2.0)
    layer(torch.randn(4, 2, 3))
    assert torch.equal(layer.bias_ih_l0.chunk(4)[1], torch.full((5,), 2.0))


def test_part_of_a_state_dict_leaves_the_rest_drawn() -> None:
    lazy: Any = torchrnn.GRU(None, 5)
    eager: Any = torchrnn.GRU(3, 5)
    lazy.load_state_dict({"weight_ih_l0": eager.weight_ih_l0}, strict=False)
    assert torch.equal(lazy.weight_ih_l0, eager.weight_ih_l0)
    assert all(p.isfinite().all() for p in lazy.parameters())
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        torchrnn.GRU(None, 6).load_state_dict(eager.state_dict())


def test_an_optimiser_may_come_before_the_first_input() -> None:
    layer: Any = torchrnn.GRU(None, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(4, 2, 3))[0].sum().backward()
    before = layer.weight_ih_l0.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.weight_ih_l0, before)


def test_in_sequential() -> None:
    model = torch.nn.Sequential(torchrnn.GRU(None, 4, return_sequences=False), torch.nn.LazyLinear(2))
    assert model(torch.randn(5, 3, 7)).shape == (3, 2)
    again = torch.nn.Sequential(torchrnn.GRU(None, 4, return_sequences=False), torch.nn.LazyLinear(2))
    again.load_state_dict(model.state_dict())
    x = torch.randn(5, 3, 7)
    assert torch.equal(again(x), model(x))


def test_a_first_call_of_inference_leaves_it_trainable() -> None:
    layer, x = torchrnn.GRU(None, 3), torch.randn(4, 2, 5)
    with torch.inference_mode():
        layer(x)
    layer(x)[0].sum().backward()
    assert layer.weight_ih_l0.grad is not None


@pytest.mark.parametrize("options", [{}, {"learn_initial_state": True}, {"batch_first_state": True}], ids=str)
def test_a_first_call_that_is_refused_settles_nothing(options: Any) -> None:
    layer = torchrnn.GRU(None, 3, **options)
    with pytest.raises(torchrnn.ArgumentError, match="hx must be"):
        layer(torch.randn(4, 2, 7), torch.zeros(9, 9, 9))
    assert layer.input_size is None
    assert layer(torch.randn(4, 2, 5))[0].shape == (4, 2, 3)


@pytest.mark.parametrize("make", [torchrnn.GRU, torchrnn.LSTMCell])
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_a_first_call_inside_a_transform_is_refused_and_nothing_is_drawn(make: Any, transform: Any) -> None:
    module, x = make(None, 4), torch.randn(5, 2, 3) if make is torchrnn.GRU else torch.randn(2, 3)
    with pytest.raises(RuntimeError, match=f"{make.__name__} has no input_size yet.*input_size=3"):
        transform(lambda sample: module(sample)[0].sum())(x)
    assert "None" in repr(module)
    module(x)
    assert module.input_size == 3
