"""How a case is timed: its answers are checked first, then the subjects are sampled in turn in one process."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torchrnn
from benchmarks.cases import Case
from benchmarks.rivals import RIVALS
from benchmarks.subjects import Subject, Work, beside, ours

SAMPLE_SECONDS = 0.002
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS = "torchrnn"
BESIDE = "beside"  # not a rival: its answers are others
TOLERANCE = {OURS: 2e-5, "torch.nn": 2e-5}  # of the largest element; others add in another order and approximate more


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
    sgemm: float = math.nan  # GFLOP/s of a large matrix product, around the same time

    def gflops(self, name: str) -> float:
        """The rate of the case's matrix products, GFLOP/s."""
        return self.case.flops(self.mode == "training") / self.microseconds[name] / 1e3

    def best_rival(self) -> str | None:
        """The fastest of the others but torch.nn."""
        others = [name for name in self.ratios if name not in ("torch.nn", BESIDE)]
        return max(others, key=lambda name: self.ratios[name].median, default=None)


class How(NamedTuple):
    """How long and by which clock."""

    rounds: int = 60
    seconds: float = math.inf  # a case's rounds stop after this, but not before the fifth
    backend: str | None = None  # of ours; by default each call chooses
    clock: str = "wall"


def measure(case: Case, mode: str, how: How, rivals: Mapping[str, Subject] = RIVALS) -> Row:
    """Check a case, then time it.

    Raises:
        WrongAnswer: ours disagrees with torch.nn.
    """
    work = prepare(case, mode == "training", how.backend, rivals)
    runs = {name: w.run for name, w in work.items()}
    before = sgemm_rate(how.clock)
    ratios: dict[str, Ratio] = {}
    microseconds: dict[str, float] = {}
    pair = {name: run for name, run in runs.items() if name in TOLERANCE}
    others = {name: run for name, run in runs.items() if name not in TOLERANCE}
    for group in (pair, {OURS: runs[OURS], **others}):  # apart, for one finds in the caches what another left there
        with forced(how.backend):  # the others take no notice; entered for each run it would count against ours
            times = alternate(group, how) if len(group) > 1 else {}
        ratios |= {name: ratio(times[OURS], theirs) for name, theirs in times.items() if name != OURS}
        microseconds = {name: median(t) * 1e6 for name, t in times.items()} | microseconds
    names = [OURS, *(n for n in runs if n != OURS)]
    return Row(case, mode, {n: microseconds[n] for n in names}, ratios, (before + sgemm_rate(how.clock)) / 2)


def prepare(
    case: Case, training: bool, backend: str | None = None, rivals: Mapping[str, Subject] = RIVALS
) -> dict[str, Work]:
    """The work of every subject on the same weights and inputs, checked against torch.nn.

    A library from outside that fails or gives something else is left out, and that is said.
    """
    model = module(case)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    expected: list[Tensor | None] = []
    work = {}
    for name, subject in {"torch.nn": RIVALS["torch.nn"], OURS: ours, **rivals}.items():
        try:
            with forced(backend if name == OURS else None):
                made = subject(case, model, inputs, training)
                if made is None:
                    continue
                got = made.read(made.run())
            expected = expected or got
            check(f"{case.name}: {name}", got, expected, TOLERANCE.get(name, 1e-4))
        except Exception as error:
            if name in TOLERANCE:
                raise
            print(f"left out: {name} of {case.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        work[name] = made
    without = beside(case, model, inputs, training)
    return {OURS: work.pop(OURS), **work, **({BESIDE: without} if without else {})}


def module(case: Case) -> nn.Module:
    """The torch.nn module whose weights all share.

    The candidate's part of a GRU's bias_hh is zero: flax has none.
    """
    positional, options = case.arguments()
    torch.manual_seed(0)
    model = getattr(nn, case.kind)(*positional, **options)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if case.cell == "GRU" and name.startswith("bias_hh"):
                p[2 * case.H :] = 0
    return model


def check(what: str, got: list[Tensor | None], expected: list[Tensor | None], tolerance: float = 2e-5) -> None:
    """Raise unless all results agree, to the tolerance times the largest element of each."""
    if len(got) != len(expected):
        raise WrongAnswer(f"{what} gave {len(got)} tensors, torch.nn {len(expected)}")
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a is None or b is None:
            continue
        if a.shape != b.shape:
            raise WrongAnswer(f"{what}: result {k} is {tuple(a.shape)}, torch.nn's {tuple(b.shape)}")
        error, scale = (a - b).abs().max().item(), b.abs().max().item()
        if not error <= tolerance * scale:  # NaN is wrong, too
            raise WrongAnswer(f"{what}: result {k} is off by {error:.1e} where torch.nn's largest is {scale:.1e}")


def alternate(work: Mapping[str, Callable[[], Any]], how: How) -> dict[str, list[float]]:
    """Seconds a run, by name, of each round; in a round every one is sampled once, in an order that changes."""
    runs = _runs_a_sample(work, how.clock)
    times: dict[str, list[float]] = {name: [] for name in work}
    started = time.perf_counter()
    gc.collect()
    gc.disable()  # a collection would fall into one sample and not the other
    try:
        for k in range(how.rounds):
            if k >= 5 and time.perf_counter() - started > how.seconds:
                break
            for name in list(work)[:: 1 if k % 2 else -1]:
                times[name].append(_sample(work[name], runs[name], how.clock))
    finally:
        gc.enable()
    return times


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Within each round, then over the rounds."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return Ratio(median(values), tenths[0], tenths[-1])


def sgemm_rate(clock: str, samples: int = 2) -> float:
    """GFLOP/s of torch's float32 matrix product at 1024³, the best of some."""
    product = sgemm()
    product()
    return max(2 * 1024**3 / _sample(product, 1, clock) / 1e9 for _ in range(samples))


def sgemm() -> Callable[[], Any]:
    """A matrix product of 2·1024³ operations."""
    a, b = torch.randn(2, 1024, 1024, generator=torch.Generator().manual_seed(0))
    c = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=c)


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def forced(backend: str | None) -> AbstractContextManager[None]:
    """Ours runs on a backend, if one is named."""
    return torchrnn.use(backend) if backend else nullcontext()


def _runs_a_sample(work: Mapping[str, Callable[[], Any]], clock: str) -> dict[str, int]:
    """Runs for which the fastest takes the time of a sample, fewer where one run is long; also warms everything up."""
    seconds = {}
    for name, run in work.items():
        first = _sample(run, 1, clock)
        more = 3 if first < 0.05 else 1
        seconds[name] = min(_sample(run, more, clock) for _ in range(more))
    fastest = min(seconds.values())
    most = max(1, math.ceil(SAMPLE_SECONDS / max(fastest, 1e-7)))
    return {name: max(1, min(most, math.ceil(4 * SAMPLE_SECONDS / max(s, 1e-7)))) for name, s in seconds.items()}


def _sample(run: Callable[[], Any], runs: int, clock: str) -> float:
    """Seconds a run, after one that is not counted where they are short: it brings the data back into the caches."""
    now = CLOCKS[clock]
    if runs > 1:
        run()
    start = now()
    for _ in range(runs):
        run()
    return (now() - start) / runs
