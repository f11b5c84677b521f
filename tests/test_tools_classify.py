"""`torchrnn classify`, `predict` and `evaluate` as a user calls them."""

import csv
import io
import json
import keyword
import subprocess
import sys

import polars as pl
import pytest
import torch
from tools_runs import snapshot, torchrnn

from torchrnn.tools.classify import split
from torchrnn.tools.classify.job import ClassifyJob
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.job import Share

SMALL = ["--hidden-size=12", "--embedding-size=6", "--batch-size=16", "--threads=1", "--lr=0.02"]


def write_words(folder, count=240):
    """Words that end in a vowel or not: what a model of the last letter learns."""
    words = [f"{left}{middle}{end}" for left in "bcdfgh" for middle in "aeiou" for end in "aeioubcdf"]
    path = folder / "words.csv"
    path.write_text("word,kind\n" + "".join(f"{w},{'vowel' if w[-1] in 'aeiou' else 'other'}\n" for w in words[:count]))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, its data, and what was printed."""
    folder = tmp_path_factory.mktemp("run")
    path = write_words(folder)
    result = torchrnn("classify", path, "--text=word", "--label=kind", "--run", folder / "run", "--epochs=8", *SMALL)
    assert result.exit_code == 0, result.stderr
    return folder / "run", path, result


def test_what_is_printed_and_left(run):
    folder, path, result = run
    lines = result.stderr.splitlines()
    assert lines[0] == f"data: {path}: 240 sequences"
    assert (
        lines[1] == "input: column 'word' by characters, 11 different in the training part, none unknown in the others"
    )
    assert lines[2] == "labels: column 'kind', one a sequence, 2 different: vowel 135, other 105"
    assert lines[3] == "lengths: 3 to 3 steps, median 3"
    assert lines[4].startswith("parts: 190 to train on, 25 to validate on, 25 to test on (seed 0, of each label")
    assert lines[5] == f"first: {path}, row 2 (line 3): 'bae' is [2, 1, 5], its label 'vowel' is 1"
    assert "test part: accuracy 1.0000, macro F1 1.0000" in result.stdout
    names = {entry.name for entry in folder.iterdir()}
    assert names >= {"config.toml", "model.safetensors", "metrics.csv", "loss.png", "confusion.png", "confusion.csv"}
    report = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    assert [(row["label"], row["recall"]) for row in report] == [("other", "1.000000"), ("vowel", "1.000000")]
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith("step,epoch,train_loss,validation_loss,train_accuracy,validation_accuracy,train_macro_f1")


def test_predict_writes_what_evaluate_counts(run, tmp_path):
    folder, path, _ = run
    for ending in ("csv", "parquet", "jsonl", "tsv"):
        out = tmp_path / f"out.{ending}"
        result = torchrnn("predict", folder, path, "--out", out, "--top=2")
        assert result.stdout == f"{out}: 240 sequences\n"
    frames = [
        pl.read_csv(tmp_path / "out.csv"),
        pl.read_csv(tmp_path / "out.tsv", separator="\t"),
        pl.read_parquet(tmp_path / "out.parquet"),
        pl.read_ndjson(tmp_path / "out.jsonl"),
    ]
    assert frames[0].columns == ["word", "kind", "predicted", "probability", "predicted_2", "probability_2"]
    for frame in frames:
        assert frame["predicted"].to_list() == frames[0]["predicted"].to_list()
        assert ((frame["probability"] + frame["probability_2"] - 1).abs() < 1e-5).all()
        assert (frame["probability"] >= frame["probability_2"]).all()
    right = (frames[0]["predicted"] == frames[0]["kind"]).mean()
    assert f"data: accuracy {right:.4f}" in torchrnn("evaluate", folder, path).stdout


def test_predict_of_new_rows(run, tmp_path):
    folder = run[0]
    new = tmp_path / "new.csv"
    new.write_text("predicted,word\n1,hea\n2,\n3,fic\n")
    rows = list(csv.DictReader(io.StringIO(torchrnn("predict", folder, new).stdout)))
    assert [row["predicted"] for row in rows] == ["1", "2", "3"]
    assert [row["predicted_"] for row in rows] == ["vowel", "", "other"]
    assert rows[1]["probability"] == ""
    result = torchrnn("predict", folder, new, "--out", tmp_path / "out.jsonl")
    assert "3 sequences (1 empty ones without an answer)" in result.stdout
    last = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[2])
    assert last["predicted_"] == "other"


def test_refusals_of_predict_and_evaluate(run, tmp_path):
    folder, path, _ = run
    out = tmp_path / "there.csv"
    out.write_text("mine")
    other = tmp_path / "other.csv"
    other.write_text("word,kind\nbaa,vowel\nbab,none\n")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("name\nx\n")
    for arguments, expected in (
        (("predict", folder, path, "--out", out), "is there already, and nothing was written"),
        (("predict", folder, path, "--out", tmp_path / "x.xls"), "must end in .csv, .tsv, .parquet or .jsonl"),
        (("predict", folder, path, "--out", tmp_path / "none" / "x.csv"), "there is no folder"),
        (("predict", folder, path, "--top=3"), "--top must be from 1 to the number of labels, 2, got 3"),
        (("predict", folder, wrong), "--text 'word': "),
        (("evaluate", folder, other), "row 2 (line 3), column 'kind': expected one of the model's 2 labels"),
        (("predict", tmp_path, path), "is not a run folder"),
    ):
        result = torchrnn(*arguments)
        assert result.exit_code == 2
        assert expected in result.stderr
    assert out.read_text() == "mine"


def test_a_run_that_stops_goes_on_exactly(tmp_path):
    path = write_words(tmp_path)
    common = ["--text=word", "--label=kind", "--validate-every=10", "--lr-decay=none", *SMALL]
    torchrnn("classify", path, "--run", tmp_path / "whole", "--steps=40", *common)
    torchrnn("classify", path, "--run", tmp_path / "parts", "--steps=20", *common)
    result = torchrnn("classify", "--resume", "--run", tmp_path / "parts", "--steps=40")
    assert result.exit_code == 0, result.stderr
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "parts")


def test_resuming_needs_the_same_data(run, tmp_path):
    folder, path, _ = run
    other = tmp_path / "other.csv"
    other.write_text(path.read_text().replace("baa,vowel", "bab,other"))
    result = torchrnn("classify", other, "--resume", "--run", folder)
    assert result.exit_code == 2
    assert "--resume goes on with the data of the run, and this is another" in result.stderr


def test_two_processes_read_what_one_reads(tmp_path):
    path = write_words(tmp_path)
    settings = ClassifySettings(text="word", label="kind", batch_size=16, hidden_size=5, dropout=0.0, threads=1)
    one, other = (ClassifyJob.prepare([path], settings) for _ in range(2))
    model = one.build(settings, one.remember()).double()
    for step in (0, 3, one.steps_per_epoch - 1):
        shares = [one.batch(step, Share(rank, 3)) for rank in range(3)]
        everything = other.batch(step, Share())
        assert everything
        total, _ = other.sums(model, everything, None)
        parts = [one.sums(model, batch, None)[0] for batch in shares if batch]
        for name, value in total.items():
            whole = torch.stack([torch.as_tensor(part[name]) for part in parts]).sum(0)
            torch.testing.assert_close(whole, torch.as_tensor(value), rtol=1e-12, atol=0.0)
    rows = [sum(len(batch.lengths) for batch in one.validation(Share(rank, 3))) for rank in range(3)]
    assert sum(rows) == one.data.part(split.VALIDATION).count


def test_tags_of_lists_and_of_steps(tmp_path):
    words = [*keyword.kwlist, *dir(str)][:80]
    rows = [{"w": list(word), "y": ["V" if c in "aeiou" else "C" for c in word]} for word in words]
    path = tmp_path / "tags.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = torchrnn("classify", path, "--text=w", "--label=y", "--run", tmp_path / "run", "--epochs=6", *SMALL)
    assert "one a step" in result.stderr
    answers = torchrnn("predict", tmp_path / "run", path, "--out", tmp_path / "out.jsonl")
    assert answers.exit_code == 0, answers.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(row["predicted"]) for row in found] == [len(word) for word in words]
    right = sum(a == b for row in found for a, b in zip(row["predicted"], row["y"], strict=True))
    assert right / sum(map(len, words)) > 0.9

    steps = [
        f"{n},{place},{ord(c) % 7},{'V' if c in 'aeiou' else 'C'}"
        for n, w in enumerate(words)
        for place, c in enumerate(w)
    ]
    path = tmp_path / "steps.csv"
    path.write_text("\n".join(["id,time,x,y", *reversed(steps)]))
    options = ["--steps-columns=x", "--sequence=id", "--time=time", "--label=y", "--tagging", "--bidirectional"]
    result = torchrnn("classify", path, *options, "--run", tmp_path / "steps", "--epochs=2", *SMALL)
    assert result.exit_code == 0, result.stderr
    answers = pl.read_csv(io.BytesIO(torchrnn("predict", tmp_path / "steps", path).stdout.encode()))
    assert answers["y"].to_list() == pl.read_csv(path)["y"].to_list()
    accuracy = (answers["predicted"] == answers["y"]).mean()
    assert f"accuracy {accuracy:.4f}" in torchrnn("evaluate", tmp_path / "steps", path).stdout


def test_series_in_lists_with_every_option(tmp_path):
    rows = [{"a": [float(n % 2)] * (3 + n % 5), "b": [0.5 * n] * (3 + n % 5), "k": n % 2} for n in range(60)]
    path = tmp_path / "series.parquet"
    pl.DataFrame(rows).write_parquet(path)
    for options in (["--pool=max", "--cell=lstm"], ["--pool=mean", "--cell=rnn", "--class-weights=balanced"]):
        run = tmp_path / options[0]
        arguments = ["--steps-columns=a,b", "--label=k", *options, "--run", run, "--epochs=10", *SMALL]
        result = torchrnn("classify", path, *arguments)
        assert "test part: accuracy 1.0000" in result.stdout, result.stderr
        answers = torchrnn("predict", run, path).stdout.splitlines()
        assert answers[0] == "a,b,k,predicted,probability"
        assert answers[1].startswith("0.0 0.0 0.0,0.0 0.0 0.0,0,0,")


def test_bad_data_end_with_one_line(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes("word,kind\nMüller,x\n".encode("latin-1"))
    result = torchrnn("classify", path, "--text=word", "--label=kind", "--run", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: FILE {path}, line 2: byte 11 of the file is not UTF-8")
    assert not (tmp_path / "run").exists()


PEAK = """
from pathlib import Path
from torchrnn.tools.classify import split, survey
from torchrnn.tools.classify.data import Data
from torchrnn.tools.classify.learned import learn
from torchrnn.tools.classify.settings import ClassifySettings

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def epoch(path, memory):
    settings = ClassifySettings(text="t", label="y", memory=memory, batch_size=512)
    found = survey.sources([Path(path)], settings)
    data = Data(found, learn(found, settings)[0], settings)
    rows = sum(len(data.training(step, lambda n: slice(0, n)).lengths) for step in range(data.order.steps))
    return data.part(split.TRAINING).streamed, rows

epoch("small.parquet", 1024)  # what the packages need for themselves
before = peak()
streamed = epoch("large.parquet", 8)
by_blocks = peak() - before
held = epoch("large.parquet", 1024)
print(*streamed, by_blocks, *held, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_file_larger_than_the_memory_is_streamed(tmp_path):
    """A file whose tokens are some 150 MB, with --memory 8 and with enough, in a process of its own."""
    rows = pl.select(n=pl.int_range(400_000)).select(
        t=(pl.col("n") * 7919 + 10**12).cast(pl.String).repeat_by(7).list.join(""), y=(pl.col("n") % 3).cast(pl.String)
    )
    rows.write_parquet(tmp_path / "large.parquet", row_group_size=20_000)
    rows.head(2000).write_parquet(tmp_path / "small.parquet")
    command = [sys.executable, "-c", PEAK]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    streamed, rows_streamed, by_blocks, held, rows_held, whole = result.stdout.split()
    assert (streamed, rows_streamed, held, rows_held) == ("True", "320002", "False", "320002")
    assert int(by_blocks) < 60e6 < 150e6 < int(whole), (by_blocks, whole)
