"""The forms of a sequence: packed, padded with lengths, unbatched, batch first."""

from typing import Any

import pytest
import torch
from fused import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchrnn

KINDS = ["RNN", "LSTM", "GRU"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def tensors(states: Any) -> tuple[torch.Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


@every_kind
@pytest.mark.parametrize("backend", [CPU, "aten", "reference"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    given_states=st.booleans(),
)
def test_lengths_are_rows_run_alone(kind, backend, lengths, bidirectional, batch_first, given_states) -> None:
    T, B, LD = 6, len(lengths), 2 * (1 + bidirectional)
    layer = getattr(torchrnn, kind)(
        3, 4, num_layers=2, bidirectional=bidirectional, batch_first=batch_first, dtype=torch.float64
    )
    x: Any = torch.full((T, B, 3), torch.nan, dtype=torch.float64)  # padding that must reach nothing
    for b, n in enumerate(lengths):
        x[:n, b] = torch.randn(n, 3, dtype=torch.float64)
    x = (x.transpose(0, 1) if batch_first else x).contiguous().requires_grad_()
    states = [torch.randn(LD, B, 4, dtype=torch.float64) for _ in range(2 if kind == "LSTM" else 1)]
    hx = None if not given_states else tuple(states) if len(states) > 1 else states[0]
    if not any(lengths):
        backend = "reference"  # the kernels refuse an empty batch
    with torchrnn.use(backend):
        output, final = layer(x, hx, lengths=lengths)
    output.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    rows = output if batch_first else output.transpose(0, 1)
    sources = x if batch_first else x.transpose(0, 1)
    for b, n in enumerate(lengths):
        assert not rows[b, n:].any()
        begin = [s[:, b] if given_states else torch.zeros_like(s[:, b]) for s in states]
        if n:
            alone, end = layer(sources[b, :n], tuple(begin) if len(begin) > 1 else begin[0])
            torch.testing.assert_close(rows[b, :n], alone, atol=1e-12, rtol=0)
            begin = list(tensors(end))
        for got, expected in zip(tensors(final), begin, strict=True):
            torch.testing.assert_close(got[:, b], expected, atol=1e-12, rtol=0)


@every_kind
@pytest.mark.parametrize("of", [torch.tensor, list, lambda n: torch.tensor(n, dtype=torch.int32)])
def test_lengths_are_what_packing_gives(kind: str, of: Any) -> None:
    layer, x, lengths = getattr(torchrnn, kind)(3, 4, bidirectional=True), torch.randn(6, 3, 3), [2, 6, 4]
    output, final = layer(x, lengths=of(lengths))
    packed, packed_final = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    assert torch.equal(output, pad_packed_sequence(packed, total_length=6)[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors(final), tensors(packed_final), strict=True))


@every_kind
def test_gradient_with_lengths_reaches_the_initial_states(kind: str) -> None:
    layer = getattr(torchrnn, kind)(2, 3)
    hx = tuple(torch.randn(1, 3, 3, requires_grad=True) for _ in range(2 if kind == "LSTM" else 1))
    _, final = layer(torch.randn(4, 3, 2), hx[0] if len(hx) == 1 else hx, lengths=[4, 0, 2])
    sum(s.sum() for s in tensors(final)).backward()  # type: ignore[union-attr]
    for h in hx:
        assert h.grad is not None
        assert torch.equal(h.grad[:, 1], torch.ones(1, 3))  # the empty row keeps its state
        assert not torch.equal(h.grad[:, 0], torch.ones(1, 3))


def test_no_rows_and_no_lengths() -> None:
    layer = torchrnn.GRU(3, 4)
    for batch, lengths in (((0,), []), ((0, 2), []), ((2, 0), [[], []]), ((0,), torch.tensor([]))):
        assert layer(torch.randn(5, *batch, 3), lengths=lengths)[0].shape == (5, *batch, 4)


@pytest.mark.parametrize("lengths", [[], torch.tensor([], dtype=torch.int64)])
def test_no_lengths_for_some_rows(lengths: Any) -> None:
    with pytest.raises(torchrnn.ArgumentError, match=r"lengths must be \(B,\) = \(2,\), got \(0,\)"):
        torchrnn.GRU(3, 4)(torch.randn(5, 2, 3), lengths=lengths)


@every_kind
def test_batch_first_moves_input_and_output_only(kind: str) -> None:
    torch.manual_seed(1)
    first = getattr(torchrnn, kind)(3, 4, batch_first=True)
    second = getattr(torchrnn, kind)(3, 4)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 5, 3)
    a, s = first(x)
    b, t = second(x.transpose(0, 1))
    assert torch.equal(a, b.transpose(0, 1))
    assert all(torch.equal(p, q) for p, q in zip(tensors(s), tensors(t), strict=True))
    assert tensors(s)[0].shape == (1, 2, 4)
    assert first(x[0])[0].shape == (5, 4)  # unbatched: batch_first means nothing
