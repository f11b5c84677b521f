"""Stream: steps, chunks and both mixed are one call, to the bit; and what changes on the way is never missed."""

from typing import Any

import pytest
import torch
from agreement import LAYERS, NO_KERNEL, learned, states_for, tensors
from fused import needs_kernels
from torch.utils._pytree import tree_leaves, tree_map

import torchrnn
from torchrnn import ArgumentError, Stream

T, I = 9, 3
every_name = pytest.mark.parametrize("name", LAYERS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
graph = pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "single bias": {"bias": "single", "num_layers": 2},
    "layers": {"num_layers": 3},
    "batch first": {"batch_first": True, "num_layers": 2},
    "learned": {"learn_initial_state": True, "batch_first_state": True, "num_layers": 2},
    "sizes": {"hidden_size": [4, 5], "learn_initial_state": True, "batch_first_state": True},
    "residual": {"num_layers": 2, "residual": True},
}


def build(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    options = {"hidden_size": 5, **options}
    return learned(LAYERS[name](I, options.pop("hidden_size"), dtype=dtype, **options))


def pieces(cuts: str) -> list[int]:
    """How many steps each piece has; 0: one step (B, I), not a chunk."""
    if cuts == "steps":
        return [0] * T
    if cuts == "chunks":
        return [4, 1, 3, 1]
    return [0, 3, 0, 0, 2, 1]  # a mixture


def streamed(stream: Stream, x: torch.Tensor, cuts: str) -> torch.Tensor:
    """The outputs of a stream over (T, B, I), time first."""
    outputs, t, first = [], 0, stream.layer.batch_first
    for n in pieces(cuts):
        if n == 0:
            outputs.append(stream(x[t]).unsqueeze(0))
        else:
            chunk = x[t : t + n].transpose(0, 1) if first else x[t : t + n]
            y = stream(chunk)
            outputs.append(y.transpose(0, 1) if first else y)
        t += max(n, 1)
    assert t == T
    return torch.cat(outputs)


def whole(layer: Any, x: torch.Tensor, hx: Any = None) -> tuple[torch.Tensor, Any]:
    y, state = layer(x.transpose(0, 1) if layer.batch_first else x, hx)
    return y.transpose(0, 1) if layer.batch_first else y, state


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(tree_leaves(a), tree_leaves(b), strict=True))


@needs_kernels
@every_name
@dtypes
@graph
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cuts", ["steps", "chunks", "mixture"])
@pytest.mark.parametrize("B", [1, 3, 17])
def test_pieces_are_one_call_to_the_bit(name: str, dtype: Any, grad: bool, options: str, cuts: str, B: int) -> None:
    layer, x = build(name, dtype, **OPTIONS[options]), torch.randn(T, B, I, dtype=dtype)
    backend = "reference" if name in NO_KERNEL else "cpu"
    with torch.set_grad_enabled(grad):
        assert torchrnn.explain(layer, x).backend == backend
        y, state = whole(layer, x)
        stream = Stream(layer)
        got = streamed(stream, x, cuts)
        given = Stream(layer, state)
        again, _ = whole(layer, x, state)
        got_again = streamed(given, x, cuts)
    if backend == "reference":  # torch's product of one row may sum in another order than that of many
        torch.testing.assert_close(got, y)
        return
    assert torch.equal(got, y)
    assert equal(stream.state, state)
    assert type(stream.state) is type(state)
    assert torch.equal(got_again, again)
    assert got.requires_grad is grad


@needs_kernels
def test_at_random() -> None:
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(60):
        B, size, total = number(1, 40), number(1, 70), number(2, 20)
        layer = LAYERS[["rnn_relu", "lstm", "gru"][number(0, 2)]](I, size, num_layers=number(1, 3))
        x, t, outputs = torch.randn(total, B, I), 0, []
        stream = Stream(layer)
        while t < total:
            n = number(0, 4)
            with torch.set_grad_enabled(bool(number(0, 1))):
                outputs.append(stream(x[t : t + n] if n else x[t]).reshape(-1, B, size))
            t += max(n, 1)
        y, state = layer(x)
        assert torch.equal(torch.cat(outputs), y)
        assert equal(stream.state, state)


