"""Processes of one torch.distributed group, for tests of training that is shared: what each of them runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException

from handful.errors import TrainingError
from handful.tuning.loop import TrainConfig, train

SHARES = (1.0, 3.0)
"""What each of the two processes wants the weights to be."""


def run(process: Callable[[int, str, str], None], folder: Path) -> Path:
    """Run both processes, and give the path of the answer that they write.

    Now and then gloo aborts a process (compare pytorch/pytorch issue 190489). Both run once more then.
    """
    answer = folder / "answer"
    try:
        torch.multiprocessing.spawn(process, ((folder / "meeting").as_uri(), str(answer)), nprocs=len(SHARES))
    except ProcessExitedException as error:
        if error.signal_name != "SIGABRT":
            raise
        torch.multiprocessing.spawn(process, ((folder / "again").as_uri(), str(answer)), nprocs=len(SHARES))
    return answer


def learn(rank: int, meeting: str, answer: str) -> None:
    """Learns this process's share together with the other one; rank 0 writes the weights to `answer`."""
    _join(rank, meeting)
    model = train_to(SHARES[rank])
    if rank == 0:
        torch.save(model.state_dict(), answer)
    dist.destroy_process_group()


def learn_with_one_that_ends(rank: int, meeting: str, answer: str) -> None:
    """Rank 1 ends within the third step; rank 0 writes the error that it gets to `answer`."""
    _join(rank, meeting)
    model = nn.Linear(3, 1)

    def loss(step: int, rng: Generator) -> Tensor:
        if rank == 1 and step == 2:
            os._exit(0)
        return model(torch.eye(3)).square().mean()

    try:
        train(model, loss, TrainConfig(iterations=5, learning_rate=0.1))
    except TrainingError as error:
        Path(answer).write_text(str(error))
    os._exit(0)  # a group that has lost a process may not be left


def _join(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(SHARES))


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
