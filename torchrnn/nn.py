"""torch.nn with our recurrent classes in place of theirs: ``from torchrnn import nn``."""

import sys
from typing import Any

import torch.nn as _torch_nn
from torch.nn import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

from torchrnn.cells import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell  # noqa: F401

# so that ``import torchrnn.nn.functional`` and the like give torch's own modules, not second copies of them
for _name, _module in list(sys.modules.items()):
    if _name.startswith("torch.nn."):
        sys.modules[f"torchrnn.nn.{_name.removeprefix('torch.nn.')}"] = _module


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")  # torch's path would make it a package
    return getattr(_torch_nn, name)  # functional, utils, init and what else torch.nn has without exporting it


def __dir__() -> list[str]:
    return dir(_torch_nn)
