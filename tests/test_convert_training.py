"""A translation model as people publish them trains as before once converted: the same losses, step by step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchrnn

STEPS, WORDS, PAD = 20, 23, 0


class Encoder(nn.Module):
    """Embedding and a packed bidirectional GRU; its states are bridged to the decoder's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width, padding_idx=PAD)
        self.gru = nn.GRU(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(2 * width, width)

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embed(source), lengths, batch_first=True, enforce_sorted=False)
        output, h = self.gru(packed)
        memory, _ = pad_packed_sequence(output, batch_first=True)  # (B, T, 2·H)
        return memory, torch.tanh(self.bridge(torch.cat((h[-2], h[-1]), -1)))


class Decoder(nn.Module):
    """A weight-normed LSTM fed step by step, attention over the encoder's outputs, an LSTMCell above."""

    def __init__(self, width: int, norm: Callable[[nn.Module, str], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width, padding_idx=PAD)
        self.lstm = nn.LSTM(width, width)
        for weight in ("weight_ih_l0", "weight_hh_l0"):
            norm(self.lstm, weight)
        self.key = nn.Linear(
            2 * width, width, bias=False
        )  # softmax takes no notice of a bias: Adam would walk on noise
        self.cell = nn.LSTMCell(3 * width, width)
        self.out = nn.Linear(width, WORDS)

    def forward(self, target: Tensor, memory: Tensor, h: Tensor, lengths: Tensor) -> Tensor:
        keys, beyond = self.key(memory), torch.arange(memory.size(1)) >= lengths.unsqueeze(1)
        states, top = (h.unsqueeze(0), torch.zeros_like(h).unsqueeze(0)), (h, torch.zeros_like(h))
        logits = []
        for x in self.embed(target).unbind(1):
            output, states = self.lstm(x.unsqueeze(0), states)
            query = output.squeeze(0)
            scores = torch.einsum("bth,bh->bt", keys, query).masked_fill(beyond, -torch.inf)
            context = torch.einsum("bt,bth->bh", scores.softmax(-1), memory)
            top = self.cell(torch.cat((query, context), -1), top)
            logits.append(self.out(top[0]))
        return torch.stack(logits, 1)


class Translator(nn.Module):
    def __init__(self, norm: Callable[[nn.Module, str], nn.Module], width: int = 24) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width, norm)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        memory, h = self.encoder(source, lengths)
        return self.decoder(target, memory, h, lengths)


def _old_style(module: nn.Module, name: str) -> nn.Module:
    with warnings.catch_warnings():  # deprecated, and public models are full of it
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, name)


NORMS = {"parametrization": parametrizations.weight_norm, "old_style": _old_style}
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))


def _model(norm: Callable[[nn.Module, str], nn.Module], dtype: torch.dtype) -> Translator:
    torch.manual_seed(3)
    return Translator(norm).to(dtype)


def _batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences of 2 to 9 words, to be given back in reverse order."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(2, 10, (8,), generator=generator)
    source = torch.randint(2, WORDS, (8, int(lengths.max())), generator=generator)
    source = source.where(torch.arange(source.size(1)) < lengths.unsqueeze(1), PAD)
    return source, lengths, source.flip(1)


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _train(model: Translator, optimiser: torch.optim.Optimizer, first: int = 0, end: int = STEPS) -> list[float]:
    losses = []
    for step in range(first, end):
        source, lengths, target = _batch(step)
        start = torch.ones_like(target[:, :1])
        logits = model(source, lengths, torch.cat((start, target[:, :-1]), 1))
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)
        optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def _expected(norm: Callable[[nn.Module, str], nn.Module], dtype: torch.dtype) -> tuple[list[float], Translator]:
    model = _model(norm, dtype)
    losses = _train(model, _optimiser(model))
    assert losses[-1] < 0.95 * losses[0]  # it does learn: the steps are not all the same
    return losses, model


def _kinds(model: Translator) -> list[str]:
    modules = (model.encoder.gru, model.decoder.lstm, model.decoder.cell)
    return [nn.utils.parametrize.type_before_parametrizations(m).__module__.split(".")[0] for m in modules]


@norms
@pytest.mark.parametrize("backend", ["chosen", "reference"])
def test_converted_before_training(norm: Callable[[nn.Module, str], nn.Module], backend: str) -> None:
    dtype = torch.float32 if backend == "chosen" else torch.float64  # the reference rounds otherwise
    expected, theirs = _expected(norm, dtype)
    model = torchrnn.convert(_model(norm, dtype), report=None)
    assert _kinds(model) == ["torchrnn"] * 3
    with nullcontext() if backend == "chosen" else torchrnn.use(backend):
        losses = _train(model, _optimiser(model))
    assert losses == pytest.approx(expected, rel=1e-5)
    for (name, a), b in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@norms
def test_converted_in_the_middle(norm: Callable[[nn.Module, str], nn.Module]) -> None:
    """With the optimiser made before, from torch.nn to ours and, later, back."""
    expected, _ = _expected(norm, torch.float32)
    model = _model(norm, torch.float32)
    optimiser = _optimiser(model)
    losses = _train(model, optimiser, 0, 7)
    torchrnn.convert(model, report=None)
    assert _kinds(model) == ["torchrnn"] * 3
    losses += _train(model, optimiser, 7, 14)
    torchrnn.convert(model, "torch", report=None)
    assert _kinds(model) == ["torch"] * 3
    losses += _train(model, optimiser, 14, STEPS)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_frozen_weight_would_show() -> None:
    """The comparison sees a converted layer whose weights no longer reach the optimiser."""
    expected, _ = _expected(parametrizations.weight_norm, torch.float32)
    model = torchrnn.convert(_model(parametrizations.weight_norm, torch.float32), report=None)
    optimiser = _optimiser(model)
    gru = model.encoder.gru
    gru.weight_hh_l0 = nn.Parameter(gru.get_parameter("weight_hh_l0").detach().clone())
    assert _train(model, optimiser) != pytest.approx(expected, rel=1e-5)
