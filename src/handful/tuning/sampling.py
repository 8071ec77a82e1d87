"""Which samples a training step uses, so that rare labels come as often as common ones; random numbers for steps."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor


class BalancedSampler:
    """Rows for training steps: the first half of each batch hold a label chosen at random, the others are any.

    So rare labels and rows without labels both come.
    """

    def __init__(self, holds: Bool[Tensor, "r k"], batch: int, among: Int[Tensor, " m"] | None = None) -> None:
        """`holds` says which row holds which label; `among` are the rows to choose from, all where it is None."""
        self.batch = batch
        self.rows = torch.arange(len(holds)) if among is None else among
        holding = [self.rows[column] for column in holds[self.rows].T]
        self.holding = [rows for rows in holding if len(rows)] or [self.rows]

    def sample(self, generator: Generator) -> Int[Tensor, " b"]:
        """The rows of one batch, all random choices from the generator."""
        chosen = []
        for place in range(self.batch):
            rows = self.rows
            if place < (self.batch + 1) // 2:
                rows = self.holding[integer(len(self.holding), generator)]
            chosen.append(int(rows[integer(len(rows), generator)]))
        return torch.tensor(chosen)


def integer(below: int, generator: Generator) -> int:
    """A random number from 0 to `below` - 1."""
    return int(torch.randint(below, (), generator=generator))


def noise_like(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers of that shape, made on the CPU, where the generator lives."""
    return torch.randn(like.shape, generator=generator).to(like)
