"""What happened inside a layer: its states and gates at every step, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from torchrnn.backends.packing import Packing
from torchrnn.call import Call
from torchrnn.sequence import Dense, Form, States

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent


class Happened(NamedTuple):
    """One layer's call and its states at all steps, each (D, …, H) with the dimensions of the output."""

    call: Call
    states: States
    gates: States = ()  # where the backend has them: likewise


class Trace:
    """The states and gates of all layers and directions at every step, by name: what ``return_all=True`` gives.

    ``trace.c`` is the state ``c``, (L, D, T, B, H), whatever ``batch_first`` is; of a single sequence (L, D, T, H). A
    gate is what the cell's function calls by its name: in the LSTM ``trace.f`` is the forget gate after its sigmoid.
    Where the function calls nothing so, as the RNN's ``a``, it is the sum of both products before the activation. Steps
    that do not count are zero. All of it is differentiable. Where layers differ in size each name stands for a list of
    Tensors (D, T, B, H).

    Attributes:
        states: the states by name. The first is the output, with ``proj_size`` projected.
        gates: the gates by name, where ``trace.i`` is short for ``trace.gates["i"]`` unless a state has that name.

    Example:
        ```python
        import torch
        import torchrnn

        output, (h_n, c_n), trace = torchrnn.LSTM(3, 5)(torch.randn(7, 2, 3), return_all=True)
        assert torch.equal(trace.c[0, 0, -1], c_n[0])
        print(trace)  # h  (L, D, T, B, H) = (1, 1, 7, 2, 5)  state, and so on
        ```
    """

    def __init__(self, states: dict[str, Any], gates: dict[str, Any]) -> None:
        self.states = states
        self.gates = gates

    def __getattr__(self, name: str) -> Any:
        for kind in ("states", "gates"):
            found = self.__dict__.get(kind, {})
            if name in found:
                return found[name]
        names = ", ".join([*self.__dict__.get("states", ()), *self.__dict__.get("gates", ())])
        raise AttributeError(f"the trace has no {name!r}: it has {names}")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.states, *self.gates)))

    def __repr__(self) -> str:
        lines = []
        width = max(map(len, self))
        for kind, named in (("state", self.states), ("gate", self.gates)):
            for name, value in named.items():
                lines.append(f"{name:{width}}  {_shape(value)}  {kind}")
        return "\n".join(lines)


