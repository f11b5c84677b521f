"""activation= and cell_clip=: every one of them, for every cell, form and backend, against a loop in plain Python."""

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM, CoupledLSTMCell
from fused import CPU, needs_kernels
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import torchrnn
from torchrnn.activation import ACTIVATIONS, PLAIN, Options
from torchrnn.backends import cpu, reference
from torchrnn.cell import Cell

LAYERS: dict[str, Any] = {"rnn": torchrnn.RNN, "lstm": torchrnn.LSTM, "gru": torchrnn.GRU, "coupled": CoupledLSTM}
STEPS: dict[str, Any] = {
    "rnn": torchrnn.RNNCell,
    "lstm": torchrnn.LSTMCell,
    "gru": torchrnn.GRUCell,
    "coupled": CoupledLSTMCell,
}
CLIPS = [None, 0.2]
CASES = [(kind, a, c) for kind in LAYERS for a in ACTIVATIONS for c in CLIPS if kind != "coupled" or a == "tanh"]
CASES += [(kind, "tanh", 1e-3) for kind in LAYERS]  # every state is at the limit
every_case = pytest.mark.parametrize(("kind", "activation", "clip"), CASES)
every_backend = pytest.mark.parametrize("backend", [CPU, "reference"])


# --- the equations once more, in words of their own


def phi(name: str, a: torch.Tensor) -> torch.Tensor:
    """The activations from exp, where and abs."""
    if name == "tanh":
        return (a.exp() - (-a).exp()) / (a.exp() + (-a).exp())
    if name == "sigmoid":
        return 1 / (1 + (-a).exp())
    if name == "relu":
        return torch.where(a > 0, a, torch.zeros_like(a))
    if name == "elu":
        return torch.where(a > 0, a, a.exp() - 1)
    return a / (1 + a.abs()) if name == "softsign" else a


def clipped(a: torch.Tensor, limit: float | None) -> torch.Tensor:
    if limit is None:
        return a
    return torch.where(a > limit, torch.full_like(a, limit), torch.where(a < -limit, torch.full_like(a, -limit), a))


def step(kind: str, activation: str, clip: float | None, x: Any, h: Any, state: Any) -> list[Any]:
    """The new states from the pre-activations (B, G·H)."""
    if kind == "rnn":
        return [clipped(phi(activation, x + h), clip)]
    if kind == "gru":
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
        r, z = phi("sigmoid", xr + hr), phi("sigmoid", xz + hz)
        # the last state is the one that is mixed: with projection the second, and it is what will be projected
        return [clipped((1 - z) * phi(activation, xn + r * hn) + z * state[-1], clip)] * len(state)
    a = (x + h).chunk(4 if kind == "lstm" else 3, -1)
    i, g, o = phi("sigmoid", a[0]), phi(activation, a[-2]), phi("sigmoid", a[-1])
    f = phi("sigmoid", a[1]) if kind == "lstm" else 1 - i
    c = f * state[1] + i * g
    if kind == "coupled":  # its step takes no options: c is clipped after it
        return [o * phi("tanh", c), clipped(c, clip)]
    c = clipped(c, clip)
    return [o * phi(activation, c), c]


