"""One step of a recurrent layer as a module: arguments, parameters, and the way from a call to a backend."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from torchrnn import _extension, check, check_states, lazy
from torchrnn import activation as activations
from torchrnn.activation import PLAIN, Options
from torchrnn.backends import quick
from torchrnn.call import Call, as_one_node, choose, no_script
from torchrnn.cell import Cell


class RecurrentCell(nn.Module):
    r"""One step of a recurrent layer, for the cell that a subclass names.

    Args:
        input_size: I, features of the input; ``None``: those of the first input.
        hidden_size: H, features of a state.
        bias: whether there are ``bias_ih`` and ``bias_hh``; ``"single"``: ``bias_ih`` alone.
        device: of the parameters.
        dtype: of the parameters.
        activation: ϕ of the cell's equations: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"linear"``, ``"softsign"`` or
            ``"elu"``.
        cell_clip: clip the states after the first, or the only one, to ±``cell_clip`` at every step; None: do not.

    Parameters: ``weight_ih`` (G·H, I), ``weight_hh`` (G·H, H), ``bias_ih`` and ``bias_hh`` (G·H,), drawn from
    U(-1/√H, 1/√H) in this order, as torch.nn does.

    Raises:
        TypeError: an argument has the wrong type.
    """

    cell: ClassVar[Cell]  # set by the subclass; RNNCell has two

    weight_ih: Tensor
    weight_hh: Tensor
    input_size: Any  # int; None until the first call
    hidden_size: int
    bias: bool | str
    _options: Options = PLAIN  # a module that was torch.nn's has none of its own

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        bias: bool | str = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "tanh",
        cell_clip: float | None = None,
    ) -> None:
        super().__init__()
        _extension.load()
        check.has_cell(self)
        check.sizes(input_size, hidden_size)
        # torch.nn's cells take whatever is true or false; its own tests put a nonlinearity in this place
        if isinstance(bias, str) and bias not in ("tanh", "relu"):
            check.bias(bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        options = activations.options(self.cell, activation, cell_clip)
        if options is not PLAIN:
            self._options = options
        shapes = self._parameter_shapes()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            weight = lazy.parameter(shapes[name], input_size is None, device, dtype) if name in shapes else None
            self.register_parameter(name, weight)
        self.reset_parameters()

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of all parameters, in torch.nn's order."""
        GH = len(self.cell.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (GH, self.input_size), "weight_hh": (GH, self.hidden_size)}
        if self.bias:
            shapes["bias_ih"] = (GH,)
        if self.bias and self.bias != "single":
            shapes["bias_hh"] = (GH,)
        return shapes

    def _weight_names(self) -> list[str]:
        return list(self._parameter_shapes())

    def reset_parameters(self) -> None:
        """Draw all parameters anew from U(-1/√H, 1/√H)."""
        if self.input_size is None:
            return  # there is nothing yet
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size else 0.0
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None) -> Any:
        """Do one step.

        Args:
            input: (B, I), unbatched (I,).
            hx: the previous states, each (B, H), unbatched (H,): one Tensor, or a tuple where the cell has several
                states. One of batch 1 is for all rows. Zeros by default.

        Returns:
            The new states, in the form of ``hx``; the first is the output.

        Raises:
            check.ArgumentError: a tensor has the wrong shape, dtype or device.
            TypeError: an argument has the wrong type.
        """
        if type(input) is Tensor:
            states = quick.one_step(self, input, hx)
            if states is not None:
                return states
        elif isinstance(input, Proxy):
            return as_one_node(self, input, hx)
        call, unbatched = self.request(input, hx)
        states = choose(call).run(call)[1]
        if unbatched:
            states = tuple(s.squeeze(0) for s in states)
        return states[0] if len(states) == 1 else states

    def request(self, input: Any, hx: Any = None) -> tuple[Call, bool]:
        """The call that ``forward`` makes of its arguments, and whether it came without a batch."""
        cell, parameters = self.cell, self._parameters
        try:  # what getattr would find, without its detour
            weights: Any = (
                parameters["weight_ih"],
                parameters["weight_hh"],
                parameters["bias_ih"],
                parameters["bias_hh"],
            )
        except KeyError:
            weights = tuple(check.weight(self, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        w, count = weights[0], len(cell.states)
        if isinstance(input, Tensor) and len(shape := input.shape) == 2:
            unbatched, expected = False, (shape[0], self.hidden_size)
            dtype, device = w.dtype, w.device
            if hx is None:
                states = (torch.zeros(expected, dtype=input.dtype, device=input.device),) * count
            else:
                states = (hx,) if isinstance(hx, Tensor) else tuple(hx) if isinstance(hx, (tuple, list)) else ()
                fits = len(states) == count and (count == 1) is isinstance(hx, Tensor)
                for s in states:
                    fits = (
                        fits
                        and isinstance(s, Tensor)
                        and s.shape == expected
                        and s.dtype is dtype
                        and s.device == device
                        and s.layout is torch.strided
                    )
                if not fits:
                    check_states.cell_call(self, input, hx, w)
                    states = tuple(s.expand(expected) for s in states)  # one of batch 1 is for all rows
            dense = input.layout is torch.strided
            if shape[1] != self.input_size or input.dtype is not dtype or input.device != device or not dense:
                check_states.cell_call(self, input, hx, w)
                if self.input_size is None:
                    lazy.materialize(self, shape[1])
        else:
            check_states.cell_call(self, input, hx, w)
            if self.input_size is None:
                lazy.materialize(self, input.size(0))
            unbatched = True
            if hx is None:
                hx = (torch.zeros(self.hidden_size, dtype=input.dtype, device=input.device),) * len(cell.states)
            input = input.unsqueeze(0)
            states = tuple(s.unsqueeze(0) for s in ((hx,) if isinstance(hx, Tensor) else hx))
        bias: Any = self.bias
        if bias is not True:
            if bias == "single":
                weights = (*weights[:3], torch.zeros_like(weights[2]))
            bias = bool(bias)
        call = Call(cell, input, states, weights, bias, 1, 0.0, False, False, None, True, False, self._options)
        return call, unbatched

    @property
    def activation(self) -> str:
        """The name of the function ϕ of the cell's equations."""
        return self._options.function

    @property
    def cell_clip(self) -> float | None:
        """The limit of the states, or None."""
        return None if self._options.limit == math.inf else self._options.limit

    __prepare_scriptable__ = no_script

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch.nn prints them."""
        changed = [f"bias={self.bias!r}"] if self.bias is not True else []
        if self._options is not PLAIN:
            changed.append(str(self._options))
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.input_size is None:
            lazy.save(self, destination, prefix, keep_vars)
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.input_size is None:
            lazy.before_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