def _shape(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(f"layer {k}: {_shape_of(v, ('D',))}" for k, v in enumerate(value))
    return _shape_of(value, ("L", "D"))


def _shape_of(value: Tensor, front: tuple[str, ...]) -> str:
    batch = value.dim() - len(front) - 2
    letters = (*front, "T", *(["B"] if batch == 1 else [f"B{k + 1}" for k in range(batch)]), "H")
    return f"({', '.join(letters)}) = {tuple(value.shape)}"


def trace(layer: Recurrent, form: Form, finals: States, happened: Sequence[Happened]) -> Trace:
    """The trace of a call, in the rows of the user's batch."""
    found = restored(layer, form, finals, [[*h.states, *gates(h)] for h in happened])
    S = len(layer.cell.states)
    return Trace(
        dict(zip(layer.cell.states, found[:S], strict=True)), dict(zip(layer.cell.gates, found[S:], strict=True))
    )


def restored(layer: Recurrent, form: Form, finals: States, by_layer: Sequence[Sequence[Tensor]]) -> list[Any]:
    """What each layer has at every step, each (D, …, H) with the dimensions of the backend's output.

    Returns:
        One after the other (L, D, T, B, H), in the rows of the user's batch; where layers differ in size lists of L.
    """
    if not isinstance(form, Dense):
        joined = torch.cat([_joined(t) for values in by_layer for t in values], -1)
        steps = _dense(form.leave(joined, finals)[0], layer.batch_first)  # (T, B, all features)
        parts = iter(steps.split([t.size(0) * t.size(-1) for values in by_layer for t in values], -1))
        D = 2 if layer.bidirectional else 1
        by_layer = [[next(parts).unflatten(-1, (D, -1)).movedim(-2, 0) for _ in values] for values in by_layer]
    found = [list(of) for of in zip(*by_layer, strict=True)]  # one by one, then by layer: (D, T, B, H)
    if not isinstance(layer.hidden_size, list):
        found = [of[0].unsqueeze(0) if len(of) == 1 else torch.stack(of) for of in found]
    return found


def gates(of: Happened) -> list[Tensor]:
    """A layer's gates at all steps, shaped as its states: all steps at once, since all states are known."""
    call, states, known = of
    if known:
        return list(known)
    if call.steps is not None:
        packing = Packing(call)
        packed = tuple(packing.move(_joined(s)).unflatten(-1, (s.size(0), -1)).movedim(-2, 0) for s in states)
        return [packing.by_direction(gate) for gate in gates(Happened(packing.enter(), packed))]
    D, G = states[0].size(0), len(call.cell.gates)
    per_direction = len(call.weights) // D
    shape, x = call.x.shape[:-1], call.x.flatten(0, -2)
    found = []
    for d in range(D):
        w_ih, w_hh, *rest = call.weights[d * per_direction : (d + 1) * per_direction]
        b_ih, b_hh = rest[:2] if call.bias else (None, None)
        previous = _previous(call, [s[d] for s in call.states], [s[d] for s in states], reverse=d == 1)
        values = call.cell.gate_values(F.linear(x, w_ih, b_ih), w_hh, b_hh, previous, call.options)
        found.append([v.unflatten(0, shape) for v in values])
    return [torch.stack([found[d][g] for d in range(D)]) for g in range(G)]


def _joined(values: Tensor) -> Tensor:
    """(D, …, H) -> (…, D·H)."""
    return values.movedim(0, -2).flatten(-2)


def _previous(call: Call, initial: list[Tensor], states: list[Tensor], *, reverse: bool) -> States:
    """One direction's states before each step (steps, H), of the initial ones (B, H) and those of all steps."""
    if call.batch_sizes is None:
        if reverse:
            return tuple(torch.cat((s, i[None]))[1:].flatten(0, 1) for i, s in zip(initial, states, strict=True))
        return tuple(torch.cat((i[None], s))[:-1].flatten(0, 1) for i, s in zip(initial, states, strict=True))
    before = _before(call.batch_sizes, reverse=reverse).to(call.x.device)
    return tuple(torch.cat(both).index_select(0, before) for both in zip(initial, states, strict=True))


def _before(sizes: Tensor, *, reverse: bool) -> Tensor:
    """For each packed step where its previous state stands among the initial states (B, H) and those of all steps."""
    first = sizes.cumsum(0) - sizes
    time = torch.repeat_interleave(sizes)
    row = torch.arange(time.numel()) - first[time]
    other = time + 1 if reverse else time - 1
    there = (other >= 0) & (other < sizes.numel())
    other = other.clamp(0, max(sizes.numel() - 1, 0))
    there &= row < sizes[other]
    return torch.where(there, sizes[:1].sum() + first[other] + row, row)


def _dense(output: Any, batch_first: bool) -> Tensor:
    """A layer's output in the user's form -> (T, B, F), padded with zeros; of a single sequence (T, F)."""
    if isinstance(output, PackedSequence):
        return pad_packed_sequence(output)[0]
    if isinstance(output, list):
        return pad_sequence(output)
    if output.is_nested:
        values, offsets, given = output.values(), output.offsets(), output.lengths()
        sizes = offsets.diff() if given is None else given
        pairs = zip(offsets.tolist(), sizes.tolist(), strict=False)  # torch pads no tensor that has gaps
        return pad_sequence([values[begin : begin + n] for begin, n in pairs])
    return output.movedim(-2, 0) if batch_first else output
