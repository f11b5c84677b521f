"""Mistakes with the arguments that torch.nn lacks, each with its message; and what convert says of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchrnn
from torchrnn import GRU, LSTM, RNN, ArgumentError

X = torch.randn(4, 2, 3)  # T, B, I
UNEVEN, DEEP = GRU(3, [5, 4]), LSTM(3, [5, 4], bidirectional=True)
STATES = GRU(3, 5, num_layers=3, batch_first_state=True)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "a merge unknown": (
        lambda: GRU(3, 5, bidirectional=True, merge_mode="avg"),
        ValueError,
        "merge_mode must be one of 'concat', 'sum', 'mean', 'mul', got 'avg'",
    ),
    "a merge of one direction": (
        lambda: GRU(3, 5, merge_mode="sum"),
        ValueError,
        "merge_mode='sum' and bidirectional=False do not go together",
    ),
    "a residual of two sizes": (
        lambda: GRU(3, [5, 4], residual=True),
        ValueError,
        "residual=True and hidden_size=[5, 4] do not go together",
    ),
    "a residual, merged, at the ends": (
        lambda: GRU(3, 5, 2, bidirectional=True, merge_mode="sum", residual=True, return_sequences=False),
        ValueError,
        "merge_mode='sum', residual=True and return_sequences=False do not go together",
    ),
    "sizes and layers": (
        lambda: GRU(3, [5, 4], 3),
        ValueError,
        "hidden_size=[5, 4] and num_layers=3 do not go together: the list has one size for each of 2 layers",
    ),
    "sizes and one layer": (lambda: RNN(3, [5, 4], 1), ValueError, "hidden_size=[5, 4] and num_layers=1 do not go"),
    "no sizes": (lambda: GRU(3, []), ValueError, "hidden_size must name the size of every layer, got an empty list"),
    "layers by halves": (
        lambda: GRU(3, 5, num_layers=1.5),  # type: ignore[arg-type]
        TypeError,
        "num_layers should be of type int, got: float",
    ),
    "a projection by halves": (
        lambda: LSTM(3, 5, proj_size=1.5),  # type: ignore[arg-type]
        TypeError,
        "proj_size should be of type int, got: float",
    ),
    "a size in words": (lambda: GRU(3, [5, "4"]), TypeError, "an int or a list of ints, got '4' in [5, '4']"),  # type: ignore[list-item]
    "a size of zero": (lambda: GRU(3, [5, 0]), ValueError, "hidden_size must be greater than zero, got 0"),
    "a projection of one size": (
        lambda: LSTM(3, [5, 2], proj_size=3),
        ValueError,
        "proj_size has to be smaller than hidden_size, got 3 and 2",
    ),
    "a forget bias without the gate": (
        lambda: GRU(3, 5, forget_bias=1.0),
        ValueError,
        "forget_bias needs a cell with a gate f; 'gru' has the gates r z n",
    ),
    "a forget bias without a bias": (
        lambda: LSTM(3, 5, bias=False, forget_bias=1.0),
        ValueError,
        "forget_bias=1.0 and bias=False do not go together",
    ),
    "a forget bias that is none": (
        lambda: LSTM(3, 5, forget_bias=True),
        ValueError,
        "forget_bias must be a finite number or None, got True",
    ),
    "an output dropout of 2": (
        lambda: LSTM(3, 5, output_dropout=2),
        ValueError,
        "output_dropout should be a number in range [0, 1], got 2",
    ),
    "a projection of the late product": (
        lambda: GRU(3, 5, reset_after=False, proj_size=2),
        ValueError,
        "proj_size=2 and reset_after=False do not go together: the reset gate has hidden_size (H) numbers",
    ),
    "a reset in words": (
        lambda: GRU(3, 5, reset_after="before"),  # type: ignore[arg-type]
        TypeError,
        "reset_after should be of type bool, got: str",
    ),
    "a reset of a cell by number": (
        lambda: torchrnn.GRUCell(3, 5, reset_after=0),  # type: ignore[arg-type]
        TypeError,
        "reset_after should be of type bool, got: int",
    ),
    "an unknown bias": (
        lambda: LSTM(3, 5, bias="one"),
        TypeError,
        "got: str 'one'; the only word it may be is 'single'",
    ),
    "an unknown bias of a cell": (
        lambda: torchrnn.LSTMCell(3, 5, bias="one"),
        TypeError,
        "bias should be of type bool, got: str 'one'; the only word it may be is 'single'",
    ),
    "a number for a switch": (
        lambda: LSTM(3, 5, residual=1),  # type: ignore[arg-type]
        TypeError,
        "residual should be of type bool, got: int",
    ),
    "an unknown option": (lambda: RNN(3, 5, depth=2), TypeError, "unexpected keyword argument 'depth'"),
    "a size of the input in words": (
        lambda: LSTM("3", 5),  # type: ignore[arg-type]
        TypeError,
        "input_size should be of type int, got: str; None leaves it to the first input",
    ),
    "a Tensor for layers that differ": (
        lambda: UNEVEN(X, zeros(2, 2, 5)),
        TypeError,
        "hx must be a list of 2 Tensors, one (D, B, H) for each layer, got one Tensor (2, 2, 5): hidden_size=[5, 4]",
    ),
    "Tensors for layers that differ": (
        lambda: DEEP(X, (zeros(4, 2, 5), zeros(4, 2, 5))),
        TypeError,
        "hx[0] must be a list of 2 Tensors, one (D, B, H) for each layer, got one Tensor (4, 2, 5)",
    ),
    "a list for two states": (
        lambda: DEEP(X, [zeros(2, 2, 5)] * 3),
        TypeError,
        "hx must be a tuple (h, c) of lists, got 3 items: with hidden_size=[5, 4] each state is a list of 2 Tensors",
    ),
    "a state of another layer": (
        lambda: UNEVEN(X, [zeros(1, 2, 5), zeros(1, 2, 5)]),
        ArgumentError,
        "hx[1] must be (D, B, H) = (1, 2, 4), got (1, 2, 5): the state of layer 1",
    ),
    "a state in a list that is none": (
        lambda: DEEP(X, ([zeros(2, 2, 5), zeros(2, 2, 4)], [None, None])),
        TypeError,
        "hx[1][0] must be a Tensor, got NoneType",
    ),
    "a state in float64": (
        lambda: UNEVEN(X, [zeros(1, 2, 5), zeros(1, 2, 4).double()]),
        ArgumentError,
        "hx[1] must have the dtype of the input, torch.float32, got torch.float64",
    ),
    "the batch first without the option": (
        lambda: GRU(3, 5, num_layers=3)(X, zeros(2, 3, 5)),
        ArgumentError,
        "the batch comes second; use hx.transpose(0, 1), or build the layer with batch_first_state=True",
    ),
    "the batch second with the option": (
        lambda: STATES(X, zeros(3, 2, 5)),
        ArgumentError,
        "hx must be (B, L·D, H) = (2, 3, 5), got (3, 2, 5): with batch_first_state=True the batch comes first; use hx",
    ),
    "another size with the option": (
        lambda: STATES(X, zeros(2, 3, 6)),
        ArgumentError,
        "hx must be (B, L·D, H) = (2, 3, 5), got (2, 3, 6): H is the layer's hidden_size",
    ),
    "no state with the option": (lambda: STATES(X, 3), TypeError, "hx must be a Tensor, got int"),
    "a 2-D state with the option": (
        lambda: STATES(X, zeros(2, 5)),
        ArgumentError,
        "hx must be (B, L·D, H) = (2, 3, 5)",
    ),
    "too few states": (
        lambda: LSTM(3, 5, batch_first_state=True)(X, zeros(2, 1, 5)),
        TypeError,
        "hx must be a tuple (h, c), got one Tensor",
    ),
}


@pytest.mark.parametrize(("mistake", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(mistake: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        mistake()
    assert words in str(caught.value)


def test_warnings_name_the_repair() -> None:
    with pytest.warns(UserWarning, match=r"non-zero dropout .*; output_dropout= acts on the output of the last layer"):
        GRU(3, 5, dropout=0.5)
    for make in (lambda: GRU(3, 5, residual=True), lambda: RNN(3, 5, residual=True)):
        with pytest.warns(
            UserWarning, match="residual adds its input .* but got residual=True and num_layers=1"
        ) as caught:
            make()
        assert caught[0].filename == __file__


LEFT: dict[str, tuple[Any, str]] = {
    "options": (
        lambda: GRU(3, 5, bidirectional=True, return_sequences=False, merge_mode="sum"),
        "torch.nn's GRU has no return_sequences=False, merge_mode='sum'",
    ),
    "learned": (lambda: LSTM(3, 5, learn_initial_state=True), "torch.nn's LSTM has no learn_initial_state=True"),
    "one bias": (lambda: LSTM(3, 5, bias="single"), "torch.nn's LSTM has no bias='single'"),
    "one bias of a cell": (lambda: torchrnn.GRUCell(3, 5, bias="single"), "torch.nn's GRUCell has no bias='single'"),
    "the other GRU": (lambda: GRU(3, 5, reset_after=False), "torch.nn's GRU has no reset_after=False"),
    "the other step": (
        lambda: torchrnn.GRUCell(3, 5, reset_after=False),
        "torch.nn's GRUCell has no reset_after=False",
    ),
    "sizes": (lambda: LSTM(3, [5, 4]), "torch.nn's LSTM has no hidden_size=[5, 4]"),
    "projected": (lambda: RNN(3, 5, proj_size=2), "torch.nn's RNN has no proj_size=2"),
    "a projected GRU": (lambda: GRU(3, 5, proj_size=2), "torch.nn's GRU has no proj_size=2"),
    "lazy": (lambda: GRU(None, 5), "its input size is not known yet: call it once first"),
    "lazy cell": (lambda: torchrnn.GRUCell(None, 5), "its input size is not known yet: call it once first"),
}


@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_convert_leaves_what_torch_cannot_express(make: Any, reason: str) -> None:
    layer, lines = make(), []
    kind = type(layer)
    torchrnn.convert(layer, to="torch", report=lines.append)
    assert type(layer) is kind
    assert lines[0].startswith(f"the model itself: {kind.__name__}({layer.extra_repr()}) is left: {reason}")
    torchrnn.convert(layer, report=lines.append)
    assert lines[1].endswith("is left: it is torchrnn's already")


def test_a_converted_layer_has_the_defaults() -> None:
    layer: Any = torchrnn.convert(torch.nn.LSTM(3, 5, 2), report=None)
    assert layer.return_sequences is True
    assert layer.merge_mode == "concat"
    assert repr(layer) == repr(torch.nn.LSTM(3, 5, 2))
    layer.return_sequences = False
    assert layer(X).shape == (2, 5)
    forgetful = torchrnn.convert(LSTM(3, 5, forget_bias=1.0), to="torch", report=None)
    assert type(forgetful) is torch.nn.LSTM  # what was drawn stays; only later draws would differ
