"""From torchrnn to Keras: `to_keras`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from torchrnn import parameters
from torchrnn.cells import GRU, LSTM, RNN
from torchrnn.keras import weights
from torchrnn.keras.stack import Stack
from torchrnn.layer import Recurrent

_KINDS: dict[type[nn.Module], str] = {RNN: "SimpleRNN", LSTM: "LSTM", GRU: "GRU"}
_MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "mean": "ave"}


def to_keras(layer: Any) -> Any:
    """Make a Keras 3 layer from a layer of ours.

    Args:
        layer: an `RNN`, `LSTM` or `GRU`, or a `Stack` of them.

    Returns:
        A built ``keras.layers.SimpleRNN``, ``LSTM`` or ``GRU``, in a ``Bidirectional`` where there are two directions;
        of several layers a ``keras.Sequential``. It takes (B, T, I), whatever ``batch_first`` is. Where Keras has one
        bias and ours two, it gets their sum; everything else is the same number, bit for bit.

    Raises:
        TypeError: ``layer`` is nothing of the kind.
        ValueError: it does what Keras cannot.
        ImportError: Keras, or its backend, is not installed.

    A warning tells of what is not kept, such as dropout, and changes no result of a call without training.
    """
    modules = list(layer) if isinstance(layer, Stack) else [layer]
    for module in modules:
        _check(module)
        for note in _notes(module):
            warnings.warn(note, stacklevel=2)
    keras = _keras()
    pieces = [piece for module in modules for piece in _pieces(keras, module)]
    I = modules[0].input_size
    if len(pieces) == 1:
        made, arrays = pieces[0]
        made.build((None, None, I))
    else:
        made = keras.Sequential([keras.Input((None, I), dtype=pieces[0][0].dtype), *(one for one, _ in pieces)])
        made.dtype_policy = pieces[0][0].dtype_policy  # by default it would cast its input to float32
        arrays = [a for _, of in pieces for a in of]
    made.set_weights(arrays)
    return made


def _keras() -> Any:
    try:
        import keras
    except ImportError as error:
        raise ImportError(
            f"to_keras needs Keras 3 and one of its backends ({error}): pip install keras, and set KERAS_BACKEND=torch "
            "in the environment if torch is to be the backend"
        ) from error
    return keras


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """A module's class, below the one that torch.nn.utils.parametrize puts over it."""
    return type(module).__mro__[1] if nn.utils.parametrize.is_parametrized(module) else type(module)


def _check(module: Any) -> None:
    """Raise unless Keras has such a layer."""
    if not isinstance(module, Recurrent) or _plain_class(module) not in _KINDS:
        raise TypeError(
            f"layer must be an RNN, LSTM or GRU of torchrnn, or a Stack of them, got {type(module).__name__}: "
            "torchrnn.convert(model) turns torch.nn's layers into ours"
        )
    name = type(module).__name__
    if module.input_size is None:
        raise ValueError(f"{name} does not know its input size yet: call it once first")
    lacks = [f"proj_size={module.proj_size}"] if module.proj_size else []
    lacks += [f"cell_clip={module.cell_clip}"] if module.cell_clip is not None else []
    lacks += ["residual=True"] if module.residual and module.num_layers > 1 else []
    lacks += ["learn_initial_state=True"] if module.learn_initial_state else []
    if lacks:
        raise ValueError(f"Keras's {_KINDS[_plain_class(module)]} has no {', '.join(lacks)}")


def _notes(module: Any) -> Iterator[str]:
    for name in ("dropout", "output_dropout"):
        if getattr(module, name):
            yield f"{type(module).__name__}: {name}={getattr(module, name)} acts in training only and is not kept"


def _pieces(keras: Any, module: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The layers of Keras that a module of ours is, each with its arrays."""
    kind, D = _KINDS[_plain_class(module)], 2 if module.bidirectional else 1
    own = getattr(module, "reset_after", False)  # a GRU whose reset gate acts after the product has two biases there
    sizes, L = parameters.hidden_sizes(module), module.num_layers
    for k, H in enumerate(sizes):
        options: dict[str, Any] = {"activation": module.activation, "use_bias": bool(module.bias)}
        options["return_sequences"] = module.return_sequences if k == L - 1 else True
        options["dtype"] = str(module.weight_hh_l0.dtype).removeprefix("torch.")
        if module.weight_hh_l0.element_size() == 2:  # Keras's own choice cannot be drawn in 16 bits
            options["recurrent_initializer"] = "glorot_uniform"
        if kind == "GRU":
            options["reset_after"] = own
        made = getattr(keras.layers, kind)(H, **options)
        if D == 2:
            made = keras.layers.Bidirectional(made, merge_mode=_MERGES[module.merge_mode], dtype=options["dtype"])
        sides = module.all_weights[k * D : (k + 1) * D]
        yield made, [a for side in sides for a in weights.to_keras(kind, side, two_biases=own)]
