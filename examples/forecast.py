"""Forecast the next day from the previous n: a series cut into windows, an LSTM, and a naive forecast to beat.

    python examples/forecast.py

The series is made here: a weekly and a monthly rhythm with noise of standard deviation 0.1, so no forecast can have a
mean squared error much below 0.01.
"""

import torch

from torchrnn import nn

DAYS, N = 600, 14  # the length of the series, and how many previous days a forecast sees


def series() -> torch.Tensor:
    day = torch.arange(DAYS)
    rhythm = torch.sin(2 * torch.pi * day / 7) + 0.5 * torch.sin(2 * torch.pi * day / 30)
    return rhythm + 0.1 * torch.randn(DAYS, generator=torch.Generator().manual_seed(0))  # (DAYS,)


class Model(nn.Module):
    def __init__(self, hidden_size: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=1, hidden_size=hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(x)  # (B, T, H)
        return self.head(output[:, -1]).squeeze(1)  # (B,)


def train(seed: int = 0, epochs: int = 150) -> tuple[float, float]:
    """The mean squared errors on the last 150 days, of the model and of "tomorrow is as today"."""
    torch.manual_seed(seed)
    values = series()
    windows = values.unfold(0, N + 1, 1)  # (B, N + 1): row b is days b ... b + N
    x, y = windows[:, :N, None], windows[:, N]  # (B, T, I) = (586, 14, 1), (B,)
    x_train, y_train, x_test, y_test = x[:-150], y[:-150], x[-150:], y[-150:]  # in order of time, never shuffled

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x_train), y_train).backward()
        optimizer.step()

    with torch.no_grad():
        error = nn.functional.mse_loss(model(x_test), y_test).item()
    return error, nn.functional.mse_loss(x_test[:, -1, 0], y_test).item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a model gains nothing from a second one, and may lose much
    error, naive = train()
    print(f"mean squared error  LSTM {error:.4f}  as today {naive:.4f}")
