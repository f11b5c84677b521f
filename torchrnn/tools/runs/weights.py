"""A model's weights as a safetensors file, which cannot hold code."""

from __future__ import annotations

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.settings import Settings


def weights_to_bytes(model: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """The weights as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors, metadata)


def load_weights(model: nn.Module, data: bytes, source: object) -> None:
    """Fill the model from a safetensors file; `source` is named if that fails."""
    try:
        tensors = safetensors.torch.load(data)
        lost = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if lost:
            raise ValueError(f"{lost[0]} has values that are no finite numbers")
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ToolError(
            f"{source} does not hold the weights of this model: it is damaged, or config.toml beside it was changed "
            f"({reason}). Bring back the file from a copy, or train again with --overwrite."
        ) from error


def check_size(size: int, settings: Settings, source: object) -> None:
    """Refuse settings whose model would have more weights than `source` holds, before it is built."""
    least = 4 * settings.num_layers * settings.hidden_size**2  # the recurrent weights of one gate
    if size < least:
        raise ToolError(
            f"{source} does not hold the weights of this model: --num-layers {settings.num_layers} and --hidden-size "
            f"{settings.hidden_size} of config.toml need {least:,} bytes at least, and it has {size:,}. One of the two "
            f"is damaged or was changed by hand. Bring it back from a copy, or train again with --overwrite."
        )


def load_best(model: nn.Module, folder: RunFolder, job: str) -> nn.Module:
    """The model with the weights of the run's best validation, ready to be called."""
    load_weights(model, read_best(folder, job), folder.model)
    return model.eval()


def read_best(folder: RunFolder, job: str) -> bytes:
    """The file with the weights of the run's best validation."""
    path = folder.whereabouts(folder.model)
    if not path.is_file():
        raise ToolError(
            f"RUN {folder.root} has no model yet: {folder.model.name} is written at the first validation. Train it "
            f"further: torchrnn {job} --resume --run {folder.root}."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ToolError(f"{folder.model} could not be read: {error.strerror}. Make it readable.") from error
