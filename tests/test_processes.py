"""Several processes train one run: the same numbers as one, exact continuation, and a word when one is killed."""

import csv
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tools_runs import SMALL, kill, snapshot, start, torchrnn, write_text

from torchrnn.tools.runs import checkpoint, run, together, workers
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.job import Share
from torchrnn.tools.runs.run import Request
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.training import Training
from torchrnn.tools.text.corpus import prepare
from torchrnn.tools.text.job import TextJob
from torchrnn.tools.text.settings import TextSettings

ON_LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the test finds the processes in /proc")
ENDLESS = ["--epochs=100000", "--patience=0", "--validate-every=20"]


def finished(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def figures(run):
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def children(process):
    """The numbers of a process's children, in the order of their beginning."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        if parent == process.pid:
            found.append(int(path.parent.name))
    return sorted(found)


def wait_for_checkpoint(run, process):
    while not checkpoint.found(run):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_two_processes_train_as_one_and_one_goes_on_with_their_run(tmp_path):
    # 5 rows are 3 and 2, so that a mean of two means would be another gradient
    arguments = ["text", write_text(tmp_path), *SMALL, "--batch-size=5", "--dropout=0", "--validate-every=10"]
    assert torchrnn(*arguments, "--steps=30", "--run", tmp_path / "one").exit_code == 0
    two = tmp_path / "two"
    output = finished(start(*arguments, "--steps=20", "--devices=2", "--run", two))
    assert output.count("validation: ") == 1  # one of them speaks
    assert output.count("step     10") == 1
    assert "2 processes" in output
    assert torchrnn("text", "--resume", "--devices=1", "--steps=30", "--run", two).exit_code == 0
    for mine, other in zip(figures(two), figures(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    last = checkpoint.load_last(two)
    assert last is not None
    assert last.state["carried"][0].shape == (1, 5, 8)  # of all rows


def test_two_processes_go_on_bit_for_bit(tmp_path):
    arguments = ["text", write_text(tmp_path), *SMALL, "--dropout=0.5", "--validate-every=5", "--devices=2"]
    finished(start(*arguments, "--steps=10", "--run", tmp_path / "once"))
    shutil.copytree(tmp_path / "once", tmp_path / "again")
    shutil.rmtree(checkpoint.found(tmp_path / "again")[-1])  # as killed between the checkpoints
    finished(start("text", "--resume", "--run", tmp_path / "again"))
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "once")
    assert snapshot(tmp_path / "once")["checkpoint"] == "checkpoint-00000010"


def test_a_process_without_rows_takes_no_part_in_a_gradient(tmp_path, monkeypatch):
    job = TextJob(prepare("abcabdabe" * 30, 0.2, 2, 10), TextSettings(), "")
    training = Training(job.build(job.settings, {"sha256": "", "characters": "abcde"}), job, RunFolder(tmp_path))
    training.on_train_epoch_start()
    monkeypatch.setattr(together, "added", lambda tensor, share: tensor + torch.tensor([20.0, 0.0]))  # the others'
    loss = training.training_step((3, None), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in training.model.parameters())
    assert training.units == 0


@ON_LINUX
def test_a_killed_worker_ends_the_run_with_a_message_and_resume_continues(tmp_path):
    run = tmp_path / "run"
    process = start("text", write_text(tmp_path), *SMALL, *ENDLESS, "--devices=2", "--run", run)
    try:
        wait_for_checkpoint(run, process)
        _, second = children(process)
        os.kill(second, 9)
        output, _ = process.communicate(timeout=60)
    finally:
        kill(process)
    assert process.returncode == 1
    assert f"error: Process 1 of the 2 that trained {run} was ended by SIGKILL, by someone or by the system" in output
    assert f"The last checkpoint is whole; go on with: torchrnn text --resume --run {run}" in output
    assert "Traceback" not in output
    assert not (run / ".torchrnn.lock").exists()
    step = int(checkpoint.found(run)[-1].name[-8:])
    result = torchrnn("text", "--resume", "--devices=1", f"--steps={step + 1}", "--run", run)
    assert result.exit_code == 0
    assert f"going on after step {step:,}" in result.stderr


@ON_LINUX
def test_torchrun_and_a_killed_first_process(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "torchrnn.tools.cli"]
    command += ["text", write_text(tmp_path), *SMALL, *ENDLESS, "--run-folder", run]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )
    try:
        wait_for_checkpoint(run, process)
        os.kill(children(process)[0], 9)
        output, _ = process.communicate(timeout=60)
    finally:
        kill(process)
    assert process.returncode == 1
    assert "error: Process 0 (process number " in output
    assert f"The last checkpoint is whole; go on with: torchrnn text --resume --run {run}" in output
    assert "torchrnn/tools" not in output.replace("torchrnn/tools/cli.py FAILED", "")  # no traceback of ours
    assert not (run / ".torchrnn.lock").exists()
    assert torchrnn("text", "--resume", "--devices=1", "--steps=1", "--run", run).exit_code == 0


@ON_LINUX
def test_the_workers_end_with_who_started_them(tmp_path):
    run = tmp_path / "run"
    process = start("text", write_text(tmp_path), *SMALL, *ENDLESS, "--devices=2", "--run", run)
    wait_for_checkpoint(run, process)
    numbers = children(process)
    process.kill()
    output, _ = process.communicate(timeout=60)  # they hold the pipe open until they end
    assert f"Stopped. The last checkpoint is whole; go on with: torchrnn text --resume --run {run}" in output
    assert "Traceback" not in output
    assert not any(map(together._lives, numbers))
    assert checkpoint.load_last(run) is not None


def test_a_mistake_is_told_once(tmp_path):
    process = start("text", tmp_path / "nothing", "--devices=2", "--run", tmp_path / "run")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.count("error: ") == 1
    assert "No such file" in output
    assert not (tmp_path / "run").exists()


def test_what_is_said_when_nothing_was_saved(tmp_path, monkeypatch):
    before = workers.checkpoints(tmp_path)
    assert workers.how_to_go_on(tmp_path, before, "X") == "Nothing was saved yet: give the command again."
    checkpoint.save(tmp_path, 3, b"weights", {})
    assert workers.how_to_go_on(tmp_path, before, "X") == "The last checkpoint is whole; go on with: X"
    before = workers.checkpoints(tmp_path)
    assert "and the earlier run is as it was" in workers.how_to_go_on(tmp_path, before, "X")
    monkeypatch.setattr(sys, "argv", ["torchrnn", "text", "--resume"])
    assert workers.how_to_go_on(tmp_path, before, "X") == "The last checkpoint is whole; go on with: X"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_shares_are_all_rows_once_and_nearly_alike(count):
    for world in (1, 2, 3, 8):
        rows = [list(range(count))[Share(rank, world).rows(count)] for rank in range(world)]
        assert [row for part in rows for row in part] == list(range(count))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        assert len(rows[0]) == math.ceil(count / world)


def test_own_rows_are_copies_of_the_share():
    state = (torch.arange(10.0).view(1, 5, 2), torch.zeros(2, 5, 3))
    first, second = (together.own_rows(state, Share(rank, 2)) for rank in (0, 1))
    assert [part.shape[1] for part in (*first, *second)] == [3, 3, 2, 2]
    assert torch.equal(torch.cat([first[0], second[0]], 1), state[0])
    assert together.own_rows(None, Share(0, 2)) is None


def test_devices_and_the_processes_there_are(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    result = torchrnn("text", write_text(tmp_path), *SMALL, "--devices=3", "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert "--devices is 3, and 2 processes were started: leave it out" in result.stderr


def test_more_processes_than_devices(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(together, "on_this_machine", lambda: 2)
    request = Request(TextJob, [], tmp_path, False, False, None, {}, "")
    with pytest.raises(UsageError, match="--devices is 2, and there are 1 of the device cuda here"):
        run._fitted(TextSettings(device="cuda"), request, Share(0, 2))
    assert run._fitted(TextSettings(device="cpu", threads=1), request, Share(0, 2)).devices == 2
