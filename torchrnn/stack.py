"""How layers stand on each other: one call of a backend where nothing special is asked, else one a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn import check, check_states, history, parameters
from torchrnn.call import Call, choose
from torchrnn.history import Happened
from torchrnn.sequence import Form, States

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent


def weights(layer: Recurrent, given: list[Any]) -> list[Any]:
    """The weights as backends take them: of a single bias the other is zero."""
    if layer.bias != "single":
        return given
    full: list[Any] = []
    for weight, name in zip(given, layer._flat_weights_names, strict=True):
        full.append(weight)
        if name.startswith("bias_ih"):
            full.append(torch.zeros_like(weight))
    return full


def initial(layer: Recurrent, hx: Any, LD: int, form: Form, x: Tensor) -> States:
    """The initial states as backends take them; where layers differ in size, state by state each layer's."""
    if hx is None and not layer.learn_initial_state:
        B = form.rows(x)
        return tuple(torch.zeros(s.rows, B, s.width, dtype=x.dtype, device=x.device) for s in parameters.states(layer))
    batch = form.batch(x)
    return form.enter_states(_learned(layer, batch, x) if hx is None else given(layer, hx, (LD, *batch), x))


def _learned(layer: Recurrent, batch: tuple[int, ...], x: Tensor) -> States:
    """The layer's own initial states, for all rows alike."""
    learned = []
    for state in parameters.states(layer):
        value = check.weight(layer, state.name).to(x.dtype)
        learned.append(value.view(state.rows, *(1,) * len(batch), state.width).expand(state.rows, *batch, state.width))
    return tuple(learned)


def given(layer: Recurrent, hx: Any, shape: tuple[int, ...], x: Tensor) -> States:
    """The user's initial states, checked."""
    if isinstance(layer.hidden_size, list):
        return _given_by_layer(layer, hx, shape[1:], x)
    if layer.batch_first_state:
        hx = tuple(map(_batch_second, hx)) if isinstance(hx, (tuple, list)) else _batch_second(hx)
    return layer._given(hx, shape, x)


def _given_by_layer(layer: Recurrent, hx: Any, batch: tuple[int, ...], x: Tensor) -> States:
    """The user's states of layers that differ in size: for each state a list of L Tensors (D, B, H)."""
    names, L = layer.cell.states, layer.num_layers
    groups = check_states.lists_of_states(layer, hx)
    table, found = parameters.states(layer), []
    for s in range(len(names)):
        for k in range(L):
            spec = table[s * L + k]
            label = f"hx[{k}]" if len(names) == 1 else f"hx[{s}][{k}]"
            state = _batch_second(groups[s][k]) if layer.batch_first_state else groups[s][k]
            expected = (spec.rows, *batch, spec.width)
            check_states.layer_state(layer, label, state, expected, x, k)
            found.append(state.expand(expected))  # one of batch 1 is for all rows
    return tuple(found)


def _batch_second(state: Any) -> Any:
    """(B, L·D, H) -> (L·D, B, H); what is no such Tensor is left to the checks."""
    return state.movedim(-2, 0) if isinstance(state, Tensor) and state.dim() > 2 else state


def run(layer: Recurrent, call: Call, form: Form) -> Any:
    """What ``forward`` returns where more is asked for than torch.nn's layers do."""
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    uneven = isinstance(layer.hidden_size, list)
    happened: list[Happened] = []
    if layer.merge_mode != "concat" or (layer.residual and L > 1) or uneven or call.all_states:
        output, states = _by_layer(layer, call, happened)
    else:
        output, states = choose(call).run(call)
    if not layer.return_sequences:
        last, first = form.ends(output)
        return _dropped(layer, merge(layer.merge_mode, _halves(last, first)) if D == 2 else last)
    trace = history.trace(layer, form, states, happened) if call.all_states else None
    output, states = form.leave(_dropped(layer, output), states)
    final = leave_states(layer, states)
    return (output, final) if trace is None else (output, final, trace)


def leave_states(layer: Recurrent, states: States) -> Any:
    """States as backends have them, but of the user's batch -> in the form of ``hx``."""
    L = layer.num_layers
    result: tuple[Any, ...] = tuple(s.movedim(0, -2) for s in states) if layer.batch_first_state else states
    if isinstance(layer.hidden_size, list):
        result = tuple(list(result[k : k + L]) for k in range(0, len(result), L))
    return result[0] if len(result) == 1 else result


def begin(layer: Recurrent, B: int) -> Any:
    """What B rows begin with where no state is given, in the form of ``hx``."""
    like = layer._flat_weights[0]
    if layer.learn_initial_state:
        return leave_states(layer, _learned(layer, (B,), like))
    return leave_states(layer, tuple(like.new_zeros(s.rows, B, s.width) for s in parameters.states(layer)))


def _dropped(layer: Recurrent, output: Tensor) -> Tensor:
    p = layer.output_dropout if layer.training else 0.0
    return F.dropout(output, p) if p else output


def _by_layer(layer: Recurrent, call: Call, happened: list[Happened]) -> tuple[Tensor, States]:
    """One call a layer, and between them what the options ask for; what happened inside, if wanted, is entered.

    Where only the last outputs are wanted the last layer's directions are not merged: theirs stand at different steps.
    """
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    per_layer, number = len(call.weights) // L, len(layer.cell.states)
    uneven = isinstance(layer.hidden_size, list)
    y, finals = call.x, []
    for k in range(L):
        if uneven:
            states = tuple(call.states[s * L + k] for s in range(number))
        else:
            states = tuple(s[k * D : (k + 1) * D] for s in call.states)
        mine = call.weights[k * per_layer : (k + 1) * per_layer]
        one = call._replace(x=y, states=states, weights=mine, num_layers=1, dropout=0.0)
        if call.all_states:
            output, final, everything = choose(one).run_all(one)
            happened.append(Happened(one, everything[:number], everything[number:]))
        else:
            output, final = choose(one).run(one)
        if D == 2 and (layer.return_sequences or k < L - 1):
            output = merge(layer.merge_mode, output)
        y = output + y if layer.residual and k else output
        if call.dropout and k < L - 1:
            y = F.dropout(y, call.dropout)
        finals.append(final)
    by_state = list(zip(*finals, strict=True))
    return y, tuple(s for of in by_state for s in of) if uneven else tuple(map(torch.cat, by_state))


def merge(mode: str, output: Tensor) -> Tensor:
    """Both directions side by side (…, 2·H) -> joined: (…, 2·H) if concatenated, else (…, H)."""
    if mode == "concat":
        return output
    forward, backward = output.chunk(2, -1)
    if mode == "mul":
        return forward * backward
    return forward + backward if mode == "sum" else (forward + backward) / 2


def _halves(last: Tensor, first: Tensor) -> Tensor:
    """The forward half of one and the backward half of the other."""
    half = last.size(-1) // 2
    return torch.cat((last[..., :half], first[..., half:]), -1)
