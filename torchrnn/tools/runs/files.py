"""Writing so that a kill or a full disk at any instant leaves either the old file or the new one, never half of one."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torchrnn.tools.runs.errors import explain_disk

PARTIAL = ".partial"


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: written beside it, flushed to the disk, then renamed over it."""
    partial = path.with_name(path.name + PARTIAL)
    with explain_disk(path):
        try:
            _write_through(partial, data)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)  # on a full disk the half-written file would keep it full
            raise
        sync_folder(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Create the folder `path` with all of `files`, or not at all: it gets its name when it is complete."""
    partial = path.with_name(path.name + PARTIAL)
    with explain_disk(path):
        try:
            remove_folder(partial)  # what a kill may have left
            partial.mkdir()
            for name, data in files.items():
                _write_through(partial / name, data)
            sync_folder(partial)
            remove_folder(path)
            os.rename(partial, path)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove the folder `path` and what is in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in the folder `path` to the disk."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened, and renames are already on the disk
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
