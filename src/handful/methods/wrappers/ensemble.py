"""Ensemble of `auto-sam-unet`, a U-Net and FATE, fitted on the same labels: each voxel gets the majority's label.

Segmenters that make different errors correct each other (Dietterich, "Ensemble methods in machine learning", 2000).
The first is trained on the embeddings of a foundation model, the U-Net is trained from scratch, and FATE compares
slices without training.
"""

from __future__ import annotations

import dataclasses
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
from handful.methods.auto_sam.unet import AutoSamUNet
from handful.methods.base import Method, Segmenter, Work
from handful.methods.fate.method import Fate
from handful.methods.learned import Learned
from handful.methods.unet.method import UNet
from handful.methods.wrappers.base import Wrapper
from handful.methods.wrappers.planes import ALL, Planes
from handful.methods.wrappers.voting import VotingSegmenter, mean_logits

FLATTEST, FEWEST = 2.0, 16
"""FATE uses three planes if the longest voxel edge is at most FLATTEST times the shortest, and every side of every scan
has at least FEWEST voxels."""


@dataclass(frozen=True, kw_only=True)
class Ensemble(Wrapper):
    """`auto-sam-unet`, a U-Net and FATE are fitted on the same cases and vote; the first decides where no two agree."""

    when = "one labelled volume, and no other scans"
    minutes = "10 to 16 min"
    needs_whole_masks = True

    slicer: Slicer = Slicer()
    """Slice plane and intensity window of all three members, used for fitting and predicting."""
    auto_sam_unet: AutoSamUNet = AutoSamUNet()
    """Settings of the U-Net on the embeddings of a foundation model."""
    unet: UNet = UNet()
    """Settings of the U-Net on the slices alone."""
    fate: Fate = Fate()
    """Settings of FATE."""
    seed: int = 0
    """Random seed, added to those of the members that train."""

    def __post_init__(self) -> None:
        for name, member in (("auto_sam_unet", self.auto_sam_unet), ("unet", self.unet), ("fate", self.fate)):
            if member.slicer != Slicer():
                raise SettingsError(f"{name}.slicer is set, but all members use the same slices; set slicer instead")

    @property
    def uses_all_sequences(self) -> bool:
        return True

    @property
    def uses_unlabelled(self) -> bool:
        return self.unet.uses_unlabelled

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> EnsembleSegmenter:  # noqa: B008
        support.with_whole_masks()  # before two members are fitted in vain
        members, three_planes = self._members_for(support)
        return EnsembleSegmenter(self.fit_members(members, support, backbone, run), three_planes)

    @property
    def keeps_pictures(self) -> bool:
        return True

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        members, _ = self._members_for(support)
        return tuple(work for member in members.values() for work in member.work(support, backbone))

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> EnsembleSegmenter:
        three_planes = Learned(learned).flag("three_planes")
        members = self._members(slicer, three_planes)
        fitted = self.restore_members(members, labels, slicer, backbone, learned)
        return EnsembleSegmenter(fitted, three_planes)

    def resolved(self, backbone: Backbone) -> Ensemble:
        return dataclasses.replace(
            self,
            auto_sam_unet=self.auto_sam_unet.resolved(backbone),
            unet=self.unet.resolved(backbone),
            fate=self.fate.resolved(backbone),
        )

    def _members_for(self, support: SupportSet) -> tuple[dict[str, Method], bool]:
        """The members for a support set, and whether FATE uses three planes."""
        three_planes = all(_has_three_planes(facts.geometry) for facts in support.facts)
        return self._members(self.resolved_slicer(support), three_planes), three_planes

    def _members(self, slicer: Slicer, three_planes: bool) -> dict[str, Method]:
        """The three members; the first decides where no two agree."""
        fate: Method = self.fate.with_slicer(slicer)
        return {
            "auto-sam-unet": self.auto_sam_unet.with_slicer(slicer).seeded(self.seed),
            "unet": self.unet.with_slicer(slicer).seeded(self.seed),
            "fate": Planes(fate, ALL) if three_planes else fate,
        }


class EnsembleSegmenter(VotingSegmenter):
    """Three segmenters that vote; the first decides where no two agree."""

    def __init__(self, fitted: Mapping[str, Segmenter], three_planes: bool) -> None:
        super().__init__(fitted)
        self.three_planes = three_planes

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the mean of the members' probabilities."""
        return mean_logits(self.voters, slices)

    def learned(self) -> dict[str, Tensor]:
        return super().learned() | {"three_planes": torch.tensor(self.three_planes)}


def _has_three_planes(geometry: Geometry) -> bool:
    """Whether the volume is isotropic and large enough to be sliced in all three planes."""
    edges = geometry.spacing
    return min(geometry.shape) >= FEWEST and bool(edges.max() <= FLATTEST * edges.min())
