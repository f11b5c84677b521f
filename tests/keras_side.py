"""What runs in a process with Keras: its layers beside ours, and the files that the tests read without it.

    KERAS_BACKEND=torch python tests/keras_side.py FOLDER

Writes results.json, the largest difference of each thing compared by case, and models with what they predict.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import torch
from keras import layers as K
from keras.src.backend.common import dtypes

import torchrnn

I, T, B = 3, 4, 4
RNG = np.random.default_rng(0)
TWO: dict[str, Any] = {"return_sequences": True}


def bi(layer: Any, merge_mode: str = "concat") -> Any:
    return K.Bidirectional(layer, merge_mode=merge_mode)


def row(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((None, I)), *layers])


#: by name: what makes a layer or model, and whether its results have states
CASES: dict[str, Any] = {
    "SimpleRNN": lambda: K.SimpleRNN(5),
    "SimpleRNN relu, all": lambda: K.SimpleRNN(5, activation="relu", **TWO),
    "SimpleRNN linear, no bias": lambda: K.SimpleRNN(5, activation="linear", use_bias=False),
    "SimpleRNN, states": lambda: K.SimpleRNN(5, return_state=True, **TWO),
    "LSTM": lambda: K.LSTM(5),
    "LSTM, all": lambda: K.LSTM(5, **TWO),
    "LSTM softsign, no bias": lambda: K.LSTM(5, activation="softsign", use_bias=False, **TWO),
    "LSTM, states": lambda: K.LSTM(5, return_state=True, **TWO),
    "GRU": lambda: K.GRU(5),
    "GRU elu, all": lambda: K.GRU(5, activation="elu", **TWO),
    "GRU, no bias": lambda: K.GRU(5, use_bias=False),
    "GRU, states": lambda: K.GRU(5, return_state=True, **TWO),
    "GRU before": lambda: K.GRU(5, reset_after=False),
    "GRU before, all": lambda: K.GRU(5, reset_after=False, **TWO),
    "GRU before sigmoid, no bias": lambda: K.GRU(5, reset_after=False, activation="sigmoid", use_bias=False, **TWO),
    "GRU before, states": lambda: K.GRU(5, reset_after=False, return_state=True, **TWO),
    "both SimpleRNN": lambda: bi(K.SimpleRNN(5, **TWO)),
    "both LSTM": lambda: bi(K.LSTM(5)),
    "both LSTM, all": lambda: bi(K.LSTM(5, **TWO), "sum"),
    "both LSTM, states": lambda: bi(K.LSTM(5, return_state=True, **TWO)),
    "both GRU, mul": lambda: bi(K.GRU(5), "mul"),
    "both GRU before, mean": lambda: bi(K.GRU(5, reset_after=False, **TWO), "ave"),
    "one of three": lambda: row(K.GRU(5, **TWO), K.GRU(4, **TWO), K.GRU(6)),
    "one of two, both, mean": lambda: row(bi(K.LSTM(5, **TWO), "ave"), bi(K.LSTM(4, **TWO), "ave")),
    "two kinds": lambda: row(bi(K.LSTM(5, **TWO)), K.GRU(4, reset_after=False)),
    "two options": lambda: row(K.GRU(5, **TWO), K.GRU(5, reset_after=False, **TWO), K.GRU(4, reset_after=False)),
    "within each other": lambda: row(K.SimpleRNN(5, **TWO), row_of(5, K.SimpleRNN(4, **TWO), K.LSTM(3))),
}


def row_of(features: int, *layers: Any) -> Any:
    return keras.Sequential([keras.Input((None, features)), *layers])


FEW = ["SimpleRNN", "LSTM, states", "GRU", "GRU before, states", "two kinds"]


def numpy(tensor: Any) -> Any:
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else keras.ops.convert_to_numpy(tensor)


def seeded(layer: Any) -> Any:
    """A layer with weights that are all different from zero."""
    if not layer.built:
        layer.build((B if getattr(layer, "stateful", False) else None, None, I))
    layer.set_weights([RNG.normal(size=w.shape) / w.shape[-1] ** 0.5 for w in layer.get_weights()])
    return layer


def results(layer: Any, given: Any) -> list[Any]:
    """Output and final states as a flat list; of ours in Keras's order, with the states of each layer (B, H)."""
    if not isinstance(given, (list, tuple)):
        return [given]
    if not isinstance(layer, torchrnn.Recurrent):
        return list(given)
    output, states = given
    states = states if isinstance(states, tuple) else (states,)
    return [output, *(s[d] for d in range(2 if layer.bidirectional else 1) for s in states)]


