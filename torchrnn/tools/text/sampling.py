"""Text from a trained model, one token at a time with the state carried along."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from torchrnn.tools.runs.errors import UsageError, explain_memory
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.weights import check_size, load_weights, read_best
from torchrnn.tools.text.job import TextJob
from torchrnn.tools.text.model import CharModel
from torchrnn.tools.text.tokens import UNKNOWN, Vocabulary, known


def load_model(run: Path) -> tuple[CharModel, Vocabulary]:
    """The best model of a run, ready to be called, and its vocabulary."""
    folder = RunFolder(run)
    config = folder.read_config("RUN")
    if config.job != "text":
        raise UsageError(
            f"RUN {run} holds a run of `torchrnn {config.job}`, which writes no text. Give one of `torchrnn text`."
        )
    weights = read_best(folder, config.job)
    check_size(len(weights), config.settings, folder.model)
    with explain_memory():
        model = TextJob.build(config.settings, config.data)  # pyright: ignore[reportArgumentType]
        load_weights(model, weights, folder.model)
    return model.eval(), known(config.settings.tokens, config.data)  # pyright: ignore[reportAttributeAccessIssue]


@torch.inference_mode()
def generate(
    model: CharModel,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Yield the text of `length` tokens that follow `prompt`, each drawn from softmax(scores / temperature).

    Temperature 0 takes the likeliest. An empty prompt stands for a line break. Characters that the model does not know
    are read as `<unknown>`; it is never drawn. Of bytes and pieces, text comes as soon as a character is whole.
    """
    check(temperature, length, seed)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    tokens = vocabulary.encode(prompt or "\n").unsqueeze(1)  # (T, 1)
    state, write = None, vocabulary.writer()
    for _ in range(length):
        scores, state = model(tokens, state)  # (T, 1, V)
        index = draw(scores[-1, 0], temperature, generator)
        text = write(index)
        if text:
            yield text
        tokens = torch.tensor([[index]])  # (1, 1)


def draw(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The index of a token drawn by its scores (V,)."""
    scores = scores.double()
    scores[UNKNOWN] = -math.inf
    if temperature == 0:
        return int(scores.argmax())
    # the largest score is taken off first: a small temperature must not overflow
    chances = torch.softmax((scores - scores.max()) / temperature, 0)
    return int(torch.multinomial(chances, 1, generator=generator))


def check(temperature: float, length: int, seed: int | None) -> None:
    """Refuse what cannot be drawn."""
    if not 0 <= temperature < math.inf:
        raise UsageError(f"--temperature must be a number from 0 (always the likeliest), got {temperature}.")
    if length < 0:
        raise UsageError(f"--length must be at least 0, got {length}.")
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"--seed must be from 0 to below 2^63, got {seed}.")
