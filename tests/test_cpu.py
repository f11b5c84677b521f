"""Our own kernels beyond parity: sizes, memory, gradients asked for, threads, and what else is in the batch."""

from typing import Any

import pytest
import torch
from fused import needs_kernels
from torch.nn.utils.rnn import pack_sequence

import torchrnn

pytestmark = needs_kernels
KINDS = ["RNN", "LSTM", "GRU"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _only_our_kernels():
    with torchrnn.use("cpu"):
        yield


def gradients(layer: torch.nn.Module, x: torch.Tensor, hx: Any = None, **options: Any) -> dict[str, torch.Tensor]:
    """Output, states and all gradients of a random weighting of them."""
    x = x.detach().requires_grad_()
    output, states = layer(x, hx, **options)
    results = [output, *(states if isinstance(states, tuple) else [states])]
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    found = torch.autograd.grad(results, [x, *layer.parameters()], weights)
    names = ["output", *"hc"[: len(results) - 1], "x", *(n for n, _ in layer.named_parameters())]
    return dict(zip(names, [*results, *found], strict=True))


@every_kind
@pytest.mark.parametrize("varied", ["T", "B", "I", "H"])
def test_every_size_up_to_67(kind: str, varied: str) -> None:
    for n in range(1, 68):
        sizes = {"T": 3, "B": 2, "I": 3, "H": 5} | {varied: n}
        layer = getattr(torchrnn, kind)(sizes["I"], sizes["H"], dtype=torch.float64)
        x = torch.randn(sizes["T"], sizes["B"], sizes["I"], dtype=torch.float64)
        ours = gradients(layer, x)
        with torchrnn.use("aten"):
            theirs = gradients(layer, x)
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, atol=1e-12, rtol=1e-12, msg=lambda m, n=n: f"{n}: {m}")


