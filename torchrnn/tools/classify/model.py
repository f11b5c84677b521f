"""The classifier: vectors of tokens or plain numbers, recurrent layers, one score a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrnn import GRU, LSTM, RNN
from torchrnn.tools.classify.learned import Learned
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.classify.tokens import UNKNOWN

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class Classifier(nn.Module):
    """Scores of the classes of each sequence, or of each of its steps.

    x_t = E[token_t] or the numbers of step t,  y = cell(x),  scores = W pool(y) + b, and with tagging W y_t + b.
    pool: the last state of each direction, or the mean or the largest value of y over the steps of the sequence.
    An unknown token is the zero vector.
    """

    def __init__(self, settings: ClassifySettings, classes: int, vocabulary: int, numbers: int, tagging: bool) -> None:
        super().__init__()
        self.pool, self.tagging = settings.pool, tagging
        self.embedding = None
        if vocabulary:
            self.embedding = nn.Embedding(vocabulary, settings.embedding_size, padding_idx=UNKNOWN)
        self.recurrent = CELLS[settings.cell](
            settings.embedding_size if vocabulary else numbers,
            settings.hidden_size,
            settings.num_layers,
            dropout=settings.dropout if settings.num_layers > 1 else 0.0,
            bidirectional=settings.bidirectional,
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(settings.hidden_size * (1 + settings.bidirectional), classes)

    @classmethod
    def of(cls, settings: ClassifySettings, learned: Learned, tagging: bool) -> Classifier:
        """The model of a run, with fresh weights."""
        vocabulary = len(learned.vocabulary) if learned.vocabulary else 0
        return cls(settings, len(learned.labels), vocabulary, len(learned.mean), tagging)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (T, B) or numbers (T, B, I) with lengths (B,) to scores (B, C), with tagging (T, B, C)."""
        x = self.dropout(self.embedding(values)) if self.embedding else values  # (T, B, I)
        y, state = self.recurrent(x, lengths=lengths)  # (T, B, D·H)
        if self.tagging:
            return self.head(self.dropout(y))  # (T, B, C)
        return self.head(self.dropout(self._pooled(y, state, lengths)))  # (B, C)

    def _pooled(self, y: Tensor, state: Tensor | tuple[Tensor, ...], lengths: Tensor) -> Tensor:
        if self.pool == "last":
            h = state[0] if isinstance(state, tuple) else state  # (L·D, B, H)
            return torch.cat((h[-2], h[-1]), 1) if self.recurrent.bidirectional else h[-1]
        lengths = lengths.to(y.device)
        if self.pool == "mean":
            return y.sum(0) / lengths.clamp(min=1).unsqueeze(1)  # beyond a sequence's end y is zero
        beyond = torch.arange(len(y), device=y.device).unsqueeze(1) >= lengths  # (T, B)
        largest = y.masked_fill(beyond.unsqueeze(2), -torch.inf).amax(0)
        return largest.masked_fill((lengths == 0).unsqueeze(1), 0)
