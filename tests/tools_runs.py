"""What the tests of the tools share: a small text, small settings, and the command line called in this process."""

import subprocess
import sys

import torch
from typer.testing import CliRunner

from torchrnn.tools import commands

SMALL = ["--hidden-size=8", "--embedding-size=4", "--batch-size=4", "--sequence-length=16", "--threads=1"]


def text(characters=3000):
    """Words with some order in them, the same on every machine."""
    words = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "mix", "potions")
    out, state = [], 7
    while sum(map(len, out)) + len(out) < characters:
        state = (state * 1103515245 + 12345) % 2**31
        out.append(words[(state >> 16) % len(words)])
    return " ".join(out)[:characters]


def write_text(folder, characters=3000):
    path = folder / "text.txt"
    path.write_text(text(characters))
    return path


def torchrnn(*arguments):
    """The command line's result: exit_code, stdout, stderr."""
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(commands.app, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments):
    """The command line as a process of its own, quiet, in a group of its own."""
    command = [sys.executable, "-m", "torchrnn.tools.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )


def kill(process):
    """kill -9; the exit code, and what was printed."""
    process.kill()
    output, _ = process.communicate()
    return process.returncode, output


def snapshot(run):
    """What equal runs have equal: weights, the best weights, metrics."""
    checkpoint = sorted(run.glob("checkpoint-*"))[-1]
    return {
        "checkpoint": checkpoint.name,
        "weights": (checkpoint / "weights.safetensors").read_bytes(),
        "best": (run / "model.safetensors").read_bytes(),
        "metrics": (run / "metrics.csv").read_text(),
    }
