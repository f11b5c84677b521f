"""Our kernels in processes of their own: each instruction set, workers after a fork, data-parallel training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fused import needs_kernels

pytestmark = needs_kernels


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process that runs ``code``; there, too, warnings are errors."""
    fork = "ignore:This process:DeprecationWarning"  # Python 3.12 has it for any fork of a process with threads
    command = [sys.executable, "-W", "error", "-W", fork, "-c", code, *arguments]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """What they print, and their errors. One that hangs is a failure; none outlives the test."""
    try:
        return [(out.strip(), err) for out, err in (p.communicate(timeout=100) for p in processes)]
    finally:
        for p in processes:
            p.kill()


EACH_SET = """
import copy, itertools, torch, torchrnn

def run(layer, x, options, states):
    output, final = layer(x, states, **options)
    results = [output, *(final if isinstance(final, tuple) else [final])]
    return [*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), [x, *layer.parameters()])]

torch.manual_seed(0)
cases = 0
for kind, H, B, extra in itertools.product(["RNN", "LSTM", "GRU"], [1, 4, 17, 67], [1, 3, 19], range(2)):
    more = {"bidirectional": True, "num_layers": 2, "bias": H != 17} if extra else {}
    if kind == "RNN" and H == 67:
        more["nonlinearity"] = "relu"
    if kind != "RNN" and H > 4 and extra:
        more["proj_size"] = 3
    exact = getattr(torchrnn, kind)(9, H, dtype=torch.float64, **more)
    lengths = torch.randint(1, 6, (B,))
    options = {"lengths": lengths} if extra and B > 1 else {}
    x = torch.randn(5, B, 9, dtype=torch.float64, requires_grad=True)
    shape = (2 * (1 + bool(extra)) if extra else 1, B)
    states = [torch.randn(*shape, more.get("proj_size", H)).double(), torch.randn(*shape, H).double()]
    states = tuple(states) if kind == "LSTM" or "proj_size" in more else states[:1]
    with torchrnn.use("reference"):
        expected = run(exact, x, options, states if len(states) > 1 else states[0])
    for dtype, tolerance in (torch.float64, 1e-12), (torch.float32, 3e-5):
        layer, y = copy.deepcopy(exact).to(dtype), x.detach().to(dtype).requires_grad_()
        given = [s.to(dtype) for s in states]
        with torchrnn.use("cpu"):
            found = run(layer, y, options, tuple(given) if len(given) > 1 else given[0])
        for a, b in zip(found, expected):
            torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)
        cases += 1
print(torch.ops.torchrnn.isa(), cases)
"""


def test_every_instruction_set_agrees_with_float64() -> None:
    processes = {isa: start(EACH_SET, TORCHRNN_ISA=isa, OMP_NUM_THREADS="1") for isa in ("baseline", "avx2", "avx512")}
    for isa, (out, err) in zip(processes, finish(*processes.values()), strict=True):
        if "must be one of those that this processor has" not in err:
            assert out == f"{isa} 144", err


BFLOAT16 = """
import torch, torchrnn
torch.manual_seed(0)
x = torch.randn(6, 3, 5).bfloat16()
chosen = []
for kind in "RNN", "LSTM", "GRU":
    layer = getattr(torchrnn, kind)(5, 17, 2, bidirectional=True, dtype=torch.bfloat16)
    chosen.append(torchrnn.explain(layer, x).backend)
    exact = getattr(torchrnn, kind)(5, 17, 2, bidirectional=True, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    grads = []
    for module in layer, exact:
        y = x.to(module.weight_ih_l0.dtype).requires_grad_()
        with torchrnn.use("cpu"):
            output = module(y, lengths=[6, 2, 4])[0]
        grads.append([output, *torch.autograd.grad(output.square().sum(), [y, *module.parameters()])])
    for a, b in zip(*grads):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, atol=4 * 2**-7 * b.abs().max().item(), rtol=0)
print(torch.ops.torchrnn.isa(), torch.ops.torchrnn.takes_bfloat16(), *chosen)
if not torch.ops.torchrnn.takes_bfloat16():
    weights = [torch.randn(4, 4).bfloat16() for _ in range(2)]
    try:
        number = torch.ops.torchrnn.number("rnn_tanh")
        torch.ops.torchrnn.stack(number, x[:, :, :4], [torch.zeros(1, 3, 4).bfloat16()], weights, None, 0, float("inf"))
    except RuntimeError as error:
        assert "cast the arguments to float32" in str(error), error
    else:
        raise AssertionError("kernels that do not know bfloat16 took it")
"""


