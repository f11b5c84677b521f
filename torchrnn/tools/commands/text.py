"""The commands about text: training a model of it, and writing text with one."""

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from torchrnn.tools.commands.common import complain, explained, seconds, was_given
from torchrnn.tools.runs.settings import Settings, default_threads

Option = typer.Option


def train(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="UTF-8 text, in any script; without one, Python's documentation."),
    ] = None,
    run: Annotated[
        Path | None, Option(metavar="DIR", help="The run folder.", show_default="runs/<name of FILE>")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with the run in the folder, exactly.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the run in the folder.")] = False,
    time_limit: Annotated[
        str, Option(metavar="TIME", help="Stop, validate and save after 90, 90s, 2m or 1h.", show_default="none")
    ] = "",
    epochs: Annotated[int, Option(help="Passes over the training text, at most.")] = Settings.epochs,
    steps: Annotated[int, Option(help="Optimiser steps, at most (0: no limit).")] = Settings.steps,
    patience: Annotated[
        int, Option(help="Stop after so many validations without a better one (0: never).")
    ] = Settings.patience,
    cell: Annotated[str, Option(metavar="lstm|gru|rnn", help="The recurrent layer.")] = Settings.cell,
    embedding_size: Annotated[int, Option(help="Size of a character's vector.")] = Settings.embedding_size,
    hidden_size: Annotated[int, Option(help="Hidden size.")] = Settings.hidden_size,
    num_layers: Annotated[int, Option(help="Recurrent layers.")] = Settings.num_layers,
    dropout: Annotated[float, Option(help="Dropout around and between the layers.")] = Settings.dropout,
    batch_size: Annotated[int, Option(help="Streams of text read side by side.")] = Settings.batch_size,
    sequence_length: Annotated[int, Option(help="Steps of time that a gradient goes back.")] = Settings.sequence_length,
    lr: Annotated[float, Option(help="Adam's learning rate.")] = Settings.lr,
    clip: Annotated[float, Option(help="Largest norm of the gradient (0: not clipped).")] = Settings.clip,
    validation: Annotated[
        float, Option(help="The last fraction of the text, for validation only.")
    ] = Settings.validation,
    validate_every: Annotated[
        int, Option(help="Steps between validations; each writes a checkpoint.")
    ] = Settings.validate_every,
    seed: Annotated[int, Option(help="The seed of all random numbers.")] = Settings.seed,
    device: Annotated[str, Option(metavar="auto|cpu|cuda|mps", help="Where to train.")] = Settings.device,
    threads: Annotated[int, Option(help="Threads on the CPU.", show_default="half of the cores")] = default_threads(),
) -> None:
    """Train a character model by truncated backpropagation through time.

    The run folder gets config.toml, model.safetensors (the best validation), metrics.csv, loss.png, TensorBoard logs
    and the last checkpoints. A run that was killed goes on exactly where its last checkpoint was: --resume.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if name in Settings.__dataclass_fields__ and was_given(context, name)
    }
    with explained():
        from torchrnn.tools.runs.run import Request
        from torchrnn.tools.runs.run import train as train_run

        limit = seconds(time_limit) if time_limit else None
        command = shlex.join(["torchrnn", *sys.argv[1:]])
        request = Request(list(files or []), run, resume, overwrite, limit, given, command)
        result = train_run(request, Console(stderr=True))
        typer.echo(result)


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder that `torchrnn train` wrote.")],
    prompt: Annotated[str, Option(help="The text to continue.")] = "",
    temperature: Annotated[float, Option(help="Below 1 surer, above 1 wilder, 0 always the likeliest.")] = 1.0,
    length: Annotated[int, Option(help="Characters to write after the prompt.")] = 500,
    seed: Annotated[int | None, Option(help="The same seed writes the same text.", show_default="a new one")] = None,
) -> None:
    """Write text with a trained model, character by character."""
    with explained():
        import torch

        from torchrnn.tools.text.sampling import check, generate, load_model

        check(temperature, length)
        model, vocabulary = load_model(run)
        torch.set_num_threads(1)  # one character a step is too little work to share
        strange = sorted(set(prompt) - set(vocabulary.characters))
        if strange:
            names = " ".join(ascii(character) if not character.isprintable() else character for character in strange)
            complain(f"note: the model has never seen {names}; in --prompt they are read as <unknown>")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # whatever the terminal's encoding is
        print(prompt, end="", flush=True)
        for character in generate(model, vocabulary, prompt, length, temperature, seed):
            print(character, end="", flush=True)
        print()
