"""Writes docs/support.md: what torch.nn's and torchrnn's layers can do, found by doing it."""

import argparse
import difflib
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import torchrnn
from docs.features import graphs, modules, sequences, subject, transforms
from docs.features.subject import SUBJECTS, Feature, NoSuchThing, NotSo, Subject, Wrong, message, watched
from torchrnn.call import BACKENDS

PAGE = Path(__file__).with_name("support.md")
GROUPS = {
    "Sequences": sequences.FEATURES,
    "Graphs": graphs.FEATURES,
    "Differentiation and torch.func": transforms.FEATURES,
    "Modules": modules.FEATURES,
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2, torch.float16: 1e-2}
INTRO = """\
Each row is something people do with a recurrent layer, each column a layer, and each entry what happened when it was
done. The page was made by doing each thing on the CPU with torch {} (`python -m docs.support`), and by comparing
every result, and every gradient where there is a backward, with plain loops over rows and steps: in float64 to 1e-12,
and but for graphs again in float32 to 1e-4."""
LEGEND = """\
`yes`, or who did it: `kernels` (torchrnn's own, the backend `cpu`), `torch` (torch's, the backend `aten`), `steps`
(plain torch operations step by step, the backend `reference`); two of them, where forward and a second backward differ.
In graphs it is what the graph holds. `float32:` stands where float32 differs. `no`: there was an error, or the numbers
were right and the promise was not kept; the number leads to the error's first sentence, which is the first cell's where
cells differ by their name alone. **wrong**: there was no error, and a number was not what the equations say. `–`: there
is no such thing. The user's cell is the coupled LSTM of [Write a cell](cells.md): it has no generated kernel."""
DTYPES = """\
Forward and backward of a dense batch and of one with rows of different lengths (`lengths=`; for torch.nn a
`PackedSequence`), each backend forced by `torchrnn.use`, in this order of preference. Of 16-bit numbers the results
are compared with float64 to {} (bfloat16) and {} (float16). This is what the kernels do on every processor
(`TORCHRNN_ISA=baseline`); [Backends](backends.md) tells what depends on it."""


class Notes:
    """The errors of a table, numbered as they come."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def number(self, text: str) -> int:
        """Of an error; one number for cells that differ by name alone."""
        key = text
        for name in ("rnn_tanh", "coupled_lstm", "CoupledLSTM", "RNN", "LSTM", "GRU", "lstm", "gru"):
            key = key.replace(name, "…")
        self.lines.setdefault(key, text)
        return list(self.lines).index(key) + 1


def tried(attempt: Callable[[], str], notes: Notes) -> str:
    """What comes of an attempt."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return attempt()
        except NoSuchThing:
            return "–"
        except NotSo as error:
            return f"no ({notes.number(str(error))})"
        except Wrong as error:
            return f"**wrong** ({notes.number(f'{error}')})"
        except Exception as error:
            return f"no ({notes.number(f'`{type(error).__name__}`: {message(error)}')})"


def entry(feature: Feature, of: Subject, notes: Notes) -> str:
    """What comes of a feature in both types, for torch.nn has other kernels for float32; of graphs, in float64."""
    before = torch.get_default_dtype()
    said = []
    for dtype in [torch.float64] if feature in graphs.FEATURES else subject.TOLERANCES:
        torch.set_default_dtype(dtype)
        try:
            said.append(tried(partial(ran, feature, of), notes))
        finally:
            torch.set_default_dtype(before)
    return said[0] if len({*said}) == 1 else f"{said[0]}; float32: {said[1]}"


def ran(feature: Feature, of: Subject) -> str:
    """Do it, and say who did."""
    if not of.ours:
        feature.attempt(of)
        return "yes"
    if feature in graphs.FEATURES:  # whose compilers would read the watching, too
        return feature.attempt(of) or "yes"
    with watched() as seen:
        feature.attempt(of)
    return ", ".join(name for name in ("kernels", "torch", "steps") if name in seen) or "yes"


def table(heading: list[str], rows: list[list[str]], notes: Notes) -> list[str]:
    """A table and its notes."""
    lines = [f"| {' | '.join(row)} |" for row in [heading, ["---"] * len(heading), *rows]]
    numbered = [f"{k}. {line}" for k, line in enumerate(notes.lines.values(), 1)]
    return [*lines, "", *numbered, *([""] if numbered else [])]


def features() -> list[str]:
    """One table for each group of features."""
    lines = []
    for title, group in GROUPS.items():
        notes, rows = Notes(), []
        for feature in group:
            rows.append([feature.title, *(entry(feature, of, notes) for of in SUBJECTS.values())])
        lines += [f"## {title}", "", *table(["", *SUBJECTS], rows, notes)]
    return lines


def dtypes() -> list[str]:
    """Backend × cell × type."""
    notes, rows = Notes(), []
    backends = [name for name in ("cpu", "aten", "reference") if name in BACKENDS]
    for backend in ("torch.nn", *backends):
        for name, of in SUBJECTS.items():
            if of.ours is (backend == "torch.nn"):
                continue
            row = [backend if not of.ours else f"`{backend}`", name.split()[-1] if of.ours or "." in name else name]
            for dtype in TOLERANCES:
                for lengths in (None, sequences.LENGTHS):
                    row.append(tried(partial(typed, backend, of, dtype, lengths), notes))
            rows.append(row)
    heading = ["backend", "cell"]
    for dtype in TOLERANCES:
        heading += [str(dtype).removeprefix("torch."), "lengths"]
    return table(heading, rows, notes)


def typed(backend: str, of: Subject, dtype: torch.dtype, lengths: torch.Tensor | None) -> str:
    """One entry of the table of types."""
    if of.ours:
        with torchrnn.use(backend):
            sequences.narrow(of, dtype, TOLERANCES[dtype], lengths)
    else:
        sequences.narrow(of, dtype, TOLERANCES[dtype], lengths)
    return "yes"


def page() -> str:
    """The whole page."""
    intro = textwrap.fill(INTRO.format(torch.__version__.split("+")[0]), 120)
    types = textwrap.fill(DTYPES.format(TOLERANCES[torch.bfloat16], TOLERANCES[torch.float16]), 120)
    parts = ["# Support", "", intro, "", textwrap.fill(LEGEND, 120), "", *features()]
    return "\n".join([*parts, "## Backends and types", "", types, "", *dtypes()]).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it with ``--check``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff if the page differs")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    os.environ["TORCHRNN_ISA"] = "baseline"  # what is refused must not depend on the processor
    logging.disable(logging.WARNING)  # compilers log what the page says
    new = page()
    if not check:
        PAGE.write_text(new, encoding="utf-8", newline="\n")
        return 0
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "checked in", "generated"))
    if old != new:
        print("docs/support.md is out of date: run python -m docs.support and commit the result.")
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
