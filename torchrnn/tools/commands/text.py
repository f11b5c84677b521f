"""The commands about text: training a model of it, and writing text with one."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from torchrnn.tools.commands import common
from torchrnn.tools.commands.common import complain, explained
from torchrnn.tools.text.settings import TextSettings as Default

Option = typer.Option


def text(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="UTF-8 text, in any script; without one, Python's documentation."),
    ] = None,
    run: common.Run = None,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    time_limit: common.TimeLimit = "",
    epochs: common.Epochs = Default.epochs,
    steps: common.Steps = Default.steps,
    patience: common.Patience = Default.patience,
    cell: common.Cell = Default.cell,
    tokens: Annotated[
        str, Option(metavar="characters|bytes|bpe", help="What the text is cut into; bpe: pieces found in it.")
    ] = Default.tokens,
    vocabulary_size: Annotated[int, Option(help="Pieces of --tokens bpe, at most.")] = Default.vocabulary_size,
    embedding_size: Annotated[int, Option(help="Size of a token's vector.")] = Default.embedding_size,
    hidden_size: common.HiddenSize = Default.hidden_size,
    num_layers: common.NumLayers = Default.num_layers,
    dropout: common.Dropout = Default.dropout,
    batch_size: Annotated[int, Option(help="Streams of text read side by side.")] = Default.batch_size,
    sequence_length: Annotated[int, Option(help="Steps of time that a gradient goes back.")] = Default.sequence_length,
    lr: common.Lr = Default.lr,
    lr_decay: common.LrDecay = Default.lr_decay,
    clip: common.Clip = Default.clip,
    validation: Annotated[
        float, Option(help="The last fraction of the text, for validation only.")
    ] = Default.validation,
    validate_every: common.ValidateEvery = Default.validate_every,
    seed: common.Seed = Default.seed,
    precision: common.Precision = Default.precision,
    device: common.Device = Default.device,
    devices: common.Devices = Default.devices,
    threads: common.Threads = common.DEFAULT_THREADS,
) -> None:
    """Train a model of the next character, byte or piece of a text, by truncated backpropagation through time.

    The run folder gets config.toml, model.safetensors (the best validation), metrics.csv, loss.png, TensorBoard logs
    and the last checkpoints. A run that was killed goes on exactly where its last checkpoint was: --resume.
    """
    with explained():
        from torchrnn.tools.text.job import TextJob

        common.start(context, TextJob, files, files[0].stem if files else "python-docs", context.params)


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder that `torchrnn text` wrote.")],
    prompt: Annotated[str, Option(help="The text to continue.")] = "",
    temperature: Annotated[float, Option(help="Below 1 surer, above 1 wilder, 0 always the likeliest.")] = 1.0,
    length: Annotated[int, Option(help="Characters (bytes, pieces) to write after the prompt.")] = 500,
    seed: Annotated[int | None, Option(help="The same seed writes the same text.", show_default="a new one")] = None,
) -> None:
    """Write text with a trained model, one character, byte or piece after another."""
    with explained():
        import torch

        from torchrnn.tools.text.sampling import check, generate, load_model
        from torchrnn.tools.text.tokens import Characters

        check(temperature, length, seed)
        model, vocabulary = load_model(run)
        torch.set_num_threads(1)  # one character a step is too little work to share
        strange = sorted(set(prompt) - set(vocabulary.characters)) if isinstance(vocabulary, Characters) else []
        if strange:
            names = " ".join(ascii(character) if not character.isprintable() else character for character in strange)
            complain(f"note: the model has never seen {names}; in --prompt they are read as <unknown>")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # whatever the terminal's encoding is
        print(prompt, end="", flush=True)
        for part in generate(model, vocabulary, prompt, length, temperature, seed):
            print(part, end="", flush=True)
        print()
