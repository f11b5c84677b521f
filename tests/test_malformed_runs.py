"""Damaged run folders: what opens them says so, runs nothing that lies in them, and leaves them as they are."""

import hashlib
import io
import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from malformed import CLASSIFY, FORECAST, LISTS, TEXT, copied, refused, trained, tree
from tools_runs import torchrnn

from torchrnn.tools.text.job import TextJob

BYTES = bytes(range(256)) * 8


class Trap:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def used(name, run, path):
    """The command that reads a run's model, and the one that goes on with it."""
    use = ["sample", run, "--length=3"] if name in ("text", "bpe") else ["predict", run, path]
    job = {"bpe": TEXT, "text": TEXT, "classify": CLASSIFY, "lists": LISTS, "forecast": FORECAST}[name][0]
    return use, [job, "--resume", "--run", run]


def edited(old, new):
    def edit(data):
        assert old in data
        return data.replace(old, new, 1)

    return edit


def line(name, value):
    """config.toml with another value of `name`."""

    def edit(data):
        rows = data.split(b"\n")
        (place,) = [number for number, row in enumerate(rows) if row.startswith(f"{name} = ".encode())]
        rows[place] = f"{name} = {value}".encode()
        return b"\n".join(rows)

    return edit


DAMAGED = "damaged or was changed by hand"
# of which run, what becomes of config.toml, and what is said
CONFIGS = {
    "cut": ("text", lambda data: data[: len(data) // 2], DAMAGED),
    "empty": ("text", lambda _: b"", DAMAGED),
    "binary": ("text", lambda _: BYTES, DAMAGED),
    "JSON": ("text", lambda _: b'{"job": "text"}', DAMAGED),
    "deep": ("text", lambda data: b"command = " + b"[" * 99_999 + b"\n" + data, DAMAGED),
    "another type": ("text", line("hidden_size", '"4"'), DAMAGED, "hidden_size must be int"),
    "a number for a size": ("text", line("hidden_size", "4.5"), DAMAGED, "hidden_size must be int"),
    "below zero": ("text", line("num_layers", "-1"), DAMAGED, "--num-layers must be at least 1"),
    "an unknown key": ("text", edited(b"[settings]", b"[settings]\ncolour = 3"), DAMAGED, "colour"),
    "an unknown table": ("text", edited(b"[settings]", b"[more]\na = 3\n\n[settings]"), DAMAGED, "more"),
    "no name of a value": ("classify", edited(b"[data]", b'[data]\na name = "b"'), DAMAGED, "'a name' is no name"),
    "an unknown job": ("text", line("job", '"dance"'), DAMAGED, "job must be one of", "'dance'"),
    "a job that is a list": ("text", line("job", "[1]"), DAMAGED),
    "no settings": ("text", lambda data: data.split(b"[settings]")[0], DAMAGED),
    "settings that are a list": ("text", lambda data: b"settings = [1]\n" + data.split(b"[settings]")[0], DAMAGED),
    "a file of a number": ("text", line("files", "[3]"), DAMAGED),
    "resumed that is a number": ("text", line("resumed", "3"), DAMAGED),
    "versions that are a list": ("text", line("versions", "[]"), DAMAGED),
    "no characters": ("text", line("characters", '""'), DAMAGED),
    "characters out of order": ("text", line("characters", '"cba"'), DAMAGED),
    "characters that are a list": ("text", line("characters", '["a"]'), DAMAGED),
    "other characters": ("text", line("characters", '"abc"'), "model.safetensors", "weights of this model"),
    "another size": ("text", line("hidden_size", "5"), "model.safetensors", "weights of this model"),
    "a size beyond memory": ("text", line("hidden_size", "2000000000"), "model.safetensors"),
    "layers without end": ("text", line("num_layers", "2000000000"), "model.safetensors"),
    "another kind of token": ("text", line("tokens", '"bytes"'), "model.safetensors", "weights of this model"),
    "pieces without their file": ("text", line("tokens", '"bpe"'), "tokenizer.json"),
    "a path out of the folder": ("bpe", line("kept", '["../tokenizer.json"]'), "../tokenizer.json"),
    "a path from the root": ("bpe", line("kept", '["/etc/passwd"]'), "/etc/passwd"),
    "another sum": ("bpe", line("kept_sha256", f'["{"0" * 64}"]'), "tokenizer.json", "damaged"),
    "no sums": ("bpe", line("kept_sha256", "[]"), DAMAGED),
    "a name that is a number": ("bpe", line("kept", "[3]"), "3", "damaged"),
    "labels that are text": ("classify", line("labels", '"pq"'), "lists of strings"),
    "more labels": ("classify", line("labels", '["p", "q", "r"]'), "model.safetensors", "weights of this model"),
    "a vocabulary of words": ("classify", line("vocabulary", '["ab", "b"]'), "config.toml", "damaged"),
    "the same label twice": ("classify", line("labels", '["p", "p"]'), "config.toml", "damaged"),
    "a mean that is text": ("lists", line("mean", '["a", "b"]'), "config.toml", "damaged"),
    "a mean of one column": ("lists", line("mean", "[1.0]"), "config.toml", "damaged"),
    "a deviation of zero": ("lists", line("deviation", "[0.0, 1.0]"), "config.toml", "damaged"),
    "a mean that is NaN": ("lists", line("mean", "[NaN, 1.0]"), "config.toml", "damaged"),
    "a step that is none": ("forecast", line("step", '["fortnight"]'), "config.toml", "step"),
    "a step of zero": ("forecast", line("step", '["microseconds", 0, false]'), "config.toml"),
    "a scale of another size": ("forecast", line("center", "[[1.0, 2.0]]"), "config.toml"),
    "a spread of zero": ("forecast", line("spread", "[[0.0]]"), "config.toml"),
    "a spread that is NaN": ("forecast", line("spread", "[[NaN]]"), "config.toml"),
    "a border that is text": ("forecast", line("split", '["a", 2, 3]'), "config.toml"),
    "two borders": ("forecast", line("split", "[1, 2]"), "config.toml"),
    "other columns": ("forecast", line("columns", '["x"]'), "config.toml"),
    "a horizon of another run": ("forecast", line("horizon", "3"), "damaged"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config(tmp_path, tmp_path_factory, name):
    kind, edit, *says = CONFIGS[name]
    runs, files = trained(tmp_path_factory)
    run = copied(runs[kind], tmp_path)
    config = run / "config.toml"
    config.write_bytes(edit(config.read_bytes()))
    use, resume = used(kind, run, files[kind])
    refused(use, says, run)
    refused(resume, [] if "model.safetensors" in says else says, run)


def tensors(change):
    """model.safetensors with changed tensors."""

    def edit(data):
        return safetensors.torch.save(change(safetensors.torch.load(data)))

    return edit


def first(value):
    def change(weights):
        name = sorted(weights)[0]
        return weights | {name: torch.full_like(weights[name], value)}

    return change


def pickled(path):
    """What torch.save writes, with a trap in it."""
    out = io.BytesIO()
    torch.save({"record": Trap(path)}, out)
    return out.getvalue()


NOT_WEIGHTS = "does not hold the weights of this model"
WEIGHTS = {
    "cut": (lambda data: data[: len(data) // 2], NOT_WEIGHTS),
    "empty": (lambda _: b"", NOT_WEIGHTS),
    "binary": (lambda _: BYTES, NOT_WEIGHTS),
    "a huge header": (lambda data: struct.pack("<Q", 2**62) + data[8:], NOT_WEIGHTS),
    "a header of zeros": (lambda data: bytes(len(data)), NOT_WEIGHTS),
    "fewer tensors": (tensors(lambda weights: dict(sorted(weights.items())[1:])), NOT_WEIGHTS),
    "other shapes": (
        tensors(lambda weights: {name: value[..., :1].contiguous() for name, value in weights.items()}),
        NOT_WEIGHTS,
    ),
    "NaN": (tensors(first(float("nan"))), NOT_WEIGHTS, "no finite numbers"),
    "infinity": (tensors(first(float("inf"))), NOT_WEIGHTS, "no finite numbers"),
}


@pytest.mark.parametrize("kind", ["text", "classify", "forecast"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(tmp_path, tmp_path_factory, name, kind):
    edit, *says = WEIGHTS[name]
    runs, files = trained(tmp_path_factory)
    run = copied(runs[kind], tmp_path)
    path = run / "model.safetensors"
    path.write_bytes(edit(path.read_bytes()))
    refused(used(kind, run, files[kind])[0], [path.name, *says], run)
    refused(["evaluate", run, files[kind]], [path.name, *says], run)
    if name == "NaN" and kind == "forecast":
        path.write_bytes((runs[kind] / path.name).read_bytes())
        path = run / "linear.safetensors"
        sum_before = hashlib.sha256(path.read_bytes()).hexdigest().encode()
        path.write_bytes(edit(path.read_bytes()))
        refused(used(kind, run, files[kind])[0], [path.name, "damaged"], run)
        config = run / "config.toml"  # the sum is made to fit
        config.write_bytes(
            config.read_bytes().replace(sum_before, hashlib.sha256(path.read_bytes()).hexdigest().encode())
        )
        refused(used(kind, run, files[kind])[0], [path.name, "no finite numbers"], run)


def test_a_pickle_in_the_place_of_weights_runs_nothing(tmp_path, tmp_path_factory):
    runs, files = trained(tmp_path_factory)
    run, trap = copied(runs["text"], tmp_path), tmp_path / "sprung"
    for data in (pickle.dumps(Trap(trap)), pickled(trap)):
        (run / "model.safetensors").write_bytes(data)
        refused(used("text", run, files["text"])[0], ["model.safetensors", NOT_WEIGHTS], run)
        assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))  # it is a trap
    assert trap.exists()


def last(run):
    return max(run.glob("checkpoint-*"))


def signed(run):
    """Make the manifest fit what the files hold now: not damaged, but made by somebody."""
    folder = last(run)
    names = ("weights.safetensors", "state.pt")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({"step": 2, "sha256": sums}))


def state(change):
    """state.pt with another content."""

    def edit(data):
        out = io.BytesIO()
        torch.save(change(torch.load(io.BytesIO(data), weights_only=True)), out)
        return out.getvalue()

    return edit


def without(name):
    return state(lambda content: {key: value for key, value in content.items() if key != name})


def with_record(**values):
    return state(lambda content: content | {"record": content["record"] | values})


BROKEN, OTHER = "is damaged", "was not written by this version"
# a file of the last checkpoint, what becomes of it, whether the manifest is made to fit, what is said
CHECKPOINTS = {
    "state cut": ("state.pt", lambda data: data[:-9], False, BROKEN, "state.pt"),
    "state cut and signed": ("state.pt", lambda data: data[:-9], True, BROKEN, "state.pt"),
    "state empty and signed": ("state.pt", lambda _: b"", True, BROKEN),
    "state binary and signed": ("state.pt", lambda _: BYTES, True, BROKEN),
    "state a list": ("state.pt", state(lambda _: [1]), True, BROKEN),
    "state without a record": ("state.pt", without("record"), True, OTHER, "record"),
    "state without random numbers": ("state.pt", without("random"), True, OTHER, "random"),
    "random numbers of another kind": ("state.pt", state(lambda content: content | {"random": [3]}), True, OTHER),
    "few random numbers": (
        "state.pt",
        state(lambda content: content | {"random": [{"cpu": torch.zeros(3, dtype=torch.uint8)}]}),
        True,
        OTHER,
    ),
    "a record of text": ("state.pt", with_record(step="2"), True, OTHER),
    "a record with more": ("state.pt", with_record(colour=2), True, OTHER, "colour"),
    "a record without rows": ("state.pt", with_record(rows=[]), True, OTHER),
    "a record of other figures": ("state.pt", with_record(rows=[{"step": 1.0}]), True, OTHER),
    "an optimiser of another model": ("state.pt", state(lambda content: content | {"optimizer": {}}), True, OTHER),
    "weights cut": ("weights.safetensors", lambda data: data[:-9], False, BROKEN, "weights.safetensors"),
    "weights cut and signed": ("weights.safetensors", lambda data: data[:-9], True, NOT_WEIGHTS),
    "weights NaN and signed": ("weights.safetensors", tensors(first(float("nan"))), True, "no finite numbers"),
    "manifest cut": ("manifest.json", lambda data: data[:20], False, BROKEN),
    "manifest empty": ("manifest.json", lambda _: b"", False, BROKEN),
    "manifest binary": ("manifest.json", lambda _: BYTES, False, BROKEN),
    "manifest a list": ("manifest.json", lambda _: b"[1, 2]", False, BROKEN),
    "manifest deep": ("manifest.json", lambda _: b"[" * 99_999, False, BROKEN),
    "manifest of other files": ("manifest.json", lambda _: b'{"sha256": {"x": "y"}}', False, BROKEN),
    "manifest of another sum": ("manifest.json", lambda data: data.replace(b"0", b"1"), False, BROKEN),
    "manifest gone": ("manifest.json", None, False, BROKEN, "No such file"),
    "weights gone": ("weights.safetensors", None, False, BROKEN, "No such file"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(tmp_path, tmp_path_factory, name):
    file, edit, fits, *says = CHECKPOINTS[name]
    runs, files = trained(tmp_path_factory)
    run = copied(runs["text"], tmp_path)
    path = last(run) / file
    data = path.read_bytes()
    path.unlink()
    if edit:
        path.write_bytes(edit(data))
    if fits:
        signed(run)
    refused(used("text", run, files["text"])[1], [last(run).name, *says], run)


@pytest.mark.parametrize("fits", [False, True])
def test_a_checkpoint_that_would_run_code_runs_none(tmp_path, tmp_path_factory, fits):
    runs, files = trained(tmp_path_factory)
    run, trap = copied(runs["text"], tmp_path), tmp_path / "sprung"
    for data in (pickle.dumps(Trap(trap)), pickled(trap)):
        (last(run) / "state.pt").write_bytes(data)
        if fits:
            signed(run)
        refused(used("text", run, files["text"])[1], [last(run).name, BROKEN], run)
        assert not trap.exists()


TOKENIZERS = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "binary": lambda _: BYTES,
    "a list": lambda _: b"[]",
    "of another kind": edited(b'"BPE"', b'"WordPiece"'),
    "with another number": edited(b'"a": ', b'"a": 9'),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("fits", [False, True])
def test_tokenizer(tmp_path, tmp_path_factory, name, fits):
    runs, files = trained(tmp_path_factory)
    run = copied(runs["bpe"], tmp_path)
    path, config = run / "tokenizer.json", run / "config.toml"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(TOKENIZERS[name](path.read_bytes()))
    if fits:
        after = hashlib.sha256(path.read_bytes()).hexdigest()
        config.write_text(config.read_text().replace(before, after))
    for arguments in used("bpe", run, files["bpe"]):
        refused(arguments, ["tokenizer.json", "damaged"], run)


def test_a_model_that_memory_does_not_hold(tmp_path_factory, monkeypatch):
    def build(*arguments):
        raise MemoryError

    runs, files = trained(tmp_path_factory)
    monkeypatch.setattr(TextJob, "build", build)
    refused(["sample", runs["text"]], ["Out of memory"], runs["text"])
    refused(["evaluate", runs["text"], files["text"]], ["Out of memory"], runs["text"])


def test_runs_of_another_job(tmp_path, tmp_path_factory):
    runs, files = trained(tmp_path_factory)
    for kind in ("classify", "forecast"):
        refused(["sample", runs[kind]], [str(runs[kind]), f"torchrnn {kind}", "writes no text"], runs[kind])
        refused([*TEXT, "--resume", "--run", runs[kind]], [str(runs[kind]), f"torchrnn {kind} --resume"], runs[kind])
    refused(["predict", runs["text"], files["classify"]], ["torchrnn text", "predicts no rows"], runs["text"])
    refused(["classify", "--resume", "--run", runs["forecast"]], ["torchrnn forecast --resume"], runs["forecast"])
    refused(["predict", runs["classify"], files["forecast"]], ["forecast.csv", "--text 't'"], runs["classify"])
    refused(["predict", runs["forecast"], files["classify"]], ["classify.csv", "--time 'time'"], runs["forecast"])


def test_folders_that_are_no_run(tmp_path, tmp_path_factory):
    runs, files = trained(tmp_path_factory)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "none", tmp_path / "other", tmp_path / "file", tmp_path / ("x" * 300)):
        for arguments in used("text", folder, files["text"]) + used("forecast", folder, files["forecast"]):
            refused(arguments, [str(folder), "is not a run folder"], tmp_path)
    (tmp_path / "other" / "config.toml").mkdir()
    refused(["sample", tmp_path / "other"], ["is not a run folder"], tmp_path)
    # no checkpoint yet, no model yet
    run = copied(runs["text"], tmp_path)
    (run / "model.safetensors").unlink()
    refused(["sample", run], [str(run), "has no model yet", "--resume"], run)
    (run / "model.safetensors").mkdir()
    refused(["sample", run], [str(run), "has no model yet"], run)


@pytest.mark.skipif(os.name != "posix", reason="folders are not closed to anybody by their mode elsewhere")
def test_runs_that_may_not_be_read(tmp_path_factory):
    runs, files = trained(tmp_path_factory)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        text = Path(folder) / "text.txt"
        text.write_bytes(files["text"].read_bytes())
        run = copied(runs["text"], Path(folder))
        commands = [
            ["sample", run],
            ["evaluate", run, text],
            ["text", "--resume", "--run", run],
            [*TEXT, text, "--run", run],
        ]
        for closed in (run / "config.toml", run / "model.safetensors", run):
            mode = closed.stat().st_mode
            closed.chmod(0)
            for arguments in commands[: 2 if closed.name == "model.safetensors" else 3 if closed != run else 4]:
                refused(arguments, [str(closed)], run, nobody=True)
            closed.chmod(mode)


def test_a_damaged_metrics_csv_is_written_anew(tmp_path, tmp_path_factory):
    runs, _ = trained(tmp_path_factory)
    run = copied(runs["text"], tmp_path)
    before = tree(run)
    (run / "metrics.csv").write_bytes(BYTES)
    assert used("text", run, "")[1][0] == "text"
    assert torchrnn(*used("text", run, "")[1]).exit_code == 0
    after = tree(run)
    assert after["metrics.csv"] == before["metrics.csv"]
    assert {name for name in before if after[name] != before[name]} <= {"config.toml", "loss.png"}
