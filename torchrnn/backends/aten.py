"""Torch's own kernels for the cells it has: oneDNN, cuDNN, MIOpen, MPS, and its chains of small operations."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrnn.activation import PLAIN
from torchrnn.backends import reference
from torchrnn.backends.packing import by_packing
from torchrnn.call import Call, transform

_LAYERS = {"rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu, "lstm": torch.lstm, "gru": torch.gru}
_STEPS = {
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
}


def refuses(call: Call) -> str | None:
    """Why torch's kernels cannot run this call, or None."""
    name = call.cell.name
    if name not in _LAYERS:
        return f"torch has no kernel for the cell {name!r}"
    if call.all_states:
        return "torch's kernels keep the states of all steps to themselves"
    if call.options is not PLAIN and call.options != PLAIN:
        return f"torch's kernels know no {call.options}"
    if not call.one_step and not call.x.numel():
        return "the input is empty, which torch's kernels refuse"
    if name != "lstm" and not call.one_step and _projects(call):
        return f"torch has no projection for the cell {name!r}"
    return transform()


def _projects(call: Call) -> bool:
    per_direction = len(call.weights) // (call.num_layers * (2 if call.bidirectional else 1))
    return per_direction == (5 if call.bias else 3)


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states by torch.lstm, torch.gru and so on; shapes as in the reference."""
    if call.steps is not None:
        return by_packing(_run_packed, call)[:2]
    name = call.cell.name
    states = call.states if name == "lstm" else call.states[0]
    if call.one_step:
        new = _STEPS[name](call.x, states, *call.weights)
        return (new[0], new) if name == "lstm" else (new, (new,))
    if call.batch_sizes is None:
        sequence = (call.x, states)
        options = (call.bias, call.num_layers, call.dropout, call.training, call.bidirectional, False)
    else:
        sequence = (call.x, call.batch_sizes, states)
        options = (call.bias, call.num_layers, call.dropout, call.training, call.bidirectional)
    output, *final = _LAYERS[name](*sequence, call.weights, *options)
    return output, tuple(final)


def _run_packed(call: Call) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    if not call.x.size(0):  # no step counts
        return reference.run_all(call)
    return *run(call), ()
