"""Keras's layers beside ours, in processes of their own on its torch and jax backends; its files, read without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchrnn
from torchrnn.keras import Stack

HERE = Path(__file__).parent
NOT_KEPT = [
    "old: dropout=0.2 acts in training only and is not kept",
    "old: recurrent_dropout=0.3 acts in training only and is not kept",
    "old: stateful=True is not kept, each call begins with zeros: give the last state as hx, or use torchrnn.Stream",
    "old: return_state=True and return_sequences=False: ours gives (output, state) with all outputs; Keras's first "
    "result is torchrnn.last(output)",
    "LSTM: dropout=0.1 acts in training only and is not kept",
    "LSTM: output_dropout=0.2 acts in training only and is not kept",
]
MESSAGES = {
    "unbuilt": "ValueError: source 'fresh' has no weights yet: call it once, or build it with build((None, None, I))",
    "subclass": "ValueError: Special is a class of __main__, not of Keras",
    "a cell": "LSTMCell is none of SimpleRNN, LSTM, GRU, Bidirectional: load the layer LSTM, GRU or SimpleRNN",
    "its own function": "activation must be one of 'tanh', 'relu', 'sigmoid', 'linear', 'softsign', 'elu' here, got {",
    "no such layer": "ValueError: layer must be the name of one of the layers, ['one', ",
    "Dense": "ValueError: top: Dense is none of SimpleRNN, LSTM, GRU, Bidirectional: take the recurrent layers",
    "a config too": "ValueError: a Keras layer has a config of its own: leave config out",
    "a projection": "ValueError: Keras's LSTM has no proj_size=2",
    "several": "ValueError: Keras's GRU has no cell_clip=1.0, residual=True, learn_initial_state=True",
    "torch's": "TypeError: layer must be an RNN, LSTM or GRU of torchrnn, or a Stack of them, got LSTM",
    "lazy": "ValueError: LSTM does not know its input size yet: call it once first",
}


def on(backend: str, folder: Path) -> Any:
    """What a process with Keras has found, and the folder with its files."""
    # JAX_ENABLE_X64: without it jax has no float64
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "KERAS_HOME": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "keras_side.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text()), folder


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on("torch", tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on("jax", tmp_path_factory.mktemp("jax"))


@pytest.fixture(params=["beside", "on_jax"], ids=["torch", "jax"])
def each(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_a_model_trained_in_keras_predicts_the_same_here_and_back(each: Any) -> None:
    found = each[0]["trained"]
    assert found["predictions"] <= 1e-5
    assert found["weights back"] == 0
    assert found["predictions back"] == 0
    assert found["trained on and back"] <= 1e-5


def test_results_gradients_masks_and_states_agree(each: Any) -> None:
    cases = each[0]["cases"]
    assert len(cases) in (5, 27)
    for name, found in cases.items():
        assert {"results", "gradients", "masked", "weights back", "results back"} <= set(found), name
        assert ("from given states" in found) is ("states" in name), name
        assert found.pop("layers") == (2 if name in ("two kinds", "two options", "within each other") else 1), name
        assert found.pop("weights back") == 0, name
        for what, difference in found.items():
            assert difference <= 1e-12, (name, what)


def test_layers_built_here_go_to_keras(beside: Any) -> None:
    assert len(beside[0]["built here"]) == 9
    for name, difference in beside[0]["built here"].items():
        assert difference <= 1e-12, name


def test_what_is_not_kept_is_told_where_it_was_called(beside: Any) -> None:
    assert beside[0]["notes"] == [f"keras_side.py: {note}" for note in NOT_KEPT]


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(beside: Any, name: str) -> None:
    assert MESSAGES[name] in beside[0]["messages"][name]


def test_the_guide_runs(beside: Any) -> None:
    assert beside[0]["blocks of the guide"] == 3


def test_a_file_is_read_without_keras(each: Any) -> None:
    folder = each[1]
    with np.load(folder / "model.npz") as saved:
        x, y = torch.tensor(saved["x"]), saved["y"]
    models = [
        torchrnn.from_keras(folder / "model.keras"),
        torchrnn.from_keras(str(folder / "model.weights.h5"), (folder / "model.json").read_text()),
        torchrnn.from_keras(folder / "model.weights.h5", config=json.loads((folder / "model.json").read_text())),
    ]
    for model in models:
        assert isinstance(model, Stack)
        assert all(p.is_contiguous() and p.requires_grad for p in model.parameters())
        with torch.no_grad():
            np.testing.assert_allclose(model(x), y, rtol=0, atol=1e-5)
    code = "import sys, torchrnn; torchrnn.from_keras(sys.argv[1]); assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(folder / "model.keras")], check=True)


def test_one_layer_of_a_file(beside: Any) -> None:
    file = beside[1] / "functional.keras"
    with np.load(beside[1] / "functional.npz") as saved:
        x, y = torch.tensor(saved["x"]), saved["y"]
    with pytest.warns(UserWarning, match="above: dropout=0.1 acts in training only"):
        layer = torchrnn.from_keras(file, layer="above")
    with torch.no_grad():
        np.testing.assert_allclose(layer(x), y, rtol=0, atol=1e-6)
    assert torchrnn.from_keras(file, layer="below").return_sequences
    with pytest.raises(
        ValueError, match=r"functional.keras': a Functional model is no row .* layer= one of \['below', 'above'\]"
    ):
        torchrnn.from_keras(file)


def test_weights_in_bfloat16(beside: Any) -> None:
    folder = beside[1]
    layer = torchrnn.from_keras(folder / "small.weights.h5", (folder / "small.json").read_text())
    assert layer.weight_ih_l0.dtype == torch.bfloat16
    with np.load(folder / "small.npz") as saved:
        np.testing.assert_array_equal(layer.weight_hh_l0.detach().float().T, saved["1"])


def test_the_names_are_there_before_anything_is_imported_for_them() -> None:
    code = (
        "import sys, torchrnn; print('from_keras' in dir(torchrnn), 'torchrnn.keras' in sys.modules);"
        "torchrnn.from_keras, torchrnn.to_keras; print('torchrnn.keras' in sys.modules, 'h5py' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True", "False"]
    with pytest.raises(AttributeError, match="module 'torchrnn' has no attribute 'from_karas'"):
        torchrnn.from_karas  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("package", "call", "match"),
    [
        (
            "h5py",
            "torchrnn.from_keras(sys.argv[1])",
            "reading a file of Keras needs h5py: pip install 'torchrnn[keras]'",
        ),
        ("keras", "torchrnn.to_keras(torchrnn.GRU(2, 3))", "to_keras needs Keras 3 and one of its backends"),
    ],
)
def test_what_to_install(tmp_path: Path, package: str, call: str, match: str) -> None:
    (tmp_path / "x.keras").write_bytes(b"")
    code = (
        f"import sys; sys.modules[{package!r}] = None; import torchrnn\n"
        f"try: {call}\nexcept ImportError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.keras")]
    assert match in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_stack_runs_its_layers_in_a_row() -> None:
    below, above = torchrnn.LSTM(3, 5, bidirectional=True, batch_first=True), torchrnn.GRU(10, 4, batch_first=True)
    x, lengths = torch.randn(2, 7, 3), [7, 2]
    stack = Stack(below, above)
    expected, _ = above(below(x, lengths=lengths)[0], lengths=lengths)
    assert torch.equal(stack(x, lengths=lengths), expected)
    assert next(iter(stack.state_dict())) == "0.weight_ih_l0"


def test_what_a_stack_refuses() -> None:
    with pytest.raises(ValueError, match="needs at least one layer"):
        Stack()
    with pytest.raises(TypeError, match="must be torchrnn layers, got Linear as layer 1"):
        Stack(torchrnn.GRU(3, 4), torch.nn.Linear(4, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer 0 of a Stack has return_sequences=False, and layer 1"):
        Stack(torchrnn.GRU(3, 4, return_sequences=False), torchrnn.GRU(4, 4))
