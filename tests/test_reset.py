"""reset=: a new sequence begins at a step, and nothing crosses that boundary."""

from typing import Any

import pytest
import torch
from agreement import F64, LAYERS, agree, everywhere, states_for, tensors
from fused import CPU
from torch.autograd import gradcheck

import torchrnn

#: (T, B): in the middle, none, at the first step, everywhere, at the last step
RESET = (
    torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 1]])
    == 1
)
MASK = (
    torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
    == 1
)
T, B = RESET.shape
to = pytest.mark.parametrize("reset_to", ["zero", "initial"])


@everywhere
@to
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_resets(name: str, backend: str, reset_to: str, given: bool) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, **F64)
    agree(
        layer,
        backend,
        torch.randn(T, B, 3, **F64),
        states_for(layer, B) if given else None,
        reset=RESET,
        reset_to=reset_to,
    )


@everywhere
@to
def test_one_direction_batch_first(name: str, backend: str, reset_to: str) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, batch_first=True, **F64)
    agree(layer, backend, torch.randn(B, T, 3, **F64), states_for(layer, B), reset=RESET.t(), reset_to=reset_to)


@everywhere
@to
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_with_a_mask(name: str, backend: str, reset_to: str, batch_first: bool) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, **F64)
    x = torch.randn(T, B, 3, **F64).masked_fill(~MASK.unsqueeze(-1), torch.nan)
    x, mask, reset = (t.transpose(0, 1).contiguous() if batch_first else t for t in (x, MASK, RESET))
    agree(layer, backend, x, states_for(layer, B), mask=mask, reset=reset, reset_to=reset_to)


@everywhere
@to
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_with_lengths(name: str, backend: str, reset_to: str, batch_first: bool) -> None:
    layer, lengths = (
        LAYERS[name](3, 4, bidirectional=True, batch_first=batch_first, **F64),
        torch.tensor([5, 0, 6, 2, 5]),
    )
    x = torch.randn(T, B, 3, **F64).masked_fill((torch.arange(T).unsqueeze(1) >= lengths).unsqueeze(-1), torch.nan)
    x, reset = (t.transpose(0, 1).contiguous() if batch_first else t for t in (x, RESET))
    agree(layer, backend, x, states_for(layer, B), lengths=lengths, reset=reset, reset_to=reset_to)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", LAYERS)
