"""flax, equinox and keras: each library's own layer or cell, stacked here and compiled by XLA as one function."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.cases import GATES, Case
from benchmarks.subjects import Work, upstream

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "jax"
jax: Any = import_module("jax")
jnp: Any = import_module("jax.numpy")


class Part(NamedTuple):
    """One layer in one direction, as a library has it."""

    parameters: Any
    call: Callable[[Any, Any, Any], tuple[Any, list[Any]]]  # (parameters, x, states) -> y and final states
    to_torch: Callable[[Any], list[Any]]  # gradients -> those of weight_ih, weight_hh, bias_ih, bias_hh


#: (case, the four weights, reverse) -> part
Maker = Callable[[Case, list[Any], bool], Part]


def flax(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
    """flax.nnx.RNN over its cells."""
    if _unusual(case):
        return None
    return _work(case, model, inputs, training, _flax_part)


def equinox(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
    """equinox.nn's cells in lax.scan, as its documentation shows; it has no plain RNN and no lengths."""
    if _unusual(case) or case.lengths or case.cell == "RNN":
        return None
    return _work(case, model, inputs, training, _equinox_part)


def keras(case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Work | None:
    """keras.layers on jax, which takes the batch first."""
    if _unusual(case) or case.lengths:
        return None
    return _work(case, model, inputs, training, _keras_part, batch_first=True)


def _unusual(case: Case) -> bool:
    return case.packed or case.steps > 1 or not case.bias or case.by_hand not in ("", "lengths")


def _work(
    case: Case, model: nn.Module, inputs: tuple[Any, ...], training: bool, make: Maker, batch_first: bool | None = None
) -> Work:
    """The stack of parts under jit; in training the vector-Jacobian product for the same upstream gradients."""
    case_first = case.batch_first and not case.is_cell
    turned = batch_first is not None and batch_first != case_first
    weights = [p.detach().numpy() for p in model.parameters()]
    native = case._replace(batch_first=case_first if batch_first is None else batch_first)
    parts = [make(native, weights[4 * k : 4 * k + 4], k % case.D == 1) for k in range(case.L * case.D)]

    def turn(x: Any) -> Any:
        return x.swapaxes(0, 1) if turned and not case.is_cell else x

    def enter(tensors: list[Any]) -> list[Any]:
        return [jnp.asarray(np.ascontiguousarray(turn(t) if k == 0 else t)) for k, t in enumerate(tensors)]

    def leave(arrays: list[Any]) -> list[Tensor | None]:
        tensors = [None if a is None else torch.from_numpy(np.array(a)) for a in arrays]
        return [turn(t) if k == 0 else t for k, t in enumerate(tensors)]

    mask = torch.arange(case.T).unsqueeze(1) < case.row_lengths() if case.lengths else None

    def outputs(arrays: list[Any]) -> list[Any]:
        """Read; a row is zero beyond its end, which flax leaves to the caller."""
        tensors = leave(arrays)
        if mask is not None and tensors[0] is not None:
            tensors[0] = tensors[0] * (mask.T if case.batch_first else mask).unsqueeze(-1)
        return tensors

    forward = _forward(native, parts)
    parameters = [p.parameters for p in parts]
    given = enter([t.detach().numpy() for t in tree_leaves(inputs)])
    infer = jax.jit(forward)
    if not training:
        return Work(lambda: jax.block_until_ready(infer(parameters, given)), outputs)

    gradients = upstream(outputs(infer(parameters, given)))
    if mask is not None:
        gradients[0] *= (mask.T if case.batch_first else mask).unsqueeze(-1)
    down = enter([g.numpy() for g in gradients])

    @jax.jit
    def step(parameters: Any, given: Any, down: Any) -> Any:
        results, pull = jax.vjp(forward, parameters, given)
        return results, pull(down)

    def read(found: Any) -> list[Tensor | None]:
        results, (of_parameters, of_inputs) = found
        of_weights = [g for part, got in zip(parts, of_parameters, strict=True) for g in part.to_torch(got)]
        weights = [None if g is None else torch.from_numpy(np.array(g)) for g in of_weights]
        return [*outputs(results), *leave(of_inputs), *weights]

    return Work(lambda: jax.block_until_ready(step(parameters, given, down)), read)


def _forward(case: Case, parts: list[Part]) -> Callable[[Any, Any], list[Any]]:
    """(parameters, [x, *states]) -> [y, *final states], for a cell the states alone."""

    def forward(parameters: Any, given: Any) -> list[Any]:
        x, *states = given
        if case.is_cell:
            x, states = jnp.expand_dims(x, 1 if case.batch_first else 0), [s[None] for s in states]
        B = x.shape[0 if case.batch_first else 1]
        if not states:
            states = [jnp.zeros((len(parts), B, case.H))] * (2 if case.cell == "LSTM" else 1)
        finals = []
        for layer in range(case.L):
            ys = []
            for k in range(layer * case.D, (layer + 1) * case.D):
                y, final = parts[k].call(parameters[k], x, [s[k] for s in states])
                ys.append(y)
                finals.append(final)
            x = ys[0] if case.D == 1 else jnp.concatenate(ys, -1)
        if case.is_cell:
            return finals[0]
        return [x, *(jnp.stack(f) for f in zip(*finals, strict=True))]

    return forward


def _flax_part(case: Case, weights: list[Any], reverse: bool) -> Part:
    nnx: Any = import_module("flax.nnx")
    w_ih, w_hh, b_ih, b_hh = weights
    G, H = GATES[case.cell], case.H
    sizes = {"in_features": w_ih.shape[1], "hidden_features": H, "rngs": nnx.Rngs(0)}
    cell = {"RNN": nnx.SimpleCell, "LSTM": nnx.OptimizedLSTMCell, "GRU": nnx.GRUCell}[case.cell]
    cell = cell(**sizes, **({"activation_fn": jax.nn.relu} if case.relu else {}))
    cell.dense_i.kernel[...] = jnp.asarray(w_ih.T)
    cell.dense_h.kernel[...] = jnp.asarray(w_hh.T)
    biased = cell.dense_h if case.cell == "LSTM" else cell.dense_i
    biased.bias[...] = jnp.asarray(b_ih + b_hh)  # the last third of a GRU's b_hh is zero: flax has none
    options = {"time_major": not case.batch_first, "return_carry": True, "reverse": reverse, "keep_order": True}
    definition, parameters, rest = nnx.split(nnx.RNN(cell, **options, rngs=False), nnx.Param, ...)
    lengths = jnp.asarray(case.row_lengths().numpy()) if case.lengths else None

    def call(parameters: Any, x: Any, states: Any) -> tuple[Any, list[Any]]:
        carry = tuple(reversed(states)) if case.cell == "LSTM" else states[0]
        final, y = nnx.merge(definition, parameters, rest)(x, initial_carry=carry, seq_lengths=lengths)
        return y, list(reversed(final)) if case.cell == "LSTM" else [final]

    def to_torch(found: Any) -> list[Any]:
        dense_i, dense_h = found["cell"]["dense_i"], found["cell"]["dense_h"]
        bias = (dense_h if case.cell == "LSTM" else dense_i)["bias"][...]
        return [dense_i["kernel"][...].T, dense_h["kernel"][...].T, bias, bias if G != 3 else None]

    return Part(parameters, call, to_torch)


def _equinox_part(case: Case, weights: list[Any], reverse: bool) -> Part:
    eqx: Any = import_module("equinox")
    w_ih, w_hh, b_ih, b_hh = weights
    H, gru = case.H, case.cell == "GRU"
    cell = (eqx.nn.GRUCell if gru else eqx.nn.LSTMCell)(w_ih.shape[1], H, key=jax.random.key(0))
    bias = b_ih + (np.concatenate([b_hh[: 2 * H], np.zeros_like(b_hh[:H])]) if gru else b_hh)
    values = [w_ih, w_hh, bias, b_hh[2 * H :]] if gru else [w_ih, w_hh, bias]

    def leaves(c: Any) -> list[Any]:
        return [c.weight_ih, c.weight_hh, c.bias, c.bias_n] if gru else [c.weight_ih, c.weight_hh, c.bias]

    cell = eqx.tree_at(leaves, cell, [jnp.asarray(v) for v in values])

    def call(cell: Any, x: Any, states: Any) -> tuple[Any, list[Any]]:
        def step(state: Any, x_t: Any) -> tuple[Any, Any]:
            state = jax.vmap(cell)(x_t, state)
            return state, state if gru else state[0]

        xs = x.swapaxes(0, 1) if case.batch_first else x
        final, y = jax.lax.scan(step, states[0] if gru else tuple(states), xs, reverse=reverse)
        return y.swapaxes(0, 1) if case.batch_first else y, [final] if gru else list(final)

    def to_torch(found: Any) -> list[Any]:
        w, r, b, *n = leaves(found)
        return [w, r, b, jnp.concatenate([b[: 2 * H], n[0]]) if gru else b]

    return Part(cell, call, to_torch)


def _keras_part(case: Case, weights: list[Any], reverse: bool) -> Part:
    layers: Any = import_module("keras").layers
    w_ih, w_hh, b_ih, b_hh = weights
    H, gru = case.H, case.cell == "GRU"
    options: dict[str, Any] = {"return_sequences": True, "return_state": True, "go_backwards": reverse}
    if case.relu:
        options["activation"] = "relu"
    layer = {"RNN": layers.SimpleRNN, "LSTM": layers.LSTM, "GRU": layers.GRU}[case.cell](H, **options)
    layer.build((case.B, max(1, case.T), w_ih.shape[1]))

    def permuted(w: Any) -> Any:  # keras: update gate first; and its own inverse
        return jnp.concatenate([w[H : 2 * H], w[:H], w[2 * H :]]) if gru else w

    w_ih, w_hh, b_ih, b_hh = (permuted(jnp.asarray(w)) for w in weights)
    parameters = [w_ih.T, w_hh.T, jnp.stack([b_ih, b_hh]) if gru else b_ih + b_hh]
    others = [v.value for v in layer.non_trainable_variables]

    def call(parameters: Any, x: Any, states: Any) -> tuple[Any, list[Any]]:
        (y, *finals), _ = layer.stateless_call(parameters, others, x, initial_state=states)
        return y[:, ::-1] if reverse else y, finals

    def to_torch(found: Any) -> list[Any]:
        w, r, b = found
        return [permuted(w.T), permuted(r.T), *((permuted(b[0]), permuted(b[1])) if gru else (b, b))]

    return Part(parameters, call, to_torch)
