"""``python -m benchmarks.graphs``: how long torch.compile takes, how often, and what a compiled step costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._dynamo.utils import counters

import torchrnn

BOTH = {"num_layers": 2, "bidirectional": True}
TWO_LAYERS = "GRU, 2 layers, both directions"
CASES: tuple[tuple[str, type, int, int, int, dict[str, Any]], ...] = (  # T, B, I = H
    (TWO_LAYERS, torchrnn.GRU, 512, 32, 256, BOTH),
    ("the same", torchrnn.GRU, 512, 32, 128, BOTH),
    ("the same", torchrnn.GRU, 512, 8, 64, BOTH),
    ("LSTM", torchrnn.LSTM, 64, 8, 64, {}),
    ("RNN", torchrnn.RNN, 10, 2, 64, {}),
)
VOCABULARY, TAGS = 5000, 20


class Tagger(torch.nn.Module):
    """The loss of a model that gives each token a tag."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, layer.input_size)
        self.layer = layer
        self.linear = torch.nn.Linear((2 if layer.bidirectional else 1) * layer.hidden_size, TAGS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of tokens (T, B), whose tags are what is left of their numbers."""
        y, _ = self.layer(self.embedding(tokens))
        return torch.nn.functional.cross_entropy(self.linear(y).flatten(0, 1), tokens.flatten() % TAGS)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.compile(torch.nn.Linear(2, 2), fullgraph=True)(torch.randn(2, 2))  # the compiler itself is loaded
    table = Table(
        "case", "T, B, H", "compile forward s", "with backward s", "forward", "entering", "training step", "10 lengths"
    )
    for name, kind, T, B, H, options in CASES:
        graphs = compilations(kind(H, H, **options), T, B)
        table.add_row(name, f"{T}, {B}, {H}", *measured(kind(H, H, **options), torch.randn(T, B, H)), str(graphs))
    for T, B, H in ((512, 32, 128), (512, 8, 64)):
        model, tokens = Tagger(torchrnn.GRU(H, H, **BOTH)), torch.randint(VOCABULARY, (T, B))
        table.add_row(f"Embedding, {TWO_LAYERS}, Linear, loss", f"{T}, {B}, {H}", *measured(model, tokens), "")
    console = Console()
    console.print(table)
    console.print("forward and training step: compiled / eager, medians of alternating runs, one thread, CPU clock")
    console.print("10 lengths: compilations; torch takes T = H for one size until they differ")
    console.print("entering: eager, and a compiled x + 1 of one number after it / eager")


def measured(model: Any, x: Tensor) -> tuple[str, ...]:
    """Seconds to the first result, without and with gradients, and the ratios."""
    row = []
    ratios = []
    for runs in (forward, step):
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, fullgraph=True)
        begun = time.perf_counter()
        runs(compiled, x)
        row.append(f"{time.perf_counter() - begun:.1f}")
        ratios.append(f"{alternating(lambda c=compiled, r=runs: r(c, x), lambda r=runs: r(model, x)):.3f}")
        if runs is forward:
            ratios.append(f"{entering(model, x):.3f}")
    return (*row, *ratios)


def entering(model: Any, x: Tensor) -> float:
    """What it costs to call anything compiled after the kernels have filled the caches, as a ratio."""
    little: Any = torch.compile(lambda t: t + 1, fullgraph=True)
    number = torch.zeros(1)
    little(number)

    def both() -> None:
        forward(model, x)
        little(number)

    return alternating(both, lambda: forward(model, x))


def forward(model: Any, x: Tensor) -> None:
    """Inference."""
    with torch.no_grad():
        model(x)


def step(model: Any, x: Tensor) -> None:
    """Forward and backward; of a layer the loss is the sum of its output."""
    result = model(x)
    (result if isinstance(result, Tensor) else result[0].sum()).backward()


def alternating(ours: Callable[[], None], theirs: Callable[[], None], rounds: int = 15) -> float:
    """The median ratio of CPU times of runs by turns, of at least a tenth of a second or five."""
    begun = time.process_time()
    theirs()
    runs = 1 if time.process_time() - begun > 0.1 else 5
    ratios = []
    for _ in range(rounds):
        taken = []
        for run in (ours, theirs):
            begun = time.process_time()
            for _ in range(runs):
                run()
            taken.append(time.process_time() - begun)
        ratios.append(taken[0] / taken[1])
    return statistics.median(ratios)


def compilations(layer: Any, T: int, B: int) -> int:
    """How many graphs ten lengths make."""
    torch._dynamo.reset()
    counters.clear()
    compiled: Any = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for t in range(T, T + 10):
            compiled(torch.randn(t, B, layer.input_size))
    return counters["stats"]["unique_graphs"]


if __name__ == "__main__":
    main()
