"""The interactive page of what `torchrnn.watch` has seen: a text coloured by a unit's values, in one HTML file."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torchrnn.seeing.seen import Seen

_STEPS = 20_000  # of one page; a browser gets slow beyond


class Page:
    """One HTML file, whole in itself: nothing is fetched, and it works from a disk.

    Attributes:
        html: its text.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, ``.html``."""
        Path(path).write_text(self.html, encoding="utf-8")

    def __repr__(self) -> str:
        return f"<page of {len(self.html):,} characters: save(path) writes it>"


def page(seen: Seen, tokens: Sequence[str], row: int) -> Page:
    """The page of one row.

    Raises:
        ValueError: there is not a token for each step, or no such row.
        TypeError: a token is no text.
    """
    counted = seen.counted if seen.counted.dim() > 1 else seen.counted.unsqueeze(1)
    counted = counted.flatten(1)
    if not -counted.size(1) <= row < counted.size(1):
        raise ValueError(f"row must be below the batch of {counted.size(1)}, got {row}")
    steps = counted[:, row]
    T = int(steps.sum())
    if len(tokens) != T:
        raise ValueError(f"tokens must be one for each step: expected {T}, got {len(tokens)}")
    if not 0 < T <= _STEPS:
        raise ValueError(f"a page shows 1 to {_STEPS:,} steps, got {T:,}: watch a shorter text")
    strange = next((token for token in tokens if not isinstance(token, str)), None)
    if strange is not None:
        raise TypeError(f"tokens must be texts, got {type(strange).__name__}")
    data = {
        "tokens": list(tokens),
        "names": list(seen.trace),
        "unipolar": _unipolar(seen),
        "parts": _parts(seen, steps, row),
    }
    # a "<" in a text must not end the script that holds it
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = escape(f"{type(seen.layer).__name__}({seen.layer.extra_repr()})")
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Page(template.replace("@title@", title).replace("@data@", text, 1))


def _unipolar(seen: Seen) -> list[str]:
    """What is never below zero: gates after a sigmoid."""
    from torchrnn.seeing.seen import squashed

    return [name for name, (low, _) in squashed(seen.layer).items() if low == 0]


def _parts(seen: Seen, steps: Tensor, row: int) -> list[dict[str, Any]]:
    """Each layer and direction with its states and gates."""
    D, parts = 2 if seen.layer.bidirectional else 1, []
    for k in range(seen.layer.num_layers):
        for d in range(D):
            direction = "" if D == 1 else (" forward", " backward")[d]
            series = {}
            for name in seen.trace:
                value = getattr(seen.trace, name)[k][d]
                rows = value.flatten(1, -2)[:, row] if value.dim() > 2 else value
                series[name] = _packed(rows[steps])
            parts.append({"title": f"layer {k}{direction}", "series": series})
    return parts


def _packed(values: Tensor) -> dict[str, Any]:
    """(T, H) as whole numbers of 16 bits and the number that the largest stands for."""
    values = values.double().nan_to_num()
    most = float(values.abs().max()) or 1.0
    whole = (values / most * 32767).round().int().flatten().tolist()
    data = base64.b64encode(struct.pack(f"<{len(whole)}h", *whole)).decode("ascii")
    return {"units": values.size(1), "most": most, "data": data}
