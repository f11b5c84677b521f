"""Memory for large tensors: who has it, when it is lent again, and how much waits."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import torchrnn
from torchrnn import _extension

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "ASAN_OPTIONS" in os.environ or _extension.missing() is not None,
    reason="memory is lent by the kernels on Linux; the sanitizer wants malloc's",
)
MB = 1 << 20
H, B = 64, 32


@pytest.fixture(autouse=True)
def _nothing_waits() -> Any:
    gc.collect()
    torch.ops.torchrnn.release_memory()
    yield
    torch.ops.torchrnn.release_memory()


def waiting() -> int:
    return torch.ops.torchrnn.waiting_memory()


def kept(steps: int) -> Tensor:
    """What an RNN keeps of so many steps: 8 KB each."""
    layer, x = torchrnn.RNN(2, H), torch.ones(steps, B, 2)
    weights = [p.detach() for p in layer.parameters()]
    number = torch.ops.torchrnn.number("rnn_tanh")
    return torch.ops.torchrnn.stack(number, x, [torch.zeros(1, B, H)], weights, None, 1 + 2, float("inf"))[-1]


def test_small_tensors_are_mallocs() -> None:
    t = kept(4000)
    assert t.nbytes < 32 * MB
    del t
    assert not waiting()


HOLDERS = {
    "a view": lambda t: t[2:3],
    "an array": lambda t: t.numpy(),
    "a storage": lambda t: t.untyped_storage(),
    "a graph": lambda t: (torch.ones((), requires_grad=True) * t).grad_fn,
    "DLPack": lambda t: torch.from_dlpack(t),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_block_is_lent_again_once_the_last_tensor_in_it_is_gone(holder: str) -> None:
    t = kept(4200)
    assert t.nbytes > 32 * MB
    at, held = t.data_ptr(), HOLDERS[holder](t)
    del t
    assert not waiting()
    assert kept(4200).data_ptr() != at
    torch.ops.torchrnn.release_memory()
    del held
    gc.collect()
    assert waiting() >= 32 * MB
    assert kept(4200).data_ptr() == at


def test_a_block_serves_who_needs_two_thirds_of_it() -> None:
    large = kept(9000)
    at, size = large.data_ptr(), large.nbytes
    del large
    few = kept(5000)  # fewer
    assert few.nbytes < size * 0.66
    assert few.data_ptr() != at
    assert not waiting()  # no more than was lent at once: the block that waited went
    large = kept(9000)
    at = large.data_ptr()
    del large
    some = kept(7000)
    assert some.nbytes > size * 0.67
    assert some.data_ptr() == at


def test_what_waits_and_what_is_lent_are_no_more_than_was_lent_at_once() -> None:
    one = kept(9000)
    size = -(-one.nbytes // (2 * MB)) * 2 * MB
    del one
    assert waiting() == size
    others = [kept(4200)]
    assert not waiting()
    others.append(kept(4201))
    del others
    assert 0 < waiting() <= size
    torch.ops.torchrnn.release_memory()
    assert not waiting()


LIMITED = """
import resource, sys, torch
sys.path.insert(0, {tests!r})
from test_memory import MB, kept, waiting
torch.set_num_threads(1)
kept(4200)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * MB,) * 2)
large = kept(20_000)
assert large.nbytes > 150 * MB
del large
assert waiting() < 100 * MB  # the limit is known
for steps in (7_000, 23_000, 7_000, 24_000):  # what waits makes room
    kept(steps)
print("done")
"""


def test_what_waits_makes_room_where_the_system_has_no_more() -> None:
    code = LIMITED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr[-2000:]


def gradients_of_samples(layer: Any, x: Tensor) -> dict[str, Tensor]:
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    return vmap(grad(lambda w, x: functional_call(layer, w, x)[0].square().sum()), (None, 1))(weights, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_that_are_held_are_not_written_over(dtype: torch.dtype) -> None:
    layer, x = torchrnn.LSTM(80, 96, dtype=dtype), torch.randn(6, 72, 80, dtype=dtype)
    first = gradients_of_samples(layer, x)
    weights = "weight_ih_l0", "weight_hh_l0"
    lent, copies = {first[name].data_ptr() for name in weights}, {name: g.clone() for name, g in first.items()}
    second = gradients_of_samples(layer, 2 * x)
    assert all(torch.equal(g, copies[name]) for name, g in first.items())
    assert first["weight_ih_l0"].untyped_storage().nbytes() == first["weight_ih_l0"].nbytes  # what torch.save writes
    del first
    third = gradients_of_samples(layer, 2 * x)  # where the first ones lay
    assert {third[name].data_ptr() for name in weights} == lent
    assert all(torch.equal(g, third[name]) for name, g in second.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_training_takes_the_blocks_of_its_last_step(compiled: bool) -> None:
    layer = torchrnn.GRU(48, H, bidirectional=True)  # which keeps 41 MB
    run: Any = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    x, found = torch.randn(500, B, 48), []
    for _ in range(3):
        layer.zero_grad()
        run(x)[0].square().sum().backward()
        found.append([p.grad for p in layer.parameters()])
        assert waiting() >= 32 * MB
    size = waiting()
    for of in found[1:]:
        assert all(torch.equal(g, f) for g, f in zip(of, found[0], strict=True))
    run(x)[0].square().sum().backward()
    assert waiting() == size


def test_threads_never_share_a_block() -> None:
    layers = [torchrnn.RNN(2, H) for _ in range(4)]
    x, wrong = torch.randn(4200, B, 2), []
    expected = [torch.autograd.grad(layer(x)[0].square().sum(), [*layer.parameters()]) for layer in layers]

    def train(n: int) -> None:
        for k in range(6):
            found = torch.autograd.grad(layers[n](x)[0].square().sum(), [*layers[n].parameters()])
            if not all(torch.equal(g, e) for g, e in zip(found, expected[n], strict=True)):
                wrong.append((n, k))

    threads = [threading.Thread(target=train, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKED = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_memory import kept, waiting
torch.set_num_threads(1)  # OpenMP's threads are not in the child
t = kept(4200).fill_(1)
child = os.fork()
if not child:
    t.fill_(2)
    os._exit(int(not kept(4200).isfinite().all()))
assert os.waitpid(child, 0)[1] == 0
assert (t == 1).all()
del t
assert not waiting()  # its pages were divided
kept(4200)
assert waiting()
"""


def test_a_forked_process_has_its_own_copy() -> None:
    code = FORKED.format(tests=str(Path(__file__).parent))  # of its own: a thread of another test may hold a lock
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
