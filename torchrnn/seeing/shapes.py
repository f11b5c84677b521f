"""What every tensor of a call is: its shape in letters and numbers, and a sentence; read off the layer, not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchrnn import parameters
from torchrnn.seeing.letters import Dim, Given, Letters
from torchrnn.seeing.table import Row, Section, shape

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent
    from torchrnn.step import RecurrentCell

#: The gates of the built-in cells in words; those of another cell have their names alone.
GATES = {
    "lstm": {"i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate"},
    "gru": {"r": "reset gate", "z": "update gate", "n": "candidate"},
}
GATES["gru_reset_before"] = GATES["gru_projected"] = GATES["gru"]


def of_layer(layer: Recurrent, arguments: dict[str, Any]) -> tuple[str, list[Section]]:
    """The legend and the table of a layer's call."""
    z, given = Letters(layer), Given(layer, arguments)
    sections = [_input(given, z), _initial(layer, given, z), *_results(layer, given, z), *_weights(layer, z)]
    k_0 = parameters.weights(layer)[0]
    sections.append(_gates(layer, next(iter(k_0)), z.sizes[0], z.I, z.uneven))
    return _legend(given.T, given.batch, z, layer), [s for s in sections if s.rows]


def _legend(T: int, batch: Sequence[Dim], z: Letters, layer: Recurrent) -> str:
    H = ", ".join(f"{letter} {size}" for letter, size in map(z.H, range(layer.num_layers))) if z.uneven else z.sizes[0]
    said = [f"T time {T}", *(f"{letter} batch {size}" for letter, size in batch), f"I input {z.I[1]}"]
    said += [f"H hidden {H}", f"G gates {z.G}", f"L layers {z.L[1]}", f"D directions {z.D[1]}"]
    return " · ".join([*said, f"P projection {z.P}"] if z.P else said)


def _input(given: Given, z: Letters) -> Section:
    B = ", ".join(letter.lower() for letter, _ in given.batch)
    if given.kind == "packed":
        N = given.input.data.size(0)
        rows = [
            Row("input.data", shape(("N", N), z.I), "the steps of all sequences, packed: N of them, I numbers each"),
            Row("input.batch_sizes", shape(("T", given.T)), "how many sequences are still running at each step"),
        ]
    elif given.kind == "list":
        what = f"sequence 0, its I numbers at each step; input[b] has its own length, at most {given.T} here"
        rows = [Row("input[0]", shape(("T_0", len(given.input[0])), z.I), what)]
    elif given.kind == "nested":
        what = f"input[b] is sequence b, (j, I); every one has its own length j, at most {given.T} here"
        rows = [Row("input", shape(*given.sequence(z.I)), what)]
    else:
        at = "t" if not B else f"{B}, t" if given.batch_first else f"t, {B}"
        rows = [Row("input", shape(*given.sequence(z.I)), f"input[{at}]: the I numbers of {_step(B)}")]
    steps = shape(*given.sequence(z.I)[:-1]) if given.kind == "dense" else None
    if given.says("lengths"):
        what = "row b ends after so many steps: beyond, the output is zero, and the final state is the one at that end"
        rows.append(Row("lengths", shape(*given.batch) if given.batch else None, what))
    if given.says("mask"):
        rows.append(Row("mask", steps, "where it is False the step is left out: the state stays, the output is zero"))
    if given.says("reset"):
        rows.append(Row("reset", steps, "where it is True a new sequence begins: no state is carried across"))
    return Section("input", rows)


def _step(B: str) -> str:
    return f"step t of sequence {B}" if B else "step t of the one sequence"


def _initial(layer: Recurrent, given: Given, z: Letters) -> Section:
    if given.says("hx"):
        how = "given"
    else:
        how = "not given, so learned ones" if layer.learn_initial_state else "not given, so zeros"
    rows = [row for s in range(len(layer.cell.states)) for row in _state_rows(layer, given, z, s, "0")]
    return Section(f"initial states, hx = {_pair(layer.cell.states, '0')}: {how}", rows)


