"""A hook of the docs build: the pictures of a page are made by the page's own code."""

import io
import posixpath
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from torchrnn.cell import CELLS

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"\]\((pictures/(\w+)\.(svg|png))\)")


def pages(folder: Path) -> dict[str, str]:
    """The pages that show pictures, by their paths in the folder, and their text."""
    texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}
    return {page: texts[page] for page in sorted(texts) if PICTURE.search(texts[page])}


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    from mkdocs.structure.files import File

    made: dict[str, str] = {}
    for page, text in pages(Path(config.docs_dir)).items():
        for name, content in make(text, page).items():
            path = posixpath.join(posixpath.dirname(page), name)
            if path in made:
                raise ValueError(f"{path} is made by {made[path]} and by {page}: rename one of the variables")
            made[path] = page
            files.append(File.generated(config, path, content=content))
    return files


def make(text: str, page: str) -> dict[str, bytes]:
    """The pictures of a page by their names: ``pictures/network.svg`` is the variable ``network`` of its code."""
    names: dict[str, Any] = {"__name__": page}
    known, threads, random = dict(CELLS), torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            for block in BLOCK.findall(text):
                exec(compile(block, page, "exec"), names)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        CELLS.clear()
        CELLS.update(known)
    return collect(text, names)


def collect(text: str, names: dict[str, Any]) -> dict[str, bytes]:
    """The pictures that a page shows, out of the names that its code has left."""
    return {path: _content(names[name], kind) for path, name, kind in PICTURE.findall(text)}


def _content(picture: Any, kind: str) -> bytes:
    if kind == "svg":
        return str(picture).encode("utf-8")
    data = io.BytesIO()
    picture.savefig(data, format="png", dpi=110)
    return data.getvalue()