def in_keras_arrangement(kind: str, weight: Any) -> list[Any]:
    """A weight (or gradient) of ours, written out by hand."""
    if kind == "GRU":
        r, z, n = np.split(weight, 3)
        weight = np.concatenate((z, r, n))
    return weight.T if weight.ndim == 2 else weight


def gradients_of_ours(model: Any) -> list[Any]:
    """The gradients of all weights of ours, in the order and arrangement of Keras's."""
    found = []
    for layer in [model] if isinstance(model, torchrnn.Recurrent) else list(model):
        kind = type(layer).__name__
        for names in layer._all_weights:
            got = [in_keras_arrangement(kind, numpy(getattr(layer, n).grad)) for n in names]
            found += got[:2] + ([np.stack(got[2:])] if len(got) == 4 else got[2:])
    return found


def gradients_of_keras(layer: Any, x: Any, factor: Any) -> list[Any]:
    """The gradients of all weights of the sum of the output times a factor."""
    if keras.backend.backend() == "torch":
        layer.zero_grad()
        output = results(layer, layer(torch.tensor(x)))[0]
        (output * torch.tensor(factor)).sum().backward()
        return [numpy(v.value.grad) for v in layer.trainable_variables]
    import jax

    fixed = [v.value for v in layer.non_trainable_variables]

    def loss(weights: Any) -> Any:
        return (results(layer, layer.stateless_call(weights, fixed, x)[0])[0] * factor).sum()

    return [np.asarray(g) for g in jax.grad(loss)([v.value for v in layer.trainable_variables])]


def difference(got: list[Any], expected: list[Any]) -> float:
    assert [numpy(g).shape for g in got] == [numpy(e).shape for e in expected]
    return max(float(abs(numpy(g) - numpy(e)).max()) for g, e in zip(got, expected, strict=True))


def compared(make: Any) -> dict[str, Any]:
    """One case: results, gradients, masks, and the way back."""
    theirs = seeded(make())
    x, found = RNG.normal(size=(B, T, I)), {}
    ours: Any = torchrnn.from_keras(theirs)
    found["layers"] = len(list(ours.children())) or 1
    given = ours(torch.tensor(x))
    states = isinstance(theirs(x), (list, tuple))
    got, expected = results(ours, given), results(theirs, theirs(x))
    got = got if states else got[:1]
    found["results"] = difference(got, expected)
    factor = RNG.normal(size=got[0].shape)
    (got[0] * torch.tensor(factor)).sum().backward()
    found["gradients"] = difference(gradients_of_ours(ours), gradients_of_keras(theirs, x, factor))
    mask = RNG.random((B, T)) < 0.6
    mask[:, 1] = True  # of a row without any step ours is zero
    got, expected = (
        results(ours, ours(torch.tensor(x), mask=torch.tensor(mask)))[0],
        results(theirs, theirs(x, mask=mask))[0],
    )
    got, expected = (numpy(t)[mask] if numpy(t).ndim == 3 else numpy(t) for t in (got, expected))
    found["masked"] = difference([got], [expected])
    if states:
        initial = [RNG.normal(size=numpy(s).shape) for s in results(theirs, theirs(x))[1:]]
        S = len(ours.cell.states)
        hx = [torch.tensor(np.stack(initial[s::S])) for s in range(S)]
        got = results(ours, ours(torch.tensor(x), tuple(hx) if S > 1 else hx[0]))
        found["from given states"] = difference(got, results(theirs, theirs(x, initial_state=initial)))
    back = torchrnn.to_keras(ours)
    assert back.dtype_policy.name == "float64"
    found["weights back"] = difference(back.get_weights(), theirs.get_weights())
    found["results back"] = difference(results(back, back(x))[:1], results(theirs, theirs(x))[:1])
    return found


