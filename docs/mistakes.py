"""Writes docs/mistakes.md: common mistakes and what torch.nn and torchrnn say of them, found by making them."""

import argparse
import ast
import difflib
import re
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import torchrnn

PAGE = Path(__file__).with_name("mistakes.md")
SETUP = """\
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import torchrnn
from torchrnn import nn  # for the other answer: from torch import nn

T, B, I, H = 4, 2, 3, 5
x = torch.randn(T, B, I)
h = torch.zeros(1, B, H)
"""
LONGEST = 240  # of a message; what torch.nn adds beyond is advice for other cases
ACCEPTED = "accepted"
INTRO = """\
What people write, what torch.nn answers, and what torchrnn does. The page is made by making the mistakes, with torch {}
(`python -m docs.mistakes`). Of a message the first line is shown, and of a long one its beginning (…); of a result the
shapes of its Tensors. *Accepted, wrong* is the worst answer: there is no error, and the result is not what was meant.
`ArgumentError` is both a `ValueError` and a `RuntimeError`, so that code which catches torch.nn's errors
catches ours."""


class Mistake(NamedTuple):
    """What somebody wants, what they write, and what they should know."""

    title: str
    code: str
    remark: str
    torch: str = ""  # what they write with torch.nn, if it is something else
    ours_too: bool = False  # torchrnn gives a wrong result as well


