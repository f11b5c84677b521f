"""Our kernels in the surroundings of a real program: autograd's machinery, weights that change, threads, exceptions."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fused import needs_kernels
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import torchrnn

pytestmark = needs_kernels
every_kind = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])


@pytest.fixture(autouse=True)
def _only_our_kernels():
    with torchrnn.use("cpu"):
        yield


def make(kind: str, **options: Any) -> torch.nn.Module:
    return getattr(torchrnn, kind)(4, 5, num_layers=2, bidirectional=True, dtype=torch.float64, **options)


def an_input(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*(shape or (6, 3, 4)), dtype=dtype, requires_grad=True)


def gradients(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and every gradient of a nonlinear function of it."""
    output = layer(x)[0]
    return [output, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def agrees_with_reference(layer: torch.nn.Module, x: torch.Tensor) -> None:
    ours = gradients(layer, x)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], ours[0])
    with torchrnn.use("reference"):
        same(ours, gradients(layer, x), 1e-12 if x.dtype is torch.float64 else 1e-5)


@every_kind
def test_what_changes_the_weights_is_noticed(kind: str) -> None:
    layer, x = make(kind), an_input()
    other = {n: 0.2 * torch.randn_like(p) for n, p in layer.named_parameters()}
    agrees_with_reference(layer, x)
    for optimiser in (torch.optim.SGD(layer.parameters(), 0.3), torch.optim.Adam(layer.parameters(), foreach=True)):
        layer(x)[0].sum().backward()
        optimiser.step()
        agrees_with_reference(layer, x)
    layer.load_state_dict(other)
    agrees_with_reference(layer, x)
    layer.load_state_dict({n: p * 2 for n, p in other.items()}, assign=True)
    agrees_with_reference(layer, x)
    for parameter in layer.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)  # small: with large ones rounding grows from step to step
        agrees_with_reference(layer, x)
        parameter.data.mul_(0.5)  # leaves no trace in the version
        agrees_with_reference(layer, x)
        with torch.no_grad():
            parameter.add_(0.1)
        agrees_with_reference(layer, x)
        parameter.detach().numpy()[...] *= 0.5
        agrees_with_reference(layer, x)
    agrees_with_reference(layer.float(), x.detach().float().requires_grad_())
    agrees_with_reference(layer.double(), x)


@every_kind
def test_parametrized_weights(kind: str) -> None:
    layer, x = make(kind), an_input()
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrizations.orthogonal(layer, "weight_ih_l1_reverse")
    agrees_with_reference(layer, x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1)
    agrees_with_reference(layer, x)


@every_kind
def test_expanded_weights(kind: str) -> None:
    layer, x, found = make(kind), an_input(), []
    small = {n: torch.randn(p.shape[-1:], dtype=p.dtype, requires_grad=True) for n, p in layer.named_parameters()}
    expanded = {n: small[n].expand(p.shape) for n, p in layer.named_parameters()}  # zero strides
    for backend in ("cpu", "reference"):
        with torchrnn.use(backend):
            output, _ = functional_call(layer, expanded, (x,))
            found.append([output, *torch.autograd.grad(output.sin().sum(), [x, *small.values()])])
    same(*found)


@every_kind
@pytest.mark.parametrize("of", ["input", "weights", "states"])
def test_gradients_of_one_kind_of_input(kind: str, of: str) -> None:
    layer, x, found = make(kind).requires_grad_(of == "weights"), an_input().detach(), []
    states = [torch.randn(4, 3, 5, dtype=torch.float64) for _ in range(2 if kind == "LSTM" else 1)]
    leaves = {"input": [x], "weights": list(layer.parameters()), "states": states}[of]
    for leaf in leaves:
        leaf.requires_grad_()
    for backend in ("cpu", "reference"):
        with torchrnn.use(backend):
            output, _ = layer(x, tuple(states) if kind == "LSTM" else states[0])
            found.append(torch.autograd.grad(output.sin().sum(), leaves))
    same(*found)


