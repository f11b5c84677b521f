"""First values of weights beyond torch's, applied by name to a built layer or cell: ``init.chrono_(layer, 100)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent
    from torchrnn.step import RecurrentCell

Module = TypeVar("Module", bound="Recurrent | RecurrentCell")

__all__ = ["chrono_", "forget_bias_", "identity_", "keras_", "orthogonal_"]


def orthogonal_(layer: Module, gain: float = 1.0) -> Module:
    r"""Make the recurrent weights orthogonal, gate by gate.

    Each gate's block of ``weight_hh``, (H, H), becomes a random orthogonal matrix times ``gain``; with a projection its
    columns, (H, P), are orthogonal. Nothing else changes.

    Args:
        layer: a layer or cell of ours.
        gain: the factor.

    Returns:
        The layer.

    Raises:
        TypeError: ``layer`` is none of ours.
        RuntimeError: a weight has no shape yet, or is computed by a hook.

    Paper: Saxe, McClelland and Ganguli, *Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks*, arXiv 1312.6120.

    Example:
        ```python
        import torch, torchrnn

        layer = torchrnn.init.orthogonal_(torchrnn.LSTM(3, 5))
        for W in layer.weight_hh_l0.chunk(4):
            torch.testing.assert_close(W @ W.T, torch.eye(5))
        ```
    """
    G = len(_cell(layer).gates)
    _change(layer, weight_hh=lambda W: torch.cat([nn.init.orthogonal_(w, gain) for w in W.chunk(G)]))
    return layer


def forget_bias_(layer: Module, value: float = 1.0) -> Module:
    r"""Set the bias of the forget gate, $b_{if} + b_{hf}$, to a value.

    Args:
        layer: a layer or cell of ours whose cell has a gate f.
        value: goes to the rows of f in ``bias_ih``; those in ``bias_hh`` become 0.

    Returns:
        The layer.

    Raises:
        TypeError: ``layer`` is none of ours.
        ValueError: the cell has no gate f, or the layer no bias.

    Paper: Gers, Schmidhuber and Cummins, *Learning to Forget*, 2000; Jozefowicz, Zaremba and Sutskever, *An Empirical
    Exploration of Recurrent Network Architectures*, 2015.

    Example:
        ```python
        import torchrnn

        layer = torchrnn.init.forget_bias_(torchrnn.LSTM(3, 5), 2.0)
        i, f, g, o = (layer.bias_ih_l0 + layer.bias_hh_l0).chunk(4)
        assert f.eq(2).all() and not i.eq(2).any()
        ```
    """
    f = _gates("forget_bias_", layer, "f")[0]
    _change(layer, bias_ih=lambda b: _fill(layer, b, f, value), bias_hh=lambda b: _fill(layer, b, f, 0.0))
    return layer


def keras_(layer: Module) -> Module:
    r"""Draw all weights as Keras does.

    ``weight_ih`` (and ``weight_hr``) from $U(-a, a)$ with $a = \sqrt{6 / (\text{rows} + \text{columns})}$ (Glorot);
    ``weight_hh`` as one (G·H, H) matrix with orthonormal columns; biases 0; where the cell has a gate f, its bias is 1.

    Args:
        layer: a layer or cell of ours.

    Returns:
        The layer.

    Raises:
        TypeError: ``layer`` is none of ours.
        RuntimeError: a weight has no shape yet, or is computed by a hook.

    Paper: Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, 2010.

    Example:
        ```python
        import torch, torchrnn

        layer = torchrnn.init.keras_(torchrnn.GRU(3, 5))
        W = layer.weight_hh_l0  # (15, 5)
        torch.testing.assert_close(W.T @ W, torch.eye(5))
        assert not layer.bias_ih_l0.any()
        ```
    """
    cell, glorot, zero = _cell(layer), nn.init.xavier_uniform_, nn.init.zeros_
    _change(layer, weight_ih=glorot, weight_hh=nn.init.orthogonal_, bias_ih=zero, bias_hh=zero, weight_hr=glorot)
    return forget_bias_(layer) if layer.bias and "f" in cell.gates else layer


def chrono_(layer: Module, T_max: float) -> Module:
    r"""Draw the biases of the forget and input gates for dependencies up to ``T_max`` steps long.

    $$
    \begin{aligned}
    b_f &\sim \log U(1, T_{max} - 1) \\
    b_i &= -b_f
    \end{aligned}
    $$

    in ``bias_ih``; the same rows of ``bias_hh`` become 0. Nothing else changes.

    Args:
        layer: a layer or cell of ours whose cell has the gates f and i.
        T_max: the longest dependency, in steps; greater than 2.

    Returns:
        The layer.

    Raises:
        TypeError: ``layer`` is none of ours.
        ValueError: the cell lacks one of the gates, the layer has no bias, or ``T_max`` is not greater than 2.

    Paper: Tallec and Ollivier, *Can recurrent neural networks warp time?*, arXiv 1804.11188.

    Example:
        ```python
        import torch, torchrnn

        layer = torchrnn.init.chrono_(torchrnn.LSTM(3, 5), T_max=100)
        i, f, _, _ = layer.bias_ih_l0.chunk(4)
        assert torch.equal(i, -f) and f.min() >= 0 and f.max() < torch.tensor(99.0).log()
        ```
    """
    f, i = _gates("chrono_", layer, "f", "i")
    if not isinstance(T_max, (int, float)) or not 2 < T_max < math.inf:
        raise ValueError(f"T_max must be a number of steps greater than 2, got {T_max!r}")

    def draw(b: Tensor) -> Tensor:
        H = b.size(0) // len(layer.cell.gates)
        b_f = torch.empty(H, dtype=b.dtype, device=b.device).uniform_(1, T_max - 1).log_()
        return _fill(layer, _fill(layer, b, f, b_f), i, -b_f)

    _change(layer, bias_ih=draw, bias_hh=lambda b: _fill(layer, _fill(layer, b, f, 0.0), i, 0.0))
    return layer


def identity_(layer: Module, scale: float = 1.0) -> Module:
    r"""Begin with a network that keeps its state: $W_{hh} = \text{scale} \cdot 1$, biases 0.

    Meant for ``RNN(..., nonlinearity="relu")``. ``weight_ih`` stays as it was; the paper draws it from a normal
    distribution of deviation 0.001.

    Args:
        layer: a layer or cell of ours whose cell has one gate.
        scale: the factor.

    Returns:
        The layer.

    Raises:
        TypeError: ``layer`` is none of ours.
        ValueError: the cell has several gates, or ``weight_hh`` is not square.

    Paper: Le, Jaitly and Hinton, *A Simple Way to Initialize Recurrent Networks of Rectified Linear Units*,
    arXiv 1504.00941.

    Example:
        ```python
        import torch, torchrnn

        layer = torchrnn.init.identity_(torchrnn.RNN(3, 5, nonlinearity="relu"))
        assert torch.equal(layer.weight_hh_l0, torch.eye(5))
        ```
    """
    cell = _cell(layer)
    if len(cell.gates) > 1:
        raise ValueError(
            f"identity_ needs a cell with one gate, such as RNN's; {cell.name!r} has the gates {' '.join(cell.gates)}"
        )
    P = getattr(layer, "proj_size", 0)
    if P:
        raise ValueError(f"identity_ needs a square weight_hh; with proj_size={P} it is (H, P)")
    zero = nn.init.zeros_
    _change(layer, weight_hh=lambda W: scale * nn.init.eye_(W), bias_ih=zero, bias_hh=zero)
    return layer


def _cell(layer: Any) -> Any:
    """The cell of a layer or cell module of ours."""
    if not isinstance(layer, nn.Module) or not hasattr(layer, "_weight_names"):
        raise TypeError(
            f"layer must be a torchrnn layer or cell, got {type(layer).__name__}: apply it to each layer of a model, "
            "and turn torch.nn's layers into ours with torchrnn.convert(model)"
        )
    return layer.cell  # type: ignore[union-attr]


def _gates(function: str, layer: Any, *names: str) -> list[int]:
    """The places of gates among those of a layer's cell; raises where it lacks one, or the layer has no bias."""
    cell = _cell(layer)
    if any(name not in cell.gates for name in names):
        wanted = ("the gates " if len(names) > 1 else "a gate ") + " and ".join(names)
        raise ValueError(f"{function} needs a cell with {wanted}; {cell.name!r} has the gates {' '.join(cell.gates)}")
    if not layer.bias:
        raise ValueError(f"{function} sets biases, and {type(layer).__name__} was built with bias=False")
    return [cell.gates.index(name) for name in names]


