"""What a layer must give, stated once more as plain loops: row by row, step by step, one state after another.

Its own equations, its own reading of every form of input: of torchrnn it takes weights and arguments by their names.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Index = tuple[int, ...]  # of a row: one number for each batch dimension
Step = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # the new states, and the gates


def rnn(x: list[Tensor], h: list[Tensor], s: tuple[Tensor, ...], phi: Any, clip: Any) -> Step:
    a = x[0] + h[0]
    return (clip(phi(a)),), (a,)


def lstm(x: list[Tensor], h: list[Tensor], s: tuple[Tensor, ...], phi: Any, clip: Any) -> Step:
    i = torch.sigmoid(x[0] + h[0])
    f = torch.sigmoid(x[1] + h[1])
    g = phi(x[2] + h[2])
    o = torch.sigmoid(x[3] + h[3])
    c = clip(f * s[1] + i * g)
    return (o * phi(c), c), (i, f, g, o)


def gru(x: list[Tensor], h: list[Tensor], s: tuple[Tensor, ...], phi: Any, clip: Any) -> Step:
    r = torch.sigmoid(x[0] + h[0])
    z = torch.sigmoid(x[1] + h[1])
    n = phi(x[2] + r * h[2])
    return (clip((1 - z) * n + z * s[0]),), (r, z, n)


def gru_reset_before(x: list[Tensor], h: Any, s: tuple[Tensor, ...], phi: Any, clip: Any) -> Step:
    r = torch.sigmoid(x[0] + h[0])
    z = torch.sigmoid(x[1] + h[1])
    n = phi(x[2] + h[2](r * s[0]))
    return (clip((1 - z) * n + z * s[0]),), (r, z, n)


def gru_projected(x: list[Tensor], h: list[Tensor], s: tuple[Tensor, ...], phi: Any, clip: Any) -> Step:
    r = torch.sigmoid(x[0] + h[0])
    z = torch.sigmoid(x[1] + h[1])
    n = phi(x[2] + r * h[2])
    new = clip((1 - z) * n + z * s[1])
    return (new, new), (r, z, n)


def coupled_lstm(x: list[Tensor], h: list[Tensor], s: tuple[Tensor, ...], phi: Any, clip: Any) -> Step:
    i = torch.sigmoid(x[0] + h[0])
    g = torch.tanh(x[1] + h[1])
    o = torch.sigmoid(x[2] + h[2])
    c = (1 - i) * s[1] + i * g
    return (o * torch.tanh(c), clip(c)), (i, g, o)


EQUATIONS: dict[str, Callable[..., Step]] = {
    "rnn_tanh": rnn,
    "rnn_relu": rnn,
    "lstm": lstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "gru_projected": gru_projected,
    "coupled_lstm": coupled_lstm,
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
    "softsign": F.softsign,
    "elu": F.elu,
}
JOINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda f, b: torch.cat((f, b)),
    "sum": lambda f, b: f + b,
    "mean": lambda f, b: 0.5 * f + 0.5 * b,
    "mul": lambda f, b: f * b,
}


class Row(NamedTuple):
    """What becomes of one row."""

    output: Tensor  # (T, F); the last one alone (F,)
    finals: list[list[tuple[Tensor, ...]]]  # by layer and direction
    steps: list[list[dict[int, Step]]]  # likewise, by the steps that count


def loop(
    layer: Any,
    input: Any,
    hx: Any = None,
    *,
    lengths: Any = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to: str = "zero",
    return_all: bool = False,
) -> dict[str, Tensor]:
    """The results of a call, each row's by a name of its own, as `read` names those of the layer.

    Which steps count: those before a row's length, or where the mask is True; a reset beyond a row's length is none,
    a reset at a masked step is one.
    """
    results = {}
    given = rows(layer, input)
    longest = max((len(x) for x in given.values()), default=0)
    for index, x in given.items():
        T = len(x)
        length = T if lengths is None else int(torch.as_tensor(lengths)[index])
        counts = [t < length and (mask is None or flag(layer, mask, index, t)) for t in range(T)]
        begins = [t < length and reset is not None and flag(layer, reset, index, t) for t in range(T)]
        row = one_row(layer, x, hx, index, counts, begins, reset_to)
        results[f"output of row {index}"] = row.output
        if layer.return_sequences:
            for k, d, s in every_state(layer):
                results[f"final {s} {k} {d} of row {index}"] = row.finals[k][d][s]
        if return_all:
            for k, d, name in every_name(layer):
                results[f"trace {name} {k} {d} of row {index}"] = traced(layer, row.steps[k][d], name, longest, k)
    return results


def read(layer: Any, result: Any, index: list[Index], return_all: bool = False) -> dict[str, Tensor]:
    """The results of the layer by the names that `loop` gives, for the rows of its input."""
    results: dict[str, Tensor] = {}
    if not layer.return_sequences:
        assert isinstance(result, Tensor)
        return {f"output of row {i}": result[i] for i in index}
    found = rows(layer, result[0])
    assert list(found) == index
    for i in index:
        results[f"output of row {i}"] = found[i]
        for k, d, s in every_state(layer):
            results[f"final {s} {k} {d} of row {i}"] = state(layer, result[1], i, k, d)[s]
        if return_all:
            for k, d, name in every_name(layer):
                kind, plain = name.split()
                of = getattr(result[2], f"{kind}s")[plain]
                results[f"trace {name} {k} {d} of row {i}"] = of[k][d][(slice(None), *i)]
    return results


def every_state(layer: Any) -> list[tuple[int, int, int]]:
    """Layer, direction and number of every state."""
    return list(itertools.product(range(layer.num_layers), range(directions(layer)), range(len(layer.cell.states))))


def every_name(layer: Any) -> list[tuple[int, int, str]]:
    """Layer, direction and name of everything in a trace."""
    names = [*(f"state {n}" for n in layer.cell.states), *(f"gate {n}" for n in layer.cell.gates)]
    return list(itertools.product(range(layer.num_layers), range(directions(layer)), names))


def traced(layer: Any, steps: dict[int, Step], name: str, T: int, k: int) -> Tensor:
    """A state or gate at T steps, zero where there is none."""
    kind, plain = name.split()
    number = (layer.cell.states if kind == "state" else layer.cell.gates).index(plain)
    width = widths(layer, k)[number] if kind == "state" else size(layer, k)
    nothing = layer.weight_hh_l0.new_zeros(width)
    found = [steps[t][0 if kind == "state" else 1][number] if t in steps else nothing for t in range(T)]
    return torch.stack(found) if T else nothing.new_zeros(0, width)


def rows(layer: Any, sequence: Any) -> dict[Index, Tensor]:
    """The rows (T, F) of a sequence in any form."""
    if isinstance(sequence, list):
        return {(b,): x for b, x in enumerate(sequence)}
    if isinstance(sequence, PackedSequence):
        found: list[list[Tensor]] = [[] for _ in range(int(sequence.batch_sizes[0]))]
        steps = iter(sequence.data)
        for running in sequence.batch_sizes.tolist():
            for b in range(running):
                found[b].append(next(steps))
        order = range(len(found)) if sequence.unsorted_indices is None else sequence.unsorted_indices.tolist()
        return {(b,): torch.stack(found[place]) for b, place in enumerate(order)}
    if sequence.is_nested:
        values, begins, lengths = sequence.values(), sequence.offsets().tolist(), sequence.lengths()
        sizes = [b - a for a, b in itertools.pairwise(begins)] if lengths is None else lengths.tolist()
        return {(b,): values[begins[b] : begins[b] + n] for b, n in enumerate(sizes)}
    if layer.batch_first:
        return {i: sequence[i] for i in itertools.product(*map(range, sequence.shape[:-2]))}
    return {i: sequence[(slice(None), *i)] for i in itertools.product(*map(range, sequence.shape[1:-1]))}


def flag(layer: Any, flags: Tensor, index: Index, t: int) -> bool:
    return bool(flags[(*index, t) if layer.batch_first else (t, *index)])


def directions(layer: Any) -> int:
    return 2 if layer.bidirectional else 1


def size(layer: Any, k: int) -> int:
    """H of a layer."""
    return layer.hidden_size[k] if isinstance(layer.hidden_size, list) else layer.hidden_size


def widths(layer: Any, k: int) -> list[int]:
    """The sizes of a layer's states."""
    return [layer.proj_size or size(layer, k)] + [size(layer, k)] * (len(layer.cell.states) - 1)


