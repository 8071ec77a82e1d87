"""Several seeds, one vote: any method that trains, fitted on the same labels several times, each from its own seed.

Deep ensembles (Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles",
NeurIPS 2017), which vote here. What the fits have in common, mistakes above all, stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.data.cases import SupportSet
from handful.data.slicing import Slicer
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, below
from handful.methods.wrappers.voting import VotingSegmenter, mean_answer
from handful.tuning.loop import TrainConfig

FEWEST = 3
"""Of two the first would decide everywhere."""


@dataclass(frozen=True)
class Seeds:
    """A method that is fitted from its own seed and from those that follow it."""

    method: Method
    count: int
    """Fits; where their votes are equal, the first decides."""

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise SettingsError(
                f"seeds must be {FEWEST} or more, got {self.count}: of two the first decides everywhere; for one fit "
                "leave it out"
            )
        seeded(self.method, 0)

    @property
    def slicer(self) -> Slicer:
        return self.method.slicer

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> SeedsSegmenter:  # noqa: B008
        every = range(self.count)
        return SeedsSegmenter([seeded(self.method, n).fit(support, backbone, run.part(f"seed-{n}")) for n in every])

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> SeedsSegmenter:
        parts = [(seeded(self.method, n), below(f"seed-{n}", learned)) for n in range(self.count)]
        return SeedsSegmenter([method.restore(labels, slicer, backbone, part) for method, part in parts])


def seeded(method: Method, further: int) -> Method:
    """The same method from a later seed; SettingsError where nothing depends on one."""
    own: Any = method
    if hasattr(own, "method"):  # closer and planes have it inside
        changes: dict[str, Any] = {"method": seeded(own.method, further)}
    elif hasattr(own, "seed"):
        changes = {"seed": own.seed + further}
    else:
        trainings = {key: value for key, value in vars(own).items() if isinstance(value, TrainConfig)}
        changes = {key: dataclasses.replace(one, seed=one.seed + further) for key, one in trainings.items()}
    if not changes:
        raise SettingsError(
            f"seeds is for methods that train, and {type(method).__name__} gives the same from any seed; leave it out"
        )
    later: Method = dataclasses.replace(own, **changes)
    return later


def trains(method: Method) -> bool:
    """Whether a fit trains anything, which is what seeds are for."""
    try:
        seeded(method, 0)
    except SettingsError:
        return False
    return True


class SeedsSegmenter(VotingSegmenter):
    """A segmenter a seed."""

    def __init__(self, fitted: list[Segmenter]) -> None:
        super().__init__(fitted[0].labels, fitted[0].slicer, fitted[0].backbone)
        self.fitted = nn.ModuleList(fitted)

    @property
    def voters(self) -> Sequence[Segmenter]:
        return list(self.fitted)  # type: ignore[arg-type]

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the mean of what the fits hold for likely."""
        return mean_answer(self.voters, slices)

    def learned(self) -> dict[str, Tensor]:
        pairs = enumerate(self.voters)
        return {f"seed-{number}/{name}": value for number, one in pairs for name, value in one.learned().items()}
