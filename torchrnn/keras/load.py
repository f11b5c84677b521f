"""From Keras to torchrnn: `from_keras`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from torchrnn.cells import GRU, LSTM, RNN
from torchrnn.keras import files, weights
from torchrnn.keras.described import Described, described
from torchrnn.keras.stack import Stack
from torchrnn.layer import Recurrent

_CLASSES: dict[str, Any] = {"SimpleRNN": RNN, "LSTM": LSTM, "GRU": GRU}


def from_keras(source: Any, config: Any = None, *, layer: str | None = None) -> Any:
    """Make a layer of ours from a recurrent layer of Keras 3, or from several on top of each other.

    Knows SimpleRNN, LSTM, GRU (both forms of ``reset_after``), Bidirectional, and a Sequential of them. A file is read
    without Keras, and nothing in it is run.

    Args:
        source: a built Keras layer or Sequential; the path of a ``.keras`` file; the path of a ``.weights.h5`` file; or
            the list of arrays that ``get_weights()`` gives. The last two with ``config``.
        config: what ``keras.layers.serialize(layer)`` or ``model.to_json()`` gives, as a dict or as text.
        layer: the name of the one recurrent layer to take from a model that has others, too.

    Returns:
        An `RNN`, `LSTM` or `GRU` with ``batch_first=True`` in training mode, on the CPU, with the dtype of the
        weights. Layers of Keras that follow each other become one of several layers where they are alike but for
        their sizes, else a `Stack`.

    Raises:
        ValueError: Keras's layer does what ours cannot, or a file or array is not what it should be.
        TypeError: ``source`` is nothing of the kind.
        FileNotFoundError: there is no such file.
        ImportError: a file is to be read and h5py is not installed.

    A warning tells of what is not kept, such as dropout, and changes no result of a single call without training.

    Example:
        ```python
        import torch
        import torchrnn

        I, H = 3, 5
        arrays = [torch.randn(I, 4 * H), torch.randn(H, 4 * H), torch.zeros(4 * H)]  # or keras_layer.get_weights()
        config = {"class_name": "LSTM", "config": {"units": H}}  # or keras.layers.serialize(keras_layer)
        layer = torchrnn.from_keras(arrays, config)
        assert layer(torch.randn(2, 7, I)).shape == (2, H)  # (B, T, I) -> the last output (B, H), as in Keras
        ```
    """
    if isinstance(config, (str, bytes)):
        config = files.parse(config, "config")
    if isinstance(source, (str, os.PathLike)):
        found = _from_file(os.fspath(source), config, layer)
    elif isinstance(source, (list, tuple)):
        if config is None:
            raise ValueError("weights alone do not say what they are: give config=keras.layers.serialize(layer), too")
        found = _from_arrays(source, described(config, layer=layer), layer)
    else:
        found = _from_object(source, config, layer)
    for one, _ in found:
        for note in one.notes:
            warnings.warn(note, stacklevel=2)
    return _built(found)


Found = list[tuple[Described, list[list[Tensor]]]]  # each layer with its weights by direction


def _from_file(path: str, config: Any, layer: str | None) -> Found:
    with files.opened(path) as (own, file):
        if own is None and config is None:
            raise ValueError(
                f"source {path!r} holds weights alone, which do not say what they are: give config=model.to_json(), too"
            )
        if own is not None and config is not None:
            raise ValueError(f"source {path!r} has a config of its own: leave config out")
        try:
            layers = described(config if own is None else own, layer=layer)
        except ValueError as error:
            raise ValueError(f"source {path!r}: {error}") from error
        return [(one, files.weights(file, path, one, named=own is not None)) for one in layers]


def _from_object(source: Any, config: Any, layer: str | None) -> Found:
    """From a layer or model that lives in this process, by what it says of itself."""
    kind = type(source)
    if not (hasattr(source, "get_weights") and hasattr(source, "get_config")):
        raise TypeError(
            f"source must be a Keras layer, a path or a list of arrays, got {kind.__name__}: torch.nn's layers become "
            "ours with torchrnn.convert(model)"
        )
    if config is not None:
        raise ValueError("a Keras layer has a config of its own: leave config out")
    if layer is not None:
        named = [one for one in _within(source) if one.name == layer]
        if len(named) != 1:
            names = [one.name for one in _within(source)]
            raise ValueError(f"layer must be the name of one of the layers, {names}, got {layer!r}")
        source = named[0]
    layers, arrays = described(_says(source)), []
    for one in _within(source):
        if not one.built:
            raise ValueError(
                f"source {one.name!r} has no weights yet: call it once, or build it with build((None, None, I))"
            )
        sides = [one.forward_layer, one.backward_layer] if hasattr(one, "backward_layer") else [one]
        arrays += [a for side in sides for a in side.cell.get_weights()]  # without the states of a stateful layer
    return _from_arrays(arrays, layers, None)


def _says(source: Any) -> dict[str, Any]:
    """What a layer's serialisation would be."""
    kind = type(source)
    return {"class_name": kind.__name__, "module": kind.__module__, "config": source.get_config()}


