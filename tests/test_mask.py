"""mask=: steps left out of a sequence, wherever they stand."""

import warnings
from typing import Any

import pytest
import torch
from agreement import F64, LAYERS, agree, everywhere, states_for, tensors
from fused import CPU
from torch.autograd import gradcheck, gradgradcheck

import torchrnn
from torchrnn.backends.packing import Packing


def masked(mask: torch.Tensor, I: int = 3, *, batch_first: bool = False) -> torch.Tensor:
    """An input (T, B, I) that is NaN where the mask is False."""
    x = torch.randn(*mask.shape, I, **F64).masked_fill(~mask.unsqueeze(-1), torch.nan)
    return x.transpose(0, 1).contiguous() if batch_first else x


HOLES = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0]]) == 1  # (T, B)


@everywhere
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_holes_left_padding_and_empty_rows(name: str, backend: str, batch_first: bool, given: bool) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, **F64)
    hx = states_for(layer, 4) if given else None
    mask = HOLES.t() if batch_first else HOLES
    output, final = agree(layer, backend, masked(HOLES, batch_first=batch_first), hx, mask=mask)
    assert not output[~mask].any()
    assert not given or torch.equal(tensors(final)[0][:, 3], tensors(hx)[0][:, 3])


@everywhere
def test_one_direction_without_bias(name: str, backend: str) -> None:
    agree(LAYERS[name](3, 4, bias=False, **F64), backend, masked(HOLES), mask=HOLES)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", LAYERS)
