"""Modules whose input size is not known before their first call: parameters without a shape, and what gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, UninitializedParameter, is_lazy

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent
    from torchrnn.step import RecurrentCell

    Module = Recurrent | RecurrentCell


class Unsized(UninitializedParameter):
    """A parameter that has no shape yet; unlike torch's it keeps its dtype and device when it is pickled."""

    cls_to_become = Parameter

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.requires_grad, self.data.device, self.data.dtype)


def parameter(
    shape: tuple[Any, ...], lazy: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> Parameter:
    """A parameter of a shape, of none yet if ``lazy``."""
    if lazy:
        return Unsized(device=device, dtype=dtype)  # type: ignore[call-arg, return-value]
    return Parameter(torch.empty(shape, device=device, dtype=dtype))


def materialize(module: Module, input_size: int) -> None:
    """Give all parameters of a module their shapes, and values as if it were built now.

    Raises:
        RuntimeError: a transform of torch.func is active, under which nothing can be drawn in place.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError(
            f"{type(module).__name__} has no input_size yet, and its first call is inside torch.func (vmap, grad, "
            f"...), where weights cannot be drawn: call it once before, or build it with input_size={input_size}"
        )
    module.input_size = input_size
    with torch.inference_mode(False), torch.no_grad():  # the first call may be one of inference, the next of training
        for name, shape in module._parameter_shapes().items():
            weight = module._parameters[name]
            if isinstance(weight, UninitializedParameter):
                weight.materialize(shape)
        module.reset_parameters()


def before_loading(module: Module, state: dict[str, Any], prefix: str) -> None:
    """Take the input size from the weights about to be loaded, if they have one."""
    given = state.get(prefix + next(iter(module._parameter_shapes())))
    if isinstance(given, Tensor) and not is_lazy(given) and given.dim() == 2:
        materialize(module, given.size(1))


def save(module: Module, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Enter the parameters of a module in a state dict; those without a shape stand for themselves."""
    for name, weight in module._parameters.items():
        if weight is not None:
            destination[prefix + name] = weight if is_lazy(weight) or keep_vars else weight.detach()
