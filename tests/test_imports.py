"""The import table of the design, and what ``import torchrnn`` loads."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import torchrnn

ROOT = Path(torchrnn.__file__).parent
MAY_IMPORT = {
    "activation": set(),
    "cell": {"activation"},
    "call": {"cell", "activation"},  # and the backends, at the first call
    "seeing/*": {"seeing"},
    "seeing/account": {"call", "seeing"},
    "seeing/letters": {"parameters", "seeing"},
    "seeing/shapes": {"parameters", "seeing"},
    "seeing/inside": {"activation", "cell"},
    "seeing/watching": {"backends", "call", "history", "layer", "seeing"},
    "seeing/seen": {"history", "seeing"},
    "seeing/equations": {"activation", "cell", "seeing"},
    "seeing/pictures": {"activation", "cell", "seeing"},
    "check": set(),
    "check_states": {"check"},
    "check_steps": {"check"},
    "plan": {"_extension", "call"},
    "sequence": {"check", "check_steps", "plan"},
    "state": {"check", "check_steps"},
    "layer": {
        "_extension",
        "activation",
        "backends",  # the short way of ordinary calls
        "cell",
        "call",
        "check",
        "check_states",
        "init",
        "lazy",
        "legacy",
        "arguments",
        "parameters",
        "sequence",
        "stack",
    },
    "step": {"_extension", "activation", "backends", "cell", "call", "check", "check_states", "lazy"},
    "arguments": {"check"},
    "parameters": set(),
    "lazy": set(),
    "legacy": {"call", "check"},
    "init": set(),
    "stack": {"call", "check", "check_states", "history", "parameters", "sequence"},
    "history": {"backends", "call", "sequence"},  # how steps are packed
    "stream": {"activation", "backends", "call", "check", "layer", "stack", "state"},
    "decompose": {"_extension", "activation", "cell"},
    "_extension": {"_fake", "_flops"},
    "_fake": {"backends"},
    "_flops": {"backends"},
    "backends/*": {"activation", "backends", "call", "cell", "_extension"},  # second derivatives are the reference's
    "backends/packing": {"call"},
    "backends/quick": {"activation", "backends", "call", "check", "sequence"},  # refused calls are looked at
    "backends/reference": {"backends", "call"},
    "cells/*": {"cell", "check", "layer", "arguments", "step"},
    "cells/__init__": {"cells"},
    "expression": set(),
    "trace": {"activation", "cell", "expression"},
    "codegen": {"cell", "cells", "expression", "trace"},
    # loaded by torchrnn.__getattr__, when it is asked for
    "onnx/said": set(),
    "onnx/nodes": {"onnx"},
    "onnx/scan": {"activation", "cell", "check", "onnx"},
    "onnx/table": {"_extension", "check", "onnx"},
    "onnx/checking": {"onnx"},
    "onnx/exporting": {"_extension", "backends", "check", "layer", "onnx", "step"},
    "onnx/reading": {"cells", "check", "layer", "onnx"},
    "onnx/__init__": {"onnx"},
    "keras/*": {"activation", "cells", "layer", "parameters", "keras"},
    "convert": {"activation", "layer", "arguments", "step", "cells"},
    "nn": {"layer", "cells"},
    "backends/__init__": {"call", "backends"},
    "__init__": {
        "backends",
        "init",
        "nn",
        "call",
        "cell",
        "cells",
        "check",
        "convert",
        "decompose",
        "history",
        "layer",
        "seeing",
        "state",
        "step",
        "stream",
    },
}


def imported(file: Path) -> set[str]:
    """The parts of torchrnn that a file imports when it runs (not those for type checkers)."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{a.name}" for a in node.names] if module == "torchrnn" else [module]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("torchrnn.")}
    return found


FILES = [f for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0] != "tools"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_import_table(file: Path) -> None:
    path = file.relative_to(ROOT).with_suffix("").as_posix()
    allowed = MAY_IMPORT[path] if path in MAY_IMPORT else MAY_IMPORT[path.split("/")[0] + "/*"]
    assert imported(file) <= allowed


# tools may import all of torchrnn; of one another, a run knows no job, and no job knows another
OF_THE_TOOLS = {
    "__init__": set(),
    "cli": {"commands", "runs"},
    "commands": {"commands", "runs", "text", "classify", "forecast", "tables"},
    "runs": {"runs"},
    "text": {"runs", "text"},
    "tables": {"runs", "tables"},
    "classify": {"classify", "runs", "tables"},
    "forecast": {"forecast", "runs", "tables"},
}
TOOLS = list((ROOT / "tools").rglob("*.py"))


@pytest.mark.parametrize("file", TOOLS, ids=lambda f: str(f.relative_to(ROOT / "tools")))
def test_the_import_table_of_the_tools(file: Path) -> None:
    part = file.relative_to(ROOT / "tools").with_suffix("").parts[0]
    names = re.findall(r"^ *(?:from|import) torchrnn\.tools(?:\.| import )(\w+)", file.read_text(), re.MULTILINE)
    assert set(names) <= OF_THE_TOOLS[part]


def run(code: str, env: dict[str, str] | None = None) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout


def test_importing_loads_torch_and_the_standard_library_only() -> None:
    code = (
        "import sys, json, torch; before = set(sys.modules); import torchrnn;"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    loaded = {m for m in json.loads(run(code)) if m not in sys.stdlib_module_names}
    assert loaded <= {"torchrnn", "torch"}


def test_what_few_need_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys, torch, torchrnn; first = 'torchrnn.onnx' in sys.modules; torchrnn.from_onnx, torchrnn.onnx.export;"
        "print(first, 'torchrnn.onnx' in sys.modules, 'onnx' in sys.modules, hasattr(torchrnn, 'none'))"
    )
    assert run(code).split() == ["False", "True", "False", "False"]


def test_importing_takes_less_than_40_ms_beyond_torch(tmp_path: Path) -> None:
    # from compiled bytecode, as pip installs it: where PYTHONDONTWRITEBYTECODE is set, each import would compile
    # the sources anew; of the processor's time: others may be using it, too
    code = "import time, torch; start = time.process_time(); import torchrnn;print(1e3 * (time.process_time() - start))"
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    run("import torchrnn", env)
    assert list(tmp_path.rglob("torchrnn/*.pyc"))
    times = [float(run(code, env)) for _ in range(3)]
    assert statistics.median(times) < 40, times


def test_every_public_name_exists_and_is_documented() -> None:
    for name in torchrnn.__all__:
        thing = getattr(torchrnn, name)
        assert thing.__doc__, name
