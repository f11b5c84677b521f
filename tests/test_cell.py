"""Declaring a cell: what is accepted, and what is refused with which words."""

import pickle

import pytest
import torch
from coupled import CoupledLSTM, coupled_lstm

import torchrnn
from torchrnn.cell import CELLS


def test_a_cell_knows_its_names() -> None:
    assert coupled_lstm.gates == ("i", "g", "o")
    assert coupled_lstm.states == ("h", "c")
    assert repr(coupled_lstm) == "<cell coupled_lstm: gates i g o, states h c>"
    assert CELLS["coupled_lstm"] is coupled_lstm
    assert pickle.loads(pickle.dumps(coupled_lstm)) is coupled_lstm


def test_parameters_follow_from_the_gates() -> None:
    layer = CoupledLSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
    shapes = {n: tuple(p.shape) for n, p in layer.named_parameters()}
    assert shapes["weight_ih_l0"] == (15, 3)
    assert shapes["weight_hh_l0"] == (15, 2)
    assert shapes["weight_ih_l1_reverse"] == (15, 4)
    assert shapes["weight_hr_l1"] == (2, 5)
    output, (h, c) = layer(torch.randn(4, 2, 3))
    assert (output.shape, h.shape, c.shape) == ((4, 2, 4), (4, 2, 2), (4, 2, 5))


def test_reads_output() -> None:
    reads = {name: c.reads_output for name, c in CELLS.items() if not c.step.__module__.startswith("test_")}
    assert reads == {"rnn_tanh": False, "rnn_relu": False, "lstm": False, "gru": True, "coupled_lstm": False}


@pytest.mark.parametrize("gates", ["", "i i", "i 2f", "i _f", "i-f", "class"])
def test_wrong_names(gates: str) -> None:
    with pytest.raises(ValueError, match="gates must be different identifiers"):
        torchrnn.cell(gates=gates, states="h")


def test_a_step_without_a_name() -> None:
    with pytest.raises(ValueError, match="define its step with def, got <lambda>"):
        torchrnn.cell(gates="a", states="h")(lambda x, h, s: x.a + h.a)


def test_a_taken_name() -> None:
    with pytest.raises(ValueError, match=r"'lstm' already exists in torchrnn.cells.lstm"):

        @torchrnn.cell(gates="a", states="h")
        def lstm(x, h, s):
            return x.a + h.a

    assert CELLS["lstm"].gates == ("i", "f", "g", "o")


def test_declaring_again_replaces() -> None:
    def declare(factor: float) -> type[torchrnn.Recurrent]:
        @torchrnn.cell(gates="a", states="h")
        def declared_twice(x, h, s):
            return factor * (x.a + h.a)

        return type("Twice", (torchrnn.Recurrent,), {"cell": declared_twice})

    torch.manual_seed(0)
    one = declare(1.0)(2, 3)
    two = declare(2.0)(2, 3)
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 1, 2)
    torch.testing.assert_close(two(x)[0], 2 * one(x)[0])


def test_wrong_number_of_states() -> None:
    @torchrnn.cell(gates="a", states="h c")
    def returns_one(x, h, s):
        return x.a + h.a

    layer = type("ReturnsOne", (torchrnn.Recurrent,), {"cell": returns_one})(2, 3)
    with pytest.raises(TypeError, match=r"'returns_one': the step function must return 2 states \(h, c\), got 1"):
        layer(torch.randn(4, 1, 2))
