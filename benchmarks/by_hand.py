"""What a user of torch.nn writes where we have an argument: loops over a cell, and batches turned about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.cases import Case

#: x (T, B, I) -> output, final states and what else was asked for
Call = Callable[[Tensor], Any]


def call(case: Case, model: Any) -> Call:
    """The case by torch.nn's means, with the weights of ``model``, a layer of torch.nn."""
    if case.by_hand == "lengths":
        return _packed(model, case.row_lengths())
    if case.by_hand == "left":
        return _shifted(model, case.row_lengths(), case.T)
    if case.by_hand == "all":
        return _everything(model, case.kind)
    step = cell(case, model)
    if case.by_hand == "stream":
        return _stepped(step, case.kind)
    flags = case.flags().unsqueeze(2).unbind(0)
    return _masked(step, case.kind, flags) if case.by_hand == "holes" else _reset(step, case.kind, flags)


def cell(case: Case, model: Any) -> nn.Module:
    """torch.nn's cell with the layer's own parameters."""
    made: Any = getattr(nn, f"{case.kind}Cell")(case.I, case.H)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(made, name, getattr(model, f"{name}_l0"))
    return made


def _zeros(model: Any, kind: str, B: int) -> tuple[Tensor, ...]:
    return (torch.zeros(B, model.hidden_size),) * (2 if kind == "LSTM" else 1)


def _next(step: nn.Module, kind: str, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return step(x, state) if kind == "LSTM" else (step(x, state[0]),)


def _results(outputs: list[Tensor], state: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.stack(outputs), *(s.unsqueeze(0) for s in state)]


def _packed(model: nn.Module, lengths: Tensor) -> Call:
    def run(x: Tensor) -> Any:
        y, finals = model(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=len(x))[0], finals

    return run


def _shifted(model: nn.Module, lengths: Tensor, T: int) -> Call:
    """Left padding: each row is turned so that its padding comes last, packed, and turned back."""
    packed, rows, times = _packed(model, lengths), torch.arange(len(lengths)), torch.arange(T).unsqueeze(1)
    there, back = (times + T - lengths) % T, (times - T + lengths) % T

    def run(x: Tensor) -> Any:
        y, finals = packed(x[there, rows])
        return y[back, rows], finals

    return run


def _masked(step: nn.Module, kind: str, mask: tuple[Tensor, ...]) -> Call:
    """Holes: where the mask (B, 1) of a step is False the state stays and the output is zero."""

    def run(x: Tensor) -> list[Tensor]:
        state, outputs = _zeros(step, kind, x.size(1)), []
        for x_t, valid in zip(x.unbind(0), mask, strict=True):
            new = _next(step, kind, x_t, state)
            state = tuple(torch.where(valid, n, s) for n, s in zip(new, state, strict=True))
            outputs.append(new[0] * valid)
        return _results(outputs, state)

    return run


def _reset(step: nn.Module, kind: str, reset: tuple[Tensor, ...]) -> Call:
    going_on = [(~r).float() for r in reset]  # as reinforcement learning does it

    def run(x: Tensor) -> list[Tensor]:
        state, outputs = _zeros(step, kind, x.size(1)), []
        for x_t, keep in zip(x.unbind(0), going_on, strict=True):
            state = _next(step, kind, x_t, tuple(s * keep for s in state))
            outputs.append(state[0])
        return _results(outputs, state)

    return run


def _stepped(step: nn.Module, kind: str) -> Call:
    def run(x: Tensor) -> list[Tensor]:
        state, outputs = _zeros(step, kind, x.size(1)), []
        for x_t in x.unbind(0):
            state = _next(step, kind, x_t, state)
            outputs.append(state[0])
        return _results(outputs, state)

    return run


def _everything(model: Any, kind: str) -> Call:
    """Every state and gate by the equations, for torch.nn's cell keeps them; the x-part of all steps is one product."""
    w_ih, w_hh, b_ih, b_hh = model.weight_ih_l0, model.weight_hh_l0, model.bias_ih_l0, model.bias_hh_l0
    equations = {"RNN": _rnn, "LSTM": _lstm, "GRU": _gru}[kind]

    def run(x: Tensor) -> list[Tensor]:
        state, kept = _zeros(model, kind, x.size(1)), []
        for part in F.linear(x, w_ih, b_ih).unbind(0):
            state, gates = equations(part, F.linear(state[0], w_hh, b_hh), state)
            kept.append((*state, *gates))
        # (T, B, H) -> (L, D, T, B, H)
        states_and_gates = [torch.stack(values)[None, None] for values in zip(*kept, strict=True)]
        return [states_and_gates[0][0, 0], *(s.unsqueeze(0) for s in state), *states_and_gates]

    return run


def _rnn(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    a = x + h
    return (torch.tanh(a),), (a,)


def _lstm(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    i, f, g, o = (x + h).chunk(4, 1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * state[1] + i * g
    return (o * torch.tanh(c), c), (i, f, g, o)


def _gru(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (state[0] - n),), (r, z, n)
