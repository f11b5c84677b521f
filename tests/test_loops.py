"""Loops over a cell share one product for the gradients of the weights, and nobody notices but the clock."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused import needs_kernels
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import torchrnn
from torchrnn.backends.operators import operators

pytestmark = needs_kernels
F64: Any = {"dtype": torch.float64}
KINDS = ("RNN", "LSTM", "GRU")


def _pair(kind: str, **options: Any) -> tuple[Any, Any]:
    ours, theirs = (getattr(of, kind + "Cell")(3, 5, **options) for of in (torchrnn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def _first(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def _run(cell: Any, x: Tensor, state: Any, between: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
    total = x.new_zeros(())
    for t in range(len(x)):
        state = cell(x[t], state)
        state = tuple(between(s) for s in state) if isinstance(state, tuple) else between(state)
        total = total + (_first(state) * (t + 1)).sin().sum()
    return total


def _leaves(kind: str, T: int, B: int, dtype: torch.dtype) -> tuple[Tensor, Any]:
    x = torch.randn(T, B, 3, dtype=dtype, requires_grad=True)
    h, c = (torch.randn(B, 5, dtype=dtype, requires_grad=True) for _ in range(2))
    return x, (h, c) if kind == "LSTM" else h


def _gradients(cell: Any, x: Tensor, state: Any, **options: Any) -> list[Any]:
    leaves = [x, *(state if isinstance(state, tuple) else (state,))]
    for leaf in leaves:
        leaf.grad = None
    cell.zero_grad()
    _run(cell, x, state, **options).backward()
    return [leaf.grad for leaf in (*leaves, *cell.parameters())]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each product for the weights' gradients has summed."""
    steps: list[int] = []
    real = operators.loop_backward

    def counted(cell: int, x: list[Tensor], *rest: Any) -> Any:
        steps.append(len(x))
        return real(cell, x, *rest)

    monkeypatch.setattr(operators, "loop_backward", counted)
    return steps


