"""Checkpoints: complete folders, checked before use, from which a run goes on exactly; loading one cannot run code.

`checkpoint-00000400/` holds `weights.safetensors`, `state.pt` (tensors, numbers, strings and lists of them; read with
`weights_only=True` alone) and `manifest.json` with the SHA-256 of both.
"""

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchrnn.tools.runs.errors import ToolError, explain_disk
from torchrnn.tools.runs.files import remove_folder, write_folder

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
KEPT = 2  # the one before the last stays, in case the last is damaged by other hands


@dataclass
class Checkpoint:
    """One moment of a run."""

    path: Path
    weights: bytes  # a safetensors file
    state: dict[str, Any]


def save(run: Path, step: int, weights: bytes, state: dict[str, Any]) -> None:
    """Write the checkpoint of `step` in one piece, then let go of those before the last two."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = {WEIGHTS: weights, STATE: buffer.getvalue()}
    manifest = {"step": step, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    write_folder(run / f"checkpoint-{step:08d}", files | {MANIFEST: json.dumps(manifest, indent=1).encode()})
    for old in found(run)[:-KEPT]:
        with explain_disk(old):
            remove_folder(old)


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folders = [path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))


def load_last(run: Path) -> Checkpoint | None:
    """The last checkpoint of a run, None if there is none yet, an error if it is damaged."""
    checkpoints = found(run)
    if not checkpoints:
        return None
    path = checkpoints[-1]
    try:
        return _load(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        other = f"to go on from {checkpoints[-2].name}" if len(checkpoints) > 1 else "and start again with --overwrite"
        reason = " ".join(str(error).split())[:200]
        raise ToolError(
            f"The checkpoint {path} is damaged ({reason}). Bring it back from a copy, or delete that folder {other}. "
            f"The model of the best validation so far, {run / 'model.safetensors'}, was not touched."
        ) from error


def _load(path: Path) -> Checkpoint:
    manifest = json.loads((path / MANIFEST).read_bytes())
    files = {name: (path / name).read_bytes() for name in (WEIGHTS, STATE)}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"{name} is not what {MANIFEST} says was written")
    state = _load_state(files[STATE])
    if not isinstance(state, dict):
        raise TypeError(f"{STATE} does not hold a table")
    return Checkpoint(path, files[WEIGHTS], state)


def _load_state(data: bytes) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words are not quoted: they advise to load it again without weights_only, which runs what is in it
        strange = re.search(r"GLOBAL (\w+(?:\.\w+)*)", str(error))
        found = f", but {strange[1]}, which could run code" if strange else ""
        raise ValueError(f"{STATE} does not hold tensors, numbers, strings and lists of them alone{found}") from error
