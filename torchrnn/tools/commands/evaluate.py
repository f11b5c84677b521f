"""The command `torchrnn evaluate`: the figures of a trained model on other data."""

from pathlib import Path
from typing import Annotated

import typer

from torchrnn.tools.commands.common import explained


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Data of the kind that the run was trained on.")],
) -> None:
    """Measure a trained model (the best validation's weights) on other data; nothing in the run folder changes."""
    with explained():
        from torchrnn.tools.runs.run import evaluate

        typer.echo(evaluate(run, files))
