"""A call: one request to a backend, the one decision which backend runs it, and the account of that decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchrnn.activation import PLAIN, Options
from torchrnn.cell import Cell

if TYPE_CHECKING:
    from torch import nn

    from torchrnn.plan import Steps

#: The backends by name, in order of preference: the first that does not refuse a call runs it.
#: Filled by torchrnn.backends, since they import `Call` from here.
BACKENDS: dict[str, ModuleType] = {}
#: Those of them that take what is active around a call: nobody forces them, and nobody misses them elsewhere.
AROUND = ("func", "autocast")

_forced: ContextVar[str | None] = ContextVar("torchrnn_backend", default=None)


class Call(NamedTuple):
    """One request to a backend: a whole layer over a sequence, or one step of a cell.

    T time, B batch, I input, H hidden, G gates, L layers, D directions, N all steps of a packed batch.
    """

    cell: Cell
    x: Tensor  # (T, B, I), packed (N, I), one step (B, I); with `steps` as those say
    states: tuple[Tensor, ...]  # each (L·D, B, H), one step (B, H)
    weights: Sequence[Any]  # by layer, then direction: weight_ih, weight_hh[, bias_ih, bias_hh][, weight_hr]
    bias: bool
    num_layers: int = 1
    dropout: float = 0.0
    training: bool = False
    bidirectional: bool = False
    batch_sizes: Tensor | None = None  # packed: (T,), rows still running at each step
    one_step: bool = False
    all_states: bool = False  # wanted of every step, by `run_all`
    options: Options = PLAIN
    steps: Steps | None = None  # which of the steps count, and where sequences begin; never with `batch_sizes`


def choose(call: Call) -> ModuleType:
    """The backend that runs ``call``: the one that `use` forces, else the first that does not refuse.

    Raises:
        RuntimeError: the forced backend refuses; the message gives its reason.
    """
    if torch.compiler.is_compiling():  # torch's kernels break or freeze its graph, and it cannot read context variables
        ours, casts = BACKENDS["cpu"], BACKENDS["autocast"]
        if ours.refuses(call) is None:
            return ours
        return casts if casts.refuses(call) is None else BACKENDS["reference"]
    forced = _forced.get()
    if forced is None:
        for backend in BACKENDS.values():
            if backend.refuses(call) is None:
                return backend
    elif BACKENDS["autocast"].refuses(call) is None:
        return BACKENDS["autocast"]  # it asks again, and the type of the results is nobody's choice
    backend = BACKENDS[forced or "reference"]
    reason = backend.refuses(call)
    if reason is not None:
        raise RuntimeError(f"backend {forced!r} cannot run this call: {reason}")
    return backend


TRANSFORMED = "a torch.func transform is active"
_innermost_transform = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
_tracing, _autocast = torch._C._get_tracing_state, torch._C._is_any_autocast_enabled


def transform() -> str | None:
    """The transform that is active and that a fused kernel does not know, in words, or None."""
    if _innermost_transform() is not None:
        return TRANSFORMED
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def surrounded() -> bool:
    """Whether something is active around a call that decides how it runs: a graph, a transform, `use`."""
    return (
        torch.compiler.is_compiling()
        or _forced.get() is not None
        or _tracing() is not None
        or _autocast()
        or _innermost_transform() is not None
        or forward_ad._current_level >= 0
    )


def as_one_node(module: nn.Module, input: Any, *args: Any, **kwargs: Any) -> Any:
    """The call of a module as one node of the graph that torch.fx is tracing: so it takes torch.nn's modules."""
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(module), (input, *args), kwargs)


def no_script(module: nn.Module) -> nn.Module:
    """What torch.jit.script asks a module for before it reads its code: refuse in words."""
    raise RuntimeError(
        f"{type(module).__name__} cannot be scripted by torch.jit.script, which torch has deprecated: "
        "use torch.export.export(model, inputs), torch.compile(model), or torch.jit.trace(model, inputs)"
    )


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Force one backend for all calls within, in this thread and context.

    Args:
        backend: ``"cpu"`` (our own kernels), ``"aten"`` (torch's) or ``"reference"`` (plain torch operations, step by
            step).

    Raises:
        ValueError: there is no such backend.
        RuntimeError: on a call, the backend cannot run it; the message says why.

    Example:
        ```python
        import torch
        import torchrnn

        layer, x = torchrnn.GRU(3, 5), torch.randn(7, 2, 3)
        with torchrnn.use("reference"):
            expected, _ = layer(x)
        torch.testing.assert_close(layer(x)[0], expected)
        ```
    """
    names = [name for name in BACKENDS if name not in AROUND]
    if backend not in names:
        raise ValueError(f"backend must be one of {', '.join(map(repr, names))}, got {backend!r}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def account(call: Call) -> tuple[str, dict[str, str]]:
    """The name of the backend that would run ``call``, ``"none"`` if a forced one refuses; and each refusal before."""
    refusals: dict[str, str] = {}
    forced = _forced.get()
    for name in BACKENDS if forced is None else (forced,):
        reason = BACKENDS[name].refuses(call)
        if reason is None:
            return name, refusals
        if name not in AROUND:
            refusals[name] = reason
    return "none", refusals