def loop(layer: Any, case: tuple[str, str, float | None], x: Any, initial: Any, lengths: Any) -> list[Any]:
    """Output and final states of a layer, row by row."""
    D, T, B = 2 if layer.bidirectional else 1, *x.shape[:2]
    y, finals = x, []
    for k in range(layer.num_layers):
        joined = []
        for d in range(D):
            end = f"l{k}" + "_reverse" * d
            w = [getattr(layer, f"{n}_{end}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            rows, ends = [], []
            for b in range(B):
                n = T if lengths is None else lengths[b]
                state = [s[k * D + d, b] for s in initial]
                out = [torch.zeros(layer.proj_size or layer.hidden_size, dtype=x.dtype)] * T
                for t in range(n)[:: -1 if d else 1]:
                    state = step(*case, y[t, b] @ w[0].T + w[2], state[0] @ w[1].T + w[3], state)
                    if layer.proj_size:
                        state[0] = state[0] @ getattr(layer, f"weight_hr_{end}").T
                    out[t] = state[0]
                rows.append(torch.stack(out))
                ends.append(state)
            joined.append(torch.stack(rows, 1))
            finals.append([torch.stack(s) for s in zip(*ends, strict=True)])
        y = torch.cat(joined, -1)
    return [y, *(torch.stack(s) for s in zip(*finals, strict=True))]


def flat(result: Any) -> list[Any]:
    return [result] if isinstance(result, torch.Tensor) else [t for part in result for t in flat(part)]


def with_gradients(results: list[Any], wanted: list[Any]) -> list[Any]:
    """The results, and the gradients of a sum of them that no symmetry makes zero."""
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(r.shape, dtype=torch.float64, generator=generator).to(r.dtype) for r in results]
    total: Any = sum((r * d).sum() for r, d in zip(results, draws, strict=True))
    return [*results, *torch.autograd.grad(total, wanted)]


def agree(got: list[Any], expected: list[Any], tolerance: float) -> None:
    for k, (g, e) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(g, e, rtol=0, atol=tolerance, msg=lambda text, k=k: f"result {k}: {text}")


def options_of(activation: str, clip: float | None) -> dict[str, Any]:
    return ({} if activation == "tanh" else {"activation": activation}) | ({} if clip is None else {"cell_clip": clip})


def run_on(backend: str, module: Any) -> Any:
    # a user's own cell has no kernel yet
    return torchrnn.use("reference" if "Coupled" in type(module).__name__ else backend)


# --- against the loop


@every_case
@every_backend
@pytest.mark.parametrize(
    ("more", "lengths"),
    [({}, None), ({"num_layers": 2, "bidirectional": True}, None), ({"bidirectional": True}, [4, 1, 3, 4])],
    ids=["one", "stacked", "lengths"],
)
def test_layers(kind: str, activation: str, clip: float | None, backend: str, more: Any, lengths: Any) -> None:
    T, B, I, H = 4, 4, 3, 9
    layer = LAYERS[kind](I, H, **more, **options_of(activation, clip), dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    LD = layer.num_layers * (2 if layer.bidirectional else 1)
    initial: Any = tuple(torch.randn(LD, B, H, dtype=torch.float64, requires_grad=True) for _ in layer.cell.states)
    wanted = [x, *initial, *layer.parameters()]
    with run_on(backend, layer):
        got = flat(layer(x, initial if len(initial) > 1 else initial[0], lengths=lengths))
        got = with_gradients(got, wanted)
    expected = with_gradients(loop(layer, (kind, activation, clip), x, initial, lengths), wanted)
    agree(got, expected, 1e-12)
    if clip is not None:
        state = got[2] if len(initial) > 1 else got[1]
        assert float(state.detach().abs().max()) == clip or activation in ("sigmoid", "elu", "softsign", "relu")


@every_case
@every_backend
@pytest.mark.parametrize("batch", [3, 40])  # few rows have a way of their own
def test_cell_modules(kind: str, activation: str, clip: float | None, backend: str, batch: int) -> None:
    module = STEPS[kind](3, 9, **options_of(activation, clip), dtype=torch.float64)
    x = torch.randn(batch, 3, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(batch, 9, dtype=torch.float64, requires_grad=True) for _ in module.cell.states]
    wanted = [x, *states, *module.parameters()]
    with run_on(backend, module):
        got = with_gradients(flat(module(x, tuple(states) if len(states) > 1 else states[0])), wanted)
    from_x, from_h = x @ module.weight_ih.T + module.bias_ih, states[0] @ module.weight_hh.T + module.bias_hh
    expected = with_gradients(step(kind, activation, clip, from_x, from_h, states), wanted)
    agree(got, expected, 1e-12)


@pytest.mark.parametrize(("activation", "clip"), list(itertools.product(ACTIVATIONS, CLIPS)))
@every_backend
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_projection(kind: str, activation: str, clip: float | None, backend: str) -> None:
    options = {"proj_size": 4, "bidirectional": True, **options_of(activation, clip)}
    layer = LAYERS[kind](3, 9, **options, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    initial = tuple(torch.randn(2, 2, n, dtype=torch.float64, requires_grad=True) for n in (4, 9))
    wanted = [x, *initial, *layer.parameters()]
    with torchrnn.use(backend):
        got = with_gradients(flat(layer(x, initial)), wanted)
    agree(got, with_gradients(loop(layer, (kind, activation, clip), x, initial, None), wanted), 1e-12)


@pytest.mark.parametrize(("kind", "activation", "clip"), [c for c in CASES if c[0] != "coupled"])
@every_backend
def test_float32(kind: str, activation: str, clip: float | None, backend: str) -> None:
    layer = LAYERS[kind](3, 21, **options_of(activation, clip))
    x = torch.randn(6, 5, 3)
    narrow = [x.requires_grad_(), *layer.parameters()]
    with torchrnn.use(backend):
        got = with_gradients(flat(layer(x)), narrow)
    exact = copy.deepcopy(layer).double()
    wide = x.detach().double().requires_grad_()
    initial = tuple(torch.zeros(1, 5, 21, dtype=torch.float64) for _ in layer.cell.states)
    expected = loop(exact, (kind, activation, clip), wide, initial, None)
    expected = with_gradients(expected, [wide, *exact.parameters()])
    for g, e in zip(got, expected, strict=True):
        scale = max(1.0, float(e.detach().abs().max()))
        torch.testing.assert_close(g.double(), e, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_that_of_float32(kind: str, dtype: torch.dtype) -> None:
    for module, x in ((LAYERS[kind](3, 9, activation="elu", cell_clip=0.2), torch.randn(4, 2, 3)),
                      (STEPS[kind](3, 9, activation="elu", cell_clip=0.2), torch.randn(2, 3))):  # fmt: skip
        expected = flat(module(x))
        narrow = copy.deepcopy(module).to(dtype)
        for backend in (None, "reference"):
            with torchrnn.use(backend) if backend else torch.enable_grad():
                got = flat(narrow(x.to(dtype)))
            for g, e in zip(got, expected, strict=True):
                assert g.dtype == dtype
                torch.testing.assert_close(g.float(), e, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softsign", "linear"])  # smooth where the clip is not met
@every_backend
def test_gradcheck_and_gradgradcheck(kind: str, activation: str, backend: str) -> None:
    layer = LAYERS[kind](2, 3, activation=activation, cell_clip=0.4, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    with torchrnn.use(backend):
        assert gradcheck(lambda x, *w: tuple(flat(layer(x))), (x, *layer.parameters()))
        assert gradgradcheck(lambda x, *w: tuple(flat(layer(x))), (x, *layer.parameters()))


@pytest.mark.parametrize(("activation", "clip"), list(itertools.product(ACTIVATIONS, CLIPS)))
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@needs_kernels
def test_nan_and_inf_travel_as_in_the_reference(kind: str, activation: str, clip: float | None) -> None:
    layer = LAYERS[kind](3, 17, **options_of(activation, clip), dtype=torch.float64)
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.5, 1e300], dtype=torch.float64)
    for value in values:
        x = torch.randn(4, 3, 3, dtype=torch.float64)
        x[1, 1, 1] = value
        found = []
        for backend in ("cpu", "reference"):
            with torchrnn.use(backend):
                leaf = x.clone().requires_grad_()
                results = flat(layer(leaf))
                found.append([*results, *torch.autograd.grad(results[0].sum(), [leaf, *layer.parameters()])])
        for got, expected in zip(*found, strict=True):
            scale = max([1.0, *expected[expected.isfinite()].abs().tolist()])
            torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@needs_kernels
def test_the_states_of_all_steps(kind: str) -> None:
    layer = LAYERS[kind](3, 9, bidirectional=True, activation="softsign", cell_clip=0.1, dtype=torch.float64)
    x, found = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True), []
    for backend in (cpu, reference):
        call = layer.request(x, lengths=[5, 2, 3, 5])[0]._replace(all_states=True)
        results = flat(backend.run_all(call))
        found.append(with_gradients(results, [x, *layer.parameters()]))
    agree(found[0], found[1], 1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_return_all_and_streams_know_them(kind: str) -> None:
    options = {"cell_clip": 0.1} | ({} if kind == "coupled" else {"activation": "softsign"})
    layer = LAYERS[kind](3, 6, num_layers=2, **options, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    output, final, trace = layer(x, return_all=True)
    agree(flat((output, final)), flat(layer(x)), 1e-12)
    if kind in ("lstm", "gru"):  # a candidate that is no longer between the values of a tanh
        pre = x[0] @ layer.weight_ih_l0.T + layer.bias_ih_l0, layer.bias_hh_l0
        r = torch.sigmoid(pre[0][:, :6] + pre[1][:6])
        place = slice(12, 18)
        candidate = pre[0][:, place] + (r * pre[1][place] if kind == "gru" else pre[1][place])
        name = "n" if kind == "gru" else "g"
        agree([getattr(trace, name)[0, 0, 0]], [phi("softsign", candidate)], 1e-12)
    with torch.no_grad():
        stream = torchrnn.Stream(layer)
        agree([torch.stack([stream(x_t) for x_t in x])], [output.detach()], 1e-12)


# --- what they are


@every_backend
def test_a_gradient_stops_where_the_state_was_clipped(backend: str) -> None:
    cell: Any = torchrnn.LSTMCell(1, 1, cell_clip=0.5, dtype=torch.float64)
    c = torch.tensor([[5.0], [0.1]], dtype=torch.float64, requires_grad=True)
    with torchrnn.use(backend), torch.no_grad():
        cell.bias_ih[1] = 100.0  # the forget gate is open
    with torchrnn.use(backend):
        h, new = cell(torch.zeros(2, 1, dtype=torch.float64), (torch.zeros(2, 1, dtype=torch.float64), c))
        (gradient,) = torch.autograd.grad((h + new).sum(), c)
    assert new[0] == 0.5
    assert gradient[0] == 0
    assert gradient[1] > 0.9


def test_what_torch_has_is_the_same() -> None:
    x = torch.randn(5, 2, 3)
    for make, plain in ((lambda: torchrnn.RNN(3, 4, activation="relu"), lambda: nn.RNN(3, 4, nonlinearity="relu")),
                        (lambda: torchrnn.LSTM(3, 4, activation="tanh"), lambda: nn.LSTM(3, 4)),
                        (lambda: torchrnn.GRU(3, 4, cell_clip=math.inf), lambda: nn.GRU(3, 4))):  # fmt: skip
        torch.manual_seed(1)
        ours = make()
        torch.manual_seed(1)
        torch.testing.assert_close(flat(ours(x)), flat(plain()(x)))
        assert ours._options is PLAIN
        assert repr(ours) == repr(plain())


def test_attributes_and_repr() -> None:
    layer = torchrnn.LSTM(3, 4, 2, activation="relu", cell_clip=3)
    assert repr(layer) == "LSTM(3, 4, num_layers=2, activation='relu', cell_clip=3.0)"
    assert (layer.activation, layer.cell_clip, layer.mode) == ("relu", 3.0, "LSTM")
    assert repr(torchrnn.GRUCell(3, 4, False, activation="elu")) == "GRUCell(3, 4, bias=False, activation='elu')"
    for rnn in (torchrnn.RNN(3, 4, activation="sigmoid", cell_clip=1.0), torchrnn.RNNCell(3, 4, activation="sigmoid")):
        assert rnn.activation == rnn.nonlinearity == "sigmoid"
        assert rnn.cell.name == "rnn_tanh"
        assert "activation='sigmoid'" in repr(rnn)
    assert torchrnn.RNN(3, 4, activation="sigmoid").mode == "RNN_SIGMOID"
    relu = torchrnn.RNN(3, 4, activation="relu", cell_clip=1.0)
    assert (relu.activation, relu.nonlinearity, relu.cell.name, relu.mode) == ("relu", "relu", "rnn_relu", "RNN_RELU")
    assert torchrnn.convert(nn.GRU(3, 4), report=None).cell_clip is None
    assert (torchrnn.RNN(3, 4).activation, torchrnn.GRUCell(3, 4).activation) == ("tanh", "tanh")


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_copies_agree(kind: str) -> None:
    x = torch.randn(4, 2, 3)
    for module, sample in ((LAYERS[kind](3, 5, activation="elu", cell_clip=0.1), x),
                           (STEPS[kind](3, 5, activation="elu", cell_clip=0.1), x[0])):  # fmt: skip
        expected = flat(module(sample))
        for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
            assert repr(other) == repr(module)
            for got, want in zip(flat(other(sample)), expected, strict=True):
                assert torch.equal(got, want)


def test_backends_say_what_they_do_not_know() -> None:
    x = torch.randn(4, 2, 3)
    layer = torchrnn.LSTM(3, 4, activation="relu", cell_clip=2)
    with torchrnn.use("reference"):
        expected = layer(x)[0]
    torch.testing.assert_close(layer(x)[0], expected)
    with (
        torchrnn.use("aten"),
        pytest.raises(RuntimeError, match=r"torch's kernels know no activation='relu', cell_clip=2\.0"),
    ):
        layer(x)
    with torchrnn.use("aten"), pytest.raises(RuntimeError, match=r"torch's kernels know no cell_clip=2\.0"):
        torchrnn.GRUCell(3, 4, cell_clip=2)(x[0])


def test_convert_leaves_them_and_says_why() -> None:
    model = nn.ModuleList(
        [torchrnn.LSTM(2, 3, cell_clip=3.0), torchrnn.GRU(2, 3), torchrnn.RNNCell(2, 3, activation="elu")]
    )
    lines: list[str] = []
    torchrnn.convert(model, "torch", report=lines.append)
    assert lines == [
        "0: LSTM(2, 3, cell_clip=3.0) is left: torch.nn's LSTM has no cell_clip=3.0",
        "1: GRU(2, 3) is now torch.nn.GRU",
        "2: RNNCell(2, 3, activation='elu') is left: torch.nn's RNNCell has no activation='elu'",
    ]
    assert [type(m) for m in model] == [torchrnn.LSTM, nn.GRU, torchrnn.RNNCell]
    lines.clear()
    torchrnn.convert(model, report=lines.append)
    assert lines[0] == "0: LSTM(2, 3, cell_clip=3.0) is left: it is torchrnn's already"


WRONG = {
    "unknown": (
        lambda: LAYERS["gru"](3, 4, activation="gelu"),
        ValueError,
        r"activation must be one of 'tanh', 'relu', .*got 'gelu'.*torchrnn.cell",
    ),
    "no name": (lambda: STEPS["lstm"](3, 4, activation=torch.relu), ValueError, "activation must be one of"),
    "unknown of rnn": (
        lambda: LAYERS["rnn"](3, 4, activation="silu"),
        ValueError,
        "activation must be one of .*got 'silu'",
    ),
    "contradiction": (
        lambda: LAYERS["rnn"](3, 4, nonlinearity="relu", activation="elu"),
        ValueError,
        "nonlinearity='relu' and activation='elu': leave one out",
    ),
    "contradiction to the default, said": (
        lambda: STEPS["rnn"](3, 4, True, "tanh", activation="relu"),
        ValueError,
        "nonlinearity='tanh' and activation='relu'",
    ),
    "no place": (
        lambda: CoupledLSTM(3, 4, activation="relu"),
        ValueError,
        r"no effect on the cell 'coupled_lstm': give its step a fourth argument",
    ),
    "zero clip": (
        lambda: LAYERS["lstm"](3, 4, cell_clip=0),
        ValueError,
        "cell_clip must be a positive number or None, got 0",
    ),
    "negative clip": (
        lambda: LAYERS["lstm"](3, 4, cell_clip=-1.0),
        ValueError,
        "cell_clip must be a positive number or None, got -1.0",
    ),
    "nan": (
        lambda: STEPS["gru"](3, 4, cell_clip=math.nan),
        ValueError,
        "cell_clip must be a positive number or None, got nan",
    ),
    "text": (
        lambda: LAYERS["gru"](3, 4, cell_clip="3"),
        TypeError,
        "cell_clip must be a positive number or None, got str",
    ),
    "bool": (
        lambda: LAYERS["gru"](3, 4, cell_clip=True),
        TypeError,
        "cell_clip must be a positive number or None, got bool",
    ),
    "positional": (
        lambda: LAYERS["gru"](3, 4, 1, True, False, 0.0, False, 0, None, None, "relu"),
        TypeError,
        "positional",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_mistakes(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_same_said_twice_is_no_contradiction() -> None:
    assert torchrnn.RNN(3, 4, nonlinearity="relu", activation="relu").cell.name == "rnn_relu"
    assert torchrnn.RNN(3, 4, nonlinearity="tanh", activation="tanh")._options is PLAIN


# --- a step of one's own


def with_options(x: Any, h: Any, s: Any, options: Any) -> Any:
    return options.clip(s.h + options.activation(x.a + h.a))


def with_a_default(x: Any, h: Any, s: Any, scale: float = 2.0) -> Any:
    return scale * (x.a + h.a)


def test_a_step_takes_options_by_its_fourth_argument() -> None:
    own, old = Cell(with_options, ("a",), ("h",)), Cell(with_a_default, ("a",), ("h",))
    assert (own.takes_options, old.takes_options) == (True, False)
    x, h = torch.tensor([[0.5, -0.5]]), torch.zeros(1, 2)
    assert own(x, h, (h,), Options("relu", 0.3))[0].tolist() == [[pytest.approx(0.3), 0.0]]
    assert torch.equal(own(x, h, (h,))[0], torch.tanh(x))
    assert old(x, h, (h,), Options("tanh", 0.6))[0].tolist() == [[pytest.approx(0.6), pytest.approx(-0.6)]]
    assert torch.equal(old(x, h, (h,))[0], 2 * x)


@needs_kernels
def test_operators_refuse_what_is_no_option() -> None:
    x, w = torch.randn(4, 2, 3), [torch.randn(4, 3), torch.randn(4, 4)]
    given = (torch.ops.torchrnn.number("rnn_tanh"), x, [torch.zeros(1, 2, 4)], w, None)
    for activation, limit in ((-1, 1.0), (6, 1.0), (0, 0.0), (0, math.nan)):
        with pytest.raises(RuntimeError, match="there is no activation"):
            torch.ops.torchrnn.stack(*given, activation << 8, limit)


@needs_kernels
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_fake_operators_and_torchs_own_checks(kind: str) -> None:
    layer = LAYERS[kind](3, 5, cell_clip=0.5)
    cell, x = layer.cell, torch.randn(4, 2, 3)
    states, weights = [torch.zeros(1, 2, 5) for _ in cell.states], [p.detach() for p in layer.parameters()]
    given = (torch.ops.torchrnn.number(cell.name), x, states, weights, None)
    softsign, training = 4 << 8, cpu.BIAS + cpu.TRAINING
    *results, reserve = torch.ops.torchrnn.stack(*given, softsign + training, 0.5)
    for flags in (training + cpu.ALL, cpu.BIAS):
        torch.library.opcheck(torch.ops.torchrnn.stack.default, (*given, softsign + flags, 0.5))
    needs = [1] * (1 + len(states) + len(weights))
    backward = (*given, softsign + training, 0.5, reserve, results[0], [None] * len(states), [], needs)
    torch.library.opcheck(torch.ops.torchrnn.stack_backward.default, backward)


@pytest.mark.parametrize("kind", LAYERS)
def test_compile_and_transforms(kind: str) -> None:
    torch.compiler.reset()  # other tests compile the same forward for other classes, up to a limit
    options = {"cell_clip": 0.2} | ({} if kind == "coupled" else {"activation": "softsign"})
    layer, x = LAYERS[kind](3, 5, num_layers=2, **options), torch.randn(4, 2, 3)
    expected = flat(layer(x))
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, want in zip(flat(compiled(x)), expected, strict=True):
        torch.testing.assert_close(got, want)
    together = torch.func.vmap(lambda row: layer(row)[0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(together, expected[0])