def test_bfloat16_on_each_instruction_set() -> None:
    names = ["avx2", "avx512", "avx512bf16"]
    for isa, (out, err) in zip(names, finish(*(start(BFLOAT16, TORCHRNN_ISA=isa) for isa in names)), strict=True):
        if "must be one of those that this processor has" not in err:
            narrow = isa == "avx512bf16"
            lstm = "cpu" if narrow and not torch.ops.torchrnn.tiles() else "aten"
            assert out == f"{isa} {narrow} cpu {lstm} cpu", err


WORKERS = """
import warnings
import torch, torchrnn
from torch.utils.data import DataLoader, Dataset

warnings.filterwarnings("ignore", "This DataLoader will create 2 worker processes")  # on a machine of one core

torch.manual_seed(0)
layer = torchrnn.LSTM(32, 64, bidirectional=True)
x = torch.randn(8, 30, 32)

def embed(row):
    y = row.unsqueeze(1).requires_grad_()
    output = layer(y)[0]
    return torch.cat([output.detach()[:, 0], torch.autograd.grad(output.sum(), y)[0][:, 0]], 1)

class Rows(Dataset):
    def __len__(self):
        return len(x)
    def __getitem__(self, i):
        return embed(x[i].clone())

def collate(rows):
    with torchrnn.use("cpu"), torch.no_grad():
        return torch.stack(rows), layer(torch.stack(list(x), 1))[0]

torch.set_num_threads(2)
with torchrnn.use("cpu"):
    whole = layer(x.transpose(0, 1).repeat(1, 8, 1).requires_grad_())[0]
    whole.sum().backward()  # the threads of the parent have run
    expected = torch.stack([embed(row.clone()) for row in x])
together = layer(torch.stack(list(x), 1))[0].detach()
for _ in range(2):
    for k, (batch, all_rows) in enumerate(DataLoader(Rows(), 4, num_workers=2, collate_fn=collate)):
        torch.testing.assert_close(batch, expected[4 * k : 4 * k + 4])
        torch.testing.assert_close(all_rows, together)
    assert torch.equal(layer(x.transpose(0, 1).repeat(1, 8, 1))[0], whole)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_of_a_data_loader() -> None:
    ((out, err),) = finish(start(WORKERS))
    assert out == "done", err


PARALLEL = """
import sys, torch, torchrnn
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
alone = torch.nn.Sequential(torchrnn.GRU(5, 7, 2, bidirectional=True, dtype=torch.float64))
parallel = torch.nn.Sequential(torchrnn.GRU(5, 7, 2, bidirectional=True, dtype=torch.float64))
parallel.load_state_dict(alone.state_dict())
ddp = DistributedDataParallel(parallel)
first, second = torch.optim.Adam(alone.parameters()), torch.optim.Adam(ddp.parameters())
for step in range(3):
    x = torch.randn(6, 8, 5, dtype=torch.float64)
    for model, optimiser, rows in (alone, first, x), (ddp, second, x[:, 4 * rank : 4 * rank + 4]):
        optimiser.zero_grad()
        with torchrnn.use("cpu"):
            model(rows)[0].square().mean().backward()
        optimiser.step()
for a, b in zip(alone.parameters(), parallel.parameters()):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
dist.destroy_process_group()
print("done")
"""


def test_data_parallel_training(tmp_path: Path) -> None:
    processes = [start(PARALLEL, str(rank), str(tmp_path / "meeting"), GLOO_SOCKET_IFNAME="lo") for rank in range(2)]
    for out, err in finish(*processes):
        assert out == "done", err
