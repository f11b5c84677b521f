"""torch.func on our own kernels: what the reference gives under the same transform, and by how many sweeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import LAYERS
from fused import needs_kernels
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

import torchrnn
from torchrnn.backends.operators import operators

pytestmark = needs_kernels
F64: Any = {"dtype": torch.float64}
V, T, B, I, H = 3, 4, 2, 3, 4
KINDS = {name: make for name, make in LAYERS.items() if name != "coupled_lstm"}
STACKED = {"num_layers": 2, "bidirectional": True}
CASES = [(name, options) for name in KINDS for options in ({}, STACKED)]
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{n} {'stacked' if o else ''}" for n, o in CASES]
)
SAID: dict[str, dict[str, Any]] = {
    "all steps": {},
    "lengths": {"lengths": torch.tensor([4, 2])},
    "mask": {"mask": torch.tensor([[1, 0], [0, 1], [1, 1], [1, 1]]).bool()},
    "reset": {"reset": torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1]]).bool()},
}


def weights_of(layer: Any) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in layer.named_parameters()}


def loss_of(layer: Any, said: Any) -> Callable[..., Tensor]:
    """Of weights and input: reads the output and all final states."""

    def loss(weights: Any, x: Tensor) -> Tensor:
        results = tree_leaves(functional_call(layer, weights, (x,), said))
        return torch.stack([t.pow(2).mul(k + 1).sum() for k, t in enumerate(results)]).sum()

    return loss


def squares(gradients: Any) -> Tensor:
    return torch.stack([g.pow(2).sum() for g in tree_leaves(gradients)]).sum()


def agrees(run: Callable[[], Any]) -> None:
    """The same on the backend that is chosen and on the reference."""
    got = tree_leaves(run())
    with torchrnn.use("reference"):
        expected = tree_leaves(run())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


TRANSFORMS: dict[str, Callable[[Any, Any, Tensor, Any], Any]] = {
    "vmap": lambda layer, w, xs, said: vmap(lambda x: layer(x, **said))(xs),
    "vmap inside": lambda layer, w, xs, said: vmap(lambda x: layer(x, **said), 2, 1)(xs.movedim(0, 2)),
    "grad": lambda layer, w, xs, said: grad(loss_of(layer, said), (0, 1))(w, xs[0]),
    "vmap grad": lambda layer, w, xs, said: vmap(grad(loss_of(layer, said), (0, 1)), (None, 0))(w, xs),
    "vmap grad of weights": lambda layer, w, xs, said: vmap(grad(loss_of(layer, said)), (None, 0))(w, xs),
    "vmap grad of input": lambda layer, w, xs, said: vmap(grad(loss_of(layer, said), 1), (None, 0))(w, xs),
    "grad vmap": lambda layer, w, xs, said: grad(
        lambda w, xs: vmap(loss_of(layer, said), (None, 0))(w, xs).sum(), (0, 1)
    )(w, xs),
    "ensemble": lambda layer, w, xs, said: vmap(grad(loss_of(layer, said), (0, 1)))(copies(w), xs),
    "ensemble of one input": lambda layer, w, xs, said: vmap(grad(loss_of(layer, said), (0, 1)), (0, None))(
        copies(w), xs[0]
    ),
    "jacrev": lambda layer, w, xs, said: jacrev(
        lambda w, x: functional_call(layer, w, (x,), said)[0][1:3, :, :2], (0, 1)
    )(w, xs[0]),
    "jacfwd": lambda layer, w, xs, said: jacfwd(lambda x: layer(x, **said)[0][:2, :, :2])(xs[0]),
    "forward over reverse": lambda layer, w, xs, said: jvp(
        lambda x: grad(loss_of(layer, said), 1)(w, x), (xs[0],), (xs[1],)
    ),
    "forward after reverse": lambda layer, w, xs, said: forward_after_reverse(lambda x: layer(x, **said)[0], xs[0]),
    "reverse over reverse": lambda layer, w, xs, said: grad(
        lambda w, x: squares(grad(loss_of(layer, said), (0, 1))(w, x)), (0, 1)
    )(w, xs[0]),
}
NESTED: dict[str, Callable[[Any, Any, Tensor, Any], Any]] = {
    "grad vmap grad": lambda layer, w, xs, said: grad(
        lambda w, xs: squares(vmap(grad(loss_of(layer, said), (0, 1)), (None, 0))(w, xs)), (0, 1)
    )(w, xs),
    "vmap vmap grad": lambda layer, w, xs, said: vmap(vmap(grad(loss_of(layer, said), (0, 1)), (None, 0)), (None, 1))(
        w, torch.stack([xs, -2 * xs], 1)
    ),
    "vmap grad vmap": lambda layer, w, xs, said: vmap(
        grad(lambda w, xs: vmap(loss_of(layer, said), (None, 0))(w, xs).sum(), (0, 1)), (None, 1)
    )(w, torch.stack([xs, -2 * xs], 1)),
    "grad vmap grad vmap": lambda layer, w, xs, said: grad(
        lambda w, xs: squares(
            vmap(grad(lambda w, xs: vmap(loss_of(layer, said), (None, 0))(w, xs).sum()), (None, 1))(w, xs)
        ),
        (0, 1),
    )(w, torch.stack([xs, -2 * xs], 1)),
    "vmap jacrev": lambda layer, w, xs, said: vmap(
        jacrev(lambda w, x: functional_call(layer, w, (x,), said)[0][1, :, :2]), (None, 0)
    )(w, xs),
    "vmap hessian": lambda layer, w, xs, said: vmap(hessian(loss_of(layer, said), 1), (None, 0))(w, xs[:, :, :, :2]),
}


def copies(weights: Any) -> Any:
    return {name: torch.stack([w, -w, 2 * w]) for name, w in weights.items()}


def forward_after_reverse(run: Any, x: Tensor) -> Any:
    """The tangent of a gradient, of a call that was made before there were any."""
    pulled: Any = vjp(run, x)
    y, back = pulled
    return jvp(lambda dy: back(dy)[0], (y.detach(),), (torch.ones_like(y),))


@pytest.mark.parametrize("said", SAID)
@every_case
def test_a_transform_gives_what_the_reference_gives(name: str, options: Any, said: str) -> None:
    layer = KINDS[name](I, H, **options, **F64)
    xs, weights = torch.randn(V, T, B, I, **F64), weights_of(layer)
    for transform in TRANSFORMS.values():
        agrees(lambda transform=transform: transform(layer, weights, xs, SAID[said]))


@pytest.mark.parametrize("transform", NESTED)
@pytest.mark.parametrize("said", ["all steps", "lengths"])
@pytest.mark.parametrize("name", ["lstm", "lstm_projected", "gru"])
def test_transforms_of_transforms(name: str, transform: str, said: str) -> None:
    layer = KINDS[name](2 if "hessian" in transform else I, H, **F64)
    xs, weights = torch.randn(V, T, B, I, **F64), weights_of(layer)
    agrees(lambda: NESTED[transform](layer, weights, xs, SAID[said]))


@pytest.mark.parametrize("make", [torchrnn.RNNCell, torchrnn.LSTMCell, torchrnn.GRUCell])
@pytest.mark.parametrize("bias", [True, False, "single"])
def test_cells(make: Any, bias: Any) -> None:
    cell = make(I, H, bias=bias, **F64)
    xs, weights = torch.randn(V, B, I, **F64), weights_of(cell)
    for transform in ("vmap", "vmap grad", "grad vmap", "ensemble", "forward over reverse", "reverse over reverse"):
        agrees(lambda transform=transform: TRANSFORMS[transform](cell, weights, xs, {}))


@pytest.mark.parametrize(
    "options", [{"activation": "relu", "cell_clip": 0.1}, {"bias": False}, {"bias": "single"}], ids=str
)
def test_options(options: Any) -> None:
    layer = torchrnn.LSTM(I, H, **options, **F64)
    xs, weights = torch.randn(V, T, B, I, **F64), weights_of(layer)
    for transform in ("vmap", "vmap grad", "ensemble", "reverse over reverse"):
        agrees(lambda transform=transform: TRANSFORMS[transform](layer, weights, xs, {}))


@pytest.mark.parametrize("said", ["lengths", "mask", "reset"])
@pytest.mark.parametrize("make", [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU])
def test_what_is_said_of_steps_outlives_the_transform_that_read_it(make: Any, said: str) -> None:
    layer, x = make(2, 3, **F64), torch.randn(3, 2, 2, **F64)
    flags = torch.tensor([[True, False], [True, True], [False, True]])
    given: Any = {said: [3, 1] if said == "lengths" else flags}

    def loss(x: Tensor) -> Tensor:
        return layer(x, **given)[0].pow(3).sum()

    agrees(lambda: jacrev(jacrev(loss))(x))
    agrees(lambda: vmap(jacrev(grad(loss)))(torch.stack([x, 2 * x])))
    agrees(lambda: grad(lambda x: grad(lambda x: grad(loss)(x).sum())(x).sum())(x))


@pytest.mark.parametrize("said", ["lengths", "mask", "reset"])
def test_what_is_said_of_steps_cannot_be_mapped(said: str) -> None:
    layer, xs = torchrnn.GRU(2, 3), torch.randn(V, T, B, 2)
    given = torch.ones(V, B, dtype=torch.int64) if said == "lengths" else torch.rand(V, T, B) < 0.5
    with pytest.raises(RuntimeError, match=f"{said} must be the same for all that torch.vmap maps"):
        vmap(lambda x, given: layer(x, **{said: given})[0])(xs, given)


def test_packed_sequences_given_states_and_all_of_them() -> None:
    layer = torchrnn.LSTM(I, H, **STACKED, **F64)
    xs, weights = torch.randn(V, T, B, I, **F64), weights_of(layer)
    h = (torch.randn(4, B, H, **F64), torch.randn(4, B, H, **F64))

    def packed(weights: Any, x: Tensor, h: Any) -> Tensor:
        sizes = torch.tensor([2, 2, 2, 1])  # torch's own packing has no rule for vmap
        data = torch.cat([x[t, :size] for t, size in enumerate(sizes)])
        y, states = functional_call(layer, weights, (PackedSequence(data, sizes), h))
        return squares([y.data, *states])

    def everything(weights: Any, x: Tensor, h: Any) -> Tensor:
        y, states, trace = functional_call(layer, weights, (x, h), {"return_all": True})
        return squares([y, *states, *trace.states["c"], *trace.gates["i"]])

    for loss in (packed, everything):
        agrees(lambda loss=loss: vmap(grad(loss, (0, 1, 2)), (None, 0, None))(weights, xs, h))
        more = tuple(torch.stack([s, 2 * s, -s], 1) for s in h)
        agrees(lambda loss=loss, more=more: vmap(grad(loss, (0, 1, 2)), (None, None, 1))(weights, xs[0], more))


def test_gradients_of_samples_are_those_of_a_loop_and_take_one_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torchrnn.LSTM(I, H, **STACKED, **F64)
    xs, weights = torch.randn(5, T, I, **F64), weights_of(layer)
    calls: list[str] = []
    for name in ("stack", "stack_backward"):
        real = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    together = vmap(grad(loss_of(layer, {})), (None, 0))(weights, xs)
    assert calls == ["stack", "stack_backward"]
    for k, x in enumerate(xs):
        layer.zero_grad()
        loss_of(layer, {})(dict(layer.named_parameters()), x).backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(together[name][k], parameter.grad, atol=1e-12, rtol=1e-12)


# few steps, more than are packed at once, rows shorter than a vector, last rows and columns of a tile, results beyond
# the caches whose rows begin anywhere, and at a multiple of 64 bytes
SHAPES = [(4, 40, 21), (5, 40, 21), (300, 16, 9), (20, 5, 33), (20, 65, 3), (12, 200, 70), (9, 300, 300), (6, 320, 320)]


@pytest.mark.parametrize(("T", "I", "H"), SHAPES)
@pytest.mark.parametrize("kind", [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU])
def test_gradients_of_samples_of_any_size_are_those_of_a_loop(kind: Any, T: int, I: int, H: int) -> None:
    for options in ({"bidirectional": True}, {"bias": False}):
        layer = kind(I, H, **options, **F64)
        xs, weights = torch.randn(3, T, I, **F64), weights_of(layer)
        together = vmap(grad(loss_of(layer, {})), (None, 0))(weights, xs)
        for k, x in enumerate(xs):
            layer.zero_grad()
            loss_of(layer, {})(dict(layer.named_parameters()), x).backward()
            for name, parameter in layer.named_parameters():
                scale = parameter.grad.abs().max().item()
                torch.testing.assert_close(together[name][k], parameter.grad, atol=1e-12 * max(scale, 1), rtol=1e-12)


def test_gradients_of_samples_in_bfloat16_are_those_of_a_loop() -> None:
    for T in (3, 11, 600):
        layer = torchrnn.GRU(33, 20, dtype=torch.bfloat16)
        xs, weights = torch.randn(4, T, 33).bfloat16(), weights_of(layer)
        together = vmap(grad(loss_of(layer, {})), (None, 0))(weights, xs)
        for k, x in enumerate(xs):
            layer.zero_grad()
            loss_of(layer, {})(dict(layer.named_parameters()), x.unsqueeze(1)).backward()
            for name, parameter in layer.named_parameters():
                grads: Any = together[name][k], parameter.grad
                scale = grads[1].abs().max().item()
                torch.testing.assert_close(*grads, atol=0.02 * scale, rtol=0.02)


def test_a_mapped_layer_trains_by_autograd() -> None:
    layer = torchrnn.GRU(I, H, **F64)
    xs = torch.randn(V, T, B, I, requires_grad=True, **F64)

    def gradients(run: Any) -> Any:
        first = torch.autograd.grad(squares(run()), [xs, *layer.parameters()], create_graph=True)
        return (*first, *torch.autograd.grad(squares(first), [xs, *layer.parameters()]))

    expected = gradients(lambda: layer(xs.transpose(0, 1).flatten(1, 2))[0])
    for got, wanted in zip(gradients(lambda: vmap(layer)(xs)[0]), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


def test_an_ensemble_is_its_members() -> None:
    models = [torchrnn.LSTM(I, H, **STACKED, **F64) for _ in range(3)]
    x, (weights, buffers) = torch.randn(T, B, I, **F64), stack_module_state(models)
    y = vmap(lambda w, b: functional_call(models[0], (w, b), (x,))[0])(weights, buffers)
    torch.testing.assert_close(y, torch.stack([m(x)[0] for m in models]), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("make", [torchrnn.LSTM, torchrnn.LSTMCell])
def test_the_tangent_of_a_gradient_is_not_lost(make: Any) -> None:
    module, x = make(I, H, **F64), torch.randn(B, I, requires_grad=True, **F64)
    y = module(x)[0]
    dy, tangent = torch.randn_like(y), torch.randn_like(y)
    expected = torch.autograd.grad(y, x, tangent, retain_graph=True)[0]  # a gradient is linear in what it begins with
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(dy, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dx).tangent, expected, atol=1e-12, rtol=1e-12)


def test_dropout_between_layers_obeys_randomness() -> None:
    layer, xs = torchrnn.GRU(I, 64, 2, dropout=0.5), torch.randn(1, T, B, I).expand(2, -1, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(layer)(xs)
    same, different = (vmap(layer, randomness=r)(xs)[0] for r in ("same", "different"))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


def test_what_the_kernels_do_not_take() -> None:
    layer, xs, seen = torchrnn.LSTM(I, H), torch.randn(2, T, B, I), []

    def look(x: Tensor) -> Tensor:
        seen.append(torchrnn.explain(layer, x))
        return x

    vmap(look)(xs)
    jvp(look, (xs[0],), (xs[0],))
    assert [told.backend for told in seen] == ["func", "reference"]
    assert set(seen[1].refusals) == {"cpu", "aten"}
    with pytest.raises(ValueError, match="backend must be one of 'cpu', 'aten', 'reference'"), torchrnn.use("func"):
        pass


@pytest.mark.parametrize("V", [2, 3])
def test_a_plan_of_copies_side_by_side(V: int) -> None:
    """Rows of all copies with their own lengths, masks and resets, planned at once, give the same results."""
    layer, x = torchrnn.GRU(I, H, **STACKED, **F64), torch.randn(T, B, V, I, **F64)
    for said in SAID.values():
        y = vmap(lambda q, said=said: layer(q, **said)[0], in_dims=2, out_dims=2)(x)
        all_rows = {
            k: v.repeat_interleave(V, -1) if k != "lengths" else v.repeat_interleave(V) for k, v in said.items()
        }
        torch.testing.assert_close(y.flatten(1, 2), layer(x.flatten(1, 2), **all_rows)[0], atol=1e-12, rtol=1e-12)


def test_compiled_transforms() -> None:
    layer = torchrnn.LSTM(I, H)
    xs, weights = torch.randn(V, T, B, I), weights_of(layer)
    run = vmap(grad(loss_of(layer, {})), (None, 0))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for got, expected in zip(tree_leaves(compiled(weights, xs)), tree_leaves(run(weights, xs)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU])
def test_threads_share_the_samples(make: Any) -> None:
    layer, xs = make(40, 64, bidirectional=True, **F64), torch.randn(13, 20, 40, **F64)
    run = vmap(grad(loss_of(layer, {})), (None, 0))
    expected = run(weights_of(layer), xs)
    torch.set_num_threads(2)
    for name, got in run(weights_of(layer), xs).items():
        assert torch.equal(got, expected[name])


def test_rows_that_are_not_those_of_samples_are_refused() -> None:
    layer, x = torchrnn.GRU(I, H), torch.randn(T, B, I)
    states, weights = [torch.zeros(1, B, H)], [p.detach() for p in layer.parameters()]
    number = torch.ops.torchrnn.number("gru")
    given = number, x, states, weights, None
    *_, reserve = torch.ops.torchrnn.stack(*given, 1 + 2, float("inf"))
    with pytest.raises(RuntimeError, match="2 rows are not those of 3 samples"):
        torch.ops.torchrnn.stack_backward(
            *given, 1 + 2 + (3 << 16), float("inf"), reserve, torch.ones(T, B, H), [None], [], [1] * 6
        )


def test_fake_gradients_of_samples_have_their_shapes() -> None:
    layer, x = torchrnn.LSTM(I, H), torch.randn(T, 6, I)
    states, weights = [torch.zeros(1, 6, H)] * 2, [p.detach() for p in layer.parameters()]
    given = torch.ops.torchrnn.number("lstm"), x, states, weights, None, 1 + 2 + (3 << 16), float("inf")
    reserve = torch.ops.torchrnn.stack(*given)[-1]
    torch.library.opcheck(
        torch.ops.torchrnn.stack_backward.default,
        (*given, reserve, torch.ones(T, 6, H), [None, None], [], [1, 0, 1, 1, 1, 0, 1]),
        test_utils="test_faketensor",
    )


def test_nothing_mapped_and_rows_of_a_jacobian_that_has_none() -> None:
    layer = torchrnn.LSTM(3, 4)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def first_rows(weights: Any, x: Tensor) -> Tensor:
        return functional_call(layer, weights, x)[0][:0]

    def shapes() -> list[Any]:
        none, x = torch.zeros(0, 5, 2, 3), torch.randn(6, 5, 2, 3)
        each = vmap(grad(lambda w, s: functional_call(layer, w, s)[0].sum()), in_dims=(None, 0))(weights, none)
        rows = [jacrev(first_rows)(weights, x[0]), vmap(jacrev(first_rows), in_dims=(None, 0))(weights, x)]
        return [vmap(layer)(none)[0].shape, *({n: t.shape for n, t in found.items()} for found in (each, *rows))]

    found = shapes()
    with torchrnn.use("reference"):
        assert found == shapes()