def trained(folder: Path) -> dict[str, float]:
    """The model of the issue: trained there, run here, and back; and saved for those who have no Keras."""
    model = row(bi(K.LSTM(8, **TWO)), K.GRU(5, reset_after=False))
    model.compile("adam", "mse")
    x = RNG.normal(size=(64, T, I)).astype("float32")
    model.fit(x, x.cumsum(1)[:, -1, :1].repeat(5, 1), epochs=5, batch_size=16, verbose=0)
    y = model.predict(x, verbose=0)
    ours = torchrnn.from_keras(model).eval()
    with torch.no_grad():
        found = {"predictions": difference([ours(torch.tensor(x))], [y])}
    back = torchrnn.to_keras(ours)
    found["predictions back"] = difference([back.predict(x, verbose=0)], [y])
    found["weights back"] = difference(back.get_weights(), model.get_weights())
    optimizer = torch.optim.Adam(ours.parameters(), 1e-2)
    for _ in range(3):  # and trained on here
        optimizer.zero_grad()
        ours(torch.tensor(x)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        found["trained on and back"] = difference(
            [torchrnn.to_keras(ours).predict(x, verbose=0)], [ours(torch.tensor(x))]
        )
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    (folder / "model.json").write_text(model.to_json())
    np.savez(folder / "model.npz", x=x, y=y)
    return found


def other_files(folder: Path) -> None:
    """A functional model with layers that we do not know, in one file; and weights in bfloat16."""
    tokens = keras.Input((None,), dtype="int32")
    embedded = K.Embedding(7, I)(tokens)
    first = K.SimpleRNN(4, name="below", **TWO)(embedded)
    output = K.Dense(2)(K.SimpleRNN(5, name="above", dropout=0.1)(first))
    model = keras.Model(tokens, output)
    model.save(folder / "functional.keras")
    part = keras.Model(first, model.get_layer("above").output)
    x = RNG.normal(size=(B, T, 4)).astype("float32")
    np.savez(folder / "functional.npz", x=x, y=numpy(part(x)))
    small = keras.Sequential(
        [keras.Input((None, I)), K.LSTM(4, dtype="bfloat16", recurrent_initializer="glorot_uniform")]
    )
    small.save_weights(folder / "small.weights.h5")
    (folder / "small.json").write_text(small.to_json())
    np.savez(folder / "small.npz", **{str(k): w.astype("float32") for k, w in enumerate(small.get_weights())})
    live, read = torchrnn.from_keras(small), torchrnn.from_keras(folder / "small.weights.h5", small.to_json())
    assert live.weight_hh_l0.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(live.parameters(), read.parameters(), strict=True))
    assert torchrnn.from_keras(model, layer="below").hidden_size == 4


def messages() -> dict[str, str]:
    """What is said of layers that are not what they should be."""

    class Special(K.LSTM):
        pass

    unbuilt, own = K.LSTM(4, name="fresh"), cast(Any, keras.ops.sin)
    cases = {
        "unbuilt": lambda: torchrnn.from_keras(unbuilt),
        "subclass": lambda: torchrnn.from_keras(seeded(Special(4))),
        "a cell": lambda: torchrnn.from_keras(K.LSTMCell(4)),
        "its own function": lambda: torchrnn.from_keras(seeded(K.LSTM(4, activation=own))),
        "no such layer": lambda: torchrnn.from_keras(row(K.LSTM(4, name="one"), K.Dense(2)), layer="two"),
        "Dense": lambda: torchrnn.from_keras(row(K.LSTM(4, name="one"), K.Dense(2, name="top"))),
        "a config too": lambda: torchrnn.from_keras(seeded(K.LSTM(4)), {}),
        "a projection": lambda: torchrnn.to_keras(torchrnn.LSTM(3, 5, proj_size=2)),
        "several": lambda: torchrnn.to_keras(
            torchrnn.GRU(3, 3, 2, residual=True, cell_clip=1.0, learn_initial_state=True)
        ),
        "torch's": lambda: torchrnn.to_keras(torch.nn.LSTM(3, 5)),
        "lazy": lambda: torchrnn.to_keras(torchrnn.LSTM(None, 5)),
    }
    return {name: said(case) for name, case in cases.items()}


