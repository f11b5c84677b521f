"""Gradients of the six recurrent modules on PyTorch's own ModuleInfo samples, with our classes in their place.

Follows PyTorch's TestModule: test_non_contiguous_tensors, test_grad, test_gradgrad.
"""
# ruff: noqa: F401, F811 - the fixtures info and training are imported

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from module_samples import MODES, backend_of, backends, dtypes, info, modes, run, same, samples, tensors, training
from torch import Tensor
from torch.testing._internal.common_modules import ModuleInfo
from torch.testing._internal.common_utils import freeze_rng_state, gradcheck, gradgradcheck
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

# torch's kernels say so once a process, for torch.nn's LSTM and for ours on them alike
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

# the reference does not look at the mode when nothing is dropped
CASES = [(n, m, b) for n, m in MODES for b in ("chosen", "reference") if (m, b) != ("eval", "reference")]
modes_and_backends = pytest.mark.parametrize(
    ("info", "training", "backend"), CASES, indirect=["info", "training"], ids=["-".join(c) for c in CASES]
)


def _spread(tree: Any) -> Any:
    """The same values with a stride of 2."""

    def of(t: Tensor) -> Tensor:
        return t.repeat_interleave(2, dim=-1)[..., ::2].detach().requires_grad_(t.requires_grad)

    return tree_map(of, tree)


@modes
@dtypes
@backends
def test_non_contiguoustensors(info: ModuleInfo, training: bool, dtype: torch.dtype, backend: str) -> None:
    for name, sample, m in samples(info, dtype, grad=True, training=training):
        inputs = sample.forward_input.args
        weights = list(m.parameters())
        upstream = [torch.randn_like(t) for t in tensors(run(m, sample, backend))]

        def results(inputs: Any, upstream: Any, m: Any = m, sample: Any = sample, weights: Any = weights) -> Any:
            sample.forward_input.args = inputs
            outputs = tensors(run(m, sample, backend))
            return outputs, torch.autograd.grad(outputs, [*tensors(inputs), *weights], upstream)

        expected = results(inputs, upstream)
        spread = _spread(inputs), _spread(upstream)
        assert not any(t.is_contiguous() for t in tensors(spread)), name
        for case in ((spread[0], upstream), (inputs, spread[1]), spread):
            same(results(*case), expected, name)


def _function(m: torch.nn.Module, sample: Any, backend: str) -> tuple[Any, list[Tensor], Mapping[str, Tensor]]:
    """The module as a function of its inputs and weights, with those inputs and weights."""
    weights = dict(m.named_parameters())
    flat, spec = tree_flatten(sample.forward_input.args)

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(weights, given[len(flat) :], strict=True))
        inputs = tree_unflatten(list(given[: len(flat)]), spec)
        with freeze_rng_state(), backend_of(backend):
            return tuple(tensors(torch.func.functional_call(m, named, inputs)))

    return outputs, flat, weights


def _check_gradients(info: ModuleInfo, training: bool, backend: str, check: Any) -> None:
    """With respect to inputs and weights together; and to the inputs and one weight, another in each sample."""
    for k, (name, sample, m) in enumerate(samples(info, torch.float64, grad=True, training=training)):
        outputs, inputs, weights = _function(m, sample, backend)
        assert check(outputs, (*inputs, *weights.values()), fast_mode=info.gradcheck_fast_mode), name
        if check is gradgradcheck and not training:
            continue  # it is slow
        asking = list(weights)[k % len(weights)]
        one = [p.detach().requires_grad_(n == asking) for n, p in weights.items()]
        assert check(outputs, (*inputs, *one), fast_mode=info.gradcheck_fast_mode), (name, asking)


@modes_and_backends
def test_grad(info: ModuleInfo, training: bool, backend: str) -> None:
    _check_gradients(info, training, backend, gradcheck)


@modes
def test_gradgrad(info: ModuleInfo, training: bool) -> None:
    """On the chosen backend; test_conformance does the reference too."""
    assert info.supports_gradgrad
    _check_gradients(info, training, "chosen", gradgradcheck)


@modes_and_backends
def test_grad_of_each_alone(info: ModuleInfo, training: bool, backend: str) -> None:
    """A gradient does not depend on what else asks for one."""
    for name, sample, m in samples(info, torch.float64, grad=True, training=training):
        outputs, inputs, weights = _function(m, sample, backend)
        everything = [*inputs, *weights.values()]
        expected = torch.autograd.grad([o.sum() for o in outputs(*everything)], everything)
        for k, gradient in enumerate(expected):
            one = [t.detach().requires_grad_(j == k) for j, t in enumerate(everything)]
            same(torch.autograd.grad([o.sum() for o in outputs(*one) if o.requires_grad], one[k]), gradient, name)
