"""A cell of our own for the tests: an LSTM whose forget gate is one minus its input gate (Greff et al., 2015)."""

from torch import sigmoid, tanh

import torchrnn


@torchrnn.cell(gates="i g o", states="h c")
def coupled_lstm(x, h, s):
    i, g, o = sigmoid(x.i + h.i), tanh(x.g + h.g), sigmoid(x.o + h.o)
    c = (1 - i) * s.c + i * g
    return o * tanh(c), c


class CoupledLSTM(torchrnn.Recurrent):
    cell = coupled_lstm


class CoupledLSTMCell(torchrnn.RecurrentCell):
    cell = coupled_lstm
