"""Memory for large results: who has it, when it is lent again, and what the system refuses."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

import torchrnn
from torchrnn.backends import memory

linux = pytest.mark.skipif(not memory._LENDS, reason="memory is lent on Linux")
MB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_waiting", [])


def megabytes(count: int) -> Tensor:
    return memory.empty((count, MB // 4), torch.float32)


def test_small_results_are_the_allocators() -> None:
    t = memory.empty((3, 5), torch.bfloat16)
    assert t.shape == (3, 5)
    assert t.dtype == torch.bfloat16
    assert not memory._waiting
    del t
    assert not memory._waiting
    assert memory.empty((0, 4), torch.float64).shape == (0, 4)


HOLDERS = {
    "a view": lambda t: t[2:3].t(),
    "an array": lambda t: t.numpy(),
    "a storage": lambda t: t.untyped_storage(),
    "a graph": lambda t: (torch.ones((), requires_grad=True) * t).grad_fn,
    "DLPack": lambda t: torch.from_dlpack(t),
}


@linux
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_block_is_lent_again_once_the_last_tensor_in_it_is_gone(holder: str) -> None:
    t = megabytes(5).fill_(7)
    at, held = t.data_ptr(), HOLDERS[holder](t)
    del t
    assert megabytes(5).data_ptr() != at
    del held
    gc.collect()
    assert megabytes(5).data_ptr() == at


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lent_memory_is_a_dense_tensor_like_any_other(dtype: torch.dtype) -> None:
    t = memory.empty((3, 1025, 2047), dtype)
    assert t.is_contiguous()
    assert t.shape == (3, 1025, 2047)
    assert not t.requires_grad
    t.copy_(torch.arange(t.numel(), dtype=dtype).view(t.shape) % 251)
    u = memory.empty((3, 1025, 2047), dtype).zero_()
    assert torch.equal(t.flatten(), torch.arange(t.numel(), dtype=dtype) % 251)
    assert not u.any()
    assert t.untyped_storage().nbytes() == t.numel() * dtype.itemsize  # what torch.save writes


@linux
def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", 20 * MB)
    held = [megabytes(n) for n in (6, 8, 10, 4)]
    while held:
        held.pop(0)
        assert sum(map(len, memory._waiting)) <= 20 * MB
    assert [len(block) // MB for block in memory._waiting] == [10, 4]  # the oldest went back


@linux
def test_a_system_without_such_pages_lends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.mmap, "MADV_HUGEPAGE", 12345)
    monkeypatch.setattr(memory.mmap, "MADV_FREE", 12345)
    at = megabytes(4).fill_(1).data_ptr()
    assert megabytes(4).data_ptr() == at


@linux
def test_a_system_without_memory_leaves_the_error_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(memory.mmap, "mmap", refuse)
    assert megabytes(4).shape == (4, MB // 4)
    with pytest.raises(RuntimeError, match="allocate"):
        memory.empty((1 << 50,), torch.float64)


@linux
def test_threads_never_share_a_block() -> None:
    wrong: list[str] = []

    def lend(own: int) -> None:
        for k in range(200):
            t, u = megabytes(4), megabytes(4 + k % 3)
            t[:, ::4096] = own
            u[:, ::4096] = own + 100
            if not (t[:, ::4096] == own).all() or not (u[:, ::4096] == own + 100).all():
                wrong.append(f"thread {own}, round {k}")

    threads = [threading.Thread(target=lend, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(map(len, memory._waiting)) <= memory.KEPT


def _overwrite(t: Tensor, answer: Any) -> None:
    t.fill_(2)
    answer.put(float(megabytes(4).fill_(3).sum()))


@linux
def test_a_forked_process_has_its_own_copy() -> None:
    context = multiprocessing.get_context("fork")
    t, answer = megabytes(4).fill_(1), context.SimpleQueue()
    process = context.Process(target=_overwrite, args=(t, answer))
    process.start()
    assert answer.get() == 3 * MB
    process.join()
    assert (t == 1).all()


def gradients_of_samples(layer: Any, x: Tensor) -> dict[str, Tensor]:
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights: Any, x: Tensor) -> Tensor:
        y, state = functional_call(layer, weights, x)
        return y.square().sum() + sum(s.sum() for s in (state if isinstance(state, tuple) else (state,)))

    return vmap(grad(loss), (None, 1))(weights, x)


@linux
@pytest.mark.parametrize("kind", [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_gradients_of_samples_in_lent_memory(kind: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = kind(5, 7, **options), torch.randn(6, 3, 5)
    expected = gradients_of_samples(layer, x)
    assert not memory._waiting
    monkeypatch.setattr(memory, "LARGE", 1)
    for _ in range(2):  # afresh, and where the last ones lay
        found = gradients_of_samples(layer, x)
        for name, g in expected.items():
            assert torch.equal(found[name], g), name
        del found
        assert len(memory._waiting) == len(expected)
        for block in memory._waiting:  # each number is written anew
            block[:] = b"\xff" * len(block)


@linux
def test_results_that_are_held_are_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 1)
    layer, x = torchrnn.LSTM(5, 7), torch.randn(6, 3, 5)
    first = gradients_of_samples(layer, x)
    copies = {name: g.clone() for name, g in first.items()}
    gradients_of_samples(layer, 2 * x)
    assert all(torch.equal(g, copies[name]) for name, g in first.items())


@linux
def test_who_counts_or_traces_sees_an_operator_without_side_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE", 1)
    layer, x = torchrnn.LSTM(5, 7), torch.randn(6, 3, 5)
    expected = gradients_of_samples(layer, x)
    memory._waiting.clear()
    with FlopCounterMode(display=False) as counter:
        found = gradients_of_samples(layer, x)
    assert counter.get_total_flops()
    assert all(torch.equal(found[name], g) for name, g in expected.items())
    del found
    assert not memory._waiting


def test_memory_that_does_not_fit_is_refused() -> None:
    layer, x = torchrnn.GRU(5, 7), torch.randn(6, 4, 5)
    states, weights = [torch.zeros(1, 4, 7)], [p.detach() for p in layer.parameters()]
    given = torch.ops.torchrnn.number("gru"), x, states, weights, None, 1 + 2 + (2 << 16), float("inf")
    reserve = torch.ops.torchrnn.stack(*given)[-1]
    into = [torch.empty(2, *w.shape) for w in weights]

    def run(into: list[Tensor]) -> list[Tensor]:
        return torch.ops.torchrnn.stack_backward_into(
            *given, reserve, torch.ones(6, 4, 7), [None], [], [1, 0, 1, 1, 1, 1], into
        )

    x_gradient, of_state = run(into)
    assert x_gradient.shape == x.shape
    assert of_state.shape == (0,)
    for wrong, said in (
        (into[:3], "a tensor for a gradient is missing"),
        ([*into, into[0]], "that nobody asks for"),
        ([into[0].double(), *into[1:]], "of the weight's type"),
        ([into[0].mT.contiguous().mT, *into[1:]], "must be dense"),
        ([into[0][:1], *into[1:]], r"must be \(2, 21, 5\)"),
    ):
        with pytest.raises(RuntimeError, match=said):
            run(wrong)
