"""The text model: embedding, recurrent layers, linear head."""

from __future__ import annotations

from torch import Tensor, nn

from torchrnn import GRU, LSTM, RNN
from torchrnn.tools.text.settings import TextSettings
from torchrnn.tools.text.tokens import UNKNOWN

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}

State = Tensor | tuple[Tensor, ...] | None


class CharModel(nn.Module):
    """Scores for the next token (a character, a byte or a piece), given those so far.

    x_t = E[c_t],  y_t, s_t = cell(x_t, s_{t-1}),  scores_t = W y_t + b.
    An unknown character is the zero vector, so it can be read although it was never trained.
    """

    def __init__(
        self, vocabulary_size: int, cell: str, embedding_size: int, hidden_size: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=UNKNOWN)
        between = dropout if num_layers > 1 else 0.0
        self.recurrent = CELLS[cell](embedding_size, hidden_size, num_layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, vocabulary_size)

    @classmethod
    def of(cls, settings: TextSettings, vocabulary_size: int) -> CharModel:
        """The model of a run, with fresh weights."""
        return cls(
            vocabulary_size,
            settings.cell,
            settings.embedding_size,
            settings.hidden_size,
            settings.num_layers,
            settings.dropout,
        )

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Indices (T, B) and the state before them to scores (T, B, V) and the state after them."""
        x = self.dropout(self.embedding(tokens))  # (T, B, E)
        y, state = self.recurrent(x, state)  # (T, B, H)
        return self.head(self.dropout(y)), state  # (T, B, V)


def detach(state: State) -> State:
    """The same state with its history cut off: this is what truncates backpropagation through time."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()
