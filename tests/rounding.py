"""Layers of bfloat16 computed in float64, rounded exactly where our kernels round: stated independently of them.

Rounded are what tensors hold, the outputs as operands of the next step's product, and the gradients of the
pre-activations. Everything else is float64 here and float32 there.
"""

from typing import Any

import torch
from torch import Tensor


def rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16, as float64."""
    return x.to(torch.float32).to(torch.bfloat16).to(torch.float64)


class Stored(torch.autograd.Function):
    """Rounded forward; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class Noted(torch.autograd.Function):
    """Unchanged forward; the gradient is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return rounded(gradients[0])


def stored(x: Tensor) -> Tensor:
    return Stored.apply(x)  # type: ignore[return-value]


def noted(x: Tensor) -> Tensor:
    return Noted.apply(x)  # type: ignore[return-value]


def step(kind: str, x: Tensor, h: Tensor, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """New states from the two parts of the pre-activations; backward reads the output as it is stored."""
    H = x.size(-1) // {"RNN": 1, "relu": 1, "LSTM": 4, "GRU": 3}[kind]
    if kind == "relu":
        return (noted(x + h).relu(),)
    if kind == "RNN":
        a = noted(x + h)
        y = a.detach().tanh()
        return (y + (1 - rounded(y) ** 2) * (a - a.detach()),)
    if kind == "LSTM":
        i, f, g, o = noted(x + h).split(H, -1)
        c = f.sigmoid() * carried[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    r, z = (noted(a + b).sigmoid() for a, b in zip(x.split(H, -1)[:2], h.split(H, -1)[:2], strict=True))
    n = (noted(x[..., 2 * H :]) + r * noted(h[..., 2 * H :])).tanh()
    if len(carried) == 2:  # with projection
        s = n + z * (carried[1] - n)
        return s, s
    exact, read = (n + z * (before - n) for before in (carried[0], stored(carried[0])))
    return (read + (exact - read).detach(),)


def layer(kind: str, w: dict[str, Tensor], x: Tensor, states: tuple[Tensor, ...]) -> list[Tensor]:
    """Output (T, B, …) and final states of one layer; ``w`` holds the weights without their suffix."""
    zero = x.new_zeros(())
    h, carried, outputs = states[0], states, []
    x_part = x @ w["weight_ih"].T + w.get("bias_ih", zero)
    for t in range(len(x)):
        carried = step(kind, x_part[t], h @ w["weight_hh"].T + w.get("bias_hh", zero), carried)
        h = stored(carried[0])
        if "weight_hr" in w:
            h = stored(noted(h @ w["weight_hr"].T))
        outputs.append(h)
    return [torch.stack(outputs), h, *(stored(c) for c in carried[1:])]
