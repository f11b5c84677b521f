"""What Keras says of its layers in their configurations; what ours cannot do is refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from torchrnn.activation import ACTIVATIONS

#: Keras's classes that we know, by their names there, as they are called in files.
KINDS = {"SimpleRNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru", "Bidirectional": "bidirectional"}
MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean"}
#: Arguments that change nothing in what a trained layer computes.
_INDIFFERENT = {"name", "trainable", "dtype", "unroll", "seed", "implementation", "use_cudnn", "unit_forget_bias"}
_INDIFFERENT |= {"zero_output_for_mask", "batch_input_shape", "input_shape", "activity_regularizer"}
_INDIFFERENT |= {f"{w}_{what}" for w in ("kernel", "recurrent", "bias") for what in ("initializer", "regularizer")}
_INDIFFERENT |= {f"{w}_constraint" for w in ("kernel", "recurrent", "bias")}
_READ = {"units", "activation", "recurrent_activation", "use_bias", "reset_after", "return_sequences", "return_state"}
_READ |= {"go_backwards", "stateful", "dropout", "recurrent_dropout"}


class Described(NamedTuple):
    """A recurrent layer of Keras, in our words."""

    name: str
    path: str  # of its group in a file of weights
    kind: str  # SimpleRNN, LSTM or GRU
    units: int
    activation: str
    bias: bool
    reset_after: bool  # of a GRU
    return_sequences: bool
    directions: int
    merge_mode: str
    notes: tuple[str, ...]  # what is not kept

    @property
    def gates(self) -> int:
        """G."""
        return {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}[self.kind]

    @property
    def cells(self) -> list[str]:
        """The groups of the weights of each direction in a file."""
        if self.directions == 1:
            return [f"{self.path}/cell/vars"]
        return [f"{self.path}/{side}_layer/cell/vars" for side in ("forward", "backward")]

    def shapes(self, I: int | None) -> list[tuple[str, tuple[Any, ...]]]:
        """Names and shapes of the weights of one direction; of an unknown I, None."""
        G, H = self.gates, self.units
        found: list[tuple[str, tuple[Any, ...]]] = [("kernel", (I, G * H)), ("recurrent_kernel", (H, G * H))]
        if self.bias:
            found.append(("bias", (2, G * H) if self.kind == "GRU" and self.reset_after else (G * H,)))
        return found


def described(config: Any, path: str = "", layer: str | None = None) -> list[Described]:
    """The recurrent layers of a serialised layer or Sequential; the one of a name, of any model.

    Raises:
        ValueError: the configuration is none, or says what ours cannot do.
    """
    entries = list(_entries(_serialised(config), path))
    names = [e["config"].get("name") for e, _, _ in entries if e["class_name"] in KINDS]
    if layer is not None:
        named = [_one(e, p) for e, p, _ in entries if e["config"].get("name") == layer]
        if len(named) != 1:
            raise ValueError(f"layer must be the name of one of the recurrent layers, {names}, got {layer!r}")
        return named
    for _, _, within in entries:
        if within not in ("", "Sequential"):
            raise ValueError(
                f"a {within} model is no row of layers: take its recurrent layers one by one, layer= one of {names}"
            )
    found = [_one(e, p) for e, p, _ in entries if e["class_name"] != "InputLayer"]
    if not found:
        raise ValueError("the model has no layers")
    for below, above in pairwise(found):
        if not below.return_sequences:
            raise ValueError(
                f"layer {below.name!r} has return_sequences=False, and layer {above.name!r} after it needs a sequence"
            )
    return found


def _serialised(config: Any) -> dict[str, Any]:
    """A configuration with its class, checked."""
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError(
            "config must be what keras.layers.serialize(layer) or model.to_json() gives, with the keys class_name and "
            f"config, got {_short(config)}"
        )
    if not isinstance(config.get("config"), dict):
        raise ValueError(
            f"config of {config['class_name']} must hold a dict config, got {_short(config.get('config'))}"
        )
    return config


def _entries(config: dict[str, Any], path: str, within: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """The layers of a model, their groups in a file of weights, and what kind of model each is in.

    The groups are called by class, and numbered in the order of the model.
    """
    layers = config["config"].get("layers")
    if config["class_name"] in KINDS or layers is None:
        yield config, path, within
        return
    if not isinstance(layers, list):
        raise ValueError(f"config of {config['class_name']} must hold a list layers, got {_short(layers)}")
    seen: Counter[str] = Counter()
    for layer in layers:
        one = _serialised(layer)
        kind: str = one["class_name"]
        group = KINDS.get(kind, kind.lower())
        number = f"_{seen[group]}" if seen[group] else ""
        seen[group] += 1
        below = within if within not in ("", "Sequential") else config["class_name"]
        yield from _entries(one, f"{path}/layers/{group}{number}".lstrip("/"), below)


def _one(entry: dict[str, Any], path: str) -> Described:
    """One recurrent layer, of one direction or two."""
    kind, module = entry["class_name"], entry.get("module")
    if isinstance(module, str) and module.split(".")[0] != "keras":
        raise ValueError(f"{kind} is a class of {module}, not of Keras: what it does is not known here")
    if kind not in KINDS:
        raise ValueError(_other(kind, entry["config"].get("name")))
    if kind != "Bidirectional":
        return _direction(kind, entry["config"], path)
    config = entry["config"]
    name = str(config.get("name", "bidirectional"))
    forward = _inner(config.get("layer"), name, path, backwards=False)
    if "merge_mode" in config and config["merge_mode"] is None:
        raise ValueError(
            f"{name}: merge_mode=None gives two outputs, which no layer of ours does: build it with "
            "merge_mode='concat' and the same weights, and take output.chunk(2, -1)"
        )
    merge = config.get("merge_mode", "concat")
    if not isinstance(merge, str) or merge not in MERGES:
        raise ValueError(f"{name}: merge_mode must be one of {', '.join(map(repr, MERGES))}, got {_short(merge)}")
    if config.get("backward_layer") is not None:
        backward = _inner(config["backward_layer"], name, path, backwards=True)
        if forward._replace(name="", notes=()) != backward._replace(name="", notes=()):
            raise ValueError(
                f"{name}: its backward layer differs from the forward one in more than the direction, and the two "
                "directions of a layer of ours are alike: load each with from_keras(bidirectional.forward_layer), and "
                "run the backward one on the flipped sequence"
            )
    return forward._replace(name=name, directions=2, merge_mode=MERGES[merge])


def _inner(entry: Any, name: str, path: str, *, backwards: bool) -> Described:
    """The layer of one direction within a Bidirectional."""
    one = _serialised(entry)
    if one["class_name"] == "Bidirectional":
        raise ValueError(f"{name}: a Bidirectional within a Bidirectional is no layer of ours")
    direction = one["config"].get("go_backwards", False)
    if direction is not backwards:
        raise ValueError(
            f"{name}: its {'backward' if backwards else 'forward'} layer has go_backwards={direction!r}: the first "
            "half of our output is the forward direction, so exchange the two layers"
        )
    return _one({**one, "config": {**one["config"], "go_backwards": False}}, path)


def _direction(kind: str, config: dict[str, Any], path: str) -> Described:
    """A SimpleRNN, LSTM or GRU."""
    name = str(config.get("name", KINDS[kind]))
    unknown = [k for k, v in config.items() if k not in _INDIFFERENT | _READ and v not in (None, False, 0, 0.0)]
    if unknown:
        raise ValueError(f"{name}: {unknown[0]}={_short(config[unknown[0]])} of {kind} is not known here")
    units = config.get("units")
    if not isinstance(units, int) or isinstance(units, bool) or units < 1:
        raise ValueError(f"{name}: units must be a positive integer, got {_short(units)}")
    activation = config.get("activation", "tanh") or "linear"
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"{name}: activation must be one of {', '.join(map(repr, ACTIVATIONS))} here, got {_short(activation)}: "
            "with any other function write a cell, see torchrnn.cell"
        )
    recurrent = config.get("recurrent_activation", "sigmoid")
    if kind != "SimpleRNN" and recurrent != "sigmoid":
        raise ValueError(
            f"{name}: recurrent_activation={_short(recurrent)}: the gates of our {kind} are sigmoids; with another "
            "function write a cell, see torchrnn.cell"
        )
    if _flag(config, name, "go_backwards", False):
        raise ValueError(
            f"{name}: go_backwards=True: no layer of ours runs backward alone; load it with go_backwards=False in its "
            "config and call it with the flipped sequence, x.flip(1): its outputs then come in Keras's order"
        )
    return Described(
        name=name,
        path=path,
        kind=kind,
        units=units,
        activation=activation,
        bias=_flag(config, name, "use_bias", True),
        reset_after=kind == "GRU" and _flag(config, name, "reset_after", True),
        return_sequences=_flag(config, name, "return_sequences", False) or _flag(config, name, "return_state", False),
        directions=1,
        merge_mode="concat",
        notes=tuple(_notes(config, name)),
    )


def _flag(config: dict[str, Any], name: str, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {key} must be true or false, got {_short(value)}")
    return value


def _notes(config: dict[str, Any], name: str) -> Iterator[str]:
    """What a layer says that ours will not do, though its numbers at a single call are the same."""
    for key in ("dropout", "recurrent_dropout"):
        if config.get(key):
            yield f"{name}: {key}={config[key]!r} acts in training only and is not kept"
    if _flag(config, name, "stateful", False):
        yield (
            f"{name}: stateful=True is not kept, each call begins with zeros: give the last state as hx, or use "
            "torchrnn.Stream"
        )
    if _flag(config, name, "return_state", False) and not _flag(config, name, "return_sequences", False):
        yield (
            f"{name}: return_state=True and return_sequences=False: ours gives (output, state) with all outputs; "
            "Keras's first result is torchrnn.last(output)"
        )


def _other(kind: str, name: Any) -> str:
    """Why a layer of another class is refused, and what to do about it."""
    called = f"{name}: {kind}" if name else kind
    if kind == "Masking":
        hint = "call ours with mask=(x != mask_value).any(-1), or lengths="
    elif kind == "Embedding":
        hint = "keep it as nn.Embedding; for mask_zero=True call ours with mask=(tokens != 0)"
    elif kind in ("LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells", "RNN"):
        hint = "load the layer LSTM, GRU or SimpleRNN, whose weights are the same"
    else:
        hint = "take the recurrent layers of the model one by one, by name: layer="
    return f"{called} is none of {', '.join(KINDS)}: {hint}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
