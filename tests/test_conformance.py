"""What holds for every layer and cell, ours and a user's: independent equations, gradients, transforms, copies."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from agreement import NO_KERNEL, NOT_IN_TORCH
from coupled import CoupledLSTM, CoupledLSTMCell
from fused import CPU
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import torchrnn
from torchrnn.cell import CELLS

LAYERS = {
    "rnn_tanh": torchrnn.RNN,
    "rnn_relu": lambda *a, **k: torchrnn.RNN(*a, nonlinearity="relu", **k),
    "lstm": torchrnn.LSTM,
    "gru": torchrnn.GRU,
    "gru_reset_before": lambda *a, **k: torchrnn.GRU(*a, reset_after=False, **k),
    "gru_projected": lambda *a, **k: torchrnn.GRU(*a, proj_size=1, **k),
    "coupled_lstm": CoupledLSTM,
}
STEPS = {
    "rnn_tanh": torchrnn.RNNCell,
    "rnn_relu": lambda *a, **k: torchrnn.RNNCell(*a, nonlinearity="relu", **k),
    "lstm": torchrnn.LSTMCell,
    "gru": torchrnn.GRUCell,
    "gru_reset_before": lambda *a, **k: torchrnn.GRUCell(*a, reset_after=False, **k),
    "coupled_lstm": CoupledLSTMCell,
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
every_cell = pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
everything = pytest.mark.parametrize(
    ("make", "x"),
    [(m, (4, 2, 3)) for m in LAYERS.values()] + [(m, (2, 3)) for m in STEPS.values()],
    ids=[f"{n} layer" for n in LAYERS] + [f"{n} cell" for n in STEPS],
)
F64: Any = {"dtype": torch.float64}


def test_every_cell_of_the_registry_is_tested() -> None:
    defined_elsewhere = {n for n, c in CELLS.items() if c.step.__module__.startswith("test_")}
    assert set(CELLS) - defined_elsewhere == set(LAYERS)
    assert set(LAYERS) - set(STEPS) == {"gru_projected"}  # a single step has no projection, in torch neither


def sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def numpy_step(name: str, x: Any, h: Any, state: list[Any], W: Any, b: Any) -> list[Any]:
    """The equations of the docstrings once more, in NumPy, from the pre-activations (B, G·H); W and b made h."""
    if name.startswith("rnn"):
        return [np.tanh(x + h) if name == "rnn_tanh" else np.maximum(x + h, 0)]
    if name == "gru":
        (xr, xz, xn), (hr, hz, hn) = np.split(x, 3, 1), np.split(h, 3, 1)
        z = sigmoid(xz + hz)
        return [(1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * state[0]]
    if name == "gru_projected":
        (xr, xz, xn), (hr, hz, hn) = np.split(x, 3, 1), np.split(h, 3, 1)
        z = sigmoid(xz + hz)
        s = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * state[1]
        return [s, s]
    if name == "gru_reset_before":
        (xr, xz, xn), (hr, hz, _) = np.split(x, 3, 1), np.split(h, 3, 1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        n = np.tanh(xn + (r * state[0]) @ np.split(W, 3)[2].T + np.split(b, 3)[2])
        return [(1 - z) * n + z * state[0]]
    a = np.split(x + h, 4 if name == "lstm" else 3, 1)
    i, g, o = sigmoid(a[0]), np.tanh(a[-2]), sigmoid(a[-1])
    f = sigmoid(a[1]) if name == "lstm" else 1 - i
    c = f * state[1] + i * g
    return [o * np.tanh(c), c]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", [CPU, "aten", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_equations_in_numpy(name: str, backend: str, bidirectional: bool) -> None:
    if backend != "reference" and name in NO_KERNEL:
        pytest.skip("there is no kernel yet for a user's own cell, and none for a product within the step")
    if backend == "aten" and name in NOT_IN_TORCH:
        pytest.skip("torch has no GRU with projection")
    T, B, I, H, L, D = 5, 3, 4, 7, 2, 1 + bidirectional
    layer = LAYERS[name](I, H, num_layers=L, bidirectional=bidirectional, **F64)
    x = torch.randn(T, B, I, **F64)
    number = len(layer.cell.states)
    initial = [torch.randn(L * D, B, n, **F64) for n in [layer.proj_size or H, H][:number]]
    with torchrnn.use(backend):
        output, final = layer(x, tuple(initial) if number > 1 else initial[0])

    weights = {n: p.detach().numpy() for n, p in layer.named_parameters()}
    y, finals = x.numpy(), []
    for k in range(L):
        joined = []
        for d in range(D):
            end = f"l{k}" + "_reverse" * d
            state = [s[k * D + d].numpy() for s in initial]
            out: list[Any] = [None] * T
            for t in range(T)[:: -1 if d else 1]:
                a = y[t] @ weights[f"weight_ih_{end}"].T + weights[f"bias_ih_{end}"]
                W, b = weights[f"weight_hh_{end}"], weights[f"bias_hh_{end}"]
                state = numpy_step(name, a, state[0] @ W.T + b, state, W, b)
                if layer.proj_size:
                    state[0] = state[0] @ weights[f"weight_hr_{end}"].T
                out[t] = state[0]
            joined.append(np.stack(out))
            finals.append(state)
        y = np.concatenate(joined, -1)
    np.testing.assert_allclose(output.detach().numpy(), y, atol=1e-14)
    for s in range(number):
        got = (final if number > 1 else [final])[s].detach().numpy()
        np.testing.assert_allclose(got, np.stack([f[s] for f in finals]), atol=1e-14)


@pytest.mark.parametrize("name", STEPS)
def test_a_layer_is_a_loop_over_its_cell(name: str) -> None:
    layer, step = LAYERS[name](3, 5, **F64), STEPS[name](3, 5, **F64)
    step.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.state_dict().items()})
    x, state, outputs = torch.randn(6, 2, 3, **F64), None, []
    for x_t in x:
        state = step(x_t, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    output, final = layer(x)
    torch.testing.assert_close(output, torch.stack(outputs), atol=1e-14, rtol=0)
    for got, expected in zip(*((s if isinstance(s, tuple) else (s,)) for s in (final, state)), strict=True):
        torch.testing.assert_close(got[0], expected, atol=1e-14, rtol=0)


def flat(result: Any) -> tuple[torch.Tensor, ...]:
    """All tensors of nested tuples."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(t for part in result for t in flat(part))