def width(layer: Any) -> int:
    """Features of the output."""
    one = widths(layer, layer.num_layers - 1)[0]
    return one if layer.merge_mode != "concat" else directions(layer) * one


def state(layer: Any, hx: Any, index: Index, k: int, d: int) -> tuple[Tensor, ...]:
    """The states of a row in a layer and direction, from those of all in the form of ``hx``."""
    listed, S = isinstance(layer.hidden_size, list), len(layer.cell.states)
    at = d if listed else k * directions(layer) + d
    found = []
    for s, name in enumerate(layer.cell.states):
        if hx is None and not layer.learn_initial_state:
            found.append(layer.weight_hh_l0.new_zeros(widths(layer, k)[s]))
        elif hx is None:
            found.append(getattr(layer, f"initial_{name}" + (f"_l{k}" if listed else ""))[at])
        else:
            of = hx if S == 1 else hx[s]
            of = of[k] if listed else of
            dims = of.shape[:-2] if layer.batch_first_state else of.shape[1:-1]
            assert len(dims) == len(index)
            row = tuple(0 if n == 1 else i for i, n in zip(index, dims, strict=True))  # one of batch 1 is for all
            found.append(of[(*row, at) if layer.batch_first_state else (at, *row)])
    return tuple(found)


def one_row(layer: Any, x: Tensor, hx: Any, index: Index, counts: list[bool], begins: list[bool], reset_to: str) -> Row:
    """One row through all layers."""
    y = {t: x[t] for t in range(len(counts)) if counts[t]}  # the steps that count, and no others
    finals, steps, L, D = [], [], layer.num_layers, directions(layer)
    last = nothing = layer.weight_hh_l0.new_zeros(width(layer))
    for k in range(L):
        swept = [sweep(layer, k, d, y, state(layer, hx, index, k, d), begins, reset_to) for d in range(D)]
        steps.append([happened for happened, _ in swept])
        finals.append([final for _, final in swept])
        sides = [{t: happened[t][0][0] for t in y} for happened, _ in swept]
        below, y = y, {t: joined(layer, [side[t] for side in sides]) for t in y}
        if y and k == L - 1:
            last = joined(layer, [sides[0][max(y)], *(side[min(y)] for side in sides[1:])])
        if layer.residual and k:
            y = {t: y[t] + below[t] for t in y}
            if y and k == L - 1:
                half = len(last) // D  # the halves of a concatenated input too stand at different steps
                last = last + torch.cat((below[max(y)][:half], below[min(y)][half:]))
        if k < L - 1 and dropped(layer, layer.dropout):
            y = {t: torch.zeros_like(y[t]) for t in y}
    if not layer.return_sequences:
        return Row(nothing if dropped(layer, layer.output_dropout) else last, finals, steps)
    if dropped(layer, layer.output_dropout):
        y = {}
    outputs: Any = [y.get(t, nothing) for t in range(len(counts))]
    return Row(torch.stack(outputs) if outputs else x.new_zeros(0, width(layer)), finals, steps)


