"""Gradients that are to be differentiated again, where one input of a call comes from another, or from its weights."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fused import CPU
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import torchrnn

F64: Any = {"dtype": torch.float64}
KINDS = ("RNN", "LSTM", "GRU")


def _output(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _zeros(kind: str, like: Tensor) -> Any:
    return (like, like * 0.5) if kind == "LSTM" else like


def cells_in_a_loop(of: Any, kind: str) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    def run(cell: Any, x: Tensor) -> Tensor:
        state = None
        for row in x:
            state = cell(row, state)
        return _output(state)

    return getattr(of, kind + "Cell")(5, 5, **F64), run


def its_own_output_is_the_input(of: Any, kind: str) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    def run(cell: Any, x: Tensor) -> Tensor:
        row, state = x[0], None
        for _ in range(3):
            state = cell(row, state)
            row = _output(state).cos()
        return row

    return getattr(of, kind + "Cell")(5, 5, **F64), run


def layers_over_one_step(of: Any, kind: str) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    def run(layer: Any, x: Tensor) -> Tensor:
        result: Any = (x, None)
        for t in range(len(x)):
            result = layer(x[t : t + 1], result[1])
        return result[0]

    return getattr(of, kind)(5, 5, **F64), run


def a_layer_twice(of: Any, kind: str) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    return getattr(of, kind)(5, 5, **F64), lambda layer, x: layer(*layer(x))[0]


def states_from_the_input(of: Any, kind: str) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    def run(layer: Any, x: Tensor) -> Tensor:
        return layer(x, _zeros(kind, x.sin().sum(0, keepdim=True)))[0]

    return getattr(of, kind)(5, 5, **F64), run


def states_from_a_weight(of: Any, kind: str) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    def run(layer: Any, x: Tensor) -> Tensor:
        return layer(x, _zeros(kind, layer.weight_hh_l0[:5].expand(1, 2, 5, 5).sum(2)))[0]

    return getattr(of, kind)(5, 5, **F64), run


FORMS = (
    cells_in_a_loop,
    its_own_output_is_the_input,
    layers_over_one_step,
    a_layer_twice,
    states_from_the_input,
    states_from_a_weight,
)


@pytest.mark.parametrize("backend", [None, CPU, "aten", "reference"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives(kind: str, form: Any, backend: str | None) -> None:
    (ours, run), (theirs, _) = form(torchrnn, kind), form(torch.nn, kind)
    theirs.load_state_dict(ours.state_dict())
    x, found = torch.randn(4, 2, 5, **F64), []
    for module in (ours, theirs):
        leaves = [x.clone().requires_grad_(), *module.parameters()]
        if module is ours and backend:
            with torchrnn.use(backend):
                result = run(module, leaves[0])
        else:
            result = run(module, leaves[0])
        plain = torch.autograd.grad(result.sin().sum(), leaves, retain_graph=True)
        again = torch.autograd.grad(result.sin().sum(), leaves, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in again]).sum()
        found.append([*plain, *again, *torch.autograd.grad(penalty, leaves)])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11 * max(1.0, expected.abs().max().item()))


def test_the_graph_of_a_loop_grows_with_its_steps_alone() -> None:
    """Twenty steps: were the past of each step differentiated with it, there would be a million."""
    cell = torchrnn.GRUCell(5, 5)
    h = torch.zeros(2, 5)
    for row in torch.randn(20, 2, 5):
        h = cell(row, h)
    found = torch.autograd.grad(h.sum(), list(cell.parameters()), create_graph=True)
    torch.stack([g.square().sum() for g in found]).sum().backward()
    assert cell.weight_hh.grad is not None


@pytest.mark.parametrize("backend", [None, CPU, "aten", "reference"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_frozen_after_the_call(kind: str, form: Any, backend: str | None) -> None:
    """As for the gradient penalty of a discriminator."""
    (ours, run), (theirs, _) = form(torchrnn, kind), form(torch.nn, kind)
    theirs.load_state_dict(ours.state_dict())
    x, found = torch.randn(4, 2, 5, **F64), []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        with torchrnn.use(backend) if module is ours and backend else nullcontext():
            result = run(module, leaf)
        module.requires_grad_(False)
        (first,) = torch.autograd.grad(result.sin().sum(), leaf, create_graph=True)
        found.append([first, *torch.autograd.grad(first.square().sum(), leaf)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_steps_are_differentiated_again(kind: str) -> None:
    """What was saved is handed out a single time."""
    cell, run = cells_in_a_loop(torchrnn, kind)
    x, found = torch.randn(3, 2, 5, **F64).requires_grad_(), []
    for steps in (1, 3):
        results: tuple[Any, Any] = run(cell, x[:steps]), checkpoint(run, cell, x[:steps], use_reentrant=False)
        for result in results:
            found.append(torch.autograd.grad(result.sin().sum(), [x, *cell.parameters()], create_graph=True))
        torch.testing.assert_close(*found[-2:])
