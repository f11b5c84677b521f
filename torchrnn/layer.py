"""The recurrent layer as a module: arguments, parameters, and the way from a call to a backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from torchrnn import _extension, arguments, check, check_states, init, lazy, legacy, parameters, sequence, stack
from torchrnn import activation as activations
from torchrnn.activation import PLAIN, Options
from torchrnn.backends import quick
from torchrnn.call import Call, as_one_node, choose, no_script
from torchrnn.cell import Cell


class Recurrent(nn.Module):
    r"""A stack of recurrent layers over a sequence, for the cell that a subclass names.

    Args:
        input_size: I, features of the input at each step; ``None``: those of the first input.
        hidden_size: H, features of a state; or a list, H for each layer.
        num_layers: L, layers on top of each other; each takes the output of the one below.
        bias: whether there are ``bias_ih`` and ``bias_hh``; ``"single"``: ``bias_ih`` alone.
        batch_first: input and output are (B, T, …) instead of (T, B, …). The states do not change.
        dropout: probability of zeroing an element of the output of every layer but the last, in training.
        bidirectional: D = 2: a second sweep runs backward in time; the outputs of both are joined, forward first.
        proj_size: P, if not 0, the size to which the output, and so what ``weight_hh`` sees, is projected.
        device: of the parameters.
        dtype: of the parameters.
        activation: ϕ of the cell's equations: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"linear"``, ``"softsign"`` or
            ``"elu"``.
        cell_clip: clip the states after the first, or the only one, to ±``cell_clip`` at every step; None: do not.
        return_sequences: if False, the call returns only each row's last output (B, D·H), no tuple: of the forward
            direction at the row's last step, of the backward one at its first; of an empty row zero.
        merge_mode: how the outputs of both directions are joined, between layers too: ``"concat"``, ``"sum"``,
            ``"mean"`` or ``"mul"``. All but the first make D·H below an H.
        residual: every layer above the first adds its input to its output, before dropout.
        forget_bias: b, the first value of the forget gate's bias: b in ``bias_ih``, 0 in ``bias_hh``.
        learn_initial_state: where no ``hx`` is given, the states begin as parameters ``initial_h`` … (L·D, H).
        batch_first_state: initial and final states are (B, L·D, H).
        output_dropout: probability of zeroing an element of the output of the last layer, in training.

    The options after ``dtype`` are by keyword, and shown one by one in the guide *Options*.

    Parameters, for layer ``k`` (``_reverse`` is appended for the backward direction), with G gates:

    | name | shape | |
    |---|---|---|
    | ``weight_ih_l[k]`` | (G·H, I), above the first layer (G·H, D·H) | multiplies the input |
    | ``weight_hh_l[k]`` | (G·H, H), with projection (G·H, P) | multiplies the previous output |
    | ``bias_ih_l[k]`` | (G·H,) | |
    | ``bias_hh_l[k]`` | (G·H,) | |
    | ``weight_hr_l[k]`` | (P, H) | projects the output, if ``proj_size`` |
    | ``initial_h``, … | (L·D, H), with projection (L·D, P) for the first | if ``learn_initial_state`` |

    All are drawn from U(-1/√H, 1/√H), in this order, as torch.nn does. Learned initial states come last; they are
    zero at first.

    Raises:
        ValueError: a size or an option is out of range, or two arguments do not go together.
        TypeError: an argument has the wrong type.
    """

    cell: ClassVar[Cell]  # set by the subclass; RNN has two

    input_size: Any  # int; None until the first call
    hidden_size: Any  # int; a list where layers differ
    num_layers: int
    bias: bool | str
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    mode: str
    _options: Options = PLAIN  # of the cell
    # attributes of the class, so that a layer of torch.nn becomes ours by its class alone
    return_sequences: bool = arguments.DEFAULTS["return_sequences"]
    merge_mode: str = arguments.DEFAULTS["merge_mode"]
    residual: bool = arguments.DEFAULTS["residual"]
    forget_bias: float | None = arguments.DEFAULTS["forget_bias"]
    learn_initial_state: bool = arguments.DEFAULTS["learn_initial_state"]
    batch_first_state: bool = arguments.DEFAULTS["batch_first_state"]
    output_dropout: float = arguments.DEFAULTS["output_dropout"]
    _beyond: bool = False  # whether anything is asked for that torch.nn's layers do not do

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int | Sequence[int],
        num_layers: int = arguments.ONE,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "tanh",
        cell_clip: float | None = None,
        return_sequences: bool = True,
        merge_mode: str = "concat",
        residual: bool = False,
        forget_bias: float | None = None,
        learn_initial_state: bool = False,
        batch_first_state: bool = False,
        output_dropout: float = 0.0,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise TypeError(check.unknown(type(self), Recurrent.__init__, unknown))
        super().__init__()
        _extension.load()
        check.has_cell(self)
        self.mode = self.cell.name.upper()
        self.input_size = input_size
        self.hidden_size, self.num_layers = arguments.sizes(hidden_size, num_layers)
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        check.layer_options(self, dropout)
        self.bidirectional, self.dropout = bool(bidirectional), float(dropout)
        options = activations.options(self.cell, activation, cell_clip)
        if options is not PLAIN:
            self._options = options
        wanted = {
            "return_sequences": return_sequences,
            "merge_mode": merge_mode,
            "residual": residual,
            "forget_bias": forget_bias,
            "learn_initial_state": learn_initial_state,
            "batch_first_state": batch_first_state,
            "output_dropout": output_dropout,
        }
        arguments.keep(self, wanted)
        self._all_weights: list[list[str]] = [list(shapes) for shapes in parameters.weights(self)]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        for name, shape in self._parameter_shapes().items():
            self.register_parameter(name, lazy.parameter(shape, input_size is None, device, dtype))
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in arguments.DEFAULTS:  # also one set later
            self._beyond = True
        super().__setattr__(name, value)

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of all parameters: weights in torch.nn's order, then learned initial states."""
        shapes = {name: shape for of in parameters.weights(self) for name, shape in of.items()}
        if self.learn_initial_state:
            shapes |= {state.name: (state.rows, state.width) for state in parameters.states(self)}
        return shapes

    def _weight_names(self) -> list[str]:
        return self._flat_weights_names

    def reset_parameters(self) -> None:
        """Draw all weights anew from U(-1/√H, 1/√H); then ``forget_bias``; learned initial states become zero."""
        if self.input_size is None:
            return  # there is nothing yet
        parameters.draw(self)
        if self.forget_bias is not None:
            init.forget_bias_(self, self.forget_bias)

    def forward(
        self,
        input: Tensor | PackedSequence | Sequence[Tensor],
        hx: Tensor | tuple[Tensor, ...] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        return_all: bool = False,
    ) -> Any:
        """Run the layers over a sequence.

        Args:
            input: (T, B, I); with ``batch_first`` (B, T, I); one unbatched sequence (T, I); several batch dimensions
                (T, B1, B2, …, I), with ``batch_first`` (B1, B2, …, T, I); a PackedSequence; a list of sequences
                (T_i, I); or a jagged nested tensor (B, j, I), whatever ``batch_first`` is.
            hx: initial states, each (L·D, B, H), unbatched (L·D, H), with several batch dimensions
                (L·D, B1, B2, …, H): one Tensor, or a tuple where the cell has several states; a state is a list of L
                Tensors (D, B, H) where layers differ in size. One of batch 1 is for all rows. By default zeros, or what
                the layer has learned.
            lengths: (B,) integers from 0 to T, in any order and on any device: the rows of a padded batch end there.
                What stands beyond, even NaN, reaches nothing.
            mask: (T, B) bool, with ``batch_first`` (B, T), unbatched (T,): where it is False the step is left out: the
                state stays as it was, the output is zero.
            reset: likewise: where it is True a new sequence begins, so that neither direction carries a state, nor a
                gradient, across. Going forward ``hx`` enters a row's first sequence, unless there is a reset at step 0;
                going backward it enters the row's last one.
            reset_to: what a reset sets the state to: ``"zero"``, or ``"initial"``, the row's state in ``hx``.
            return_all: whether to give every state and gate at every step, too.

        Returns:
            The output of the last layer, in the form of the input, with D·H (or D·P) features: zero for steps that do
            not count. And the final states, in the form of ``hx``: a row's state at its own end, going backward at its
            own beginning. With ``return_sequences=False`` the last output of each row alone. With
            ``return_all`` a [`Trace`][torchrnn.Trace] as a third.

        Raises:
            check.ArgumentError: a tensor has the wrong shape, dtype or device.
            TypeError: an argument has the wrong type.
        """
        if type(input) is Tensor:
            if not (return_all or self._beyond):
                plain = lengths is mask is reset is None and reset_to == "zero"
                results = quick.layers(
                    self, input, hx, None if plain else sequence.Said(lengths, mask, reset, reset_to)
                )
                if results is not None:
                    return results
        elif isinstance(input, Proxy):
            said = sequence.Said(lengths, mask, reset, reset_to)._asdict()
            default = sequence.Said._field_defaults
            given = {k: v for k, v in said.items() if v is not default[k]}
            return as_one_node(self, input, hx, **given, **({"return_all": True} if return_all else {}))
        call, form = self.request(input, hx, lengths, mask, reset, reset_to)
        if return_all:
            check.return_all(self, return_all)
            return stack.run(self, call._replace(all_states=True), form)
        if self._beyond:
            return stack.run(self, call, form)
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
        return_all: bool = False,
    ) -> tuple[Call, sequence.Form]:
        """The call that ``forward`` makes of its arguments, and the form in which its results go back."""
        if return_all:
            check.return_all(self, return_all)
        weights = self._flat_weights
        LD = self.num_layers * (2 if self.bidirectional else 1)
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
            or input.layout is not torch.strided
        ):
            said = sequence.Said(lengths, mask, reset, reset_to)
            x, batch_sizes, steps, form = sequence.enter(self, input, weights[0], said)
            if self.input_size is None:
                if hx is not None:
                    stack.given(self, hx, (LD, *form.batch(x)), x)  # a call that is refused settles nothing
                lazy.materialize(self, x.shape[-1])
                weights = self._flat_weights
        else:
            x, batch_sizes, steps, form = sequence.plain(input, self.batch_first)
        if self._beyond:
            weights = stack.weights(self, weights)
            states = stack.initial(self, hx, LD, form, x)
        elif hx is None:
            states = self._zeros((LD, form.rows(x)), x)
        else:
            states = form.enter_states(self._given(hx, (LD, *form.batch(x)), x))
        call = Call(
            self.cell,
            x,
            states,
            weights,
            self.bias is not False,
            self.num_layers,
            self.dropout if self.training else 0.0,
            self.training,
            self.bidirectional,
            batch_sizes,
            False,
            False,
            self._options,
            steps,
        )
        return call._replace(all_states=True) if return_all else call, form

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
        if not check_states.fit(states, isinstance(hx, Tensor), self.cell, x, first, rest):
            check_states.layer_states(self, hx, x, shape)
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

    @property
    def activation(self) -> str:
        """The name of the function ϕ of the cell's equations."""
        return self._options.function

    @property
    def cell_clip(self) -> float | None:
        """The limit of the states, or None."""
        return None if self._options.limit == math.inf else self._options.limit

    __prepare_scriptable__ = no_script

    def _slow_forward(self, *input: Any, **kwargs: Any) -> Any:  # what nn.Module calls while torch.jit traces
        return super()._slow_forward(**legacy.arguments(self, input, kwargs))  # pyright: ignore[reportAttributeAccessIssue]

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"dropout": 0, "bidirectional": False}
        changed = [
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        ]
        if self._options is not PLAIN:
            changed.append(str(self._options))
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed, *arguments.beyond_torch(self)])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.input_size is None:
            lazy.save(self, destination, prefix, keep_vars)
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.input_size is None:
            lazy.before_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
