"""torch.nn with our recurrent classes in place of theirs: ``from torchrnn import nn``."""

from typing import Any

import torch.nn as _torch_nn
from torch.nn import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

from torchrnn.cells import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell  # noqa: F401


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)  # functional, utils, init and what else torch.nn has without exporting it


def __dir__() -> list[str]:
    return dir(_torch_nn)