STATES = [
    Mistake(
        "One Tensor as the state of an LSTM",
        "nn.LSTM(I, H)(x, h)",
        "The state of an LSTM is the pair (h, c).",
    ),
    Mistake(
        "One Tensor as the state of an LSTM of two layers",
        "nn.LSTM(I, H, num_layers=2)(x, torch.zeros(2, B, H))",
        "torch.nn takes the two layers for h and c.",
    ),
    Mistake("A pair as the state of a GRU", "nn.GRU(I, H)(x, (h, h))", "It often comes from code written for an LSTM."),
    Mistake(
        "The states of an LSTM one by one",
        "nn.LSTM(I, H)(x, h, h)",
        "The message is Python's in both. What to do: `(h, c)` is one argument.",
    ),
    Mistake(
        "A state without the dimension of layers",
        "nn.LSTM(I, H)(x, (h[0], h[0]))",
        "Cells have states (B, H), layers (L·D, B, H), also for one layer.",
    ),
    Mistake(
        "A state with the batch first",
        "nn.GRU(I, H, batch_first=True)(torch.randn(B, T, I), torch.zeros(B, 1, H))",
        "`batch_first` is about input and output.",
    ),
    Mistake(
        "A state with the batch first that fits by chance",
        "nn.GRU(I, H, num_layers=2, batch_first=True)(torch.randn(2, T, I), torch.zeros(2, 2, H))",
        "With as many rows as layers nobody can tell: the rows of one are taken for the layers of the other. Where a "
        "batch is sometimes that small, build the layer with `batch_first_state=True`.",
        ours_too=True,
    ),
    Mistake(
        "A state for one of two directions",
        "nn.GRU(I, H, bidirectional=True)(x, h)",
        "Each direction has a state.",
    ),
    Mistake(
        "A float64 state",
        "nn.LSTM(I, H)(x, (h.double(), h.double()))",
        "NumPy's numbers are float64, if nothing else is said.",
    ),
    Mistake(
        "A full state for a layer with a projection",
        "nn.LSTM(I, H, proj_size=2)(x, (h, h))",
        "The output is projected, and h is the output.",
    ),
    Mistake("One state for all rows", "nn.GRU(I, H)(x, torch.zeros(1, 1, H))", "With torchrnn this is no mistake."),
]
INPUTS = [
    Mistake(
        "Features that do not stand last",
        "nn.GRU(I, H)(torch.randn(T, I, B))",
        "Convolutions have their channels before the time.",
    ),
    Mistake("Tokens as the input", "nn.GRU(I, H)(torch.randint(0, 9, (T, B)))", "Words are not quantities."),
    Mistake("An array", "nn.GRU(I, H)(x.numpy())", ""),
    Mistake(
        "A list of sequences",
        "nn.GRU(I, H)([x[:, 0], x[:2, 1]])",
        "With torchrnn this is no mistake: a list is a batch.",
    ),
    Mistake(
        "The result of another layer",
        "nn.GRU(H, H)(nn.GRU(I, H)(x))",
        "A layer gives its output and its states.",
    ),
    Mistake(
        "Two batch dimensions",
        "nn.GRU(I, H)(torch.randn(T, 6, B, I))",
        "With torchrnn this is no mistake: both are kept.",
    ),
    Mistake("No steps", "nn.GRU(I, H)(x[:0])", "With torchrnn this is no mistake: the state stays as it was."),
    Mistake(
        "A batch-first input for a layer that is not",
        "nn.GRU(I, H)(torch.randn(B, T, I))",
        "Nobody can tell: the B rows are taken for time steps, and the results have a plausible shape. If training "
        "gives no better than chance, look at this first.",
        ours_too=True,
    ),
]
LENGTHS = [
    Mistake(
        "Lengths in any order",
        "nn.GRU(I, H)(x, lengths=[2, 4])",
        "With torchrnn this is no mistake.",
        "nn.GRU(I, H)(pack_padded_sequence(x, [2, 4]))",
    ),
    Mistake(
        "An empty row",
        "nn.GRU(I, H)(x, lengths=[4, 0])",
        "With torchrnn this is no mistake: its output is zero and its state stays.",
        "nn.GRU(I, H)(pack_padded_sequence(x, [4, 0]))",
    ),
    Mistake(
        "A length beyond the input",
        "nn.GRU(I, H)(x, lengths=[7, 4])",
        "The text was cut and its lengths were not.",
        "nn.GRU(I, H)(pack_padded_sequence(x, [7, 4]))",
    ),
    Mistake(
        "Lengths that are no whole numbers",
        "nn.GRU(I, H)(x, lengths=torch.tensor([4.0, 2.5]))",
        "Such lengths are fractions of something. torch.nn cuts 2.5 to 2.",
        "nn.GRU(I, H)(pack_padded_sequence(x, torch.tensor([4.0, 2.5])))[0].batch_sizes.tolist()",
    ),
    Mistake(
        "Padding that is read as data",
        "x[2:, 1] = torch.nan\nnn.GRU(I, H)(x, lengths=[4, 2])[1].isnan().any()",
        "A layer that is not told where a row ends runs on through its padding: the state is that after the padding, "
        "here made visible by NaN. torchrnn does the same if it is not given the lengths.",
        "x[2:, 1] = torch.nan\nnn.GRU(I, H)(x)[1].isnan().any()",
    ),
    Mistake(
        "A mask of numbers",
        "nn.GRU(I, H)(x, mask=torch.ones(T, B))",
        "Numbers might be weights, or say which steps are padding, which is the opposite.",
    ),
    Mistake(
        "A mask with the batch first",
        "nn.GRU(I, H)(x, mask=torch.ones(B, T, dtype=torch.bool))",
        "A mask is arranged as the input is.",
    ),
]
RESULTS = [
    Mistake(
        "A layer in nn.Sequential",
        "nn.Sequential(nn.GRU(I, H), nn.Linear(H, 2))(x)",
        "The message is torch's in both, since the next module raises it. What to do: "
        "`nn.GRU(I, H, return_sequences=False)` gives one Tensor, the last output.",
    ),
    Mistake(
        "The last output of two directions",
        "output, h_n = nn.GRU(I, H, bidirectional=True)(x)\n"
        "torch.allclose(torchrnn.last(output, bidirectional=True), torch.cat((h_n[0], h_n[1]), -1))",
        "At the last step the backward direction has read one step only. `output[-1]` does the same to ours; "
        "`torchrnn.last` takes each direction where it has read everything.",
        "output, h_n = nn.GRU(I, H, bidirectional=True)(x)\n"
        "torch.allclose(output[-1], torch.cat((h_n[0], h_n[1]), -1))",
    ),
    Mistake(
        "The whole result where its output is wanted",
        "torchrnn.last(nn.GRU(I, H)(x))",
        "A layer gives two things: `output, states = layer(x)`. A Tensor's method fails in these words with ours too.",
        "nn.GRU(I, H)(x).mean()",
    ),
    Mistake(
        "Detaching the state of an LSTM",
        "torchrnn.detach(nn.LSTM(I, H)(x)[1])",
        "`.detach()` of the pair fails with ours too; `torchrnn.detach` takes any state.",
        "nn.LSTM(I, H)(x)[1].detach()",
    ),
    Mistake(
        "A state that carries its graph into the next piece",
        "layer, state = nn.GRU(I, H), None\n"
        "for piece in x.split(2):\n"
        "    output, state = layer(piece, state)\n"
        "    output.sum().backward()",
        "The message is torch's in both, and it does not mention the state. The repair is not `retain_graph=True`, "
        "which goes back further with every piece, but `layer(piece, torchrnn.detach(state))`.",
    ),
]
CELLS = [
    Mistake("A sequence for a cell", "nn.GRUCell(I, H)(x)", ""),
    Mistake("A layer's state for a cell", "nn.LSTMCell(I, H)(x[0], (h, h))", ""),
    Mistake(
        "An unbatched state for a batch",
        "nn.RNNCell(I, H)(x[0], torch.zeros(H))",
        "torch.nn reads H as the batch.",
    ),
]
OPTIONS = [
    Mistake(
        "Dropout with one layer",
        "nn.LSTM(I, H, dropout=0.5)",
        "`dropout` acts between layers.",
    ),
    Mistake("An unknown nonlinearity", 'nn.RNN(I, H, nonlinearity="gelu")', ""),
    Mistake("A size for each layer", "nn.LSTM(I, [6, 5])", "With torchrnn this is no mistake."),
]
SECTIONS = {
    "States": STATES,
    "Input": INPUTS,
    "Lengths and masks": LENGTHS,
    "Results": RESULTS,
    "Cells": CELLS,
    "Options of the constructor": OPTIONS,
}


