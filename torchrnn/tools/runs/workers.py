"""Starts the processes that train a run together, watches them, and says which one ended and how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from torchrnn.tools.runs import checkpoint
from torchrnn.tools.runs.errors import AlreadyTold, Stopped, ToolError
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.together import SUPERVISED

PATIENCE = 4.0  # seconds for the processes to end by themselves when one of them has


def supervise(count: int, folder: RunFolder, again: str) -> None:
    """Give this command to `count` processes; return when all have done it, else say what has happened."""
    run = folder.root
    before = checkpoints(run)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [_start(rank, count, store.port) for rank in range(count)]
    try:
        ended = _first_to_fail(workers)
    except KeyboardInterrupt:
        _end(workers)
        if workers[0].returncode == Stopped.code:
            raise AlreadyTold(Stopped.code) from None
        raise Stopped(f"Stopped. {how_to_go_on(run, before, again)}") from None
    finally:
        _end(workers)
    if ended is None:
        return
    code = workers[ended].returncode
    if code > 0:
        raise AlreadyTold(max(workers[0].returncode, 0) or code)  # it said why itself
    folder.release()
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    system = ", by someone or by the system for want of memory" if name == "SIGKILL" else ""
    raise ToolError(
        f"Process {ended} of the {count} that trained {run} was ended by {name}{system}; the others were ended, too. "
        f"{how_to_go_on(run, before, again)}"
    )


def _start(rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    others = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", SUPERVISED: "1"}
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
    environment |= others | {name: str(number) for name, number in numbers.items()}
    command = [sys.executable, "-m", "torchrnn.tools.cli", *sys.argv[1:]]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)


def _first_to_fail(workers: list[subprocess.Popen[bytes]]) -> int | None:
    """The rank of the first process that ended otherwise than well, None if all have ended well."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            # one that was killed is the cause; those that lost it by then end with a code of their own
            return min(failed, key=lambda rank: (codes[rank] or 0) > 0)
        if None not in codes:
            return None
        time.sleep(0.02)


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the processes to end, then ask them to, then make them."""
    for urge in (None, _close, subprocess.Popen.kill):
        for worker in workers:
            if urge and worker.poll() is None:
                urge(worker)
        end = time.monotonic() + (0 if all(worker.poll() is not None for worker in workers) else PATIENCE)
        while any(worker.poll() is None for worker in workers) and time.monotonic() < end:
            time.sleep(0.02)
    for worker in workers:
        _close(worker)


def _close(worker: subprocess.Popen[bytes]) -> None:
    if worker.stdin:
        with suppress(OSError):
            worker.stdin.close()


def checkpoints(run: Path) -> list[tuple[str, int, int]]:
    """The checkpoints of a run, and what tells them from others of the same name."""
    try:
        found = [(path.name, path.stat()) for path in checkpoint.found(run)]
    except OSError:
        return []  # a folder that may not be read, which is told when it is opened
    return [(name, status.st_ino, status.st_mtime_ns) for name, status in found]


def how_to_go_on(run: Path, before: list[tuple[str, int, int]], again: str) -> str:
    """What to do after a process was killed, by whether there are other checkpoints than `before`."""
    now = checkpoints(run)
    if now and (now != before or "--resume" in sys.argv):
        return f"The last checkpoint is whole; go on with: {again}"
    earlier = ", and the earlier run is as it was" if now else ""
    return f"Nothing was saved yet{earlier}: give the command again."
