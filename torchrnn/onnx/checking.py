"""Whether an exported graph computes what the model does: both run on the same numbers, at more sizes than one."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from torchrnn.onnx.said import package


def wanted(check: bool | None) -> bool:
    """Whether to compare, where None leaves it to what is installed."""
    if check is None:
        check = find_spec("onnxruntime") is not None
        if not check:
            warnings.warn(
                "the ONNX graph is not checked, since onnxruntime is not installed: pip install 'torchrnn[onnx]', or "
                "say check=False",
                stacklevel=3,
            )
    elif check:
        package("onnxruntime")
    return check


def compare(program: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tolerance: float) -> None:
    """Raise if what onnxruntime computes differs from what the model does."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    names = [value.name for value in program.model.graph.inputs]
    if len(names) != len(tensors):
        raise ValueError(
            f"the graph has the inputs {names}, but args and kwargs hold {len(tensors)} tensors, so that it cannot be "
            "checked: say check=False"
        )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "model.onnx")
        program.save(path)
        session = package("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        for found in [tensors, *_larger(program.exported_program, tensors)]:
            waiting = iter(found)
            given = [next(waiting) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            again, by_name = pytree.tree_unflatten(given, spec)
            expected = [t for t in pytree.tree_leaves(model(*again, **by_name)) if isinstance(t, Tensor)]
            feeds = {name: t.detach().numpy() for name, t in zip(names, found, strict=True)}
            _agree(program, session.run(None, feeds), expected, found, tolerance)


def _agree(program: Any, results: list[Any], expected: list[Tensor], inputs: list[Tensor], tolerance: float) -> None:
    at = ", ".join(str(tuple(t.shape)) for t in inputs)
    names = [value.name for value in program.model.graph.outputs]
    if len(results) != len(expected):
        raise RuntimeError(f"with inputs {at} the model gives {len(expected)} tensors, its graph {len(results)}")
    for name, array, tensor in zip(names, results, expected, strict=True):
        result = torch.from_numpy(array)
        if result.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, its graph {tuple(result.shape)}"
            raise RuntimeError(f"with inputs {at} the model gives {name} of shape {shapes}")
        result = result.to(tensor.dtype)
        if not torch.allclose(result, tensor, rtol=tolerance, atol=tolerance, equal_nan=True):
            off = (result.double() - tensor.double()).abs().max().item()
            raise RuntimeError(
                f"with inputs {at} onnxruntime's {name} is off by {off:.3g}, more than tolerance={tolerance:g}: no "
                "file was written"
            )


def _larger(exported: Any, tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The inputs at two other sizes of their dynamic dimensions; lengths and indices stay what they may be."""
    by_name = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    said = [by_name[name] for name in exported.graph_signature.user_inputs if isinstance(name, str) and name in by_name]
    fakes = [value for value in said if isinstance(value, Tensor)]
    if len(fakes) != len(tensors):
        return
    symbols: dict[Any, int] = {}
    for fake, real in zip(fakes, tensors, strict=True):
        for size, number in zip(fake.shape, real.shape, strict=True):
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                symbols[size.node.expr] = number
    if not symbols:
        return
    generator = torch.Generator().manual_seed(0)
    for factor, more in ((1, 1), (2, 3)):
        sizes = {}
        for place, (symbol, number) in enumerate(symbols.items()):
            limit = exported.range_constraints.get(symbol)
            most = float("inf") if limit is None else float(limit.upper)
            sizes[symbol] = int(min(number * factor + more + place, most))  # no two alike by chance
        yield [_resized(real, _shape(fake, sizes), generator) for fake, real in zip(fakes, tensors, strict=True)]


def _shape(fake: Tensor, sizes: dict[Any, int]) -> list[int]:
    return [int(s.node.expr.subs(sizes)) if isinstance(s, torch.SymInt) else s for s in fake.shape]


def _resized(real: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """A tensor of another shape with elements of ``real``, or of a normal distribution where those are all alike."""
    if not real.numel():
        return real.new_zeros(shape)
    if real.is_floating_point() and bool((real == real.flatten()[0]).all()):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(real.dtype)
    at = torch.randint(real.numel(), shape, generator=generator)
    return real.detach().flatten()[at]
