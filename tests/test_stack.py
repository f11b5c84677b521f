"""The options of a stack: merges, residuals, sizes by layer, one bias, learned states, last outputs, output dropout."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused import CPU
from stacked import F64, LAYERS, flat, in_our_form, loop
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchrnn

T, B, I, H = 5, 4, 3, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"merge_mode": "sum", "bidirectional": True},
    "mean": {"merge_mode": "mean", "bidirectional": True},
    "mul": {"merge_mode": "mul", "bidirectional": True},
    "residual": {"residual": True},
    "residual both": {"residual": True, "bidirectional": True},
    "residual sum": {"residual": True, "bidirectional": True, "merge_mode": "sum"},
    "sizes": {"hidden_size": [5, 3, 4]},
    "sizes both": {"hidden_size": [5, 3, 4], "bidirectional": True},
    "sizes mul": {"hidden_size": [5, 3, 4], "bidirectional": True, "merge_mode": "mul", "batch_first_state": True},
    "single bias": {"bias": "single", "bidirectional": True},
    "no bias, residual": {"bias": False, "residual": True},
    "learned": {"learn_initial_state": True, "bidirectional": True},
    "learned sizes": {"learn_initial_state": True, "bidirectional": True, "hidden_size": [5, 3, 4]},
    "states": {"batch_first_state": True, "bidirectional": True},
    "projected": {"proj_size": 2, "bidirectional": True, "learn_initial_state": True},
    "projected sum": {"proj_size": 2, "bidirectional": True, "merge_mode": "sum", "residual": True, "bias": "single"},
    "projected sizes": {"proj_size": 2, "residual": True, "hidden_size": [5, 3, 4], "bidirectional": True},
}
every_kind = pytest.mark.parametrize("kind", LAYERS)


def build(kind: str, options: dict[str, Any], L: int, **more: Any) -> Any:
    options = {"hidden_size": H, **options, **more}
    size = options.pop("hidden_size")
    size = size[:L] if isinstance(size, list) else size
    if L == 1 and options.get("residual"):
        with pytest.warns(UserWarning, match="residual adds its input"):
            layer = LAYERS[kind](I, size, num_layers=L, **options, **F64)
    else:
        layer = LAYERS[kind](I, size, num_layers=L, **options, **F64)
    for name, parameter in layer.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(parameter)
    return layer


def initial(layer: Any) -> Any:
    """Random states by layer, direction and name."""
    D, sizes = 2 if layer.bidirectional else 1, layer.hidden_size
    sizes = sizes if isinstance(sizes, list) else [sizes] * layer.num_layers
    return [
        [
            [torch.randn(B, layer.proj_size or n if s == 0 else n, **F64).requires_grad_() for s in range(S)]
            for _ in range(D)
        ]
        for n in sizes
        for S in [len(layer.cell.states)]
    ]


def same(got: Any, expected: Any, wanted: list[torch.Tensor]) -> None:
    """Values and, for a random sum of them, gradients agree to 1e-12."""
    got, expected = flat(got), flat(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    factors = [torch.randn_like(t) for t in got]
    gradients = []
    for of in (got, expected):
        total = torch.stack([(a * f).sum() for a, f in zip(of, factors, strict=True)]).sum()
        gradients.append(torch.autograd.grad(total, wanted, allow_unused=True, retain_graph=True))
    for a, b in zip(*gradients, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-12


@every_kind
@pytest.mark.parametrize("backend", [CPU, "aten", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("L", [1, 2, 3])
def test_every_option_is_the_loop(kind: str, backend: str, name: str, L: int) -> None:
    options = OPTIONS[name]
    if kind == "coupled" and backend != "reference":
        pytest.skip("torch has no kernel for it, and none of ours was generated")
    if backend == "aten" and kind in ("rnn", "gru") and "proj_size" in options:
        pytest.skip("torch has no RNN or GRU with projection")
    layer = build(kind, options, L)
    assert isinstance(layer.hidden_size, list) is ("sizes" in name and L > 1)
    x, hx = torch.randn(T, B, I, **F64).requires_grad_(), initial(layer)
    given = in_our_form(layer, hx)
    wanted = [x, *layer.parameters(), *flat(hx)]
    for lengths, with_states in itertools.product(([T] * B, [3, 5, 0, 1]), (True, False)):
        output, last, finals = loop(layer, x, hx if with_states else None, lengths)
        padding: Any = {} if lengths == [T] * B else {"lengths": lengths}
        with torchrnn.use(backend):
            result = layer(x, given if with_states else None, **padding)
            same(result, (output, in_our_form(layer, finals)), wanted)
            assert type(result[1]) is type(given)
        if layer.residual and layer.merge_mode != "concat":
            continue
        layer.return_sequences = False
        with torchrnn.use(backend):
            same(layer(x, given if with_states else None, **padding), last, wanted)
        layer.return_sequences = True


@every_kind
@pytest.mark.parametrize(
    "name", ["plain", "sum", "residual both", "sizes both", "learned", "learned sizes", "states", "sizes mul"]
)
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_every_form_of_input(kind: str, name: str, sequences: bool) -> None:
    layer = build(kind, OPTIONS[name], 2, return_sequences=sequences)
    first = build(kind, OPTIONS[name], 2, return_sequences=sequences, batch_first=True)
    first.load_state_dict(layer.state_dict())
    x, lengths, hx = torch.randn(T, B, I, **F64), [3, 5, 2, 1], in_our_form(layer, initial(layer))
    for states in (None, hx):
        expected, packed = (
            layer(x, states, lengths=lengths),
            layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), states),
        )
        if sequences:
            packed = (pad_packed_sequence(packed[0])[0], packed[1])
        for a, b in zip(flat(packed), flat(expected), strict=True):
            assert torch.equal(a, b)
        other = first(x.transpose(0, 1), states, lengths=lengths)
        if sequences:
            other = (other[0].transpose(0, 1), other[1])
        for a, b in zip(flat(other), flat(expected), strict=True):
            assert torch.equal(a, b)

    at = 0 if layer.batch_first_state else 1
    row = [s.select(at, 2) for s in flat(hx)]
    L = layer.num_layers if isinstance(layer.hidden_size, list) else 1
    alone: Any = [row[k : k + L] if isinstance(layer.hidden_size, list) else row[k] for k in range(0, len(row), L)]
    got = flat(layer(x[:, 2], alone[0] if len(alone) == 1 else tuple(alone)))
    whole = flat(layer(x, hx))
    expected = [whole[0][:, 2] if sequences else whole[0][2], *(s.select(at, 2) for s in whole[1:])]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


@every_kind
@pytest.mark.parametrize("options", [{}, {"residual": True}, {"merge_mode": "sum"}], ids=str)
@pytest.mark.parametrize("shape", [(0, 2), (4, 0)], ids=["T=0", "B=0"])
def test_empty_input(kind: str, options: dict[str, Any], shape: tuple[int, int]) -> None:
    options = {"bidirectional": True, "num_layers": 2, **options}
    x = torch.randn(*shape, I, **F64).requires_grad_()
    layer = LAYERS[kind](I, H, **options, **F64)
    output, final = layer(x)
    assert output.shape == (*shape, H if "merge_mode" in options else 2 * H)
    assert all(s.shape == (4, shape[1], H) for s in flat(final))
    if options.get("residual") and "merge_mode" in options:
        return
    last = LAYERS[kind](I, H, learn_initial_state=True, return_sequences=False, **options, **F64)
    torch.nn.init.ones_(last.initial_h)
    for y in (last(x), last(x, lengths=[0] * shape[1])):
        assert y.shape == (shape[1], H if "merge_mode" in options else 2 * H)
        assert not y.any()
        y.sum().backward()


@every_kind
def test_in_sequential(kind: str) -> None:
    model = torch.nn.Sequential(LAYERS[kind](4, 6, return_sequences=False), torch.nn.Linear(6, 2))
    assert model(torch.randn(5, 3, 4)).shape == (3, 2)
    assert model(torch.randn(5, 4)).shape == (2,)
    graph = torch.fx.symbolic_trace(model)
    x = torch.randn(5, 3, 4)
    assert torch.equal(graph(x), model(x))


@pytest.mark.parametrize("backend", [CPU, "reference"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "merge_mode": "sum", "num_layers": 2}], ids=str)
def test_output_dropout(backend: str, options: dict[str, Any]) -> None:
    layer = torchrnn.GRU(I, H, output_dropout=0.4, **options)
    x = torch.randn(T, B, I)
    with torchrnn.use(backend):
        plain, state = layer.eval()(x)
        layer.train()
        torch.manual_seed(3)
        output, same_state = layer(x)
        torch.manual_seed(3)
        assert torch.equal(output, F.dropout(plain, 0.4))
        assert torch.equal(state, same_state)
        assert not torch.equal(output, plain)
        layer.return_sequences = False
        torch.manual_seed(3)
        last = layer(x)
        torch.manual_seed(3)
        torch.testing.assert_close(last, F.dropout(layer.eval()(x), 0.4))
        assert (last == 0).any()


@pytest.mark.parametrize("backend", [CPU, "reference"])
def test_dropout_between_layers_comes_after_the_residual(backend: str) -> None:
    layer = torchrnn.GRU(I, H, num_layers=3, residual=True, dropout=0.3, **F64)
    ones = [torchrnn.GRU(I if k == 0 else H, H, **F64) for k in range(3)]
    for k, one in enumerate(ones):
        one.load_state_dict({n: getattr(layer, n.replace("_l0", f"_l{k}")) for n in one.state_dict()})
    x = torch.randn(T, B, I, **F64)
    with torchrnn.use(backend):
        torch.manual_seed(3)
        output, states = layer(x)
        torch.manual_seed(3)
        y, finals = x, []
        for k, one in enumerate(ones):
            new, final = one(y)
            y = new + y if k else new
            y = F.dropout(y, 0.3) if k < 2 else y
            finals.append(final)
    assert torch.equal(output, y)
    assert torch.equal(states, torch.cat(finals))


@every_kind
def test_a_layer_of_equal_sizes_is_the_plain_one(kind: str) -> None:
    torch.manual_seed(1)
    listed = LAYERS[kind](I, [H, H])
    torch.manual_seed(1)
    plain = LAYERS[kind](I, H, num_layers=2)
    assert repr(listed) == repr(plain)
    assert vars(listed).keys() == vars(plain).keys()
    x = torch.randn(T, B, I)
    for a, b in zip(flat(listed(x)), flat(plain(x)), strict=True):
        assert torch.equal(a, b)
    assert LAYERS[kind](I, [H]).num_layers == 1


@every_kind
@pytest.mark.parametrize("name", [n for n in OPTIONS if not n.startswith("projected")])
def test_options_draw_what_a_plain_layer_draws(kind: str, name: str) -> None:
    """No option consumes random numbers of its own; bounds are those of each layer's size."""
    torch.manual_seed(1)
    layer = build(kind, {**OPTIONS[name], "learn_initial_state": False}, 2)
    torch.manual_seed(1)
    for n, p in layer.named_parameters():
        size = (
            layer.hidden_size[int(n[n.index("_l") + 2])] if isinstance(layer.hidden_size, list) else layer.hidden_size
        )
        assert torch.equal(p, torch.empty_like(p).uniform_(-1 / math.sqrt(size), 1 / math.sqrt(size))), n
    learned = LAYERS[kind](I, H, learn_initial_state=True)
    names = [n for n, _ in learned.named_parameters()]
    assert names[-len(layer.cell.states) :] == [f"initial_{s}" for s in layer.cell.states]
    assert not any(getattr(learned, f"initial_{s}").any() for s in layer.cell.states)


