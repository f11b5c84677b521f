"""Where the time of a case goes: the phases that our kernels count, and what is left of the time on the wall."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.cases import Case
from benchmarks.measure import OURS, SAMPLE_SECONDS, How, forced, prepare
from torchrnn import _extension

OVERHEAD = "overhead"  # Python, autograd, memory, copies and what other backends do: all that no phase counts


class Profile(NamedTuple):
    """Microseconds of one run of a case: in all, and by phase, the overhead last."""

    case: Case
    mode: str
    wall: float
    phases: dict[str, float]

    def lines(self) -> list[str]:
        """The table: one line for the run, one for each phase that took any time."""
        lines = [f"{self.case.name:<20}{self.mode:<10}{self.wall:>12.1f} µs"]
        return lines + [
            f"    {name:<26}{value:>12.1f}{value / self.wall:>8.1%}" for name, value in self.phases.items() if value
        ]


def profile(case: Case, mode: str, how: How) -> Profile:
    """Check a case, then count: of all rounds the quickest, whose phases and overhead add up to its time.

    Raises:
        RuntimeError: the kernels are not built, or torch has several threads, whose phases would overlap.
    """
    if _extension.missing() is not None:
        raise RuntimeError(f"only our kernels count their phases: {_extension.missing()}")
    if torch.get_num_threads() != 1:
        raise RuntimeError(f"--profile counts one thread, got --threads {torch.get_num_threads()}")
    run = prepare(case, mode == "training", how.backend, {})[OURS].run
    start = time.perf_counter()
    run()
    runs = max(1, int(SAMPLE_SECONDS / (time.perf_counter() - start)))
    rounds, started = [], time.perf_counter()
    while len(rounds) < how.rounds and (len(rounds) < 5 or time.perf_counter() - started < how.seconds):
        with forced(how.backend):
            rounds.append(_count(run, runs))
    wall, seconds = min(rounds)
    phases = dict(zip(torch.ops.torchrnn.phases().split(","), seconds, strict=True))
    phases[OVERHEAD] = wall - sum(seconds)
    return Profile(case, mode, wall * 1e6, {name: value * 1e6 for name, value in phases.items()})


def _count(run: Callable[[], Any], runs: int) -> tuple[float, list[float]]:
    """Seconds a run: on the wall, and by phase."""
    torch.ops.torchrnn.count_phases(True)
    try:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wall = time.perf_counter() - start
    finally:
        seconds = torch.ops.torchrnn.count_phases(False)
    return wall / runs, [s / runs for s in seconds]
