"""DDP and FSDP2: two processes train as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

HERE = Path(__file__).parent


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch was built without gloo")
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "distributed_workers.py")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
