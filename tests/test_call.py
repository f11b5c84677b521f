"""Choosing a backend: the choice, forcing it, and the account of it."""

import threading

import pytest
import torch
from coupled import CoupledLSTM
from fused import needs_kernels

import torchrnn


@needs_kernels
def test_explain_tells_the_backend_and_each_refusal() -> None:
    layer, x = torchrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    assert torchrnn.explain(layer, x).backend == "cpu"
    assert torchrnn.explain(layer, x).decision == "backend: cpu"
    assert str(torchrnn.explain(layer, x)).startswith("backend: cpu\n\nLSTM(3, 4)\n")
    complex_ = torchrnn.explain(torchrnn.LSTM(3, 4, dtype=torch.complex64), x.to(torch.complex64))
    assert complex_.backend == "aten"
    assert str(complex_).startswith("backend: aten\n  not cpu: the input is torch.complex64; the kernels take")
    assert torchrnn.explain(torchrnn.GRUCell(3, 4), x[0]).backend == "cpu"


def test_explain_a_cell_of_ones_own() -> None:
    told = torchrnn.explain(CoupledLSTM(3, 4), torch.randn(5, 2, 3))
    assert told.backend == "reference"
    assert told.refusals["aten"] == "torch has no kernel for the cell 'coupled_lstm'"
    assert "not aten: torch has no kernel for the cell 'coupled_lstm'" in str(told)


def test_refusals_of_what_is_active() -> None:
    layer, x = torchrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    assert "empty" in torchrnn.explain(layer, x[:0]).refusals["aten"]
    with torch.autograd.forward_ad.dual_level():
        assert "forward-mode" in torchrnn.explain(layer, x).refusals["aten"]
    seen = []
    torch.func.jvp(lambda q: seen.append(torchrnn.explain(layer, q)) or q, (x,), (x,))
    assert "torch.func" in seen[0].refusals["aten"]


def test_explain_under_use() -> None:
    x = torch.randn(5, 2, 3)
    with torchrnn.use("reference"):
        assert torchrnn.explain(torchrnn.GRU(3, 4), x) == ("reference", {})
    with torchrnn.use("aten"):
        assert torchrnn.explain(CoupledLSTM(3, 4), x).backend == "none"


def test_explain_refuses_what_is_not_ours() -> None:
    with pytest.raises(TypeError, match=r"got LSTM: torchrnn.convert\(model\)"):
        torchrnn.explain(torch.nn.LSTM(3, 4), torch.randn(5, 2, 3))


def test_use_forces_and_restores() -> None:
    layer, x = CoupledLSTM(3, 4), torch.randn(5, 2, 3)
    with torchrnn.use("aten"):
        with pytest.raises(RuntimeError, match="backend 'aten' cannot run this call: torch has no kernel"):
            layer(x)
        with torchrnn.use("reference"):
            layer(x)
        with pytest.raises(RuntimeError, match="aten"):
            layer(x)
    layer(x)


def test_use_is_forgotten_after_an_exception_and_unknown_elsewhere() -> None:
    layer, x = CoupledLSTM(3, 4), torch.randn(5, 2, 3)
    seen: list[str] = []

    def interrupted() -> None:
        with torchrnn.use("aten"):
            thread = threading.Thread(target=lambda: seen.append(torchrnn.explain(layer, x).backend))
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert seen == ["reference"]
    assert torchrnn.explain(layer, x).backend == "reference"


def test_use_names_the_backends_there_are() -> None:
    words = "backend must be one of 'cpu', 'aten', 'reference', got 'cuda'"
    with pytest.raises(ValueError, match=words), torchrnn.use("cuda"):
        pass
