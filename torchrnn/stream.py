"""A layer run step by step or chunk by chunk: it keeps the state, and the weights packed for many steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_leaves, tree_map

from torchrnn import check, stack
from torchrnn.activation import PLAIN
from torchrnn.backends import cpu, step
from torchrnn.call import Call, choose
from torchrnn.layer import Recurrent
from torchrnn.state import detach


class Stream:
    """Runs a layer over a sequence that comes in pieces, and keeps the state between them.

    On our CPU kernels the pieces' outputs are bit for bit those of one call over the whole sequence (of two steps or
    more, in float32 and float64, without dropout), and without gradients the weights are packed once for all steps.
    They are packed again when a parameter is replaced, moved or changed in place, and after an optimiser's step. A
    change that torch does not count, through ``weight.data`` or a NumPy array, needs
    [`refresh`][torchrnn.Stream.refresh].

    Args:
        layer: a layer of one direction.
        state: the state to begin with, in the form of the layer's ``hx``. By default what the layer itself begins with:
            zeros, or its learned initial state.

    Raises:
        TypeError: ``layer`` is none of ours.
        ValueError: ``layer`` is bidirectional: its backward direction begins at an end that has not come yet. Or it
            has ``return_sequences=False``: it gives no state to go on from.

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
        _outputs(layer)
        self.layer = layer
        self._state = state
        self._begun = False  # whether `_state` is of steps taken, which fixes the batch
        self._steps: list[Tensor] | None = None  # the states (S, B, H) as the packed kernels leave them, by layer
        self._shape: tuple[int, int] | None = None  # of a step, while there is such a state
        self._packed: _Packed | None = None

    @property
    def state(self) -> Any:
        """The state after the last step, in the form of ``hx``; None before the first where none was given."""
        if self._steps is not None:
            self._begun = True
            states = tuple(torch.stack(s) for s in zip(*self._steps, strict=True))
            self._state, self._steps = stack.leave_states(self.layer, states), None
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state, self._steps, self._begun = state, None, False

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
            return self._run(PackedSequence(x, torch.tensor([x.size(0)])), x.size(0)).data  # of one step
        if not isinstance(x, Tensor) or x.dim() != 3:
            came = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            letters = "(B, T, I)" if self.layer.batch_first else "(T, B, I)"
            raise check.ArgumentError(f"x must be one step (B, I) or a chunk {letters}, got {came}")
        time = 1 if self.layer.batch_first else 0
        if x.size(time) == 1:  # a call of one step sums in another order than the steps of a sequence
            return self(x.squeeze(time)).unsqueeze(time)
        return self._run(x, x.size(1 - time))

    def _run(self, x: Tensor | PackedSequence, B: int) -> Any:
        """The layer's own way."""
        state = self.state
        self._same_batch(B)
        _outputs(self.layer)
        output, self._state = self.layer(x, state)
        self._begun = True
        return output

    def reset(self, rows: Tensor | None = None) -> None:
        """Let sequences begin anew, with zeros or the layer's learned initial state.

        Args:
            rows: (B,) bool, the rows of the batch that begin anew. All by default; the batch may then change.

        Raises:
            check.ArgumentError: the shape or the dtype of ``rows``.
        """
        if rows is None:
            self.state = None
            return
        state = self.state
        flags = isinstance(rows, Tensor) and rows.dtype is torch.bool and rows.dim() == 1
        if state is None and flags:
            return
        B = None if state is None else self._batch(state)
        if not flags or rows.size(0) != B:
            came = f"{tuple(rows.shape)} {rows.dtype}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
            expected = "(B,)" if B is None else f"(B,) = ({B},)"
            raise check.ArgumentError(f"rows must be {expected} bool, True where a row begins anew, got {came}")
        at = rows.view(-1, 1, 1) if self.layer.batch_first_state else rows.view(-1, 1)
        self._state = tree_map(lambda new, old: torch.where(at, new, old), stack.begin(self.layer, rows.size(0)), state)

    def _same_batch(self, B: int) -> None:
        """Raise for another batch than that of the steps taken."""
        if self._begun and B != self._batch(self._state):
            raise check.ArgumentError(
                f"x must have the batch of the steps before, B = {self._batch(self._state)}, got {B}: reset() lets "
                "another batch begin"
            )

    def _batch(self, state: Any) -> int:
        """The batch size of a state in the form of ``hx``."""
        return tree_leaves(state)[0].size(0 if self.layer.batch_first_state else 1)

    def detach(self) -> None:
        """Cut the graph behind the state: truncated backpropagation through time goes back to here."""
        self._state = detach(self.state)

    def refresh(self) -> None:
        """Pack the weights anew at the next step, after a change that torch does not count."""
        self._packed = None

    def _packed_step(self, x: Tensor) -> Tensor | None:
        """The next step by packed weights, or None where the layer or the call is not for them."""
        layer = self.layer
        if layer.input_size is None or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        weights = layer._flat_weights
        packed = self._packed
        if packed is None or packed.asked != _asked(layer) or not packed.current(weights):
            packed = self._packed = _pack(layer, weights)
            _ = self.state  # to be checked against the weights once more: they may have another dtype
        call = packed.call
        if call is None or choose(call) is not cpu:
            return None
        steps = self._steps
        if steps is None:
            self._same_batch(x.size(0))
            states = layer.request(x.unsqueeze(1 if layer.batch_first else 0), self._state)[0].states
            steps = list(torch.stack(states, 1))
            self._shape = (x.size(0), layer.input_size)
        if x.shape != self._shape or x.dtype is not call.x.dtype or not x.is_cpu or type(x) is not Tensor:
            return None  # the layer's own way finds the words
        done = []
        for states, weights_of in zip(steps, packed.by_layer, strict=True):
            x, states = step.packed_step(call, weights_of, x, states)
            done.append(states)
        self._steps = done
        return x


