"""Ensemble: three ways to learn from the same labels, and each voxel gets the label that two of them give it.

Segmenters that err for different reasons correct each other (Dietterich, "Ensemble methods in machine learning", 2000):
AutoSAM reads a foundation model's embeddings, the U-Net has only ever seen these slices, and FATE trains nothing and
compares. nnU-Net gains likewise from several U-Nets, which differ less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Geometry, Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.auto_sam.method import AutoSam
from handful.methods.base import Method, Segmenter
from handful.methods.fate.method import Fate
from handful.methods.unet.method import UNet
from handful.methods.wrappers.base import Wrapper
from handful.methods.wrappers.planes import ALL, Planes
from handful.methods.wrappers.voting import VotingSegmenter, mean_answer

FLATTEST, FEWEST = 2.0, 16
"""FATE looks at three planes where no voxel's longest edge is more than so many times its shortest, and no side of a
scan has fewer voxels."""


@dataclass(frozen=True, kw_only=True)
class Ensemble(Wrapper):
    """AutoSAM, a U-Net and FATE learn from the same support and vote; where no two agree, AutoSAM decides."""

    when = "1 to 5 labelled cases and a quarter of an hour; the default"
    minutes = "15 min"

    slicer: Slicer = Slicer()
    """Plane and window of all three, the same when fitting and when predicting."""
    auto_sam: AutoSam = AutoSam()
    """Settings of AutoSAM."""
    unet: UNet = UNet()
    """Settings of the U-Net."""
    fate: Fate = Fate()
    """Settings of FATE."""
    seed: int = 0
    """Added to the seeds of those that train."""

    def __post_init__(self) -> None:
        for name, member in (("auto_sam", self.auto_sam), ("unet", self.unet), ("fate", self.fate)):
            if member.slicer != Slicer():
                raise SettingsError(f"{name}.slicer is set, but the three see the same slices; set slicer instead")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> EnsembleSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
        three_planes = all(_has_three_planes(facts.geometry) for facts in support.facts)
        members = self._members(slicer, three_planes)
        return EnsembleSegmenter(self.fit_members(members, support, backbone, run), three_planes)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> EnsembleSegmenter:
        three_planes = bool(learned["three_planes"])
        members = self._members(slicer, three_planes)
        fitted = self.restore_members(members, labels, slicer, backbone, learned)
        return EnsembleSegmenter(fitted, three_planes)

    def _members(self, slicer: Slicer, three_planes: bool) -> dict[str, Method]:
        """The three, the one that decides first."""
        fate: Method = self.fate.with_slicer(slicer)
        return {
            "auto-sam": self.auto_sam.with_slicer(slicer).seeded(self.seed),
            "unet": self.unet.with_slicer(slicer).seeded(self.seed),
            "fate": Planes(fate, ALL) if three_planes else fate,
        }


class EnsembleSegmenter(VotingSegmenter):
    """Three segmenters; the first decides where no two agree."""

    def __init__(self, fitted: Mapping[str, Segmenter], three_planes: bool) -> None:
        super().__init__(fitted)
        self.three_planes = three_planes

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the mean of the members' probabilities."""
        return mean_answer(self.voters, slices)

    def learned(self) -> dict[str, Tensor]:
        return super().learned() | {"three_planes": torch.tensor(self.three_planes)}


def _has_three_planes(geometry: Geometry) -> bool:
    """Whether other planes than the one that is cut show as much."""
    edges = geometry.spacing
    return min(geometry.shape) >= FEWEST and bool(edges.max() <= FLATTEST * edges.min())
