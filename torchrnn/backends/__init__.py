"""The backends: each has ``refuses(call)``, a reason or None, and ``run(call)``, which gives (output, final states)."""

from torchrnn.backends import aten, autocast, cpu, func, reference
from torchrnn.call import BACKENDS

BACKENDS.update(cpu=cpu, func=func, autocast=autocast, aten=aten, reference=reference)  # in order of preference