def outcome(code: str, nn: Any) -> str:
    """What Python says when ``code`` runs with this ``nn``: the error, the warning, or what came out."""
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(SETUP, space)
    space["nn"] = nn
    *before, last = ast.parse(code).body
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not isinstance(last, ast.Expr):
                before.append(last)
            exec(compile(ast.Module(before, []), "mistake", "exec"), space)
            value = eval(compile(ast.Expression(last.value), "mistake", "eval"), space) if last not in before else None
        except Exception as error:
            return f"{type(error).__name__}: {_short(str(error))}"
    if caught:
        return f"{caught[0].category.__name__}: {_short(str(caught[0].message))}"
    return f"{ACCEPTED}, gives {_shown(value)}"


def _short(message: str) -> str:
    line = message.strip().splitlines()[0]
    return textwrap.shorten(line, LONGEST, placeholder=" …")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.item()) if value.dim() == 0 else f"({', '.join(map(str, value.shape))})"
    if isinstance(value, (tuple, list)) and any(isinstance(v, (Tensor, tuple, list)) for v in value):
        left, right = "()" if isinstance(value, tuple) else "[]"
        return left + ", ".join(map(_shown, value)) + right
    return str(value)


def _answer(who: str, said: str) -> str:
    return textwrap.fill(said, 110, initial_indent=f"{who:8}  ", subsequent_indent=" " * 10, break_long_words=False)


def _code(mistake: Mistake) -> list[str]:
    """What is written; the lines that both begin with stand once."""
    if not mistake.torch:
        return mistake.code.splitlines()
    *before, theirs = mistake.torch.splitlines()
    return [*before, f"{theirs}  # torch.nn", f"{mistake.code.splitlines()[-1]}  # torchrnn"]


def _entry(title: str, mistake: Mistake, theirs: str, ours: str) -> list[str]:
    answers = [_answer("torch.nn", theirs), _answer("torchrnn", ours)]
    remark = [textwrap.fill(mistake.remark, 120), ""] if mistake.remark else []
    return [f"### {title}", "", "```py", *_code(mistake), "```", "", "```text", *answers, "```", "", *remark]


def _row(title: str, theirs: str, ours: str, ours_too: bool) -> str:
    number, what = title.split(". ", 1)
    anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
    wrong = f"{ACCEPTED}, wrong"
    kinds = [re.split("[:,]", said)[0].replace(ACCEPTED, wrong) for said in (theirs, ours)]
    if not ours_too:
        kinds[1] = kinds[1].replace(wrong, "right")
    return f"| {number} | [{what}](#{anchor}) | {kinds[0]} | {kinds[1]} |"


def page() -> str:
    """The whole page."""
    table, entries, number = [], [], 0
    for section, mistakes in SECTIONS.items():
        entries += [f"## {section}", ""]
        for mistake in mistakes:
            number += 1
            title = f"{number}. {mistake.title}"
            theirs, ours = outcome(mistake.torch or mistake.code, torch.nn), outcome(mistake.code, torchrnn.nn)
            table.append(_row(title, theirs, ours, mistake.ours_too))
            entries += _entry(title, mistake, theirs, ours)
    heading = ["| | what is written | torch.nn | torchrnn |", "|---|---|---|---|"]
    setup = ["```python", *SETUP.splitlines(), "```"]
    intro = textwrap.fill(INTRO.format(torch.__version__.split("+")[0]), 120)
    parts = ["# Common mistakes", "", intro, "", *heading, *table, "", "All begin with", "", *setup, "", *entries]
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it with ``--check``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff if the page differs")
    torch.set_num_threads(1)
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8", newline="\n")
        return 0
    old, new = PAGE.read_text(encoding="utf-8"), page()
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "checked in", "generated"))
    if old != new:
        print("docs/mistakes.md is out of date: run python -m docs.mistakes and commit the result.")
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