def said(case: Any) -> str:
    try:
        case()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def notes() -> list[str]:
    """The warnings of what is not kept."""
    heard = []
    layer = seeded(K.GRU(4, dropout=0.2, recurrent_dropout=0.3, stateful=True, return_state=True, name="old"))
    for call in (
        lambda: torchrnn.from_keras(layer),
        lambda: torchrnn.to_keras(torchrnn.LSTM(3, 5, 2, dropout=0.1, output_dropout=0.2)),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            call()
        heard += [f"{Path(w.filename).name}: {w.message}" for w in caught if w.category is UserWarning]
    return heard


def built_here() -> dict[str, float]:
    """Layers that were built here: both biases, batch_first=False, a parametrized weight, halves."""
    found, x = {}, RNG.normal(size=(B, T, I))
    for kind in ("RNN", "LSTM", "GRU"):
        ours = getattr(torchrnn, kind)(I, 5, 2, bidirectional=True, dtype=torch.float64)
        y, _ = ours(torch.tensor(x).transpose(0, 1))
        found[kind] = difference([torchrnn.to_keras(ours)(x)], [y.transpose(0, 1)])
    for bias in (True, "single"):
        ours = torchrnn.GRU(I, 5, bias=bias, dtype=torch.float64, batch_first=True, return_sequences=False)
        found[f"GRU, bias={bias}"] = difference([torchrnn.to_keras(ours)(x)], [ours(torch.tensor(x))])
        ours = torchrnn.GRU(I, 5, bias=bias, dtype=torch.float64, batch_first=True, reset_after=False)
        found[f"GRU before, bias={bias}"] = difference([torchrnn.to_keras(ours)(x)], [ours(torch.tensor(x))[0]])
    ours = torchrnn.RNN(I, 5, nonlinearity="relu", dtype=torch.float64, batch_first=True)
    torch.nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    found["parametrized"] = difference([torchrnn.to_keras(ours)(x)], [ours(torch.tensor(x))[0]])
    half = torchrnn.LSTM(I, 5, dtype=torch.bfloat16)
    again = torchrnn.from_keras(torchrnn.to_keras(half))
    found["bfloat16"] = (again.weight_ih_l0 - half.weight_ih_l0).abs().max().item()
    return found


def guide(file: Path, folder: Path) -> int:
    """Run the blocks of the guide that need Keras, in its order; give their number."""
    blocks = re.findall(r"^```py\n(.*?)^```$", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    (folder / "guide").mkdir()
    os.chdir(folder / "guide")
    for block in blocks:
        exec(compile(block, str(file), "exec"), namespace)
    return len(blocks)


def main() -> Iterator[tuple[str, Any]]:
    folder, few = Path(sys.argv[1]), keras.backend.backend() == "jax"  # compiling takes jax seconds for each call
    torch.set_num_threads(1)
    keras.utils.set_random_seed(0)
    yield "trained", trained(folder)
    if few:
        import jax

        jax.config.update("jax_disable_jit", True)
    else:
        other_files(folder)
        yield "blocks of the guide", guide(Path(__file__).parent.parent / "docs/keras.md", folder)
        yield "messages", messages()
        yield "notes", notes()
    keras.config.set_floatx("float64")
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"  # else Keras multiplies float64 as float32
    if not few:
        yield "built here", built_here()
    keras.config.set_dtype_policy("float64")
    yield "cases", {name: compared(CASES[name]) for name in (FEW if few else CASES)}


if __name__ == "__main__":
    Path(sys.argv[1], "results.json").write_text(json.dumps(dict(main()), indent=1))
