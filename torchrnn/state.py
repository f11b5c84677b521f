"""What a user takes from a call's results: the last valid outputs, and states cut off from their past."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check_steps
from torchrnn.check import ArgumentError


def last(output: Any, lengths: Any = None, *, batch_first: bool = False, bidirectional: bool = False) -> Tensor:
    """The last valid output of each sequence: where a direction has read all of it.

    That is the output of the last valid step; of the backward direction, whose half stands second, that of step 0.

    Args:
        output: of a layer: (T, B, F), with ``batch_first`` (B, T, F); with several batch dimensions or none; a
            PackedSequence; a list of outputs (T_i, F); or a jagged nested tensor (B, j, F).
        lengths: (B,) integers, as given to the layer; without them all T steps are valid.
        batch_first: as the layer has it.
        bidirectional: as the layer has it.

    Returns:
        (B, F), rows in the order of the batch. The rows of empty sequences are zero.

    Raises:
        check.ArgumentError: the shape of ``lengths``, or ``lengths`` beside an output that has its own.
        TypeError: an argument has the wrong type.

    Example:
        ```python
        import torch
        import torchrnn

        layer = torchrnn.GRU(3, 5, bidirectional=True)
        output, h_n = layer(torch.randn(7, 2, 3), lengths=[4, 7])
        last = torchrnn.last(output, [4, 7], bidirectional=True)
        assert torch.equal(last, torch.cat((h_n[0], h_n[1]), -1))
        ```
    """
    x, batch, first, sizes, stride = _rows(output, lengths, batch_first)
    F = x.size(1)
    if bidirectional and F % 2:
        raise ArgumentError(f"output of a bidirectional layer has two halves, got {F} features")
    empty = sizes == 0
    if bool(empty.all()):
        return x.new_zeros(*batch, F)
    end = (first + stride(sizes - 1)).masked_fill(empty, 0)  # any step for an empty row: it becomes zero
    last = x.index_select(0, end.to(x.device))
    if bidirectional:
        begin = x.index_select(0, first.masked_fill(empty, 0).to(x.device))
        last = torch.cat((last[:, : F // 2], begin[:, F // 2 :]), 1)
    if bool(empty.any()):
        last = last.masked_fill(empty.unsqueeze(1).to(x.device), 0)
    return last.view(*batch, F)


def detach(state: Any) -> Any:
    """The same state without its past, so that a backward ends here: truncated backpropagation through time.

    Args:
        state: a Tensor, None, or any tuple, list or dict of states, such as the (h, c) of an LSTM.

    Returns:
        The same structure with each Tensor detached; the numbers are shared, not copied.

    Raises:
        TypeError: there is something else in it.

    Example:
        ```python
        import torch
        import torchrnn

        layer, state = torchrnn.LSTM(3, 5), None
        for chunk in torch.randn(40, 2, 3).split(10):
            output, state = layer(chunk, torchrnn.detach(state))
            output.sum().backward()  # goes back 10 steps
        ```
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return type(state)((name, detach(s)) for name, s in state.items())
    if isinstance(state, (tuple, list)):
        parts = [detach(s) for s in state]
        make: Any = getattr(state, "_make", type(state))  # a named tuple is not made of one list
        return make(parts)
    raise TypeError(f"state must be Tensors in tuples, lists or dicts, or None, got {type(state).__name__}")


class _Rows(NamedTuple):
    """The steps of an output in one row, and where each sequence stands in it, on the CPU."""

    x: Tensor  # (M, F)
    batch: tuple[int, ...]
    first: Tensor  # (B,) its first step
    sizes: Tensor  # (B,) how many it has
    stride: Callable[[Tensor], Tensor]  # from which step of a sequence on, how much farther it stands


def _rows(output: Any, lengths: Any, batch_first: bool) -> _Rows:
    if isinstance(output, PackedSequence):
        _alone(lengths, "a PackedSequence")
        return _packed(output)
    if isinstance(output, list):
        _alone(lengths, "a list of outputs")
        for k, x in enumerate(output):
            if not isinstance(x, Tensor) or x.dim() != 2:
                came = f"Tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"output must be a Tensor or a list of Tensors (T_i, F), got {came} at {k}")
        if not output:
            raise ArgumentError("output must be a list of at least one Tensor (T_i, F), got an empty one")
        sizes = torch.tensor([len(x) for x in output])
        return _Rows(torch.cat(list(output)), (len(sizes),), sizes.cumsum(0) - sizes, sizes, lambda step: step)
    if not isinstance(output, Tensor) or output.dim() < 2:
        came = f"Tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        if isinstance(output, tuple):
            came += ": a layer's result is (output, states); pass its first item; of outputs, list(output)"
        raise TypeError(f"output must be a layer's, such as a Tensor (T, B, F), got {came}")
    if output.is_nested:
        _alone(lengths, "a nested tensor")
        return _jagged(output)
    return _padded(output, lengths, batch_first and output.dim() > 2)


def _jagged(output: Any) -> _Rows:
    ends, given = output.offsets().cpu(), output.lengths()
    sizes = ends.diff() if given is None else given.cpu()
    return _Rows(output.values(), (len(sizes),), ends[:-1], sizes, lambda step: step)


def _alone(lengths: Any, came: str) -> None:
    if lengths is not None:
        raise ArgumentError(f"lengths goes with a padded output; output is {came}, which has its own")


def _packed(output: PackedSequence) -> _Rows:
    running = output.batch_sizes
    B = int(running[0])
    sizes = (running.unsqueeze(1) > torch.arange(B)).sum(0)
    before = running.cumsum(0) - running
    first, order = torch.arange(B), output.unsorted_indices
    if order is not None:
        first, sizes = order.cpu(), sizes[order.cpu()]
    return _Rows(output.data, (B,), first, sizes, lambda step: before[step])


def _padded(output: Tensor, lengths: Any, batch_first: bool) -> _Rows:
    at = 0 if batch_first else 1
    batch, T = tuple(output.shape[at : output.dim() - 2 + at]), output.size(-2 if batch_first else 0)
    B = prod(batch)
    if lengths is None:
        sizes = torch.full((B,), T)
    elif not batch:
        raise ArgumentError("lengths goes with a batch of outputs; output is one unbatched sequence: cut it instead")
    else:
        sizes = check_steps.lengths(lengths, T, batch)
    rows = torch.arange(B)
    x = output.reshape(T * B, output.size(-1))
    if batch_first:
        return _Rows(x, batch, rows * T, sizes, lambda step: step)
    return _Rows(x, batch, rows, sizes, lambda step: step * B)
