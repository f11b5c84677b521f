"""The forecaster: one recurrent layer reads the past, a second one walks over the horizon from the state it left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrnn import GRU, LSTM, RNN
from torchrnn.tools.forecast.baselines import Linear
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.forecast.windows import Batch, Roles

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class Forecaster(nn.Module):
    """Values of K targets over the horizon, or Q quantiles of each, from the past and what is known of the future.

    With l the last observed value of each target (for the whole horizon) and d_t the targets' past minus l:

    s_T = cell(d_t, past_t, known_t for t = 1 … T),  z_1 … z_h = cell'(known_i, i / h for i = 1 … h; s_T),
    ŷ_i = l + linear_i(d) + o_i + V z_i + b.

    V and b begin at zero. The linear map and the distances o of its quantiles are those of the baseline, and fixed:
    training starts from its forecast and learns what it lacks. Without a baseline both are zero. Steps at which nothing
    was observed do not change the state.
    """

    def __init__(self, roles: Roles, settings: ForecastSettings) -> None:
        super().__init__()
        self.targets, self.horizon = len(roles.targets), settings.horizon
        self.outputs = max(1, len(settings.levels))  # Q
        layer, between = CELLS[settings.cell], settings.dropout if settings.num_layers > 1 else 0.0
        sizes = settings.hidden_size, settings.num_layers
        self.encoder = layer(roles.input_size, *sizes, dropout=between)
        self.decoder = layer(roles.future_size + 1, *sizes, dropout=between)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(settings.hidden_size, self.targets * self.outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("weight", torch.zeros(self.targets, settings.history, self.horizon))
        self.register_buffer("bias", torch.zeros(self.targets, self.horizon))
        self.register_buffer("offsets", torch.zeros(self.horizon, self.targets, self.outputs))

    def start_from(self, linear: Linear) -> None:
        """Take the linear baseline as the forecast to be corrected."""
        self.get_buffer("weight").copy_(linear.weight)
        self.get_buffer("bias").copy_(linear.bias)
        self.get_buffer("offsets").copy_(linear.offsets)

    def forward(self, batch: Batch) -> Tensor:
        """Forecasts (h, B, K, Q), scaled."""
        K, B = self.targets, batch.past.shape[1]
        x = torch.cat([(batch.history - batch.level).nan_to_num(0.0), batch.past], -1)  # (T, B, I)
        _, state = self.encoder(x, mask=batch.mask)
        place = torch.linspace(0, 1, self.horizon, device=x.device, dtype=x.dtype)
        place = place.view(-1, 1, 1).expand(-1, B, 1)
        z, _ = self.decoder(torch.cat([batch.future, place], -1), state)  # (h, B, H)
        correction = self.head(self.dropout(z)).view(self.horizon, B, K, self.outputs)
        linear = Linear(*map(self.get_buffer, ("weight", "bias", "offsets")))
        return linear.quantiles(batch.history) + correction
