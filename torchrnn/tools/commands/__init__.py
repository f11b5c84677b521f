"""The commands of `torchrnn`: arguments, exit codes, and what is printed."""

from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any

import typer

from torchrnn.tools.commands.classify import classify
from torchrnn.tools.commands.common import explained
from torchrnn.tools.commands.evaluate import evaluate
from torchrnn.tools.commands.forecast import forecast
from torchrnn.tools.commands.predict import predict
from torchrnn.tools.commands.shapes import shapes
from torchrnn.tools.commands.text import sample, text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train models with torchrnn's recurrent layers, use them, and see the shapes of a layer.",
)

Option = typer.Option


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchrnn {version('torchrnn')}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@wraps(shapes)
def _shapes(**given: Any) -> None:
    with explained():
        shapes(**given)


EXAMPLES = {
    text: "torchrnn text book.txt --run runs/book --time-limit 10m",
    sample: 'torchrnn sample runs/book --prompt "It was " --temperature 0.7 --length 500',
    classify: "torchrnn classify names.csv --text name --label language",
    forecast: "torchrnn forecast sales.csv --time date --target sold --id shop --known price --horizon 28 --history 84",
    predict: "torchrnn predict runs/names new-names.csv --out answers.csv",
    evaluate: "torchrnn evaluate runs/book another-book.txt",
    _shapes: "torchrnn shapes lstm --input-size 50 --hidden-size 100 --num-layers 2 --seq 10",
}
for command, example in EXAMPLES.items():
    app.command(command.__name__, epilog=f"Example: {example}")(command)
app.command("train", hidden=True)(text)  # the name of `text` until there were other jobs
