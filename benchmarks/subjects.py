"""Who is timed: each subject turns a case into a function of no arguments that does the work and returns its results.

Another library becomes another column by another entry in `RIVALS`: take the weights from the torch.nn module, return
the results as torch tensors in the same order, and it is checked and timed like the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

import torchrnn
from benchmarks.cases import Case

#: One run of a case -> outputs and states; in training then the gradients of the inputs and of the weights, in order.
Work = Callable[[], list[Tensor]]
#: (case, the torch.nn module whose weights all share, inputs, training) -> work
Subject = Callable[[Case, nn.Module, tuple[Any, ...], bool], Work]


def torch_nn(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work:
    """torch.nn itself: what the others are measured against."""
    return _module_work(model, inputs, training)


def ours(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work:
    """Our module of the same class, with the same weights."""
    positional, options = case.arguments()
    module = getattr(torchrnn, case.kind)(*positional, **options)
    module.load_state_dict(model.state_dict())
    return _module_work(module, inputs, training)


RIVALS: dict[str, Subject] = {"torch.nn": torch_nn}


def _module_work(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work:
    """Inference under no_grad; training is a forward and the gradient of everything for fixed upstream gradients."""
    module.train(training)
    inputs = tree_map(lambda t: t.detach().requires_grad_(training) if _floating(t) else t, inputs)

    if not training:

        def infer() -> list[Tensor]:
            with torch.no_grad():
                return _flat(module(*inputs))

        return infer

    asking = [t for t in tree_leaves(inputs) if _floating(t)] + list(module.parameters())
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(t.shape, generator=generator) for t in _flat(module(*inputs))]

    def train() -> list[Tensor]:
        results = _flat(module(*inputs))
        return [*results, *torch.autograd.grad(results, asking, upstream)]

    return train


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _flat(results: Any) -> list[Tensor]:
    """Output and states of a layer, or of a cell, as a list; cheap, for it is inside what is timed."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [t for part in results for t in _flat(part)]
