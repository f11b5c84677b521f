"""Every Python block of the docs, README and docstrings runs, prints what is said, and makes the pictures shown."""

import ast
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import docs.pictures
import torchrnn
from torchrnn.cell import CELLS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MODULES = sorted(ROOT.glob("torchrnn/**/*.py"))


def run(example):
    """Run a ```python block; keep what it prints."""
    with redirect_stdout(io.StringIO()) as printed:
        PythonEvaluator()(example)
    example.namespace["_printed"] = printed.getvalue()


def compare(example):
    """Compare an ```output block with what the block before it has printed."""
    printed = example.namespace.pop("_printed", "")
    if example.parsed.strip() == printed.strip():
        return None
    return f"the page says:\n{example.parsed.strip()}\nthe code prints:\n{printed.strip()}"


PARSER = Sybil(
    [CodeBlockParser("python", run), CodeBlockParser("output", compare)],
    document_types={".py": PythonDocStringDocument},
)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process():
    """Examples seed themselves, run on one thread, and leave no cell behind."""
    cells, threads, state = dict(CELLS), torch.get_num_threads(), torch.get_rng_state()
    for one in [n for n, c in cells.items() if not c.step.__module__.startswith("torchrnn.")]:
        del CELLS[one]  # defined by another test
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        yield
    CELLS.clear()
    CELLS.update(cells)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_page(path):
    document = PARSER.parse(path)
    document.namespace["__name__"] = name(path)
    for example in document.examples():
        example.evaluate()
    for shown, content in docs.pictures.collect(document.text, document.namespace).items():
        if shown.endswith("svg"):
            ElementTree.fromstring(content)
        else:
            assert content.startswith(b"\x89PNG"), shown


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_docstrings(path):
    document = PARSER.parse(path)
    for example in document.examples():
        document.namespace.clear()  # each docstring stands for itself
        document.namespace["__name__"] = name(path)
        example.evaluate()


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: torchrnn\.(?:\w+\.)*(\w+)$", text, re.MULTILINE))
    assert set(torchrnn.__all__) <= listed | {"nn"}


def test_every_page_begins_with_an_import():
    for path in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        if blocks:
            first = ast.parse(blocks[0]).body[0]
            assert isinstance(first, (ast.Import, ast.ImportFrom)), f"{name(path)}: the first block must import"
