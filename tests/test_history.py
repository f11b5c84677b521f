"""return_all=: every state and gate of every layer at every step, against the loop."""

import warnings
from typing import Any

import pytest
import torch
from agreement import F64, LAYERS, NO_KERNEL, agree, learned, states_for, tensors
from fused import CPU, needs_kernels
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_sequence

import torchrnn

T, B, I = 5, 4, 3
EVERY = [
    pytest.param(name, backend, marks=CPU.marks if backend == "cpu" else (), id=f"{name} {backend}")
    for name in [*LAYERS, "rnn_projected"]
    for backend in ("cpu", "reference")
    if name not in NO_KERNEL or backend == "reference"
]
everywhere = pytest.mark.parametrize(("name", "backend"), EVERY)
LENGTHS = [3, 5, 0, 1]
MASK = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0]]) == 1  # (T, B)
RESET = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]) == 1
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "layers": {"num_layers": 3},
    "layers, both": {"num_layers": 2, "bidirectional": True, "bias": False},
    "batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "sizes": {"hidden_size": [5, 3], "bidirectional": True, "merge_mode": "mul", "learn_initial_state": True},
    "residual": {"num_layers": 2, "residual": True, "bias": "single", "batch_first_state": True},
}
SAID: dict[str, dict[str, Any]] = {
    "dense": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "reset": {"reset": RESET},
    "reset to initial": {"reset": RESET, "reset_to": "initial", "lengths": LENGTHS},
    "all": {"mask": MASK, "reset": RESET},
}


def build(name: str, options: dict[str, Any]) -> Any:
    options = {"hidden_size": 4, **options}
    if name == "rnn_projected":
        name, options = "rnn_tanh", {**options, "proj_size": 2}
    return learned(LAYERS[name](I, options.pop("hidden_size"), **options, **F64))


