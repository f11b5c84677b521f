"""First values by name: orthogonal, forget bias, Keras's, chrono, identity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM, CoupledLSTMCell
from torch.nn.utils import parametrizations, prune

import torchrnn
from torchrnn import init

MODULES: dict[str, Any] = {
    "RNN": torchrnn.RNN,
    "LSTM": torchrnn.LSTM,
    "GRU": torchrnn.GRU,
    "coupled": CoupledLSTM,
    "RNNCell": torchrnn.RNNCell,
    "LSTMCell": torchrnn.LSTMCell,
    "GRUCell": torchrnn.GRUCell,
    "coupled cell": CoupledLSTMCell,
}
DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def build(make: Any, **options: Any) -> Any:
    return make(3, 5, **({} if "Cell" in make.__name__ else DEEP), **options)


def of(module: Any, kind: str) -> list[tuple[str, torch.Tensor]]:
    return [(n, p) for n, p in module.named_parameters() if n.startswith(kind)]


def unchanged(module: Any, before: dict[str, torch.Tensor], *kinds: str) -> None:
    for name, value in module.state_dict().items():
        if not name.startswith(kinds):
            assert torch.equal(value, before[name]), name


def values(module: Any) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in module.state_dict().items()}


@every_module
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_orthogonal_by_gate(make: Any, gain: float) -> None:
    module = build(make)
    before = values(module)
    assert init.orthogonal_(module, gain) is module
    G = len(module.cell.gates)
    for _, W in of(module, "weight_hh"):
        for w in W.chunk(G):
            torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(5), atol=1e-5, rtol=0)
        if G > 1:
            assert not torch.equal(*W.chunk(G)[:2])
    unchanged(module, before, "weight_hh")


def test_orthogonal_with_a_projection_and_sizes_by_layer() -> None:
    layer = init.orthogonal_(torchrnn.LSTM(3, [6, 4], proj_size=2, learn_initial_state=True))
    for _, W in of(layer, "weight_hh"):
        for w in W.chunk(4):
            torch.testing.assert_close(w.T @ w, torch.eye(2), atol=1e-5, rtol=0)
    assert not layer.state_dict()["initial_h_l0"].any()


@pytest.mark.parametrize("make", [torchrnn.LSTM, torchrnn.LSTMCell])
@pytest.mark.parametrize("bias", [True, "single"])
def test_forget_bias(make: Any, bias: Any) -> None:
    module = build(make, bias=bias)
    before = values(module)
    assert init.forget_bias_(module, 3.0) is module
    for kind, value in (("bias_ih", 3.0), ("bias_hh", 0.0)):
        assert of(module, kind) or bias == "single"
        for name, b in of(module, kind):
            i, f, g, o = b.chunk(4)
            assert torch.equal(f, torch.full((5,), value))
            for got, old in zip((i, g, o), (before[name].chunk(4)[k] for k in (0, 2, 3)), strict=True):
                assert torch.equal(got, old)
    unchanged(module, before, "bias")


@pytest.mark.parametrize("bias", [True, "single"])
def test_forget_bias_as_an_option(bias: Any) -> None:
    torch.manual_seed(1)
    layer = torchrnn.LSTM(3, 5, 2, bias=bias, forget_bias=1.5)
    torch.manual_seed(1)
    expected = init.forget_bias_(torchrnn.LSTM(3, 5, 2, bias=bias), 1.5)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), expected.parameters(), strict=True))
        torch.manual_seed(2)
        layer.reset_parameters()
        torch.manual_seed(2)
        expected.reset_parameters()
        init.forget_bias_(expected, 1.5)


@every_module
@pytest.mark.parametrize("bias", [True, False, "single"])
def test_keras(make: Any, bias: Any) -> None:
    module = build(make, bias=bias)
    assert init.keras_(module) is module
    gates = module.cell.gates
    for _, W in of(module, "weight_ih"):
        limit = math.sqrt(6 / sum(W.shape))
        assert 0.6 * limit < W.abs().max() <= limit
    for _, W in of(module, "weight_hh"):
        torch.testing.assert_close(W.T @ W, torch.eye(5), atol=1e-5, rtol=0)
    expected = torch.cat([torch.full((5,), float(g == "f")) for g in gates])
    assert all(torch.equal(b, expected) for _, b in of(module, "bias_ih"))
    assert not any(b.any() for _, b in of(module, "bias_hh"))


@pytest.mark.parametrize("make", [torchrnn.LSTM, torchrnn.LSTMCell])
@pytest.mark.parametrize("bias", [True, "single"])
def test_chrono(make: Any, bias: Any) -> None:
    options = {} if make is torchrnn.LSTMCell else DEEP
    module = make(3, 2000, bias=bias, **options)
    before = values(module)
    assert init.chrono_(module, 50) is module
    for name, b in of(module, "bias_ih"):
        i, f, g, o = b.chunk(4)
        assert torch.equal(i, -f)
        u = f.exp()
        assert u.min() >= 1 - 1e-5
        assert u.max() <= 49 + 1e-3
        assert abs(u.mean() - 25) < 1.5  # a uniform distribution, its mean to four deviations
        assert abs(u.std() - 48 / math.sqrt(12)) < 1
        assert torch.equal(torch.cat((g, o)), torch.cat(before[name].chunk(4)[2:]))
    for _, b in of(module, "bias_hh"):
        assert not torch.cat(b.chunk(4)[:2]).any()
    unchanged(module, before, "bias")


@pytest.mark.parametrize("make", [torchrnn.RNN, torchrnn.RNNCell])
def test_identity(make: Any) -> None:
    module = build(make, nonlinearity="relu")
    before = values(module)
    assert init.identity_(module, 0.5) is module
    assert all(torch.equal(W, 0.5 * torch.eye(5)) for _, W in of(module, "weight_hh"))
    assert not any(b.any() for _, b in of(module, "bias"))
    unchanged(module, before, "weight_hh", "bias")


def test_parametrized_weights_go_through_their_right_inverse() -> None:
    layer: Any = torchrnn.LSTM(3, 5)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    init.keras_(layer)
    W = layer.weight_hh_l0
    torch.testing.assert_close(W.T @ W, torch.eye(5), atol=1e-5, rtol=0)


def test_computed_weights_are_refused_and_nothing_changes() -> None:
    layer: Any = torchrnn.LSTM(3, 5, num_layers=2)
    prune.l1_unstructured(layer, "weight_hh_l1", amount=0.5)
    before = values(layer)
    with pytest.raises(RuntimeError, match="weight_hh_l1 of LSTM is computed from other parameters by a hook"):
        init.keras_(layer)
    unchanged(layer, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    for function in (init.orthogonal_, init.keras_, lambda m: init.chrono_(m, 9)):
        module = function(torchrnn.LSTM(3, 5, dtype=dtype))
        assert all(p.dtype == dtype and p.isfinite().all() for p in module.parameters())
        assert function(torchrnn.LSTM(3, 5, device="meta")).weight_hh_l0.is_meta


def test_frozen_weights_stay_frozen() -> None:
    layer = torchrnn.LSTM(3, 5)
    layer.weight_hh_l0.requires_grad_(False)
    init.keras_(layer)
    assert not layer.weight_hh_l0.requires_grad
    assert layer.weight_ih_l0.requires_grad
    assert layer.weight_ih_l0.is_leaf


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "not ours": (lambda: init.keras_(torch.nn.LSTM(3, 5)), TypeError, "must be a torchrnn layer or cell, got LSTM"),  # type: ignore[type-var]
    "a model": (lambda: init.keras_(torch.nn.Sequential()), TypeError, "got Sequential: apply it to each layer"),  # type: ignore[type-var]
    "no gate f": (lambda: init.forget_bias_(torchrnn.GRU(3, 5)), ValueError, "a gate f; 'gru' has the gates r z n"),
    "no bias": (lambda: init.forget_bias_(torchrnn.LSTM(3, 5, bias=False)), ValueError, "built with bias=False"),
    "chrono": (lambda: init.chrono_(CoupledLSTM(3, 5), 9), ValueError, "the gates f and i; 'coupled_lstm' has the"),
    "T_max": (lambda: init.chrono_(torchrnn.LSTM(3, 5), 2), ValueError, "T_max must be a number of steps greater"),
    "identity": (lambda: init.identity_(torchrnn.GRU(3, 5)), ValueError, "a cell with one gate, such as RNN's; 'gru'"),
    "projected": (lambda: init.identity_(torchrnn.RNN(3, 5, proj_size=2)), ValueError, "square weight_hh; with proj_s"),
    "lazy": (lambda: init.orthogonal_(torchrnn.GRU(None, 5)), RuntimeError, "GRU does not know its input size yet"),
}


@pytest.mark.parametrize(("mistake", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(mistake: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        mistake()
    assert words in str(caught.value)
