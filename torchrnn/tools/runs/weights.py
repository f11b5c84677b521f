"""A model's weights as a safetensors file, which cannot hold code."""

from __future__ import annotations

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.runs.runfolder import RunFolder


def weights_to_bytes(model: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """The weights as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors, metadata)


def load_weights(model: nn.Module, data: bytes, source: object) -> None:
    """Fill the model from a safetensors file; `source` is named if that fails."""
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ToolError(
            f"{source} does not hold the weights of this model: it is damaged, or config.toml beside it was changed "
            f"({reason}). Bring back the file from a copy, or train again with --overwrite."
        ) from error


def load_best(model: nn.Module, folder: RunFolder, job: str) -> nn.Module:
    """The model with the weights of the run's best validation, ready to be called."""
    path = folder.whereabouts(folder.model)
    if not path.is_file():
        raise ToolError(
            f"RUN {folder.root} has no model yet: {folder.model.name} is written at the first validation. Train it "
            f"further: torchrnn {job} --resume --run {folder.root}."
        )
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise ToolError(f"{folder.model} could not be read: {error.strerror}.") from error
    load_weights(model, weights, folder.model)
    return model.eval()
