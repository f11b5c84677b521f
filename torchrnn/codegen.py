"""A cell's step as a C++ functor, forward and backward; PyTorch derives the backward.

Run ``python -m torchrnn.codegen`` to write the headers of our own cells, with ``--check`` to see that they are current.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from torchrnn.cell import CELLS, Cell
from torchrnn.expression import OPTIONS, Value, reach
from torchrnn.trace import Plan, Step, arrange, trace

FOLDER = Path(__file__).parent.parent / "csrc" / "cells"
_LEVELS = ({"<", ">", "<=", ">=", "==", "!=", "&", "|"}, {"+", "-"}, {"*", "/"})
_CONSTANTS = {0.0: "zero", 0.5: "half", 1.0: "one", 2.0: "two"}
_WORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const consteval
    constexpr constinit const_cast continue co_await co_return co_yield decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not
    not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires return short signed
    sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef typeid
    typename union unsigned using virtual void volatile wchar_t while xor xor_eq V
    exp log log1p expm1 sqrt abs erf sigmoid tanh relu max min select splat forward backward
    activate activate_backward clip clip_backward open options O
    gates states extra columns saved h_column reads backward_reads_new backward_reads_previous
    pre previous next keep dnext dpre dprevious
"""
_RESERVED = set(_WORDS.split())


def header(cell: Cell) -> str:
    """The C++ header of a cell: a struct with the functor of its step, forward and backward.

    Args:
        cell: any cell of elementwise operations.

    Returns:
        The text of the header. It opens no namespace and includes nothing; ``docs/codegen.md`` says what it needs.

    Raises:
        NotImplementedError: the step uses an operator that has no C++ form here.
    """
    plain, free = _functor(cell, plain=True), _functor(cell, plain=False)
    if plain.plan.h_column != free.plan.h_column or plain.flags(cell, "reads") != free.flags(cell, "reads"):
        raise NotImplementedError(f"cell {cell.name!r} reads other states with options than without")
    return _struct(cell, plain, free)


class Functor(NamedTuple):
    """What a header says of one form of a step: that without options, or that with them."""

    plan: Plan
    kept: str
    forward: Body
    backward: Body

    def flags(self, cell: Cell, which: str) -> str:
        """The line that says which states a function reads."""
        body = self.forward if which == "reads" else self.backward
        array = "next" if which == "backward_reads_new" else "previous"
        values = ("true" if f"{array}[{k}]" in body.touched else "false" for k in range(len(cell.states)))
        return f"static constexpr bool {which}[states] = {{{', '.join(values)}}};"

    @property
    def saved(self) -> tuple[str, str]:
        """The lines that say how many values are kept for backward, and what the step calls them."""
        return f"static constexpr int saved = {len(self.plan.kept)};", f'static constexpr char kept[] = "{self.kept}";'


def _functor(cell: Cell, *, plain: bool) -> Functor:
    step = trace(cell, plain=plain)
    plan = arrange(step)
    names = _names(step, plan, cell)
    previous = _places("previous", step.previous)
    options = {step.x[0].graph.leaf(OPTIONS): OPTIONS}
    forward = _body(
        {**_places("next", step.next), **_places("keep", plan.kept)},
        {v: f"pre[{k}]" for v, k in plan.columns.items()} | _standing(previous) | options,
        names,
    )
    pre = dict(zip(plan.h_column, step.dh, strict=True)) | dict(enumerate(step.dx))
    given = _places("keep", plan.kept) | _places("next", step.next) | previous | _places("dnext", step.dnext)
    backward = _body(
        {**_places("dpre", [pre[k] for k in sorted(pre)]), **_places("dprevious", step.dprevious)},
        _standing(given) | options,
        names,
    )
    return Functor(plan, " ".join(names[v] for v in plan.kept), forward, backward)


def _names(step: Step, plan: Plan, cell: Cell) -> dict[Value, str]:
    """A C++ name for every value that has one in Python, and for the columns that are kept."""
    # C++ keeps two underscores for itself
    wanted = {v: name for v, name in step.names.items() if re.fullmatch(r"[A-Za-z](_?[A-Za-z0-9])*_?", name)}
    for k, gate in enumerate(cell.gates):
        for value, column in plan.columns.items():
            if value in plan.kept and column in (k, plan.h_column[k]):
                part = "h" if value is step.h[k] else "x" if value is step.x[k] else "a"
                wanted.setdefault(value, f"{part}_{gate}")
    for k, value in enumerate(plan.kept):
        wanted.setdefault(value, f"t{k}")
    names, taken = {}, set(_RESERVED)
    for value, name in wanted.items():
        base = name.removesuffix("_")
        choices = itertools.chain((name, base + "_"), (f"{base}{k}" for k in itertools.count(2)))
        names[value] = next(c for c in choices if c not in taken)
        taken.add(names[value])
    return names


