"""Classify short sequences: one label for a whole sequence, read off the last state.

    python examples/many_to_one.py

Each row is a sentence of three words, each word three bits; y is its class.
"""

import torch

from torchrnn import nn

TABLE = """
    x1   x2   x3   y
    001  010  100  1
    100  111  000  0
    001  010  100  1
    100  000  111  1
    111  010  100  0
    100  010  000  0
"""
rows = [line.split() for line in TABLE.split("\n")[2:-1]]
x = torch.tensor([[[float(bit) for bit in word] for word in row[:3]] for row in rows])  # (B, T, I) = (6, 3, 3)
y = torch.tensor([float(row[3]) for row in rows])  # (B,)


class Model(nn.Module):
    def __init__(self, hidden_size: int = 8) -> None:
        super().__init__()
        self.rnn = nn.RNN(input_size=3, hidden_size=hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h_n = self.rnn(x)  # (L·D, B, H) = (1, 6, 8): what is left of the sequence after its last word
        return self.head(h_n[-1]).squeeze(1)  # (B,)


def train(seed: int = 0, epochs: int = 60) -> tuple[float, list[int]]:
    """The final loss and the predicted classes."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = model(x)
    return nn.functional.binary_cross_entropy_with_logits(scores, y).item(), (scores > 0).int().tolist()


if __name__ == "__main__":
    loss, predicted = train()
    print(f"loss {loss:.3f}")
    print("predicted:", *predicted)
    print("wanted:   ", *y.int().tolist())
