"""The command line: help, versions, and a paragraph for every mistake."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from tools_runs import SMALL, snapshot, torchrnn, write_text

from torchrnn.tools.commands import common
from torchrnn.tools.runs import training
from torchrnn.tools.runs.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    path = write_text(folder)
    run = folder / "run"
    assert torchrnn("text", path, *SMALL, "--steps=10", "--validate-every=5", "--run", run).exit_code == 0
    return run


def refused(code, *arguments):
    """The one paragraph that these arguments are refused with."""
    result = torchrnn(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (paragraph,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return paragraph


def test_help_and_version():
    assert "sample" in torchrnn("--help").stdout
    assert "--time-limit" in torchrnn("text", "--help").stdout
    assert "--temperature" in torchrnn("sample", "--help").stdout
    assert torchrnn("--version").stdout.startswith("torchrnn 0.")


def test_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, torchrnn; before = set(sys.modules); import torchrnn.tools.commands;"
        "print({name.partition('.')[0] for name in set(sys.modules) - before} & "
        "{'lightning', 'matplotlib', 'tensorboard', 'safetensors', 'numpy'})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("missing", ["typer", "lightning"])
def test_without_the_extra_it_says_what_to_install(tmp_path, missing):
    code = f"import sys; sys.modules['{missing}'] = None; from torchrnn.tools.cli import main; main()"
    command = [sys.executable, "-c", code, "text", write_text(tmp_path), *SMALL, "--run", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        f"torchrnn's command line needs the package {missing}, which is not installed. Install what it needs: "
        f"pip install 'torchrnn[tools]'\n"
    )


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("2m", 120), ("1.5h", 5400), (" 7 s", 7)])
def test_times(text, expected):
    assert common.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-5", "soon", "5d", "nan", "1e3"])
def test_no_times(text):
    with pytest.raises(UsageError, match="--time-limit must be a time above 0 such as 90"):
        common.seconds(text)


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path):
    path, run = write_text(tmp_path), tmp_path / "run"
    for arguments, message in [
        (["--lr=nan"], "--lr must be a number above 0 and at most 1000, got nan"),
        (["--threads=100000"], f"--threads must be at most {4 * (os.cpu_count() or 1)} here"),
        (["--cell=lstn"], "--cell must be one of lstm, gru, rnn, got lstn"),
        (["--time-limit=soon"], "--time-limit must be a time"),
        (["--batch-size=500"], "The text is too short: 2,700 characters to train on, where 500 streams of 64"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--resume"], "is not a run folder: it has no config.toml"),
    ]:
        assert message in refused(2, "text", path, "--run", run, *arguments)
    assert "No such file" in refused(2, "text", tmp_path / "nothing.txt", "--run", run)
    assert not run.exists()


def test_a_device_that_is_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refused(2, "text", write_text(tmp_path), "--run", tmp_path / "run", "--device=cuda")
    assert "--device cuda: torch finds none here, only" in message


def test_an_unwritable_folder_is_refused(tmp_path):
    path = write_text(tmp_path)
    assert "must be a folder, and it is a file" in refused(2, "text", path, "--run", path)
    message = refused(2, "text", path, *SMALL, "--run", path / "run")
    assert "cannot be used: Not a directory" in message
    if os.name == "posix" and os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        message = refused(2, "text", path, *SMALL, "--run", tmp_path / "locked" / "run")
        assert "cannot be used: Permission denied" in message


def test_an_earlier_run_is_not_replaced_by_accident(tmp_path, trained):
    path, before = write_text(tmp_path), snapshot(trained)
    assert "already holds a run. Go on with it: --resume" in refused(2, "text", path, "--run", trained)
    # all is checked before it is cleared away
    assert "No such file" in refused(2, "text", tmp_path / "nothing", "--run", trained, "--overwrite")
    assert "too short" in refused(2, "text", path, "--batch-size=900", "--run", trained, "--overwrite")
    assert snapshot(trained) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("do not lose me")
    assert "not a run folder and not empty" in refused(2, "text", path, "--run", tmp_path / "thesis", "--overwrite")
    assert (tmp_path / "thesis" / "chapter1").exists()


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path):
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=5", "--run", tmp_path / "run"]
    assert torchrnn(*arguments, "--steps=10").exit_code == 0
    (tmp_path / "run" / "notes").write_text("mine")
    (tmp_path / "run" / "checkpoint-00000099.partial").mkdir()
    assert torchrnn(*arguments, "--steps=5", "--overwrite").exit_code == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {name for name in names if name.startswith("checkpoint")} == {"checkpoint-00000005"}
    assert "notes" in names


def test_resume_with_other_settings_or_another_text_is_refused(tmp_path, trained):
    before = snapshot(trained)
    message = refused(2, "text", "--resume", "--run", trained, "--hidden-size=16")
    assert "--hidden-size is 8, got 16" in message
    assert "Only --device, --devices, --epochs, --patience, --steps, --threads and --time-limit" in message
    other = tmp_path / "other.txt"
    other.write_text("something else " * 200)
    assert f"this is another: {other} has changed" in refused(2, "text", other, "--resume", "--run", trained)
    assert snapshot(trained) == before
    # what is the same may be said again
    assert torchrnn("text", "--resume", "--run", trained, "--hidden-size=8").exit_code == 0
    config = (trained / "config.toml").read_text()
    assert "resumed = [" in config


def test_a_run_from_a_machine_with_more_cores(tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("threads = 1", "threads = 5000"))
    assert torchrnn("sample", tmp_path / "run", "--length=5").exit_code == 0
    assert "here (4 times " in refused(2, "text", "--resume", "--run", tmp_path / "run")
    assert torchrnn("text", "--resume", "--run", tmp_path / "run", "--threads=1").exit_code == 0


def test_a_damaged_checkpoint_is_explained(tmp_path):
    run = tmp_path / "run"
    arguments = ["text", write_text(tmp_path), *SMALL, "--validate-every=5", "--run", run]
    assert torchrnn(*arguments, "--steps=10").exit_code == 0
    whole, model = snapshot(run), (run / "model.safetensors").read_bytes()
    state = run / "checkpoint-00000010" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    message = refused(1, "text", "--resume", "--run", run)
    assert "checkpoint-00000010 is damaged" in message
    assert "delete that folder to go on from checkpoint-00000005" in message
    assert (run / "model.safetensors").read_bytes() == model
    for path in state.parent.iterdir():
        path.unlink()
    state.parent.rmdir()
    assert torchrnn("text", "--resume", "--run", run).exit_code == 0  # as it said
    assert snapshot(run) == whole


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    run = tmp_path / "run"
    step = training.Training.training_step

    def interrupted(self, batch, batch_idx):
        if self.record.step == 7:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(training.Training, "training_step", interrupted)
    try:
        message = refused(130, "text", write_text(tmp_path), *SMALL, "--validate-every=5", "--run", run)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert f"go on with: torchrnn text --resume --run {run}" in message
    assert (run / "loss.png").exists()


def test_evaluate_measures_another_text_as_the_validation_text(tmp_path, trained):
    from torchrnn.tools.text.corpus import split

    _, validation = split((trained.parent / "text.txt").read_text(), 0.1)
    (tmp_path / "validation.txt").write_text(validation)
    before = snapshot(trained)
    result = torchrnn("evaluate", trained, tmp_path / "validation.txt")
    assert result.exit_code == 0, result.stderr
    rows = [line.split(",") for line in (trained / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("validation_nats")
    assert f"{min(float(row[column]) for row in rows[1:]):.4f} nats per character" in result.stdout
    assert "perplexity" in result.stdout
    assert snapshot(trained) == before
    (tmp_path / "one").write_text("x")
    assert "at least 2 are needed" in refused(2, "evaluate", trained, tmp_path / "one")
    assert "is not a run folder" in refused(2, "evaluate", tmp_path, tmp_path / "one")
    assert "No such file" in refused(2, "evaluate", trained, tmp_path / "none")


def test_a_run_of_another_job_is_named(tmp_path, trained, monkeypatch):
    from torchrnn.tools.runs import job
    from torchrnn.tools.text.job import TextJob

    class OtherJob(TextJob):
        name = "other"

    monkeypatch.setitem(job.JOBS, "other", "torchrnn.tools.text.job:OtherJob")
    monkeypatch.setattr("torchrnn.tools.text.job.OtherJob", OtherJob, raising=False)
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace('job = "text"', 'job = "other"'))
    message = refused(2, "text", "--resume", "--run", tmp_path / "run")
    assert "holds a run of `torchrnn other`. Go on with it: torchrnn other --resume --run" in message
    assert "which writes no text" in refused(2, "sample", tmp_path / "run")


def test_the_name_till_now_is_an_alias_that_help_does_not_show(tmp_path):
    assert "train " not in torchrnn("--help").stdout.replace("Train ", "")
    assert "--sequence-length" in torchrnn("train", "--help").stdout
