"""What a text is cut into: everything comes back, the characters are counted, and a run of each kind can be used."""

import json
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tools_runs import SMALL, snapshot, torchrnn, write_text

from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.text import tokens
from torchrnn.tools.text.tokens import FILE, UNKNOWN, Bytes, Characters, Pieces

MIXED = "the quick brown fox, ἐν ἀρχῇ ἦν ὁ λόγος, 道可道,非常道。 👩‍🚀🚀 é\n" * 20


@pytest.fixture(scope="module")
def pieces():
    return Pieces.of(MIXED, 400)


def written(vocabulary, indices):
    write = vocabulary.writer()
    return "".join(write(int(index)) for index in indices)


@given(st.text())
def test_bytes_and_pieces_give_any_text_back_and_count_its_characters(pieces, text):
    for vocabulary in (Bytes(), pieces):
        indices = vocabulary.encode(text)
        assert UNKNOWN not in indices
        assert written(vocabulary, indices) == text
        assert vocabulary.counts[indices].sum() == len(text)
        assert len(vocabulary.counts) == len(vocabulary)
    assert Bytes().encode(text).tolist() == [byte + 1 for byte in text.encode()]


def test_pieces_are_fewer_than_bytes_and_joined_by_frequency(pieces):
    assert 257 < len(pieces) <= 401
    assert len(pieces.encode(MIXED)) < len(Bytes().encode(MIXED)) / 2
    # by hand: "ab" comes most often, then "abab"; letters follow no space, so nothing else is joined
    small = Pieces.of("abababab abababab", 258)
    assert small.pieces[257:] == [b"ab", b"abab"]
    assert [small.pieces[i] for i in small.encode("ababab")] == [b"abab", b"ab"]


def test_a_long_text_is_cut_in_parts_at_its_lines(monkeypatch, pieces):
    monkeypatch.setattr(tokens, "PART", 100)
    parts = list(tokens._parts(MIXED + "x" * 250))
    assert "".join(parts) == MIXED + "x" * 250
    assert max(map(len, parts)) <= 100
    assert parts[0].endswith("\n")
    assert written(pieces, pieces.encode(MIXED)) == MIXED


def test_characters_come_when_they_are_whole():
    write = Bytes().writer()
    assert [write(byte + 1) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert write(0xFF + 1) == "\N{REPLACEMENT CHARACTER}"  # what a model may draw is not always UTF-8


def test_an_undecodable_prompt_is_read_as_replaced(pieces):
    for vocabulary in (Bytes(), pieces):
        assert written(vocabulary, vocabulary.encode("a\udcff")) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("damage", ["{", "[]", "{}", "other kind", "other vocabulary"])
def test_a_damaged_tokenizer_is_explained(pieces, damage):
    stored = json.loads(pieces.remember()[FILE])
    if damage == "other kind":
        stored["pre_tokenizer"] = {"type": "Whitespace"}
    if damage == "other vocabulary":
        stored["model"] |= {"vocab": {"a": 0, "b": 5}, "merges": []}
    data = json.dumps(stored) if damage.startswith("other") else damage
    with pytest.raises(ToolError, match=r"tokenizer.json in the run folder does not hold the pieces of this run"):
        Pieces.again({FILE: data.encode()})


def test_a_vocabulary_comes_back_from_what_is_remembered(pieces):
    for kind, vocabulary in {"characters": Characters.of(MIXED), "bytes": Bytes(), "bpe": pieces}.items():
        again = tokens.known(kind, vocabulary.remember())
        assert len(again) == len(vocabulary)
        assert torch.equal(again.encode(MIXED), vocabulary.encode(MIXED))


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    result = torchrnn("text", write_text(tmp_path), *SMALL, "--tokens=bpe", "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "--tokens bpe needs the package tokenizers, which is not installed: pip install" in result.stderr


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_run_is_trained_resumed_sampled_and_evaluated(tmp_path, kind):
    text = tmp_path / "text.txt"
    text.write_text(MIXED * 4, encoding="utf-8")
    run = tmp_path / "run"
    arguments = ["text", text, *SMALL, f"--tokens={kind}", "--vocabulary-size=280", "--validate-every=10"]
    result = torchrnn(*arguments, "--steps=20", "--run", run)
    assert result.exit_code == 0, result.stderr
    one = {"bytes": "byte", "bpe": "piece"}[kind]
    assert f"bits per {one}, " in result.stdout
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert header == "step,epoch,train_bpt,validation_bpt,train_bpc,validation_bpc,train_nats,validation_nats"
    _, _, _, bits, _, per_character, _, nats = map(float, rows[-1].split(","))
    assert nats == pytest.approx(bits * math.log(2), abs=1e-5)
    assert per_character > bits  # most characters here take several bytes
    assert (run / FILE).exists() == (kind == "bpe")
    assert torchrnn("text", "--resume", "--steps=30", "--run", run).exit_code == 0
    assert torchrnn(*arguments, "--steps=30", "--run", tmp_path / "once").exit_code == 0
    assert snapshot(run) == snapshot(tmp_path / "once")
    sampled = torchrnn("sample", run, "--prompt=道Ω", "--length=30", "--seed=1")
    assert sampled.stdout.startswith("道Ω")
    assert "never seen" not in sampled.stderr
    assert f"nats per {one}, perplexity" in torchrnn("evaluate", run, text).stdout
    assert torchrnn("text", text, *SMALL, "--steps=5", "--overwrite", "--run", run).exit_code == 0
    assert not (run / FILE).exists()  # of the earlier run


def test_a_damaged_file_of_pieces_is_refused_before_it_is_read(tmp_path):
    run = tmp_path / "run"
    arguments = [*SMALL, "--tokens=bpe", "--vocabulary-size=280", "--steps=5", "--run", run]
    assert torchrnn("text", write_text(tmp_path), *arguments).exit_code == 0
    (run / FILE).write_bytes((run / FILE).read_bytes()[:-3])
    for command in (["sample", run], ["text", "--resume", "--run", run]):
        result = torchrnn(*command)
        assert result.exit_code == 1
        assert f"{run / FILE} is not there, or not what config.toml says" in result.stderr


def test_bfloat16_learns_nearly_as_well(tmp_path):
    bits = {}
    for precision in ("32", "bf16"):
        arguments = [*SMALL, "--dropout=0", "--lr=0.02", "--steps=60", f"--precision={precision}"]
        result = torchrnn("text", write_text(tmp_path), *arguments, "--run", tmp_path / precision)
        assert result.exit_code == 0, result.stderr
        bits[precision] = float(result.stdout.split("validation: ")[1].split()[0])
    assert bits["bf16"] == pytest.approx(bits["32"], rel=0.03)
    assert bits["bf16"] != bits["32"]
