"""What a layer must compute, as loops over rows and steps: equations of its own, which read weights by name only."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

States = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, States], tuple[States, dict[str, Tensor]]]  # -> new states, gates by name


def rnn(x: Tensor, h: Tensor, s: States) -> tuple[States, dict[str, Tensor]]:
    """A tanh of the sum; its gate is that sum."""
    return (torch.tanh(x + h),), {"a": x + h}


def lstm(x: Tensor, h: Tensor, s: States) -> tuple[States, dict[str, Tensor]]:
    """Gates i f g o."""
    i, f, g, o = (x + h).chunk(4)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * s[1] + i * g
    return (o * c.tanh(), c), {"i": i, "f": f, "g": g, "o": o}


def gru(x: Tensor, h: Tensor, s: States) -> tuple[States, dict[str, Tensor]]:
    """Gates r z n."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3), h.chunk(3)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return ((1 - z) * n + z * s[0],), {"r": r, "z": z, "n": n}


def gru_projected(x: Tensor, h: Tensor, s: States) -> tuple[States, dict[str, Tensor]]:
    """Gates r z n; the second state is mixed, and what it becomes is what will be projected."""
    (new,), gates = gru(x, h, s[1:])
    return (new, new), gates


def coupled(x: Tensor, h: Tensor, s: States) -> tuple[States, dict[str, Tensor]]:
    """An LSTM whose forget gate is one minus its input gate."""
    i, g, o = (x + h).chunk(3)
    i, g, o = i.sigmoid(), g.tanh(), o.sigmoid()
    c = (1 - i) * s[1] + i * g
    return (o * c.tanh(), c), {"i": i, "g": g, "o": o}


class Ran(NamedTuple):
    """What became of one row: its outputs (T, F), its states by layer and direction, and its gates by step."""

    output: Tensor
    finals: list[States]
    gates: list[dict[str, Tensor]]  # of the last layer's last direction
    states: list[States]  # likewise


def row(step: Step, weights: Mapping[str, Tensor], x: Tensor, initial: list[States]) -> Ran:
    """All layers and directions over one row (T, I); ``initial`` by layer and direction."""
    finals, gates, states = [], [], []
    D = 2 if "weight_ih_l0_reverse" in weights else 1
    for k in range(len(initial)):
        gates, states, s = [], [], initial[k]
        end = f"l{k // D}" + "_reverse" * (k % D)
        if k % D == 0:
            below, outputs = x, []
        for x_t in below.flip(0) if k % D else below:
            h = weights[f"weight_hh_{end}"] @ s[0] + weights[f"bias_hh_{end}"]
            s, named = step(weights[f"weight_ih_{end}"] @ x_t + weights[f"bias_ih_{end}"], h, s)
            if f"weight_hr_{end}" in weights:
                s = (weights[f"weight_hr_{end}"] @ s[0], *s[1:])
            gates.append(named)
            states.append(s)
        finals.append(s)
        outputs.append(torch.stack([of[0] for of in (states[::-1] if k % D else states)]))
        x = torch.cat(outputs, -1)
    return Ran(x, finals, gates, states)


def batch(
    step: Step, weights: Mapping[str, Tensor], x: Tensor, hx: States, counts: Tensor | None = None
) -> list[Tensor]:
    """Output (T, B, F) and final states of rows of which the steps count that ``counts`` (T, B) says."""
    rows, finals = [], []
    for b in range(x.size(1)):
        there = torch.ones(len(x), dtype=torch.bool) if counts is None else counts[:, b]
        initial = [tuple(s[k, b] for s in hx) for k in range(len(hx[0]))]
        if not there.any():
            finals.append(initial)
            rows.append(None)
            continue
        ran = row(step, weights, x[there, b], initial)
        finals.append(ran.finals)
        full = ran.output.new_zeros(len(x), ran.output.size(-1))
        rows.append(full.index_put((there.nonzero().squeeze(1),), ran.output))
    width = next(r.size(-1) for r in rows if r is not None)
    output = torch.stack([x.new_zeros(len(x), width) if r is None else r for r in rows], 1)
    ends = [torch.stack([torch.stack([s[n] for s in of]) for of in finals], 1) for n in range(len(hx))]
    return [output, *ends]
