"""Several seeds, one vote: any method that trains, fitted on the same labels several times, each from its own seed.

Deep ensembles (Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles",
NeurIPS 2017), which vote here. What the fits have in common, mistakes above all, stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method
from handful.methods.wrappers.base import MethodWrapper
from handful.methods.wrappers.voting import VotingSegmenter, mean_answer

FEWEST = 3
"""Of two the first would decide everywhere."""


@dataclass(frozen=True)
class Seeds(MethodWrapper):
    """A method that is fitted from its own seed and from those that follow it."""

    key = "seeds"
    kind = int
    example = "a whole number such as 3"

    count: int
    """Fits; where their votes are equal, the first decides."""

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise SettingsError(
                f"seeds must be {FEWEST} or more, got {self.count}: of two the first decides everywhere; for one fit "
                "leave it out"
            )
        self.method.seeded(0)

    @property
    def value(self) -> int:
        return self.count

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> SeedsSegmenter:  # noqa: B008
        return SeedsSegmenter(self.fit_members(self._members(), support, backbone, run))

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> SeedsSegmenter:
        return SeedsSegmenter(self.restore_members(self._members(), labels, slicer, backbone, learned))

    def _members(self) -> dict[str, Method]:
        return {f"seed-{number}": self.method.seeded(number) for number in range(self.count)}


class SeedsSegmenter(VotingSegmenter):
    """One segmenter per seed."""

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the mean of the members' probabilities."""
        return mean_answer(self.voters, slices)
