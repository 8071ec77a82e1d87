"""Several seeds: any method that trains is fitted several times with different random seeds, and the results vote.

These are deep ensembles (Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep
ensembles", NeurIPS 2017) with a majority vote. Errors that all fits share remain.
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
from handful.methods.base import Method, Work
from handful.methods.wrappers.base import MethodWrapper
from handful.methods.wrappers.voting import VotingSegmenter, mean_logits

FEWEST = 3
"""With two, the first would decide everywhere."""


@dataclass(frozen=True)
class Seeds(MethodWrapper):
    """Fit this many times (3 or more) with different random seeds, which vote; the time grows by the same factor."""

    key = "seeds"
    kind = int
    example = "a whole number such as 3"

    count: int
    """Number of fits; the first decides where votes are equal."""

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise SettingsError(
                f"seeds must be {FEWEST} or more, got {self.count}, since two fits cannot outvote each other; leave it "
                "out for a single fit"
            )
        self.method.seeded(0)

    @property
    def value(self) -> int:
        return self.count

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> SeedsSegmenter:  # noqa: B008
        return SeedsSegmenter(self.fit_members(self._members(), support, backbone, run))

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        return self.method.work(support, backbone) * self.count

    @property
    def first_member(self) -> str:
        return next(iter(self._members()))

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> SeedsSegmenter:
        return SeedsSegmenter(self.restore_members(self._members(), labels, slicer, backbone, learned))

    def _members(self) -> dict[str, Method]:
        return {f"seed-{number}": self.method.seeded(number) for number in range(self.count)}


class SeedsSegmenter(VotingSegmenter):
    """One segmenter per seed."""

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the mean of the members' probabilities."""
        return mean_logits(self.voters, slices)
