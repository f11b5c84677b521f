"""The five beginners' notebooks that torchrnn sets out from, cell by cell, with what they print; and every example.

The notebooks, in the names of the tests:
n0  "RNN cell in Pytorch": cells, layers, first states     n1  an introduction: batch_first, output and hidden
n2  "Basic RNN": loops, "hello", embeddings                n3  RNN, LSTM and their cells
n4  "Pytorch RNN": num_layers, directions, and Keras
"""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from torchrnn import nn

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _seeded_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these sizes gain nothing from a second one, and lose much on a busy machine
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# ---- n0: cells and layers ----


def test_n0_rnncell_weight_by_name():
    cell = nn.RNNCell(input_size=100, hidden_size=200)
    assert isinstance(cell.weight_hh, nn.Parameter)
    assert cell.weight_hh.size() == torch.Size([200, 200])
    assert cell.weight_hh.requires_grad


def test_n0_rnncell_loop_over_six_steps():
    cell = nn.RNNCell(input_size=100, hidden_size=200)
    x = torch.randn(6, 5, 100)
    h_t = torch.zeros(5, 200)
    out = []
    for i in range(6):
        h_t = cell(x[i], h_t)
        out.append(h_t)
    assert x.size() == (6, 5, 100)
    assert h_t.size() == (5, 200)
    assert len(out) == 6


def test_n0_rnn_weight_by_name():
    assert nn.RNN(100, 200).weight_hh_l0.shape == (200, 200)


@pytest.mark.parametrize("h_0", [None, torch.ones(1, 5, 200)], ids=["default", "own"])
def test_n0_rnn_initial_state(h_0):
    out, h_t = nn.RNN(100, 200)(torch.randn(6, 5, 100), h_0)
    assert h_t.size() == (1, 5, 200)
    assert len(out) == 6
    s, b, h = out.shape
    assert (s, b, h) == (6, 5, 200)


def test_n0_rnn_default_state_is_zero():
    rnn, x = nn.RNN(100, 200), torch.randn(6, 5, 100)
    assert torch.equal(rnn(x)[0], rnn(x, torch.zeros(1, 5, 200))[0])
    assert not torch.equal(rnn(x)[0], rnn(x, torch.ones(1, 5, 200))[0])


def test_n0_lstm_weight_has_four_gates():
    assert nn.LSTM(50, 100, num_layers=2).weight_hh_l0.shape == (400, 100)


@pytest.mark.parametrize("states", [None, (torch.ones(2, 3, 100), torch.ones(2, 3, 100))], ids=["default", "own"])
def test_n0_lstm_of_two_layers(states):
    out, (h, c) = nn.LSTM(50, 100, num_layers=2)(torch.randn(10, 3, 50), states)
    assert h.shape == (2, 3, 100)
    assert c.shape == (2, 3, 100)
    assert out.shape == (10, 3, 100)


def test_n0_gru_weight_has_three_gates():
    gru = nn.GRU(10, 20)
    out, h = gru(torch.randn(3, 32, 10))
    assert gru.weight_hh_l0.shape == (60, 20)
    assert h.shape == (1, 32, 20)
    assert out.shape == (3, 32, 20)


# ---- n1: batch_first, and the last output is the final state ----


class Net(nn.Module):
    """The notebook's Net and Net2, which differ in one word."""

    def __init__(self, batch_first):
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers, self.batch_first = 12, 64, 2, batch_first
        self.rnn = nn.RNN(
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            batch_first=batch_first,
        )

    def forward(self, x):
        h0 = torch.zeros(self.num_layers, x.size(0 if self.batch_first else 1), self.hidden_size)
        out, hidden = self.rnn(x, h0)
        return out, hidden


def test_n1_rnn_batch_first():
    output, hidden = Net(batch_first=True)(torch.rand(128, 28, 12))
    assert output.shape == (128, 28, 64)
    assert hidden.shape == (2, 128, 64)
    assert torch.equal(output[:, -1], hidden[-1])


def test_n1_rnn_time_first():
    output, hidden = Net(batch_first=False)(torch.rand(28, 128, 12))
    assert output.shape == (28, 128, 64)
    assert hidden.shape == (2, 128, 64)
    assert torch.equal(output[-1, :, :], hidden[-1, :, :])


@pytest.mark.parametrize("batch_first", [True, False])
def test_n1_lstm(batch_first):
    class LSTM(nn.Module):
        def __init__(self, flag):
            super().__init__()
            self.lstm = nn.LSTM(input_size=12, hidden_size=64, num_layers=1, batch_first=flag)
            self.out = nn.Linear(in_features=64, out_features=10)

        def forward(self, x):
            output, (h_n, c_n) = self.lstm(x)
            return output, (h_n, c_n)

    sizes = (128, 28) if batch_first else (28, 128)
    a, (b, c) = LSTM(batch_first)(torch.rand(*sizes, 12))
    assert a.shape == (*sizes, 64)
    assert b.shape == (1, 128, 64)
    assert c.shape == (1, 128, 64)
    assert torch.equal(a[:, -1] if batch_first else a[-1, :, :], b[0])


