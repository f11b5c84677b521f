"""The figures of many batches, added up by name, and over the processes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from torchrnn.tools.runs import together
from torchrnn.tools.runs.job import Share


class Sums:
    """Named sums over batches; they stay on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=self.dtype, device=device))

    def add(self, sums: dict[str, Tensor | float]) -> None:
        """Add those of a batch."""
        for name, value in sums.items():
            self.values[name] = self.values[name] + torch.as_tensor(value).detach().to(self.device, self.dtype)

    def total(self, like: Sums, share: Share) -> dict[str, Any]:
        """The sums over all processes; those of the first process in `like` say which there are."""
        mine = sorted((name, tuple(value.shape)) for name, value in like.values.items())
        shapes = dict(together.of_the_first(mine, share))  # it has rows if any has
        parts = [self.values[name].expand(shape).flatten() for name, shape in shapes.items()]
        whole = together.added(torch.cat(parts), share).split([part.numel() for part in parts])
        return {name: part.view(shape).tolist() for part, (name, shape) in zip(whole, shapes.items(), strict=True)}
