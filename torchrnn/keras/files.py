"""Reading what Keras has saved, ``.keras`` and ``.weights.h5``: JSON and numbers, nothing that runs."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torchrnn.keras.described import Described

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_LARGEST_CONFIG = 2**26  # bytes; a layer takes two thousand
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, NotImplementedError, EOFError, zlib.error)


def h5py() -> Any:
    """The package h5py, or an error that says how to get it."""
    try:
        import h5py as package
    except ImportError as error:
        raise ImportError("reading a file of Keras needs h5py: pip install 'torchrnn[keras]'") from error
    return package


def parse(text: str | bytes, what: str) -> Any:
    """JSON as Python objects.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be JSON, got {text[:40]!r}: {error}") from error


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The configuration, or None, and the open file of weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of Keras's.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"source {path!r}: there is no such file")
    if os.path.isdir(path):
        raise ValueError(f"source {path!r} must be a .keras or .weights.h5 file, got a folder")
    package = h5py()
    if zipfile.is_zipfile(path):
        with _archive(path) as (config, stream), _hdf5(package, path, stream) as file:
            yield config, file
    elif package.is_hdf5(path):
        with _hdf5(package, path, path) as file:
            yield None, file
    else:
        raise ValueError(
            f"source {path!r} must be a .keras file (a zip archive) or a .weights.h5 file (HDF5), and is neither: was "
            "it saved with model.save('….keras') or model.save_weights('….weights.h5')?"
        )


@contextmanager
def _archive(path: str) -> Iterator[tuple[Any, Any]]:
    """The configuration and the weights in a ``.keras`` file, both checked against their sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in (_CONFIG, _WEIGHTS) if name not in archive.namelist()]
            if missing:
                raise ValueError(f"lacks {missing[0]}, it holds {archive.namelist()[:8]}")
            size = archive.getinfo(_CONFIG).file_size
            if size > _LARGEST_CONFIG:
                raise ValueError(f"has a {_CONFIG} of {size} bytes")
            config = parse(archive.read(_CONFIG), _CONFIG)
            with archive.open(_WEIGHTS) as whole:  # reading it to its end compares it with its sum
                while whole.read(2**20):
                    pass
            stream = archive.open(_WEIGHTS)
    except (zipfile.BadZipFile, *_BROKEN) as error:
        raise ValueError(f"source {path!r} must be a .keras file with {_CONFIG} and {_WEIGHTS}: {error}") from error
    with stream:
        yield config, stream


@contextmanager
def _hdf5(package: Any, path: str, source: Any) -> Iterator[Any]:
    try:
        file = package.File(source, "r")
    except _BROKEN as error:
        raise ValueError(f"source {path!r} must hold weights in HDF5, which cannot be read: {error}") from error
    with file:
        if "model_config" in file.attrs:
            raise ValueError(
                f"source {path!r} is a whole model in the old HDF5 format: load it in Keras and save it as .keras"
            )
        yield file


def weights(file: Any, path: str, layer: Described, *, named: bool) -> list[list[Tensor]]:
    """The weights of a layer by direction: only those, of the shapes that its description asks for.

    Args:
        file: the open file.
        path: its name, for messages.
        layer: what to read.
        named: whether the file's own name of the layer must be that of the description.
    """
    try:
        if named:
            _same_name(file, layer)
        found, I = [], None
        for cell in layer.cells:
            group, shapes = _group(file, cell), layer.shapes(I)
            if sorted(group) != [str(k) for k in range(len(shapes))]:
                raise ValueError(
                    f"group {cell!r} must hold {len(shapes)} weights, 0 to {len(shapes) - 1}, got {sorted(group)}"
                )
            arrays = [_dataset(group, str(k), shape) for k, (_, shape) in enumerate(shapes)]
            found.append(arrays)
        return found
    except _BROKEN as error:
        raise ValueError(f"source {path!r}: layer {layer.name!r}: {str(error).strip(chr(34))}") from error


def _same_name(file: Any, layer: Described) -> None:
    """Raise where the file calls the layer something else: its groups are counted, which could go wrong."""
    group = _group(file, layer.path)
    name = _group(group, "vars").attrs.get("name", layer.name) if "vars" in list(group) else layer.name
    if name != layer.name:
        raise ValueError(f"group {layer.path!r} is that of a layer {name!r}")


def _group(file: Any, path: str) -> Any:
    """A group of the file itself: none that a link fetches from another."""
    here, package = file, h5py()
    for part in path.split("/"):
        if not isinstance(here, package.Group) or here.get(part, getlink=True) is None:
            raise ValueError(f"there is no group {path!r}; {here.name!r} holds {list(here)[:8]}")
        _own(here, part)
        here = here[part]
    if not isinstance(here, package.Group):
        raise ValueError(f"{path!r} must be a group")
    return here


def _own(group: Any, name: str) -> None:
    if not isinstance(group.get(name, getlink=True), h5py().HardLink):
        raise ValueError(f"{group.name}/{name} must be in the file itself, got a link")


def _dataset(group: Any, name: str, expected: Sequence[Any]) -> Tensor:
    """The numbers of a dataset, if it has the shape expected (None: any) and holds them itself."""
    _own(group, name)
    data, label = group[name], f"{group.name}/{name}"
    if not isinstance(data, h5py().Dataset) or data.external or data.is_virtual:
        raise ValueError(f"{label} must be numbers in the file itself")
    shape = data.shape or ()
    if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
        raise ValueError(f"{label} must be of shape {str(tuple(expected)).replace('None', 'I')}, got {shape}")
    if data.id.get_storage_size() < data.size * data.dtype.itemsize:
        raise ValueError(f"{label} must be stored in full, neither compressed nor left out, as Keras stores it")
    if data.attrs.get("dtype") == "bfloat16" and data.dtype.itemsize == 2:
        return torch.tensor(data[()].view("int16")).view(torch.bfloat16)
    if data.dtype.kind != "f":
        raise ValueError(f"{label} must be floating-point numbers, got {data.dtype}")
    return torch.tensor(data[()].astype(data.dtype.newbyteorder("=")))
