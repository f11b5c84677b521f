"""The command `torchrnn shapes`: the table of a layer's call, from sizes alone."""

import re
import warnings
from typing import Annotated, Any

import typer

from torchrnn.tools.runs.errors import Mishap, UsageError

Option = typer.Option
KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_DEFAULTS = {"num_layers": None, "proj_size": 0, "merge_mode": "concat", "return_sequences": True}
_BY_NAME = {kind.lower(): kind for kind in KINDS}


def shapes(
    kind: Annotated[str, typer.Argument(metavar="|".join(_BY_NAME), help="The layer or cell.")],
    input_size: Annotated[int, Option(help="I, numbers of the input at each step.")] = 10,
    hidden_size: Annotated[str, Option(metavar="H[,H…]", help="H, numbers of a state; by layer: 64,32.")] = "20",
    num_layers: Annotated[int | None, Option(help="L, layers on top of each other.", show_default="1")] = None,
    seq: Annotated[int, Option(help="T, steps of the sequence.")] = 5,
    batch: Annotated[int, Option(help="B, sequences side by side (0: one sequence, without a batch).")] = 3,
    batch_first: Annotated[bool, Option("--batch-first", help="Input and output are (B, T, …).")] = False,
    bidirectional: Annotated[bool, Option("--bidirectional", help="A second sweep runs backward.")] = False,
    proj_size: Annotated[int, Option(help="P, to which the output is projected (0: it is not).")] = 0,
    bias: Annotated[bool, Option(help="Whether there are bias_ih and bias_hh.")] = True,
    merge_mode: Annotated[str, Option(metavar="concat|sum|mean|mul", help="How the directions are joined.")] = "concat",
    residual: Annotated[bool, Option("--residual", help="Layers add their input to their output.")] = False,
    batch_first_state: Annotated[bool, Option("--batch-first-state", help="The states are (B, L·D, H).")] = False,
    return_sequences: Annotated[bool, Option(help="Every step's output, or each row's last alone.")] = True,
    return_all: Annotated[bool, Option("--return-all", help="Every state and gate at every step, too.")] = False,
    lengths: Annotated[
        str, Option(metavar="N,N…", help="The length of each row of a padded batch.", show_default="none")
    ] = "",
) -> None:
    """Tell what every tensor of a layer is: its shape, what it holds, and which backend would run it.

    Parameters, input, states and results, each in letters and numbers; which rows of a weight are which gate, which
    half of the output is which direction, and where the last output stands. Nothing is computed.
    """
    name = _BY_NAME.get(kind.lower().replace("-", "").replace("_", ""))
    if name is None:
        raise UsageError(f"There is no layer {kind!r}: it must be one of {', '.join(_BY_NAME)}.")
    sizes = _numbers("--hidden-size", hidden_size)
    for option, value, least in (("--input-size", input_size, 1), ("--seq", seq, 1), ("--batch", batch, 0)):
        if value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}.")
    options = {"num_layers": num_layers, "batch_first": batch_first, "bidirectional": bidirectional}
    options |= {"proj_size": proj_size, "merge_mode": merge_mode, "residual": residual}
    options |= {"batch_first_state": batch_first_state, "return_sequences": return_sequences}
    asked = {name: value for name, value in options.items() if value != _DEFAULTS.get(name, False)}
    call: dict[str, Any] = {"lengths": _numbers("--lengths", lengths)} if lengths else {}
    call |= {"return_all": True} if return_all else {}
    if name.endswith("Cell") and (asked or call):
        raise UsageError(f"{name} is a single step: it does not take {', '.join(map(_option, (*asked, *call)))}.")
    shape = (batch, input_size) if batch else (input_size,)
    if not name.endswith("Cell"):
        shape = (batch, seq, input_size) if batch_first and batch else (seq, *shape)
    hidden = sizes[0] if len(sizes) == 1 else sizes
    typer.echo(_told(name, shape, {"input_size": input_size, "hidden_size": hidden, "bias": bias} | asked, call))


def _told(name: str, shape: tuple[int, ...], options: dict[str, Any], call: dict[str, Any]) -> str:
    """The table of a layer; its mistakes in the words of the command line."""
    import torch

    import torchrnn

    try:
        # nothing is computed, so no number needs a value
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            layer = getattr(torchrnn, name)(**options, device="meta").to_empty(device="cpu")
        for note in notes:
            typer.echo(f"note: {note.message}", err=True)
        return str(torchrnn.explain(layer, torch.empty(shape), **call))
    except (ValueError, TypeError) as error:
        names = "|".join((*options, *call, *_DEFAULTS, "batch_first_state", "residual", "bidirectional"))
        told = re.sub(rf"\b({names})\b", lambda found: _option(found[1]), str(error))
        raise UsageError(told if told.endswith(".") else f"{told}.") from error
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error) and "overflow" not in str(error):
            raise
        raise Mishap("Out of memory: even without values, tensors of these sizes do not fit. Lower them.") from error


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _numbers(option: str, text: str) -> list[int]:
    """The numbers in "64,32"."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,12}", part, re.ASCII) for part in parts):
        raise UsageError(f"{option} must be whole numbers separated by commas, such as 64,32, got {text!r}.")
    return [int(part) for part in parts]
