"""Models for the tests of ONNX files, and onnxruntime as a function on torch's tensors."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import onnxruntime
import torch
from coupled import CoupledLSTM
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import torchrnn
import torchrnn.onnx

I, H = 3, 4
CELLS: dict[str, Any] = {
    "rnn_tanh": torchrnn.RNN,
    "rnn_relu": lambda *a, **k: torchrnn.RNN(*a, nonlinearity="relu", **k),
    "lstm": torchrnn.LSTM,
    "gru": torchrnn.GRU,
    "gru_reset_before": lambda *a, **k: torchrnn.GRU(*a, reset_after=False, **k),
    "coupled_lstm": CoupledLSTM,
}
NODES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU"}
NODES |= {"coupled_lstm": "Scan"}
STACKS: list[tuple[int, int]] = list(product((1, 2), (1, 2)))  # layers and directions


class Called(nn.Module):
    """Layers that are called alike; what comes out is one flat tuple."""

    def __init__(self, *layers: nn.Module, **said: Any) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.said = said

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None, mask: Any = None, reset: Any = None) -> Any:
        found: list[Tensor] = []
        for layer in self.layers:
            found += tree_leaves(layer(x, hx, lengths=lengths, mask=mask, reset=reset, **self.said))
        return tuple(found)


class Session:
    """A graph in onnxruntime."""

    def __init__(self, program: Any) -> None:
        proto = program if hasattr(program, "SerializeToString") else program.model_proto
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        names = [i.name for i in self.session.get_inputs()]
        feeds = {name: t.detach().numpy() for name, t in zip(names, inputs, strict=True)}
        return [torch.from_numpy(a) for a in self.session.run(None, feeds)]


def types(program: Any) -> list[str]:
    """The types of the nodes of a graph."""
    return [node.op_type for node in program.model.graph]


def compare(results: list[Tensor], expected: Any, tolerance: float = 1e-5) -> None:
    """Fail where an output is not there, has another shape, or is off by more."""
    assert len(results) == len(expected)
    for k, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert not a.isnan().any(), f"output {k}"
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=tolerance, msg=lambda m, k=k: f"output {k}: {m}")


class Twice(nn.Module):
    """Stacks of a cell, without lengths and then with them."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        made = [CELLS[cell](I, H, num_layers=L, bidirectional=D == 2) for L, D in STACKS]
        self.layers: Any = nn.ModuleList(made)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        dense = [tuple(tree_leaves(layer(x.nan_to_num()))) for layer in self.layers]
        return tuple(dense + [tuple(tree_leaves(layer(x, lengths=lengths))) for layer in self.layers])


@cache
def stacks(cell: str) -> tuple[Twice, Any]:
    """All stacks of a cell as one model, and its program made of B = 2 and T = 5."""
    torch.manual_seed(1)
    model, args = Twice(cell).eval(), (torch.randn(5, 2, I), torch.tensor([5, 2]))
    program = torchrnn.onnx.export(model, args, dynamic_shapes=({0: "T", 1: "B"}, {0: "B"}), check=False)
    return model, program