def _pair(states: tuple[str, ...], end: str) -> str:
    names = [f"{name}_{end}" for name in states]
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def _state_rows(layer: Recurrent, given: Given, z: Letters, s: int, end: str) -> list[Row]:
    """A state of all layers and directions; where layers differ in size one row a layer."""
    name = layer.cell.states[s]
    when = "before the first step" if end == "0" else "after the last step"
    size = (lambda k: z.P_or_H(k)) if s == 0 else z.H
    if z.uneven:
        return [
            Row(f"{name}_{end}[{k}]", _state_shape(layer, given, z.D, size(k)), f"{name} of layer {k} {when}")
            for k in range(layer.num_layers)
        ]
    pieces = "every layer and direction" if z.D[1] == 2 else "every layer"
    return [Row(f"{name}_{end}", _state_shape(layer, given, z.LD, size(0)), f"{name} of {pieces} {when}")]


def _state_shape(layer: Recurrent, given: Given, front: Dim, size: Dim) -> Any:
    return shape(*given.batch, front, size) if layer.batch_first_state else shape(front, *given.batch, size)


def _results(layer: Recurrent, given: Given, z: Letters) -> list[Section]:
    top = layer.num_layers - 1
    if not layer.return_sequences:
        what = "the last output of each row alone" + (
            ": forward at its last step, backward at its first" if z.D[1] == 2 else ""
        )
        rows = [Row("output", shape(*given.batch, z.F(top)), what), *_directions(given, z, given.batch)]
        return [Section("result: output = layer(input), since return_sequences=False", rows)]
    traced = bool(given.arguments.get("return_all"))
    names = ["output", _pair(layer.cell.states, "n"), *(["trace"] if traced else [])]
    rows = [*_output(layer, given, z), *_directions(given, z, given.sequence(z.F(top))[:-1]), *_ends(layer, given, z)]
    sections = [Section(f"results: {', '.join(names)} = layer(input{', …' if traced else ''})", rows)]
    sections.append(Section("final states", _final(layer, given, z)))
    if traced:
        sections.append(Section("trace: what happened inside, at every step", _trace(layer, given, z)))
    return sections


def _output(layer: Recurrent, given: Given, z: Letters) -> list[Row]:
    top = layer.num_layers - 1
    of = f"{layer.cell.states[0]} of {'the last layer' if top else 'the layer'}"
    if z.D[1] == 2:
        joined = {"concat": "both directions side by side", "sum": "the sum of both directions"}
        joined |= {"mean": "the mean of both directions", "mul": "the product of both directions"}
        of += ", " + joined[layer.merge_mode]
    if layer.residual and top:
        of += ", plus the input of that layer"
    if given.kind == "packed":
        what = f"{of}, packed as the input; torch.nn.utils.rnn.pad_packed_sequence(output) pads it"
        return [Row("output.data", shape(("N", given.input.data.size(0)), z.F(top)), what)]
    if given.kind == "list":
        return [Row("output[0]", shape(("T_0", len(given.input[0])), z.F(top)), f"sequence 0 at each step: {of}")]
    return [Row("output", shape(*given.sequence(z.F(top))), f"at every step: {of}")]


def _directions(given: Given, z: Letters, front: Any) -> list[Row]:
    """The halves of the output, if it has any."""
    if z.D[1] == 1 or not z.concat:
        return []
    name, P = {"packed": "output.data", "list": "output[0]"}.get(given.kind, "output"), z.P_or_H(z.L[1] - 1)
    if given.kind == "packed":
        front = (("N", given.input.data.size(0)),)
    elif given.kind == "list":
        front = (("T_0", len(given.input[0])),)
    return [
        Row(f"{name}[..., :{P[0]}]", shape(*front, P), "forward: has read the steps up to this one"),
        Row(f"{name}[..., {P[0]}:]", shape(*front, P), "backward: has read this step and all later"),
    ]


def _ends(layer: Recurrent, given: Given, z: Letters) -> list[Row]:
    """The last output: where it stands, and where only seemingly."""
    F = z.F(z.L[1] - 1)
    rows = []
    if given.kind == "dense" and given.T and not (given.batch_first and not given.batch[0][1]):
        last = "at the last step"
        if z.D[1] == 2 and z.concat:
            last += "; the backward half has read that step alone"
        if not given.even:
            last += ", zero in the rows that end before it"
        rows.append(Row(_at(given, -1), shape(*given.batch, F), last))
        if given.batch_first:
            rest = given.sequence(F)[1:]
            rows.append(Row("output[-1]", shape(*rest), "not the last step: with batch_first the last sequence"))
    if z.concat and (not given.even or z.D[1] == 2):
        options = ["lengths"] if given.says("lengths") else []
        options += ["batch_first=True"] if given.kind == "dense" and given.batch_first else []
        options += ["bidirectional=True"] if z.D[1] == 2 else []
        if not given.says("mask") and not given.says("reset"):
            what = "each row's last valid output" + (", of both directions" if z.D[1] == 2 else "")
            rows.append(Row(f"torchrnn.last({', '.join(['output', *options])})", shape(*given.batch, F), what))
    return rows


