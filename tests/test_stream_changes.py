"""A Stream over a layer that changes on the way: never a stale weight, option or hook; and it is left as it was."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from test_stream import build, equal, every_name, graph
from torch.nn.utils import parametrizations, prune

import torchrnn
from torchrnn import ArgumentError, Stream

I, T = 3, 9


def change_by_optimizer(layer: Any) -> None:
    with torch.enable_grad():
        layer(torch.randn(2, 1, I, dtype=layer.weight_hh_l0.dtype))[0].sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


def change_all(layer: Any) -> None:
    for p in layer.parameters():
        p.copy_(torch.randn_like(p))


def change_parameter(layer: Any) -> None:
    layer.weight_hh_l0 = torch.nn.Parameter(torch.randn_like(layer.weight_hh_l0))


def change_last_bias(layer: Any) -> None:
    layer.bias_hh_l1.add_(1)


def change_by_loading(layer: Any) -> None:
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})


def change_by_assigning(layer: Any) -> None:
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()}, assign=True)


def change_by_pruning(layer: Any) -> None:
    prune.random_unstructured(layer, "weight_hh_l0", 0.5)


def change_by_parametrizing(layer: Any) -> None:
    parametrizations.orthogonal(layer, "weight_hh_l0")


def change_pruned(layer: Any) -> None:
    prune.random_unstructured(layer, "weight_ih_l0", 0.5)
    layer.weight_ih_l0_orig.add_(1)
    layer(torch.zeros(1, 1, I))


def change_option(layer: Any) -> None:
    layer.residual = True


CHANGES = [f for name, f in list(globals().items()) if name.startswith("change_")]


@every_name
@pytest.mark.parametrize("change", CHANGES, ids=[f.__name__ for f in CHANGES])
def test_no_change_is_missed(name: str, change: Any) -> None:
    layer, x = build(name, num_layers=2), torch.randn(6, 2, I)
    stream = Stream(layer)
    with torch.no_grad():
        for _ in range(2):  # packed before; changed twice
            stream(x[0])
            stream(x[1])
            state = stream.state
            if change not in (change_by_parametrizing,) or not torch.nn.utils.parametrize.is_parametrized(layer):
                change(layer)
            expected, final = layer(x[2:], state)
            got = torch.stack([stream(x_t) for x_t in x[2:]])
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(stream.state, final, atol=1e-6, rtol=1e-6)


def test_dropout_in_training_counts_and_not_in_evaluation() -> None:
    layer, x = torchrnn.GRU(I, 5, num_layers=2, dropout=1.0, bias=False).eval(), torch.randn(2, 2, I)
    stream = Stream(layer)
    with torch.no_grad():
        assert stream(x[0]).any()
        layer.train()
        stream.reset()
        assert not stream(x[0]).any()
        layer.dropout = 0.0
        assert stream(x[1]).any()
        layer.output_dropout = 1.0
        assert not stream(x[1]).any()


def test_hooks_are_called() -> None:
    layer, seen = torchrnn.GRU(I, 5), []
    stream, x = Stream(layer), torch.randn(2, I)
    with torch.no_grad():
        stream(x)
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
            handle = register(lambda *_: seen.append(1))
            stream(x)
            handle.remove()
        stream(x)
    assert len(seen) == 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_the_step_of_an_optimiser_is_not_missed(make: Any, fused: bool) -> None:
    layer: Any = torchrnn.GRU(I, 5)
    x, stream, optimiser = torch.randn(3, 2, I), Stream(layer), make(layer.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        with torch.no_grad():
            stream(x[0])
        optimiser.zero_grad()
        layer(x)[0].square().sum().backward()
        optimiser.step()
        with torch.no_grad():
            state = stream.state
            torch.testing.assert_close(stream(x[1]), layer(x[1:2], state)[0][0])


@pytest.mark.parametrize("change", ["data", "numpy"])
def test_refresh_after_a_change_that_torch_does_not_count(change: str) -> None:
    layer: Any = torchrnn.LSTM(I, 5)
    x, stream = torch.randn(3, 2, I), Stream(layer)
    with torch.no_grad():
        stream(x[0])
        if change == "data":
            layer.weight_hh_l0.data.mul_(2)
        else:
            layer.weight_hh_l0.detach().numpy()[...] *= 2
        stream.refresh()
        state = stream.state
        torch.testing.assert_close(stream(x[1]), layer(x[1:2], state)[0][0])


@graph
def test_another_dtype(grad: bool) -> None:
    layer, x = torchrnn.LSTM(I, 5, num_layers=2), torch.randn(4, 2, I)
    stream = Stream(layer)
    with torch.set_grad_enabled(grad):
        stream(x[0])
        state = tuple(s.double() for s in stream.state)
        layer.to(torch.float64)
        with pytest.raises(ArgumentError, match=r"must have the dtype of the input, torch\.float64"):
            stream(x[1].double())
        assert stream.state[0].dtype == torch.float32
        stream.state = state
        got = torch.stack([stream(x_t.double()) for x_t in x])
        torch.testing.assert_close(got, layer(x.double(), state)[0])


@pytest.mark.parametrize("backend", ["reference", "aten"])
@graph
def test_on_another_backend(backend: str, grad: bool) -> None:
    layer, x = build("lstm", torch.float64, num_layers=2), torch.randn(T, 2, I, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        expected, final = layer(x)
        stream = Stream(layer)
        with torchrnn.use(backend):
            first = torch.stack([stream(x_t) for x_t in x[:5]])
        rest = torch.stack([stream(x_t) for x_t in x[5:]])
    torch.testing.assert_close(torch.cat((first, rest)), expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(stream.state, final, atol=1e-13, rtol=0)


def test_a_layer_is_not_changed_by_its_stream() -> None:
    layer, x = torchrnn.LSTM(I, 5, num_layers=2), torch.randn(4, 2, I)
    before = (repr(layer), vars(layer).keys(), list(layer.state_dict()))
    stream = Stream(layer)
    with torch.no_grad():
        for x_t in x:
            stream(x_t)
    assert (repr(layer), vars(layer).keys(), list(layer.state_dict())) == before
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies: Any = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(saved, weights_only=False))
    for other in copies:
        assert equal(other(x), layer(x))
    with torch.no_grad():
        second: Any = copy.deepcopy(stream)
        copies[0].weight_hh_l0.zero_()
        second.layer.weight_hh_l0.mul_(2)
        assert torch.equal(stream(x[0]), Stream(layer, second.state)(x[0]))
        assert not torch.equal(second(x[0]), stream(x[0]))