def _outputs(layer: Recurrent) -> None:
    """Raise for a layer that gives no state."""
    if not layer.return_sequences:
        raise ValueError(
            "a Stream and return_sequences=False do not go together: such a layer gives its last output alone, no "
            "state to go on from; take the last output of the stream instead"
        )


def _asked(layer: Recurrent) -> tuple[Any, ...]:
    """What may be asked of a layer at any time and changes its steps."""
    return layer.training, layer.dropout, layer.output_dropout, layer.residual, layer.return_sequences


class _Optimisers:
    """How often optimisers have stepped: fused ones change weights past torch's count of changes."""

    steps = 0
    watched = False

    @classmethod
    def watch(cls) -> int:
        """The number so far; from the first time on they are counted."""
        if not cls.watched:
            register_optimizer_step_post_hook(cls._count)
            cls.watched = True
        return cls.steps

    @classmethod
    def _count(cls, *_: Any) -> None:
        cls.steps += 1


class _Packed(NamedTuple):
    """The weights of a layer packed for many steps, and what they were packed from."""

    steps: int  # of optimisers until then
    asked: tuple[Any, ...]
    weights: list[tuple[Tensor, int, int]]  # with the version and the place of each
    call: Call | None  # a step; None: the layer is not for this
    by_layer: list[Tensor]

    def current(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the weights that were packed, unchanged as far as torch and we count."""
        if self.steps != _Optimisers.steps:
            return False
        for weight, (packed, version, place) in zip(weights, self.weights, strict=False):
            if weight is not packed or weight._version != version or weight.data_ptr() != place:
                return False
        return True


def _pack(layer: Recurrent, weights: Sequence[Tensor]) -> _Packed:
    """The weights of a layer, packed if its steps are those of the kernels for many steps and nothing more."""
    steps = _Optimisers.watch()
    call, _ = layer.request(weights[0].new_zeros((1, 1, layer.input_size)))
    call = call._replace(x=call.x[0], one_step=True)
    plain = (
        call.options is PLAIN  # the packed steps know no others
        and not layer.proj_size
        and not (layer.residual and layer.num_layers > 1)
        and not isinstance(layer.hidden_size, list)
        and layer.return_sequences
        and not (layer.training and (layer.dropout or layer.output_dropout))
        and len(call.states) <= 2
        and all(type(w) is nn.Parameter and not w.is_inference() for w in weights)
        and choose(call) is cpu
    )
    if not plain:
        return _Packed(steps, _asked(layer), [], None, [])
    by_layer, of = [], len(call.weights) // layer.num_layers
    first, *_, last = (*call.states, *call.states)
    for k in range(layer.num_layers):
        by_layer.append(step.pack(call, (first[k], last[k]), call.weights[k * of : (k + 1) * of]))
    return _Packed(steps, _asked(layer), [(w, w._version, w.data_ptr()) for w in weights], call, by_layer)
