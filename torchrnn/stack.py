"""How layers stand on each other: one call of a backend where nothing special is asked, else one a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn import check, parameters
from torchrnn.call import Call, choose
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


def initial(layer: Recurrent, hx: Any, form: Form, x: Tensor) -> States:
    """The initial states as backends take them; where layers differ in size, state by state each layer's."""
    table = parameters.states(layer)
    if hx is None and not layer.learn_initial_state:
        rows = form.rows(x)
        return tuple(torch.zeros(s.rows, rows, s.width, dtype=x.dtype, device=x.device) for s in table)
    batch = form.batch(x)
    if hx is None:
        learned = []
        for name, rows, width in table:
            value = check.weight(layer, name).to(x.dtype)
            learned.append(value.view(rows, *(1,) * len(batch), width).expand(rows, *batch, width))
        return form.enter_states(tuple(learned))
    if isinstance(layer.hidden_size, list):
        return form.enter_states(_given_by_layer(layer, hx, batch, x))
    if layer.batch_first_state:
        hx = tuple(map(_batch_second, hx)) if isinstance(hx, (tuple, list)) else _batch_second(hx)
    return form.enter_states(layer._given(hx, (table[0].rows, *batch), x))


def _given_by_layer(layer: Recurrent, hx: Any, batch: tuple[int, ...], x: Tensor) -> States:
    """The user's states of layers that differ in size: for each state a list of L Tensors (D, B, H)."""
    names, L = layer.cell.states, layer.num_layers
    groups = check.lists_of_states(layer, hx)
    table, found = parameters.states(layer), []
    for s in range(len(names)):
        for k in range(L):
            shape = (table[s * L + k].rows, *batch, table[s * L + k].width)
            label = f"hx[{k}]" if len(names) == 1 else f"hx[{s}][{k}]"
            state = _batch_second(groups[s][k]) if layer.batch_first_state else groups[s][k]
            check.layer_state(layer, label, state, shape, x, k)
            found.append(state.expand(shape))
    return tuple(found)


def _batch_second(state: Any) -> Any:
    """(B, L·D, H) -> (L·D, B, H); what is no such Tensor is left to the checks."""
    return state.movedim(-2, 0) if isinstance(state, Tensor) and state.dim() > 2 else state


def run(layer: Recurrent, call: Call, form: Form) -> Any:
    """What ``forward`` returns where options ask for more than torch.nn's layers do."""
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    merges = D == 2 and layer.merge_mode != "concat"
    if merges or (layer.residual and L > 1) or isinstance(layer.hidden_size, list):
        output, states = _by_layer(layer, call)
    else:
        output, states = choose(call).run(call)
    p = layer.output_dropout if layer.training else 0.0
    if not layer.return_sequences:
        ends = form.ends(_ends(layer, call, output, states))
        last = merge(layer.merge_mode, torch.cat(ends, -1)) if D == 2 else ends[0]
        return F.dropout(last, p) if p else last
    output, states = form.leave(F.dropout(output, p) if p else output, states)
    if layer.batch_first_state:
        states = tuple(s.movedim(0, -2) for s in states)
    result: tuple[Any, ...] = states
    if isinstance(layer.hidden_size, list):
        result = tuple(list(states[k : k + L]) for k in range(0, len(states), L))
    return output, result[0] if len(result) == 1 else result


def _by_layer(layer: Recurrent, call: Call) -> tuple[Tensor, States]:
    """One call a layer, and between them what the options ask for."""
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
        output, final = choose(one).run(one)
        if D == 2:
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


def _ends(layer: Recurrent, call: Call, output: Tensor, states: States) -> States:
    """By direction, the last output of each of the backend's rows (rows, P): going backward that of its first step."""
    D = 2 if layer.bidirectional else 1
    if call.batch_sizes is None and not output.size(0):
        zeros = output.sum(0)  # yet differentiable
        return zeros.chunk(D, -1) if layer.merge_mode == "concat" else (zeros,) * D
    if layer.residual and layer.num_layers > 1:
        return _ends_of(output, call.batch_sizes, D)
    # nothing was added to the output: it is the state
    h = states[layer.num_layers - 1] if isinstance(layer.hidden_size, list) else states[0][-D:]
    return h.unbind(0)


def _ends_of(y: Tensor, batch_sizes: Tensor | None, D: int) -> States:
    """Of an output (T, B, …) or packed (N, …) the last step of each row; of its backward half the first: (rows, P)."""
    if batch_sizes is None:
        first, last = y[0], y[-1]
    else:
        B = int(batch_sizes[0]) if len(batch_sizes) else 0
        lengths = (batch_sizes > torch.arange(B).unsqueeze(1)).sum(1)  # (B,)
        begins = torch.cat((batch_sizes.new_zeros(1), batch_sizes.cumsum(0)))
        index = (begins[lengths - 1] + torch.arange(B)).to(y.device)
        first, last = y[:B], y.index_select(0, index)
    return (last,) if D == 1 else (last.chunk(2, -1)[0], first.chunk(2, -1)[1])
