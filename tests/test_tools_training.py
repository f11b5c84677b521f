"""Training: exact continuation after kill -9 and after a full disk, early stop, the time limit, what a run leaves."""

import csv
import math
import random
import time

import pytest
import torch
from safetensors.torch import load_file
from test_tools_checkpoint import full_disk
from tools_runs import SMALL, kill, snapshot, start, torchrnn, write_text

from torchrnn.tools.runs import checkpoint, training
from torchrnn.tools.text.job import TextJob


@pytest.mark.parametrize("model", [["--num-layers=2"], ["--cell=gru", "--clip=0"]], ids=["lstm", "gru"])
def test_a_run_in_three_parts_equals_a_run_at_once(tmp_path, model):
    # dropout draws random numbers at every step, the state goes from chunk to chunk, and 42 chunks are an epoch
    arguments = ["text", write_text(tmp_path), *SMALL, "--dropout=0.5", "--validate-every=10", *model]
    assert torchrnn(*arguments, "--steps=90", "--run", tmp_path / "once").exit_code == 0
    parts = tmp_path / "parts"
    assert torchrnn(*arguments, "--steps=30", "--run", parts).exit_code == 0
    torch.manual_seed(12345)  # nothing depends on what this process did before
    assert torchrnn("text", "--resume", "--run", parts, "--steps=60").exit_code == 0
    assert torchrnn("text", "--resume", "--run", parts, "--steps=90").exit_code == 0
    assert snapshot(parts) == snapshot(tmp_path / "once")
    state = checkpoint.load_last(parts)
    once = checkpoint.load_last(tmp_path / "once")
    assert state is not None
    assert once is not None
    for mine, other in zip(state.state["carried"], once.state["carried"], strict=True):
        assert torch.equal(mine, other)


def test_another_seed_or_no_carried_state_is_another_run(tmp_path):
    arguments = ["text", write_text(tmp_path), *SMALL, "--steps=10", "--validate-every=10"]
    for name, more in {"a": [], "b": ["--seed=1"], "c": []}.items():
        assert torchrnn(*arguments, *more, "--run", tmp_path / name).exit_code == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "c")
    assert snapshot(tmp_path / "a")["weights"] != snapshot(tmp_path / "b")["weights"]


@pytest.mark.timeout(120)
def test_kill_9_three_times_and_resume_equals_the_uninterrupted_run(tmp_path):
    arguments = [write_text(tmp_path), *SMALL, "--hidden-size=48", "--dropout=0.3", "--patience=0"]
    arguments += ["--validate-every=10", "--epochs=1000", "--steps=500"]
    begun = time.monotonic()
    assert torchrnn("text", *arguments, "--run", tmp_path / "once").exit_code == 0
    longest = (time.monotonic() - begun) / 6  # so that no process comes to the end before it is killed
    run, moments, reached = tmp_path / "killed", [], []
    for _ in range(3):
        before = checkpoint.found(run)
        process = start("text", *([] if before else arguments), "--run", run, *(["--resume"] if before else []))
        while checkpoint.found(run) == before and process.poll() is None:
            time.sleep(0.01)
        moments.append(random.uniform(0, longest))
        time.sleep(moments[-1])
        code, output = kill(process)
        assert code == -9, f"the run ended before it could be killed, {moments} s after a checkpoint:\n{output}"
        reached.append(checkpoint.found(run)[-1].name)
    assert len(set(reached)) == 3
    result = torchrnn("text", "--resume", "--run", run)
    assert result.exit_code == 0, result.stderr
    assert snapshot(run) == snapshot(tmp_path / "once"), f"killed {moments} s after a checkpoint, at {reached}"


def test_killed_before_the_first_checkpoint(tmp_path):
    arguments = ["text", write_text(tmp_path), *SMALL, "--steps=20", "--validate-every=10"]
    assert torchrnn(*arguments, "--run", tmp_path / "once").exit_code == 0
    assert torchrnn(*arguments, "--run", tmp_path / "killed").exit_code == 0
    for path in (tmp_path / "killed").iterdir():
        if path.name.startswith("checkpoint"):
            path.rename(tmp_path / path.name)
    assert torchrnn("text", "--resume", "--run", tmp_path / "killed").exit_code == 0
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "once")


def test_killed_between_the_checkpoint_and_what_is_derived_from_it(tmp_path):
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=10", "--run", tmp_path / "run"]
    assert torchrnn(*arguments, "--steps=20").exit_code == 0
    whole = snapshot(tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_text("step\n")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert torchrnn("text", "--resume", "--run", tmp_path / "run").exit_code == 0
    assert snapshot(tmp_path / "run") == whole


# two flushes a file, five a checkpoint: config.toml 1-2, first checkpoint 3-7, model and metrics to 11, all of these
# brought to their place 12-13, second checkpoint 14-18
@pytest.mark.parametrize("at", [4, 9, 12, 13, 16, 19])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, at):
    run = tmp_path / "run"
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=10", "--steps=20", "--run"]
    with monkeypatch.context() as patch:
        full_disk(patch, at)
        result = torchrnn(*arguments, run)
    assert result.exit_code == 1
    assert "error: The disk is full" in result.stderr
    if at < 12:
        assert "Then give the command again: nothing was saved yet." in result.stderr
        assert not run.exists()
        assert torchrnn(*arguments, run).exit_code == 0
    else:
        assert f"Then go on with: torchrnn text --resume --run {run}" in result.stderr
        assert not list(run.glob("*.partial"))
        assert torchrnn("text", "--resume", "--run", run).exit_code == 0
    assert torchrnn(*arguments, tmp_path / "once").exit_code == 0
    assert snapshot(run) == snapshot(tmp_path / "once")


