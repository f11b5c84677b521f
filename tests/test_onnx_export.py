"""What torchrnn.onnx.export checks, refuses and leaves alone."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import onnx
import pytest
import torch
from fused import needs_kernels
from onnx_models import Called, H, I, Session, compare
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.utils._pytree import tree_leaves

import torchrnn
import torchrnn.onnx
from torchrnn import _extension
from torchrnn.check import ArgumentError
from torchrnn.onnx import checking, said

pytestmark = needs_kernels
export, x = torchrnn.onnx.export, torch.zeros(5, 2, I)


class Head(nn.Module):
    """A layer between others, with two inputs, one of them a list, and a result by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(7, I), torchrnn.GRU(I, H, batch_first=True), nn.Linear(H, 2)

    def forward(self, tokens: list[Tensor], lengths: Tensor) -> dict[str, Tensor]:
        y, h = self.rnn(self.embed(tokens[0]), lengths=lengths)
        return {"logits": self.out(y), "last": h[-1]}


def test_the_check_runs_at_the_sizes_given_and_at_two_others(monkeypatch: Any, tmp_path: Any) -> None:
    seen = []
    agree = checking._agree

    def watch(program: Any, results: Any, expected: Any, inputs: Any, tolerance: float) -> None:
        seen.append([tuple(t.shape) for t in inputs])
        assert inputs[0].max() < 7  # tokens stay tokens
        assert (inputs[1] <= inputs[0].shape[1]).all()  # and lengths within T
        agree(program, results, expected, inputs, tolerance)

    monkeypatch.setattr(checking, "_agree", watch)
    model, n = Head(), torch.tensor([4, 1])
    tokens = torch.randint(7, (2, 4))
    path = tmp_path / "model.onnx"
    export(model, ([tokens],), path, kwargs={"lengths": n}, dynamic_shapes=([{0: "B", 1: "T"}], {0: "B"}))
    assert path.exists()
    assert seen[0] == [(2, 4), (2,)]
    assert len({tuple(s) for s in seen}) == 3
    assert len({s[0][0] for s in seen}) == len({s[0][1] for s in seen}) == 3
    assert all(tokens[0] == n[0] for tokens, n in seen)


def test_sizes_stay_within_their_bounds(monkeypatch: Any) -> None:
    seen = []
    monkeypatch.setattr(checking, "_agree", lambda *args: seen.append(tuple(args[3][0].shape)))
    dim = torch.export.Dim("B", max=4)
    export(Called(torchrnn.RNN(I, H)), (x,), dynamic_shapes={"x": {1: dim}})
    assert seen == [(5, 2, I), (5, 3, I), (5, 4, I)]


def wrong(at: int) -> Any:
    """A translation of relu that is right only for tensors of a certain number of rows."""
    op = import_module("onnxscript").opset18

    def relu(self: Any) -> Any:
        rows = op.Cast(op.Equal(op.Shape(self, start=0, end=1), [at]), to=1)
        return op.Mul(op.Relu(self), rows)

    return {torch.ops.aten.relu.default: relu}


def test_a_graph_that_is_wrong_is_not_written(tmp_path: Any) -> None:
    model = nn.Sequential(torchrnn.RNN(I, H, return_sequences=False), nn.ReLU())
    example, path = torch.randn(5, 2, I), tmp_path / "model.onnx"
    shapes = ({1: "B"},)
    with pytest.raises(RuntimeError, match=r"with inputs \(5, 2, 3\) onnxruntime's relu is off by"):
        export(model, (example,), path, dynamic_shapes=shapes, custom_translation_table=wrong(7))
    with pytest.raises(RuntimeError, match=r"with inputs \(5, 3, 3\) onnxruntime's relu is off by"):
        export(model, (example,), path, dynamic_shapes=shapes, custom_translation_table=wrong(2))
    assert not path.exists()
    export(model, (example,), path, dynamic_shapes=shapes, custom_translation_table=wrong(2), check=False)
    assert path.exists()


class Packs(nn.Module):
    """A model that packs its input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torchrnn.GRU(I, H)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]


class Lists(nn.Module):
    """A model that makes a list of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torchrnn.GRU(I, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn([x[:2, 0], x[:, 1]])[1]


def test_what_cannot_be_in_a_graph_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"a PackedSequence is the input of a layer, .*lengths="):
        export(Packs(), (x, torch.tensor([5, 2])))
    with pytest.raises(ArgumentError, match=r"a PackedSequence is the input of a layer, .*lengths="):
        export(Called(torchrnn.GRU(I, H)), (pack_sequence([x[:, 0], x[:2, 0]]),))
    with pytest.raises(ArgumentError, match=r"a list of sequences or a nested tensor cannot .*lengths="):
        export(Lists(), (x,))


