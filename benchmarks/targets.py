"""What we promise of speed and memory: each target with the figure that was measured, and whether it is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import torchrnn
from benchmarks.cases import GATES, Case
from benchmarks.grid import select
from benchmarks.measure import BESIDE, OURS, How, Row, alternate, geometric_mean, prepare, sgemm


class Target(NamedTuple):
    """One promise."""

    number: int
    what: str
    value: float
    limit: float
    at_most: bool
    where: str = ""

    @property
    def met(self) -> bool:
        """Whether it is kept; what was not measured is not."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        answer = "not measured" if math.isnan(self.value) else "yes" if self.met else "NO"
        return f"{self.number}. {self.what:<66}{self.value:>7.3f}  {sign} {self.limit:<5g} {answer:<4} {self.where}"


def targets(rows: list[Row], how: How) -> Iterator[Target]:
    """The targets in order; the first two are read from the table, the others measured on their own."""
    plain = [r for r in rows if not r.case.by_hand]  # a step loop is no measure of torch.nn's layers
    yield from _against_torch(plain)
    yield from _against_rivals(plain)
    yield from _share_of_sgemm(how)
    yield from _small_calls(how)
    yield from _lengths(how)
    yield from _kept()
    yield from _sequences(how)


def _against_torch(rows: list[Row]) -> Iterator[Target]:
    """Target 1: how many times faster than torch.nn, layers over the grid."""
    for kinds, mode, limit in (
        (("RNN", "GRU"), "training", 3.0),
        (("RNN", "GRU"), "inference", 2.8),
        (("LSTM",), "training", 1.5),
        (("LSTM",), "inference", 1.6),
    ):
        speedups = [1 / r.ratios["torch.nn"].median for r in rows if r.case.kind in kinds and r.mode == mode]
        what = f"{' and '.join(kinds)} {mode}: times torch.nn's speed, {len(speedups)} cases"
        yield Target(1, what, geometric_mean(speedups), limit, at_most=False)
    yield _worst(1, "slowest case, times torch.nn's speed", 0.97, [(r, "torch.nn") for r in rows])


def _against_rivals(rows: list[Row]) -> Iterator[Target]:
    """Target 2: how many times faster than the best other library in each case."""
    pairs = [(r, name) for r in rows if (name := r.best_rival())]
    speedups = [1 / r.ratios[name].median for r, name in pairs]
    yield Target(2, f"times the best rival's speed, {len(pairs)} cases", geometric_mean(speedups), 1.15, at_most=False)
    yield _worst(2, "slowest case, times the best rival's speed", 0.95, pairs)


def _worst(number: int, what: str, limit: float, pairs: list[tuple[Row, str]]) -> Target:
    """The slowest of some cases, and how many are below the limit."""
    speedups = [(1 / r.ratios[name].median, f"{r.case.name} {r.mode} ({name})") for r, name in pairs]
    slow = sum(s < limit for s, _ in speedups)
    value, where = min(speedups, default=(math.nan, ""))
    return Target(number, what, value, limit, at_most=False, where=f"{where}; {slow} of {len(pairs)} below")


def _share_of_sgemm(how: How) -> Iterator[Target]:
    """Target 3: the matrix products' rate at T=100, B=32, I=128, H=256; and bfloat16 against float32."""
    for kind, forward, both in (("LSTM", 0.90, 0.86), ("GRU", 0.84, 0.82), ("RNN", 0.84, 0.82)):
        (case,) = select(f"{kind.lower()}-large", "full")
        work = {mode: prepare(case, mode == "training")[OURS].run for mode in ("inference", "training")}
        times = alternate({**work, "sgemm": sgemm()}, how)
        for mode, limit in (("inference", forward), ("training", both)):
            flops = case.flops(mode == "training") / (2 * 1024**3)  # in sgemms
            share = median(g * flops / t for t, g in zip(times[mode], times["sgemm"], strict=True))
            rate = case.flops(mode == "training") / median(times[mode]) / 1e9
            yield Target(3, f"{kind} {mode}: share of the sgemm rate", share, limit, False, f"{rate:.0f} GF/s")
    with open("/proc/cpuinfo") as file:
        if "avx512_bf16" not in file.read():
            return
    for kind in GATES:
        (case,) = select(f"{kind.lower()}-large", "full")
        for mode in ("inference", "training"):
            work = {str(d): _in_dtype(case, d, mode == "training") for d in (torch.float32, torch.bfloat16)}
            a, b = alternate(work, how).values()
            speedup = median(x / y for x, y in zip(a, b, strict=True))
            yield Target(3, f"{kind} {mode}: bfloat16, times float32's speed", speedup, 1.6, at_most=False)


