"""The run folder: an earlier run stays whole until a new one has begun, and one process at a time trains a run."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from tools_runs import SMALL, kill, start, torchrnn, write_text

from torchrnn.tools.runs import checkpoint, lock, training
from torchrnn.tools.runs.config import Config
from torchrnn.tools.runs.runfolder import NEW, RunFolder
from torchrnn.tools.text.settings import TextSettings

TOO_LARGE = "--hidden-size=100000000"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run = folder / "run"
    arguments = ["text", write_text(folder), *SMALL, "--steps=10", "--validate-every=5", "--run", run]
    assert torchrnn(*arguments).exit_code == 0
    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_that_does_not_fit_in_memory_leaves_the_earlier_one(tmp_path, trained):
    path, before = write_text(tmp_path), contents(trained)
    result = torchrnn("text", path, TOO_LARGE, "--threads=1", "--overwrite", "--run", trained)
    assert result.exit_code == 1
    (paragraph,) = result.stderr.splitlines()
    assert paragraph.startswith("error: Out of memory: the model and its training need more than there is (one tensor")
    assert paragraph.endswith("give the command again: nothing was saved yet, and the earlier run is as it was.")
    assert contents(trained) == before
    assert torchrnn("sample", trained, "--length=5").exit_code == 0


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 20.00 GiB.", None])
def test_memory_that_ends_in_the_first_step_leaves_the_earlier_run(tmp_path, trained, monkeypatch, message):
    before = contents(trained)

    def step(self, batch, batch_idx):
        raise torch.OutOfMemoryError(message) if message else MemoryError

    monkeypatch.setattr(training.Training, "training_step", step)
    result = torchrnn("text", write_text(tmp_path), *SMALL, "--overwrite", "--run", trained)
    assert result.exit_code == 1
    assert "error: Out of memory" in result.stderr
    assert contents(trained) == before


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def step(self, batch, batch_idx):
        raise RuntimeError("a mistake in the model")

    monkeypatch.setattr(training.Training, "training_step", step)
    with pytest.raises(RuntimeError, match="a mistake in the model"):
        torchrnn("text", write_text(tmp_path), *SMALL, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_start_is_not_in_the_way_of_the_next(tmp_path):
    path, run = write_text(tmp_path), tmp_path / "run"
    for _ in range(2):
        result = torchrnn("text", path, TOO_LARGE, "--threads=1", "--run", run)
        assert result.exit_code == 1
        assert "Out of memory" in result.stderr
        assert not run.exists()
    run.mkdir()
    (run / f"{NEW}.partial").mkdir()  # as a kill leaves them
    (run / ".torchrnn.lock").touch()
    assert "it has no config.toml" in torchrnn("text", "--resume", "--run", run).stderr
    assert torchrnn("text", path, *SMALL, "--steps=5", "--run", run).exit_code == 0
    assert not list(run.glob(".*"))


def test_ctrl_c_before_the_first_checkpoint_leaves_the_earlier_run(tmp_path, trained, monkeypatch):
    before = contents(trained)

    def step(self, batch, batch_idx):
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(training.Training, "training_step", step)
    try:
        result = torchrnn("text", write_text(tmp_path), *SMALL, "--overwrite", "--run", trained)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert result.exit_code == 130
    assert (
        "Stopped before the first checkpoint: nothing was saved yet, and the earlier run is as it was" in result.stderr
    )
    assert contents(trained) == before


# kill -9 at every instant of the change from one run to the next


class Killed(BaseException):
    """The process ends here."""


def killed_at(monkeypatch, last, action):
    """Do `action`, killed before the `last`-th change to the disk; whether it came to its end before."""
    calls, sync = [], os.fsync

    def counted(change):
        def call(*arguments, **options):
            calls.append(change)
            if len(calls) == last:
                raise Killed
            return None if change is sync else change(*arguments, **options)  # no power is lost here

        return call

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except Killed:
            return False
    return True


def begin(root, name, step):
    """A run whose files all say `name`."""

    def write(folder):
        checkpoint.save(folder.root, step, name.encode(), {"name": name})
        folder.model.write_bytes(name.encode())
        folder.metrics.write_text(name)

    data = {"sha256": "", "characters": "a", "tokenizer.json": name.encode()}
    folder = RunFolder(root, Config(name, [], "text", TextSettings(threads=1), data))
    folder.save(write)


def names(folder):
    """What the files of a run say, as they are found after a kill."""
    config = folder.read_config("--run")
    kept = config.data["tokenizer.json"].decode()
    return {config.command, kept, folder.whereabouts(folder.model).read_text()}


@pytest.mark.parametrize("step", [5, 7])
def test_a_kill_leaves_the_earlier_run_or_the_new_one(tmp_path, monkeypatch, step):
    at, found, ended = 0, [], False
    while not ended:
        at += 1
        root = tmp_path / f"killed-{at}"
        root.mkdir()
        begin(root, "old", 5)
        (root / "notes").write_text("mine")
        (root / "tensorboard").mkdir()
        (root / "tensorboard" / "events").touch()
        ended = killed_at(monkeypatch, at, lambda root=root: begin(root, "new", step))
        folder = RunFolder(root)
        (name,) = names(folder)  # what `torchrnn sample` reads, at once
        for again in (2, 3, 4, 5):  # and what is left to do may be killed again and again
            killed_at(monkeypatch, again, folder.settle)
            assert names(folder) == {name}
        with folder.locked():
            last = checkpoint.load_last(root)
        assert names(folder) == {name}
        assert last is not None
        assert (last.weights, last.state) == (name.encode(), {"name": name})
        assert (root / "tensorboard").exists() == (name == "old")
        assert {path.name for path in root.iterdir()} - {"tensorboard"} == {
            *("config.toml", "model.safetensors", "metrics.csv", "tokenizer.json", "notes"),
            f"checkpoint-{5 if name == 'old' else step:08d}",
        }
        found.append(name)
        shutil.rmtree(root)
    assert found.index("new") > 5
    assert found == ["old"] * found.index("new") + ["new"] * (len(found) - found.index("new"))
    assert found.count("new") > 5


# one process at a time


@pytest.mark.skipif(lock.fcntl is None, reason="no locks on this system")
def test_a_run_that_another_process_trains_is_refused(tmp_path):
    path, run = write_text(tmp_path), tmp_path / "run"
    arguments = ["text", path, *SMALL, "--validate-every=20", "--patience=0", "--epochs=100000", "--run", run]
    process = start(*arguments)
    try:
        while not checkpoint.found(run) and process.poll() is None:
            time.sleep(0.01)
        for more in (["--resume", "--run", run], [path, *SMALL, "--overwrite", "--run", run]):
            result = torchrnn("text", *more)
            assert result.exit_code == 1
            assert "error: Another process is training this run" in result.stderr
        assert torchrnn("sample", run, "--length=5").exit_code == 0
    finally:
        code, output = kill(process)
    assert code == -9, output
    assert (run / ".torchrnn.lock").exists()
    assert torchrnn("text", "--resume", "--run", run, "--steps=1").exit_code == 0  # it held no longer than its process
    assert not (run / ".torchrnn.lock").exists()


@pytest.mark.skipif(lock.fcntl is None, reason="no locks on this system")
def test_a_lock_is_held_by_one_of_many(tmp_path):
    # each enters some hundred times, and the file comes and goes between them
    code = (
        "import sys, os, pathlib\n"
        "from torchrnn.tools.runs.lock import only_process\n"
        "from torchrnn.tools.runs.errors import ToolError\n"
        "entered, root = 0, pathlib.Path(sys.argv[1])\n"
        "while entered < 300:\n"
        "    try:\n"
        "        with only_process(root / 'lock'):\n"
        "            (root / 'inside').mkdir()\n"  # fails if another is inside
        "            (root / 'inside').rmdir()\n"
        "            entered += 1\n"
        "    except ToolError:\n"
        "        pass\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in processes] == [b""] * 2
    assert list(tmp_path.iterdir()) == []
