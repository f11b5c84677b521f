"""Our own kernels as a test parameter: skipped, with the reason, where they were not built."""

import pytest

from torchrnn import _extension

needs_kernels = pytest.mark.skipif(_extension.missing() is not None, reason=_extension.missing() or "")
CPU = pytest.param("cpu", marks=needs_kernels)