def struct_name(cell: Cell) -> str:
    """How the struct of a cell is called: as the cell, unless C++ has that name for itself."""
    return cell.name + "_" * (cell.name in _RESERVED)


# --- from values to C++


class _Printer:
    """Prints values as C++; those in ``text`` by what stands there."""

    def __init__(self, text: dict[Value, str]) -> None:
        self.text = text

    def show(self, value: Value, above: int = 0) -> str:
        """The expression of a value, in parentheses if the operator around it binds as tightly or tighter."""
        return self.text.get(value) or self.work(value, above)

    def work(self, value: Value, above: int = 0) -> str:
        """The operation of a value, even if the value has a name."""
        op, args = value.op, value.args
        if op == "number":
            return f"splat<V>({_number(value.content)})"
        if op in ("neg", "!"):
            return f"{'-' if op == 'neg' else op}{self.show(args[0], 9)}"
        level = next((k for k, ops in enumerate(_LEVELS, 1) if op in ops), None)
        if level is None:
            return f"{op}({', '.join(self.show(a) for a in args)})"
        # the right side of a + (b + c) keeps its parentheses: the rounding is torch's
        line = f"{self.show(args[0], max(level - 1, 1))} {op} {self.show(args[1], level)}"
        return f"({line})" if level <= above else line


def _number(number: float) -> str:
    if number != number or abs(number) == float("inf"):
        return '__builtin_nan("")' if number != number else f"{'-' * (number < 0)}__builtin_inf()"
    return str(int(number)) if number == int(number) and abs(number) < 1e9 else repr(number)


class Body(NamedTuple):
    """The statements of a function, and the elements of its arrays that it reads and writes."""

    lines: list[str]
    touched: set[str]


def _places(array: str, values: list[Value]) -> dict[str, Value]:
    return {f"{array}[{k}]": v for k, v in enumerate(values)}


def _standing(places: dict[str, Value]) -> dict[Value, str]:
    return {v: place for place, v in places.items()}


def _body(outputs: dict[str, Value], given: dict[Value, str], names: dict[Value, str]) -> Body:
    """What computes the outputs from what is given: named where Python has a name, shared where used twice."""
    outputs = {place: v.graph.lift(v) for place, v in outputs.items()}
    needed = sorted(reach(outputs.values(), given), key=lambda v: v.order)
    uses = Counter(a for v in needed if v not in given for a in v.args)
    uses.update(outputs.values())
    taken = {*names.values(), *_RESERVED}
    fallback = (name for k in itertools.count() if (name := f"t{k}") not in taken)
    printer, start, lines = _Printer({}), ([], []), []
    for value in needed:
        name = names.get(value)
        text = given.get(value) or printer.work(value)
        if value.op == "number":
            name = _CONSTANTS.get(value.content) if uses[value] > 1 else None
            name = None if name in taken else name
        elif value not in given and uses[value] > 1:
            name = name or next(fallback)
        if value.is_mask and value in given:
            lines.append(f"const auto {name} = {text} != splat<V>(0);")
        elif name and (value in given or value.op == "number"):
            start[value.op == "number"].append(f"{name} = {text}")
        elif name:
            lines.append(f"const {'auto' if value.is_mask else 'V'} {name} = {text};")
        if name or value in given:
            printer.text[value] = name or text
    first = [f"const V {', '.join(parts)};" for parts in start if parts]
    stores = [f"{place} = {printer.show(value)};" for place, value in outputs.items()]
    return Body([*first, *lines, *stores], {given[v] for v in needed if v in given} | set(outputs))