# ---- n2: loops, "hello", embeddings ----


def test_n2_rnncell_over_a_dataset():
    cell = nn.RNNCell(input_size=4, hidden_size=2)
    dataset, hidden = torch.randn(3, 1, 4), torch.zeros(1, 2)
    for step in dataset:
        assert step.shape == (1, 4)
        hidden = cell(step, hidden)
        assert hidden.shape == (1, 2)


def test_n2_rnn_with_a_state_by_hand():
    rnn = nn.RNN(input_size=4, hidden_size=2)
    out, hidden = rnn(torch.randn(3, 1, 4), torch.zeros(1, 1, 2))
    assert out.shape == (3, 1, 2)
    assert hidden.shape == (1, 1, 2)


def load(example):
    """The names an example defines, without running its command."""
    return runpy.run_path(str(EXAMPLES / f"{example}.py"))


# Seeds 0, 4, 5 and 9 do not say it after 15 epochs, with torch.nn neither. Seed 8 does, by a margin of 0.0008 between
# two scores, which is too little to insist on.
LEARNS = [1, 2, 3, 6, 7]


@pytest.mark.parametrize("example", ["hello_cell", "hello_layer"])
@pytest.mark.parametrize("seed", LEARNS)
def test_n2_hello_is_learned(example, seed):
    text, loss = load(example)["train"](seed)[-1]
    assert text == "ohlol"
    assert loss < (2.9 if example == "hello_cell" else 0.58)


@pytest.mark.parametrize("example", ["hello_cell", "hello_layer"])
def test_n2_hello_goes_as_with_torch(example):
    train = load(example)["train"]
    ours = [train(seed) for seed in range(10)]
    train.__globals__["nn"] = torch.nn
    theirs = [train(seed) for seed in range(10)]
    for seed in range(10):
        torch.testing.assert_close(
            torch.tensor([loss for _, loss in ours[seed]]),
            torch.tensor([loss for _, loss in theirs[seed]]),
            rtol=1e-4,
            atol=1e-4,
            msg=lambda text, seed=seed: f"losses of seed {seed}: {text}",
        )


@pytest.mark.parametrize("seed", range(10))
def test_n2_hello_is_learned_by_every_seed_with_a_head(seed):
    assert load("hello_layer")["train"](seed, head=True)[-1][0] == "ohlol"


@pytest.mark.parametrize("seed", range(10))
def test_n2_embedding_rnn_linear(seed):
    text, loss = load("embedding")["train"](seed)[-1]
    assert text == "ohlol"
    assert loss < 0.1


# ---- n3: RNN, LSTM and their cells ----


def test_n3_rnncell_repr_and_weights():
    cell = nn.RNNCell(input_size=5, hidden_size=7)
    assert repr(cell) == "RNNCell(5, 7)"
    assert cell.weight_ih.shape == (7, 5)
    assert cell.weight_hh.shape == (7, 7)
    assert cell.bias_ih.shape == (7,)
    assert cell.bias_hh.shape == (7,)


def test_n3_rnncell_is_its_equation():
    cell = nn.RNNCell(input_size=5, hidden_size=7)
    x, h = torch.rand(1, 5), torch.randn(1, 7)
    W_ih, W_hh, b_ih, b_hh = cell.parameters()
    torch.testing.assert_close(cell(x, h), torch.tanh(x @ W_ih.T + b_ih + h @ W_hh.T + b_hh))


def test_n3_rnn():
    output, hidden = nn.RNN(input_size=5, hidden_size=7)(torch.rand(3, 2, 5), torch.randn(1, 2, 7))
    assert output.size() == (3, 2, 7)
    assert hidden.size() == (1, 2, 7)


def test_n3_lstmcell():
    h, c = nn.LSTMCell(input_size=5, hidden_size=7)(torch.rand(1, 5), (torch.randn(1, 7), torch.randn(1, 7)))
    assert h.shape == (1, 7)
    assert c.shape == (1, 7)


def test_n3_lstm():
    states = torch.randn(1, 2, 7), torch.randn(1, 2, 7)
    output, (h, c) = nn.LSTM(input_size=5, hidden_size=7)(torch.rand(3, 2, 5), states)
    assert output.size() == (3, 2, 7)
    assert h.size() == (1, 2, 7)
    assert c.size() == (1, 2, 7)


# ---- n4: stacking, directions ----


def test_n4_last_output_is_the_state():
    output, hidden = nn.RNN(10, 2)(torch.randn(5, 3, 10), torch.randn(1, 3, 2))
    assert output.shape == (5, 3, 2)
    assert hidden.shape == (1, 3, 2)
    assert (output[-1] == hidden).tolist() == [[[True, True]] * 3]


