"""The character model: embedding, recurrent layers, linear head; and its weights as a file."""

from __future__ import annotations

import math

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from torchrnn import GRU, LSTM, RNN
from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.runs.settings import Settings
from torchrnn.tools.text.corpus import UNKNOWN

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}

State = Tensor | tuple[Tensor, ...] | None


class CharModel(nn.Module):
    """Scores for the next character, given the characters so far.

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
    def of(cls, settings: Settings, vocabulary_size: int) -> CharModel:
        """The model of a run, with fresh weights."""
        return cls(
            vocabulary_size,
            settings.cell,
            settings.embedding_size,
            settings.hidden_size,
            settings.num_layers,
            settings.dropout,
        )

    def forward(self, characters: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Indices (T, B) and the state before them to scores (T, B, V) and the state after them."""
        x = self.dropout(self.embedding(characters))  # (T, B, E)
        y, state = self.recurrent(x, state)  # (T, B, H)
        return self.head(self.dropout(y)), state  # (T, B, V)


def detach(state: State) -> State:
    """The same state with its history cut off: this is what truncates backpropagation through time."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()


def bits_per_character(nats: float, characters: int) -> float:
    """The mean negative log-likelihood of a character in bits, from its sum in nats."""
    return nats / characters / math.log(2)


def weights_to_bytes(model: CharModel, metadata: dict[str, str] | None = None) -> bytes:
    """The weights as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors, metadata)


def load_weights(model: CharModel, data: bytes, source: object) -> None:
    """Fill the model from a safetensors file; `source` is named if that fails."""
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ToolError(
            f"{source} does not hold the weights of this model: it is damaged, or config.toml beside it was changed "
            f"({reason}). Bring back the file from a copy, or train again with --overwrite."
        ) from error
