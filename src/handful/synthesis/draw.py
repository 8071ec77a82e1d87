"""Chance from one seeded generator: single numbers are drawn on the host, tensors on the generator's device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Draw:
    """Two streams that one seed fixes; numbers from the host stream cost no wait for a GPU."""

    generator: Generator
    host: random.Random

    @staticmethod
    def of(generator: Generator) -> Draw:
        """Draws that follow from the generator's state, which moves on."""
        seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        return Draw(generator, random.Random(int(seed)))

    def chance(self, probability: float) -> bool:
        return self.host.random() < probability

    def between(self, low: float, high: float) -> float:
        return self.host.uniform(low, high)

    def integer(self, low: int, high: int) -> int:
        """Both ends may come."""
        return self.host.randint(low, high)

    def gauss(self, deviation: float = 1.0) -> float:
        return self.host.gauss(0.0, deviation)

    def point(self, reach: Sequence[float]) -> list[float]:
        """Uniform in the box from -reach to reach."""
        return [self.host.uniform(-r, r) for r in reach]

    def tensor(self, values: object) -> Tensor:
        """Host numbers, as 32-bit floats on the device."""
        return torch.tensor(values, dtype=torch.float32).to(self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.generator.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.generator.device)
