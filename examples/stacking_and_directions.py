"""num_layers stacks layers, bidirectional reads the sequence from both ends: where each result is found.

    python examples/stacking_and_directions.py

Letters in the comments: T time, B batch, I input, H hidden, L layers, D directions.
"""

import torch

from torchrnn import nn

torch.manual_seed(0)

T, B, I, H = 5, 3, 10, 2
x = torch.randn(T, B, I)

# ---- three layers: each reads the outputs of the one below ----

L = 3
rnn = nn.RNN(I, H, num_layers=L)
output, h_n = rnn(x, torch.randn(L, B, H))  # (T, B, H) of the top layer, (L, B, H) one final state a layer
print("stacked:", tuple(output.shape), tuple(h_n.shape))
print("output[-1] == h_n[-1]:", torch.equal(output[-1], h_n[-1]))

# Only the first layer sees the input: its weight_ih is (H, I), those above are (H, H).
for layer in range(L):
    weight_ih, weight_hh = getattr(rnn, f"weight_ih_l{layer}"), getattr(rnn, f"weight_hh_l{layer}")
    print(f"layer {layer}: weight_ih {tuple(weight_ih.shape)} weight_hh {tuple(weight_hh.shape)}")

# ---- two directions: the forward half of the output, then the backward half ----

rnn = nn.RNN(I, H, bidirectional=True)
output, h_n = rnn(x, torch.zeros(2, B, H))  # (T, B, D·H), (L·D, B, H)
print("bidirectional:", tuple(output.shape), tuple(h_n.shape))

forward_end = output[-1, :, :H]  # (B, H): the forward direction ends at the last step
backward_end = output[0, :, H:]  # (B, H): the backward direction ends at the first
print("h_n == both ends:", torch.equal(h_n, torch.stack((forward_end, backward_end))))

# So output[-1] is not "the final state" here: its second half has read only the last element.
print("output[-1] == both ends:", torch.equal(output[-1], torch.cat((forward_end, backward_end), dim=1)))

# ---- both: h_n is ordered layer by layer, forward before backward ----

gru = nn.GRU(I, H, num_layers=L, bidirectional=True)
output, h_n = gru(x)  # (T, B, D·H), (L·D, B, H)
top_forward, top_backward = h_n.view(L, 2, B, H)[-1]  # (B, H) each
print("both:", tuple(output.shape), tuple(h_n.shape))
print("top layer's ends:", torch.equal(top_forward, output[-1, :, :H]), torch.equal(top_backward, output[0, :, H:]))
print(
    "weight_ih_l1_reverse:", tuple(gru.get_parameter("weight_ih_l1_reverse").shape)
)  # (G·H, D·H): layer 1 reads both directions
