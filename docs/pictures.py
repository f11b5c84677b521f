"""A hook of the docs build: the pictures of a page are made by the page's own code."""

import io
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from torchrnn.cell import CELLS

PAGE = "seeing.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"\]\((pictures/(\w+)\.(svg|png))\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    from mkdocs.structure.files import File

    text = (Path(config.docs_dir) / PAGE).read_text(encoding="utf-8")
    for name, content in make(text).items():
        files.append(File.generated(config, name, content=content))
    return files


def make(text: str) -> dict[str, bytes]:
    """The pictures of a page by their names: ``pictures/network.svg`` is the variable ``network`` of its code."""
    names: dict[str, Any] = {"__name__": PAGE}
    known, threads, random = dict(CELLS), torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            for block in BLOCK.findall(text):
                exec(compile(block, PAGE, "exec"), names)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        CELLS.clear()
        CELLS.update(known)
    return {path: _content(names[name], kind) for path, name, kind in PICTURE.findall(text)}


def _content(picture: Any, kind: str) -> bytes:
    if kind == "svg":
        return str(picture).encode("utf-8")
    data = io.BytesIO()
    picture.savefig(data, format="png", dpi=110)
    return data.getvalue()
