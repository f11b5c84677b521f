"""The layers that features are tried on, what a try says, and which backend ran it."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.utils._pytree import tree_leaves

import torchrnn
from docs.features import plain
from torchrnn.backends import quick
from torchrnn.call import BACKENDS

T, B, I, H = 5, 3, 4, 6
NAMES = {"cpu": "kernels", "aten": "torch", "reference": "steps"}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4}  # and torch decides which type a feature has


class Wrong(Exception):
    """A number that is not what the equations say."""


class NotSo(Exception):
    """The numbers are right, but the feature is not what its name promises."""


class NoSuchThing(Exception):
    """The feature means nothing for this layer."""


@torchrnn.cell(gates="i g o", states="h c")
def coupled_lstm(x: Any, h: Any, s: Any) -> Any:
    """A cell of the user's own: the forget gate is one minus the input gate."""
    i, g, o = sigmoid(x.i + h.i), tanh(x.g + h.g), sigmoid(x.o + h.o)
    c = (1 - i) * s.c + i * g
    return o * tanh(c), c


class CoupledLSTM(torchrnn.Recurrent):
    """Its layer."""

    cell = coupled_lstm


class Subject(NamedTuple):
    """One layer class of torch.nn or torchrnn, with its equations."""

    make: Any
    step: plain.Step
    states: int
    ours: bool

    def layer(self, *options: Any, **more: Any) -> Any:
        """A layer of torch's default type, always with the same weights."""
        torch.manual_seed(1)
        return self.make(I, H, *options, **more)

    def projected(self) -> "Subject":
        """What it is with a projection: a GRU then has a second state."""
        return self._replace(step=plain.gru_projected, states=2) if self.step is plain.gru else self

    def zeros(self, layer: Any, rows: int = B) -> tuple[Tensor, ...]:
        """Initial states of zeros."""
        LD = layer.num_layers * (2 if layer.bidirectional else 1)
        sizes = [layer.proj_size or H, H][: self.states]
        return tuple(torch.zeros(LD, rows, size, dtype=layer.weight_hh_l0.dtype) for size in sizes)

    def given(self, layer: Any, rows: int = B) -> tuple[Tensor, ...]:
        """Initial states that are not zero."""
        return tuple(
            s + 0.1 * torch.arange(s.numel(), dtype=s.dtype).view(s.shape).sin() for s in self.zeros(layer, rows)
        )

    def hx(self, states: Sequence[Tensor]) -> Any:
        """States as a call takes them."""
        return tuple(states) if self.states > 1 else states[0]

    def expected(self, layer: Any, x: Tensor, hx: Any = None, counts: Tensor | None = None) -> list[Tensor]:
        """Output and final states by the plain loops."""
        states = self.zeros(layer, x.size(1)) if hx is None else hx
        return plain.batch(self.step, weights(layer), x, states, counts)


SUBJECTS = {
    "torch.nn RNN": Subject(nn.RNN, plain.rnn, 1, False),
    "torch.nn LSTM": Subject(nn.LSTM, plain.lstm, 2, False),
    "torch.nn GRU": Subject(nn.GRU, plain.gru, 1, False),
    "torchrnn RNN": Subject(torchrnn.RNN, plain.rnn, 1, True),
    "torchrnn LSTM": Subject(torchrnn.LSTM, plain.lstm, 2, True),
    "torchrnn GRU": Subject(torchrnn.GRU, plain.gru, 1, True),
    "a cell of your own": Subject(CoupledLSTM, plain.coupled, 2, True),
}


class Feature(NamedTuple):
    """What is tried: the function raises if it does not work, and may say who ran it."""

    title: str
    attempt: Callable[[Subject], str | None]


def weights(layer: Any) -> dict[str, Tensor]:
    """The weights by name, parametrized or not."""
    return {name: getattr(layer, name) for name in layer._flat_weights_names}


def batch(*shape: int) -> Tensor:
    """An input of torch's default type, always the same."""
    torch.manual_seed(2)
    return torch.randn(*(shape or (T, B, I)))


def tensors(results: Any) -> list[Tensor]:
    """All Tensors of a result."""
    return [t for t in tree_leaves(results) if isinstance(t, Tensor)]


def same(got: Any, expected: Any, tolerance: float | None = None) -> None:
    """Raise `Wrong` if two results differ in number, shape or value."""
    tolerance = tolerance or TOLERANCES[torch.get_default_dtype()]
    ours, theirs = tensors(got), tensors(expected)
    if len(ours) != len(theirs):
        raise Wrong(f"{len(ours)} Tensors, not {len(theirs)}")
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise Wrong(f"the shape is {tuple(a.shape)}, not {tuple(b.shape)}")
        a, b = a.detach().double(), b.detach().double()
        # a NaN is in no bounds
        if a.numel() and not ((a - b).abs() <= tolerance * b.abs().max().clamp(min=1)).all():
            raise Wrong(f"a number is off by {(a - b).abs().max().item():.0e}")


def gradients(results: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of a sum in which every result counts, and no two alike."""
    loss = torch.stack([(k + 1) * t.double().sin().sum() for k, t in enumerate(tensors(results))]).sum()
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))  # a pruned weight is part of both


def same_with_gradients(layer: Any, x: Tensor, got: Any, expected: Any, tolerance: float | None = None) -> None:
    """Compare results, and the gradients of input and parameters."""
    same(got, expected, tolerance)
    inputs = [x, *layer.parameters()]
    same(gradients(got, inputs), gradients(expected, inputs), tolerance)


@contextmanager
def watched() -> Iterator[set[str]]:
    """The backends that run calls, also in a backward, by the names that the page gives them."""
    seen: set[str] = set()
    running: list[str] = []

    def recorded(name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not running:  # one may use another
                seen.add(NAMES[name])
            running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                running.pop()

        return run

    def recorded_if_taken(function: Any) -> Any:
        def run(*args: Any) -> Any:
            results = function(*args)
            if results is not None and not running:
                seen.add(NAMES["cpu"])
            return results

        return run

    with ExitStack() as stack:
        for function in ("layers", "one_step"):
            new = recorded_if_taken(getattr(quick, function))
            stack.enter_context(mock.patch.object(quick, function, new))
        for name in NAMES:
            for function in ("run", "run_all"):
                if hasattr(BACKENDS[name], function):
                    new = recorded(name, getattr(BACKENDS[name], function))
                    stack.enter_context(mock.patch.object(BACKENDS[name], function, new))
        yield seen


def message(error: BaseException) -> str:
    """The first sentence of an error, without addresses and places in files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # the interpreter says first that something failed, and last what
    line = lines[-1] if lines[0].startswith("The following operation failed") else lines[0]
    line = re.sub(r"^\S+\.(cpp|h|py):\d+: |^RuntimeError: ", "", line)
    line = re.sub(r"\x1b\[\d+m", "", line)
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", line, maxsplit=1)[0]
