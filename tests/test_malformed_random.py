"""Valid files with bytes flipped, cut, repeated or put in, by a seed: a result or a paragraph, never a traceback."""

import io
import json
import random

import polars as pl
import pytest
from malformed import CLASSIFY, FORECAST, LISTS, ROWS, TEXT, copied, series, trained, tree
from test_malformed import STEPS, lines
from test_malformed_runs import last, signed
from tools_runs import torchrnn

DRAWS = 12  # of each of the files below


def damaged(data, rng):
    """The data with one to three changes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        begin = rng.randrange(len(data) + 1)
        end = min(len(data), begin + rng.choice([1, 2, 8, 60]))
        kind = rng.randrange(5)
        if kind == 0 and begin < len(data):
            data[begin] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[begin : len(data) if rng.random() < 0.3 else end]
        elif kind == 2:
            data[begin:begin] = data[begin:end] * rng.choice([1, 2, 50])
        elif kind == 3:
            data[begin:end] = rng.choice(
                [b"", b",", b'"', b"\n", b"\0", b"-", b"e99", b"9" * 30, b"NaN", b"[", b"\xff"]
            )
        else:
            data[begin:begin] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4])))
    return bytes(data)


def spoken(arguments):
    """Call the command line: it does what it is told, or says in one paragraph why not."""
    result = torchrnn(*arguments)  # whatever is no ToolError is raised again here
    printed = result.stdout + result.stderr
    assert "Traceback" not in printed
    assert result.exit_code in (0, 1, 2)
    paragraphs = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(paragraphs) == (result.exit_code > 0), printed
    if not result.exit_code and arguments[0] == "predict":
        assert not any(row.endswith("NaN") for row in result.stdout.splitlines())
    return result


def tables():
    """Files of each kind: the command that trains on it, its name and its bytes; of some, the run that reads it."""
    rows = pl.read_csv(lines(STEPS))
    parquet = io.BytesIO()
    rows.write_parquet(parquet)
    listed = io.BytesIO()
    pl.DataFrame({"a": [[1.0, 2.0]] * 24, "b": [[3.0, 4.0]] * 24, "y": ["p", "q"] * 12}).write_parquet(listed)
    days = lines(series())
    objects = "\n".join(json.dumps({"time": row.split(",")[0], "y": int(row.split(",")[1])}) for row in series()[1:])
    return {
        "rows.csv": (ROWS, lines(STEPS)),
        "rows.parquet": (ROWS, parquet.getvalue()),
        "lists.parquet": (LISTS, listed.getvalue()),
        "days.csv": (FORECAST, days),
        "days.jsonl": (FORECAST, objects.encode()),
    }


@pytest.mark.parametrize("file", tables())
def test_training(tmp_path, tmp_path_factory, monkeypatch, file):
    run = trained(tmp_path_factory)[0]["text"]
    # all that comes before the first step, and not the steps
    monkeypatch.setattr("torchrnn.tools.runs.run._work", lambda *arguments: "")
    command, data = tables()[file]
    before, rng = tree(run), random.Random(file)
    for _ in range(2 * DRAWS):
        (tmp_path / file).write_bytes(damaged(data, rng))
        spoken([*command, tmp_path / file, "--run", run, "--overwrite"])
    assert tree(run) == before


@pytest.mark.parametrize("kind", ["text", "bpe", "classify", "lists", "forecast"])
def test_reading_with_a_model(tmp_path, tmp_path_factory, kind):
    runs, files = trained(tmp_path_factory)
    before, rng = tree(runs[kind]), random.Random(kind)
    path = tmp_path / files[kind].name
    for draw in range(DRAWS):
        path.write_bytes(damaged(files[kind].read_bytes(), rng))
        command = "evaluate" if draw % 2 or kind in ("text", "bpe") else "predict"
        spoken([command, runs[kind], path])
    assert tree(runs[kind]) == before


@pytest.mark.parametrize("file", ["config.toml", "model.safetensors"])
@pytest.mark.parametrize("kind", ["text", "bpe", "classify", "lists", "forecast"])
def test_run_folders(tmp_path, tmp_path_factory, kind, file):
    runs, files = trained(tmp_path_factory)
    run, rng = copied(runs[kind], tmp_path), random.Random(kind + file)
    data = (run / file).read_bytes()
    for _ in range(DRAWS):
        (run / file).write_bytes(damaged(data, rng))
        before = tree(run)
        spoken(["sample", run, "--length=2"] if kind in ("text", "bpe") else ["predict", run, files[kind]])
        assert tree(run) == before


@pytest.mark.parametrize("kind", ["text", "classify"])
@pytest.mark.parametrize("file", ["config.toml", "state.pt", "weights.safetensors", "manifest.json"])
def test_going_on(tmp_path, tmp_path_factory, kind, file):
    runs, _ = trained(tmp_path_factory)
    rng = random.Random(kind + file)
    job = {"text": TEXT, "classify": CLASSIFY}[kind][0]
    for draw in range(DRAWS // 2):
        run = copied(runs[kind], tmp_path / str(draw))
        path = run / file if file == "config.toml" else last(run) / file
        path.write_bytes(damaged(path.read_bytes(), rng))
        if draw % 2 and file in ("state.pt", "weights.safetensors"):
            signed(run)
        before = tree(run)
        if spoken([job, "--resume", "--run", run]).exit_code:
            assert tree(run) == before
