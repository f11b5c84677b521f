"""One process at a time trains a run: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrnn.tools.runs.errors import ToolError

try:
    import fcntl
except ImportError:  # Windows has none: two processes are then not kept apart
    fcntl = None


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path` for the block, or say that another process has it."""
    handle = _lock(path)
    try:
        yield
    finally:
        # Windows removes no open file; elsewhere it goes while it is locked, and _lock sees that it went
        if fcntl is None:
            os.close(handle)
        path.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is None:
                return handle
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ToolError(
                    f"Another process is training this run, in {path.parent}. Wait until it ends or stop it, or choose "
                    f"another folder: --run."
                ) from error
            except OSError:
                return handle  # a file system without locks, as some network drives
            if _is_still(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the process that had the lock ended in between and took the file with it


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