def test_early_stop_keeps_the_best(tmp_path):
    run = tmp_path / "run"
    arguments = [*SMALL, "--lr=0.5", "--clip=0", "--validate-every=5", "--patience=3", "--epochs=50"]
    result = torchrnn("text", write_text(tmp_path), *arguments, "--run", run)
    assert result.exit_code == 0
    assert "no better one since, for 3 validations" in result.stdout
    with (run / "metrics.csv").open() as file:
        bits = [float(row["validation_bpc"]) for row in csv.DictReader(file)]
    assert min(bits) == bits[-4]
    assert f"{bits[-4]:.3f} bits per character" in result.stdout
    best = load_file(run / "model.safetensors")
    last = load_file(checkpoint.found(run)[-1] / "weights.safetensors")
    assert not torch.equal(best["head.weight"], last["head.weight"])
    before = snapshot(run)
    assert torchrnn("text", "--resume", "--run", run).exit_code == 0  # nothing left to do
    assert snapshot(run) == before
    assert torchrnn("text", "--resume", "--run", run, "--patience=4").exit_code == 0
    assert len((run / "metrics.csv").read_text().splitlines()) > len(bits) + 1


def test_the_time_limit_validates_and_saves(tmp_path):
    run = tmp_path / "run"
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=100000", "--epochs=100000"]
    begun = time.monotonic()
    result = torchrnn(*arguments, "--time-limit=1.5s", "--run", run)
    assert time.monotonic() - begun < 10
    assert result.exit_code == 0
    assert "the time limit ended it; go on with: torchrnn text --resume" in result.stdout
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    assert checkpoint.found(run)[-1].name == f"checkpoint-{int(rows[1].split(',')[0]):08d}"


def test_a_diverged_run_says_so_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=5"]
    assert torchrnn(*arguments, "--steps=5", "--run", run).exit_code == 0
    before = snapshot(run)
    monkeypatch.setattr(TextJob, "measured", lambda self, sums: {"bpc": float("nan"), "nats": 1.0})
    result = torchrnn("text", "--resume", "--run", run, "--steps=10")
    assert result.exit_code == 1
    assert "no longer a finite number at step 10" in result.stderr
    assert snapshot(run) == before


def test_what_a_run_leaves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    path = write_text(tmp_path)
    result = torchrnn("text", path, *SMALL, "--steps=15", "--validate-every=5", "--run", run)
    assert {entry.name for entry in run.iterdir()} == {
        *("config.toml", "model.safetensors", "metrics.csv", "loss.png", "tensorboard"),
        *("checkpoint-00000010", "checkpoint-00000015"),
    }
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert result.stdout.splitlines()[1:] == [f"model:      {run}/model.safetensors", f"loss curve: {run}/loss.png"]
    assert len(result.stderr.splitlines()) == 5  # the text, the model, three validations: no bar, no tips, no warnings
    torchrnn("text", "--resume", "--run", run, "--steps=20")
    logs = EventAccumulator(str(run / "tensorboard"))
    logs.Reload()
    assert [event.step for event in logs.Scalars("bits_per_character/validation")] == [5, 10, 15, 20]


def test_the_model_learns(tmp_path):
    result = torchrnn("text", write_text(tmp_path, 6000), *SMALL, "--hidden-size=32", "--lr=0.02", "--epochs=8",
                      "--run", tmp_path / "run")  # fmt: skip
    bits = float(result.stdout.split("validation: ")[1].split()[0])
    # 14 words at random are log2(14) bits a word of 5.1 characters and a space; characters alone are above 4 bits
    assert bits < 1.6


def test_the_learning_rate_falls_to_zero_at_the_last_step(tmp_path, monkeypatch):
    seen = []
    hook = training.Training.on_train_batch_start

    def watched(self, batch, batch_idx):
        hook(self, batch, batch_idx)
        seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    monkeypatch.setattr(training.Training, "on_train_batch_start", watched)
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=5", "--lr=0.01", "--lr-decay=cosine"]
    assert torchrnn(*arguments, "--steps=20", "--run", tmp_path / "once").exit_code == 0
    assert seen == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 20)) for step in range(20)], rel=1e-12)
    folder = tmp_path / "once"
    for path in checkpoint.found(folder)[-1].iterdir():  # as killed before the last checkpoint
        path.unlink()
    checkpoint.found(folder)[-1].rmdir()
    assert torchrnn("text", "--resume", "--run", folder).exit_code == 0
    assert torchrnn(*arguments, "--steps=20", "--run", tmp_path / "again").exit_code == 0
    assert snapshot(folder) == snapshot(tmp_path / "again")