@every_name
@pytest.mark.parametrize("cuts", ["steps", "chunks", "mixture"])
def test_the_gradient_flows_through_all_pieces(name: str, cuts: str) -> None:
    layer = build(name, torch.float64, num_layers=2, learn_initial_state=True)
    x = torch.randn(T, 2, I, dtype=torch.float64, requires_grad=True)
    wanted, found = [x, *layer.parameters()], []
    for y, state in (whole(layer, x), (streamed(stream := Stream(layer), x, cuts), stream.state)):
        torch.manual_seed(1)
        total = sum((t * torch.randn_like(t)).sum() for t in (y, *tensors(state)))
        found.append(torch.autograd.grad(total, wanted))  # type: ignore[arg-type]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@graph
def test_detach_ends_the_gradient(grad: bool) -> None:
    layer = torchrnn.LSTM(I, 5)
    stream, x = Stream(layer), torch.randn(2, 4, I, requires_grad=True)
    with torch.set_grad_enabled(grad):
        stream(x[0])
    stream.detach()
    assert not any(s.requires_grad for s in stream.state)
    stream(x[1]).sum().backward()
    assert x.grad is not None
    assert not x.grad[0].any()
    assert x.grad[1].any()


@every_name
@graph
@pytest.mark.parametrize("options", ["plain", "learned", "sizes"])
def test_reset(name: str, grad: bool, options: str) -> None:
    layer, rows = build(name, **OPTIONS[options]), torch.tensor([True, False, True])
    with torch.set_grad_enabled(grad):
        stream, x, more = Stream(layer), torch.randn(4, 3, I), torch.randn(4, 3, I)
        stream.reset(rows)  # there is nothing to reset yet
        whole_y = torch.stack([stream(x_t) for x_t in x])
        stream.reset(rows)
        y = torch.stack([stream(x_t) for x_t in more])
        alone, through = layer(more)[0], layer(torch.cat((x, more)))[0][4:]
        torch.testing.assert_close(y[:, rows], alone[:, rows])
        torch.testing.assert_close(y[:, ~rows], through[:, ~rows])
        stream.reset()
        assert stream.state is None
        torch.testing.assert_close(torch.stack([stream(x_t) for x_t in x]), whole_y)
        stream.reset()
        assert stream(torch.randn(7, I)).shape[0] == 7  # another batch
    for wrong in (torch.ones(7), torch.ones(3) > 0, [True] * 7):
        with pytest.raises(ArgumentError, match=r"rows must be \(B,\) = \(7,\) bool, True where"):
            stream.reset(wrong)  # type: ignore[arg-type]


def test_reset_sends_gradients_to_learned_states_of_these_rows_only() -> None:
    layer = build("gru", learn_initial_state=True)
    stream = Stream(layer, torch.zeros(1, 2, 5))
    stream(torch.randn(2, I))
    stream.reset(torch.tensor([False, True]))
    stream.state[:, 0].sum().backward(retain_graph=True)
    assert layer.initial_h.grad is None or not layer.initial_h.grad.any()
    stream.state[:, 1].sum().backward()
    gradient: Any = layer.initial_h.grad
    assert torch.equal(gradient, torch.ones_like(layer.initial_h))


@every_name
@graph
def test_setting_the_state(name: str, grad: bool) -> None:
    layer, x = build(name, num_layers=2), torch.randn(5, 3, I)
    hx: Any = tree_map(lambda s: s.detach().float(), states_for(layer, 3))
    one: Any = tree_map(lambda s: s[:, :1], hx)
    with torch.set_grad_enabled(grad):
        stream = Stream(layer)
        stream(x[0])
        for state in (hx, one):  # one of batch 1 is for all rows
            stream.state = state
            torch.testing.assert_close(torch.stack([stream(x_t) for x_t in x]), layer(x, state)[0])


