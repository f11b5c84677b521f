"""Features of differentiation and torch.func: per sample, forward, twice, and with less memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from docs.features import plain
from docs.features.subject import (
    B,
    Feature,
    I,
    NotSo,
    Subject,
    T,
    batch,
    same,
    same_with_gradients,
    tensors,
    weights,
)


def equations(of: Subject, layer: Any, x: Tensor, of_weights: Any = None) -> list[Tensor]:
    """The plain loops as a function of input and weights."""
    return plain.batch(of.step, of_weights or detached(layer), x, of.zeros(layer, x.size(1)))


def detached(layer: Any) -> dict[str, Tensor]:
    """The weights without their history."""
    return {name: w.detach() for name, w in weights(layer).items()}


def loss(results: Any) -> Tensor:
    """A sum in which every result counts, and no two alike."""
    return torch.stack([(k + 1) * t.sin().sum() for k, t in enumerate(tensors(results))]).sum()


def over_samples(of: Subject) -> None:
    """vmap over four batches."""
    layer, x = of.layer(2, bidirectional=True).requires_grad_(False), batch(4, T, B, I)
    expected = [torch.stack(t) for t in zip(*(of.expected(layer, sample) for sample in x), strict=True)]
    same(vmap(lambda sample: layer(sample))(x), expected)


def per_sample(of: Subject) -> None:
    """vmap of grad: the gradients of all weights for each sample."""
    layer, x = of.layer(), batch(4, T, B, I)

    def of_call(w: Any, sample: Tensor) -> Tensor:
        return loss(functional_call(layer, w, (sample,)))

    def of_equations(w: Any, sample: Tensor) -> Tensor:
        return loss(equations(of, layer, sample, w))

    got = vmap(grad(of_call), in_dims=(None, 0))(detached(layer), x)
    rows = [grad(of_equations)(detached(layer), sample) for sample in x]
    same(got, {name: torch.stack([r[name] for r in rows]) for name in rows[0]})


def forward_mode(of: Subject) -> None:
    """A directional derivative by the input."""
    layer, x = of.layer(), batch()
    got = jvp(lambda x: tuple(tensors(layer(x))), (x,), (x.cos(),))
    same(got, jvp(lambda x: tuple(equations(of, layer, x)), (x,), (x.cos(),)))


def jacobian(of: Subject) -> None:
    """By the input, row by row backward."""
    layer, x = of.layer(), batch(3, 2, I)
    same(jacrev(lambda x: layer(x)[0][-1])(x), jacrev(lambda x: equations(of, layer, x)[0][-1])(x))


def hessian_vector(of: Subject) -> None:
    """A backward through a backward."""
    layer, x = of.layer(), batch().requires_grad_()
    inputs = [x, *layer.parameters()]

    def product(results: Any) -> Any:
        first = torch.autograd.grad(loss(results), inputs, create_graph=True)
        return torch.autograd.grad(loss(first), inputs)

    same(product(layer(x)), product(of.expected(layer, x)))


def other_weights(of: Subject) -> None:
    """With the weights doubled."""
    layer, x = of.layer(), batch()
    doubled = {name: 2 * w for name, w in detached(layer).items()}
    same(functional_call(layer, doubled, (x,)), equations(of, layer, x, doubled))


def checkpointed(of: Subject) -> None:
    """Computed again in backward."""
    layer, x = of.layer(2, bidirectional=True), batch().requires_grad_()
    same_with_gradients(layer, x, checkpoint(layer, x, use_reentrant=False), of.expected(layer, x))


def hooks(of: Subject) -> None:
    """What is kept for backward goes through the hooks, here into NumPy."""
    layer, x = of.layer(2, bidirectional=True), batch().requires_grad_()
    packed = []

    def pack(t: Tensor) -> Any:
        packed.append(t.shape)
        return t.detach().numpy().copy()

    with saved_tensors_hooks(pack, torch.from_numpy):
        results = layer(x)
    if not packed:
        raise NotSo("nothing went through the hooks")
    same_with_gradients(layer, x, results, of.expected(layer, x))


def autocast(of: Subject) -> None:
    """A float32 layer; results within bfloat16's precision."""
    layer, x = of.layer(dtype=torch.float32), batch().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        results = layer(x)
    if results[0].dtype is not torch.bfloat16:
        raise NotSo(f"the output is {str(results[0].dtype).removeprefix('torch.')}")
    same_with_gradients(layer, x, results, of.expected(layer, x), 5e-2)


FEATURES = [
    Feature("`torch.func.vmap`", over_samples),
    Feature("gradients for each sample: `vmap(grad)`", per_sample),
    Feature("`torch.func.jvp`", forward_mode),
    Feature("`torch.func.jacrev`", jacobian),
    Feature("Hessian-vector product (a backward through a backward)", hessian_vector),
    Feature("`torch.func.functional_call`", other_weights),
    Feature("`torch.utils.checkpoint`", checkpointed),
    Feature("hooks of saved tensors", hooks),
    Feature("autocast to bfloat16: results in bfloat16, backward", autocast),
]
