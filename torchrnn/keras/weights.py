"""The same weights in Keras's arrangement and in ours: transposed, and with the gates in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrnn.keras.described import Described

# for each gate of ours, which one of Keras's it is: i f c o are our i f g o, z r h our z r n
_OURS = {"SimpleRNN": [0], "LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2]}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(array: Any, label: str) -> Tensor:
    """An array of Keras's, whatever it is, as a tensor of its own.

    Raises:
        ValueError: it holds no floating-point numbers.
    """
    if isinstance(array, Tensor):
        made = array.detach().cpu().clone()
    else:
        kind = str(getattr(array, "dtype", ""))
        try:
            # NumPy's bfloat16 is a type of another package
            made = torch.tensor(array.astype("float32") if kind == "bfloat16" else array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{label} must be an array of numbers, got {type(array).__name__} {kind}") from error
        made = made.bfloat16() if kind == "bfloat16" else made
    if made.dtype not in _FLOATS:
        raise ValueError(f"{label} must be floating-point numbers, got {made.dtype}: quantised weights are not known")
    return made


def check(layer: Described, side: str, arrays: Sequence[Tensor], I: int | None) -> int:
    """Raise unless the weights of one direction have the shapes that the layer's description asks for; give I."""
    for (name, expected), array in zip(layer.shapes(I), arrays, strict=True):
        shape = tuple(array.shape)
        if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
            letters = {"kernel": "(I, G·H)", "recurrent_kernel": "(H, G·H)"}.get(name, "(G·H,)")
            if len(expected) == 2 and name == "bias":
                letters = "(2, G·H)"
            want = str(expected).replace("None", "I")
            hint = ": is reset_after what the weights were trained with?" if name == "bias" and layer.gates == 3 else ""
            raise ValueError(f"{layer.name}: {side}{name} must be {letters} = {want}, got {shape}{hint}")
        if array.dtype != arrays[0].dtype:
            raise ValueError(
                f"{layer.name}: {side}{name} must have the dtype of the kernel, {arrays[0].dtype}, got {array.dtype}"
            )
    if not arrays[0].size(0):
        raise ValueError(f"{layer.name}: {side}kernel must be (I, G·H) with I greater than zero, got I = 0")
    return arrays[0].size(0)


def to_ours(layer: Described, arrays: Sequence[Tensor]) -> list[Tensor]:
    """kernel, recurrent_kernel[, bias] of one direction -> weight_ih, weight_hh[, bias_ih][, bias_hh]."""
    order = _OURS[layer.kind]
    kernel, recurrent, *bias = ([a.chunk(len(order), -1)[k] for k in order] for a in arrays)
    found = [torch.cat(kernel, -1).T.contiguous(), torch.cat(recurrent, -1).T.contiguous()]
    for of in bias:
        whole = torch.cat(of, -1)
        found += [whole] if whole.dim() == 1 else [b.clone() for b in whole]
    return found


def to_keras(kind: str, weights: Sequence[Tensor], *, two_biases: bool) -> list[Any]:
    """weight_ih, weight_hh[, bias_ih][, bias_hh] of one direction -> NumPy arrays in Keras's arrangement."""
    order = _OURS[kind]
    inverse = [order.index(k) for k in range(len(order))]
    w_ih, w_hh, *biases = (torch.cat([w.detach().cpu().chunk(len(order))[k] for k in inverse]) for w in weights)
    found = [w_ih.T, w_hh.T]
    if biases and two_biases:
        found.append(torch.stack([*biases, torch.zeros_like(biases[0])][:2]))
    elif biases:
        found.append(biases[0] + biases[1] if len(biases) > 1 else biases[0])
    return [(w.float() if w.dtype == torch.bfloat16 else w).contiguous().numpy() for w in found]
