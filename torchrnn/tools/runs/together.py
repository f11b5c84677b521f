"""One of several processes that train a run together: which it is, sums over all of them, and what it says if one ends.

Each process holds the whole model and takes its share of every batch's rows. Gradients are added in one piece, always
the same, so that a run goes on bit for bit whenever it was interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from torchrnn.tools.runs.errors import AlreadyTold, ToolError
from torchrnn.tools.runs.job import Share

SUPERVISED = "TORCHRNN_SUPERVISED"  # set by workers.py, which tells what has happened; else torchrun started us
SEEN_WITHIN = 2.0  # seconds in which who started a process has taken notice of its end


def world() -> int:
    """How many processes were started to train together; 1 in a process that was started alone."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_PORT"} <= os.environ.keys() else 1


def on_this_machine() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


@contextmanager
def joined() -> Iterator[Share]:
    """Be one of the processes for the block; whichever way it is left, the others are not kept waiting."""
    if world() == 1:
        yield Share()
        return
    signal.signal(signal.SIGTERM, _terminated)
    if os.environ.get(SUPERVISED):
        threading.Thread(target=_end_with_the_supervisor, args=(threading.main_thread(),), daemon=True).start()
    # a process that is gone is noticed by its connections; one that reads large data may take its time
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    share = Share(torch.distributed.get_rank(), torch.distributed.get_world_size())
    _introduce(share)
    try:
        yield share
    except RuntimeError as error:
        if not is_broken(error):
            raise
        raise _broken(share) from error
    torch.distributed.destroy_process_group()


def added(tensor: Tensor, share: Share) -> Tensor:
    """The sum over the processes, in place."""
    if share.world > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def add_gradients(parameters: Iterable[nn.Parameter], share: Share) -> None:
    """Put the sum over the processes in place of every gradient."""
    if share.world == 1:
        return
    trained = [weight for weight in parameters if weight.requires_grad]
    for weight in trained:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    flat = added(torch.cat([gradient.flatten() for gradient in gradients]), share)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def joined_rows(state: Any, share: Share) -> Any:
    """A carried state with the rows of all processes, from that of this process's rows (at dimension 1)."""
    if isinstance(state, tuple):
        return tuple(joined_rows(part, share) for part in state)
    if share.world == 1 or state is None:
        return state
    counts = torch.zeros(share.world, dtype=torch.int64)
    counts[share.rank] = state.shape[1]
    counts = added(counts, share).tolist()
    whole = torch.zeros(state.shape[0], sum(counts), *state.shape[2:], dtype=state.dtype)
    begin = sum(counts[: share.rank])
    whole[:, begin : begin + state.shape[1]] = state.detach().cpu()
    return added(whole, share)


def own_rows(state: Any, share: Share) -> Any:
    """This process's rows of a carried state."""
    if isinstance(state, tuple):
        return tuple(own_rows(part, share) for part in state)
    return None if state is None else state[:, share.rows(state.shape[1])].clone()


def of_all(tensor: Tensor, share: Share) -> list[Tensor]:
    """The Tensors of one shape that the processes hold, by rank."""
    whole = torch.zeros(share.world, *tensor.shape, dtype=tensor.dtype)
    whole[share.rank] = tensor.cpu()
    return [part.clone() for part in added(whole, share)]  # a part of a Tensor would be stored with all of it


def of_the_first(thing: Any, share: Share) -> Any:
    """What the first process holds."""
    if share.world == 1:
        return thing
    things = [thing]
    torch.distributed.broadcast_object_list(things)
    return things[0]


@contextmanager
def first(share: Share) -> Iterator[None]:
    """The block of the first process comes before the others', which end quietly if it ends in a ToolError."""
    if share.world == 1:
        yield
    elif share.rank == 0:
        try:
            yield
        except ToolError as error:
            added(torch.tensor(error.code), share)
            raise
        added(torch.tensor(0), share)
    else:
        code = int(added(torch.tensor(0), share))
        if code:
            raise AlreadyTold(code)
        yield


# when a process ends


def is_broken(error: RuntimeError) -> bool:
    """Whether this is what torch says when another process is gone."""
    return bool(re.search(r"gloo|nccl|Connection (closed|reset)|Broken pipe|TCPStore|recvValue", str(error), re.I))


def _introduce(share: Share) -> None:
    here = f"{socket.gethostname()} {os.getpid()}"
    torch.distributed.distributed_c10d._get_default_store().set(f"torchrnn/{share.rank}", here)
    torch.distributed.barrier()
    _KNOWN.clear()
    for rank in range(share.world):
        told = torch.distributed.distributed_c10d._get_default_store().get(f"torchrnn/{rank}").decode()
        host, _, number = told.rpartition(" ")
        if host == socket.gethostname():
            _KNOWN[rank] = int(number)


_KNOWN: dict[int, int] = {}  # the process numbers of the ranks on this machine


def _broken(share: Share) -> ToolError:
    """What this process says when another is gone: one of them speaks, or who started them."""
    if os.environ.get(SUPERVISED):
        return AlreadyTold(1)
    end = time.monotonic() + SEEN_WITHIN
    while not (gone := [rank for rank, number in _KNOWN.items() if not _lives(number)]) and time.monotonic() < end:
        time.sleep(0.02)
    if share.rank != min(rank for rank in range(share.world) if rank not in gone):
        return AlreadyTold(1)
    which = " and ".join(f"{rank} (process number {_KNOWN[rank]})" for rank in gone) or "on another machine"
    return Lost(f"Process {which} of the {share.world} that train this run has ended, so the others end, too.")


def _terminated(number: int, frame: object) -> None:
    """What torchrun sends to the others when it finds that one has ended: they know it already, and say so."""
    if all(map(_lives, _KNOWN.values())):
        raise KeyboardInterrupt


class Lost(ToolError):
    """Another process of the run is gone."""


def _lives(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:  # one that has ended is there until it was asked for its exit code
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        pass
    try:
        os.kill(number, 0)
    except OSError:
        return False
    return True


_ALONE = threading.Event()  # who started this process is gone


def left_alone(error: BaseException) -> bool:
    """Whether this is what a process meets whose starter was ended: Ctrl-C, or another process that left first."""
    if isinstance(error, KeyboardInterrupt):
        return True
    return (
        isinstance(error, RuntimeError) and is_broken(error) and bool(os.environ.get(SUPERVISED)) and _ALONE.wait(0.5)
    )


def _end_with_the_supervisor(main: threading.Thread) -> None:
    """Who started this process holds the other end of its input open for as long as it lives."""
    import _thread

    while os.read(0, 4096):
        pass
    _ALONE.set()
    _thread.interrupt_main()  # as Ctrl-C does: what is begun is brought to its end
    # the first has the last words, and a picture to write; while the others wait for it, it would wait for them
    main.join(timeout=20 if os.environ.get("RANK", "0") == "0" else 1)
    os._exit(1)
