"""The other forms of a batch: lists, nested tensors, several batch dimensions, nothing at all; states of batch 1."""

from typing import Any

import pytest
import torch
from agreement import F64, LAYERS, agree, close, everywhere, states_for, tensors
from torch.nn.utils.rnn import pad_sequence

import torchrnn

every_name = pytest.mark.parametrize("name", LAYERS)
SIZES = [2, 0, 5, 1, 5]


def sequences() -> list[torch.Tensor]:
    return [torch.randn(n, 3, requires_grad=True, **F64) for n in SIZES]


def gradients(results: Any, inputs: Any) -> Any:
    torch.manual_seed(1)
    return torch.autograd.grad(sum((r * torch.randn(r.shape, **F64)).sum() for r in results), inputs)  # type: ignore[arg-type]


@everywhere
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_a_list_is_a_padded_batch_without_padding(name: str, backend: str, batch_first: bool) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, **F64)
    x, hx = sequences(), states_for(layer, 5)
    wanted = [*x, *tensors(hx), *layer.parameters()]
    with torchrnn.use(backend):
        outputs, final = layer(x, hx)
        padded, padded_final = layer(pad_sequence(x, batch_first=batch_first), hx, lengths=SIZES)
    assert type(outputs) is list
    rows = [p[:n] for p, n in zip(padded if batch_first else padded.transpose(0, 1), SIZES, strict=True)]
    for got, row in zip((*outputs, *tensors(final)), (*rows, *tensors(padded_final)), strict=True):
        close("result", got, row)
    found = (gradients((*o, *tensors(s)), wanted) for o, s in ((outputs, final), (rows, padded_final)))
    for got, row in zip(*found, strict=True):
        close("gradient", got, row)


@every_name
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_a_jagged_tensor_is_a_list(name: str, batch_first: bool) -> None:
    layer = LAYERS[name](3, 4, bidirectional=True, batch_first=batch_first, **F64)
    x, hx = sequences(), states_for(layer, 5)
    outputs, final = layer(x, hx)
    nested: Any = torch.nested.as_nested_tensor(x, layout=torch.jagged)
    output, states = layer(nested, hx)
    assert output.is_nested
    assert output.offsets() is nested.offsets()
    assert (output + output).is_nested  # one ragged size
    assert output.to_padded_tensor(0.0).shape == (5, 5, outputs[0].size(1))  # not as long as all rows together
    for got, alone in zip((output.values(), *tensors(states)), (torch.cat(outputs), *tensors(final)), strict=True):
        close("result", got, alone)
    wanted = [*x, *layer.parameters()]
    found = (gradients((o,), wanted) for o in (output.values(), torch.cat(outputs)))
    for got, alone in zip(*found, strict=True):
        close("gradient", got, alone)


def test_a_jagged_tensor_with_gaps() -> None:
    layer, x = torchrnn.GRU(3, 4, **F64), torch.randn(3, 6, 3, **F64)
    begin, sizes = torch.tensor([1, 0, 2]), torch.tensor([3, 6, 0])
    nested = torch.nested.narrow(x, 1, begin, sizes, layout=torch.jagged)
    output, final = layer(nested)
    assert not output.is_contiguous()
    rows = [x[b, s : s + n] for b, (s, n) in enumerate(zip(begin.tolist(), sizes.tolist(), strict=True))]
    expected, end = layer(rows)
    for got, row in zip(output.unbind(), expected, strict=True):
        close("output", got, row)
    close("final", final, end)


def test_the_trace_of_a_jagged_tensor_ends_with_its_longest_sequence() -> None:
    sequences = [torch.randn(n, 3, **F64) for n in (3, 0, 5)]
    layer = torchrnn.GRU(3, 5, **F64)
    trace = layer(torch.nested.nested_tensor(sequences, layout=torch.jagged), return_all=True)[2]
    expected = layer(sequences, return_all=True)[2]
    assert trace.h.shape == (1, 1, 5, 3, 5)
    assert torch.equal(trace.h, expected.h)
    assert torch.equal(trace.z, expected.z)


