"""convert keeps what users put over weights: parametrizations, norms in the old style, pruning, weight drop by hand."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import torchrnn

_REGULARISERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


def _made(name: str) -> nn.Module:
    return getattr(nn, name)(4, 5)


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


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell"])
@pytest.mark.parametrize("regulariser", _REGULARISERS)
def test_parametrizations_stay(name: str, regulariser: str) -> None:
    end = "" if name.endswith("Cell") else "_l0"
    theirs, x = _made(name), _input(name)
    _REGULARISERS[regulariser](theirs, f"weight_hh{end}")
    parametrizations.weight_norm(theirs, f"weight_ih{end}")
    m = copy.deepcopy(theirs).eval()
    theirs.eval()
    parameters = dict(m.named_parameters())
    for to, kind in (("torchrnn", torchrnn), ("torch", nn), ("torchrnn", torchrnn)):
        lines: list[str] = []
        torchrnn.convert(m, to, report=lines.append)
        assert lines == [f"the model itself: {name}(4, 5) is now {to}{'.nn' if to == 'torch' else ''}.{name}"]
        assert isinstance(m, getattr(kind, name))
        assert parametrize.is_parametrized(m, f"weight_hh{end}")
        assert parametrize.type_before_parametrizations(m) is getattr(kind, name)
        assert all(p is parameters[k] for k, p in m.named_parameters())
        _same(_results(m, x), _results(theirs, x))
    _same(_results(copy.deepcopy(m), x), _results(theirs, x))
    torchrnn.convert(m)  # ours already
    assert isinstance(m, getattr(torchrnn, name))
    parametrize.register_parametrization(m, f"bias_ih{end}", nn.Identity())
    weight = getattr(m, f"weight_hh{end}").detach().clone()
    for tensor in ("weight_hh", "weight_ih", "bias_ih"):
        parametrize.remove_parametrizations(m, f"{tensor}{end}")
    assert type(m) is getattr(torchrnn, name)
    assert_close(getattr(m, f"weight_hh{end}").detach(), weight)
    _same(_results(m, x)[:1], _results(theirs, x)[:1])


@pytest.mark.parametrize("regulariser", ["weight_norm", "spectral_norm"])
def test_old_style_norms_stay(regulariser: str) -> None:
    """They keep the weight as a plain attribute, made anew before each call."""

    def made() -> nn.Module:
        torch.manual_seed(1)
        with warnings.catch_warnings():  # torch.nn.utils.weight_norm is deprecated, and public models are full of it
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(nn.utils, regulariser)(nn.LSTM(4, 5), "weight_hh_l0")

    theirs, ours, x = made(), made(), torch.randn(6, 3, 4)
    torchrnn.convert(ours, report=None)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (theirs, ours)]
    for _ in range(3):
        results = [_results(m, x) for m in (theirs, ours)]
        _same(results[1], results[0])
        for m, optimiser in zip((theirs, ours), optimisers, strict=True):
            optimiser.zero_grad()
            m(x)[0].square().sum().backward()
            optimiser.step()
    torchrnn.convert(ours, "torch", report=None)
    _same(_results(ours, x), _results(theirs, x))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_pruning_stays(name: str) -> None:
    weight = "weight_ih" if name.endswith("Cell") else "weight_ih_l0"
    theirs, ours, x = _made(name), _made(name), _input(name)
    ours.load_state_dict(theirs.state_dict())
    for m in (theirs, ours):
        prune.l1_unstructured(m, weight, 0.5)
    torchrnn.convert(ours, report=None)
    _same(_results(ours, x), _results(theirs, x))
    prune.l1_unstructured(ours, weight, 0.5)  # and again, once ours
    prune.l1_unstructured(theirs, weight, 0.5)
    _same(_results(ours, x), _results(theirs, x))
    prune.remove(ours, weight)
    assert 0.7 < (getattr(ours, weight) == 0).float().mean() < 0.8
    _same(_results(ours, x)[:1], _results(theirs, x)[:1])


def test_weight_drop_by_hand_stays() -> None:
    """AWD-LSTM's way: the raw weight is the Parameter, and what the layer reads is set before each call."""

    def made() -> nn.Module:
        torch.manual_seed(1)
        m = nn.LSTM(4, 5)
        raw = m._parameters.pop("weight_hh_l0")
        assert raw is not None
        m.register_parameter("raw", raw)
        m.register_forward_pre_hook(lambda module, args: setattr(module, "weight_hh_l0", F.dropout(raw, 0.5)))
        return m

    theirs, ours, x = made(), made(), torch.randn(6, 3, 4)
    torchrnn.convert(ours, report=None)
    for _ in range(2):
        _same(_results(ours, x), _results(theirs, x))
