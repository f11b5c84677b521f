"""What the commands share: the options of every run, how errors are told, and how options are read."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from torchrnn.tools.runs.errors import ToolError, UsageError
from torchrnn.tools.runs.settings import default_threads

if TYPE_CHECKING:
    from torchrnn.tools.runs.job import Job

Option = typer.Option

# the options of every run, in the order in which a command takes them; the defaults are those of the job's settings
# torchrun takes --run for the beginning of an option of its own, so there is another name
Run = Annotated[
    Path | None,
    Option("--run", "--run-folder", metavar="DIR", help="The run folder.", show_default="runs/<name of FILE>"),
]
Resume = Annotated[bool, Option("--resume", help="Go on with the run in the folder, exactly.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace the run in the folder.")]
TimeLimit = Annotated[
    str, Option(metavar="TIME", help="Stop, validate and save after 90, 90s, 2m or 1h.", show_default="none")
]
Epochs = Annotated[int, Option(help="Passes over the training part, at most.")]
Steps = Annotated[int, Option(help="Optimiser steps, at most (0: no limit).")]
Patience = Annotated[int, Option(help="Stop after so many validations without a better one (0: never).")]
Cell = Annotated[str, Option(metavar="lstm|gru|rnn", help="The recurrent layer.")]
HiddenSize = Annotated[int, Option(help="Hidden size.")]
NumLayers = Annotated[int, Option(help="Recurrent layers.")]
Dropout = Annotated[float, Option(help="Dropout around and between the layers.")]
BatchSize = Annotated[int, Option(help="Rows of a step, over all processes.")]
Lr = Annotated[float, Option(help="Adam's learning rate.")]
LrDecay = Annotated[str, Option(metavar="none|cosine", help="Whether it falls to zero at the last step, and how.")]
Clip = Annotated[float, Option(help="Largest norm of the gradient (0: not clipped).")]
ValidateEvery = Annotated[int, Option(help="Steps between validations; each writes a checkpoint.")]
Seed = Annotated[int, Option(help="The seed of all random numbers.")]
Precision = Annotated[str, Option(metavar="32|bf16", help="bf16: the layers compute in bfloat16, by autocast.")]
Device = Annotated[str, Option(metavar="auto|cpu|cuda|mps", help="Where to train.")]
Devices = Annotated[int, Option(help="Processes that share each step's rows.")]
Threads = Annotated[int, Option(help="Threads on the CPU, of each process.", show_default="half of the cores")]

DEFAULT_THREADS = default_threads()


def start(
    context: typer.Context, job: "type[Job]", files: Sequence[Path] | None, default: str, given: dict[str, Any]
) -> None:
    """Train a job by the options in `given`, the command's own parameters; `default` names its run folder."""
    from torchrnn.tools.runs.run import Request, train

    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in context.params.items()
        if name in job.settings_class.__dataclass_fields__ and was_given(context, name)
    }
    request = Request(
        job=job,
        files=list(files or []),
        run=given["run"] or Path("runs") / default,
        resume=given["resume"],
        overwrite=given["overwrite"],
        time_limit=seconds(given["time_limit"]) if given["time_limit"] else None,
        given=settings,
        command=shlex.join(["torchrnn", *sys.argv[1:]]),
    )
    result = train(request, Console(stderr=True))
    if result:
        typer.echo(result)


def seconds(text: str) -> float:
    """The seconds in "90", "90s", "2m" or "1.5h"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if value <= 0:
        raise UsageError(f"--time-limit must be a time above 0 such as 90, 90s, 2m or 1.5h, got {text!r}.")
    return value


def was_given(context: typer.Context, name: str) -> bool:
    """Whether an option was written out."""
    source: Any = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def explained() -> Iterator[None]:
    """Tell a ToolError in its paragraph, and end with its exit code."""
    try:
        yield
    except ToolError as error:
        if str(error):
            complain(f"error: {error}")
        raise typer.Exit(error.code) from error


def complain(text: str) -> None:
    """Print a paragraph where errors go."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
