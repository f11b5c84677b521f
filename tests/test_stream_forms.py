"""Streams of layers whose states, input size or outputs have another form; chunks of one step."""

from typing import Any

import pytest
import torch

import torchrnn

LAYERS = [torchrnn.RNN, torchrnn.GRU, torchrnn.LSTM]


def parts(state: Any) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("make", LAYERS)
def test_the_state_of_packed_steps_has_the_batch_first_if_the_layer_wants_it(make: Any) -> None:
    layer, x = make(3, 5, 2, batch_first_state=True), torch.randn(6, 2, 3)  # B = L: a transposed state would be taken
    stream = torchrnn.Stream(layer)
    with torch.no_grad():
        output, state = layer(x)
        steps = [stream(x_t) for x_t in x[:3]]
        for one, expected in zip(parts(stream.state), parts(layer(x[:3])[1]), strict=True):
            assert torch.equal(one, expected)
        chunk = stream(x[3:])
    assert torch.equal(torch.cat((torch.stack(steps), chunk)), output)
    for one, expected in zip(parts(stream.state), parts(state), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("make", LAYERS)
def test_chunks_of_one_step_are_bit_for_bit_those_of_one_call(make: Any, batch_first: bool, gradients: bool) -> None:
    layer = make(33, 65, 2, batch_first=batch_first)
    x = torch.randn(2, 9, 33) if batch_first else torch.randn(9, 2, 33)
    time = 1 if batch_first else 0
    stream = torchrnn.Stream(layer)
    with torch.set_grad_enabled(gradients):
        whole = torch.cat([stream(piece) for piece in x.split(1, time)], time)
        assert torch.equal(whole, layer(x)[0])


@pytest.mark.parametrize("gradients", [False, True])
def test_a_layer_gets_its_input_size_from_the_first_step(gradients: bool) -> None:
    stream = torchrnn.Stream(torchrnn.GRU(None, 5))
    with torch.set_grad_enabled(gradients):
        assert stream(torch.randn(2, 3)).shape == (2, 5)
    assert stream.layer.input_size == 3


def test_a_layer_that_gives_the_last_output_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="a Stream and return_sequences=False do not go together"):
        torchrnn.Stream(torchrnn.GRU(3, 5, return_sequences=False))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("make", LAYERS)
def test_an_output_is_the_callers_own(make: Any, num_layers: int, grad: bool) -> None:
    layer, x = make(3, 5, num_layers), torch.randn(6, 2, 3)
    expected = layer(x)[0]
    stream = torchrnn.Stream(layer)
    with torch.set_grad_enabled(grad):
        for t in range(4):
            output = stream(x[t])
            assert torch.equal(output, expected[t])
            output.detach().fill_(9)
        chunk = stream(x[4:])
        assert torch.equal(chunk, expected[4:])
        chunk.detach().fill_(9)
        assert torch.equal(stream(x[5]), layer(torch.cat((x, x[5:])))[0][6])


def test_rows_to_reset_are_looked_at_before_the_first_step() -> None:
    stream, rows = torchrnn.Stream(torchrnn.GRU(3, 5)), torch.tensor([True, False])
    stream.reset(rows)
    wrong: Any
    for wrong in (5, rows.float(), rows[:, None]):
        with pytest.raises(
            torchrnn.ArgumentError, match=r"rows must be \(B,\) bool, True where a row begins anew, got"
        ):
            stream.reset(wrong)