def _in_dtype(case: Case, dtype: torch.dtype, training: bool) -> Callable[[], Any]:
    """Our layer in a dtype; its answers are the business of the tests."""
    positional, options = case.arguments()
    module = getattr(torchrnn, case.kind)(*positional, **options, dtype=dtype).train(training)
    (x,) = tree_map(lambda t: t.to(dtype), case.inputs(torch.Generator().manual_seed(0)))
    if not training:
        return torch.no_grad()(lambda: module(x))
    asking = [x.requires_grad_(), *module.parameters()]
    gradient = torch.randn_like(module(x)[0])
    return lambda: torch.autograd.grad(module(x)[0], asking, gradient)


def _small_calls(how: How) -> Iterator[Target]:
    """Target 4: what a call costs, as a part of torch.nn's time."""
    for name, mode, limit in (
        ("rnn-tiny", "training", 0.4),
        ("lstm-tiny", "training", 0.4),
        ("gru-tiny", "training", 0.4),
        ("lstm-onestep", "inference", 0.35),
        ("lstmcell-b1", "inference", 0.6),
        ("grucell-b1", "inference", 0.6),
        ("rnncell-b1", "inference", 0.8),
        ("lstmcell-loop60", "training", 0.7),
        ("grucell-loop60", "training", 0.7),
        ("rnncell-loop60", "training", 0.7),
    ):
        work = {n: w.run for n, w in prepare(select(name)[0], mode == "training").items()}
        yield Target(4, f"{name} {mode}, part of torch.nn's time", _part(work, how), limit, at_most=True)
    layer, cell = (prepare(select(name)[0], training=False) for name in ("lstm-onestep", "lstmcell-b1"))
    work = {"layer": layer[OURS].run, "cell": cell["torch.nn"].run}
    yield Target(4, "lstm-onestep inference, part of torch.nn.LSTMCell's time", _part(work, how), 1.0, at_most=True)


def _lengths(how: How) -> Iterator[Target]:
    """Target 5: lengths evenly from 10 % to 100 %, as a part of the dense batch's time."""
    for kind in GATES:
        cases = [select(f"{kind.lower()}-{name}", "full")[0] for name in ("lengths", "large")]
        parts = {}
        for who in (OURS, "torch.nn"):
            work = {case.name: prepare(case, training=True)[who].run for case in cases}
            parts[who] = _part(work, how)
        where = f"torch.nn packed {parts['torch.nn']:.2f}"
        yield Target(5, f"{kind} training with lengths, part of the dense time", parts[OURS], 0.65, True, where)


def _sequences(how: How) -> Iterator[Target]:
    """Targets 9 and 10: 10,000 single steps, and what resets cost."""
    (case,) = select("lstm-stream")
    work = {n: w.run for n, w in prepare(case._replace(T=10_000), training=False).items() if n != BESIDE}
    yield Target(
        9, "LSTM stream of 10,000 steps, part of torch.nn.LSTMCell's time", _part(work, how), 0.5, at_most=True
    )
    for size in (64, 128):
        for kind in GATES:
            (case,) = select(f"{kind.lower()}-resets{size}")
            for mode in case.modes:
                found = {n: w.run for n, w in prepare(case, mode == "training").items()}
                by_loop, plain = ({OURS: found[OURS], n: found[n]} for n in ("torch.nn", BESIDE))
                where = f"a step loop {1 / _part(by_loop, how):.1f} times the call with resets"
                what = f"{case.name} {mode}, part of the call's time without resets"
                yield Target(10, what, _part(plain, how), 1.15, True, where)


def _part(work: dict[str, Callable[[], Any]], how: How) -> float:
    """The first's time as a part of the second's."""
    a, b = alternate(work, how).values()
    return median(x / y for x, y in zip(a, b, strict=True))


def _kept() -> Iterator[Target]:
    """Target 6: floats that autograd keeps, beside the inputs, initial states and weights, by unit and step."""
    for kind, limit in (("RNN", 1), ("GRU", 5), ("LSTM", 6)):
        case = select(f"{kind.lower()}-large", "full")[0]._replace(states=True)
        per_unit = case.T * case.B * case.H
        kept = {}
        for name, library in ((OURS, torchrnn), ("torch.nn", torch.nn)):
            positional, options = case.arguments()
            kept[name] = _floats_kept(getattr(library, kind)(*positional, **options), case) / per_unit
        where = f"torch.nn {kept['torch.nn']:.2f}"
        yield Target(6, f"{kind}: floats kept for backward by unit and step", kept[OURS], limit, True, where)


def _floats_kept(module: Any, case: Case) -> float:
    """Floats in the distinct storages that are saved, but for those of the inputs and weights."""
    inputs = tree_map(lambda t: t.requires_grad_(), case.inputs(torch.Generator().manual_seed(0)))
    known = _storages([*tree_leaves(inputs), *module.parameters()])
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = module(*inputs)
    sizes = _storages(saved)
    del results
    return sum(size for pointer, size in sizes.items() if pointer not in known) / 4


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by the address of a storage."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
