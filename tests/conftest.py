"""What every test runs under: fresh memory full of NaN, one seed, no forgotten warnings (see pyproject)."""

import pytest
import torch

from torchrnn.cell import CELLS


@pytest.fixture(autouse=True)
def _poisoned_memory_and_seed():
    # in this mode torch.empty is filled with NaN, so that an element nobody wrote shows
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # torch's own two-thread LSTM crawls where another process takes a core
    torch.manual_seed(0)
    cells = dict(CELLS)
    yield
    CELLS.clear()
    CELLS.update(cells)  # a test's own cells are no other test's
    torch.use_deterministic_algorithms(False)
