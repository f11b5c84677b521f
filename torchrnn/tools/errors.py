"""The errors that the command line explains in a paragraph instead of a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ToolError(Exception):
    """A mishap during the work, told to the user in one paragraph; the command ends with exit code 1."""

    code = 1


class Stopped(ToolError):
    """The user stopped the run; the command ends with the exit code of Ctrl-C."""

    code = 130


class UsageError(ToolError):
    """An argument or an input file that cannot be used; the command ends with exit code 2."""

    code = 2


def disk_error(path: Path, error: OSError) -> ToolError:
    """The paragraph for a file that could not be written."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return ToolError(
            f"The disk is full: {path} could not be written ({error.strerror}). The files that were there before are "
            f"whole. Free some space, then give the command again with --resume."
        )
    return ToolError(
        f"{path} could not be written: {error.strerror or error}. The files that were there before are whole. Make the "
        f"folder of --run writable, then give the command again with --resume."
    )


@contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into the paragraph that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