def as_function(module: torch.nn.Module) -> Any:
    names = [n for n, _ in module.named_parameters()]
    return lambda x, *weights: flat(functional_call(module, dict(zip(names, weights, strict=True)), (x,)))


@everything
@pytest.mark.parametrize("backend", [None, "reference"], ids=["chosen", "reference"])
def test_gradcheck_and_gradgradcheck(make: Any, x: tuple[int, ...], backend: str | None) -> None:
    module = make(3, 4, **F64)
    arguments = (torch.randn(x, requires_grad=True, **F64), *module.parameters())
    with torchrnn.use(backend or "reference") if backend else torch.enable_grad():
        assert gradcheck(as_function(module), arguments)
        assert gradgradcheck(as_function(module), arguments, atol=1e-4)


@every_layer
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "stacked"])
def test_gradcheck_of_packed_rows(make: Any, options: dict[str, Any]) -> None:
    layer = make(2, 3, **options, **F64)

    def run(x: torch.Tensor, *weights: torch.Tensor) -> Any:
        names = [n for n, _ in layer.named_parameters()]
        return flat(functional_call(layer, dict(zip(names, weights, strict=True)), (x,), {"lengths": [2, 4, 0, 1]}))

    with torchrnn.use("reference"):
        assert gradcheck(run, (torch.randn(4, 4, 2, requires_grad=True, **F64), *layer.parameters()))


