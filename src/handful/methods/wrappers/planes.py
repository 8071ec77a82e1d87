"""Several planes: any method is fitted on the slices of each plane, and each voxel gets the label of the majority.

After tri-planar networks (Prasoon et al., "Deep feature learning for knee cartilage segmentation using a triplanar
convolutional neural network", MICCAI 2013). For nearly isotropic volumes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Work, below
from handful.methods.wrappers.base import MethodWrapper
from handful.methods.wrappers.voting import VotingSegmenter

ALL = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Planes(MethodWrapper):
    """Fit on several planes, such as axial,coronal,sagittal, whose results vote; for nearly isotropic volumes."""

    key = "planes"
    kind = tuple[str, ...]
    example = "such as axial,coronal,sagittal"

    planes: tuple[str, ...]
    """Two or three of axial, coronal, sagittal; the first decides where votes are equal."""

    def __post_init__(self) -> None:
        if len(self.planes) < 2 or len(set(self.planes)) < len(self.planes) or not set(self.planes) <= set(ALL):
            raise SettingsError(
                f"planes = {','.join(self.planes)}: name two or three different ones of {', '.join(ALL)}; "
                "for a single plane, set slicer.plane"
            )

    @property
    def slicer(self) -> Slicer:  # type: ignore[override]
        return _in_plane(self.method.slicer, self.planes[0])

    @property
    def value(self) -> list[str]:
        return list(self.planes)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> PlanesSegmenter:  # noqa: B008
        members = {plane: self._of(plane, self.method.slicer) for plane in self.planes}
        return PlanesSegmenter(self.fit_members(members, support, backbone, run))

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        members = [self._of(plane, self.method.slicer) for plane in self.planes]
        return tuple(work for member in members for work in member.work(support, backbone))

    @property
    def first_member(self) -> str:
        return self.planes[0]

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> PlanesSegmenter:
        return PlanesSegmenter(
            {
                plane: self._of(plane, slicer).restore(
                    labels, _in_plane(slicer, plane), backbone, below(plane, learned)
                )
                for plane in self.planes
            }
        )

    def _of(self, plane: str, slicer: Slicer) -> Method:
        return self.method.with_slicer(_in_plane(slicer, plane))


def _in_plane(slicer: Slicer, plane: str) -> Slicer:
    return dataclasses.replace(slicer, plane=plane)  # type: ignore[arg-type]


class PlanesSegmenter(VotingSegmenter):
    """One segmenter per plane."""

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the first plane's segmenter, for slices of the first plane."""
        logits: Tensor = self.voters[0](slices)
        return logits
