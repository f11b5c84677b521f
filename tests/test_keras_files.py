"""Files that are not what Keras saves: each has its message; nothing in them runs, and links lead nowhere."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import torchrnn

I, H = 3, 4
SHAPES = [(I, 4 * H), (H, 4 * H), (4 * H,)]
CELL = "layers/lstm/cell/vars"
CONFIG = {
    "class_name": "Sequential",
    "config": {"layers": [{"class_name": "LSTM", "config": {"name": "lstm", "units": H}}]},
}
ARRAYS = [np.random.default_rng(2).normal(size=shape).astype("float32") for shape in SHAPES]


def fill(file: Any, path: str = CELL, arrays: Any = ARRAYS) -> Any:
    group = file.create_group(path)
    for k, array in enumerate(arrays):
        group[str(k)] = array
    return group


def weights(change: Callable[[Any], Any] | None = None) -> bytes:
    """A file of weights, changed."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
        file.create_group("layers/lstm/vars").attrs["name"] = "lstm"
        if change is not None:
            change(file)
    return stream.getvalue()


def archive(path: Path, **members: bytes | str) -> Path:
    """A .keras file; members given by name take the place of its own, or of nothing if empty."""
    default = {"metadata.json": "{}", "config.json": json.dumps(CONFIG), "model.weights.h5": weights()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {**default, **{k.replace("__", "."): v for k, v in members.items()}}.items():
            if content:
                file.writestr(name, content)
    return path


def equal(layer: Any) -> bool:
    plain = torchrnn.from_keras(ARRAYS, CONFIG)
    return all(torch.equal(a, b) for a, b in zip(layer.parameters(), plain.parameters(), strict=True))


def test_the_files_of_these_tests_are_read(tmp_path: Path) -> None:
    assert equal(torchrnn.from_keras(archive(tmp_path / "x.keras")))
    (tmp_path / "x.weights.h5").write_bytes(weights())
    assert equal(torchrnn.from_keras(tmp_path / "x.weights.h5", CONFIG))
    with zipfile.ZipFile(tmp_path / "x.keras", "a") as file:
        assert file.namelist() == ["metadata.json", "config.json", "model.weights.h5"]
    with zipfile.ZipFile(tmp_path / "packed.keras", "w", zipfile.ZIP_DEFLATED) as file:  # Keras packs nothing
        file.writestr("config.json", json.dumps(CONFIG))
        file.writestr("model.weights.h5", weights())
    assert equal(torchrnn.from_keras(tmp_path / "packed.keras"))


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it has been run')",))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"config__json": ""}, "lacks config.json, it holds ['metadata.json', 'model.weights.h5']"),
    "no weights": ({"model__weights__h5": ""}, "lacks model.weights.h5"),
    "sharded weights": (
        {"model__weights__h5": "", "model__weights__json": "{}"},
        "lacks model.weights.h5, it holds ['metadata.json', 'config.json', 'model.weights.json']",
    ),
    "a config that is no JSON": ({"config__json": b"\x80\x04"}, "config.json must be JSON"),
    "a config of a list": ({"config__json": "[]"}, "config must be what keras.layers.serialize(layer)"),
    "a config too long": ({"config__json": b" " * (2**26 + 1)}, "has a config.json of 67108865 bytes"),
    "a pickle for a config": ({"config__json": pickle.dumps(Trap())}, "config.json must be JSON"),
    "a pickle for weights": ({"model__weights__h5": pickle.dumps(Trap())}, "must hold weights in HDF5"),
    "weights cut short": ({"model__weights__h5": weights()[:1500]}, "must hold weights in HDF5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_archive(tmp_path: Path, name: str) -> None:
    members, message = WRONG[name]
    with pytest.raises(ValueError, match=r"^source '.*x\.keras'") as caught:
        torchrnn.from_keras(archive(tmp_path / "x.keras", **members))
    assert message in str(caught.value)


def replaced(array: Any, k: int = 0) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[f"{CELL}/{k}"]
        file[f"{CELL}/{k}"] = array

    return change


def outside(file: Any) -> None:
    del file[f"{CELL}/0"]
    file[CELL].create_dataset("0", SHAPES[0], "float32", external=[("other.raw", 0, h5py.h5f.UNLIMITED)])


def virtual(file: Any) -> None:
    del file[f"{CELL}/0"]
    layout = h5py.VirtualLayout(SHAPES[0], "float32")
    layout[:] = h5py.VirtualSource("other.h5", "data", SHAPES[0])
    file[CELL].create_virtual_dataset("0", layout)


def huge(file: Any) -> None:
    del file[f"{CELL}/0"]
    file[CELL].create_dataset("0", (10**9, 4 * H), "float32")  # of which nothing is stored


def packed(file: Any) -> None:
    del file[f"{CELL}/0"]
    file[CELL].create_dataset("0", data=np.zeros((10**5, 4 * H), "float32"), compression="gzip")


def linked(target: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[CELL]
        file[CELL] = target

    return change


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another group": (lambda f: f.move("layers/lstm", "layers/gru"), "there is no group 'layers/lstm'"),
    "no cell": (lambda f: f.__delitem__(CELL), "'/layers/lstm/cell' holds []"),
    "two weights": (lambda f: f.__delitem__(f"{CELL}/2"), "must hold 3 weights, 0 to 2, got ['0', '1']"),
    "a group for a weight": (
        lambda f: (f.__delitem__(f"{CELL}/1"), f.create_group(f"{CELL}/1")),
        "must be numbers in the",
    ),
    "numbers for a group": (linked(np.zeros(3)), f"'{CELL}' must be a group"),
    "a wrong shape": (replaced(ARRAYS[0].T), "/0 must be of shape (I, 16), got (16, 3)"),
    "a number": (replaced(1.0), "/0 must be of shape (I, 16), got ()"),
    "integers": (replaced(np.zeros(SHAPES[0], "int8")), "must be floating-point numbers, got int8"),
    "words": (replaced("0123"), "must be of shape (I, 16)"),
    "objects": (replaced(np.full(SHAPES[0], b"x", object)), "must be floating-point numbers, got object"),
    "another's name": (lambda f: f["layers/lstm/vars"].attrs.__setitem__("name", "old"), "is that of a layer 'old'"),
    "numbers of another file": (outside, "/0 must be numbers in the file itself"),
    "a view of another file": (virtual, "/0 must be numbers in the file itself"),
    "a link to another file": (linked(h5py.ExternalLink("other.h5", "/")), "must be in the file itself, got a link"),
    "a link within": (linked(h5py.SoftLink("/layers")), "must be in the file itself, got a link"),
    "more than there is": (huge, "/0 must be stored in full, neither compressed nor left out"),
    "more than it seems": (packed, "/0 must be stored in full, neither compressed nor left out"),
    "a whole old model": (
        lambda f: f.attrs.__setitem__("model_config", "{}"),
        "is a whole model in the old HDF5 format",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_weights(tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    file = archive(tmp_path / "x.keras", model__weights__h5=weights(change))
    with pytest.raises(ValueError, match=r"^source '.*x\.keras'") as caught:
        torchrnn.from_keras(file)
    assert message in str(caught.value)


def test_what_is_no_file_of_keras(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"source '.*none.keras': there is no such file"):
        torchrnn.from_keras(tmp_path / "none.keras")
    with pytest.raises(ValueError, match=r"must be a .keras or .weights.h5 file, got a folder"):
        torchrnn.from_keras(tmp_path)
    for content in (b"", pickle.dumps(Trap()), b"PK\x03\x04"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"source '.*x' must be a .keras file .* or a .weights.h5 file .*, and is neit"
        ):
            torchrnn.from_keras(tmp_path / "x")


def test_a_config_where_one_is_and_none_where_none_is(tmp_path: Path) -> None:
    (tmp_path / "x.weights.h5").write_bytes(weights())
    with pytest.raises(ValueError, match=r"x.weights.h5' holds weights alone.*: give config=model.to_json\(\), too"):
        torchrnn.from_keras(tmp_path / "x.weights.h5")
    with pytest.raises(ValueError, match=r"x.keras' has a config of its own: leave config out"):
        torchrnn.from_keras(archive(tmp_path / "x.keras"), CONFIG)


def test_an_encrypted_member(tmp_path: Path) -> None:
    file = archive(tmp_path / "x.keras")
    content = bytearray(file.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):  # of the member in the directory, and of itself
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + flags] |= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.keras' must be a .keras file.*encrypted"):
        torchrnn.from_keras(file)


@pytest.mark.parametrize("kind", ["archive", "weights"])
def test_bytes_changed_at_random(tmp_path: Path, kind: str) -> None:
    """Of an archive a changed byte is found, or does not matter; a file of weights has no sums."""
    plain, file = archive(tmp_path / "plain.keras"), tmp_path / "x"
    if kind == "weights":
        plain = tmp_path / "plain.weights.h5"
        plain.write_bytes(weights())
    choose, read = random.Random(3), 0
    for _ in range(150):
        shutil.copy(plain, file)
        content = bytearray(file.read_bytes())
        for _ in range(choose.choice([1, 1, 4])):
            content[choose.randrange(len(content))] = choose.randrange(256)
        if choose.random() < 0.2:
            del content[choose.randrange(len(content)) :]
        file.write_bytes(content)
        try:
            layer = torchrnn.from_keras(file, CONFIG if kind == "weights" else None)
        except ValueError as error:
            assert str(error).startswith(f"source {str(file)!r}")  # noqa: PT017
            continue
        read += 1
        assert equal(layer) or kind == "weights"
        assert [tuple(p.shape) for p in layer.parameters()] == [(4 * H, I), (4 * H, H), (4 * H,)]
    assert 0 < read < 150
