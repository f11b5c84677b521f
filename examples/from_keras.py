"""For those who know Keras: what SimpleRNN's arguments are here, and how its weights come over.

    python examples/from_keras.py

    Keras SimpleRNN                             here
    input is (B, T, I)                          batch_first=True; without it (T, B, I)
    return_sequences=False (the default)        output[:, -1], or h_n[-1]
    return_sequences=True                       output
    return_state=True                           h_n: always returned
    several layers, all but the last with       num_layers=
      return_sequences=True

Keras itself is not needed: SimpleRNN is written out below, from its definition, in NumPy. For a layer or
file of Keras there is torchrnn.from_keras.
"""

import numpy as np
import torch

from torchrnn import nn

B, T, I, H = 3, 5, 10, 2


class SimpleRNN:
    """keras.layers.SimpleRNN: h_t = tanh(x_t kernel + h_{t-1} recurrent_kernel + bias), batch-major."""

    def __init__(self, inputs: int, units: int, rng: np.random.Generator, *, return_sequences: bool = False) -> None:
        self.kernel = rng.normal(size=(inputs, units)) / inputs**0.5  # (I, H)
        self.recurrent_kernel = rng.normal(size=(units, units)) / units**0.5  # (H, H)
        self.bias = rng.normal(size=units)  # (H,)
        self.return_sequences = return_sequences

    def __call__(self, x: np.ndarray) -> np.ndarray:
        h = np.zeros((len(x), len(self.bias)))
        outputs = []
        for t in range(x.shape[1]):
            h = np.tanh(x[:, t] @ self.kernel + h @ self.recurrent_kernel + self.bias)
            outputs.append(h)
        return np.stack(outputs, axis=1) if self.return_sequences else h  # (B, T, H) or (B, H)


def load(rnn: nn.RNN, layer: int, keras: SimpleRNN) -> None:
    """Keras multiplies from the right: its matrices are the transposes of ours, its one bias fills one of our two."""
    rnn.load_state_dict(
        {
            f"weight_ih_l{layer}": torch.tensor(keras.kernel.T),
            f"weight_hh_l{layer}": torch.tensor(keras.recurrent_kernel.T),
            f"bias_ih_l{layer}": torch.tensor(keras.bias),
            f"bias_hh_l{layer}": torch.zeros(len(keras.bias)),
        },
        strict=False,  # one layer at a time
    )


rng = np.random.default_rng(0)
x = rng.normal(size=(B, T, I))

# ---- 1. time-major and batch-major ----

time_major = nn.RNN(I, H, dtype=torch.float64)
batch_major = nn.RNN(I, H, batch_first=True, dtype=torch.float64)
batch_major.load_state_dict(time_major.state_dict())
by_time, _ = time_major(torch.tensor(x).transpose(0, 1))  # (T, B, I) -> (T, B, H)
by_batch, h_n = batch_major(torch.tensor(x))  # (B, T, I) -> (B, T, H), (1, B, H): the state is not moved
print("time-major ", tuple(by_time.shape), "batch-major", tuple(by_batch.shape), "state", tuple(h_n.shape))
print("the same numbers:", torch.equal(by_time.transpose(0, 1), by_batch))

# ---- 2. return_sequences and return_state: here both come back, take what you need ----

keras = SimpleRNN(I, H, rng, return_sequences=True)
load(batch_major, 0, keras)
output, h_n = batch_major(torch.tensor(x))
print("return_sequences=True: ", tuple(output.shape), np.allclose(keras(x), output.detach()))
keras.return_sequences = False
print("return_sequences=False:", tuple(output[:, -1].shape), np.allclose(keras(x), output[:, -1].detach()))
print("return_state=True:     ", tuple(h_n[-1].shape), torch.equal(h_n[-1], output[:, -1]))

# ---- 3. depth: three SimpleRNN layers, or num_layers=3 ----

first = SimpleRNN(I, H, rng, return_sequences=True)
second = SimpleRNN(H, H, rng, return_sequences=True)
third = SimpleRNN(H, H, rng)
stacked = nn.RNN(I, H, num_layers=3, batch_first=True, dtype=torch.float64)
for layer, keras in enumerate((first, second, third)):
    load(stacked, layer, keras)
output, h_n = stacked(torch.tensor(x))
print("three layers:", tuple(output.shape), np.allclose(third(second(first(x))), output[:, -1].detach()))
