"""A file that a user named: whether it can be read, and its text, or the byte and line where it is not UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from torchrnn.tools.runs.errors import UsageError

# what a file with a wrong name begins with, what it is then, and the way out
MAGIC = {
    b"PAR1": ("Parquet", "Give it the ending .parquet."),
    b"PK\x03\x04": ("a ZIP archive, as Excel workbooks are", "Unpack it, or save the sheet as CSV (UTF-8)."),
    b"\x1f\x8b": ("compressed by gzip", "Decompress it: gunzip -k {path}."),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Decompress it: zstd -d {path}."),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "Save the sheet as CSV (UTF-8)."),
    b"\x89HDF": ("HDF5", "Write the table as CSV or Parquet."),
}


def check_file(path: Path, argument: str, expected: str) -> None:
    """UsageError unless `path` is a file that may be read; what is `expected` of it is for the message."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, argument, expected, error) from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{argument} must be {expected}, got the folder {path}. Name a file in it: {path}{os.sep}....")
    if not stat.S_ISREG(mode):  # a pipe that nobody writes to would be waited for without end
        raise UsageError(
            f"{argument} {path} must be {expected}, and it is a pipe or a device, which cannot be read again. Write "
            f"what it gives into a file, and name that."
        )


def unreadable(path: Path, argument: str, expected: str, error: Exception) -> UsageError:
    """The paragraph for a file that the system does not give; a ValueError is about its name."""
    reason = getattr(error, "strerror", None) or error
    return UsageError(
        f"{argument} {path} could not be read: {reason}. Expected {expected}: name one that you may read."
    )


def decode(path: Path, data: bytes, argument: str) -> str:
    """The text of a UTF-8 file without its byte order mark; UsageError names the byte and the line that are not."""
    for magic, (what, repair) in MAGIC.items():
        if data.startswith(magic):
            raise UsageError(f"{argument} {path} must be UTF-8 text, and it is {what}. {repair.format(path=path)}")
    # UTF-32 little-endian begins as UTF-16 does, so it is asked first
    for mark, name in (
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ):
        if data.startswith(mark):
            raise UsageError(
                f"{argument} {path} must be UTF-8 text, and it begins as {name} does. Convert it: "
                f"iconv -f {name} -t UTF-8 {path} > new{path.suffix}."
            )
    zero = data.find(b"\0")
    if zero >= 0:
        raise UsageError(
            f"{argument} {path}, line {_line(data, zero)}: byte {zero:,} of the file is zero, which text never holds. "
            f"Expected UTF-8 text: the file is binary or damaged. Name another, or write it anew."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        around = data[max(0, start - 12) : start + 12].decode("latin-1")
        raise UsageError(
            f"{argument} {path}, line {_line(data, start)}: byte {start:,} of the file is not UTF-8 "
            f"(0x{data[start]:02x}, about here: {around!r}). If it is text in another encoding, convert it: "
            f"iconv -f ISO-8859-1 -t UTF-8 {path} > new{path.suffix}."
        ) from error


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
