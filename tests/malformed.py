"""What the tests of malformed input share: small trained runs, the hash of a folder, and what a refusal must be."""

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from datetime import date, timedelta
from pathlib import Path

from tools_runs import torchrnn, write_text

SMALL = ["--hidden-size=4", "--batch-size=4", "--threads=1", "--steps=2", "--validate-every=1"]
TEXT = ["text", *SMALL, "--embedding-size=2", "--sequence-length=8"]
CLASSIFY = ["classify", *SMALL, "--embedding-size=2", "--text=t", "--label=y"]
LISTS = ["classify", *SMALL, "--steps-columns=a,b", "--label=y"]
ROWS = ["classify", *SMALL, "--steps-columns=x", "--sequence=id", "--label=y", "--time=w"]
FORECAST = ["forecast", *SMALL, "--time=time", "--target=y", "--history=4", "--horizon=2"]
SHOPS = [*FORECAST, "--id=shop"]

# a message that only complains helps nobody: one of these says what to do
REPAIRS = re.compile(
    r"\b(Add|Ask|Bring|Choose|Close|Convert|Correct|Decompress|Delete|Did you mean|Fill|Free|Give|Go on|Leave|Lower|"
    r"Make|Name|Rename|Resume|Save|Say|Sort|Train|Unpack|Use|Write)\b|"
    r"\b(add|convert|delete|give|leave|name|start|train|write) (--|it|one|that|the|them|another|a|such|again)|"
    r"must stand in double quotes|must end in|train with --fill-gaps"
)


_MADE = []


def texts(count=24):
    """The lines of a CSV file of texts with two labels."""
    return ["t,y", *(f"{'ab' * (row % 3 + 1)}{row},{'pq'[row % 2]}" for row in range(count))]


def series(count=40):
    """The lines of a CSV file of one number a day."""
    return ["time,y", *(f"{date(2024, 1, 1) + timedelta(row)},{row % 5}" for row in range(count))]


def lists(count=24):
    """The lines of a file of JSON objects with two series of numbers each."""
    return [f'{{"a": [1, {row}], "b": [2.5, {row % 4}], "y": "{"pq"[row % 2]}"}}' for row in range(count)]


def trained(factory):
    """A run of each kind, by name: its folder, and the file that it was trained on. Made once a session."""
    if not _MADE:
        _MADE.append(_train(factory))
    return _MADE[0]


def _train(factory):
    folder = factory.mktemp("trained")
    files = {"text": write_text(folder, 1500), "bpe": write_text(_made(folder / "b"), 1500)}
    for name, lines, ending in (
        ("classify", texts(), "csv"),
        ("lists", lists(), "jsonl"),
        ("forecast", series(), "csv"),
    ):
        files[name] = folder / f"{name}.{ending}"
        files[name].write_text("\n".join(lines) + "\n")
    commands = {"text": TEXT, "bpe": [*TEXT, "--tokens=bpe", "--vocabulary-size=270"], "classify": CLASSIFY}
    commands |= {"lists": LISTS, "forecast": FORECAST}
    runs = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how they are trained is the matter of other tests
        for name, command in commands.items():
            runs[name] = folder / "runs" / name
            result = torchrnn(*command, files[name], "--run", runs[name])
            assert result.exit_code == 0, result.output
            assert (runs[name] / "model.safetensors").exists()
    return runs, files


def _made(path):
    path.mkdir()
    return path


def tree(folder):
    """The names and SHA-256 of all files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def copied(run, folder):
    """A run to be damaged."""
    return Path(shutil.copytree(run, folder / "run"))


def refused(arguments, says, run, nobody=False):
    """Call the command line; the paragraph that refuses it, after all that must be true of a refusal."""
    before = tree(run)
    with as_nobody() if nobody else contextlib.nullcontext():
        result = torchrnn(*arguments)  # an exception that is no SystemExit, a traceback to users, is raised again
    printed = result.stdout + result.stderr
    assert result.exit_code in (1, 2), printed
    assert "Traceback" not in printed
    paragraphs = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(paragraphs) == 1, printed
    for part in says:
        assert part in paragraphs[0], printed
    assert REPAIRS.search(paragraphs[0]), f"it says not how to repair: {paragraphs[0]}"
    assert len(paragraphs[0]) < 1500
    assert tree(run) == before
    return paragraphs[0]


@contextlib.contextmanager
def as_nobody():
    """Without the rights of root, whom no file is closed to."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