@every_kind
@pytest.mark.parametrize("P", [0, 1])
def test_one_feature_and_few_steps(kind: str, P: int) -> None:
    # one column is a row too: such weights lie as the micro-kernel wants them, so that it need not pack them
    options: Any = {"dtype": torch.float64} | ({"proj_size": P} if P else {})
    for I in (1, 2):
        for H in (2, 4, 8, 11, 16, 17, 33, 64):
            layer = getattr(torchrnn, kind)(I, H, bidirectional=True, **options)
            for T, B in ((1, 1), (1, 4), (1, 5), (1, 13), (2, 1), (2, 3), (5, 3)):
                x = torch.randn(T, B, I, dtype=torch.float64)
                got = gradients(layer, x)
                with torchrnn.use("reference"):
                    expected = gradients(layer, x)
                for name in expected:
                    torch.testing.assert_close(got[name], expected[name], atol=1e-12, rtol=1e-12)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_do_not_depend_on_threads(kind: str, dtype: torch.dtype) -> None:
    layer = getattr(torchrnn, kind)(33, 65, bidirectional=True, dtype=dtype)
    x, before = torch.randn(40, 9, 33, dtype=dtype), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(layer, x))
            lengths = gradients(layer, x, lengths=[40, 3, 17, 40, 1, 22, 9, 9, 30])
            found[-1] |= {f"{n} with lengths": t for n, t in lengths.items()}
            few = gradients(layer, x[:4])  # steps that one packing holds
            found[-1] |= {f"{n} of few": t for n, t in few.items()}
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, expected in found[0].items():
            assert torch.equal(other[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("kind", "I", "H"), [("RNN", 1301, 1301), ("LSTM", 20, 650), ("LSTM", 645, 643), ("GRU", 10, 750)]
)
def test_bits_of_large_gradients_do_not_depend_on_threads(kind: str, I: int, H: int, dtype: torch.dtype) -> None:
    # one thread packs up to four times as many steps at once
    layer, before = getattr(torchrnn, kind)(I, H, dtype=dtype), torch.get_num_threads()
    for T, B in ((19, 30), (103, 10)):
        x, found = torch.randn(T, B, I, dtype=dtype), []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(gradients(layer, x))
        finally:
            torch.set_num_threads(before)
        for name, expected in found[0].items():
            assert torch.equal(found[1][name], expected), name


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_does_not_depend_on_the_others(kind: str, dtype: torch.dtype) -> None:
    layer = getattr(torchrnn, kind)(19, 37, bidirectional=True, dtype=dtype)
    x = torch.randn(11, 17, 19, dtype=dtype)
    together = gradients(layer, x)
    for b in (0, 5, 16):
        output, states = layer(x[:, b : b + 1])
        assert torch.equal(output[:, 0], together["output"][:, b])
        h = states[0] if isinstance(states, tuple) else states
        assert torch.equal(h[:, 0], together["h"][:, b])


@every_kind
def test_a_sequence_may_come_in_pieces(kind: str) -> None:
    layer, x = getattr(torchrnn, kind)(7, 21), torch.randn(100, 3, 7)
    with torch.no_grad():
        whole, last = layer(x)
        first, state = layer(x[:37])
        second, state = layer(x[37:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    for a, b in zip(*((s if isinstance(s, tuple) else (s,)) for s in (state, last)), strict=True):
        assert torch.equal(a, b)


@every_kind
def test_training_and_inference_agree_to_the_bit(kind: str) -> None:
    layer, x = getattr(torchrnn, kind)(7, 21, 2, bidirectional=True), torch.randn(13, 5, 7)
    with torch.no_grad():
        expected = layer(x)[0]
    assert torch.equal(layer(x)[0], expected)


@every_kind
def test_backward_twice_gives_the_same(kind: str) -> None:
    layer, x = getattr(torchrnn, kind)(3, 5), torch.randn(4, 2, 3)
    loss = layer(x)[0].square().sum()
    once = torch.autograd.grad(loss, layer.parameters(), retain_graph=True)
    twice = torch.autograd.grad(loss, layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@every_kind
@pytest.mark.parametrize("of", ["", "Cell"], ids=["layer", "cell"])
def test_results_may_be_changed_in_place(kind: str, of: str) -> None:
    module, x = getattr(torchrnn, kind + of)(3, 5), torch.randn(2, 3) if of else torch.randn(4, 2, 3)

    def run(in_place: bool) -> list[torch.Tensor]:
        result = module(x)
        h = result if isinstance(result, torch.Tensor) else result[0]
        h = h.mul_(2).add_(1) if in_place else h * 2 + 1
        return list(torch.autograd.grad(h.square().sum(), list(module.parameters())))

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


@every_kind
def test_only_what_is_asked_for(kind: str) -> None:
    layer, x = getattr(torchrnn, kind)(3, 5, bidirectional=True, dtype=torch.float64), torch.randn(4, 2, 3).double()
    everything = gradients(layer, x)
    for name, parameter in layer.named_parameters():
        layer.requires_grad_(False)
        parameter.requires_grad_(True)
        output, states = layer(x)
        results = [output, *(states if isinstance(states, tuple) else [states])]
        generator = torch.Generator().manual_seed(5)
        weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
        torch.autograd.backward(results, weights)
        assert torch.equal(parameter.grad, everything[name])  # pyright: ignore
        parameter.grad = None


@every_kind
@pytest.mark.parametrize("loss_of", ["output", "states", "last step", "one row"])
def test_gradients_of_a_part_of_the_results(kind: str, loss_of: str) -> None:
    layer, x = getattr(torchrnn, kind)(3, 5, bidirectional=True, dtype=torch.float64), torch.randn(6, 4, 3).double()

    def run() -> tuple[torch.Tensor, ...]:
        output, states = layer(x)
        parts = {"output": output, "last step": output[-1], "one row": output[:, 2]}
        states = states if isinstance(states, tuple) else (states,)
        loss = sum(s.sum() for s in states) if loss_of == "states" else parts[loss_of].sum()  # expanded gradients
        return torch.autograd.grad(loss, list(layer.parameters()))  # type: ignore[arg-type]

    ours = run()
    with torchrnn.use("reference"):
        theirs = run()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@every_kind
def test_strange_strides(kind: str) -> None:
    layer = getattr(torchrnn, kind)(4, 5, dtype=torch.float64)
    plain = torch.randn(6, 4, 4, dtype=torch.float64)
    expected = gradients(layer, plain)
    wide = torch.randn(6, 8, 8, dtype=torch.float64)
    wide[:, ::2, ::2] = plain
    twin = getattr(torchrnn, kind)(4, 5, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        setattr(twin, name, torch.nn.Parameter(parameter.detach().t().contiguous().t()))
    for x in (wide[:, ::2, ::2], plain.permute(2, 0, 1).contiguous().permute(1, 2, 0), plain.transpose(0, 1)):
        source = x if x.shape[0] == 6 else x.contiguous().transpose(0, 1)
        for module in (layer, twin):
            for name, got in gradients(module, source).items():
                assert torch.equal(got, expected[name]), name
    assert torch.equal(layer(torch.zeros(4).double().expand(6, 4, 4))[0], layer(torch.zeros(6, 4, 4).double())[0])


@every_kind
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_and_inf_travel_as_in_torch(kind: str, bad: float) -> None:
    layer, x = getattr(torchrnn, kind)(3, 5), torch.randn(6, 3, 3)
    x[2, 1, 0] = bad
    ours = gradients(layer, x)
    with torchrnn.use("aten"):
        theirs = gradients(layer, x)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


@every_kind
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("hidden_size", [3, 7, 20, 33])
def test_zeros_times_a_weight_that_is_not_finite(kind: str, bad: float, hidden_size: int) -> None:
    # the first step's product is left out where all initial states are zero
    layer, x = getattr(torchrnn, kind)(5, hidden_size), torch.randn(4, 3, 5)
    zeros = torch.zeros(1, 3, hidden_size)
    some = zeros.clone()
    some[0, 1, 0] = 0.5
    with torch.no_grad():
        layer.weight_hh_l0[-1, -1] = bad
        for h in (zeros, -zeros, some):
            state = (h, zeros) if kind == "LSTM" else h
            found = layer(x, state)[0]
            with torchrnn.use("aten"):
                torch.testing.assert_close(found, layer(x, state)[0], equal_nan=True)
            assert found[0].isnan().any()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_numbers_are_stored_but_not_accumulated(kind: str, dtype: torch.dtype) -> None:
    layer, x = getattr(torchrnn, kind)(9, 17, 2, dtype=dtype), torch.randn(30, 3, 9).to(dtype)
    lengths = [30, 12, 7]  # packed, since torch keeps its LSTM for dense bfloat16
    exact = getattr(torchrnn, kind)(9, 17, 2, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    found, expected = gradients(layer, x, lengths=lengths), gradients(exact, x.double(), lengths=lengths)
    for name, wanted in expected.items():
        assert found[name].dtype == dtype
        tolerance = 4 * torch.finfo(dtype).eps  # a few roundings: of the results, and of what passes between layers
        scale = wanted.abs().max().item()
        torch.testing.assert_close(
            found[name].double(), wanted, atol=tolerance * scale, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_changing_a_saved_weight_is_noticed() -> None:
    layer = torchrnn.LSTM(3, 5)
    output = layer(torch.randn(4, 2, 3))[0]
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_saved_tensors_are_few() -> None:
    # floats kept for each step and unit beside the input and the output: GRU r z n h_n, LSTM i f g o c
    for kind, kept in (("RNN", 0), ("GRU", 4), ("LSTM", 5)):
        sizes: list[int] = []
        layer, T, B, H = getattr(torchrnn, kind)(3, 8), 7, 5, 8
        parameters = {p.data_ptr() for p in layer.parameters()}

        def save(t: torch.Tensor, sizes: list[int] = sizes, parameters: set[int] = parameters) -> torch.Tensor:
            if t.data_ptr() not in parameters:
                sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
            layer(torch.randn(T, B, 3))
        states = B * H * (2 if kind == "LSTM" else 1)
        assert sum(sizes) == T * B * 3 + T * B * H * (1 + kept) + states


def test_threads_of_python() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer, x = torchrnn.GRU(16, 32, 2), torch.randn(20, 8, 16)
    expected = gradients(layer, x)

    def work(_: int) -> dict[str, torch.Tensor]:
        with torchrnn.use("cpu"):
            return gradients(layer, x)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(16)):
            assert all(torch.equal(found[n], t) for n, t in expected.items())


def test_packed_input_of_uneven_rows() -> None:
    layer = torchrnn.LSTM(3, 5, bidirectional=True)
    rows = [torch.randn(n, 3) for n in (2, 9, 3, 9, 4)]
    packed, (h, _) = layer(pack_sequence(rows, enforce_sorted=False))
    for b, row in enumerate(rows):
        alone, (last, _) = layer(row)
        assert torch.equal(torch.nn.utils.rnn.unpack_sequence(packed)[b], alone)
        assert torch.equal(h[:, b], last)