def _struct(cell: Cell, plain: Functor, free: Functor) -> str:
    """The whole header."""
    G = len(cell.gates)
    extra = len(plain.plan.columns) - G
    reads = ("backward_reads_previous", "backward_reads_new")
    lines = [
        f"// Generated by python -m torchrnn.codegen from {_source(cell)}; do not edit.",
        f"struct {struct_name(cell)} {{",
        f"  static constexpr int gates = {G};  // {' '.join(cell.gates)}",
        f"  static constexpr int states = {len(cell.states)};  // {' '.join(cell.states)}",
        f"  static constexpr int extra = {extra};  // gates whose x- and h-parts are not only added",
        "  static constexpr int columns = gates + extra;",
        *(f"  {line}" for line in plain.saved),
        f"  static constexpr int h_column[gates] = {{{', '.join(map(str, plain.plan.h_column))}}};",
        *(f"  {plain.flags(cell, which)}" for which in ("reads", *reads)),
        "",
        "  // pre: an additive gate's x + h; of another gate its x, and its h at h_column",
        *_function("forward", "pre previous", "next keep", plain.forward),
        "",
        "  // dprevious: the pointwise path only",
        *_function("backward", "keep previous next dnext", "dpre dprevious", plain.backward),
        "",
        "  // The same with options that are known when it runs: what `activate` is, and where `clip` begins.",
        "  struct open {",
        *(f"    {line}" for line in free.saved),
        *(f"    {free.flags(cell, which)}" for which in reads),
        "",
        *_function("forward", "pre previous", "next keep", free.forward, "  "),
        "",
        *_function("backward", "keep previous next dnext", "dpre dprevious", free.backward, "  "),
        "  };",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _function(name: str, reads: str, writes: str, body: Body, inside: str = "") -> list[str]:
    """A function of the struct; one inside the struct of those with options takes them too."""
    arrays = {place.split("[")[0] for place in body.touched}
    parameters = [f"const V* {p}" for p in reads.split()] + [f"V* {p}" for p in writes.split()]
    if inside:
        parameters.append("const O& options")
    # an unused parameter has no name, so that compilers do not warn
    shown = [p if p.split()[-1] in arrays else re.sub(r" (\w+)$", r" /*\1*/", p) for p in parameters]
    return [
        f"{inside}  template <class V{', class O' if inside else ''}>",
        f"{inside}  static inline __attribute__((always_inline))",
        *_wrapped(f"void {name}({', '.join(shown)}) {{", f"{inside}  "),
        *(part for statement in body.lines for part in _wrapped(statement, f"{inside}    ")),
        f"{inside}  }}",
    ]


def _wrapped(statement: str, indent: str) -> list[str]:
    lines = textwrap.wrap(
        statement.replace(" options", "\0options").replace(" /*options", "\0/*options"),  # these stay with their type
        120,
        initial_indent=indent,
        subsequent_indent=indent + " " * 4,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def _source(cell: Cell) -> str:
    module = cell.step.__module__
    return module.replace(".", "/") + ".py" if module.startswith("torchrnn.") else f"{module}.{cell.name}"


def _all(names: list[str]) -> str:
    """The header that includes those of all cells and lists them."""
    return "\n".join(
        [
            "// Generated by python -m torchrnn.codegen from the registry of cells; do not edit.",
            *(f'#include "{name}.h"' for name in sorted(names)),
            f"#define TORCHRNN_CELLS(X) {' '.join(f'X({name})' for name in sorted(names))}\n",
        ]
    )


# --- the command


def main(arguments: list[str] | None = None) -> int:
    """Write the headers of torchrnn's own cells, or compare them with ``--check``."""
    import torchrnn.cells  # noqa: F401  (they enter the registry)

    parser = argparse.ArgumentParser(prog="python -m torchrnn.codegen", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff if a header differs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the headers are (default: csrc/cells)")
    options = parser.parse_args(arguments)
    own = [c for c in CELLS.values() if c.step.__module__.startswith("torchrnn.cells.") and not c.late]
    headers = {f"{c.name}.h": header(c) for c in own} | {"all.h": _all([c.name for c in own])}
    if not options.check:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, text in headers.items():
            (options.folder / name).write_text(text, encoding="utf-8", newline="\n")
        return 0
    found = {file.name: file.read_text(encoding="utf-8") for file in options.folder.glob("*.h")}
    differs = False
    for name in sorted({*headers, *found}):
        old, new = found.get(name, "").splitlines(True), headers.get(name, "").splitlines(True)
        sys.stdout.writelines(difflib.unified_diff(old, new, f"checked in/{name}", f"generated/{name}"))
        differs = differs or found.get(name) != headers.get(name)
    if differs:
        print("The headers differ from the cells: run python -m torchrnn.codegen and commit the result.")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
