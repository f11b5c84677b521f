"""A layer run step by step or chunk by chunk: it keeps the state, and where it can the weights packed for many steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check
from torchrnn.backends import cpu
from torchrnn.call import Call, choose
from torchrnn.layer import Recurrent
from torchrnn.state import detach


class Stream:
    """Runs a layer over a sequence that comes in pieces, and keeps the state between them.

    On our CPU kernels the pieces' outputs are bit for bit those of one call over the whole sequence, and without
    gradients the weights are packed once for all steps. They are packed again when a parameter is replaced, moved or
    changed in place; a change that torch does not count, through ``weight.data`` or a NumPy array, needs
    [`refresh`][torchrnn.Stream.refresh].

    Args:
        layer: a layer of one direction.
        state: the state to begin with, in the form of the layer's ``hx``. By default what the layer itself begins with:
            zeros, or its learned initial state.

    Raises:
        TypeError: ``layer`` is none of ours.
        ValueError: ``layer`` is bidirectional: its backward direction begins at an end that has not come yet.

    Example:
        ```python
        import torch
        import torchrnn

        layer = torchrnn.LSTM(3, 5)
        x = torch.randn(100, 2, 3)  # (T, B, I)
        with torch.no_grad():
            whole, _ = layer(x)
            stream = torchrnn.Stream(layer)
            steps = torch.stack([stream(x_t) for x_t in x])  # each (B, I) -> (B, H)
        torch.testing.assert_close(steps, whole)
        ```
    """

    def __init__(self, layer: Recurrent, state: Any = None) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(
                f"layer must be a torchrnn layer, got {type(layer).__name__}: a cell needs no stream, and "
                "torchrnn.convert(model) turns torch.nn's layers into ours"
            )
        if layer.bidirectional:
            raise ValueError(
                "layer must have one direction, got a bidirectional one: its backward direction begins at the end of "
                "the sequence, which a stream does not know"
            )
        self.layer = layer
        self._state = state
        self._steps: list[tuple[Tensor, Tensor]] | None = None  # the state as the packed kernels leave it, by layer
        self._packed: list[_Packed] | None = None

    @property
    def state(self) -> Any:
        """The state after the last step, in the form of ``hx``; None before the first where none was given."""
        if self._steps is not None:
            states = [torch.stack(s) for s in zip(*self._steps, strict=True)][: len(self.layer.cell.states)]
            self._state, self._steps = states[0] if len(states) == 1 else tuple(states), None
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state, self._steps = state, None

    def __call__(self, x: Tensor) -> Tensor:
        """Take the next step, or the next chunk.

        Args:
            x: one step (B, I), or a chunk in the form of the layer's input, (T, B, I) or with ``batch_first``
                (B, T, I). The batch stays the same until `reset` is called without rows.

        Returns:
            The output of the step (B, H), or of the chunk.

        Raises:
            check.ArgumentError: the shape, dtype or device is not the layer's or not that of the state.
        """
        if isinstance(x, Tensor) and x.dim() == 2:
            if not torch.is_grad_enabled():
                output = self._packed_step(x)
                if output is not None:
                    return output
            sequence = PackedSequence(x, torch.tensor([x.size(0)]))  # of one step
            output, self.state = self.layer(sequence, self.state)
            return output.data
        if not isinstance(x, Tensor) or x.dim() != 3:
            came = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            letters = "(B, T, I)" if self.layer.batch_first else "(T, B, I)"
            raise check.ArgumentError(f"x must be one step (B, I) or a chunk {letters}, got {came}")
        output, self.state = self.layer(x, self.state)
        return output

    def reset(self, rows: Tensor | None = None) -> None:
        """Let the sequences begin anew.

        Args:
            rows: (B,) bool, the rows of the batch that begin anew. All by default; the batch may then change.
        """
        if rows is None:
            self.state = None
            return
        state = self.state
        if state is None:
            return
        states = state if isinstance(state, (tuple, list)) else (state,)
        B = states[0].size(1)
        if not isinstance(rows, Tensor) or rows.dtype is not torch.bool or rows.shape != (B,):
            came = f"{tuple(rows.shape)} {rows.dtype}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
            raise check.ArgumentError(f"rows must be (B,) = ({B},) bool, True where a row begins anew, got {came}")
        new = tuple(s.masked_fill(rows.view(-1, 1), 0) for s in states)
        self.state = new if isinstance(state, (tuple, list)) else new[0]

    def detach(self) -> None:
        """Cut the graph behind the state: truncated backpropagation through time goes back to here."""
        self.state = detach(self.state)

    def refresh(self) -> None:
        """Pack the weights anew at the next step, after a change that torch does not count."""
        self._packed = None

    def _packed_step(self, x: Tensor) -> Tensor | None:
        """The next step by packed weights, or None where the layer or the call is not for them."""
        weights = self.layer._flat_weights
        packed = self._packed
        if packed is None or not packed.current(weights):
            packed = self._packed = pack(self.layer, weights)
        steps = self._steps
        if steps is None:
            steps = self._steps_of(x)
        w = weights[0]
        if x.shape != (steps[0][0].size(0), self.layer.input_size) or x.dtype is not w.dtype or not packed.by_layer:
            return None  # the layer's own way, or its message
        call = Call(self.layer.cell, x, steps[0], weights, self.layer.bias is not False, one_step=True)
        if choose(call) is not cpu:
            return None
        self._steps = []
        for k, (h, c) in enumerate(steps):
            x, c = cpu.packed_step(call.cell, packed.by_layer[k], x, h, c, call.bias)
            self._steps.append((x, x if c is None else c))
        return x

    def _steps_of(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The state as the packed kernels take it: for each layer the first and the last of the states, (B, H)."""
        call, _ = self.layer.request(x.unsqueeze(0), self._state)
        return [(call.states[0][k], call.states[-1][k]) for k in range(self.layer.num_layers)]


class _Packed(NamedTuple):
    """The weights of a layer packed for many steps, and what they were packed from."""

    weights: Sequence[Tensor]
    versions: list[int]
    places: list[int]
    by_layer: list[Tensor]  # empty: not for this layer

    def current(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the weights that were packed, unchanged as far as torch counts."""
        return (
            all(map(is_, weights, self.weights))
            and [w._version for w in weights] == self.versions
            and [w.data_ptr() for w in weights] == self.places
        )
