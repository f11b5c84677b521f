"""The command `torchrnn predict`: what a trained model says of new rows."""

from pathlib import Path
from typing import Annotated

import typer

from torchrnn.tools.commands.common import explained


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table with the columns that the model reads.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new .csv, .tsv, .parquet or .jsonl.", show_default="printed")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the likeliest answers, each with its probability.")] = 1,
) -> None:
    """Write what a trained model (the best validation's weights) says of each row."""
    with explained():
        from torchrnn.tools.runs.run import predict

        typer.echo(predict(run, file, out, top), nl=False)