def test_n4_num_layers():
    rnn = nn.RNN(10, 2, 3)
    output, hidden = rnn(torch.randn(5, 3, 10), torch.randn(3, 3, 2))
    assert output.shape == (5, 3, 2)
    assert hidden.shape == (3, 3, 2)
    assert (output[-1] == hidden[-1]).tolist() == [[True, True]] * 3
    assert [w.shape for w in (rnn.weight_ih_l0, rnn.weight_ih_l1, rnn.weight_ih_l2)] == [(2, 10), (2, 2), (2, 2)]
    assert [w.shape for w in (rnn.weight_hh_l0, rnn.weight_hh_l1, rnn.weight_hh_l2)] == [(2, 2)] * 3


def test_n4_bidirectional():
    rnn = nn.RNN(10, 2, bidirectional=True)
    output, hidden = rnn(torch.randn(5, 3, 10), torch.zeros(2, 3, 2))
    assert output.shape == (5, 3, 4)
    assert hidden.shape == (2, 3, 2)
    left, right = output[-1, :, :2], output[0, :, 2:]
    assert (hidden == torch.cat((left, right)).view(2, -1, 2)).tolist() == [[[True, True]] * 3] * 2


# ---- the examples, as they are run; the comparison with Keras of n4 is from_keras.py ----

PRINTED = {
    "cells": [
        "RNNCell(5, 7)",
        "weight_ih  (7, 5)",
        "weight_hh  (7, 7)",
        "bias_ih    (7,)",
        "bias_hh    (7,)",
        "one step: (1, 7) as the equation says: True",
        "weight_hh: (200, 200)",
        "input: (6, 5, 100) final state: (5, 200) outputs: 6",
        "loop == layer: True",
        "LSTMCell: weight_ih (28, 5) h (1, 7) c (1, 7)",
        "GRUCell:  weight_ih (21, 5) h (1, 7)",
    ],
    "layers": [
        "rnn.weight_hh_l0  (200, 200)",
        "rnn               (6, 5, 200) (1, 5, 200)",
        "T, B, H            6 5 200",
        "rnn, own state    (6, 5, 200) (1, 5, 200)",
        "output[-1] == h_n: True",
        "batch_first=True  (128, 28, 64) (2, 128, 64) True",
        "batch_first=False (28, 128, 64) (2, 128, 64) True",
        "lstm.weight_hh_l0 (400, 100)",
        "lstm              (10, 3, 100) (2, 3, 100) (2, 3, 100)",
        "lstm, own states  (10, 3, 100) (2, 3, 100) (2, 3, 100)",
        "output[-1] == h_n[-1]: True",
        "gru.weight_hh_l0  (60, 20)",
        "gru               (3, 32, 20) (1, 32, 20)",
    ],
    "stacking_and_directions": [
        "stacked: (5, 3, 2) (3, 3, 2)",
        "output[-1] == h_n[-1]: True",
        "layer 0: weight_ih (2, 10) weight_hh (2, 2)",
        "layer 1: weight_ih (2, 2) weight_hh (2, 2)",
        "layer 2: weight_ih (2, 2) weight_hh (2, 2)",
        "bidirectional: (5, 3, 4) (2, 3, 2)",
        "h_n == both ends: True",
        "output[-1] == both ends: False",
        "both: (5, 3, 4) (6, 3, 2)",
        "top layer's ends: True True",
        "weight_ih_l1_reverse: (6, 4)",
    ],
    "from_keras": [
        "time-major  (5, 3, 2) batch-major (3, 5, 2) state (1, 3, 2)",
        "the same numbers: True",
        "return_sequences=True:  (3, 5, 2) True",
        "return_sequences=False: (3, 2) True",
        "return_state=True:      (3, 2) True",
        "three layers: (3, 5, 2) True",
    ],
    "many_to_one": ["loss 0.000", "predicted: 1 0 1 1 0 0", "wanted:    1 0 1 1 0 0"],
}


def run(example, capsys, monkeypatch, *arguments):
    """What an example prints when it is run as its docstring says."""
    monkeypatch.setattr(sys, "argv", [f"{example}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("example", PRINTED)
def test_example_prints_shapes(example, capsys, monkeypatch):
    assert run(example, capsys, monkeypatch) == PRINTED[example]


@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("hello_cell", "ohlol"),
        ("hello_cell --seed 3", "ohlol"),
        ("hello_layer", "ohlol"),
        ("hello_layer --seed 0", "ohlll"),
        ("hello_layer --seed 0 --head", "ohlol"),
        ("embedding", "ohlol"),
    ],
)
def test_example_says(command, last, capsys, monkeypatch):
    lines = run(*command.split()[:1], capsys, monkeypatch, *command.split()[1:])
    assert len(lines) == 15
    assert lines[-1].startswith("epoch 15/15")
    assert lines[-1].endswith(last)


def test_example_forecast_beats_the_naive_one(capsys, monkeypatch):
    (line,) = run("forecast", capsys, monkeypatch)
    words = line.split()
    assert words[:3] == ["mean", "squared", "error"]
    assert float(words[4]) < 0.03 < 0.3 < float(words[7])


def test_every_example_is_tested_and_says_how_to_run_it():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*PRINTED, "hello_cell", "hello_layer", "embedding", "forecast"}
    for name in names:
        assert f"    python examples/{name}.py\n" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
