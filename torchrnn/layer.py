"""The recurrent layer as a module: arguments, parameters, and the way from a call to a backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from torchrnn import check, sequence
from torchrnn.call import Call, as_one_node, choose
from torchrnn.cell import Cell


class Recurrent(nn.Module):
    r"""A stack of recurrent layers over a sequence, for the cell that a subclass names.

    Args:
        input_size: I, features of the input at each step.
        hidden_size: H, features of a state.
        num_layers: L, layers on top of each other; each takes the output of the one below.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are (B, T, …) instead of (T, B, …). The states do not change.
        dropout: probability of zeroing an element of the output of every layer but the last, in training.
        bidirectional: D = 2: a second sweep runs backward in time; the outputs of both are joined, forward first.
        proj_size: P, if not 0, the size to which the output, and so what ``weight_hh`` sees, is projected.
        device: of the parameters.
        dtype: of the parameters.

    Parameters, for layer ``k`` (``_reverse`` is appended for the backward direction), with G gates:

    | name | shape | |
    |---|---|---|
    | ``weight_ih_l[k]`` | (G·H, I), above the first layer (G·H, D·H) | multiplies the input |
    | ``weight_hh_l[k]`` | (G·H, H), with projection (G·H, P) | multiplies the previous output |
    | ``bias_ih_l[k]`` | (G·H,) | |
    | ``bias_hh_l[k]`` | (G·H,) | |
    | ``weight_hr_l[k]`` | (P, H) | projects the output, if ``proj_size`` |

    All are drawn from U(-1/√H, 1/√H), in this order, as torch.nn does.

    Raises:
        ValueError: a size or the dropout is out of range.
        TypeError: an argument has the wrong type.
    """

    cell: ClassVar[Cell]  # set by the subclass; RNN has two

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    mode: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mode = self.cell.name.upper()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        check.layer_options(self, dropout)
        self.dropout = float(dropout)
        self._all_weights: list[list[str]] = []
        for shapes in self._shapes():
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            self._all_weights.append(list(shapes))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self.reset_parameters()

    def _shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Name and shape of the parameters of each layer and direction, in torch.nn's order."""
        GH, D = len(self.cell.gates) * self.hidden_size, 2 if self.bidirectional else 1
        out = self.proj_size or self.hidden_size
        shapes = []
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else D * out
            for end in (f"l{layer}", f"l{layer}_reverse")[:D]:
                of: dict[str, tuple[int, ...]] = {f"weight_ih_{end}": (GH, width), f"weight_hh_{end}": (GH, out)}
                if self.bias:
                    of |= {f"bias_ih_{end}": (GH,), f"bias_hh_{end}": (GH,)}
                if self.proj_size:
                    of[f"weight_hr_{end}"] = (self.proj_size, self.hidden_size)
                shapes.append(of)
        return shapes

    def reset_parameters(self) -> None:
        """Draw all parameters anew from U(-1/√H, 1/√H)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        input: Tensor | PackedSequence | Sequence[Tensor],
        hx: Tensor | tuple[Tensor, ...] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
    ) -> tuple[Any, Any]:
        """Run the layers over a sequence.

        Args:
            input: (T, B, I); with ``batch_first`` (B, T, I); one unbatched sequence (T, I); several batch dimensions
                (T, B1, B2, …, I), with ``batch_first`` (B1, B2, …, T, I); a PackedSequence; a list of sequences
                (T_i, I); or a jagged nested tensor (B, j, I), whatever ``batch_first`` is.
            hx: initial states, each (L·D, B, H), unbatched (L·D, H), with several batch dimensions
                (L·D, B1, B2, …, H): one Tensor, or a tuple where the cell has several states. One of batch 1 is for all
                rows. Zeros by default.
            lengths: (B,) integers from 0 to T, in any order and on any device: the rows of a padded batch end there.
                What stands beyond, even NaN, reaches nothing.
            mask: (T, B) bool, with ``batch_first`` (B, T), unbatched (T,): where it is False the step is left out: the
                state stays as it was, the output is zero.
            reset: likewise: where it is True a new sequence begins, so that neither direction carries a state, nor a
                gradient, across. Going forward ``hx`` enters a row's first sequence, unless there is a reset at step 0;
                going backward it enters the row's last one.
            reset_to: what a reset sets the state to: ``"zero"``, or ``"initial"``, the row's state in ``hx``.

        Returns:
            The output of the last layer, in the form of the input, with D·H (or D·P) features: zero for steps that do
            not count. And the final states, in the form of ``hx``: a row's state at its own end, going backward at its
            own beginning.

        Raises:
            check.ArgumentError: a tensor has the wrong shape, dtype or device.
            TypeError: an argument has the wrong type.
        """
        if isinstance(input, Proxy):
            said = sequence.Steps(lengths, mask, reset, reset_to)._asdict()
            default = sequence.Steps._field_defaults
            return as_one_node(self, input, hx, **{k: v for k, v in said.items() if v is not default[k]})
        call, form = self.request(input, hx, lengths, mask, reset, reset_to)
        output, states = form.leave(*choose(call).run(call))
        return output, states[0] if len(states) == 1 else states

    def request(
        self,
        input: Any,
        hx: Any = None,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
    ) -> tuple[Call, sequence.Form]:
        """The call that ``forward`` makes of its arguments, and the form in which its results go back."""
        weights = self._flat_weights
        if (
            not isinstance(input, Tensor)
            or input.is_nested
            or input.dim() != 3
            or lengths is not None
            or mask is not None
            or reset is not None
            or reset_to != "zero"
            or input.shape[-1] != self.input_size
            or input.dtype != weights[0].dtype
            or input.device != weights[0].device
        ):
            said = sequence.Steps(lengths, mask, reset, reset_to)
            x, batch_sizes, form = sequence.enter(self, input, weights[0], said)
        else:
            x, batch_sizes, form = sequence.plain(input, self.batch_first)
        LD = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None:
            states = self._zeros((LD, form.rows(x)), x)
        else:
            states = form.enter_states(self._given(hx, (LD, *form.batch(x)), x))
        call = Call(
            self.cell,
            x,
            states,
            weights,
            self.bias,
            self.num_layers,
            self.dropout if self.training else 0.0,
            self.training,
            self.bidirectional,
            batch_sizes,
        )
        return call, form

    def _zeros(self, shape: tuple[int, ...], x: Tensor) -> tuple[Tensor, ...]:
        """Initial states of zeros; states of one size share one tensor, which no backend writes to."""
        h = torch.zeros(*shape, self.proj_size or self.hidden_size, dtype=x.dtype, device=x.device)
        others = len(self.cell.states) - 1
        if not others:
            return (h,)
        rest = torch.zeros(*shape, self.hidden_size, dtype=x.dtype, device=x.device) if self.proj_size else h
        return (h, *(rest,) * others)

    def _given(self, hx: Any, shape: tuple[int, ...], x: Tensor) -> tuple[Tensor, ...]:
        """The user's initial states, checked."""
        states = (hx,) if isinstance(hx, Tensor) else hx
        first, rest = (*shape, self.proj_size or self.hidden_size), (*shape, self.hidden_size)
        if not check.fit(states, isinstance(hx, Tensor), self.cell, x, first, rest):
            check.layer_states(self, hx, x, shape)
            states = [s.expand(first if k == 0 else rest) for k, s in enumerate(states)]  # one of batch 1 is for all
        return tuple(states)

    @property
    def _flat_weights(self) -> list[Any]:
        """All weights in order, read by name: parametrized, pruned or hand-made ones are what they are now."""
        names, parameters = self._flat_weights_names, self._parameters
        try:
            return [parameters[name] for name in names]  # what getattr would find, without its detour
        except KeyError:
            return [check.weight(self, name) for name in names]

    @property
    def all_weights(self) -> list[list[Any]]:
        """The weights of each layer and direction, as in torch.nn."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Does nothing: kept for code that calls it. Backends pack weights when they need to."""

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"dropout": 0, "bidirectional": False}
        changed = [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])
