"""The cells that come with torchrnn, one file each: its equations, its step, its two classes."""

from torchrnn.cells.gru import GRU, GRUCell
from torchrnn.cells.lstm import LSTM, LSTMCell
from torchrnn.cells.rnn import RNN, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
