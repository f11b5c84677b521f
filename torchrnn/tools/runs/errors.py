"""The errors that the command line explains in a paragraph instead of a traceback."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ToolError(Exception):
    """A mishap during the work, told to the user in one paragraph; the command ends with exit code 1."""

    code = 1


class Stopped(ToolError):
    """The user stopped the run; the command ends with the exit code of Ctrl-C."""

    code = 130


class AlreadyTold(ToolError):
    """Another process has said what happened; this one ends with its exit code, and quietly."""

    def __init__(self, code: int) -> None:
        super().__init__("")
        self.code = code


class UsageError(ToolError):
    """An argument or an input file that cannot be used; the command ends with exit code 2."""

    code = 2


class Mishap(ToolError):
    """Something around the run failed, not the run: once it is put right, the run goes on or is begun again."""


def disk_error(path: Path, error: OSError) -> Mishap:
    """The paragraph for a file that could not be written."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return Mishap(
            f"The disk is full: {path} could not be written ({error.strerror}). The files that were there before are "
            f"whole. Free some space."
        )
    return Mishap(
        f"{path} could not be written: {error.strerror or error}. The files that were there before are whole. Make the "
        f"folder of --run writable."
    )


@contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into the paragraph that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


@contextmanager
def explain_memory() -> Iterator[None]:
    """Turn each of the ways in which torch says that memory is out into one paragraph."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # a size that overflows is one that no memory has
        signs = r"allocate memory|not enough memory|out of memory|bad_alloc|(calculation|multiplication) overflow"
        if not isinstance(error, MemoryError) and not re.search(signs, str(error), re.IGNORECASE):
            raise
        asked = re.search(r"allocate:? (\d+) bytes", str(error))
        amount = f" (one tensor of {int(asked[1]) / 1e9:,.1f} GB was asked for)" if asked else ""
        raise Mishap(
            f"Out of memory: the model and its training need more than there is{amount}. Free some memory, or in a new "
            f"run lower --hidden-size, --num-layers, --batch-size or --sequence-length."
        ) from error
