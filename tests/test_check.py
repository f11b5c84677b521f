"""Common mistakes: each message names the argument, what was expected, what came, and the repair."""

import warnings
from typing import Any

import pytest
import torch

import torchrnn
from torchrnn import ArgumentError

LSTM, GRU = torchrnn.LSTM(3, 5), torchrnn.GRU(3, 5)
DEEP = torchrnn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True)
X = torch.randn(4, 2, 3)  # T, B, I
H = torch.zeros(1, 2, 5)
MASK = torch.ones(4, 2, dtype=torch.bool)


def zeros(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(shape), torch.zeros(shape)


def strided() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this layout is a prototype
        return torch.nested.nested_tensor([X[:, 0], X[:2, 1]])


def _without(module: torch.nn.Module, name: str) -> torch.nn.Module:
    delattr(module, name)
    return module


def _with(module: torch.nn.Module, name: str, weight: torch.Tensor) -> torch.nn.Module:
    setattr(module, name, torch.nn.Parameter(weight))
    return module


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "a Tensor state for an LSTM": (
        lambda: LSTM(X, H),
        TypeError,
        "hx must be a tuple (h, c), got one Tensor (1, 2, 5): LSTM has 2 states; pass (h_0, c_0)",
    ),
    "a tuple for a GRU": (
        lambda: GRU(X, (H, H)),
        TypeError,
        "hx must be one Tensor, got a tuple: GRU has the one state h",
    ),
    "three states": (lambda: LSTM(X, (H, H, H)), TypeError, "hx must be a tuple (h, c) of 2 Tensors, got 3 items"),
    "no Tensor in the tuple": (lambda: LSTM(X, (H, None)), TypeError, "hx[1] must be a Tensor, got NoneType"),
    "a 2-D state": (
        lambda: LSTM(X, zeros(2, 5)),
        ArgumentError,
        "hx[0] must be (L·D, B, H) = (1, 2, 5), got (2, 5): the dimension of layers is missing; use hx[0].unsqueeze(0)",
    ),
    "a float64 state": (
        lambda: LSTM(X, (H, H.double())),
        ArgumentError,
        "hx[1] must have the dtype of the input, torch.float32, got torch.float64: use hx[1].to(torch.float32)",
    ),
    "an empty list": (
        lambda: GRU([]),
        ArgumentError,
        "at least one, got an empty list: an empty batch is torch.zeros(T, 0",
    ),
    "a list of numbers": (
        lambda: GRU([1.0, 2.0, 3.0]),
        TypeError,
        "input must be a Tensor or a list of Tensors (T_i, I), got a list with float at 0: use torch.tensor(input)",
    ),
    "a list of lists": (
        lambda: GRU([[1.0, 2.0, 3.0]]),
        TypeError,
        "got a list with list at 0: use torch.tensor(input)",
    ),
    "lengths of another shape": (
        lambda: GRU(X, lengths=[[1, 2]]),
        ArgumentError,
        "lengths must be (B,) = (2,), got (1, 2): one length for each row of the batch",
    ),
    "the result of an LSTM": (
        lambda: LSTM(LSTM(X)),
        TypeError,
        "got tuple: of another layer's results take the first, output, states = layer(x)",
    ),
    "the result of an LSTM for one sequence": (
        lambda: torchrnn.LSTM(5, 5)(LSTM(X[:, 0])),
        TypeError,
        "got tuple: of another layer's results take the first, output, states = layer(x)",
    ),
    "a list of batches": (
        lambda: GRU([X, X]),
        ArgumentError,
        "input[0] must be one sequence (T_0, I), got (4, 2, 3): a list holds sequences without a batch dimension",
    ),
    "a list with other features": (
        lambda: GRU([X[:, 0], torch.zeros(2, 4)]),
        ArgumentError,
        "input[1] must be (T_1, I) with I = 3, got (2, 4)",
    ),
    "a list of two dtypes": (
        lambda: GRU([X[:, 0], X[:, 0].double()]),
        ArgumentError,
        "Convert input: input[1].to(torch.float32)",
    ),
    "a list of arrays": (
        lambda: GRU([X[:, 0].numpy()]),
        TypeError,
        "got a list with ndarray at 0: use [torch.from_numpy(x) for x in input]",
    ),
    "complex numbers": (
        lambda: GRU(X.to(torch.complex64)),
        ArgumentError,
        "Convert input: torch.view_as_real(input).flatten(-2), or convert model: model.to(torch.complex64)",
    ),
    "a sparse input": (
        lambda: GRU(X.to_sparse()),
        ArgumentError,
        "input must be a dense Tensor, got torch.sparse_coo: use input.to_dense()",
    ),
    "a sparse state": (
        lambda: GRU(X, H.to_sparse()),
        ArgumentError,
        "hx must be a dense Tensor, got torch.sparse_coo: use hx.to_dense()",
    ),
    "a sparse state of a cell": (
        lambda: torchrnn.GRUCell(3, 5)(X[0], H[0].to_sparse()),
        ArgumentError,
        "hx must be a dense Tensor, got torch.sparse_coo: use hx.to_dense()",
    ),
    "sparse lengths": (
        lambda: GRU(X, lengths=torch.tensor([4, 2]).to_sparse()),
        ArgumentError,
        "lengths must be a dense Tensor, got torch.sparse_coo: use lengths.to_dense()",
    ),
    "lengths without numbers": (
        lambda: GRU(X, lengths=torch.tensor([4, 2], device="meta")),
        ArgumentError,
        "lengths must have numbers, got a Tensor on meta: make it on the CPU",
    ),
    "a sparse mask": (
        lambda: GRU(X, mask=torch.ones(4, 2).to_sparse().bool()),
        ArgumentError,
        "mask must be a dense Tensor, got torch.sparse_coo: use mask.to_dense()",
    ),
    "an input without numbers": (
        lambda: GRU(X.to("meta")),
        ArgumentError,
        "got meta: a tensor on meta has no numbers; for shapes alone use model.to('meta')",
    ),
    "an array as input": (lambda: GRU(X.numpy()), TypeError, "got ndarray: use torch.from_numpy(input)"),
    "an array as state": (
        lambda: GRU(X, H.numpy()),
        TypeError,
        "hx must be a Tensor, got ndarray: use torch.from_numpy",
    ),
    "a number as state": (lambda: GRU(X, 0), TypeError, "hx must be a Tensor, got int"),
    "one length for all": (lambda: GRU(X, lengths=5), TypeError, "lengths must be (B,) = (2,) integers, a Tensor or a"),
    "lengths with holes": (lambda: GRU(X, lengths=[None, 2]), TypeError, "lengths must be (B,) = (2,) integers"),
    "a length without a dimension": (lambda: GRU(X, lengths=torch.tensor(3)), TypeError, "lengths must be (B,) = (2,)"),
    "a deleted weight": (
        lambda: _without(torchrnn.GRU(3, 5), "weight_hh_l0")(X),
        RuntimeError,
        "GRU lacks its weight weight_hh_l0: was it deleted?",
    ),
    "a deleted weight of a cell": (
        lambda: _without(torchrnn.GRUCell(3, 5), "weight_hh")(X[0]),
        RuntimeError,
        "GRUCell lacks its weight weight_hh",
    ),
    "a weight of another shape": (
        lambda: _with(torchrnn.GRU(3, 5), "weight_hh_l0", torch.randn(4, 4))(X),
        RuntimeError,
        "weight",
    ),
    "a batch-first state": (
        lambda: DEEP(torch.randn(3, 4, 3), zeros(3, 4, 5)),
        ArgumentError,
        "hx[0] must be (L·D, B, H) = (4, 3, 5), got (3, 4, 5): batch_first does not move the batch of hx; "
        "use hx[0].transpose(0, 1)",
    ),
    "a batch-first state without batch_first": (
        lambda: GRU(X, torch.zeros(2, 1, 5)),
        ArgumentError,
        "got (2, 1, 5): the batch comes second; use hx.transpose(0, 1)",
    ),
    "a wrong input size": (
        lambda: GRU(torch.randn(4, 2, 7)),
        ArgumentError,
        "input must be (T, B, I) with I = 3, got (4, 2, 7)",
    ),
    "features not last": (
        lambda: GRU(torch.randn(4, 3, 2)),
        ArgumentError,
        "got (4, 3, 2); dimension 1 has size 3: move it last with input.transpose(1, -1)",
    ),
    "a wrong number of layers": (
        lambda: DEEP(torch.randn(3, 4, 3), zeros(2, 3, 5)),
        ArgumentError,
        "hx[0] must be (L·D, B, H) = (4, 3, 5), got (2, 3, 5): L·D is num_layers · directions = 2 · 2",
    ),
    "a wrong hidden size": (
        lambda: GRU(X, torch.zeros(1, 2, 6)),
        ArgumentError,
        "hx must be (L·D, B, H) = (1, 2, 5), got (1, 2, 6): H is the layer's hidden_size",
    ),
    "a projected state of full size": (
        lambda: torchrnn.LSTM(3, 5, proj_size=2)(X, zeros(1, 2, 5)),
        ArgumentError,
        "hx[0] must be (L·D, B, H) = (1, 2, 2), got (1, 2, 5): H is the layer's proj_size",
    ),
    "a wrong batch": (
        lambda: GRU(X, torch.zeros(1, 3, 5)),
        ArgumentError,
        "hx must be (L·D, B, H) = (1, 2, 5), got (1, 3, 5): input has batch size 2",
    ),
    "tokens of a batch": (
        lambda: GRU(torch.zeros(4, 2, dtype=torch.long)),
        ArgumentError,
        "classes go through nn.Embedding",
    ),
    "a strided nested tensor": (
        lambda: GRU(strided()),
        TypeError,
        "got one of the strided layout: use torch.nested.nested_tensor(list, layout=torch.jagged)",
    ),
    "a nested tensor with other features": (
        lambda: GRU(torch.nested.nested_tensor([X[:, 0, :2]], layout=torch.jagged)),
        ArgumentError,
        "input must be (B, j, I) with I = 3",
    ),
    "a nested tensor of matrices": (
        lambda: GRU(torch.nested.nested_tensor([X, X], layout=torch.jagged)),
        ArgumentError,
        "a nested input must be (B, j, I), got 4 dimensions",
    ),
    "a nested tensor, transposed": (
        lambda: GRU(torch.nested.nested_tensor([X[:, 0]], layout=torch.jagged).transpose(1, 2)),
        ArgumentError,
        "got 3 dimensions with the ragged one at 2",
    ),
    "an integer input": (
        lambda: GRU(torch.zeros(4, 2, 3, dtype=torch.long)),
        ArgumentError,
        "RNN input dtype (torch.int64) does not match weight dtype (torch.float32): numbers that stand for tokens or "
        "classes go through nn.Embedding",
    ),
    "tokens as input": (
        lambda: GRU(torch.zeros(4, 3, dtype=torch.long)),
        ArgumentError,
        "nn.Embedding",
    ),
    "a float64 input": (
        lambda: GRU(X.double()),
        ArgumentError,
        "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)",
    ),
    "an input on another device": (
        lambda: torchrnn.GRU(3, 5, device="meta")(X),
        ArgumentError,
        "input must be on the device of the weights, meta, got cpu: use input.to('meta') or move the model",
    ),
    "a state on another device": (
        lambda: LSTM(X, (H, H.to("meta"))),
        ArgumentError,
        "hx[1] must be on the device of the input, cpu, got meta: use hx[1].to('cpu')",
    ),
    "one dimension": (
        lambda: GRU(torch.randn(3)),
        ArgumentError,
        "GRU: Expected input to be 2D or 3D, got 1D: input must be (T, B, I) or unbatched (T, I), got (3,)",
    ),
    "four dimensions and other features": (
        lambda: DEEP(torch.randn(1, 4, 2, 5)),
        ArgumentError,
        "input must be (B1, B2, T, I) with I = 3, got (1, 4, 2, 5)",
    ),
    "a state for another batch of several dimensions": (
        lambda: GRU(torch.randn(4, 2, 6, 3), torch.zeros(1, 12, 5)),
        ArgumentError,
        "hx must be (L·D, B1, B2, H) = (1, 2, 6, 5), got (1, 12, 5)",
    ),
    "lengths for several batch dimensions": (
        lambda: GRU(torch.randn(4, 2, 6, 3), lengths=[1] * 12),
        ArgumentError,
        "lengths must be (B1, B2) = (2, 6), got (12,)",
    ),
    "lengths and a mask": (
        lambda: GRU(X, lengths=[4, 2], mask=MASK),
        ArgumentError,
        "lengths and mask do not go together: give one of them",
    ),
    "a mask of numbers": (
        lambda: GRU(X, mask=MASK.float()),
        TypeError,
        "mask must be a bool Tensor (T, B) = (4, 2), got torch.float32: if its numbers are 0 and 1, use mask.bool()",
    ),
    "resets of whole numbers": (lambda: GRU(X, reset=MASK.long()), TypeError, "use reset.bool()"),
    "a mask as a list": (
        lambda: GRU(X, mask=MASK.tolist()),
        TypeError,
        "mask must be a bool Tensor (T, B) = (4, 2), got list: use torch.as_tensor(mask, dtype=torch.bool)",
    ),
    "a mask for another T": (
        lambda: GRU(X, mask=MASK[:3]),
        ArgumentError,
        "mask must be (T, B) = (4, 2), got (3, 2): one flag for each step of each row",
    ),
    "a mask with the batch first": (
        lambda: GRU(X, mask=MASK.t()),
        ArgumentError,
        "mask must be (T, B) = (4, 2), got (2, 4): the time comes first; use mask.t()",
    ),
    "a mask with the time first": (
        lambda: DEEP(X.transpose(0, 1), mask=MASK),
        ArgumentError,
        "mask must be (B, T) = (2, 4), got (4, 2): the layer is batch_first, so the batch comes first here too; use",
    ),
    "a mask with features": (
        lambda: GRU(X, mask=X > 0),
        ArgumentError,
        "got (4, 2, 3): one flag for each step, not for each feature; use mask[..., 0] if they are all alike",
    ),
    "a mask with a dimension too many": (
        lambda: GRU(X, reset=MASK.unsqueeze(2)),
        ArgumentError,
        "use reset.squeeze(-1)",
    ),
    "a mask for one sequence": (
        lambda: GRU(X[:, 0], mask=MASK),
        ArgumentError,
        "mask must be (T,) = (4,), got (4, 2)",
    ),
    "a mask for several batch dimensions": (
        lambda: DEEP(torch.randn(5, 6, 4, 3), mask=torch.ones(4, 5, 6) > 0),
        ArgumentError,
        "mask must be (B1, B2, T) = (5, 6, 4), got (4, 5, 6)",
    ),
    "an unknown reset_to": (
        lambda: GRU(X, reset_to="zeros"),
        ValueError,
        "reset_to must be 'zero' or 'initial', got 'zeros'",
    ),
    "a mask with a packed sequence": (
        lambda: GRU(torch.nn.utils.rnn.pack_sequence([X[:, 0]]), mask=MASK[:, :1]),
        ArgumentError,
        "mask goes with a padded batch (T, B, I); input is a PackedSequence, which carries its own lengths",
    ),
    "resets with a packed sequence": (
        lambda: DEEP(torch.nn.utils.rnn.pack_sequence([X[:, 0]]), reset=MASK[:, :1]),
        ArgumentError,
        "reset goes with a padded batch (B, T, I); input is a PackedSequence",
    ),
    "lengths with a list": (
        lambda: GRU([X[:, 0]], lengths=[2]),
        ArgumentError,
        "lengths goes with a padded batch (T, B, I); input is a list of sequences, each of its own length",
    ),
    "resets with a nested tensor": (
        lambda: GRU(torch.nested.nested_tensor([X[:, 0]], layout=torch.jagged), reset=MASK[:, :1]),
        ArgumentError,
        "reset goes with a padded batch (T, B, I); input is a nested tensor, which carries its own lengths",
    ),
    "a batched state for unbatched input": (
        lambda: GRU(X[:, 0], H[:, :1]),
        ArgumentError,
        "hx must be (L·D, H) = (1, 5), got (1, 1, 5)",
    ),
    "a length longer than T": (
        lambda: GRU(X, lengths=[4, 7]),
        ArgumentError,
        "lengths must be between 0 and T = 4, got lengths[1] = 7",
    ),
    "a negative length": (lambda: GRU(X, lengths=[-1, 2]), ArgumentError, "got lengths[0] = -1"),
    "too many lengths": (lambda: GRU(X, lengths=[1, 2, 3]), ArgumentError, "lengths must be (B,) = (2,), got (3,)"),
    "lengths as floats": (lambda: GRU(X, lengths=[1.0, 2.0]), TypeError, "lengths must be integers, got torch.float32"),
    "lengths as floats in a list": (
        lambda: GRU(X, lengths=[1.0, 2.0]),
        TypeError,
        "use torch.as_tensor(lengths).long()",
    ),
    "lengths as floats in a Tensor": (
        lambda: GRU(X, lengths=torch.tensor([1.0, 2.0])),
        TypeError,
        "got torch.float32: use lengths.long()",
    ),
    "a truth value among lengths": (
        lambda: GRU(X, lengths=[2, True]),
        TypeError,
        "lengths must be integers, got lengths[1] = True: they count steps; flags are for mask=",
    ),
    "truth values as lengths": (
        lambda: GRU(X, lengths=torch.tensor([True, False])),
        TypeError,
        "lengths must be integers, got torch.bool: they count steps; flags are for mask=",
    ),
    "a place to reset to and no reset": (
        lambda: GRU(X, reset_to="initial"),
        ValueError,
        "reset_to='initial' says what a reset sets the state to, but there is no reset=: give it, or leave",
    ),
    "a word for return_all": (
        lambda: GRU(X, return_all="yes"),  # type: ignore[arg-type]
        TypeError,
        "return_all should be of type bool, got: str",
    ),
    "a number of directions": (
        lambda: torchrnn.GRU(3, 5, bidirectional=2),  # type: ignore[arg-type]
        TypeError,
        "bidirectional should be of type bool, got: int",
    ),
    "a word for batch_first": (
        lambda: torchrnn.GRU(3, 5, batch_first="no"),  # type: ignore[arg-type]
        TypeError,
        "batch_first should be of type bool, got: str",
    ),
    "a misspelt keyword": (
        lambda: torchrnn.GRU(3, 5, merge_mod="sum"),
        TypeError,
        "GRU() got an unexpected keyword argument 'merge_mod': did you mean 'merge_mode'?",
    ),
    "a misspelt keyword of an LSTM": (
        lambda: torchrnn.LSTM(3, 5, bidirectionnal=True),  # type: ignore[call-arg]
        TypeError,
        "LSTM() got an unexpected keyword argument 'bidirectionnal': did you mean 'bidirectional'?",
    ),
    "an unknown keyword": (
        lambda: torchrnn.RNN(3, 5, qqq=True),
        TypeError,
        "RNN() got an unexpected keyword argument 'qqq'; it takes input_size, hidden_size, num_layers",
    ),
    "explain without an input": (
        lambda: torchrnn.explain(GRU),
        TypeError,
        "what the GRU would be called with, as in explain(layer, x): missing a required argument: 'input'",
    ),
    "explain with a misspelt keyword": (
        lambda: torchrnn.explain(GRU, X, length=[1, 2]),
        TypeError,
        "unexpected keyword argument 'length'; a call of GRU takes input, hx, lengths, mask",
    ),
    "lengths with one sequence": (lambda: GRU(X[:, 0], lengths=[2]), ArgumentError, "lengths goes with a padded batch"),
    "lengths with a packed sequence": (
        lambda: GRU(torch.nn.utils.rnn.pack_sequence([X[:, 0]]), lengths=[2]),
        ArgumentError,
        "input is a PackedSequence, which carries its own",
    ),
    "packed numbers without features": (
        lambda: GRU(torch.nn.utils.rnn.pack_sequence([torch.randn(4)])),
        ArgumentError,
        "input.data of a PackedSequence must be (N, I), got (4,)",
    ),
    "packed with a length greater than T": (
        lambda: GRU(torch.nn.utils.rnn.pack_padded_sequence(X, [7, 4])),
        ArgumentError,
        "batch_sizes add up to, N = 11, got (8, 3): was a length greater than T when it was packed?",
    ),
    "a sequence for a cell": (
        lambda: torchrnn.GRUCell(3, 5)(X),
        ArgumentError,
        "GRUCell: Expected input to be 1D or 2D, got 3D instead: a cell takes one step (B, I)",
    ),
    "a list for a cell": (lambda: torchrnn.GRUCell(3, 5)([1.0]), TypeError, "input must be a Tensor (B, I), got list"),
    "a layer's state for a cell": (
        lambda: torchrnn.LSTMCell(3, 5)(X[0], (H, H)),
        ArgumentError,
        "Expected hx[0] to be 1D or 2D, got 3D instead: a cell's state is (B, H)",
    ),
    "an unbatched state for a cell's batch": (
        lambda: torchrnn.RNNCell(3, 5)(X[0], torch.zeros(5)),
        ArgumentError,
        "hx must be (B, H) = (2, 5), got (5,)",
    ),
    "a wrong state for a cell": (
        lambda: torchrnn.LSTMCell(3, 5)(X[0], zeros(2, 6)),
        ArgumentError,
        "hidden0 has inconsistent hidden_size: got 6, expected 5; hx[0] must be (B, H) = (2, 5), got (2, 6)",
    ),
    "a wrong batch for a cell": (
        lambda: torchrnn.GRUCell(3, 5)(X[0], torch.zeros(3, 5)),
        ArgumentError,
        "Input batch size 2 doesn't match hidden0 batch size 3; hx must be (B, H) = (2, 5), got (3, 5)",
    ),
    "an unknown nonlinearity": (
        lambda: torchrnn.RNN(3, 5, nonlinearity="gelu"),
        ValueError,
        "Unknown nonlinearity 'gelu'. Select from 'tanh' or 'relu'",
    ),
    "an unknown nonlinearity of a cell": (
        lambda: torchrnn.RNNCell(3, 5, nonlinearity="gelu"),
        ValueError,
        "Unknown nonlinearity 'gelu'",
    ),
    "a dropout beyond one": (
        lambda: torchrnn.LSTM(3, 5, dropout=1.5),
        ValueError,
        "dropout should be a number in range [0, 1]",
    ),
    "a dropout in words": (lambda: torchrnn.LSTM(3, 5, dropout="half"), ValueError, "dropout should be a number"),  # type: ignore[arg-type]
    "a list of sizes for a cell": (
        lambda: torchrnn.LSTMCell(3, [5, 6]),  # type: ignore[arg-type]
        TypeError,
        "hidden_size should be of type int, got: list",
    ),
    "a size of zero": (lambda: torchrnn.LSTM(3, 0), ValueError, "hidden_size must be greater than zero, got 0"),
    "no layers": (lambda: torchrnn.LSTM(3, 5, 0), ValueError, "num_layers must be greater than zero, got 0"),
    "a projection too large": (
        lambda: torchrnn.LSTM(3, 5, proj_size=5),
        ValueError,
        "proj_size has to be smaller than hidden_size, got 5 and 5",
    ),
    "a negative projection": (
        lambda: torchrnn.LSTM(3, 5, proj_size=-1),
        ValueError,
        "proj_size should be a positive integer or zero",
    ),
    "bias as a number": (
        lambda: torchrnn.LSTM(3, 5, bias=1),  # type: ignore[arg-type]
        TypeError,
        "bias should be of type bool, got: int",
    ),
}


@pytest.mark.parametrize(("mistake", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(mistake: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        mistake()
    assert words in str(caught.value)


def test_directions_as_zero_and_one_are_taken_as_torch_does() -> None:
    for given in (0, 1):
        assert torchrnn.GRU(3, 5, bidirectional=given).bidirectional is bool(given)  # type: ignore[arg-type]


def test_an_argument_error_is_what_torch_raises_too() -> None:
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind):
            GRU(torch.randn(4, 2, 7))


def test_autocast_takes_mixed_dtypes() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        LSTM(X.bfloat16())