@pytest.mark.parametrize("T", [1, 2, 3, 17])
@pytest.mark.parametrize("B", [1, 4, 9])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_torch(kind: str, bias: bool, B: int, T: int, dtype: torch.dtype, products: list[int]) -> None:
    ours, theirs = _pair(kind, bias=bias, dtype=dtype)
    given = _leaves(kind, T, B, dtype)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    for found, expected in zip(_gradients(ours, *given), _gradients(theirs, *given), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    assert products == ([T - 1] if T > 1 else [])  # the first step is on its own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "none"])
def test_of_some_weights(kind: str, wanted: str, products: list[int]) -> None:
    ours, theirs = _pair(kind, **F64)
    for cell in (ours, theirs):
        for name, weight in cell.named_parameters():
            weight.requires_grad_(name == wanted)
    given = _leaves(kind, 4, 2, torch.float64)
    torch.testing.assert_close(_gradients(ours, *given), _gradients(theirs, *given))
    assert products == ([] if wanted == "none" else [3])


@pytest.mark.parametrize("kind", KINDS)
def test_one_operation_between_the_steps(kind: str, products: list[int]) -> None:
    ours, theirs = _pair(kind, **F64)
    given, mask = _leaves(kind, 6, 2, torch.float64), torch.tensor([[1.0], [0.0]], **F64)
    where: Any = {"between": lambda s: torch.where(mask > 0, torch.zeros_like(s), s)}
    for options in ({"between": lambda s: s * mask}, where):
        torch.testing.assert_close(_gradients(ours, *given, **options), _gradients(theirs, *given, **options))
    assert products == [5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_several_cells_are_several_loops(kind: str, products: list[int]) -> None:
    pairs = [_pair(kind, **F64) for _ in range(2)]
    (x, state), results = _leaves(kind, 4, 2, torch.float64), []
    for encoder, decoder in zip(*pairs, strict=True):
        (first, second), at = (encoder, decoder), state
        for t in range(4):
            at = first(x[t], at)
        for t in range(4):
            at = second(x[t], at)
        results.append(torch.autograd.grad(_first(at).sum(), [*first.parameters(), *second.parameters()]))
    torch.testing.assert_close(*results)
    assert sorted(products) == [3, 4]  # the state of the second comes from a step


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_over_one_step(kind: str, first: bool, bias: bool, products: list[int]) -> None:
    ours, theirs = (getattr(of, kind)(3, 5, bias=bias, batch_first=first, **F64) for of in (torchrnn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(7, 2, 3, **F64), torch.randn(1, 2, 5, **F64)
    results = []
    for layer in (ours, theirs):
        leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
        hx: Any = (leaves[1], leaves[1] * 2) if kind == "LSTM" else leaves[1]
        total = torch.zeros((), **F64)
        for t in range(len(x)):
            row = leaves[0][t : t + 1]
            output, hx = layer(row.transpose(0, 1) if first else row, hx)
            total = total + (output * (t + 1)).sin().sum()
            output.mul_(2)  # the user's own; the state is another
            for s in hx if isinstance(hx, tuple) else (hx,):
                s.mul_(0.9)
            total = total + sum((s * (t + 2)).cos().sum() for s in (hx if isinstance(hx, tuple) else (hx,)))
        wanted = [*leaves, *layer.parameters()]
        results.append([total, *torch.autograd.grad(total, wanted, retain_graph=True)])
        once = torch.autograd.grad(total, wanted, create_graph=True)
        results[-1] += [*once, *torch.autograd.grad(torch.stack([g.square().sum() for g in once]).sum(), wanted)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    assert products == [6, 6]  # the second is of the second derivatives; with create_graph the reference gives them


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_none_of_a_layer(kind: str) -> None:
    cell, layer, x = getattr(torchrnn, kind + "Cell")(3, 5), getattr(torchrnn, kind)(3, 5), torch.randn(1, 2, 3)
    of_cell = cell(x[0], cell(x[0]))
    of_layer = layer(x, layer(x)[1])[1]
    h = _first(of_layer)
    others = ((h,), h, (h, h[0])) if kind == "LSTM" else ((h, h), h[0])
    for wrong in (of_cell, *others):
        with pytest.raises((ValueError, TypeError, RuntimeError), match="hx"):
            layer(x, wrong)


def test_each_backward_pass_counts_its_own() -> None:
    cell, _ = _pair("LSTM", **F64)
    x, state = _leaves("LSTM", 5, 2, torch.float64)
    loss, weights = _run(cell, x, state), list(cell.parameters())
    once = torch.autograd.grad(loss, weights, retain_graph=True)
    torch.autograd.grad(loss, [state[0]], retain_graph=True)  # asks for no weight's
    failing = x.register_hook(lambda _: (_ for _ in ()).throw(KeyError("in a hook")))
    with pytest.raises(KeyError):
        loss.backward(retain_graph=True)
    failing.remove()
    cell.zero_grad()
    loss.backward(retain_graph=True)
    torch.testing.assert_close([w.grad for w in weights], list(once))
    loss.backward(inputs=[cell.weight_hh])
    torch.testing.assert_close(cell.weight_hh.grad, 2 * once[1])
    torch.testing.assert_close(cell.weight_ih.grad, once[0])


def test_a_loss_at_each_step() -> None:
    results = []
    for cell in _pair("GRU", **F64):
        torch.manual_seed(1)
        x, h = _leaves("GRU", 5, 2, torch.float64)
        for t in range(5):
            h = cell(x[t], h)
            h.square().sum().backward(retain_graph=True)
        results.append([w.grad for w in cell.parameters()])
    torch.testing.assert_close(*results)


def test_hooks_see_the_whole_gradient_once() -> None:
    cell, seen = torchrnn.GRUCell(3, 5), []
    cell.weight_hh.register_hook(seen.append)
    _gradients(cell, *_leaves("GRU", 5, 2, torch.float32))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], cell.weight_hh.grad)


def test_weights_changed_within_a_loop_are_noticed() -> None:
    cell = torchrnn.GRUCell(3, 5)
    h = cell(torch.randn(2, 3))
    for _ in range(3):
        h = cell(torch.randn(2, 3), h)
        with torch.no_grad():
            cell.weight_hh.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [True, False])
def test_inputs_that_their_own_hooks_change(kind: str, whole: bool) -> None:
    """As an optimiser does that steps within backward."""
    results = []
    for cell in _pair(kind, **F64):
        torch.manual_seed(1)
        x, state = _leaves(kind, 4, 2, torch.float64)
        rows = list(x) if whole else [row.detach().clone().requires_grad_() for row in x]

        def change(p: Tensor) -> None:
            with torch.no_grad():
                p.add_(1)

        for leaf in [x] if whole else rows:
            leaf.register_post_accumulate_grad_hook(change)
        for row in rows:
            state = cell(row, state)
        _first(state).sum().backward()
        results.append([w.grad for w in cell.parameters()])
    torch.testing.assert_close(*results)


def test_what_else_changes_while_backward_runs_is_noticed() -> None:
    cell, row = torchrnn.GRUCell(3, 5), torch.ones(2, 3)
    h = cell(row.clone(), cell(row.clone()))

    def change(_: Tensor) -> None:
        row.add_(1)

    h.register_hook(change)  # runs after the backward of the step below, and before the product
    with pytest.raises(RuntimeError, match="an input or a state of a loop's step"):
        cell(row, h).sum().backward()


def test_weights_frozen_within_a_loop() -> None:
    results = []
    for cell in _pair("LSTM", **F64):
        torch.manual_seed(1)
        x, state = _leaves("LSTM", 6, 2, torch.float64)
        for t in range(6):
            cell.weight_ih.requires_grad_(t % 3 > 0)
            state = cell(x[t], state)
        cell.weight_ih.requires_grad_(True)
        results.append(torch.autograd.grad(_first(state).sum(), list(cell.parameters())))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("cached", [False, True])
def test_weights_made_for_each_call_or_once(cached: bool, products: list[int]) -> None:
    results = []
    for cell in _pair("GRU", **F64):
        torch.manual_seed(1)
        torch.nn.utils.parametrizations.weight_norm(cell, "weight_hh")
        x, h = _leaves("GRU", 4, 2, torch.float64)
        if cached:
            with parametrize.cached():
                results.append(_gradients(cell, x, h))
        else:
            results.append(_gradients(cell, x, h))
    torch.testing.assert_close(*results)
    assert products == ([3] if cached else [1, 1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_differentiated_again(kind: str) -> None:
    cell = _pair(kind, **F64)[0]
    given = _leaves(kind, 3, 2, torch.float64)
    weights = tuple(cell.parameters())

    def loss(*_: Tensor) -> Tensor:
        return _run(cell, *given)

    assert torch.autograd.gradgradcheck(loss, weights)


def test_a_batch_of_gradients() -> None:
    cell = _pair("LSTM", **F64)[0]
    x, (h, c) = _leaves("LSTM", 4, 2, torch.float64)
    for t in range(4):
        h, c = cell(x[t], (h, c))
    units = torch.eye(10, **F64).view(10, 2, 5)
    weights = list(cell.parameters())
    many = torch.autograd.grad(h, weights, units, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(h, weights, unit, retain_graph=True) for unit in units]
    torch.testing.assert_close(list(many), [torch.stack(g) for g in zip(*single, strict=True)])


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_in_backward(reentrant: bool) -> None:
    cell = _pair("LSTM", **F64)[0]
    given = _leaves("LSTM", 5, 2, torch.float64)
    expected = _gradients(cell, *given)
    x, (h, c) = given
    for leaf in (x, h, c):
        leaf.grad = None
    cell.zero_grad()

    def recomputed(*leaves: Tensor) -> Tensor:
        return _run(cell, leaves[0], leaves[1:])

    loss: Any = checkpoint(recomputed, x, h, c, use_reentrant=reentrant)
    loss.backward()
    torch.testing.assert_close([leaf.grad for leaf in (x, h, c, *cell.parameters())], expected)


def test_in_two_threads_at_once() -> None:
    cell = _pair("GRU", **F64)[0]
    weights, found = list(cell.parameters()), {}
    givens = [_leaves("GRU", 40, 2, torch.float64) for _ in range(2)]
    losses = [_run(cell, *given) for given in givens]
    expected = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]

    def work(i: int) -> None:
        found[i] = [torch.autograd.grad(losses[i], weights, retain_graph=True) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i // 2,)) for i in range(4)]  # two to each graph
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        for again in found[i]:
            torch.testing.assert_close(again, expected[i], rtol=0, atol=0)


def test_nothing_outlives_the_graph() -> None:
    cell = torchrnn.GRUCell(3, 5)
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(6, 2, 3)
        steps = [x[t].clone() for t in range(6)]
        alive = [weakref.ref(s) for s in steps]
        h = torch.zeros(2, 5)
        while steps:
            h = cell(steps.pop(), h)
        h.sum().backward()
        del h
        assert not any(ref() is not None for ref in alive)
    finally:
        gc.enable()


def test_its_node_can_be_read_in_the_graph() -> None:
    cell = torchrnn.GRUCell(3, 5)
    h = cell(torch.randn(2, 3), cell(torch.randn(2, 3)))
    node: Any = h.grad_fn
    names = {before.name() for before, _ in node.next_functions if before}
    assert names == {"_StepBackward", "_WeightsBackward"}
    assert len(node.loop.token.grad_fn.next_functions) == 4


@pytest.mark.parametrize(("part", "message"), [(0, "an input of the loop"), (1, "a state"), (2, "pre-activations")])
def test_its_operator_refuses_what_does_not_fit(part: int, message: str) -> None:
    given = [[torch.randn(2, 3)] * 2, [torch.randn(2, 5)] * 2, [torch.randn(2, 20)] * 2]
    number = torch.ops.torchrnn.number("lstm")
    torch.ops.torchrnn.loop_backward(number, *given, 15)
    given[part] = [given[part][0], torch.randn(2, 4)]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.torchrnn.loop_backward(number, *given, 15)
    with pytest.raises(RuntimeError, match="as many inputs"):
        torch.ops.torchrnn.loop_backward(number, given[0], [], [], 15)