def test_resets_at_random(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    T, B = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
    reset = torch.rand(T, B, generator=generator) < [0.05, 0.3, 0.9][seed % 3]
    said: dict[str, Any] = [{}, {"mask": torch.rand(T, B, generator=generator) < 0.6}][seed % 2]
    if seed % 4 == 2:
        said = {"lengths": torch.randint(0, T + 1, (B,), generator=generator)}
    layer = LAYERS[name](3, 4, bidirectional=seed % 5 < 3, **F64)
    x, to = torch.randn(T, B, 3, **F64), "initial" if seed > 5 else "zero"
    agree(layer, None, x, states_for(layer, B), reset=reset, reset_to=to, **said)


def test_what_is_a_row_cut_by_hand() -> None:
    layer, x = torchrnn.LSTM(3, 4, bidirectional=True, **F64), torch.randn(5, 1, 3, **F64)
    reset = torch.tensor([False, False, True, False, False]).unsqueeze(1)
    hx = (torch.randn(2, 1, 4, **F64), torch.randn(2, 1, 4, **F64))
    output, final = layer(x, hx, reset=reset)
    zero = torch.zeros(1, 1, 4, **F64)
    first, end_of_first = layer(x[:2], tuple(torch.cat((s[:1], zero)) for s in hx))  # hx enters going forward
    second, end_of_second = layer(x[2:], tuple(torch.cat((zero, s[1:])) for s in hx))  # and going backward
    torch.testing.assert_close(output, torch.cat((first, second)), atol=1e-14, rtol=0)
    for got, a, b in zip(final, end_of_first, end_of_second, strict=True):
        torch.testing.assert_close(got, torch.stack((b[0], a[1])), atol=1e-14, rtol=0)


@everywhere
def test_no_gradient_crosses(name: str, backend: str) -> None:
    layer, x = LAYERS[name](3, 4, num_layers=2, bidirectional=True, **F64), torch.randn(T, B, 3, **F64).requires_grad_()
    with torchrnn.use(backend):
        output, _ = layer(x, reset=RESET)
    output[2:5, 0].square().sum().backward()  # the second of three sequences of row 0
    assert x.grad is not None
    assert x.grad[2:5, 0].all()
    x.grad[2:5, 0] = 0
    assert not x.grad.any()


def test_a_reset_at_the_first_step_takes_the_place_of_the_given_state() -> None:
    layer, x, hx = torchrnn.GRU(3, 4), torch.randn(4, 2, 3), torch.randn(1, 2, 4)
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[0, 1] = True
    output, _ = layer(x, hx, reset=reset)
    assert torch.equal(output[:, :1], layer(x[:, :1], hx[:, :1])[0])
    torch.testing.assert_close(output[:, 1:], layer(x[:, 1:])[0])


@to
def test_a_last_sequence_without_steps_ends_as_it_starts(reset_to: str) -> None:
    layer, hx = torchrnn.GRU(3, 4), torch.randn(1, 1, 4)
    reset, mask = torch.tensor([0, 0, 1]).bool().unsqueeze(1), torch.tensor([1, 1, 0]).bool().unsqueeze(1)
    _, final = layer(torch.randn(3, 1, 3), hx, reset=reset, mask=mask, reset_to=reset_to)
    assert torch.equal(final, hx if reset_to == "initial" else torch.zeros_like(hx))


def test_no_reset_at_all_takes_the_dense_path() -> None:
    layer, x = torchrnn.GRU(3, 4), torch.randn(5, 2, 3)
    assert layer.request(x, reset=torch.zeros(5, 2) > 0)[0].x is x


def test_one_unbatched_sequence() -> None:
    layer, x = torchrnn.LSTM(3, 4, bidirectional=True), torch.randn(T, 3)
    output, final = layer(x, reset=RESET[:, 0])
    batch, states = layer(x.unsqueeze(1), reset=RESET[:, :1])
    assert torch.equal(output, batch[:, 0])
    assert all(torch.equal(a, b[:, 0]) for a, b in zip(final, states, strict=True))


@to
@pytest.mark.parametrize("backend", [CPU, "reference"])
def test_gradcheck(backend: str, reset_to: str) -> None:
    layer = torchrnn.GRU(2, 3, bidirectional=True, **F64)
    x, hx = torch.randn(T, B, 2, requires_grad=True, **F64), torch.randn(2, B, 3, requires_grad=True, **F64)

    def call(x: torch.Tensor, hx: torch.Tensor) -> Any:
        with torchrnn.use(backend):
            return layer(x, hx, mask=MASK, reset=RESET, reset_to=reset_to)

    assert gradcheck(call, (x, hx))


def test_transforms_of_a_call_with_resets() -> None:
    layer, x = torchrnn.GRU(3, 4, bidirectional=True, **F64), torch.randn(T, B, 3, **F64)

    def call(x: torch.Tensor) -> torch.Tensor:
        return layer(x, reset=RESET, mask=MASK)[0]

    copies = torch.func.vmap(call)(torch.stack((x, 2 * x)))
    torch.testing.assert_close(copies[1], call(2 * x), atol=1e-12, rtol=0)
    direction = torch.randn_like(x)
    value, slope = torch.func.jvp(call, (x,), (direction,))  # pyright: ignore[reportAssignmentType]
    torch.testing.assert_close(value, call(x), atol=1e-12, rtol=0)
    by_hand = (call(x + 1e-6 * direction) - call(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, by_hand, atol=1e-7, rtol=0)
    back = torch.func.grad(lambda x: call(x).square().sum())(x)
    (plain,) = torch.autograd.grad(call(x.requires_grad_()).square().sum(), x)
    torch.testing.assert_close(back, plain, atol=1e-12, rtol=0)


def test_batched_gradients_of_a_call_with_lengths() -> None:
    layer, x = torchrnn.GRU(3, 4, **F64), torch.randn(T, B, 3, requires_grad=True, **F64)
    output, final = layer(x, lengths=[6, 0, 3, 6, 1])
    directions = torch.randn(3, *output.shape, **F64)
    (batched,) = torch.autograd.grad(output, x, directions, is_grads_batched=True, retain_graph=True)
    for one, direction in zip(batched, directions, strict=True):
        (alone,) = torch.autograd.grad(output, x, direction, retain_graph=True)
        torch.testing.assert_close(one, alone, atol=1e-12, rtol=0)
    assert tensors(final)[0].requires_grad