@every_kind
@pytest.mark.parametrize("name", OPTIONS)
def test_copies(kind: str, name: str) -> None:
    layer, x = (
        build(kind, OPTIONS[name], 2, return_sequences="sum" in name, output_dropout=0.5),
        torch.randn(T, B, I, **F64),
    )
    layer.eval()
    expected = flat(layer(x))
    again = build(kind, OPTIONS[name], 2, return_sequences="sum" in name, output_dropout=0.5).eval()
    again.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again):
        assert repr(other) == repr(layer)
        for a, b in zip(flat(other(x)), expected, strict=True):
            assert torch.equal(a, b)


def test_repr_shows_what_differs() -> None:
    layer = torchrnn.LSTM(
        3, [5, 4], bias="single", return_sequences=False, merge_mode="sum", bidirectional=True, output_dropout=0.1
    )
    assert repr(layer) == (
        "LSTM(3, [5, 4], num_layers=2, bias='single', bidirectional=True, return_sequences=False, merge_mode='sum', "
        "output_dropout=0.1)"
    )
    layer = torchrnn.LSTM(3, 5, forget_bias=1.0, learn_initial_state=True, batch_first_state=True)
    assert repr(layer) == "LSTM(3, 5, forget_bias=1.0, learn_initial_state=True, batch_first_state=True)"
    assert repr(torchrnn.LSTMCell(3, 5, bias="single")) == "LSTMCell(3, 5, bias='single')"


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("backend", [CPU, "aten", "reference"])
def test_a_cell_with_one_bias(kind: str, backend: str) -> None:
    one, two = (getattr(torchrnn, f"{kind}Cell")(3, 5, bias, **F64) for bias in ("single", True))
    assert [n for n, _ in one.named_parameters()] == ["weight_ih", "weight_hh", "bias_ih"]
    two.load_state_dict({**one.state_dict(), "bias_hh": torch.zeros_like(one.bias_ih)})
    for shape in ((2, 3), (3,)):
        x = torch.randn(shape, **F64)
        with torchrnn.use(backend):
            got, expected = flat(one(x)), flat(two(x))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-14, rtol=0)
        grads = []
        for m, of in ((one, got), (two, expected)):
            total = torch.stack([t.sum() for t in of]).sum()
            grads.append(torch.autograd.grad(total, (m.weight_ih, m.weight_hh, m.bias_ih)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_what_torch_takes_for_the_bias_of_a_cell() -> None:
    # its cells check nothing, and its tests give a nonlinearity in this place
    x = torch.randn(2, 3)
    given: list[Any] = ["relu", 1, 0]
    for bias in given:
        torch.manual_seed(1)
        expected = torch.nn.GRUCell(3, 5, bias)(x)
        torch.manual_seed(1)
        torch.testing.assert_close(torchrnn.GRUCell(3, 5, bias)(x), expected)


def test_single_bias_runs_on_the_kernels() -> None:
    layer = torchrnn.GRU(I, H, bias="single", bidirectional=True)
    assert [n for n, _ in layer.named_parameters()][:3] == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
    assert not any("bias_hh" in n for n, _ in layer.named_parameters())
    request, _ = layer.request(torch.randn(T, B, I))
    assert request.bias is True
    assert len(request.weights) == 8
    assert len(layer._flat_weights) == 6


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["learned", "sizes both", "residual sum", "single bias", "states"])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_compile_and_transforms(kind: str, name: str, sequences: bool) -> None:
    options = OPTIONS[name] | ({} if sequences else {"return_sequences": False, "merge_mode": "concat"})
    layer, x = build(kind, options, 2), torch.randn(T, B, I, **F64)
    torch._dynamo.reset()  # else it counts all layers of these tests as one that is compiled again and again
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(flat(compiled(x)), flat(layer(x)), strict=True):
        torch.testing.assert_close(a, b)
    batch = torch.randn(2, T, B, I, **F64)
    for got, *expected in zip(flat(torch.vmap(layer)(batch)), *(flat(layer(b)) for b in batch), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("name", ["learned", "sizes both", "residual both", "sum", "single bias"])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_trace_generalises_over_batch_and_time(name: str, sequences: bool) -> None:
    layer = build("lstm", OPTIONS[name], 2, return_sequences=sequences).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says so
        traced: Any = torch.jit.trace(layer, (torch.randn(4, 2, I, **F64),))
    for shape in ((7, 3, I), (2, 6, I)):
        x = torch.randn(shape, **F64)
        for a, b in zip(flat(traced(x)), flat(layer(x)), strict=True):
            torch.testing.assert_close(a, b)


@every_kind
def test_gradgradcheck(kind: str) -> None:
    layer = LAYERS[kind](
        1, [2, 1], bidirectional=True, learn_initial_state=True, bias="single", merge_mode="mul", **F64
    )
    x = torch.randn(2, 1, 1, **F64).requires_grad_()
    names = [n for n, _ in layer.named_parameters()]

    def run(x: torch.Tensor, *weights: torch.Tensor) -> Any:
        result = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return tuple(flat(result))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *layer.parameters()), atol=1e-4)


def test_options_set_later_count() -> None:
    layer, x = torchrnn.GRU(I, H), torch.randn(T, B, I)
    output, h = layer(x)
    layer.return_sequences = False
    assert torch.equal(layer(x), output[-1])
    layer.return_sequences, layer.batch_first_state = True, True
    assert torch.equal(layer(x)[1], h.transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_numbers(dtype: torch.dtype) -> None:
    layer = torchrnn.LSTM(I, [5, 4], bias="single", learn_initial_state=True, bidirectional=True, merge_mode="mean")
    x = torch.randn(T, B, I)
    expected = flat(layer(x))
    for a, b in zip(flat(layer.to(dtype)(x.to(dtype))), expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.to(dtype), atol=2e-2, rtol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(t.isfinite().all() for t in flat(layer.float()(x)))
