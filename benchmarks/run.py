"""Times our modules and torch.nn's in turn, in one process, after checking that their answers agree.

    python -m benchmarks.run --cases "lstm-*" --mode inference --rounds 60

A sample is enough runs for 2 ms; in each round every subject is sampled once, in an order that changes each round, and
the ratio is taken within the round: what slows the machine for a while slows both. See README.md for how to read it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torchrnn
from benchmarks.cases import CASES, Case, select
from benchmarks.subjects import RIVALS, Work, ours

SAMPLE_SECONDS = 0.002
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS = "torchrnn"


class WrongAnswer(Exception):
    """A subject's results are not those of torch.nn: its time would mean nothing."""


class Ratio(NamedTuple):
    """Ours over a rival's time: the median over rounds, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """What was measured for one case in one mode."""

    case: Case
    mode: str
    microseconds: dict[str, float]  # by subject: the median of a run
    ratios: dict[str, Ratio]  # by rival


def measure(case: Case, mode: str, rounds: int, backend: str | None = None, clock: str = "wall") -> Row:
    """Check a case, then time it.

    Raises:
        WrongAnswer: a subject disagrees with torch.nn.
    """
    work = prepare(case, mode == "training", backend)
    runs = _runs_a_sample(work, backend, clock)
    times: dict[str, list[float]] = {name: [] for name in work}
    gc.collect()
    gc.disable()  # a collection would fall into one sample and not the other
    try:
        for k in range(rounds):
            names = list(work) if k % 2 else list(reversed(work))
            for name in names:
                times[name].append(_sample(work, name, runs, backend, clock))
    finally:
        gc.enable()
    ratios = {
        name: _ratio([a / b for a, b in zip(times[OURS], theirs, strict=True)])
        for name, theirs in times.items()
        if name != OURS
    }
    return Row(case, mode, {name: median(t) * 1e6 for name, t in times.items()}, ratios)


def prepare(case: Case, training: bool, backend: str | None = None) -> dict[str, Work]:
    """The work of every subject on the same weights and inputs, checked against torch.nn."""
    generator = torch.Generator().manual_seed(0)
    positional, options = case.arguments()
    model = getattr(nn, case.kind)(*positional, **options)
    inputs = case.inputs(generator)
    work = {}
    for name, subject in {OURS: ours, **RIVALS}.items():
        with _forced(backend, name):
            work[name] = subject(case, model, inputs, training)
    expected = work["torch.nn"]()
    for name, run in work.items():
        with _forced(backend, name):
            check(f"{case.name}: {name}", run(), expected)
    return work


def check(what: str, got: list[Tensor], expected: list[Tensor], tolerance: float = 2e-5) -> None:
    """Raise unless all results agree, to the tolerance times the largest element of each."""
    if len(got) != len(expected):
        raise WrongAnswer(f"{what} gave {len(got)} tensors, torch.nn {len(expected)}")
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            raise WrongAnswer(f"{what}: result {k} is {tuple(a.shape)}, torch.nn's {tuple(b.shape)}")
        error, scale = (a - b).abs().max().item(), b.abs().max().item()
        if not error <= tolerance * scale:  # NaN is wrong, too
            raise WrongAnswer(f"{what}: result {k} is off by {error:.1e} where torch.nn's largest is {scale:.1e}")


def _forced(backend: str | None, name: str) -> AbstractContextManager[None]:
    return torchrnn.use(backend) if backend and name == OURS else nullcontext()


def _runs_a_sample(work: dict[str, Work], backend: str | None, clock: str) -> int:
    """Runs for which the fastest subject takes the time of a sample; also warms everything up."""
    fastest = math.inf
    for name in work:
        _sample(work, name, 3, backend, clock)
        fastest = min(fastest, *(_sample(work, name, 3, backend, clock) for _ in range(3)))
    return max(1, math.ceil(SAMPLE_SECONDS / fastest))


def _sample(work: dict[str, Work], name: str, runs: int, backend: str | None, clock: str) -> float:
    """Seconds a run of one subject."""
    run, now = work[name], CLOCKS[clock]
    with _forced(backend, name):
        start = now()
        for _ in range(runs):
            run()
        return (now() - start) / runs


def _ratio(values: list[float]) -> Ratio:
    tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return Ratio(median(values), tenths[0], tenths[-1])


def geometric_means(rows: Iterable[Row]) -> dict[tuple[str, str, str], float]:
    """The geometric mean of the ratios by (kind, mode, rival)."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for rival, ratio in row.ratios.items():
            groups.setdefault((row.case.kind, row.mode, rival), []).append(math.log(ratio.median))
    return {key: math.exp(sum(logs) / len(logs)) for key, logs in groups.items()}


def heading() -> str:
    """The first lines of the table."""
    names = [OURS, *RIVALS]
    columns = "".join(f"{f'{n} µs':>14}" for n in names) + "".join(f"   ours/{n} [10–90 %]  " for n in RIVALS)
    return f"{'case':<18}{'mode':<11}{columns}"


def line(row: Row) -> str:
    """A row of the table."""
    times = "".join(f"{t:>14.1f}" for t in row.microseconds.values())
    ratios = "".join(f"   {r.median:>8.3f} [{r.low:.2f}–{r.high:.2f}]  " for r in row.ratios.values())
    return f"{row.case.name:<18}{row.mode:<11}{times}{ratios}"


def report(rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {
        "date": date.today().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "torch": torch.__version__,
        "torchrnn": torchrnn.__version__,
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "rows": [
            row._asdict()
            | {"case": row.case._asdict(), "ratios": {name: ratio._asdict() for name, ratio in row.ratios.items()}}
            for row in rows
        ],
        "geometric_means": [
            {"kind": kind, "mode": mode, "rival": rival, "ratio": mean}
            for (kind, mode, rival), mean in geometric_means(rows).items()
        ],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Time torchrnn against torch.nn.")
    p.add_argument("--backend", help="force one backend of torchrnn; by default each call chooses")
    p.add_argument("--cases", default="*", metavar="PATTERN", help="such as 'lstm-*,*cell*'; --list shows all")
    p.add_argument("--mode", choices=["inference", "training", "both"], default="both")
    p.add_argument("--rounds", type=int, default=60, metavar="N")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads")
    p.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the process's own time, for a busy machine")
    p.add_argument("--json", metavar="FILE", help="write everything there")
    p.add_argument("--limit", type=float, metavar="RATIO", help="exit with 1 if a case is over this")
    p.add_argument("--list", action="store_true", help="name the cases and stop")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; the exit status is 1 if a limit was given and a case is over it."""
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in CASES))
        return 0
    torch.set_num_threads(options.threads)
    modes = ["inference", "training"] if options.mode == "both" else [options.mode]
    print(heading(), flush=True)
    rows = []
    for case in select(options.cases):
        for mode in modes:
            rows.append(measure(case, mode, options.rounds, options.backend, options.clock))
            print(line(rows[-1]), flush=True)
    print("\ngeometric means of the ratios")
    for (kind, mode, rival), mean in geometric_means(rows).items():
        print(f"{kind:<18}{mode:<11}{mean:>8.3f} of {rival}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report(rows, options), file, indent=1)
    over = [r for r in rows if options.limit and any(x.median > options.limit for x in r.ratios.values())]
    for row in over:
        print(f"over {options.limit}: {row.case.name} {row.mode}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
