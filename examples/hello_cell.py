"""Teach an RNNCell to answer "hello" with "ohlol", letter by letter, with the loop over time written out.

    python examples/hello_cell.py
    python examples/hello_cell.py --seed 3

The cell has four hidden units, one for each letter, and the largest of them is the predicted letter. There is
nothing after the cell, so a score is a tanh and stays between -1 and 1: the loss of a letter cannot fall below
log(1 + 3 e⁻²) = 0.341, 1.70 for the five. hello_layer.py shows what that costs.
"""

import argparse

import torch
from torch.nn.functional import one_hot

from torchrnn import nn

LETTERS = "ehlo"
x = one_hot(torch.tensor([LETTERS.index(c) for c in "hello"]), 4).float().view(5, 1, 4)  # (T, B, I)
y = torch.tensor([LETTERS.index(c) for c in "ohlol"]).view(5, 1)  # (T, B)


def train(seed: int = 7, epochs: int = 15) -> list[tuple[str, float]]:
    """The prediction and the loss of every epoch."""
    torch.manual_seed(seed)
    cell = nn.RNNCell(input_size=4, hidden_size=4)
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.1)
    history = []
    for _ in range(epochs):
        optimizer.zero_grad()
        h = torch.zeros(1, 4)  # (B, H)
        loss, text = torch.zeros(()), ""
        for x_t, y_t in zip(x, y, strict=True):  # (B, I), (B,)
            h = cell(x_t, h)  # (B, H), also the scores of the four letters
            loss = loss + nn.functional.cross_entropy(h, y_t)
            text += LETTERS[int(h.argmax())]
        loss.backward()  # through all five steps
        optimizer.step()
        history.append((text, loss.item()))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    for epoch, (text, loss) in enumerate(train(parser.parse_args().seed), start=1):
        print(f"epoch {epoch:2}/15  loss {loss:.4f}  {text}")