@every_kind
def test_gradient_penalty(kind: str) -> None:
    layer, x, found = make(kind), an_input(), []
    for backend in ("cpu", "reference"):
        with torchrnn.use(backend):
            (slope,) = torch.autograd.grad(layer(x)[0].sin().sum(), x, create_graph=True)
            loss = layer(x)[0].square().mean() + (slope.norm(dim=-1) - 1).square().mean()
            found.append([slope, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    same(*found, tolerance=1e-10)


@every_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(kind: str, use_reentrant: bool) -> None:
    layer, x = make(kind), an_input()
    layer(x)[0].sin().sum().backward()
    expected = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    checkpoint(layer, x, use_reentrant=use_reentrant)[0].sin().sum().backward()  # type: ignore[index]
    for a, b in zip([x.grad, *(p.grad for p in layer.parameters())], expected, strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


@every_kind
def test_hooks_of_saved_tensors(kind: str) -> None:
    layer, x = make(kind), an_input()
    expected = gradients(layer, x)

    def back(kept: np.ndarray) -> torch.Tensor:
        if kept.ndim < 3:
            return torch.from_numpy(kept.copy())
        return torch.from_numpy(kept.transpose(2, 1, 0).copy().transpose(2, 1, 0))  # other strides

    hooks = torch.autograd.graph.saved_tensors_hooks
    for context in (hooks(lambda t: t.detach().numpy().copy(), back), torch.autograd.graph.save_on_cpu()):
        with context:
            found = gradients(layer, x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_kind
def test_inference_mode(kind: str) -> None:
    layer, x = make(kind), an_input()
    expected = layer(x)[0]
    with torch.inference_mode():
        inside = layer(x)[0]
        made_inside = make(kind)
        made_inside.load_state_dict(layer.state_dict())
        again = made_inside(x * 1)[0]
    assert inside.is_inference()
    assert torch.equal(inside, expected)
    assert torch.equal(again, expected)
    with torch.no_grad():
        assert torch.equal(made_inside(x)[0], expected)


@every_kind
def test_an_exception_between_forward_and_backward(kind: str) -> None:
    layer, x = make(kind), an_input()
    expected = gradients(layer, x)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ("forward", "gradient of the output", "gradient of a weight"):
        output = layer(x)[0]
        if place == "forward":
            handle: Any = layer.register_forward_hook(stop)
        else:
            handle = (output if place.endswith("output") else layer.weight_hh_l0_reverse).register_hook(stop)  # type: ignore[operator]
        with pytest.raises(KeyboardInterrupt):
            (layer(x)[0] if place == "forward" else output).sum().backward()
        handle.remove()
        layer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), expected, strict=True)), place


def test_an_exception_from_a_signal() -> None:
    layer, x = make("GRU"), an_input(50, 16, 4)
    expected = gradients(layer, x)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        for milliseconds in (1, 2, 5, 11):  # in a kernel, between two, in autograd
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                signal.setitimer(signal.ITIMER_VIRTUAL, milliseconds / 1e3)
                while True:
                    gradients(layer, x)
            assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), expected, strict=True))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_python_threads_that_train() -> None:
    torch.set_num_threads(2)  # the kernels' own threads, under several callers
    layers, x = [make(kind) for kind in ("RNN", "LSTM", "GRU")] * 4, an_input(20, 16, 4)
    expected = [gradients(layer, x) for layer in layers]

    def work(i: int) -> list[torch.Tensor]:
        with torchrnn.use("cpu"):
            return [gradients(layers[i], x) for _ in range(5)][-1]

    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(work, range(len(layers))), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_strides_beyond_32_bits() -> None:
    layer, near = torchrnn.LSTM(3, 5, bidirectional=True), torch.randn(5, 2, 3)
    try:
        far = torch.from_numpy(np.zeros(2**31 + 200, np.float32))  # pages that nobody touches cost nothing
    except MemoryError:
        pytest.skip("no room for 8 GB of addresses")
    expected = gradients(layer, near.requires_grad_())
    weight = far.as_strided((20, 3), (2**31 // 20, 1), 80).copy_(layer.weight_ih_l0.detach())  # type: ignore[operator]
    upstream = far.as_strided((5, 2, 10), (2**29, 10, 1), 40).copy_(expected[0].cos().detach())
    for strides in (2**29, 7, 1), (7, 2**31, 1):
        x = far.as_strided((5, 2, 3), strides).copy_(near.detach()).detach().requires_grad_()
        output = functional_call(layer, {"weight_ih_l0": weight}, (x,))[0]
        assert torch.equal(output, expected[0])
        assert torch.equal(torch.autograd.grad(output, x, upstream)[0], expected[1])


WRONG = {
    "rows that are not there": lambda layer, x: layer(PackedSequence(x[0, :3], torch.tensor([3, 3]))),
    "rows that begin late": lambda layer, x: layer(PackedSequence(x[0, :3], torch.tensor([1, 2]))),
    "a step without rows": lambda layer, x: layer(PackedSequence(x[0, :3], torch.tensor([3, 0]))),
    "a narrow weight": lambda layer, x: functional_call(layer, {"weight_hh_l0": layer.weight_hh_l0[:, 1:]}, (x,)),
    "a short weight": lambda layer, x: functional_call(layer, {"weight_ih_l1": layer.weight_ih_l1[1:]}, (x,)),
    "a short bias": lambda layer, x: functional_call(layer, {"bias_hh_l0": layer.bias_hh_l0[1:]}, (x,)),
    "another dtype": lambda layer, x: functional_call(layer, {"bias_hh_l0": layer.bias_hh_l0.float()}, (x,)),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_does_not_fit_is_an_error(mistake: str) -> None:
    with pytest.raises(RuntimeError, match=r"must be|must have|must begin|expected scalar type"):
        WRONG[mistake](make("LSTM"), an_input())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what was freed")
def test_memory_does_not_grow() -> None:
    layer, x = torchrnn.LSTM(64, 64, bidirectional=True), torch.randn(30, 16, 64)

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def train(times: int) -> None:
        for _ in range(times):
            layer(x)[0].sum().backward()

    train(30)
    before = pages()
    train(100)
    assert (pages() - before) * 4096 < 20e6  # one scratch buffer a call would be far more
