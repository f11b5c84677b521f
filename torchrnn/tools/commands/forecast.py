"""The command `torchrnn forecast`: series in a table, foretold over a horizon."""

from pathlib import Path
from typing import Annotated

import typer

from torchrnn.tools.commands import common
from torchrnn.tools.commands.common import explained
from torchrnn.tools.forecast.settings import ForecastSettings as Default

Option = typer.Option


def _names(text: str) -> tuple[str, ...]:
    """The names in "a, b"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def forecast(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Series: .csv, .tsv, .parquet, .jsonl or .ndjson.")
    ] = None,
    time: Annotated[str, Option(metavar="COLUMN", help="The column of time stamps.")] = Default.time,
    target: Annotated[str, Option(metavar="COLUMN,…", help="What is foretold; its past is read.")] = "",
    horizon: Annotated[int, Option(help="Steps of time that are foretold.")] = Default.horizon,
    history: Annotated[int, Option(help="Steps of time that are read.")] = Default.history,
    id: Annotated[str, Option(metavar="COLUMN", help="The column that tells series apart.")] = Default.id,
    known: Annotated[
        str, Option(metavar="COLUMN,…", help="Known for the horizon, too; also hour, dayofweek, … of the time stamp.")
    ] = "",
    past: Annotated[str, Option(metavar="COLUMN,…", help="Read, and known up to now only.")] = "",
    calendar: Annotated[
        str, Option(metavar="auto|none|hour,…", help="Features of the time stamp; auto: as the step suggests.")
    ] = "auto",
    quantiles: Annotated[
        str, Option(metavar="Q,…", help="Foretell quantiles, such as 0.1,0.5,0.9.", show_default="one value")
    ] = "",
    loss: Annotated[str, Option(metavar="mse|mae", help="Of a forecast without quantiles.")] = Default.loss,
    season: Annotated[int, Option(help="Steps of a season (0: as the step suggests).")] = Default.season,
    scale: Annotated[str, Option(metavar="standard|robust|none", help="By the training part.")] = Default.scale,
    scale_by: Annotated[
        str, Option(metavar="series|all", help="A scale for each series, or one for all.")
    ] = Default.scale_by,
    linear: Annotated[
        bool, Option(help="Whether the network corrects the linear baseline or starts from the last value.")
    ] = Default.linear,
    train: Annotated[
        str, Option(metavar="STEPS|DATE", help="How much to train on, from the start.", show_default="what remains")
    ] = Default.train,
    validation: Annotated[
        str, Option(metavar="FRACTION|STEPS|DATE", help="To choose the best weights by.")
    ] = Default.validation,
    test: Annotated[
        str, Option(metavar="FRACTION|STEPS|DATE", help="For the back-test, never trained on.")
    ] = Default.test,
    time_format: Annotated[
        str, Option(metavar="FORMAT", help="How stamps are written: '%d/%m/%Y %H:%M'.", show_default="as in ISO 8601")
    ] = Default.time_format,
    fill_gaps: Annotated[
        bool, Option("--fill-gaps", help="Take rows that are missing as there with missing values.")
    ] = Default.fill_gaps,
    run: common.Run = None,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    time_limit: common.TimeLimit = "",
    epochs: common.Epochs = Default.epochs,
    steps: common.Steps = Default.steps,
    patience: common.Patience = Default.patience,
    cell: common.Cell = Default.cell,
    hidden_size: common.HiddenSize = Default.hidden_size,
    num_layers: common.NumLayers = Default.num_layers,
    dropout: common.Dropout = Default.dropout,
    batch_size: common.BatchSize = Default.batch_size,
    lr: common.Lr = Default.lr,
    lr_decay: common.LrDecay = Default.lr_decay,
    precision: common.Precision = Default.precision,
    clip: common.Clip = Default.clip,
    validate_every: common.ValidateEvery = Default.validate_every,
    seed: common.Seed = Default.seed,
    device: common.Device = Default.device,
    devices: common.Devices = Default.devices,
    threads: common.Threads = common.DEFAULT_THREADS,
) -> None:
    """Train a forecaster on one or many series, beside persistence, seasonal naive and a linear forecast.

    The split is by time. A date is where the validation or test part begins; with --train, where a part ends. The run
    folder gets, beside what every run leaves, the tables and pictures of a back-test on the test part.
    """
    with explained():
        for name in ("target", "known", "past", "calendar", "quantiles"):
            context.params[name] = _names(context.params[name])

        from torchrnn.tools.forecast.job import ForecastJob

        common.start(context, ForecastJob, files, files[0].stem if files else "forecast", context.params)
