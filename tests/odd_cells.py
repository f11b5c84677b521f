"""Cells of many shapes for the tests of code generation; none is registered."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import sigmoid, tanh

from torchrnn.cell import Cell

ODD: dict[str, Cell] = {}


def odd(gates: str, states: str) -> Callable[[Any], Cell]:
    def declare(step: Any) -> Cell:
        return ODD.setdefault(step.__name__, Cell(step, tuple(gates.split()), tuple(states.split())))

    return declare


@odd("i f g o", "h c")
def peephole(x, h, s):
    """The states are read beside the gates, the new one too."""
    i, f, g = sigmoid(x.i + h.i + 0.3 * s.c), sigmoid(x.f + h.f - 0.2 * s.c), tanh(x.g + h.g)
    c = f * s.c + i * g
    return sigmoid(x.o + h.o + 0.1 * c) * tanh(c), c


@odd("i f z o", "h c n m")
def slstm(x, h, s):
    """Four states, exponential gates (arXiv 2405.04517)."""
    m = torch.maximum(F.logsigmoid(x.f + h.f) + s.m, x.i + h.i)
    i, f = torch.exp(x.i + h.i - m), torch.exp(F.logsigmoid(x.f + h.f) + s.m - m)
    c = f * s.c + i * tanh(x.z + h.z)
    n = f * s.n + i
    return sigmoid(x.o + h.o) * c / (n.abs() + 1), c, n, m


@odd("a b", "h c d")
def clipped(x, h, s):
    """Masks: in where, in arithmetic, of equality, negated."""
    a, b = torch.clamp(x.a + h.a, -0.5, 0.5), F.leaky_relu(x.b + h.b)
    mask = a > s.c
    c = torch.where(mask, a * b, s.c - b)
    both = mask & (b >= 0) | (a == -0.5)
    return F.hardtanh(c) + mask * b, c, torch.where(~both, s.d, a) + (b != 0).to(a.dtype)


@odd("u v w", "h")
def multiplicative(x, h, s):
    """Gates that are no sum (one unused in part), and variables called as C++ or its own functions call things."""
    int = tanh(x.u * h.u + x.u + h.u)
    do, σ, next = torch.relu(x.v), sigmoid(x.w + h.w), 1 - sigmoid(x.w + h.w)
    max = int * do
    return max + next * σ * s.h


@odd("a b c d e f g k", "h")
def activations(x, h, s):
    """Eight gates, each with another activation."""
    a, b, c, d = F.silu(x.a + h.a), F.gelu(x.b + h.b), F.gelu(x.c + h.c, approximate="tanh"), F.softplus(x.d + h.d)
    e, f, g, k = F.elu(x.e + h.e), F.mish(x.f + h.f), F.hardswish(x.g + h.g), F.softsign(x.k + h.k)
    return a * b + c * d + e * f * g + k + s.h


@odd("a b c", "h")
def arithmetic(x, h, s):
    """The rest of the table."""
    a, b, c = x.a + h.a, x.b + h.b, x.c + h.c
    positive = 1 + a.square() + torch.tensor(1) / 2
    p = positive**-1.5 + torch.sqrt(positive) - positive.rsqrt() + positive.log() * positive.reciprocal()
    q = torch.lerp(a, b, 0.3) + torch.minimum(b, c) + b**3 - torch.sign(c) * torch.expm1(-c.abs()).log1p().neg()
    return torch.rsub(p, q, alpha=2) + torch.addcmul(a, b, c, value=0.5) + torch.erf(s.h) - 1.5 / positive


@odd("a b", "h")
def switch(x, h, s):
    """Backward needs a mask and not the two gates that it came from."""
    on = x.a + h.a > x.b + h.b
    return torch.where(on, s.h, 0.5 * s.h) * on


@odd("a b", "h k q")
def passing(x, h, s):
    """States that are copies and constants, and a gate that nobody reads."""
    return s.k, x.a * 1 + 0, torch.ones_like(s.h) * 2


@odd("a", "h")
def in_place(x, h, s):
    y = x.a + h.a
    same = y.detach()
    y.mul_(2)
    y += s.h
    return torch.masked_fill(y, y > 1, 0.5) * same.clamp_min(-3)


@odd("a", "h")
def derivative_free(x, h, s):
    with torch.no_grad():
        return torch.sign(x.a + h.a)