def _at(given: Given, t: int) -> str:
    """The output at a step."""
    return (
        f"output[{'..., ' if len(given.batch) > 1 else ':, '}{t}{', :' if len(given.batch) > 1 else ''}]"
        if (given.batch_first)
        else f"output[{t}]"
    )


def _final(layer: Recurrent, given: Given, z: Letters) -> list[Row]:
    rows = []
    for s, name in enumerate(layer.cell.states):
        rows += _state_rows(layer, given, z, s, "n")
        if not z.uneven and s == 0:
            rows += _parts(layer, given, z, f"{name}_n")
        elif not z.uneven:
            rows[-1] = rows[-1]._replace(what=f"{rows[-1].what}; its parts as those of {layer.cell.states[0]}_n")
    return rows


def _parts(layer: Recurrent, given: Given, z: Letters, name: str) -> list[Row]:
    """The pieces of the first state: the last layer's, and all by layer and direction."""
    size, batch = z.P_or_H(0), given.batch
    index = "..., {}, :" if layer.batch_first_state and batch else "{}"
    shown = given.even and given.T and z.concat and not layer.output_dropout
    shown = shown and not (layer.residual and layer.num_layers > 1)
    rows = []
    for d in range(z.D[1]):
        half = "" if z.D[1] == 1 else ("[..., :{}]", "[..., {}:]")[d].format(size[0])
        same = _at(given, 0 if d else -1) + half if shown else ""
        whose = "the last layer" + ("" if z.D[1] == 1 else (", forward", ", backward")[d])
        rows.append(Row(f"{name}[{index.format(d - z.D[1])}]", shape(*batch, size), whose, same))
    front = (*batch, z.L, z.D) if layer.batch_first_state else (z.L, z.D, *batch)
    letters = ", ".join(letter for letter, _ in (*front, size))
    what = "[k, 0] is layer k" + (" forward, [k, 1] backward" if z.D[1] == 2 else "")
    if layer.batch_first_state and batch:
        what = what.replace("[k, ", "[…, k, ")
    rows.append(Row(f"{name}.view({letters})", shape(*front, size), what))
    return rows


def _trace(layer: Recurrent, given: Given, z: Letters) -> list[Row]:
    rows, states, T = [], layer.cell.states, ("T", given.T)
    for name in dict.fromkeys((*states, *layer.cell.gates)):
        state = name in states
        what = f"state {name}" if state else f"gate {_gate(layer, name)}"
        for k in range(layer.num_layers if z.uneven else 1):
            size = z.P_or_H(k) if state and name == states[0] else z.H(k)
            front = (z.D,) if z.uneven else (z.L, z.D)
            label = f"trace.{name}[{k}]" if z.uneven else f"trace.{name}"
            where = f", layer {k}" if z.uneven else ""
            rows.append(Row(label, shape(*front, T, *given.batch, size), what + where))
    return rows


def _weights(layer: Recurrent, z: Letters) -> list[Section]:
    """The parameters of each layer and direction."""
    sections, D, h = [], z.D[1], layer.cell.states[0]
    projected = "s" if "s" in layer.cell.states else h  # a GRU's h is a projection of its state s
    for number, found in enumerate(parameters.weights(layer)):
        k, d = divmod(number, D)
        source = f"the output of layer {k - 1}" if k else "the input"
        words: dict[str, tuple[tuple[Dim, ...], str]] = {
            "weight_ih": ((z.GH(k), z.F(k - 1) if k else z.I), f"multiplies {source}"),
            "weight_hh": ((z.GH(k), z.P_or_H(k)), f"multiplies {h} of the step {'after' if d else 'before'}"),
            "bias_ih": ((z.GH(k),), "added to the first product"),
            "bias_hh": ((z.GH(k),), "added to the second product"),
            "weight_hr": ((z.P_or_H(k), z.H(k)), f"projects the {z.H(k)[0]} numbers of {projected} to P"),
        }
        rows = [Row(name, shape(*words[kind][0]), words[kind][1]) for name in found if (kind := name.split("_l")[0])]
        where = f"layer {k}" + (f", {'backward' if d else 'forward'}" if D == 2 else "")
        sections.append(Section(f"parameters of {where}: {sum(map(_count, rows)):,} numbers", rows))
    if layer.learn_initial_state:
        rows = [_learned(layer, z, k, state) for k, state in enumerate(parameters.states(layer))]
        sections.append(Section(f"learned initial states: {sum(map(_count, rows)):,} numbers", rows))
    return sections