def test_models_that_cannot_be_exported() -> None:
    model = nn.Sequential(torchrnn.GRU(I, H))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        export(test_models_that_cannot_be_exported, (x,))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"0 \(GRU\) must be of float32 .* got torch.bfloat16: .*float\(\)"):
        export(model.bfloat16(), (x,))
    with pytest.raises(ArgumentError, match=r"0 \(GRU\) must be on the CPU, got meta: export model.cpu\(\)"):
        export(nn.Sequential(torchrnn.GRU(I, H, device="meta")), (x,))
    with pytest.raises(ArgumentError, match=r"the model \(LSTMCell\) has no input size yet: call the model once"):
        export(torchrnn.LSTMCell(None, H), (x,))


def test_without_the_library(monkeypatch: Any) -> None:
    monkeypatch.setattr(_extension, "missing", lambda: "torchrnn was built without its own kernels")
    with pytest.raises(RuntimeError, match=r"operators of torchrnn's library, .*built without its own kernels"):
        export(torchrnn.GRU(I, H), (x,))


def test_without_packages(monkeypatch: Any) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(said, "import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package onnx: pip install 'torchrnn\[onnx\]'"):
        export(torchrnn.GRU(I, H), (x,))
    with pytest.raises(ModuleNotFoundError, match=r"needs the package onnx: pip install 'torchrnn\[onnx\]'"):
        torchrnn.from_onnx("model.onnx")
    with pytest.raises(ModuleNotFoundError, match="needs the package onnxruntime"):
        checking.wanted(True)


def test_without_onnxruntime_a_warning_says_that_nothing_is_checked(monkeypatch: Any) -> None:
    monkeypatch.setattr(checking, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="not checked, since onnxruntime is not installed"):
        assert checking.wanted(None) is False
    assert checking.wanted(False) is False


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(torchrnn.LSTM(I, H, 2, dropout=0.5), nn.Identity())
    model[1].eval()
    state = torch.get_rng_state()
    program = export(model[0], (x,))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [True, True, False]
    assert not model[0]._forward_pre_hooks
    compare(Session(program)(x), (lambda y, s: (y, *s))(*model[0].eval()(x)))


def test_arguments_that_are_no_tensors() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torchrnn.RNN(I, H)

        def forward(self, x: Tensor, scale: float, name: str) -> Tensor:
            return self.rnn(x * scale)[0]

    model, example = Scaled(), torch.randn(5, 2, I)
    with pytest.warns(UserWarning, match="dynamic axes will not be renamed"):  # torch loses the names of dimensions
        program = export(model, (example, 2.0, "a"), dynamic_shapes=({0: "T"}, None, None))
    compare(Session(program)(example), (model(example, 2.0, "a"),))


def test_the_exporter_that_traces_takes_a_bare_layer(tmp_path: Any) -> None:
    """It gives all arguments by position, which a layer's are not."""
    axes = {"x": {0: "T", 1: "B"}}
    for layer in (torchrnn.GRU(3, 4, bidirectional=True), torchrnn.LSTM(3, 4), torchrnn.RNN(3, 4)):
        path = tmp_path / "layer.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is old
            given: Any = {"dynamo": False, "input_names": ["x"], "dynamic_axes": axes}
            torch.onnx.export(layer.eval(), (torch.randn(5, 2, 3),), path, **given)
        x = torch.randn(9, 4, 3)
        compare(Session(onnx.load(path))(x), tree_leaves(layer(x)))


class Lengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torchrnn.LSTM(3, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.layer(x, lengths=lengths)


def test_the_exporter_that_traces_gets_no_steps_of_one_length(tmp_path: Any) -> None:
    x = torch.randn(5, 2, 3)
    for model, args in ((torchrnn.GRU(3, 4, reset_after=False), (x,)), (Lengths(), (x, torch.tensor([5, 2])))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(
                ArgumentError, match=r"by torch.onnx.export\(dynamo=False\), whose file .* use torchrnn"
            ):
                torch.onnx.export(model.eval(), args, tmp_path / "layer.onnx", dynamo=False)