@everything
def test_vmap_is_a_loop(make: Any, x: tuple[int, ...]) -> None:
    module, batch = make(3, 5), torch.randn(6, *x)
    for got, *expected in zip(flat(vmap(module)(batch)), *(flat(module(b)) for b in batch), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


@everything
def test_per_sample_gradients(make: Any, x: tuple[int, ...]) -> None:
    module, batch = make(3, 5, **F64), torch.randn(4, *x[:-2], 1, 3, **F64)
    weights = {n: p.detach() for n, p in module.named_parameters()}

    def loss(weights: Any, sample: torch.Tensor) -> torch.Tensor:
        return flat(functional_call(module, weights, (sample,)))[0].square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, batch)
    for k, sample in enumerate(batch):
        module.zero_grad()
        flat(module(sample))[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(together[name][k], parameter.grad, msg=lambda m, name=name: f"{name}: {m}")


@everything
def test_ensemble_of_stacked_weights(make: Any, x: tuple[int, ...]) -> None:
    models, sample = [make(3, 5) for _ in range(3)], torch.randn(x)
    weights, buffers = stack_module_state(models)
    together = vmap(lambda w, b: functional_call(models[0], (w, b), (sample,)))(weights, buffers)
    for got, *expected in zip(flat(together), *(flat(m(sample)) for m in models), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


@everything
def test_forward_mode_and_jacobians(make: Any, x: tuple[int, ...]) -> None:
    module, point, direction = make(3, 2, **F64), torch.randn(x, **F64), torch.randn(x, **F64)

    def run(sample: torch.Tensor) -> torch.Tensor:
        return flat(module(sample))[0]

    forward, backward = jacfwd(run)(point), jacrev(run)(point)
    torch.testing.assert_close(forward, backward)
    n = direction.dim()
    expected = torch.tensordot(backward, direction, dims=n)
    torch.testing.assert_close(jvp(run, (point,), (direction,))[1], expected)

    def scalar(sample: torch.Tensor) -> torch.Tensor:
        return run(sample).pow(2).sum()

    hvp = jvp(grad(scalar), (point,), (direction,))[1]
    torch.testing.assert_close(hvp, torch.tensordot(hessian(scalar)(point), direction, dims=n))


@everything
def test_forward_mode_in_float32(make: Any, x: tuple[int, ...]) -> None:
    module, point = make(3, 2), torch.randn(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(point, torch.ones_like(point))
        tangent = torch.autograd.forward_ad.unpack_dual(flat(module(dual))[0]).tangent
    step = 1e-2
    slope = (flat(module(point + step))[0] - flat(module(point - step))[0]) / (2 * step)
    torch.testing.assert_close(tangent, slope, atol=2e-3, rtol=2e-2)


@everything
def test_copies_agree(make: Any, x: tuple[int, ...]) -> None:
    module, sample = make(3, 5), torch.randn(x)
    expected = flat(module(sample))
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        for got, want in zip(flat(other(sample)), expected, strict=True):
            assert torch.equal(got, want)
    restored = make(3, 5)
    restored.load_state_dict(module.state_dict())
    assert torch.equal(flat(restored(sample))[0], expected[0])


@everything
def test_meta_device(make: Any, x: tuple[int, ...]) -> None:
    on_meta = make(3, 5, device="meta")
    for got, want in zip(flat(on_meta(torch.randn(x, device="meta"))), flat(make(3, 5)(torch.randn(x))), strict=True):
        assert got.is_meta
        assert got.shape == want.shape


@everything
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")  # torch says so of every module
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("backend", [None, "reference"], ids=["chosen", "reference"])
def test_other_dtypes(make: Any, x: tuple[int, ...], dtype: torch.dtype, backend: str | None) -> None:
    if dtype.is_complex and make in (LAYERS["rnn_relu"], STEPS["rnn_relu"]):
        pytest.skip("relu is not defined for complex numbers, in torch neither")
    module = make(3, 5, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    sample = torch.randn(x, dtype=next(module.parameters()).dtype)
    expected = flat(module(sample))
    with torchrnn.use(backend) if backend else torch.enable_grad():
        got = flat(module.to(dtype)(sample.to(dtype)))
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g, e.to(dtype), atol=2e-2, rtol=2e-2)


@every_layer
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3)], ids=["T=0", "B=0"])
def test_empty_input(make: Any, shape: tuple[int, ...]) -> None:
    layer = make(3, 5, num_layers=2, bidirectional=True)
    x = torch.zeros(shape, requires_grad=True)
    sizes = [layer.proj_size or 5, 5][: len(layer.cell.states)]
    states = tuple(torch.randn(4, shape[1], n) for n in sizes)
    output, final = layer(x, states[0] if len(states) == 1 else states)
    assert output.shape == (*shape[:2], 2 * sizes[0])
    for got, given in zip(flat(final), states, strict=True):
        assert got.shape == given.shape
        if shape[0] == 0:
            assert torch.equal(got, given)
    output.sum().backward()
    assert x.grad is not None


@every_layer
def test_compile_without_graph_break(make: Any) -> None:
    layer, x = make(3, 5, num_layers=2, bidirectional=True), torch.randn(4, 2, 3)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(flat(compiled(x)), flat(layer(x)))
    flat(compiled(x))[0].sum().backward()
    assert layer.weight_hh_l0.grad is not None


def test_compile_in_a_fresh_process() -> None:
    code = (
        "import torch, torchrnn; layer = torchrnn.GRU(3, 5);"
        "torch.compile(layer, fullgraph=True, backend='aot_eager')(torch.randn(4, 2, 3))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@every_cell
def test_cell_without_a_batch(make: Any) -> None:
    step, x = make(3, 5), torch.randn(3)
    one, row = flat(step(x)), flat(step(x.unsqueeze(0)))
    for a, b in zip(one, row, strict=True):
        assert a.shape == (5,)
        assert torch.equal(a, b[0])
