"""Options of layers, calls and inputs, combined at random: never a wrong number, or a message that names the pair."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from agreement import F64, NO_KERNEL, agree, learned, states_for
from coupled import CoupledLSTM
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

import torchrnn
from torchrnn import _extension, stack
from torchrnn.stack import merge

I = 3
CELLS: dict[str, Any] = {
    "rnn_tanh": torchrnn.RNN,
    "rnn_relu": lambda *a, **k: torchrnn.RNN(*a, nonlinearity="relu", **k),
    "lstm": torchrnn.LSTM,
    "gru": torchrnn.GRU,
    "gru_reset_before": lambda *a, **k: torchrnn.GRU(*a, reset_after=False, **k),
    "coupled_lstm": CoupledLSTM,
}
FORMS = ("padded", "unbatched", "batches", "list", "jagged", "packed")
BACKENDS = (None, "reference", "aten") + (("cpu",) if _extension.missing() is None else ())


def some(choices: dict[str, Any], most: int) -> Any:
    """Up to so many of the arguments, each with a value."""
    names = st.lists(st.sampled_from(sorted(choices)), unique=True, max_size=most)
    return names.flatmap(lambda names: st.fixed_dictionaries({n: choices[n] for n in names}))


OPTIONS: dict[str, Any] = {
    "activation": st.sampled_from(["tanh", "relu", "sigmoid", "linear", "softsign", "elu"]),
    "batch_first": st.just(True),
    "batch_first_state": st.just(True),
    "bias": st.sampled_from([False, "single"]),
    "bidirectional": st.just(True),
    "cell_clip": st.sampled_from([0.3, 0.1]),
    "dropout": st.just(1.0),  # all or nothing: it leaves nothing to chance
    "forget_bias": st.just(1.5),
    "hidden_size": st.integers(2, 9) | st.lists(st.integers(2, 4), min_size=2, max_size=3),
    "learn_initial_state": st.just(True),
    "merge_mode": st.sampled_from(["sum", "mean", "mul"]),
    "num_layers": st.integers(1, 3),
    "output_dropout": st.just(1.0),
    "proj_size": st.just(1),
    "residual": st.just(True),
    "return_sequences": st.just(False),
}
SAID: dict[str, Any] = {
    "lengths": st.sampled_from(["list", "tensor", "int32"]),
    "mask": st.sampled_from([0.3, 0.7, 1.0]),  # how much of it is True
    "reset": st.sampled_from([0.0, 0.3]),
    "reset_to": st.sampled_from(["zero", "initial"]),
    "return_all": st.just(True),
}


class Drawn(NamedTuple):
    """One combination."""

    cell: str
    options: dict[str, Any]
    said: dict[str, Any]
    form: str
    sizes: list[int]  # of the rows
    dims: tuple[int, ...]  # of several batch dimensions
    hx: str
    backend: str | None
    training: bool
    lazy: bool
    seed: int


draws = st.builds(
    Drawn,
    st.sampled_from(sorted(CELLS)),
    some(OPTIONS, 6).map(lambda options: {"hidden_size": 3, **options}),
    some(SAID, 3),
    st.sampled_from(FORMS) | st.just("padded"),
    st.lists(st.integers(0, 5), max_size=4),
    st.lists(st.integers(0, 2), min_size=2, max_size=3).map(tuple),
    st.sampled_from(["none", "none", "given", "one for all"]),
    st.sampled_from(BACKENDS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)


class Refusal(NamedTuple):
    """What may be refused, and the words that name both members of the pair."""

    words: tuple[str, ...]
    of: Any  # a function of what was drawn: whether the pair is there


def concat(d: Drawn) -> bool:
    return "merge_mode" not in d.options


def uneven(d: Drawn) -> bool:
    H = d.options["hidden_size"]
    return isinstance(H, list) and len(set(H)) > 1


def empty(d: Drawn) -> bool:
    """Whether there may be nothing to run: what has no rows or steps, or of which no step counts."""
    return True if d.said.keys() & {"mask", "lengths"} or not any(d.sizes) else 0 in d.dims


def refusals(d: Drawn) -> list[Refusal]:
    o, s = d.options, d.said
    own = {"list": "a list of sequences", "jagged": "a nested tensor", "packed": "a PackedSequence"}.get(d.form, "")
    there = [n for n in ("lengths", "mask", "reset") if n in s]
    pairs = [
        Refusal(("hidden_size=", "num_layers="), isinstance(o["hidden_size"], list) and "num_layers" in o),
        Refusal(("merge_mode=", "bidirectional=False"), not concat(d) and "bidirectional" not in o),
        Refusal(
            ("merge_mode=", "residual=True", "return_sequences=False"),
            not concat(d) and "residual" in o and "return_sequences" in o,
        ),
        Refusal(("residual=True", "hidden_size="), "residual" in o and uneven(d) and "proj_size" not in o),
        Refusal(("forget_bias", "'" + d.cell.split("_")[0]), "forget_bias" in o and d.cell != "lstm"),
        Refusal(("forget_bias=", "bias=False"), "forget_bias" in o and o.get("bias") is False),
        Refusal(("proj_size=", "reset_after=False"), "proj_size" in o and d.cell == "gru_reset_before"),
        Refusal(("return_all=True", "return_sequences=False"), "return_all" in s and "return_sequences" in o),
        Refusal(("activation=", f"'{d.cell}'"), d.cell == "coupled_lstm" and o.get("activation", "tanh") != "tanh"),
        Refusal(("nonlinearity='relu'", "activation="), d.cell == "rnn_relu" and o.get("activation", "relu") != "relu"),
        Refusal(("'aten'", "activation="), d.backend == "aten" and o.get("activation", "tanh") != "tanh"),
        Refusal(("'aten'", "cell_clip="), d.backend == "aten" and "cell_clip" in o),
        Refusal(("lengths", "mask"), "lengths" in s and "mask" in s),
        Refusal(("reset_to='initial'", "no reset="), s.get("reset_to") == "initial" and "reset" not in s),
        *(Refusal((name, own), bool(own)) for name in there),
        Refusal(("lengths", "unbatched"), "lengths" in s and d.form == "unbatched"),
        Refusal(("'cpu'", f"'{d.cell}'"), d.backend == "cpu" and d.cell in NO_KERNEL),
        Refusal(("'aten'", f"'{d.cell}'"), d.backend == "aten" and d.cell in NO_KERNEL),
        Refusal(("'aten'", "states of all steps"), d.backend == "aten" and "return_all" in s),
        Refusal(("'aten'", "projection"), d.backend == "aten" and "proj_size" in o and d.cell.startswith("rnn")),
        Refusal(("'aten'", "'gru_projected'"), d.backend == "aten" and "proj_size" in o and d.cell == "gru"),
        Refusal(("'aten'", "empty"), d.backend == "aten" and empty(d)),
        Refusal(("'cpu'", "empty"), d.backend == "cpu" and empty(d)),
    ]
    return [p for p in pairs if p.of]


def build(d: Drawn) -> Any:
    """The layer; a hint that an option has no effect with one layer is no error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*expects num_layers greater", UserWarning)
        layer = CELLS[d.cell](None if d.lazy else I, **d.options, **F64)
    return layer.train(d.training)


