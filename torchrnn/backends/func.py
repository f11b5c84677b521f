"""Our kernels under torch.func: vmap joins the batch, and each sample gets its own gradients of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchrnn.activation import PLAIN
from torchrnn.backends import cpu, reference
from torchrnn.backends.levels import COVERED, VMAP, Rule, applied
from torchrnn.backends.operators import NUMBERS, operators
from torchrnn.call import TRANSFORMED, Call

_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_NOTHING = torch.empty(0)
_SAMPLES = 16  # the first bit of `flags` that says how many samples there are; as Said in csrc/stack.h


def refuses(call: Call) -> str | None:
    """Why our kernels cannot run this call under the transforms that are active, or None."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing"
    reason = cpu.refuses(call)
    if reason is None:
        return "no torch.func transform is active, so that the backend 'cpu' takes the call"
    if reason != TRANSFORMED:
        return reason
    if forward():
        return "forward-mode differentiation is active"
    levels = _functorch.get_interpreter_stack()
    if any(level.key() not in COVERED for level in levels):
        return "a transform other than vmap and grad is active"
    if any(level.key() == VMAP and _functorch.CVmapInterpreterPtr(level).batchSize() == 0 for level in levels):
        return "vmap has nothing to map: its dimension is of size 0"
    return None


def forward() -> bool:
    """Whether some transform differentiates forward, which the kernels do not."""
    levels = _functorch.get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(at.key() == _functorch.TransformType.Jvp for at in levels)


