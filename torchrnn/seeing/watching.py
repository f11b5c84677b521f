"""`torchrnn.watch`: what a model's recurrent layers do with an input, every state, gate and gradient at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchrnn import history
from torchrnn.backends import reference
from torchrnn.backends.packing import Packing
from torchrnn.call import use
from torchrnn.history import Trace
from torchrnn.layer import Recurrent

if TYPE_CHECKING:
    from torchrnn.seeing.seen import Seen, Watched
    from torchrnn.sequence import Form

Sweep = list[tuple[Tensor, ...]]


def watch(model: nn.Module, *args: Any, loss: Callable[[Any], Tensor] | None = None, **kwargs: Any) -> Watched:
    """Run a model once and see what its recurrent layers do: all states, gates and gradients, at every step.

    The layers run step by step on the reference, with the numbers that they have anyway; neither a weight nor a
    ``.grad`` is changed. The gradient of a state is the total one, ∂loss/∂h_t, through all later steps.

    Args:
        model: a recurrent layer of ours, or any module that has some inside.
        *args: what the model is called with.
        loss: makes of the model's result one number, whose gradients are taken. By default half the sum of squares of
            the result's first Tensor; of a bare layer, of the last layer's final state.
        **kwargs: what the model is called with.

    Returns:
        A [`Watched`][torchrnn.seeing.seen.Watched]: the calls of the layers by name, and figures of them (matplotlib:
        ``pip install 'torchrnn[tools]'``).

    Raises:
        TypeError: the model has no recurrent layer of ours, or the loss is no Tensor.
        ValueError: a layer returns its last output only, or the loss is no single number, or depends on no state.

    Example:
        ```python
        import torch
        import torchrnn

        seen = torchrnn.watch(torchrnn.LSTM(3, 5), torch.randn(7, 2, 3))
        assert seen["model"].trace.f.shape == (1, 1, 7, 2, 5)  # the forget gate, (L, D, T, B, H)
        assert seen["model"].gradient_norms().shape == (1, 1, 7)
        ```
    """
    from torchrnn.seeing.seen import Watched  # here, since few programs watch

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module with recurrent layers of torchrnn inside, got {type(model).__name__}")
    layers = {name or "model": one for name, one in model.named_modules() if isinstance(one, Recurrent)}
    if not layers:
        raise TypeError(
            f"model must be or hold a recurrent layer of torchrnn, {type(model).__name__} has none: "
            "torchrnn.convert(model) turns those of torch.nn into ours"
        )
    for name, one in layers.items():
        if not one.return_sequences:
            raise ValueError(
                f"layer {name!r} has return_sequences=False, so it has one output and no steps to see: build it "
                "without, and take torchrnn.last(output)"
            )
    recorder = _Recorder(layers)
    with torch.enable_grad(), use("reference"), recorder.hooked():
        result = model(*args, **kwargs)
        recorder.check()
        value = _default_loss(model, result) if loss is None else loss(result)
        _check_loss(value)
        grads = recorder.gradients(value)
    return Watched(recorder.seen(grads), result, value.detach())


class _Recorder:
    """Listens to the layers of a model while it runs."""

    def __init__(self, layers: dict[str, Recurrent]) -> None:
        self.names = {one: name for name, one in layers.items()}
        self.calls: list[tuple[str, Recurrent, Any, Form, Trace, list[Sweep]]] = []
        self.sweeps: list[Sweep] = []
        self.wanted = False  # whether the model itself asks for all

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While it lasts every call of a layer is recorded."""
        handles: list[Any] = []
        token = reference.onlooker.set(self.sweeps.append)
        for one in self.names:
            handles.append(one.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(one.register_forward_hook(self._after, with_kwargs=True, prepend=True))
        try:
            yield
        finally:
            reference.onlooker.reset(token)
            for handle in handles:
                handle.remove()

    def _before(self, layer: Any, args: Any, kwargs: Any) -> Any:
        self.sweeps.clear()
        self.wanted = bool(kwargs.get("return_all"))
        return args, {**kwargs, "return_all": True}

    def _after(self, layer: Any, args: Any, kwargs: Any, result: Any) -> Any:
        call, form = layer.request(*args, **kwargs)
        count = sum(one is layer for _, one, *_ in self.calls)
        name = self.names[layer] + (f" ({count + 1})" if count else "")
        self.calls.append((name, layer, call, form, result[2], list(self.sweeps)))
        return result if self.wanted else result[:2]

    def check(self) -> None:
        """Raise unless a layer has done a step."""
        if not any(sweep for *_, sweeps in self.calls for sweep in sweeps):
            if not self.calls:
                raise ValueError(f"there is no step to see: the model did not call {', '.join(self.names.values())}")
            empty = ", ".join(repr(name) for name, *_ in self.calls)
            raise ValueError(
                f"there is no step to see: every row that {empty} got is empty. Give an input with T and B greater "
                "than 0, and a length or mask that leaves a step"
            )

    def gradients(self, loss: Tensor) -> dict[Tensor, Tensor]:
        """∂loss of every state at every step; zero where the loss does not depend on it."""
        states = [s for *_, sweeps in self.calls for sweep in sweeps for step in sweep for s in step]
        known = [s for s in states if s.requires_grad]
        if not known:
            raise ValueError(
                "no state depends on anything that requires a gradient: call requires_grad_() on the model's parameters"
            )
        found = torch.autograd.grad(loss, known, allow_unused=True)
        grads = {s: g if g is not None else torch.zeros_like(s) for s, g in zip(known, found, strict=True)}
        return {s: grads[s].detach() if s in grads else torch.zeros_like(s) for s in states}

    def seen(self, grads: dict[Tensor, Tensor]) -> dict[str, Seen]:
        """All calls by name."""
        return {
            name: _seen(layer, call, form, trace, sweeps, grads)
            for name, layer, call, form, trace, sweeps in self.calls
        }


def _seen(
    layer: Recurrent, call: Any, form: Form, trace: Trace, sweeps: list[Sweep], grads: dict[Tensor, Tensor]
) -> Seen:
    from torchrnn.seeing.seen import Seen

    D, names = 2 if layer.bidirectional else 1, layer.cell.states
    packing = None if call.steps is None else Packing(call)  # the reference packs calls of which only some steps count
    join = torch.stack if call.batch_sizes is None and packing is None else torch.cat
    by_layer = []
    for k in range(layer.num_layers):
        mine = sweeps[k * D : (k + 1) * D]
        of = [torch.stack([join([grads[step[s]] for step in sweep]) for sweep in mine]) for s in range(len(names))]
        of.append(torch.ones_like(of[0][..., :1]))  # which steps count
        by_layer.append(of if packing is None else [packing.by_direction(v) for v in of])
    with torch.no_grad():
        *gradients, ones = history.restored(layer, form, call.states, by_layer)
    still = Trace(_detached(trace.states), _detached(trace.gates))
    return Seen(layer, still, dict(zip(names, gradients, strict=True)), ones[0][0, ..., 0] > 0)


def _detached(named: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [v.detach() for v in value] if isinstance(value, list) else value.detach()
        for name, value in named.items()
    }


def _default_loss(model: nn.Module, result: Any) -> Tensor:
    """Half the sum of squares of what a model gives first; of a layer, of its last layer's final state."""
    if isinstance(model, Recurrent):
        final = result[1]
        first = final[0] if len(model.cell.states) > 1 else final
        D = 2 if model.bidirectional else 1
        if isinstance(model.hidden_size, list):
            first = first[-1]
        elif model.batch_first_state:
            first = first[..., -D:, :]
        else:
            first = first[-D:]
        return first.square().sum() / 2
    first = _first_tensor(result)
    if first is None:
        raise TypeError(f"the model returns {type(result).__name__}, which holds no Tensor: give loss=")
    return first.square().sum() / 2


def _first_tensor(result: Any) -> Tensor | None:
    if isinstance(result, PackedSequence):
        return result.data
    if isinstance(result, Tensor):
        return result.values() if result.is_nested else result
    items = result.values() if isinstance(result, dict) else result if isinstance(result, (tuple, list)) else ()
    return next((t for t in map(_first_tensor, items) if t is not None), None)


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a Tensor of one number, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"loss must return one number, got {tuple(value.shape)}: take its mean or sum")
    if not value.requires_grad:
        raise ValueError("the loss depends on nothing that requires a gradient: was it detached, or made of .item()?")