def sequence(d: Drawn, batch_first: bool) -> tuple[Any, list[torch.Tensor], tuple[int, ...]]:
    """The input, the tensors that it was made of, and its batch dimensions."""
    sizes = d.sizes or [2]
    T, B = max(sizes), len(d.sizes)
    if d.form in ("list", "jagged", "packed"):
        rows = [torch.randn(max(n, int(d.form == "packed")), I, **F64).requires_grad_() for n in sizes]
        if d.form == "packed":
            return pack_sequence(rows, enforce_sorted=False), rows, (len(sizes),)
        if d.form == "jagged":
            return torch.nested.as_nested_tensor(rows, layout=torch.jagged), rows, (len(sizes),)
        return rows, rows, (len(sizes),)
    dims = {"unbatched": (), "padded": (B,), "batches": d.dims}[d.form]
    shape = (*dims, T, I) if batch_first else (T, *dims, I)
    x = torch.randn(shape, **F64).requires_grad_()
    return x, [x], dims


def keywords(d: Drawn, batch_first: bool, dims: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of the call."""
    T, said = max(d.sizes or [2]), dict(d.said)
    shape = (*dims, T) if batch_first else (T, *dims)
    for name in ("mask", "reset"):
        if name in said:
            said[name] = torch.rand(shape) < said[name]
    if "lengths" in said:
        dtype = torch.int32 if said["lengths"] == "int32" else torch.int64
        lengths = torch.randint(0, T + 1, dims, dtype=dtype)
        said["lengths"] = lengths.tolist() if said["lengths"] == "list" and dims else lengths
    return said


def initial(d: Drawn, layer: Any, dims: tuple[int, ...]) -> Any:
    if d.hx == "none":
        return None
    hx = states_for(layer, *((1,) * len(dims) if d.hx == "one for all" else dims))
    if d.hx == "one for all" and len(layer.cell.states) > 1:  # each by itself
        hx = (states_for(layer, *dims)[0], *hx[1:])
    return hx


def refused(d: Drawn, error: Exception) -> None:
    """Raise unless the error may come, and names what does not go together."""
    text = str(error)
    for pair in refusals(d):
        if all(word in text for word in pair.words):
            return
    raise AssertionError(f"{d}: neither the loop's numbers nor a pair named: {type(error).__name__}: {text}") from error


COUNTS = {"agreed": 0, "refused": 0}


@settings(max_examples=2500, deadline=None, print_blob=True)
@given(draws)
def one_draw(d: Drawn) -> None:
    torch.manual_seed(d.seed)
    try:
        layer = build(d)
        x, leaves, dims = sequence(d, layer.batch_first)
        said = keywords(d, layer.batch_first, dims)
        with torchrnn.use(d.backend) if d.backend else nullcontext():
            torchrnn.explain(layer, x, **said)  # gives a lazy layer its sizes
            hx = initial(d, learned(layer), dims)
            layer(x, hx, **said)
    except (ValueError, RuntimeError, TypeError) as error:
        refused(d, error)
        COUNTS["refused"] += 1
        return
    agree(layer, d.backend, x, hx, leaves, **said)
    COUNTS["agreed"] += 1


def test_the_loop_or_a_message_that_names_the_pair() -> None:
    COUNTS.update(agreed=0, refused=0)
    one_draw()
    assert COUNTS["agreed"] >= 800
    assert COUNTS["refused"] >= 100


def test_a_wrong_number_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"hidden_size": 3, "bidirectional": True, "merge_mode": "mean", "num_layers": 2}
    drawn = Drawn("gru", options, {"lengths": "list"}, "padded", [3, 4], (1, 2), "given", None, False, False, 0)
    check: Any = one_draw.hypothesis.inner_test  # type: ignore[attr-defined]
    check(drawn)
    monkeypatch.setattr(stack, "merge", lambda mode, y: merge("sum" if mode == "mean" else mode, y))
    with pytest.raises(AssertionError, match="output of row"):
        check(drawn)
    with pytest.raises(AssertionError, match="neither the loop's numbers nor a pair named: ValueError: no reason"):
        refused(drawn, ValueError("no reason"))