def run(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states; shapes as in the reference."""
    return cpu.other_step(call, _stack) if call.one_step else cpu.run_all(call, _stack)[:2]


def run_all(call: Call) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output, final states, and the last layer's states at all steps if wanted; shapes as in the reference."""
    return cpu.run_all(call, _stack)


def _stack(call: Call) -> Sequence[Tensor]:
    training = torch.is_grad_enabled()
    form = _Form(call, training)
    numbers = call.batch_sizes if call.steps is None else call.steps.numbers(form.D)
    results = applied(_Forward, form, numbers, call.x, *call.states, *call.weights)
    return results[:-1] if training else results


class _Form:
    """What a call says beside its tensors; an object that pytrees do not look into."""

    __slots__ = ("D", "S", "call", "copies", "flags", "limit", "number", "training")

    def __init__(self, call: Call, training: bool) -> None:
        self.D, self.S = 2 if call.bidirectional else 1, len(call.states)
        self.number, self.limit = NUMBERS[call.cell], call.options.limit
        self.flags = call.bias + cpu.ALL * call.all_states + cpu.BIDIRECTIONAL * call.bidirectional
        self.flags += cpu.PLANNED * (call.steps is not None) + cpu.TRAINING * training
        if call.options is not PLAIN:
            self.flags += cpu.ACTIVATION[call.options.function] << 8
        self.training = training
        # for the reference; its tensors are those that are differentiated
        self.call = call._replace(x=_NOTHING, states=(), weights=())
        self.copies = 1  # how many calls are joined: row r belongs to copy r % copies

    def joined(self, V: int) -> _Form:
        """The form of V such calls in one."""
        more = object.__new__(_Form)
        for name in self.__slots__:
            setattr(more, name, getattr(self, name))
        more.copies = self.copies * V
        return more

    def numbers(self, numbers: Tensor | None, V: int, x: Tensor, h: Tensor) -> Tensor | None:
        """Batch sizes or the plan for V calls in one; x and the first state are those of one."""
        if numbers is None or self.call.steps is None:
            return None if numbers is None else numbers * V
        return self.call.steps.interleaved(numbers, h.size(-2), x.shape[:-1].numel(), self.D, V)


class _Forward(Rule):
    """Numbers, x, states and weights -> output, final states, all states if asked for, and what backward needs."""

    @staticmethod
    def forward(form: _Form, numbers: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states, weights = tensors[: form.S], tensors[form.S :]
        return tuple(operators.stack(form.number, x, states, weights, numbers, form.flags, form.limit))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        form, *tensors = inputs
        ctx.form = form
        ctx.set_materialize_grads(False)
        if form.training:
            ctx.mark_non_differentiable(output[-1])
            ctx.save_for_backward(*tensors, output[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        numbers, *inputs, reserve = ctx.saved_tensors
        needs = ctx.needs_input_grad[-len(inputs) :]
        asked = _Asked(ctx.form, needs)
        if forward():
            found = asked.by_reference(inputs, gradients[:-1])
        else:
            found = applied(_Backward, asked, numbers, reserve, *inputs, *gradients[:-1])
        by_need = iter(found)
        return (None, None, *(next(by_need) if need else None for need in needs))

    @staticmethod
    def over(V: int, dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        form, numbers, *inputs = args
        dims = dims[2:]
        rows = 1 + form.S
        if any(d is not None for d in dims[rows:]):
            each = [applied(_Forward, form, numbers, *_pick(inputs, dims, v)) for v in range(V)]
            return tuple(torch.stack(of) for of in zip(*each, strict=True)), (0,) * len(each[0])
        x, *states = _join(inputs[:rows], dims[:rows], V)
        numbers = form.numbers(numbers, V, _one(inputs[0], dims[0]), _one(inputs[1], dims[1]))
        results = applied(_Forward, form.joined(V), numbers, x, *states, *inputs[rows:])
        # what is kept for backward stays in one piece: _Backward.over knows
        kept = (results[-1],) if form.training else ()
        results = results[: len(results) - len(kept)]
        return (*(_split(t, V) for t in results), *kept), (*(t.dim() - 1 for t in results), *(None for _ in kept))


class _Asked:
    """Which gradients of a call are asked for: of each input or not, and of the weights for how many samples."""

    __slots__ = ("form", "needs", "samples")

    def __init__(self, form: _Form, needs: Sequence[bool], samples: int = 0) -> None:
        self.form, self.needs, self.samples = form, tuple(needs), samples

    def by_reference(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The same gradients by the reference, which can be differentiated any number of times, both ways."""
        form = self.form
        rows, C, samples = 1 + form.S, form.copies, self.samples
        if C == 1:
            found = self._of_one(inputs, gradients)
            return tuple(g.unsqueeze(0) if samples and i >= rows else g for i, g in self._by_place(found))
        own = [None if t is None else _split(t, C) for t in (*inputs[:rows], *gradients)]

        def one(*tensors: Tensor | None) -> tuple[Tensor, ...]:
            x_and_states: Any = tensors[:rows]
            return self._of_one((*x_and_states, *inputs[rows:]), tensors[rows:])

        found = torch.vmap(one, in_dims=tuple(None if t is None else -2 for t in own), out_dims=0)(*own)
        joined = []
        for i, g in self._by_place(found):
            if i < rows:
                joined.append(g.movedim(0, -2).flatten(-3, -2))
            else:
                joined.append(g.unflatten(0, (-1, samples)).sum(0) if samples else g.sum(0))
        return tuple(joined)

    def nothing(self, inputs: Sequence[Tensor], dims: Sequence[int | None]) -> tuple[Any, Any]:
        """The gradients of no calls at all, and their dimensions."""
        of_one = [
            [*t.shape[:d], *t.shape[d + 1 :]] if d is not None else [*t.shape]
            for t, d, need in zip(inputs, dims, self.needs, strict=False)
            if need
        ]
        apart = [
            [self.samples] if self.samples and i > self.form.S else [] for i, need in enumerate(self.needs) if need
        ]
        found = tuple(inputs[0].new_zeros((0, *n, *shape)) for n, shape in zip(apart, of_one, strict=True))
        return found, (0,) * len(found)

    def _by_place(self, found: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        return list(zip((i for i, need in enumerate(self.needs) if need), found, strict=True))

    def _of_one(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        call, S = self.form.call, self.form.S

        def results(*wanted: Tensor) -> tuple[Tensor, ...]:
            given = iter(wanted)
            x, *tensors = (next(given) if need else t for need, t in zip(self.needs, inputs, strict=True))
            y, finals, everything = reference.run_all(
                call._replace(x=x, states=tuple(tensors[:S]), weights=tensors[S:])
            )
            of_all = finals if call.one_step else (y, *finals, *(s.flatten(1, -2) for s in everything[1:]))
            return tuple(r for r, g in zip(of_all, gradients, strict=True) if g is not None)

        wanted = [t for t, need in zip(inputs, self.needs, strict=True) if need]
        pull = torch.func.vjp(results, *wanted)[1]
        return pull(tuple(g for g in gradients if g is not None))


class _Backward(Rule):
    """What was kept, inputs and gradients of the results -> the gradients that are asked for."""

    @staticmethod
    def forward(asked: _Asked, numbers: Tensor | None, reserve: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        form, needs = asked.form, asked.needs
        x, *inputs = tensors[: len(needs)]
        gradients = tensors[len(needs) :]
        dy, dfinal = (None, gradients) if form.call.one_step else (gradients[0], gradients[1 : 1 + form.S])
        dall = () if form.call.one_step else gradients[1 + form.S :]
        flags = form.flags + (asked.samples << _SAMPLES)
        given = form.number, x, inputs[: form.S], inputs[form.S :], numbers, flags, form.limit
        found = operators.stack_backward(*given, reserve, dy, dfinal, dall, needs)
        return tuple(g for g, need in zip(found, needs, strict=True) if need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.asked, _, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        tensors, asked = ctx.saved_tensors, ctx.asked
        K = len(asked.needs)
        there = [i for i, t in enumerate(tensors) if t is not None]

        def once_more(*present: Tensor) -> tuple[Tensor, ...]:
            every: list[Any] = [None] * len(tensors)
            for i, t in zip(there, present, strict=True):
                every[i] = t
            return asked.by_reference(every[:K], every[K:])

        found = torch.func.vjp(once_more, *(tensors[i] for i in there))[1](tuple(gradients))
        every: list[Any] = [None] * len(tensors)
        for i, g in zip(there, found, strict=True):
            every[i] = g if ctx.needs_input_grad[i - len(tensors)] else None
        return (None, None, None, *every)

    @staticmethod
    def over(V: int, dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        asked, numbers, reserve, *tensors = args
        kept_dim, dims, form = dims[2], dims[3:], asked.form
        rows, K = 1 + form.S, len(asked.needs)
        if V == 0:  # rows of a Jacobian that has none
            return asked.nothing(tensors[:K], dims)
        if any(d is not None for d in dims[rows:K]):
            with_reserve, their_dims = (reserve, *tensors), (kept_dim, *dims)
            each = [applied(_Backward, asked, numbers, *_pick(with_reserve, their_dims, v)) for v in range(V)]
            return tuple(torch.stack(of) for of in zip(*each, strict=True)), (0,) * len(each[0])
        inputs, weights = _join(tensors[:rows], dims[:rows], V), tensors[rows:K]
        gradients = _join(tensors[K:], dims[K:], V)
        numbers = form.numbers(numbers, V, _one(tensors[0], dims[0]), _one(tensors[1], dims[1]))
        joined = form.joined(V)
        if all(d is None for d in dims[:rows]):  # the call was not mapped, so that what it kept is that of one
            reserve = applied(_Forward, joined, numbers, *inputs, *weights)[-1]
        more = _Asked(joined, asked.needs, V * (asked.samples or 1))
        results, to = [], []
        for i, g in more._by_place(applied(_Backward, more, numbers, reserve, *inputs, *weights, *gradients)):
            apart = _split(g, V) if i < rows else g.unflatten(0, (-1, V)) if asked.samples else g
            results.append(apart)
            to.append(apart.dim() - 2 if i < rows else 1 if asked.samples else 0)
        return tuple(results), tuple(to)


def _one(t: Tensor, d: int | None) -> Tensor:
    return t if d is None else t.select(d, 0)


def _pick(tensors: Sequence[Any], dims: Sequence[int | None], v: int) -> list[Any]:
    return [t if d is None else t.select(d, v) for t, d in zip(tensors, dims, strict=True)]


def _join(tensors: Sequence[Any], dims: Sequence[int | None], V: int) -> list[Any]:
    """(…, B, F), mapped over V at a dimension or not -> (…, B·V, F)."""
    every = [
        None if t is None else t.unsqueeze(-2).expand(*t.shape[:-1], V, -1) if d is None else t.movedim(d, -2)
        for t, d in zip(tensors, dims, strict=True)
    ]
    return [None if t is None else t.flatten(-3, -2) for t in every]


def _split(t: Tensor, V: int) -> Tensor:
    """(…, B·V, F) -> (…, B, V, F)."""
    return t.unflatten(-2, (t.size(-2) // V, V))
