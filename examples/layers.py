"""A layer runs a cell over whole sequences: the shapes of inputs, outputs and states, of RNN, LSTM and GRU.

    python examples/layers.py

Letters in the comments: T time, B batch, I input, H hidden, G gates, L layers, D directions.
"""

from typing import Any

import torch

from torchrnn import nn

torch.manual_seed(0)


def shape(*tensors: Any) -> str:
    return " ".join(str(tuple(t.shape)) for t in tensors)


# ---- RNN: all outputs, and the state after the last step ----

rnn = nn.RNN(input_size=100, hidden_size=200)
print("rnn.weight_hh_l0 ", shape(rnn.weight_hh_l0))  # (G·H, H), G = 1; "l0" is the first layer

x = torch.randn(6, 5, 100)  # (T, B, I)
output, h_n = rnn(x)  # (T, B, H), (L·D, B, H); the state before the first step is zero
print("rnn              ", shape(output, h_n))
steps, batch, hidden = output.shape
print("T, B, H           ", steps, batch, hidden)

h_0 = torch.randn(1, 5, 200)  # (L·D, B, H): a first state of one's own
output, h_n = rnn(x, h_0)
print("rnn, own state   ", shape(output, h_n))
print("output[-1] == h_n:", torch.equal(output[-1], h_n[0]))

# ---- batch_first moves B in the input and the output, never in the states ----

rnn = nn.RNN(input_size=12, hidden_size=64, num_layers=2, batch_first=True)
h_0 = torch.zeros(2, 128, 64)  # (L·D, B, H), with batch_first too
output, h_n = rnn(torch.rand(128, 28, 12), h_0)  # (B, T, I) -> (B, T, H), (L·D, B, H)
print("batch_first=True ", shape(output, h_n), torch.equal(output[:, -1], h_n[-1]))

rnn = nn.RNN(input_size=12, hidden_size=64, num_layers=2, batch_first=False)
output, h_n = rnn(torch.rand(28, 128, 12), h_0)  # (T, B, I) -> (T, B, H), (L·D, B, H)
print("batch_first=False", shape(output, h_n), torch.equal(output[-1], h_n[-1]))

# ---- LSTM: two states of the same size, h (which is also the output) and c (which stays inside) ----

lstm = nn.LSTM(input_size=50, hidden_size=100, num_layers=2)
print("lstm.weight_hh_l0", shape(lstm.weight_hh_l0))  # (G·H, H), G = 4: the rows of gates i, f, g, o in this order

x = torch.randn(10, 3, 50)  # (T, B, I)
output, (h_n, c_n) = lstm(x)  # (T, B, H), (L·D, B, H), (L·D, B, H)
print("lstm             ", shape(output, h_n, c_n))

h_0, c_0 = torch.randn(2, 3, 100), torch.randn(2, 3, 100)  # (L·D, B, H) each
output, (h_n, c_n) = lstm(x, (h_0, c_0))
print("lstm, own states ", shape(output, h_n, c_n))
print("output[-1] == h_n[-1]:", torch.equal(output[-1], h_n[-1]))

# ---- GRU: three gates, one state ----

gru = nn.GRU(input_size=10, hidden_size=20)
print("gru.weight_hh_l0 ", shape(gru.weight_hh_l0))  # (G·H, H), G = 3: the rows of gates r, z, n in this order
output, h_n = gru(torch.randn(3, 32, 10))  # (T, B, I) -> (T, B, H), (L·D, B, H)
print("gru              ", shape(output, h_n))
