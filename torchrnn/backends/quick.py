"""The short way of an ordinary call to our kernels: of a small one, being looked at was the greater part.

Here is only asked whether a call is an ordinary one. Sizes and types that do not fit are refused by the operators; then
the long way has the words, or knows what else the user may have meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrnn import check, sequence
from torchrnn.activation import PLAIN
from torchrnn.backends import cpu, loop, step
from torchrnn.backends.operators import NUMBERS
from torchrnn.call import surrounded

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent
    from torchrnn.sequence import Said
    from torchrnn.step import RecurrentCell

_KINDS = (torch.float32, torch.float64)


def one_step(module: RecurrentCell, x: Tensor, hx: Any) -> Any:
    """The new states as the module gives them, or None: the call is not an ordinary one."""
    if surrounded():
        return None
    cell = module.cell
    if type(hx) is Tensor:
        h = c = hx
        states = 1
    elif type(hx) is tuple and len(hx) == 2:
        h, c = hx
        if type(h) is not Tensor or type(c) is not Tensor:
            return None
        states = 2
    else:
        return None
    parameters: Any = module._parameters
    try:
        w_ih, w_hh = parameters["weight_ih"], parameters["weight_hh"]
        b_ih, b_hh = parameters["bias_ih"], parameters["bias_hh"]
    except KeyError:
        return None  # weights that are made anew for each call
    if (
        cell not in NUMBERS  # its first call
        or states != len(cell.states)
        or module.input_size is None  # there are no weights yet
        or module.bias is not True
        or module._options is not PLAIN
        or x.dtype not in _KINDS
        or not (x.is_cpu and h.is_cpu and c.is_cpu and w_ih.is_cpu)
    ):
        return None
    try:
        h, c = step.of_two_states(cell, True, x, h, c, w_ih, w_hh, b_ih, b_hh)
    except RuntimeError:
        check.weights(module)
        return None
    return h if states == 1 else (h, c)


_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_functional = torch._is_functional_tensor  # pyright: ignore[reportPrivateImportUsage]
_ZEROS: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}


def _zeros(module: Recurrent, LD: int, B: int, x: Tensor) -> tuple[Tensor, ...]:
    """Initial states of zeros; without gradients small ones are kept, since to make them takes a sixth of a small call.

    What is kept is never handed to autograd, whose hooks may do with saved tensors what they like, nor to a mode that
    sees the operators or makes zeros of its own.
    """
    if torch.is_grad_enabled() or _dispatch_modes() or _function_modes():
        return module._zeros((LD, B), x)
    key = LD, B, module.hidden_size, module.proj_size, len(module.cell.states), x.dtype
    found = _ZEROS.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = module._zeros((LD, B), x)
        plain = type(found[0]) is Tensor and not _functional(found[0])
        if plain and found[-1].numel() <= 4096 and len(_ZEROS) < 64:
            _ZEROS[key] = found
    return found


def layers(module: Recurrent, x: Tensor, hx: Any, said: Said | None = None) -> Any:
    """The output and the final states as the module gives them, or None: the call is not an ordinary one."""
    if surrounded() or x.is_nested:
        return None
    cell, shape = module.cell, x.shape
    parameters: Any = module._parameters
    flags = cpu.BIDIRECTIONAL if module.bidirectional else 0
    if module.bias is True:
        flags += cpu.BIAS
    elif module.bias:
        return None
    try:
        weights = [parameters[name] for name in module._flat_weights_names]
    except KeyError:
        return None
    if (
        cell not in NUMBERS
        or len(shape) != 3
        or module.input_size is None  # there are no weights yet
        or 0 in shape
        or x.dtype not in _KINDS
        or not (x.is_cpu and weights[0].is_cpu)
        or module._options is not PLAIN
        or (module.dropout and module.training and module.num_layers > 1)
    ):
        return None
    batch_first = module.batch_first
    B, T = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
    steps = None
    if said is not None:
        try:
            steps = sequence.steps_of_batch(module, x, said, T, B)
        except (TypeError, ValueError, RuntimeError):
            return None
    if batch_first and steps is None:
        x = x.transpose(0, 1)
    if hx is None:
        states = _zeros(module, module.num_layers * (2 if module.bidirectional else 1), B, x)
    else:
        states = (hx,) if type(hx) is Tensor else hx
        if type(states) is not tuple:
            return None
        for h in states:
            if type(h) is not Tensor or not h.is_cpu:
                return None
    one_step = T == module.num_layers == 1 and not (flags & cpu.BIDIRECTIONAL or module.proj_size or steps)
    try:
        results = loop.layer(cell, bool(module.bias), x, states, weights) if one_step else None
        y, *finals = results or cpu.plain_stack(cell, x, states, weights, flags, steps)
    except RuntimeError:
        check.weights(module)
        return None
    if batch_first and steps is None:
        y = y.transpose(0, 1)
    return y, finals[0] if len(finals) == 1 else tuple(finals)
