"""Times our modules, torch.nn's and other libraries' in turn, in one process, after checking that their answers agree.

    python -m benchmarks.run --cases "lstm-*" --mode inference --rounds 60

A sample is enough runs for 2 ms; in each round every subject is sampled once, in an order that changes each round, and
the ratio is taken within the round: what slows the machine for a while slows both. See README.md for how to read it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.cases import Case
from benchmarks.grid import GRIDS, select
from benchmarks.measure import CLOCKS, How, Row, measure
from benchmarks.phases import profile
from benchmarks.rivals import RIVALS, installed
from benchmarks.subjects import Subject
from benchmarks.targets import targets


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Time torchrnn against torch.nn.")
    p.add_argument("--backend", help="force one backend of torchrnn; by default each call chooses")
    p.add_argument("--grid", choices=GRIDS, default="quick")
    p.add_argument("--cases", default="*", metavar="PATTERN", help="such as 'lstm-*,*cell*'; --list shows all")
    p.add_argument("--mode", choices=["inference", "training", "both"], default="both")
    p.add_argument("--rivals", default="none", metavar="NAMES", help="all that are installed, none, or flax,openvino")
    p.add_argument("--rounds", type=int, default=60, metavar="N")
    p.add_argument("--seconds", type=float, default=10, metavar="S", help="a case's rounds stop after this")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads")
    p.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the process's own time, for a busy machine")
    p.add_argument("--json", metavar="FILE", help="write everything there")
    p.add_argument("--picture", metavar="FILE", help="draw the ratios there (needs matplotlib)")
    p.add_argument("--markdown", metavar="FILE", help="write the table there")
    p.add_argument("--limit", type=float, metavar="RATIO", help="exit with 1 if a case is over this against torch.nn")
    p.add_argument(
        "--targets", action="store_true", help="what we promise: the full grid, every rival, figure and yes/no"
    )
    p.add_argument(
        "--profile", action="store_true", help="where the time of ours goes, by phase, in place of the table"
    )
    p.add_argument("--list", action="store_true", help="name the cases and stop")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; the exit status is 1 if a limit was given and a case is over it."""
    options = parser().parse_args(arguments)
    if options.targets:
        options.grid, options.rivals = "full", "all"
    cases = select(options.cases, options.grid)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    torch.set_num_threads(options.threads)
    how = How(options.rounds, options.seconds, options.backend, options.clock)
    if options.profile:
        for case, mode in _each(cases, options.mode):
            print("\n".join(profile(case, mode, how).lines()), flush=True)
        return 0
    rows = _table(cases, options.mode, how, _rivals(options.rivals))
    print("\ngeometric means of the ratios, and the worst case")
    print(report.summary(rows), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(report.as_json(rows, options), indent=1))
    if options.markdown:
        Path(options.markdown).write_text(report.markdown(rows) + "\n")
    if options.picture:
        report.picture(rows, options.picture)
    if options.targets:
        print()
        for target in targets(rows, how):
            print(target, flush=True)
    over = [r for r in rows if options.limit and r.ratios["torch.nn"].median > options.limit]
    for row in over:
        print(f"over {options.limit}: {row.case.name} {row.mode}", file=sys.stderr)
    return 1 if over else 0


def _table(cases: list[Case], mode: str, how: How, rivals: Mapping[str, Subject]) -> list[Row]:
    print(report.heading(), flush=True)
    rows = []
    for case, each in _each(cases, mode):
        rows.append(measure(case, each, how, rivals))
        print(report.line(rows[-1]), flush=True)
    return rows


def _each(cases: list[Case], mode: str) -> Iterator[tuple[Case, str]]:
    for case in cases:
        yield from ((case, each) for each in case.modes if mode in ("both", each))


def _rivals(names: str) -> dict[str, Subject]:
    """torch.nn and the libraries that were asked for.

    Raises:
        ValueError: one of them is not installed.
    """
    there = installed()
    chosen = list(there) if names == "all" else [] if names == "none" else [n.strip() for n in names.split(",")]
    missing = [name for name in chosen if name not in there]
    if missing:
        raise ValueError(
            f"not installed: {', '.join(missing)}; there are {', '.join(there) or 'none'} (torchrnn[bench])"
        )
    return {**RIVALS, **{name: there[name] for name in chosen}}


if __name__ == "__main__":
    sys.exit(main())
