"""Configurations and arrays of Keras, without Keras: what is refused with which words; and never a wrong number."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchrnn
from torchrnn.keras import Stack

I, H = 3, 4
GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}


def arrays(kind: str, I: int = I, H: int = H, *, biases: int = 1, dtype: Any = "float32") -> list[Any]:
    """Weights of one direction in Keras's arrangement; 2 biases are those of GRU(reset_after=True)."""
    rng, GH = np.random.default_rng(1), GATES[kind] * H
    bias = [rng.normal(size=(2, GH) if biases == 2 else GH)] if biases else []
    return [a.astype(dtype) for a in [rng.normal(size=(I, GH)), rng.normal(size=(H, GH)), *bias]]


def config(kind: str = "LSTM", **options: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": "one", "units": H, **options}}


def row(*layers: Any, kind: str = "Sequential") -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": "model", "layers": list(layers)}}


def both(kind: str = "LSTM", merge_mode: Any = "concat", **options: Any) -> dict[str, Any]:
    inner = config(kind)
    return {
        "class_name": "Bidirectional",
        "config": {"name": "two", "layer": inner, "merge_mode": merge_mode, **options},
    }


LSTM, GRU = arrays("LSTM"), arrays("GRU", biases=2)
BACKWARD = config(go_backwards=True)
MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "no config": (LSTM, None, "weights alone do not say what they are: give config=keras.layers.serialize(layer)"),
    "half a config": (LSTM, {"units": H}, "config must be what keras.layers.serialize(layer) or model.to_json() gives"),
    "a config of nothing": (
        LSTM,
        {"class_name": "LSTM", "config": None},
        "config of LSTM must hold a dict config, got None",
    ),
    "no JSON": (LSTM, "{", "config must be JSON, got '{'"),
    "deep JSON": (LSTM, "[" * 100_000, "config must be JSON"),
    "no units": (LSTM, {"class_name": "LSTM", "config": {}}, "lstm: units must be a positive integer, got None"),
    "units of zero": (LSTM, config(units=0), "one: units must be a positive integer, got 0"),
    "units by halves": (LSTM, config(units=4.0), "one: units must be a positive integer, got 4.0"),
    "bias in words": (LSTM, config(use_bias="yes"), "one: use_bias must be true or false, got 'yes'"),
    "a hard sigmoid": (LSTM, config(recurrent_activation="hard_sigmoid"), "one: recurrent_activation='hard_sigmoid'"),
    "no gates' function": (LSTM, config(recurrent_activation=None), "one: recurrent_activation=None"),
    "gelu": (LSTM, config(activation="gelu"), "activation must be one of 'tanh', 'relu', 'sigmoid', 'linear'"),
    "a function": (LSTM, config(activation={"class_name": "function"}), "here, got {'class_name': 'function'}"),
    "backwards": (LSTM, config(go_backwards=True), "one: go_backwards=True: no layer of ours runs backward alone"),
    "time first": (LSTM, config(time_major=True), "one: time_major=True of LSTM is not known here"),
    "a later option": (LSTM, config(attention="soft"), "one: attention='soft' of LSTM is not known here"),
    "another package": (LSTM, {**config(), "module": "my.layers"}, "LSTM is a class of my.layers, not of Keras"),
    "an Embedding": (
        [],
        config("Embedding"),
        "one: Embedding is none of SimpleRNN, LSTM, GRU, Bidirectional: keep it as",
    ),
    "a Masking": ([], config("Masking"), "call ours with mask=(x != mask_value).any(-1), or lengths="),
    "RNN of cells": ([], config("RNN"), "load the layer LSTM, GRU or SimpleRNN, whose weights are the same"),
    "an empty row": ([], row(), "the model has no layers"),
    "an input alone": ([], row(config("InputLayer")), "the model has no layers"),
    "a functional model": (LSTM, row(config(), kind="Functional"), "a Functional model is no row of layers"),
    "one within a row": (LSTM, row(row(config(), kind="Functional")), "a Functional model is no row of layers"),
    "layers of nothing": ([], row() | {"config": {"layers": 3}}, "config of Sequential must hold a list layers, got 3"),
    "a layer of nothing": ([], row(None), "config must be what keras.layers.serialize(layer) or model.to_json() gives"),
    "the last too early": (
        LSTM + arrays("LSTM", H),
        row(config(), config()),
        "layer 'one' has return_sequences=False, and layer 'one' after it needs a sequence",
    ),
    "no merge": (LSTM * 2, both(merge_mode=None), "two: merge_mode=None gives two outputs"),
    "an unknown merge": (
        LSTM * 2,
        both(merge_mode="max"),
        "two: merge_mode must be one of 'concat', 'sum', 'mul', 'ave'",
    ),
    "two unlike": (
        LSTM * 2,
        both(backward_layer=config(go_backwards=True, activation="relu")),
        "two: its backward layer differs from the forward one in more than the direction",
    ),
    "two forward": (LSTM * 2, both(backward_layer=config()), "two: its backward layer has go_backwards=False"),
    "two exchanged": (LSTM * 2, both() | {"config": {"layer": BACKWARD}}, "exchange the two layers"),
    "four": (LSTM * 4, both() | {"config": {"layer": both()}}, "a Bidirectional within a Bidirectional"),
    "two of nothing": (LSTM * 2, both() | {"config": {}}, "config must be what"),
    "too few": (LSTM[:2], config(), "weights must be 3 arrays: one 1 × ['kernel', 'recurrent_kernel', 'bias']; got 2"),
    "too many": (
        LSTM,
        config(use_bias=False),
        "weights must be 2 arrays: one 1 × ['kernel', 'recurrent_kernel']; got 3",
    ),
    "one direction of two": (LSTM, both(), "weights must be 6 arrays: two 2 × ['kernel', 'recurrent_kernel', 'bias']"),
    "wrong units": (LSTM, config(units=5), "one: kernel must be (I, G·H) = (I, 20), got (3, 16)"),
    "transposed": ([LSTM[0].T, *LSTM[1:]], config(), "one: kernel must be (I, G·H) = (I, 16), got (16, 3)"),
    "a wrong recurrent kernel": ([LSTM[0], LSTM[0], LSTM[2]], config(), "recurrent_kernel must be (H, G·H) = (4, 16)"),
    "the other GRU": (
        GRU,
        config("GRU", reset_after=False),
        "bias must be (G·H,) = (12,), got (2, 12): is reset_after",
    ),
    "this GRU": (arrays("GRU"), config("GRU"), "bias must be (2, G·H) = (2, 12), got (12,): is reset_after"),
    "no input": ([LSTM[0][:0], *LSTM[1:]], config(), "kernel must be (I, G·H) with I greater than zero"),
    "a wrong input above": (
        LSTM + arrays("LSTM", 5),
        row(config(return_sequences=True), config()),
        "one: kernel must be (I, G·H) = (4, 16), got (5, 16)",
    ),
    "unlike inputs": (
        LSTM + arrays("LSTM", 5),
        both(),
        "two: backward kernel must be (I, G·H) = (3, 16), got (5, 16)",
    ),
    "of two dtypes": ([LSTM[0], LSTM[1].astype("float64"), LSTM[2]], config(), "must have the dtype of the kernel"),
    "integers": (
        [a.astype("int8") for a in LSTM],
        config(),
        "must be floating-point numbers, got torch.int8: quantised",
    ),
    "objects": (
        [a.astype(object) for a in LSTM],
        config(),
        "one: kernel 0 must be an array of numbers, got ndarray object",
    ),
    "words": (["kernel", *LSTM[1:]], config(), "one: kernel 0 must be an array of numbers, got str"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_its_message(name: str) -> None:
    source, given, message = MISTAKES[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
        torchrnn.from_keras(source, given)
    assert message in str(caught.value)


def test_what_is_no_source() -> None:
    with pytest.raises(TypeError, match="source must be a Keras layer, a path or a list of arrays, got LSTM"):
        torchrnn.from_keras(torch.nn.LSTM(3, 4))
    with pytest.raises(ValueError, match=r"name of one of the recurrent layers, \['one'\], got 'two'"):
        torchrnn.from_keras(LSTM, row(config()), layer="two")
    with pytest.raises(ValueError, match=r"\['one', 'one'\], got 'one'"):
        torchrnn.from_keras(LSTM, row(config(), config()), layer="one")


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_are_transposed_and_reordered_bit_for_bit(kind: str, dtype: str) -> None:
    given = arrays(kind, biases=2 if kind == "GRU" else 1, dtype=dtype)
    state = torch.get_rng_state()
    layer = torchrnn.from_keras(given, config(kind, return_sequences=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.weight_ih_l0.dtype == getattr(torch, dtype)
    order = [1, 0, 2] if kind == "GRU" else range(GATES[kind])
    for array, name in zip(given, ("weight_ih_l0", "weight_hh_l0"), strict=False):
        expected = np.concatenate([array[:, k * H : (k + 1) * H] for k in order], 1).T
        np.testing.assert_array_equal(getattr(layer, name).detach().numpy(), expected)
    biases = given[2] if kind == "GRU" else given[2][None]
    for array, name in zip(biases, ("bias_ih_l0", "bias_hh_l0"), strict=False):
        expected = np.concatenate([array[k * H : (k + 1) * H] for k in order])
        np.testing.assert_array_equal(getattr(layer, name).detach().numpy(), expected)
    assert layer.bias is (True if kind == "GRU" else layer.bias)
    before = layer.weight_ih_l0.detach().clone()
    for array in given:
        array[:] = 0  # what was given is not what the layer has
    assert torch.equal(layer.weight_ih_l0, before)


def test_tensors_and_text_are_taken() -> None:
    plain = torchrnn.from_keras(LSTM, config())
    other = torchrnn.from_keras(tuple(map(torch.tensor, LSTM)), json.dumps(config()))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert repr(plain) == "LSTM(3, 4, bias='single', batch_first=True, return_sequences=False)"


def test_what_is_alike_is_one_layer() -> None:
    def made(*layers: dict[str, Any]) -> Any:
        found, inputs = [], I
        for layer in layers:
            kind, units = layer["class_name"], layer["config"]["units"]
            after = kind == "GRU" and layer["config"].get("reset_after", True)
            found += arrays(
                kind, inputs, units, biases=(2 if after else 1) if layer["config"].get("use_bias", True) else 0
            )
            inputs = units
        return torchrnn.from_keras(found, row(config("InputLayer"), *layers))

    more: dict[str, Any] = {"return_sequences": True}
    assert repr(made(config(**more), config(units=5, **more))).startswith("LSTM(3, [4, 5], num_layers=2, bias='single'")
    assert made(config("GRU", **more), config("GRU")).num_layers == 2
    for options in ({"activation": "relu"}, {"use_bias": False}, {"reset_after": False}):
        assert len(made(config("GRU", **more), config("GRU", **options))) == 2
    assert len(made(config(**more), config("SimpleRNN", **more), config("SimpleRNN", units=5))) == 2


def test_another_dtype_is_another_layer() -> None:
    found = LSTM + arrays("LSTM", H, dtype="float64")
    assert isinstance(torchrnn.from_keras(found, row(config(return_sequences=True), config())), Stack)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a configuration."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in places(v, (*path, k)))]


WHOLE = row(config("InputLayer"), both("GRU", return_sequences=True), config("GRU", reset_after=False, dropout=0.0))
WHOLE["config"]["layers"][1]["config"]["layer"]["config"]["return_sequences"] = True
WEIGHTS = GRU * 2 + arrays("GRU", 2 * H)
JUNK = (
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=6) | st.lists(st.none(), max_size=2)
)
JUNK |= st.dictionaries(
    st.sampled_from(["class_name", "config", "units", "layers"]), st.integers() | st.text(), max_size=3
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(places(WHOLE)[1:]), JUNK, st.booleans())
def test_a_configuration_with_junk_in_it_is_a_layer_or_a_message(path: tuple[Any, ...], junk: Any, gone: bool) -> None:
    changed = copy.deepcopy(WHOLE)
    at = changed
    for key in path[:-1]:
        at = at[key]
    if gone:
        del at[path[-1]]
    else:
        at[path[-1]] = junk
    try:
        made = torchrnn.from_keras(WEIGHTS, changed)
    except ValueError as error:
        assert len(str(error)) > 10  # noqa: PT017  # whichever it is
        return
    except UserWarning as warning:
        assert "not kept" in str(warning) or "return_state" in str(warning)  # noqa: PT017
        return
    plain = torchrnn.from_keras(WEIGHTS, WHOLE)
    for a, b in zip(made.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
