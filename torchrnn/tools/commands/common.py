"""What the commands share: how errors are told, and how options are read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from torchrnn.tools.runs.errors import ToolError, UsageError


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
        complain(f"error: {error}")
        raise typer.Exit(error.code) from error


def complain(text: str) -> None:
    """Print a paragraph where errors go."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
