"""Memory for large results, lent again once the last tensor in it is gone.

What the system hands out afresh it has zeroed page by page, which takes as long as filling it with results. A block
that came back is filled as it is. While it waits the system may take its pages, of which nobody reads what they held.
"""

from __future__ import annotations

import math
import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes of a result: smaller ones the allocator itself keeps
KEPT = 256 << 20  # bytes that wait, at most

_PAGE = 2 << 20
_LENDS = hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MADV_FREE")  # on Linux
_waiting: list[mmap.mmap] = []  # those that came back, the last one last; threads add and remove, which is atomic


def empty(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A dense tensor on the CPU, whose numbers are not set."""
    size = math.prod(sizes) * dtype.itemsize
    block = _block(-(-size // _PAGE) * _PAGE) if size >= LARGE and _LENDS else None
    if block is None:
        return torch.empty(sizes, dtype=dtype, device="cpu")
    lent = memoryview(block)  # held by the tensor's storage alone
    weakref.finalize(lent, _back, block).atexit = False
    return torch.frombuffer(lent, dtype=dtype, count=math.prod(sizes)).view(sizes)


def _block(size: int) -> mmap.mmap | None:
    """One that waits, or a new one; none where the system has no more memory, which torch says better."""
    for block in reversed([*_waiting]):
        if len(block) == size:
            with suppress(ValueError):  # another thread took it
                _waiting.remove(block)
                return block
    with suppress(OSError):
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _advise(block, "MADV_HUGEPAGE")
        return block
    return None


def _back(block: mmap.mmap) -> None:
    _advise(block, "MADV_FREE")
    _waiting.append(block)
    with suppress(IndexError):  # another thread emptied it
        while sum(map(len, _waiting)) > KEPT:
            _waiting.pop(0)


def _advise(block: mmap.mmap, advice: str) -> None:
    with suppress(OSError):  # a system that does not know it
        block.madvise(getattr(mmap, advice))