@everywhere
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_several_batch_dimensions(name: str, backend: str, batch_first: bool) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, **F64)
    T, dims = 5, (2, 1, 3)
    x = torch.randn(T, *dims, 3, **F64)
    said: dict[str, torch.Tensor] = {"mask": torch.rand(T, *dims) < 0.7, "reset": torch.rand(T, *dims) < 0.3}
    flat, flat_said = x.flatten(1, 3), {k: v.flatten(1) for k, v in said.items()}
    if batch_first:
        x, flat = x.movedim(0, 3), flat.transpose(0, 1)
        said, flat_said = {k: v.movedim(0, 3) for k, v in said.items()}, {k: v.t() for k, v in flat_said.items()}
    flat_hx = states_for(layer, 6)
    hx: Any = tuple(s.unflatten(1, dims) for s in tensors(flat_hx))
    with torchrnn.use(backend):
        for given, given_flat in (
            (said, flat_said),
            ({}, {}),
            ({"lengths": torch.tensor([[[5, 2, 0]], [[1, 5, 4]]])}, {"lengths": [5, 2, 0, 1, 5, 4]}),
        ):
            output, final = layer(x, hx if len(hx) > 1 else hx[0], **given)
            expected, end = layer(flat, flat_hx, **given_flat)
            close("output", output, expected.unflatten(0 if batch_first else 1, dims))
            for got, row in zip(tensors(final), tensors(end), strict=True):
                close("final", got, row.unflatten(1, dims))


@every_name
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0)])
def test_no_steps_and_no_rows(name: str, batch_first: bool, T: int, B: int) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, **F64)
    shape = (B, T) if batch_first else (T, B)
    flags = torch.ones(shape, dtype=torch.bool)
    for said in ({}, {"mask": flags}, {"reset": flags}, {"mask": ~flags, "reset": flags}, {"lengths": [0] * B}):
        for hx in (None, states_for(layer, B)):
            output, final = layer(torch.randn(*shape, 3, **F64), hx, **said)
            assert output.shape[:2] == shape
            if hx is not None and not T:
                assert all(torch.equal(a, b) for a, b in zip(tensors(final), tensors(hx), strict=True))
            if hx is not None:
                sum(s.sum() for s in tensors(final)).backward()  # type: ignore[union-attr]


@every_name
def test_a_list_of_empty_sequences_keeps_the_states(name: str) -> None:
    layer = LAYERS[name](3, 4, bidirectional=True, **F64)
    hx = states_for(layer, 2)
    outputs, final = layer([torch.zeros(0, 3, **F64)] * 2, hx)
    assert [o.shape[0] for o in outputs] == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(tensors(final), tensors(hx), strict=True))


@everywhere
@pytest.mark.parametrize(
    "said", [{}, {"lengths": [4, 0, 2]}, {"reset": torch.eye(4, 3) > 0}], ids=["plain", "lengths", "reset"]
)
def test_a_state_of_batch_1_is_for_all_rows(name: str, backend: str, said: Any) -> None:
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, **F64)
    agree(layer, backend, torch.randn(4, 3, 3, **F64), states_for(layer, 1), **said)


def test_one_state_of_batch_1_beside_one_of_batch_B() -> None:
    layer, x = torchrnn.LSTM(3, 4), torch.randn(4, 2, 5, 3)
    h, c = torch.randn(1, 1, 1, 4), torch.randn(1, 2, 1, 4)
    output, _ = layer(x, (h, c))
    assert torch.equal(output, layer(x, (h.expand(1, 2, 5, 4), c.expand(1, 2, 5, 4)))[0])


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_a_state_of_batch_1_for_a_cell(kind: str) -> None:
    cell, x = getattr(torchrnn, kind)(3, 4, **F64), torch.randn(5, 3, **F64)
    hx: Any = tuple(torch.randn(1, 4, requires_grad=True, **F64) for _ in cell.cell.states)
    wide: Any = tuple(s.expand(5, 4) for s in hx)
    found = []
    for states in (hx, wide):
        new = tensors(cell(x, states if len(states) > 1 else states[0]))
        found.append((*new, *gradients(new, hx)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