@graph
@pytest.mark.parametrize("options", ["plain", "batch first", "learned", "sizes"])
def test_mistakes_leave_the_state_as_it_was(grad: bool, options: str) -> None:
    layer = build("lstm", **OPTIONS[options])
    letters = r"\(B, T, I\)" if layer.batch_first else r"\(T, B, I\)"
    with torch.set_grad_enabled(grad):
        for B, other in ((3, 1), (1, 3)):
            stream = Stream(layer)
            stream(torch.randn(B, I))
            before = stream.state
            many = (B, 2, I) if layer.batch_first else (2, B, I)
            few = (other, 2, I) if layer.batch_first else (2, other, I)
            wrong: Any
            for wrong, words in (
                (torch.randn(other, I), rf"x must have the batch of the steps before, B = {B}, got {other}: reset\(\)"),
                (torch.randn(few), f"B = {B}, got {other}"),
                (torch.randn(B, I + 1), "Expected 3, got 4"),
                (torch.randn(*many[:2], I + 1), "Expected 3, got 4"),
                (torch.randn(B, I).double(), "torch.float64"),
                (torch.ones(B, I).long(), "torch.int64"),
                (torch.randn(many).double(), "torch.float64"),
                (torch.randn(I), rf"x must be one step \(B, I\) or a chunk {letters}, got \(3,\)"),
                (torch.randn(1, 1, B, I), "one step"),
                ([1.0, 2.0], "got a list"),
            ):
                with pytest.raises(ArgumentError, match=words):
                    stream(wrong)
                assert equal(stream.state, before)


@graph
def test_a_state_that_is_none_of_the_layers(grad: bool) -> None:
    layer, x = torchrnn.LSTM(I, 5), torch.randn(3, I)
    with torch.set_grad_enabled(grad):
        for state, error, words in (
            (torch.zeros(1, 3, 5), TypeError, "hx must be a tuple"),
            ((torch.zeros(1, 2, 5),) * 2, ArgumentError, "input has batch size 3"),
            ((torch.zeros(1, 3, 5).double(),) * 2, ArgumentError, "must have the dtype of the input"),
        ):
            with pytest.raises(error, match=words):
                Stream(layer, state)(x)


def test_layers_that_cannot_be_streamed() -> None:
    with pytest.raises(ValueError, match="layer must have one direction, got a bidirectional one"):
        Stream(torchrnn.GRU(I, 5, bidirectional=True))
    for other in (torchrnn.GRUCell(I, 5), torch.nn.GRU(I, 5)):
        with pytest.raises(TypeError, match="layer must be a torchrnn layer, got"):
            Stream(other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Stream and return_sequences=False do not go together"):
        Stream(torchrnn.GRU(I, 5, return_sequences=False))


@graph
def test_a_layer_that_returns_no_sequences_any_more(grad: bool) -> None:
    layer = torchrnn.GRU(I, 5)
    stream = Stream(layer)
    with torch.set_grad_enabled(grad):
        stream(torch.randn(2, I))
        layer.return_sequences = False
        with pytest.raises(ValueError, match="Stream and return_sequences=False do not go together"):
            stream(torch.randn(2, I))


@graph
def test_a_layer_without_an_input_size(grad: bool) -> None:
    layer, x = torchrnn.GRU(None, 5), torch.randn(2, I)
    with torch.set_grad_enabled(grad):
        stream = Stream(layer)
        got = torch.stack([stream(x), stream(x)])
        assert torch.equal(got, layer(torch.stack([x, x]))[0])


@graph
def test_nothing_at_all(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        stream = Stream(torchrnn.LSTM(I, 5))
        assert [stream(torch.zeros(0, I)).shape for _ in range(2)] == [(0, 5)] * 2
        stream.reset()
        assert stream(torch.zeros(0, 2, I)).shape == (0, 2, 5)
        assert stream(torch.zeros(2, I)).shape == (2, 5)


def test_inference_mode() -> None:
    layer, x = torchrnn.LSTM(I, 5), torch.randn(3, 2, I)
    stream = Stream(layer)
    with torch.inference_mode():
        got = torch.stack([stream(x_t) for x_t in x])
        assert torch.equal(got, layer(x)[0])
