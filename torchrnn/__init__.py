"""torchrnn: the recurrent-network library for PyTorch."""

from torchrnn import backends as _backends  # noqa: F401  # importing registers them
from torchrnn import init, nn
from torchrnn.call import use
from torchrnn.cell import cell
from torchrnn.cells import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from torchrnn.check import ArgumentError
from torchrnn.convert import convert, is_recurrent
from torchrnn.decompose import decompositions
from torchrnn.history import Trace
from torchrnn.layer import Recurrent
from torchrnn.seeing.account import explain
from torchrnn.seeing.pictures import draw
from torchrnn.seeing.watching import watch
from torchrnn.state import detach, last
from torchrnn.step import RecurrentCell
from torchrnn.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ArgumentError",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "Stream",
    "Trace",
    "cell",
    "convert",
    "decompositions",
    "detach",
    "draw",
    "explain",
    "init",
    "is_recurrent",
    "last",
    "nn",
    "use",
    "watch",
]
