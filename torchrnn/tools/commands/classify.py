"""The command `torchrnn classify`: a label for each sequence, or for each of its steps."""

from pathlib import Path
from typing import Annotated

import typer

from torchrnn.tools.classify.settings import ClassifySettings as Default
from torchrnn.tools.commands import common
from torchrnn.tools.commands.common import explained

Option = typer.Option
COLUMN, TABLE = "COLUMN", "TABLE"


def classify(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="A table: .csv, .tsv, .parquet, .jsonl or .ndjson.")
    ] = None,
    label: Annotated[str, Option(metavar=COLUMN, help="What is to be predicted.")] = Default.label,
    text: Annotated[str, Option(metavar=COLUMN, help="Texts, or lists of tokens.")] = Default.text,
    tokens: Annotated[str, Option(metavar="characters|words|bytes", help="What a text consists of.")] = Default.tokens,
    steps_columns: Annotated[
        str, Option(metavar="A,B,C", help="Numbers: lists in each row, or with --sequence one step a row.")
    ] = "",
    sequence: Annotated[str, Option(metavar=COLUMN, help="Names the sequence of a row.")] = Default.sequence,
    time: Annotated[
        str, Option(metavar=COLUMN, help="Orders the rows of a sequence.", show_default="as they stand")
    ] = Default.time,
    tagging: Annotated[bool, Option("--tagging", help="A label for each step.", show_default="if labels are lists")] = (
        Default.tagging
    ),
    split: Annotated[str, Option(metavar=COLUMN, help="Says train, validation or test.")] = Default.split,
    validation: Annotated[float, Option(help="Fraction of the rows to validate on.")] = Default.validation,
    test: Annotated[float, Option(help="Fraction of the rows to test on, once, at the end.")] = Default.test,
    validation_file: Annotated[str, Option(metavar=TABLE, help="Rows to validate on.")] = Default.validation_file,
    test_file: Annotated[str, Option(metavar=TABLE, help="Rows to test on.")] = Default.test_file,
    skip_incomplete: Annotated[
        bool, Option("--skip-incomplete", help="Leave out rows without label or text instead of refusing them.")
    ] = Default.skip_incomplete,
    vocabulary_size: Annotated[int, Option(help="Different tokens, at most.")] = Default.vocabulary_size,
    memory: Annotated[int, Option(help="MiB of data to hold; more is streamed from Parquet.")] = Default.memory,
    run: common.Run = None,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    time_limit: common.TimeLimit = "",
    epochs: common.Epochs = Default.epochs,
    steps: common.Steps = Default.steps,
    patience: common.Patience = Default.patience,
    cell: common.Cell = Default.cell,
    embedding_size: Annotated[int, Option(help="Size of a token's vector.")] = Default.embedding_size,
    hidden_size: common.HiddenSize = Default.hidden_size,
    num_layers: common.NumLayers = Default.num_layers,
    bidirectional: Annotated[bool, Option("--bidirectional", help="Read from the end, too.")] = Default.bidirectional,
    pool: Annotated[str, Option(metavar="last|mean|max", help="What of the steps decides.")] = Default.pool,
    class_weights: Annotated[
        str, Option(metavar="none|balanced", help="Whether rare labels count more in training.")
    ] = Default.class_weights,
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
    """Train a classifier of texts, token lists or series of numbers.

    Without --split or files for them, the rows are split by the seed, of each label the same fractions. The test part
    is read once, after training. The run folder gets config.toml, model.safetensors, metrics.csv, loss.png, and of the
    test part confusion.png, confusion.csv and report.csv.
    """
    with explained():
        from torchrnn.tools.classify.job import ClassifyJob

        context.params["steps_columns"] = tuple(name.strip() for name in steps_columns.split(",") if name.strip())
        common.start(context, ClassifyJob, files, files[0].stem if files else "classify", context.params)
