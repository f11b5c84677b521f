"""The character model: its bits per character, its carried state, and its weights as a file."""

import math

import pytest
import torch
from torch.nn import functional

from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.runs.job import Share
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.training import Training
from torchrnn.tools.runs.weights import load_weights, weights_to_bytes
from torchrnn.tools.text.corpus import prepare
from torchrnn.tools.text.job import TextJob
from torchrnn.tools.text.model import CELLS, CharModel, detach
from torchrnn.tools.text.settings import TextSettings
from torchrnn.tools.text.tokens import UNKNOWN


def validation_bits(job, model):
    total, carried = {"loss": 0.0, "terms": 0.0, "characters": 0.0}, None
    for batch in job.validation(Share()):
        with torch.no_grad():
            sums, carried = job.sums(model.eval(), batch, carried)
        total = {name: total[name] + float(sums[name]) for name in total}
    return job.measured(total)["bpc"]


def known_model(vocabulary_size, bias):
    """A model that gives every character the same chances, whatever it read."""
    model = CharModel(vocabulary_size, "lstm", 4, 8, 1, 0.0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(bias)
    return model


def test_bits_per_character_of_a_uniform_model():
    corpus = prepare("abcdefg" * 60, 0.2, 2, 8)
    model = known_model(8, torch.zeros(8))
    bits = validation_bits(TextJob(corpus, TextSettings(), ""), model)
    assert bits == pytest.approx(3.0, abs=1e-6)  # seven characters and <unknown>


def test_bits_per_character_of_a_model_that_knows_the_frequencies():
    corpus = prepare("aaab" * 100, 0.25, 1, 20)
    model = known_model(3, torch.tensor([-math.inf, 0.75, 0.25]).log().nan_to_num(nan=-math.inf))
    streams = corpus.validation
    share = float((streams.targets == 1).double().mean())
    expected = -(share * math.log2(0.75) + (1 - share) * math.log2(0.25))
    assert validation_bits(TextJob(corpus, TextSettings(), ""), model) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_chunks_with_the_state_carried_equal_the_text_read_at_once(cell, num_layers):
    model = CharModel(6, cell, 4, 8, num_layers, 0.0).double()
    characters = torch.randint(6, (23, 3))  # (T, B)
    whole, _ = model(characters)
    state, parts = None, []
    for chunk in characters.split(5):
        scores, state = model(chunk, detach(state))
        parts.append(scores)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_the_gradient_ends_at_the_chunk_and_the_state_does_not(tmp_path):
    corpus = prepare("abcabdabe" * 30, 0.2, 2, 10)
    model = CharModel(len(corpus.vocabulary), "lstm", 4, 8, 1, 0.0)
    training = Training(model, TextJob(corpus, TextSettings(), ""), RunFolder(tmp_path))
    training.on_train_epoch_start()
    state = None
    for step, batch in enumerate(corpus.training):
        scores, state = model(batch[0], detach(state))
        expected = functional.cross_entropy(scores.flatten(0, 1), batch[1].flatten())
        torch.testing.assert_close(training.training_step((step, batch), step), expected)
        assert isinstance(training.carried, tuple)
        assert not any(part.requires_grad for part in training.carried)
        training.record.step += 1
    # the streams begin again, from no state
    scores, _ = model(corpus.training[0][0])
    expected = functional.cross_entropy(scores.flatten(0, 1), corpus.training[0][1].flatten())
    torch.testing.assert_close(training.training_step((len(corpus.training), corpus.training[0]), 0), expected)


def test_an_unknown_character_is_the_zero_vector():
    model = CharModel(5, "gru", 4, 8, 1, 0.5)
    assert model.embedding(torch.tensor([UNKNOWN])).abs().sum() == 0


def test_weights_go_through_bytes_unchanged_and_other_shapes_are_refused():
    model, other = CharModel(5, "lstm", 4, 8, 1, 0.0), CharModel(5, "lstm", 4, 8, 1, 0.0)
    load_weights(other, weights_to_bytes(model), "file")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    with pytest.raises(ToolError, match=r"file does not hold the weights of this model.*size mismatch"):
        load_weights(CharModel(5, "lstm", 4, 9, 1, 0.0), weights_to_bytes(model), "file")
    with pytest.raises(ToolError, match="file does not hold"):
        load_weights(other, weights_to_bytes(model)[:-9], "file")