def _fill(layer: Any, bias: Tensor, gate: int, value: Tensor | float) -> Tensor:
    """A bias with one gate's rows set."""
    bias.chunk(len(layer.cell.gates))[gate][:] = value
    return bias


def _change(layer: Any, **functions: Callable[[Tensor], Tensor]) -> None:
    """Replace each weight of a layer by a function of a copy of it, by the kind of weight."""
    with torch.no_grad():
        changes = [(name, f(_copy(layer, name))) for name, f in _by_kind(layer, functions)]
        for name, value in changes:
            if parametrize.is_parametrized(layer, name):
                setattr(
                    layer, name, value.to(getattr(layer, name).dtype)
                )  # through the right inverse of the parametrization
            else:
                getattr(layer, name).copy_(value)


def _by_kind(layer: Any, functions: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in layer._weight_names():
        for kind, function in functions.items():
            if name == kind or name.startswith(f"{kind}_l"):
                yield name, function


def _copy(layer: Any, name: str) -> Tensor:
    """A copy of a weight that may be computed with: 16-bit numbers as float32."""
    if layer.input_size is None:
        raise RuntimeError(
            f"{type(layer).__name__} does not know its input size yet, and its weights are drawn when it does: call it "
            "once, then initialise"
        )
    if name not in layer._parameters and not parametrize.is_parametrized(layer, name):
        raise RuntimeError(
            f"{name} of {type(layer).__name__} is computed from other parameters by a hook (pruning, weight_norm, "
            "weight drop): initialise before it is put on"
        )
    weight = getattr(layer, name).detach().clone()
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
