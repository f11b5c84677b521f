"""A model with our layers as an ONNX file: ``torch.onnx.export`` with what it lacks, and a check of what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from torchrnn import _extension
from torchrnn.backends import traced
from torchrnn.check import ArgumentError
from torchrnn.layer import Recurrent
from torchrnn.onnx import checking
from torchrnn.onnx.said import package, quietly
from torchrnn.onnx.table import translation_table
from torchrnn.step import RecurrentCell

_PACKED = (
    "a PackedSequence is the input of a layer, which torch cannot export: give the layer the padded batch and "
    "lengths=, which becomes sequence_lens"
)


def export(
    model: nn.Module,
    args: Sequence[Any],
    path: str | PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    check: bool | None = None,
    tolerance: float = 1e-5,
    **options: Any,
) -> Any:
    """Export a model to ONNX: our layers are ONNX's ``RNN``, ``LSTM`` and ``GRU`` nodes, other cells its ``Scan``.

    The model is exported as it is in evaluation, and left as it was. Before this returns, the file is run with
    onnxruntime and compared with the model: on the arguments given, and where dimensions are dynamic at two larger
    sizes of each, too, on numbers drawn from those arguments.

    Args:
        model: with any of our layers and cells in it, on the CPU, of float32 or float64.
        args: what the model is called with.
        path: of the file to write; None: none is written.
        kwargs: what the model is called with by keyword.
        dynamic_shapes: as ``torch.onnx.export`` takes it: for each argument the dimensions that may vary,
            ``{0: "B", 1: "T"}``; without it every size is fixed.
        check: whether to compare; None: if onnxruntime is installed, else a warning says that it is not.
        tolerance: how far an element may be off, absolutely and relative to its size.
        **options: others of ``torch.onnx.export``, as ``opset_version`` or ``output_names``; a
            ``custom_translation_table`` is used beside ours.

    Returns:
        The ``torch.onnx.ONNXProgram``; its ``model`` is the graph.

    Raises:
        check.ArgumentError: the model has what cannot be in an ONNX graph; the message says what.
        RuntimeError: the graph does not compute what the model does. Nothing is written then.
        ModuleNotFoundError: a package of ``torchrnn[onnx]`` is not installed.

    Example:
        ```python
        import torch, torchrnn
        import torchrnn.onnx

        layer = torchrnn.LSTM(3, 5)
        program = torchrnn.onnx.export(layer, (torch.randn(7, 2, 3),), dynamic_shapes=({0: "T", 1: "B"},))
        assert "LSTM" in [node.op_type for node in program.model.graph]
        ```
    """
    kwargs = dict(kwargs or {})
    table = translation_table() | dict(options.pop("custom_translation_table", None) or {})
    _refuse(model)
    check = checking.wanted(check)
    with _evaluating(model), _packed_inputs(model) as packed, traced.of_any_cell():
        try:
            program = _exported(model, tuple(args), kwargs, dynamic_shapes, table, options)
        except Exception as error:
            reason = _PACKED if packed else _reason(error)
            if reason is not None:
                raise ArgumentError(reason) from error
            raise
        _fold(program)
        if check:
            checking.compare(program, model, tuple(args), kwargs, tolerance)
    if path is not None:
        program.save(fspath(path))
    return program


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, table: Any, options: dict[str, Any]
) -> Any:
    given: dict[str, Any] = {"verbose": False} | options
    given |= {"kwargs": kwargs, "dynamic_shapes": shapes, "custom_translation_table": table}
    with quietly(), torch.no_grad():
        return torch.onnx.export(model, args, **given)


def _refuse(model: Any) -> None:
    """Raise where layers of a model cannot become nodes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if not isinstance(module, (Recurrent, RecurrentCell)):
            continue
        called = f"{name or 'the model'} ({type(module).__name__})"
        if module.input_size is None:
            raise ArgumentError(f"{called} has no input size yet: call the model once first")
        for weight in module.parameters():
            if weight.device.type != "cpu":
                raise ArgumentError(f"{called} must be on the CPU, got {weight.device}: export model.cpu()")
            if weight.dtype not in (torch.float32, torch.float64):
                raise ArgumentError(f"{called} must be of float32 or float64, got {weight.dtype}: export model.float()")
    missing = _extension.missing()
    if missing is not None:
        raise RuntimeError(f"ONNX graphs are made of the operators of torchrnn's library: {missing}")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode: dropout has no place in a file."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _packed_inputs(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The layers that were called with a PackedSequence, where torch fails with what says nothing of it."""
    seen: list[nn.Module] = []

    def look(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], PackedSequence):
            seen.append(module)

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, Recurrent)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _reason(error: BaseException | None) -> str | None:
    """What we ourselves had to say somewhere below an exception of torch's."""
    while error is not None:
        if isinstance(error, ArgumentError):
            return str(error)
        error = error.__cause__
    return None


_ARRANGING = ("Concat", "Gather", "Reshape", "Transpose", "Unsqueeze")


def _fold(program: Any) -> None:
    """Keep the weights as the nodes take them, not what brings ours there: large ones as torch does small ones."""
    optimizer = package("onnxscript.optimizer")

    def ours(node: Any) -> bool:
        made_of = node.metadata_props.get("pkg.torch.onnx.fx_node", "")
        return node.op_type in _ARRANGING and "torchrnn.recurrent" in made_of

    everything = 2**62
    optimizer.fold_constants_ir(
        program.model, input_size_limit=everything, output_size_limit=everything, should_fold=ours
    )
    optimizer.remove_unused_nodes(program.model)
