"""``python -m benchmarks.samples``: what gradients for each sample cost beside the ordinary ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, grad, vmap

import torchrnn

B, T, I, H = 64, 50, 128, 128
KINDS: dict[str, type] = {"LSTM": torchrnn.LSTM, "GRU": torchrnn.GRU, "RNN": torchrnn.RNN}


def main(rounds: int = 25) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    table = Table("cell", "each sample ms", "forward ms", "backward ms", "of one backward", "of forward and backward")
    for name, kind in KINDS.items():
        each, forward, backward = measured(kind(I, H), torch.randn(T, B, I), rounds)
        ratios = each / backward, each / (forward + backward)
        table.add_row(name, *(f"{t:.1f}" for t in (each, forward, backward)), *(f"{r:.2f}" for r in ratios))
    console = Console()
    console.print(table)
    console.print(f"B = {B} samples, T = {T}, I = {I}, H = {H}, one thread, CPU clock, medians of runs by turns")
    console.print("each sample: the whole call, its own forward included; forward, backward: of an ordinary step")


def measured(layer: Any, x: Tensor, rounds: int) -> tuple[float, float, float]:
    """Milliseconds of all gradients for each sample, and of an ordinary step's forward and backward."""
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    of_each = vmap(grad(lambda w, sample: loss(functional_call(layer, w, sample))), in_dims=(None, 1))
    taken: list[tuple[float, float, float]] = []
    for _ in range(rounds + 2):
        each = timed(lambda: of_each(weights, x))[0]
        layer.zero_grad()
        forward, value = timed(lambda: loss(layer(x)))
        taken.append((each, forward, timed(value.backward)[0]))
    each, forward, backward = (statistics.median(of) for of in zip(*taken[2:], strict=True))
    return each, forward, backward


def loss(results: Any) -> Tensor:
    """Of the output."""
    return results[0].square().sum()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what came of it."""
    begun = time.process_time()
    result = run()
    return 1e3 * (time.process_time() - begun), result


if __name__ == "__main__":
    main()
