"""Run folders that are damaged or of another kind: what opens them says so, runs nothing that lies in them, and leaves
them as they are.
"""

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
    "deep": (
        "text",
        line("settings_", "") if False else lambda data: b"command = " + b"[" * 99_999 + b"\n" + data,
        DAMAGED,
    ),
    "another type": ("text", line("hidden_size", '"4"'), DAMAGED, "hidden_size must be int"),
    "a number for a size": ("text", line("hidden_size", "4.5"), DAMAGED, "hidden_size must be int"),
    "below zero": ("text", line("num_layers", "-1"), DAMAGED, "--num-layers must be at least 1"),
    "an unknown key": ("text", edited(b"[settings]", b"[settings]\ncolour = 3"), DAMAGED, "colour"),
    "an unknown table": ("text", edited(b"[settings]", b"[more]\na = 3\n\n[settings]"), DAMAGED, "more"),
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
    "a size beyond memory": ("text", line("hidden_size", "2000000000"), "emory"),
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