@everywhere
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("given", [False, True], ids=["", "hx"])
def test_the_trace_is_what_happens_in_the_loop(name: str, backend: str, options: str, said: str, given: bool) -> None:
    layer = build(name, OPTIONS[options])
    x, call = torch.randn(T, B, I, **F64), dict(SAID[said])
    if layer.batch_first:
        x = x.transpose(0, 1).contiguous()
        call = {k: v.t() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    hx = states_for(layer, B) if given else None
    agree(layer, backend, x, hx, return_all=True, **call)


@needs_kernels
@pytest.mark.parametrize("name", [name for name in [*LAYERS, "rnn_projected"] if name not in NO_KERNEL])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("said", [*SAID, "packed", "list"])
def test_without_gradients_it_is_the_same(name: str, options: str, said: str) -> None:
    layer = build(name, OPTIONS[options])
    x: Any = torch.randn(T, B, I, **F64)
    call = dict(SAID.get(said, {}))
    if layer.batch_first:
        x = x.transpose(0, 1)
        call = {k: v.t() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    if said in ("packed", "list"):
        x = [torch.randn(n, I, **F64) for n in (2, 5, 1, 3)]
    if said == "packed":
        x = pack_sequence(x, enforce_sorted=False)
    with torchrnn.use("cpu"):
        expected = layer(x, return_all=True, **call)[2]
        with torch.no_grad():
            found = layer(x, return_all=True, **call)[2]
    for name in expected:
        for a, b in zip(tensors(getattr(found, name)), tensors(getattr(expected, name)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@everywhere
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", ["list", "jagged", "packed", "unbatched", "batches", "no steps", "no rows"])
def test_every_form_of_input(name: str, backend: str, options: str, form: str) -> None:
    layer = build(name, OPTIONS[options])
    rows = [torch.randn(n, I, **F64).requires_grad_() for n in (LENGTHS if form != "packed" else (3, 5, 2, 1))]
    x: Any = {
        "list": lambda: rows,
        "jagged": lambda: torch.nested.as_nested_tensor(rows, layout=torch.jagged),
        "packed": lambda: pack_sequence(rows, enforce_sorted=False),
        "unbatched": lambda: torch.randn(T, I, **F64),
        "batches": lambda: torch.randn(2, 2, T, I, **F64) if layer.batch_first else torch.randn(T, 2, 2, I, **F64),
        "no steps": lambda: torch.randn(B, 0, I, **F64) if layer.batch_first else torch.randn(0, B, I, **F64),
        "no rows": lambda: torch.randn(0, T, I, **F64) if layer.batch_first else torch.randn(T, 0, I, **F64),
    }[form]()
    if form.startswith("no "):
        backend = "reference"  # the kernels refuse an empty batch
    batch: Any = {"unbatched": (), "batches": (2, 2), "no rows": (0,)}.get(form, (B,))
    for hx in (None, states_for(layer, *batch)):
        agree(layer, backend, x, hx, rows if form in ("list", "jagged", "packed") else None, return_all=True)


@pytest.mark.parametrize("backend", [CPU, "reference"])
@pytest.mark.parametrize(("name", "L"), [("rnn_tanh", 1), ("lstm_projected", 1), ("gru", 2)])
def test_gradcheck(backend: str, name: str, L: int) -> None:
    layer = LAYERS[name](2, 3, bidirectional=True, num_layers=L, **F64)
    x = torch.randn(3, 2, 2, **F64).requires_grad_()
    hx: Any = states_for(layer, 2)
    said: Any = {"mask": MASK[:3, :2], "reset": RESET[:3, :2]}

    def call(x: torch.Tensor, *states: Any) -> Any:
        with torchrnn.use(backend):
            _, _, trace = layer(x, states if isinstance(hx, tuple) else states[-1], return_all=True, **said)
        return tuple(getattr(trace, n) for n in trace)

    assert gradcheck(call, (x, *tensors(hx)))
    assert L == 2 or gradgradcheck(call, (x, *tensors(hx)), atol=1e-4)


def test_a_jagged_tensor_with_gaps() -> None:
    layer, x = torchrnn.GRU(I, 4), torch.randn(3, 6, I)
    begin, sizes = torch.tensor([1, 0, 2]), torch.tensor([3, 4, 0])
    _, _, trace = layer(torch.nested.narrow(x, 1, begin, sizes, layout=torch.jagged), return_all=True)
    rows = [x[b, s : s + n] for b, (s, n) in enumerate(zip(begin.tolist(), sizes.tolist(), strict=True))]
    _, _, expected = layer(rows, return_all=True)
    assert trace.h.shape == (1, 1, 4, 3, 4)
    assert torch.equal(trace.h, expected.h)


def test_what_was_asked_for_and_not() -> None:
    layer, x = torchrnn.LSTM(I, 4, num_layers=2, bidirectional=True), torch.randn(T, B, I)
    output, final, trace = layer(x, return_all=True)
    plain, plain_final = layer(x)
    assert torch.equal(output, plain)
    assert all(torch.equal(a, b) for a, b in zip(final, plain_final, strict=True))
    assert list(trace) == ["h", "c", "i", "f", "g", "o"]
    assert list(trace.states) == ["h", "c"]
    assert list(trace.gates) == ["i", "f", "g", "o"]
    assert trace.c.shape == trace.f.shape == (2, 2, T, B, 4)
    assert repr(trace).splitlines()[1] == "c  (L, D, T, B, H) = (2, 2, 5, 4, 4)  state"
    with pytest.raises(AttributeError, match="the trace has no 'z': it has h, c, i, f, g, o"):
        _ = trace.z


def test_shapes_are_told_in_letters() -> None:
    layer = torchrnn.GRU(I, [4, 3])
    _, _, trace = layer(torch.randn(T, 2, 3, I), return_all=True)
    assert "r  layer 0: (D, T, B1, B2, H) = (1, 5, 2, 3, 4); layer 1: (D, T, B1, B2, H) = (1, 5, 2, 3, 3)" in repr(
        trace
    )
    _, _, trace = torchrnn.GRU(I, 4)(torch.randn(T, I), return_all=True)
    assert "h  (L, D, T, H) = (1, 1, 5, 4)  state" in repr(trace)


def test_a_layer_of_last_outputs_has_no_trace() -> None:
    layer = torchrnn.GRU(I, 4, return_sequences=False)
    with pytest.raises(ValueError, match="return_all=True and return_sequences=False do not go together"):
        layer(torch.randn(T, B, I), return_all=True)


def test_explain_knows_what_a_trace_needs() -> None:
    layer, x = torchrnn.GRU(I, 4), torch.randn(T, B, I)
    with torchrnn.use("aten"):
        told = torchrnn.explain(layer, x, return_all=True)
        assert told.backend == "none"
        with pytest.raises(RuntimeError, match="'aten' cannot run this call: torch's kernels keep the states of all"):
            layer(x, return_all=True)
    assert torchrnn.explain(layer, x, return_all=False).backend == torchrnn.explain(layer, x).backend
    with pytest.raises(TypeError, match="return_all"):
        torchrnn.explain(torchrnn.GRUCell(I, 4), x[0], return_all=True)


def test_dropout_is_seen_by_the_layer_above() -> None:
    layer = torchrnn.GRU(I, 4, num_layers=2, dropout=1.0, bias=False, **F64)
    _, _, trace = layer(torch.randn(T, B, I, **F64), return_all=True)
    assert trace.h[0].any()
    assert not trace.n[1].any()
    agree(layer, None, torch.randn(T, B, I, **F64), return_all=True)


def test_narrow_numbers() -> None:
    layer, x = torchrnn.LSTM(I, 4).bfloat16(), torch.randn(T, B, I).bfloat16()
    _, _, trace = layer(x, return_all=True)
    _, _, expected = layer.float()(x.float(), return_all=True)
    for name in trace:
        assert getattr(trace, name).dtype == torch.bfloat16
        torch.testing.assert_close(getattr(trace, name).float(), getattr(expected, name), atol=2e-2, rtol=2e-2)


def test_compiled_it_is_refused() -> None:
    torch._dynamo.reset()  # else it gives up compiling layers when other tests have compiled many
    layer, x = torchrnn.LSTM(2, 3), torch.randn(4, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of sys.gettrace
        with pytest.raises(
            RuntimeError, match=r"which torch\.compile replaces: call a layer with return_all=True from"
        ):
            torch.compile(layer, backend="eager")(x, return_all=True)
