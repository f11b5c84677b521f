"""The same "hello" -> "ohlol" by an RNN layer, which needs no loop over time; and why a head on top is better.

    python examples/hello_layer.py
    python examples/hello_layer.py --seed 0           stays at "ohlll"
    python examples/hello_layer.py --seed 0 --head    learns

Without a head the four hidden units are also the scores of the four letters: what the network must remember and what
it must answer are the same four numbers, each between -1 and 1. Of the seeds 0 to 9, 1 2 3 6 7 8 say "ohlol" after
the 15 epochs, with torch.nn and with torchrnn alike. With eight hidden units that only remember and a linear head
that answers, all ten do.
"""

import argparse

import torch
from torch.nn.functional import one_hot

from torchrnn import nn

LETTERS = "ehlo"
x = one_hot(torch.tensor([LETTERS.index(c) for c in "hello"]), 4).float().view(5, 1, 4)  # (T, B, I)
y = torch.tensor([LETTERS.index(c) for c in "ohlol"])  # (T·B,)


class Model(nn.Module):
    def __init__(self, head: bool) -> None:
        super().__init__()
        self.rnn = nn.RNN(input_size=4, hidden_size=8 if head else 4)
        self.head = nn.Linear(8, 4) if head else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)  # (T, B, H)
        return self.head(output).flatten(0, 1)  # (T·B, 4): the form that cross_entropy takes


def train(seed: int = 7, epochs: int = 15, head: bool = False) -> list[tuple[str, float]]:
    """The prediction and the loss of every epoch."""
    torch.manual_seed(seed)
    model = Model(head)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    history = []
    for _ in range(epochs):
        optimizer.zero_grad()
        scores = model(x)
        loss = nn.functional.cross_entropy(scores, y)  # the mean over the letters, not their sum
        loss.backward()
        optimizer.step()
        history.append(("".join(LETTERS[i] for i in scores.argmax(dim=1)), loss.item()))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--head", action="store_true")
    args = parser.parse_args()
    for epoch, (text, loss) in enumerate(train(args.seed, head=args.head), start=1):
        print(f"epoch {epoch:2}/15  loss {loss:.3f}  {text}")
