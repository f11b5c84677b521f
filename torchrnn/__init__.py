"""torchrnn: the recurrent-network library for PyTorch."""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from torchrnn import onnx as onnx
    from torchrnn.onnx import from_onnx

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
    "from_onnx",
    "init",
    "is_recurrent",
    "last",
    "nn",
    "use",
    "watch",
]


def __getattr__(name: str) -> object:
    """What few need is imported when it is first asked for."""
    if name in ("from_onnx", "onnx"):
        from importlib import import_module

        module = import_module("torchrnn.onnx")
        return module if name == "onnx" else module.from_onnx
    raise AttributeError(f"module 'torchrnn' has no attribute {name!r}")