def _learned(layer: Recurrent, z: Letters, number: int, state: parameters.State) -> Row:
    s, k = divmod(number, layer.num_layers) if z.uneven else (number, 0)
    size = z.P_or_H(k) if s == 0 else z.H(k)
    what = f"what {layer.cell.states[s]} begins with where no hx is given"
    return Row(state.name, shape(z.D if z.uneven else z.LD, size), what)


def _count(row: Row) -> int:
    total = 1
    for size in row.shape.sizes if row.shape else ():
        total *= size if isinstance(size, int) else 1
    return total


def _gate(module: Recurrent | RecurrentCell, gate: str) -> str:
    words = GATES.get(module.cell.name, {}).get(gate)
    return f"{gate}, {'the ' + words if words else ''}".rstrip(", ")


def _gates(module: Recurrent | RecurrentCell, weight: str, H: int, I: Dim, uneven: bool = False) -> Section:
    """Which rows of a weight are which gate."""
    gates = module.cell.gates
    letter = "H0" if uneven else "H"
    rows = []
    for g, gate in enumerate(gates):
        what = f"gate {_gate(module, gate)}" if len(gates) > 1 else f"all rows: {gate} is the one gate"
        rows.append(Row(f"{weight}[{g * H}:{(g + 1) * H}]", shape((letter, H), I), what))
    blocks = "blocks of the layer's H" if uneven else f"blocks of H = {H}"
    title = f"gates: rows of every weight_ih, weight_hh and bias, in {blocks}"
    return Section(title if len(gates) > 1 else "gates: rows of every weight_ih, weight_hh and bias", rows)


def of_cell(cell: RecurrentCell, arguments: dict[str, Any]) -> tuple[str, list[Section]]:
    """The legend and the table of a single step."""
    x: Tensor = arguments["input"]
    batch: tuple[Dim, ...] = (("B", x.size(0)),) if x.dim() == 2 else ()
    H, G, I = cell.hidden_size, len(cell.cell.gates), ("I", cell.input_size)
    names, GH = cell.cell.states, ("G·H", G * H)
    state = shape(*batch, ("H", H))
    which = "row b" if batch else "the one row"
    arrived = "given" if arguments.get("hx") is not None else "not given, so zeros"
    pair = names[0] if len(names) == 1 else f"({', '.join(names)})"
    words = {
        "weight_ih": ((GH, I), "multiplies the input"),
        "weight_hh": ((GH, ("H", H)), f"multiplies {names[0]} of the step before"),
        "bias_ih": ((GH,), "added to the first product"),
        "bias_hh": ((GH,), "added to the second product"),
    }
    weights = [Row(name, shape(*words[name][0]), words[name][1]) for name in cell._parameter_shapes()]
    where = "input[b]" if batch else "input"
    sections = [
        Section("input", [Row("input", shape(*batch, I), f"{where}: the I numbers of {which} at this step")]),
        Section(
            f"previous states, hx = {pair}: {arrived}", [Row(n, state, f"{n} after the step before") for n in names]
        ),
        Section(
            f"results: {', '.join(names)} = cell(input, hx)",
            [Row(n, state, f"{n} after this step" + ("" if k else ", also the output")) for k, n in enumerate(names)],
        ),
        Section(f"parameters: {sum(map(_count, weights)):,} numbers", weights),
        _gates(cell, "weight_ih", H, I),
    ]
    said = [*(f"{letter} batch {size}" for letter, size in batch), f"I input {I[1]}", f"H hidden {H}", f"G gates {G}"]
    return " · ".join(said), sections
