"""From torch.nn's recurrent modules to ours and back, in place: the same objects, the same Parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from torchrnn import arguments
from torchrnn.activation import PLAIN
from torchrnn.cells import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from torchrnn.layer import Recurrent
from torchrnn.step import RecurrentCell

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNNCell: RNNCell,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
}
_BY_NAME = {theirs.__name__ for theirs in _OURS}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

Model = TypeVar("Model", bound=nn.Module)


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer or cell, of ours or of torch.nn; subclasses count.

    Example:
        ```python
        import torch, torchrnn

        assert torchrnn.is_recurrent(torchrnn.GRU(2, 3)) and torchrnn.is_recurrent(torch.nn.LSTMCell(2, 3))
        assert not torchrnn.is_recurrent(torch.nn.Linear(2, 3))
        ```
    """
    return isinstance(module, (Recurrent, RecurrentCell, nn.RNNBase, nn.RNNCellBase))


def convert(model: Model, to: str = "torchrnn", *, report: Callable[[str], Any] | None = print) -> Model:
    """Make the recurrent modules of a model ours, or torch.nn's again, in place.

    Every module stays the object it was, with its Parameters, buffers, hooks, parametrizations and training mode: an
    optimiser made before goes on working, tied modules stay tied, and references to a module stay good. Only its class
    changes.

    Args:
        model: any module; it may itself be recurrent.
        to: ``"torchrnn"`` or ``"torch"``.
        report: called with one line for each recurrent module: what it became, or why it was left. ``None``: nobody.

    Returns:
        The model.

    Raises:
        ValueError: ``to`` is neither.
        TypeError: ``model`` is no module.

    Example:
        ```python
        import torch, torchrnn

        model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.GRU(4, 8))
        torchrnn.convert(model)  # prints: 1: GRU(4, 8) is now torchrnn.GRU
        assert type(model[1]) is torchrnn.GRU
        ```
    """
    if to not in ("torchrnn", "torch"):
        raise ValueError(f"to must be 'torchrnn' or 'torch', got {to!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    tell = report or (lambda line: None)
    classes = _OURS if to == "torchrnn" else _THEIRS
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if getattr(module, "original_name", None) in _BY_NAME:
                tell(f"{name or 'the model itself'}: {module.original_name} is left: it is compiled by torch.jit")
            continue
        if not is_recurrent(module):
            continue
        called = f"{name or 'the model itself'}: {_kind(module)}({module.extra_repr()})"
        target = classes.get(_plain_class(module))
        missing = _missing(module) if target is not None and to == "torch" else None
        if missing is not None:
            tell(f"{called} is left: {missing}")
        elif target is not None:
            _become(module, target)
            tell(f"{called} is now {to}{'.nn' if to == 'torch' else ''}.{target.__name__}")
        else:
            tell(f"{called} is left: {_why_left(module, to)}")
    return model


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """A module's class, below the one that torch.nn.utils.parametrize puts over it."""
    kind = type(module)
    return kind.__mro__[1] if nn.utils.parametrize.is_parametrized(module) else kind


def _kind(module: nn.Module) -> str:
    return _plain_class(module).__name__


def _missing(module: Any) -> str | None:
    """Why torch.nn cannot be what a module of ours is, or None."""
    if module.input_size is None:
        return "its input size is not known yet: call it once first"
    lacks = arguments.beyond_torch(module) if isinstance(module, Recurrent) else []
    lacks = [option for option in lacks if not option.startswith("forget_bias")]  # it has been drawn
    if isinstance(module, (RNN, GRU)) and module.proj_size:
        lacks.append(f"proj_size={module.proj_size}")
    if isinstance(module.hidden_size, list):
        lacks.append(f"hidden_size={module.hidden_size}")
    if module._options != PLAIN:
        lacks.append(str(module._options))
    if module.bias == "single":
        lacks.append("bias='single'")
    if not getattr(module, "reset_after", True):
        lacks.append("reset_after=False")
    return f"torch.nn's {_kind(module)} has no {', '.join(lacks)}" if lacks else None


def _why_left(module: nn.Module, to: str) -> str:
    kind = _plain_class(module)
    if kind in (_THEIRS if to == "torchrnn" else _OURS):
        return f"it is {to}'s already"
    known = next((base for base in kind.__mro__[1:] if base in _OURS or base in _THEIRS), None)
    if known is not None:
        return f"a subclass of {known.__module__.split('.')[0]}'s {known.__name__} has a behaviour of its own"
    if to == "torch":
        return "torch.nn has no such cell"
    return "it is none of the six classes of torch.nn"


def _become(module: nn.Module, target: type[nn.Module]) -> None:
    """Change the class of a module; keep the properties that parametrizations put on the old one."""
    old = type(module)
    new = target
    if nn.utils.parametrize.is_parametrized(module):
        own = {k: v for k, v in vars(old).items() if k not in ("__module__", "__doc__", "__dict__", "__weakref__")}
        new = type(f"Parametrized{target.__name__}", (target,), own)
    state = vars(module)
    for bookkeeping in ("_flat_weights", "_flat_weight_refs"):
        state.pop(bookkeeping, None)
    module.__class__ = new
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
