"""torchrnn: the recurrent-network library for PyTorch."""

from typing import TYPE_CHECKING, Any

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
    from torchrnn.keras import from_keras, to_keras
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
    "from_keras",
    "from_onnx",
    "init",
    "is_recurrent",
    "last",
    "nn",
    "to_keras",
    "use",
    "watch",
]

# what few programs need is imported when asked for
_LATER = {
    "from_keras": "torchrnn.keras",
    "from_onnx": "torchrnn.onnx",
    "onnx": "torchrnn.onnx",
    "to_keras": "torchrnn.keras",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_LATER[name])
    globals()[name] = found = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
