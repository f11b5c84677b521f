"""last() and detach(): the last valid output of both directions, and states without their past."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from agreement import F64, tensors
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import torchrnn
from torchrnn import ArgumentError, detach, last

SIZES = torch.tensor([3, 5, 1, 4])
both = pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])


def final_of(layer: Any, final: Any) -> torch.Tensor:
    """The final states of the top layer, both directions joined."""
    h = tensors(final)[0]
    return torch.cat((h[-2], h[-1]), -1) if layer.bidirectional else h[-1]


@both
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_last_output_is_the_final_state(kind: str, bidirectional: bool, batch_first: bool) -> None:
    options: Any = {"bidirectional": bidirectional, "batch_first": batch_first}
    layer = getattr(torchrnn, kind)(3, 4, num_layers=2, **options, **F64)
    x = torch.randn(4, 5, 3, **F64) if batch_first else torch.randn(5, 4, 3, **F64)
    for said, lengths in (({}, None), ({"lengths": SIZES}, SIZES), ({"lengths": SIZES}, SIZES.tolist())):
        output, final = layer(x, **said)
        assert torch.equal(last(output, lengths, **options), final_of(layer, final))
    output, final = layer(pack_padded_sequence(x, SIZES, batch_first, enforce_sorted=False))
    assert torch.equal(last(output, **options), final_of(layer, final))
    output, final = layer(pack_padded_sequence(x, SIZES.sort(descending=True)[0], batch_first))
    assert torch.equal(last(output, **options), final_of(layer, final))


@both
def test_lists_nested_tensors_and_one_sequence(bidirectional: bool) -> None:
    layer = torchrnn.GRU(3, 4, bidirectional=bidirectional, **F64)
    rows = [torch.randn(n, 3, **F64) for n in (3, 0, 5)]
    outputs, final = layer(rows)
    expected = last(outputs, bidirectional=bidirectional)
    assert torch.equal(expected, final_of(layer, final))
    output, _ = layer(torch.nested.as_nested_tensor(rows, layout=torch.jagged))
    assert torch.equal(last(output, bidirectional=bidirectional), expected)
    for batch_first in (False, True):
        one = last(layer(rows[0])[0], bidirectional=bidirectional, batch_first=batch_first)
        assert torch.equal(one, expected[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_several_batch_dimensions(batch_first: bool) -> None:
    layer, sizes = torchrnn.GRU(3, 4, bidirectional=True, batch_first=batch_first), SIZES.view(2, 2)
    output, final = layer(torch.randn(*((2, 2, 5) if batch_first else (5, 2, 2)), 3), lengths=sizes)
    got = last(output, sizes, bidirectional=True, batch_first=batch_first)
    assert torch.equal(got, torch.cat((final[0], final[1]), -1))


@both
def test_empty_sequences_give_zeros(bidirectional: bool) -> None:
    output = torch.full((3, 2, 4), torch.nan)
    output[:2, 0] = 1.0
    expected = torch.tensor([[1.0] * 4, [0.0] * 4])
    assert torch.equal(last(output, [2, 0], bidirectional=bidirectional), expected)
    assert torch.equal(last(output[:0], bidirectional=bidirectional), torch.zeros(2, 4))
    assert last(output[:, :0], [], bidirectional=bidirectional).shape == (0, 4)
    assert torch.equal(last([output[:0, 0]] * 2, bidirectional=bidirectional), torch.zeros(2, 4))


def test_gradient_reaches_the_last_steps_only() -> None:
    output = torch.randn(5, 4, 2, requires_grad=True)
    last(output, SIZES, bidirectional=True).sum().backward()
    expected = torch.zeros(5, 4, 2)
    expected[SIZES - 1, torch.arange(4), 0] = 1
    expected[0, :, 1] = 1
    assert torch.equal(output.grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        (lambda: last(torch.zeros(3)), TypeError, "such as a Tensor (T, B, F), got Tensor (3,)"),
        (lambda: last(None), TypeError, "got NoneType"),
        (
            lambda: last(torchrnn.GRU(3, 4)(torch.zeros(5, 2, 3))),
            TypeError,
            "result is (output, states); pass its first",
        ),
        (
            lambda: last(torchrnn.GRU(3, 4)(torch.zeros(5, 3))),  # two matrices, as a list of two outputs
            TypeError,
            "got tuple: a layer's result is (output, states); pass its first",
        ),
        (
            lambda: last(torchrnn.LSTM(3, 4)(torch.zeros(5, 2, 3)), [5, 3]),
            TypeError,
            "result is (output, states); pass its first",
        ),
        (lambda: last([]), ArgumentError, "at least one"),
        (lambda: last([torch.zeros(2, 3)], [2]), ArgumentError, "output is a list of outputs, which has its own"),
        (lambda: last(torch.zeros(2, 3), [2]), ArgumentError, "output is one unbatched sequence"),
        (lambda: last(torch.zeros(2, 3, 4), [2]), ArgumentError, "lengths must be (B,) = (3,), got (1,)"),
        (lambda: last(torch.zeros(2, 1, 4), [3]), ArgumentError, "lengths must be between 0 and T = 2"),
        (lambda: last(torch.zeros(2, 1, 3), bidirectional=True), ArgumentError, "two halves, got 3 features"),
        (lambda: detach(3), TypeError, "state must be Tensors in tuples, lists or dicts, or None, got int"),
    ],
)
def test_mistakes(mistake: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        mistake()
    assert words in str(caught.value)


def test_detach_keeps_structure_and_numbers() -> None:
    State = namedtuple("State", "h c")
    h = torch.randn(2, requires_grad=True)
    for state in (h, (h, h * 2), [h, (h * 2, None)], State(h, h), {"a": (h,)}, None):
        cut = detach(state)
        assert type(cut) is type(state)
        leaves, source = (tree_leaves(s) for s in (cut, state))
        for a, b in zip(leaves, source, strict=True):
            assert a is b is None or (not a.requires_grad and a.data_ptr() == b.data_ptr())


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_truncated_backpropagation_needs_no_graph_of_the_past(kind: str) -> None:
    layer, state = getattr(torchrnn, kind)(3, 4), None
    for chunk in torch.randn(8, 2, 3).split(4):
        output, state = layer(chunk, detach(state))
        output.sum().backward()
