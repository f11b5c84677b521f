"""Declaring a cell: what is accepted, and what is refused with which words."""

import pickle
import warnings
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM, coupled_lstm

import torchrnn
from torchrnn import codegen
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
    assert reads == {
        "rnn_tanh": False,
        "rnn_relu": False,
        "lstm": False,
        "gru": True,
        "gru_reset_before": True,
        "gru_projected": False,
        "coupled_lstm": False,
    }


@pytest.mark.parametrize("gates", ["", "i i", "i 2f", "i _f", "i-f", "class"])
def test_wrong_names(gates: str) -> None:
    with pytest.raises(ValueError, match="gates must be different identifiers"):
        torchrnn.cell(gates=gates, states="h")


def test_names_in_a_list() -> None:
    names: Any = ["i", "f"]
    with pytest.raises(TypeError, match=r"gates must be one string of names separated by spaces, .* got list"):
        torchrnn.cell(gates=names, states="h")


def test_a_step_of_other_arguments() -> None:
    def two(x, h):
        return x.a + h.a

    with pytest.raises(TypeError, match=r"must take \(x, h, s\) or \(x, h, s, options\), got two\(x, h\)"):
        torchrnn.cell(gates="a", states="h")(two)


def test_a_step_without_return() -> None:
    @torchrnn.cell(gates="a", states="h")
    def test_nothing(x, h, s):
        torch.tanh(x.a + h.a)

    class Nothing(torchrnn.Recurrent):
        cell = test_nothing

    with pytest.raises(TypeError, match=r"must return 1 states \(h\), got None: is there a return\?"):
        Nothing(3, 5)(torch.randn(2, 1, 3))


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown gate": (
        lambda x, h, s: x.a + h.q,
        AttributeError,
        "asks for h.q, but h has the gates a, b: name it",
    ),
    "an unknown state": (lambda x, h, s: x.a + s.c, AttributeError, "asks for s.c, but s has the states h: name it"),
    "another attribute": (lambda x, h, s: x.a.q, AttributeError, "'Tensor' object has no attribute 'q'"),
    "fewer units": (
        lambda x, h, s: x.a[:, :2],
        ValueError,
        r"h must have the shape of a gate, \(2, 5\), got \(2, 2\)",
    ),
    "no rows": (lambda x, h, s: x.a.mean(0), ValueError, r"the shape of a gate, \(2, 5\), got \(5,\): the equations"),
    "a number": (lambda x, h, s: (1.0,), TypeError, "the new h must be a Tensor, got float"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_step(mistake: str) -> None:
    step, error, said = MISTAKES[mistake]
    step.__name__ = "mistaken"
    layer = type("Mistaken", (torchrnn.Recurrent,), {"cell": torchrnn.cell(gates="a b", states="h")(step)})(3, 5)
    with pytest.raises(error, match=said):
        layer(torch.randn(4, 2, 3))


def test_tracing_a_step_warns_of_no_check_of_ours() -> None:
    layer = type("Traced", (torchrnn.Recurrent,), {"cell": torchrnn.cell(gates="a", states="h")(traced)})(3, 5)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.jit.trace(layer, torch.randn(4, 2, 3), check_trace=False)
    assert not [w for w in seen if w.filename.endswith("cell.py")]


def traced(x: Any, h: Any, s: Any) -> Any:
    return torch.tanh(x.a + h.a)


def test_a_decorator_without_its_brackets() -> None:
    decorator: Any = torchrnn.cell
    with pytest.raises(TypeError, match=r"names of its gates and states: @torchrnn.cell\(gates="):

        @decorator
        def bare(x, h, s):
            return x.a + h.a


@pytest.mark.parametrize("base", [torchrnn.Recurrent, torchrnn.RecurrentCell])
def test_a_class_without_a_cell(base: Any) -> None:
    with pytest.raises(TypeError, match="Mine has no cell: give the class one"):
        type("Mine", (base,), {})(3, 5)


def test_a_step_without_a_name() -> None:
    with pytest.raises(ValueError, match="define its step with def, got <lambda>"):
        torchrnn.cell(gates="a", states="h")(lambda x, h, s: x.a + h.a)


@pytest.mark.parametrize("late", ["a", "b a", "a b", "c"])
def test_late_gates_are_the_last(late: str) -> None:
    if late == "a b":
        torchrnn.cell(gates="a b", states="h", late=late)  # all of them
        return
    with pytest.raises(ValueError, match=f"late must name the last of the gates 'a b', in their order, got '{late}'"):
        torchrnn.cell(gates="a b", states="h", late=late)


def test_a_late_gate_is_a_product_that_the_step_asks_for() -> None:
    @torchrnn.cell(gates="f n", states="h", late="n")
    def test_late(x, h, s):
        f = torch.sigmoid(x.f + h.f)
        return (1 - f) * s.h + f * torch.tanh(x.n + h.n(f * s.h) + h.n(s.h))

    class Late(torchrnn.Recurrent):
        cell = test_late

    layer, x = Late(3, 5, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    h, gates = torch.zeros(2, 5, dtype=torch.float64), []
    W_ih, W_hh, b_ih, b_hh = layer.parameters()
    for x_t in x:
        a = x_t @ W_ih.T + b_ih
        f = torch.sigmoid(a[:, :5] + h @ W_hh[:5].T + b_hh[:5])
        once, twice = (f * h) @ W_hh[5:].T + b_hh[5:], h @ W_hh[5:].T + b_hh[5:]
        gates.append((f, a[:, 5:] + twice))  # the second has no name in the step: x plus its last product
        h = (1 - f) * h + f * torch.tanh(a[:, 5:] + once + twice)
    _, h_n, trace = layer(x, return_all=True)
    for got, expected in (
        (h_n[0], h),
        *zip((trace.f[0, 0], trace.n[0, 0]), map(torch.stack, zip(*gates, strict=True)), strict=True),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    with pytest.raises(
        TypeError, match=r"'test_late' multiplies with weight_hh within its step, for n: take recurrence"
    ):
        test_late(x[0], x[0], (h,))
    with pytest.raises(
        NotImplementedError, match="'test_late' has no C\\+\\+ form: it multiplies with weight_hh within"
    ):
        codegen.header(test_late)


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
