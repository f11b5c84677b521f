"""Sampling: the same seed writes the same text, character by character, in any script."""

import sys

import pytest
import torch
from tools_runs import SMALL, torchrnn, write_text

from torchrnn.tools.commands.text import sample
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.text.model import CharModel
from torchrnn.tools.text.sampling import draw, generate
from torchrnn.tools.text.tokens import UNKNOWN, Characters

TEXTS = {
    "greek": "ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν. ",
    "chinese": "道可道,非常道。名可名,非常名。无名天地之始。",
    "emoji": "🙂🙃 👩‍🚀🚀 🌍🌕 é ",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run = folder / "run"
    assert torchrnn("text", write_text(folder), *SMALL, "--steps=10", "--run", run).exit_code == 0
    return run


@pytest.fixture
def model():
    return CharModel(4, "lstm", 4, 8, 1, 0.5).eval(), Characters("abc")


def sampled(run, *arguments):
    result = torchrnn("sample", run, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_same_seed_writes_the_same_text(trained):
    text = sampled(trained, "--prompt=the ", "--length=50", "--seed=3")
    assert text.startswith("the ")
    assert len(text) == 4 + 50 + 1
    assert text == sampled(trained, "--prompt=the ", "--length=50", "--seed=3")
    assert text != sampled(trained, "--prompt=the ", "--length=50", "--seed=4")
    assert sampled(trained, "--length=50") != sampled(trained, "--length=50")
    assert sampled(trained, "--prompt=x", "--length=0") == "x\n"


def test_temperature_0_is_the_likeliest(trained, model):
    assert sampled(trained, "--temperature=0", "--seed=1") == sampled(trained, "--temperature=0", "--seed=2")
    scores = torch.tensor([9.0, 1.0, 3.0, 2.0])
    assert draw(scores, 0, torch.Generator()) == 2
    assert draw(scores, 1e-300, torch.Generator()) == 2  # does not overflow


def test_draws_follow_the_temperature():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([5.0, 0.0, 2.0])
    for temperature in (0.5, 1.0, 4.0):
        draws = [draw(scores, temperature, generator) for _ in range(4000)]
        assert UNKNOWN not in draws
        expected = float(torch.sigmoid(torch.tensor(2.0 / temperature)))
        assert draws.count(2) / 4000 == pytest.approx(expected, abs=0.03)


def test_text_streams_and_the_state_is_carried(model):
    net, vocabulary = model
    seen = []
    net.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].tolist()))
    text = generate(net, vocabulary, "ab", 5, seed=0)
    assert seen == []
    first = next(text)
    assert seen == [[[1], [2]]]  # the prompt at once, and a character is out before the next step
    whole = first + "".join(text)
    assert len(whole) == 5
    assert all(len(step) == 1 for step in seen[1:])
    # carried state: the likeliest text is what reading everything again from the beginning gives
    greedy = "".join(generate(net, vocabulary, "ab", 6, temperature=0))
    for end in range(6):
        scores, _ = net(vocabulary.encode("ab" + greedy[:end]).unsqueeze(1))
        assert vocabulary.decode(draw(scores[-1, 0], 0, torch.Generator())) == greedy[end]


def test_every_character_is_flushed(trained, monkeypatch):
    class Recorder:
        def __init__(self):
            self.log = []

        def write(self, text):
            self.log.append(text)

        def flush(self):
            self.log.append("FLUSH")

    threads = torch.get_num_threads()
    recorder = Recorder()
    monkeypatch.setattr(sys, "stdout", recorder)
    sample(run=trained, prompt="the", temperature=1.0, length=5, seed=0)
    monkeypatch.undo()
    torch.set_num_threads(threads)
    log = [entry for entry in recorder.log if entry]
    assert log[:2] == ["the", "FLUSH"]
    assert log[3:12:2] == ["FLUSH"] * 5
    assert all(len(entry) == 1 for entry in log[2:12:2])


@pytest.mark.parametrize("script", TEXTS)
def test_other_scripts(tmp_path, script):
    path, text = tmp_path / f"{script}.txt", TEXTS[script] * 40
    path.write_text(text, encoding="utf-8")
    run = tmp_path / "run"
    assert torchrnn("text", path, *SMALL, "--lr=0.02", "--steps=60", "--run", run).exit_code == 0
    written = sampled(run, f"--prompt={text[:3]}", "--length=40", "--seed=0")
    assert written.startswith(text[:3])
    assert set(written) <= set(text) | {"\n"}


def test_unknown_characters_in_the_prompt_are_named(trained):
    result = torchrnn("sample", trained, "--prompt=the Ω", "--length=5")
    assert result.exit_code == 0
    assert "never seen Ω; in --prompt they are read as <unknown>" in result.stderr
    assert result.stdout.startswith("the Ω")


def test_mistakes_are_explained(tmp_path, trained):
    for arguments, code, message in [
        ([tmp_path], 2, "is not a run folder"),
        ([trained, "--temperature=-1"], 2, "--temperature must be a number from 0"),
        ([trained, "--temperature=nan"], 2, "--temperature must be a number from 0"),
        ([trained, "--seed=-1"], 2, "--seed must be from 0"),
        ([trained, "--length=-1"], 2, "--length must be at least 0, got -1"),
    ]:
        result = torchrnn("sample", *arguments)
        assert result.exit_code == code
        assert message in result.stderr
    with pytest.raises(UsageError, match="--length"):
        next(generate(CharModel(3, "rnn", 2, 2, 1, 0.0), Characters("ab"), "", -1))


def test_a_missing_or_damaged_model_is_explained(tmp_path, trained):
    (tmp_path / "config.toml").write_bytes((trained / "config.toml").read_bytes())
    result = torchrnn("sample", tmp_path)
    assert result.exit_code == 1
    assert "has no model yet" in result.stderr
    model = (trained / "model.safetensors").read_bytes()
    for damaged in (b"", model[:-10], b"{" * 100):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        result = torchrnn("sample", tmp_path)
        assert result.exit_code == 1
        assert "does not hold the weights of this model" in result.stderr