def test_masks_at_random(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    T, B = (int(torch.randint(1, 8, (), generator=generator)) for _ in range(2))
    mask = torch.rand(T, B, generator=generator) < 0.2 + 0.15 * seed
    layer = LAYERS[name](3, 4, bidirectional=bool(seed % 2), **F64)
    agree(layer, None, masked(mask), states_for(layer, B), mask=mask)


@everywhere
def test_padding_on_the_right_is_what_lengths_say(name: str, backend: str) -> None:
    layer, lengths = LAYERS[name](3, 4, bidirectional=True, **F64), torch.tensor([2, 5, 0, 4])
    x = torch.randn(5, 4, 3, **F64)
    mask = torch.arange(5).unsqueeze(1) < lengths
    with torchrnn.use(backend):
        (a, s), (b, t) = layer(x, mask=mask), layer(x, lengths=lengths)
        assert torch.equal(a, b)
        assert all(torch.equal(p, q) for p, q in zip(tensors(s), tensors(t), strict=True))
        (a, s), (b, t) = layer(x, mask=torch.ones(5, 4) > 0), layer(x)
        assert torch.equal(a, b)
        assert all(torch.equal(p, q) for p, q in zip(tensors(s), tensors(t), strict=True))


def test_a_mask_that_is_all_true_takes_the_dense_path() -> None:
    layer, x = torchrnn.GRU(3, 4), torch.randn(5, 2, 3)
    assert layer.request(x, mask=torch.ones(5, 2) > 0)[0].x is x
    assert layer.request(x, lengths=[5, 5])[0].x is x
    assert layer.request(x, lengths=[5, 5])[0].steps is None
    assert layer.request(x, lengths=[5, 4])[0].steps is not None


def test_a_masked_step_costs_nothing() -> None:
    call, _ = torchrnn.GRU(3, 4).request(torch.randn(5, 4, 3), mask=HOLES)
    packed = Packing(call).enter()
    assert len(packed.x) == int(HOLES.sum())
    assert packed.states[0].shape == (1, 3, 4)  # the empty row is not run at all


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_unbatched_sequence(batch_first: bool) -> None:
    layer = torchrnn.LSTM(3, 4, bidirectional=True, batch_first=batch_first, **F64)
    mask, x, row = HOLES[:, 0], masked(HOLES[:, :1])[:, 0], 0 if batch_first else 1
    output, final = layer(x, mask=mask)
    batch, states = layer(x.unsqueeze(row), mask=mask.unsqueeze(row))
    assert torch.equal(output, batch.squeeze(row))
    assert all(torch.equal(a, b[:, 0]) for a, b in zip(final, states, strict=True))


def test_a_mask_that_is_all_false_keeps_the_state() -> None:
    layer, hx = torchrnn.LSTM(3, 4), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    output, final = layer(torch.full((5, 2, 3), torch.nan), hx, mask=torch.zeros(5, 2) > 0)
    assert not output.any()
    assert all(torch.equal(a, b) for a, b in zip(final, hx, strict=True))


@everywhere
@pytest.mark.parametrize("said", [{"lengths": [4]}, {"mask": HOLES[:, :1]}, {"reset": HOLES[:, :1]}], ids=str)
@pytest.mark.parametrize("I", [1, 3])
def test_a_dimension_of_size_one_may_have_any_stride(name: str, backend: str, said: Any, I: int) -> None:
    layer, x = LAYERS[name](I, 4, **F64), torch.randn(1, 5, I, **F64)
    x, straight = x.transpose(0, 1).requires_grad_(), x.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    factors = torch.randn(1, 5, layer.proj_size or 4, **F64)
    found = []
    for given in (x, straight.requires_grad_()):
        with torchrnn.use(backend):
            output, _ = layer(given, **said)
        loss = (output.transpose(0, 1) * factors).sum()  # and so the gradient of the output
        found.append((output, *torch.autograd.grad(loss, [given, *layer.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    rows, counts = torch.randn(1, 6, I, **F64), [1, 0] * 3  # six rows of one step
    first = LAYERS[name](I, 4, batch_first=True, **F64)
    with torchrnn.use(backend):
        odd = first(rows.transpose(0, 1), lengths=counts)[0]
        straight = first(rows.transpose(0, 1).clone(memory_format=torch.contiguous_format), lengths=counts)[0]
    torch.testing.assert_close(odd, straight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", [CPU, "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_where_no_step_counts_the_gradient_goes_to_the_initial_state(
    kind: str, dtype: torch.dtype, backend: str
) -> None:
    layer = getattr(torchrnn, kind)(3, 4, num_layers=2, bidirectional=True, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype, requires_grad=True)
    hx = [torch.randn(4, 2, 4, dtype=dtype, requires_grad=True) for _ in layer.cell.states]
    with torchrnn.use(backend):
        output, final = layer(x, hx[0] if len(hx) == 1 else tuple(hx), lengths=[0, 0])
    given = [torch.full_like(s, k + 2) for k, s in enumerate((output, *tensors(final)))]
    torch.autograd.backward((output, *tensors(final)), given)
    for k, state in enumerate(hx):
        assert state.grad is not None
        assert torch.equal(state.grad, torch.full_like(state, k + 3))
    for t in (x, *layer.parameters()):
        assert t.grad is None or not t.grad.any()


@pytest.mark.parametrize("backend", [CPU, "reference"])
def test_gradcheck(backend: str) -> None:
    layer = torchrnn.GRU(2, 3, bidirectional=True, **F64)
    x, hx = torch.randn(5, 4, 2, requires_grad=True, **F64), torch.randn(2, 4, 3, requires_grad=True, **F64)

    def call(x: torch.Tensor, hx: torch.Tensor) -> Any:
        with torchrnn.use(backend):
            return layer(x, hx, mask=HOLES)

    assert gradcheck(call, (x, hx))
    assert gradgradcheck(call, (x, hx))


@pytest.mark.parametrize(
    "said",
    [{"mask": HOLES}, {"lengths": torch.tensor([5, 0, 3, 1])}, {"reset": HOLES}],
    ids=["mask", "lengths", "reset"],
)
def test_compiled_with_graph_breaks(said: Any) -> None:
    layer, x = torchrnn.GRU(3, 4, bidirectional=True, **F64), torch.randn(5, 4, 3, **F64)
    compiled: Any = torch.compile(layer, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo looks at .grad of what it goes on with after a break
        results = compiled(x, **said)
    for got, expected in zip(results, layer(x, **said), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_dropout_in_training_acts_on_the_steps_that_count() -> None:
    layer = torchrnn.GRU(3, 4, num_layers=2, dropout=0.5, **F64)
    x = masked(HOLES)
    output, _ = layer(x, mask=HOLES)
    assert torch.isfinite(output).all()
    assert not torch.equal(output, layer(x, mask=HOLES)[0])
    layer.eval()
    agree(layer, None, x, mask=HOLES)
