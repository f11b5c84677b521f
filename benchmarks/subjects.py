"""Who is timed: each subject turns a case into work that can be run again and again, and whose results can be checked.

Another library becomes another column by another entry in `rivals.RIVALS`: take the weights from the torch.nn module,
return the results as torch tensors in the same order, and it is checked and timed like the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

import torchrnn
from benchmarks import by_hand
from benchmarks.cases import Case


class Work(NamedTuple):
    """What is timed, and how its results are read.

    Read, they are the outputs and states; in training then the gradients of the inputs and of the weights, in order.
    None stands for a gradient that the subject has not.
    """

    run: Callable[[], Any]
    read: Callable[[Any], list[Tensor | None]] = list


#: (case, the torch.nn module whose weights all share, inputs, training) -> work, or None where it cannot do the case
Subject = Callable[[Case, nn.Module, tuple[Any, ...], bool], Work | None]


def torch_nn(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work:
    """torch.nn itself, by hand where it has no argument: what the others are measured against."""
    if case.by_hand:
        return _module_work(by_hand.call(case, model), model, inputs, training)
    return _module_work(_called(case, model), model, inputs, training)


def ours(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work:
    """Our module of the same class, with the same weights."""
    module = _our_module(case, model)
    call = _one_call(case, module) if case.by_hand else _called(case, module)
    return _module_work(call, module, inputs, training)


def beside(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
    """What is timed beside a case by hand, its answers being others: our call without the argument; of a stream
    torch.nn's layer, one step a call.
    """
    if not case.by_hand:
        return None
    if case.by_hand == "stream":
        work = _module_work(lambda x: _loop(model, x.unsqueeze(1), None, is_cell=False), model, inputs, training)
    else:
        module = _our_module(case, model)
        work = _module_work(module, module, inputs, training)
    return Work(work.run, lambda results: [])


def _our_module(case: Case, model: nn.Module) -> nn.Module:
    positional, options = case.arguments()
    module = getattr(torchrnn, case.kind)(*positional, **options)
    module.load_state_dict(model.state_dict())
    return module


def _one_call(case: Case, module: Any) -> Callable[..., Any]:
    """The case in one call of ours; a stream step by step."""
    if case.by_hand == "stream":
        return _streamed(torchrnn.Stream(module))
    if case.by_hand == "all":
        return lambda x: module(x, return_all=True)
    if case.by_hand == "lengths":
        lengths = case.row_lengths()
        return lambda x: module(x, lengths=lengths)
    flags = case.flags()
    return (lambda x: module(x, reset=flags)) if case.by_hand == "resets" else (lambda x: module(x, mask=flags))


def _streamed(stream: torchrnn.Stream) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        stream.reset()
        outputs = [stream(x_t) for x_t in x.unbind(0)]
        return torch.stack(outputs), stream.state

    return run


def upstream(results: list[Tensor]) -> list[Tensor]:
    """The gradients that training is given: the same ones for every subject."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator) for t in results]


def _called(case: Case, module: Any) -> Callable[..., Any]:
    """How the case calls the module: once, in a loop, or with lengths."""
    if case.steps > 1:
        return lambda xs, state: _loop(module, xs, state, case.is_cell)
    if not case.lengths:
        return module
    lengths = case.row_lengths()
    if isinstance(module, torchrnn.Recurrent):
        return lambda *inputs: module(*inputs, lengths=lengths)

    def packed(x: Tensor, *states: Any) -> Any:
        sequence = pack_padded_sequence(x, lengths, case.batch_first, enforce_sorted=False)
        y, finals = module(sequence, *states)
        return pad_packed_sequence(y, case.batch_first, total_length=case.T)[0], finals

    return packed


def _loop(module: Any, xs: Tensor, state: Any, is_cell: bool) -> tuple[Tensor, Any]:
    """The module called for each x in turn, with the states of the call before."""
    outputs = []
    for x in xs.unbind(0):
        if is_cell:
            state = module(x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        else:
            y, state = module(x, state)
            outputs.append(y)
    return torch.stack(outputs), state


def _module_work(call: Callable[..., Any], module: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work:
    """Inference under no_grad; training is a forward and the gradient of everything for fixed upstream gradients."""
    module.train(training)
    inputs = tree_map(lambda t: t.detach().requires_grad_(training) if _floating(t) else t, inputs)

    if not training:

        def infer() -> list[Tensor]:
            with torch.no_grad():
                return _flat(call(*inputs))

        return Work(infer)

    asking = [t for t in tree_leaves(inputs) if _floating(t)] + list(module.parameters())
    gradients = upstream(_flat(call(*inputs)))

    def train() -> list[Tensor]:
        results = _flat(call(*inputs))
        return [*results, *torch.autograd.grad(results, asking, gradients)]

    return Work(train)


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _flat(results: Any) -> list[Tensor]:
    """Output and states of a layer, or of a cell, as a list; cheap, for it is inside what is timed."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, torchrnn.Trace):
        return [*results.states.values(), *results.gates.values()]
    return [t for part in results for t in _flat(part)]
