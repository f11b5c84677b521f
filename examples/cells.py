"""A cell is one step of a recurrent network: its weights by name, its equation, and a loop over a sequence.

    python examples/cells.py

Letters in the comments: T time, B batch, I input, H hidden, G gates (1 for RNN, 3 for GRU, 4 for LSTM).
"""

from typing import Any

import torch

from torchrnn import nn

torch.manual_seed(0)


def shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


# ---- the weights, by name ----

cell = nn.RNNCell(input_size=5, hidden_size=7)
print(cell)
for name, weight in cell.named_parameters():
    print(f"{name:10}", shape(weight))  # (G·H, I), (G·H, H), (G·H,), (G·H,) with G = 1

# ---- one step is one equation: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) ----

x = torch.rand(1, 5)  # (B, I)
h = torch.randn(1, 7)  # (B, H)
new_h = cell(x, h)  # (B, H)
W_ih, W_hh, b_ih, b_hh = cell.parameters()
by_hand = torch.tanh(x @ W_ih.T + b_ih + h @ W_hh.T + b_hh)
print("one step:", shape(new_h), "as the equation says:", torch.allclose(new_h, by_hand, atol=1e-6))

# ---- a loop carries the state through a sequence ----

cell = nn.RNNCell(input_size=100, hidden_size=200)
print("weight_hh:", shape(cell.weight_hh))

x = torch.randn(6, 5, 100)  # (T, B, I): 6 steps, 5 sequences side by side, 100 numbers each step
h = torch.zeros(5, 200)  # (B, H): the memory before the first step
out = []
for x_t in x:  # (B, I)
    h = cell(x_t, h)  # (B, H)
    out.append(h)
print("input:", shape(x), "final state:", shape(h), "outputs:", len(out))

# ---- the layer is that loop: give it the cell's weights and it returns the same numbers ----

layer = nn.RNN(input_size=100, hidden_size=200)
layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
output, h_n = layer(x)  # (T, B, H), (1, B, H)
print("loop == layer:", torch.allclose(torch.stack(out), output, atol=1e-6))

# ---- LSTM and GRU cells: 4 and 3 gates, so 4·H and 3·H rows; the LSTM has two states ----

x, h, c = torch.rand(1, 5), torch.randn(1, 7), torch.randn(1, 7)
lstm = nn.LSTMCell(input_size=5, hidden_size=7)
h_1, c_1 = lstm(x, (h, c))
print("LSTMCell: weight_ih", shape(lstm.weight_ih), "h", shape(h_1), "c", shape(c_1))

gru = nn.GRUCell(input_size=5, hidden_size=7)
print("GRUCell:  weight_ih", shape(gru.weight_ih), "h", shape(gru(x, h)))
