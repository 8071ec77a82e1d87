"""Random numbers from one seed: single numbers come from the CPU, tensors from the device of a torch generator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Rng:
    """Two random streams fixed by one seed; single numbers come from Python's, so they never wait for a GPU."""

    generator: Generator
    host: random.Random

    @staticmethod
    def of(generator: Generator) -> Rng:
        """Return streams seeded by the generator's state, which advances by one number."""
        seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        return Rng(generator, random.Random(int(seed)))

    def chance(self, probability: float) -> bool:
        return self.host.random() < probability

    def between(self, low: float, high: float) -> float:
        return self.host.uniform(low, high)

    def integer(self, low: int, high: int) -> int:
        """Return a random integer from `low` to `high`, both included."""
        return self.host.randint(low, high)

    def gauss(self, deviation: float = 1.0) -> float:
        return self.host.gauss(0.0, deviation)

    def point(self, reach: Sequence[float]) -> list[float]:
        """Return a random point of the box from -reach to reach."""
        return [self.host.uniform(-r, r) for r in reach]

    def tensor(self, values: object) -> Tensor:
        """Return these numbers as 32-bit floats on the generator's device."""
        return torch.tensor(values, dtype=torch.float32).to(self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.generator.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.generator.device)
