"""Whether a layer, on any backend, gives what the loop gives: results and gradients, to 1e-12."""

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM
from fused import CPU
from loop import loop, read, rows, size, widths
from torch import Tensor
from torch.utils._pytree import tree_leaves

import torchrnn

F64: Any = {"dtype": torch.float64}
LAYERS: dict[str, Any] = {
    "rnn_tanh": torchrnn.RNN,
    "rnn_relu": lambda *a, **k: torchrnn.RNN(*a, nonlinearity="relu", **k),
    "lstm": torchrnn.LSTM,
    "lstm_projected": lambda *a, **k: torchrnn.LSTM(*a, **{"proj_size": 2, **k}),
    "gru": torchrnn.GRU,
    "gru_reset_before": lambda *a, **k: torchrnn.GRU(*a, reset_after=False, **k),
    "gru_projected": lambda *a, **k: torchrnn.GRU(*a, **{"proj_size": 2, **k}),
    "coupled_lstm": CoupledLSTM,
}
NO_KERNEL = ("coupled_lstm", "gru_reset_before")  # a user's own cell, and a product within the step
NOT_IN_TORCH = (*NO_KERNEL, "gru_projected")
#: every cell on every backend that has it
EVERY = [
    pytest.param(name, backend, marks=CPU.marks if backend == "cpu" else (), id=f"{name} {backend}")
    for name in LAYERS
    for backend in ("cpu", "aten", "reference")
    if backend == "reference" or name not in (NOT_IN_TORCH if backend == "aten" else NO_KERNEL)
]
everywhere = pytest.mark.parametrize(("name", "backend"), EVERY)


def tensors(states: Any) -> Any:
    """The states of any layer as a tuple."""
    return tuple(states) if isinstance(states, (tuple, list)) else (states,)


def states_for(layer: Any, *batch: int) -> Any:
    """Random initial states for which a gradient is wanted, in the form of ``hx``."""
    D, made = 2 if layer.bidirectional else 1, []
    for s in range(len(layer.cell.states)):
        of = []
        for k in range(layer.num_layers):
            state = torch.randn(D, *batch, widths(layer, k)[s], **F64)
            of.append(state.movedim(0, -2).contiguous() if layer.batch_first_state else state)
        if isinstance(layer.hidden_size, list):
            made.append([t.requires_grad_() for t in of])
        else:
            made.append(torch.cat(of, -2 if layer.batch_first_state else 0).requires_grad_())
    return made[0] if len(made) == 1 else tuple(made)


def learned(layer: Any) -> Any:
    """The same layer, where what it learns as initial states is not zero."""
    for name, parameter in layer.named_parameters():
        if name.startswith("initial_"):
            torch.nn.init.normal_(parameter)
    return layer


def agree(layer: Any, backend: str | None, input: Any, hx: Any = None, leaves: Any = None, **said: Any) -> Any:
    """Run a call (on a backend, or on the one that is chosen) and the loop, which must give the same outputs, final
    states, trace and gradients; give the call's results.

    ``leaves`` are the tensors that an input was made of; of a Tensor or a list itself.
    """
    if leaves is None:
        leaves = [t.requires_grad_() for t in tree_leaves(input)]
    leaves = [*leaves, *(t for t in tree_leaves(hx) if t is not None)]
    with torchrnn.use(backend) if backend else nullcontext():
        result = layer(input, hx, **said)
    all_of_it = bool(said.get("return_all"))
    ours, theirs = read(layer, result, list(rows(layer, input)), all_of_it), loop(layer, input, hx, **said)
    same(ours, theirs)
    inputs = {f"leaf {k}": t for k, t in enumerate(leaves)} | dict(layer.named_parameters())
    factors = {name: torch.randn_like(t) for name, t in theirs.items()}
    found = []
    for results in (ours, theirs):
        total = [(t * factors[name]).sum() for name, t in results.items() if t.requires_grad]
        if total:
            gradients = torch.autograd.grad(
                torch.stack(total).sum(), list(inputs.values()), retain_graph=True, allow_unused=True
            )
        else:
            gradients = [None] * len(inputs)
        found.append(
            {
                f"gradient of {name}": torch.zeros_like(t) if g is None else g
                for (name, t), g in zip(inputs.items(), gradients, strict=True)
            }
        )
    same(*found)
    shaped(layer, input, result)
    return result


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """All of it by name, to 1e-12; one comparison of everything, and one by one where it fails."""
    assert ours.keys() == theirs.keys()
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()]
    got, expected = (
        torch.cat([t.detach().flatten() for t in (torch.zeros(1, **F64), *of.values())]) for of in (ours, theirs)
    )
    if bool(((got - expected).abs() <= 1e-12 * (1 + expected.abs())).all()):
        return
    for name in ours:
        close(name, ours[name], theirs[name])


def close(what: str, got: Tensor, expected: Tensor) -> None:
    """The same to 1e-12, NaN nowhere."""
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12, msg=lambda text: f"{what}: {text}")


def shaped(layer: Any, input: Any, result: Any) -> None:
    """Each result has the form of what was given: of rows alone one cannot tell."""
    dims = tuple(max(i) + 1 for i in itertools.zip_longest(*rows(layer, input)) if i)
    if isinstance(input, Tensor) and not input.is_nested:
        dims = tuple(input.shape[:-2] if layer.batch_first and input.dim() > 2 else input.shape[1:-1])
    if not layer.return_sequences:
        assert result.shape[:-1] == dims
        return
    output, final = result[:2]
    assert type(output) is type(input)
    if isinstance(input, Tensor) and not input.is_nested:
        assert output.shape[:-1] == input.shape[:-1]
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    listed, S = isinstance(layer.hidden_size, list), len(layer.cell.states)
    finals = (final,) if S == 1 else final
    assert type(finals) is tuple
    for s, of in enumerate(finals):
        for k, state in enumerate(of if listed else [of]):
            n = D if listed else L * D
            expected = (*dims, n) if layer.batch_first_state else (n, *dims)
            assert state.shape == (*expected, widths(layer, k)[s])
    for name, of in {**result[2].states, **result[2].gates}.items() if len(result) > 2 else ():
        for k, value in enumerate(of):
            H = widths(layer, k)[0] if name == layer.cell.states[0] else size(layer, k)
            assert value.shape == (D, value.size(1), *dims, H)
