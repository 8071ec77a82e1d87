"""Processes of one torch.distributed group, for tests of training that is shared: what each of them runs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from handful.tuning.loop import TrainConfig, train

SHARES = (1.0, 3.0)
"""What each of the two processes wants the weights to be."""


def learn(rank: int, meeting: str, answer: str) -> None:
    """Learns this process's share together with the other one; rank 0 writes the weights to `answer`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(SHARES))
    model = train_to(SHARES[rank])
    if rank == 0:
        torch.save(model.state_dict(), answer)
    dist.destroy_process_group()


def train_to(wanted: float) -> nn.Module:
    """A few steps of a model of two layers, the second of which only larger wishes use."""
    torch.manual_seed(1)
    model = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])

    def loss(step: int, rng: Generator) -> Tensor:
        x = torch.eye(3)
        value = ((model[0](x) - wanted) ** 2).mean()
        return value + ((model[1](x) - wanted) ** 2).mean() if wanted > 2 else value

    train(model, loss, TrainConfig(iterations=5, learning_rate=0.1, clip=1e9))
    return model