def joined(layer: Any, sides: list[Tensor]) -> Tensor:
    return sides[0] if len(sides) == 1 else JOINED[layer.merge_mode](*sides)


def dropped(layer: Any, p: float) -> bool:
    """Whether all is dropped: of dropout the loop knows that at p = 0 nothing is, at p = 1 everything."""
    if not layer.training or not p:
        return False
    assert p == 1
    return True


def sweep(
    layer: Any, k: int, d: int, y: dict[int, Tensor], state: tuple[Tensor, ...], begins: list[bool], reset_to: str
) -> tuple[dict[int, Step], tuple[Tensor, ...]]:
    """Layer ``k`` in direction ``d``: what happens at each step that counts, and the final state."""
    fresh = state if reset_to == "initial" else tuple(torch.zeros_like(s) for s in state)
    happened = {}
    for t in range(len(begins))[:: -1 if d else 1]:
        if d == 0 and begins[t]:
            state = fresh
        if t in y:
            happened[t] = step(layer, f"l{k}" + "_reverse" * d, y[t], state, size(layer, k))
            state = happened[t][0]
        if d == 1 and begins[t] and t > 0:  # a sequence began here: what comes next belongs to the one before
            state = fresh
    return happened, state


def step(layer: Any, end: str, x: Tensor, state: tuple[Tensor, ...], H: int) -> Step:
    """One step of one row: W x + b, W h + b, the cell's equations, the projection."""
    a = getattr(layer, f"weight_ih_{end}") @ x
    h = getattr(layer, f"weight_hh_{end}") @ state[0]
    if layer.bias:
        a = a + getattr(layer, f"bias_ih_{end}")
    if layer.bias and layer.bias != "single":
        h = h + getattr(layer, f"bias_hh_{end}")
    name, G = layer.cell.name, range(len(layer.cell.gates))
    phi = FUNCTIONS[getattr(layer, "activation", "relu" if name == "rnn_relu" else "tanh")]
    limit = getattr(layer, "cell_clip", None)
    parts: Any = tuple([of[g * H : (g + 1) * H] for g in G] for of in (a, h))
    if name == "gru_reset_before":  # the product of its candidate waits for the reset gate
        W = getattr(layer, f"weight_hh_{end}")[2 * H :]
        b = (
            getattr(layer, f"bias_hh_{end}")[2 * H :]
            if layer.bias and layer.bias != "single"
            else torch.zeros_like(h[:H])
        )
        parts = (parts[0], [*parts[1][:2], lambda v: W @ v + b])
    new, gates = EQUATIONS[name](*parts, state, phi, lambda s: s if limit is None else s.clamp(-limit, limit))
    if layer.proj_size:
        new = (getattr(layer, f"weight_hr_{end}") @ new[0], *new[1:])
    return new, gates
