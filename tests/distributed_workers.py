"""What each of two processes does in test_compat_processes: one step of training, whole and split over both."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchrnn


class Model(nn.Module):
    """A layer, a loop over a cell and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torchrnn.LSTM(4, 6, 2, bidirectional=True)
        self.cell = torchrnn.GRUCell(12, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h, states = x.new_zeros(x.size(1), 5), []
        for row in self.rnn(x, lengths=lengths)[0]:
            h = self.cell(row, h)
            states.append(h)
        return self.head(torch.stack(states))


def trained(model: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> nn.Module:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(x, lengths).pow(2).mean().backward()
        optimiser.step()
    return model


def work(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    whole = Model()
    x, lengths = torch.randn(5, 6, 4), torch.tensor([5, 3, 1, 4, 2, 5])
    mine = slice(3 * rank, 3 * rank + 3)
    replicated, sharded = Model(), Model()
    for copy in (replicated, sharded):
        copy.load_state_dict(whole.state_dict())
    expected = trained(whole, x, lengths).state_dict()
    trained(DistributedDataParallel(replicated), x[:, mine], lengths[mine])
    got = replicated.state_dict()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(sharded.rnn, mesh=mesh)
    fully_shard(sharded.cell, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    shards = trained(sharded, x[:, mine], lengths[mine]).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(shards[name].full_tensor(), value, atol=1e-6, rtol=1e-5)
    dist.barrier()
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # what torch does at its own end, on a busy machine sometimes an abort, is not tested here


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
