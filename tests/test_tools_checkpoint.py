"""Files and checkpoints: whole or not there, damage is noticed, and loading runs no code."""

import errno
import hashlib
import io
import json
import pickle
import tarfile
import zipfile

import pytest
import torch

from torchrnn.tools.runs import checkpoint, files
from torchrnn.tools.runs.errors import ToolError

STATE = {"record": {"step": 3, "rows": [{"step": 3.0}]}, "carried": (torch.arange(3.0), torch.zeros(2)), "random": {}}


def full_disk(monkeypatch, at):
    """The disk is full at the `at`-th flush from now."""
    sync, calls = files.os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)


def test_a_file_is_replaced_or_untouched(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_file(path, b"old")
    with monkeypatch.context() as patch:
        full_disk(patch, at=1)
        with pytest.raises(ToolError, match=r"The disk is full: .*file could not be written"):
            files.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written keeps the disk full
    files.write_file(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, at):
    checkpoint.save(tmp_path, 3, b"weights", STATE)
    with monkeypatch.context() as patch:
        full_disk(patch, at)
        with pytest.raises(ToolError, match="The disk is full"):
            checkpoint.save(tmp_path, 6, b"others", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000003"]
    last = checkpoint.load_last(tmp_path)
    assert last is not None
    assert last.weights == b"weights"
    assert last.state["record"] == STATE["record"]
    assert torch.equal(last.state["carried"][0], STATE["carried"][0])


def test_what_a_kill_left_half_written_is_not_taken_for_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 3, b"weights", STATE)
    (tmp_path / "checkpoint-00000006.partial").mkdir()
    (tmp_path / "checkpoint-00000006.partial" / "weights.safetensors").write_bytes(b"oth")
    last = checkpoint.load_last(tmp_path)
    assert last is not None
    assert last.path.name == "checkpoint-00000003"
    checkpoint.save(tmp_path, 6, b"others", STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000003", "checkpoint-00000006"]


def test_the_last_two_are_kept(tmp_path):
    assert checkpoint.load_last(tmp_path) is None
    for step in (9, 10, 100_000_000):
        checkpoint.save(tmp_path, step, b"weights", STATE)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-00000010", "checkpoint-100000000"]


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone"])
def test_any_damage_is_noticed(tmp_path, name, damage):
    checkpoint.save(tmp_path, 3, b"weights", STATE)
    checkpoint.save(tmp_path, 6, b"weights", STATE)
    path = tmp_path / "checkpoint-00000006" / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"truncated": data[:-5], "flipped": flipped, "empty": b""}[damage])
    if (name, damage) == ("manifest.json", "flipped"):
        path.write_bytes(data.replace(b'"sha256": {', b'"sha255": {'))
    with pytest.raises(ToolError, match=r"checkpoint-00000006 is damaged .* to go on from checkpoint-00000003"):
        checkpoint.load_last(tmp_path)


class Malicious:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def old_archive():
    """What torch 0.1 wrote, which torch refuses with other words."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    return data.getvalue()


def script_archive():
    """What torch.jit.save writes, by the one name that it is known by."""
    data = io.BytesIO()
    torch.save(STATE, data)
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    return data.getvalue()


@pytest.mark.parametrize("form", ["torch", "pickle", "tar", "script"])
def test_a_checkpoint_cannot_run_code(tmp_path, form):
    checkpoint.save(tmp_path, 3, b"weights", STATE)
    folder, marker = tmp_path / "checkpoint-00000003", tmp_path / "code-ran"
    if form == "torch":
        buffer = io.BytesIO()
        torch.save({**STATE, "record": Malicious(marker)}, buffer)
        data = buffer.getvalue()
    elif form == "pickle":
        data = pickle.dumps(Malicious(marker), protocol=2)
    else:
        data = old_archive() if form == "tar" else script_archive()
    (folder / "state.pt").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256(data).hexdigest()  # whoever can write one file can write the other
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ToolError, match=r"is damaged \(state.pt does not hold tensors") as refusal:
        checkpoint.load_last(tmp_path)
    assert not marker.exists()
    assert ("io.open, which could run code" in str(refusal.value)) == (form in ("torch", "pickle"))
    for advice in ("weights_only", "safe_globals", "trust", "torch.load"):  # torch's way round the refusal
        assert advice not in str(refusal.value)
    pickle.loads(pickle.dumps(Malicious(marker))).close()
    assert marker.exists()  # it would have