def _within(source: Any) -> Iterator[Any]:
    """All layers of a model."""
    for one in getattr(source, "layers", [source]):
        yield from _within(one) if hasattr(one, "layers") else (one,)


def _from_arrays(arrays: Sequence[Any], layers: list[Described], layer: str | None) -> Found:
    """From arrays in the order of ``get_weights()``: layer by layer, direction by direction."""
    wanted = sum(one.directions * len(one.shapes(None)) for one in layers)
    if len(arrays) != wanted:
        hint = ", those of this layer alone" if layer is not None else ""
        raise ValueError(
            f"weights must be {wanted} arrays{hint}: "
            + "; ".join(f"{one.name} {one.directions} × {[n for n, _ in one.shapes(None)]}" for one in layers)
            + f"; got {len(arrays)}"
        )
    rest, found = iter(arrays), []
    for one in layers:
        sides = []
        for side in range(one.directions):
            sides.append([weights.tensor(next(rest), f"{one.name}: {name} {side}") for name, _ in one.shapes(None)])
        found.append((one, sides))
    return found


def _built(found: Found) -> Any:
    """One layer of ours, or a Stack."""
    I: int | None = None
    for one, sides in found:
        for k, side in enumerate(sides):
            I = weights.check(one, "" if one.directions == 1 else f"{('forward', 'backward')[k]} ", side, I)
        I = one.units * (2 if one.directions == 2 and one.merge_mode == "concat" else 1)
    groups = [[found[0]]]
    for below, above in pairwise(found):
        if _alike(below) == _alike(above):
            groups[-1].append(above)
        else:
            groups.append([above])
    layers = [_layer(group) for group in groups]
    return layers[0] if len(layers) == 1 else Stack(*layers)


def _alike(entry: tuple[Described, list[list[Tensor]]]) -> tuple[Any, ...]:
    """What two layers must have in common to be one of ours."""
    one, sides = entry
    same = one._replace(name="", path="", units=0, return_sequences=True, notes=())
    return same, [side[0].dtype for side in sides]


def _layer(group: Found) -> Recurrent:
    """A layer of ours from layers that are alike."""
    first, sides = group[0]
    options: dict[str, Any] = {"activation": first.activation, "return_sequences": group[-1][0].return_sequences}
    options |= {"batch_first": True, "bidirectional": first.directions == 2, "merge_mode": first.merge_mode}
    one_bias = first.kind != "GRU" or not first.reset_after
    options["bias"] = ("single" if one_bias else True) if first.bias else False
    if first.kind == "GRU":
        options["reset_after"] = first.reset_after
    options["dtype"] = sides[0][0].dtype
    sizes = [one.units for one, _ in group]
    # on the meta device nothing is drawn: the random numbers of the program stay what they were
    layer = _CLASSES[first.kind](sides[0][0].size(0), sizes, device="meta", **options)
    arrays = [w for one, by_side in group for side in by_side for w in weights.to_ours(one, side)]
    state = dict(zip(layer.state_dict(), arrays, strict=True))
    layer.load_state_dict(state, assign=True)
    return layer
