"""Embedding + RNN + Linear: letters as learned vectors instead of one-hot ones, "hello" -> "ohlol" once more.

    python examples/embedding.py

A one-hot vector is as long as the alphabet, nearly all zeros, and fixed. An embedding is short, dense and learned;
its input is whole numbers, not floats. Any of the seeds 0 to 99 says "ohlol" within the 15 epochs.
"""

import argparse

import torch

from torchrnn import nn

LETTERS = "ehlo"
x = torch.tensor([[LETTERS.index(c) for c in "hello"]])  # (B, T), int64
y = torch.tensor([[LETTERS.index(c) for c in "ohlol"]])  # (B, T), int64


class Model(nn.Module):
    def __init__(self, letters: int = 4, embedding_size: int = 10, hidden_size: int = 8, num_layers: int = 2) -> None:
        super().__init__()
        self.emb = nn.Embedding(letters, embedding_size)
        self.rnn = nn.RNN(embedding_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, letters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded = self.emb(x)  # (B, T, E)
        output, _ = self.rnn(embedded)  # (B, T, H); the state begins at zero
        return self.fc(output)  # (B, T, letters)


def train(seed: int = 0, epochs: int = 15) -> list[tuple[str, float]]:
    """The prediction and the loss of every epoch."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    history = []
    for _ in range(epochs):
        optimizer.zero_grad()
        scores = model(x)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())  # (B·T, letters), (B·T,)
        loss.backward()
        optimizer.step()
        history.append(("".join(LETTERS[i] for i in scores[0].argmax(dim=1)), loss.item()))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    for epoch, (text, loss) in enumerate(train(parser.parse_args().seed), start=1):
        print(f"epoch {epoch:2}/15  loss {loss:.3f}  {text}")
