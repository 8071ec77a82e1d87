"""Several planes, one vote: any method, fitted on slices of each plane, and the label that most of them give a voxel.

As tri-planar networks do it (Prasoon et al., "Deep feature learning for knee cartilage segmentation using a triplanar
convolutional neural network", MICCAI 2013). For volumes with voxels about as high as they are wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.cases import SupportSet
from handful.data.slicing import Slicer
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, below
from handful.methods.wrappers.roi_crop import Closer
from handful.methods.wrappers.voting import VotingSegmenter

ALL = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Planes:
    """A method that looks at slices of several planes."""

    method: Method
    planes: tuple[str, ...]
    """Two or three of axial, coronal, sagittal; where their votes are equal, the plane named first decides."""

    def __post_init__(self) -> None:
        if len(self.planes) < 2 or len(set(self.planes)) < len(self.planes) or not set(self.planes) <= set(ALL):
            raise SettingsError(
                f"planes = {','.join(self.planes)}: name two or three of {', '.join(ALL)}, or set slicer.plane for one"
            )

    @property
    def slicer(self) -> Slicer:
        return dataclasses.replace(self.method.slicer, plane=self.planes[0])  # type: ignore[arg-type]

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> PlanesSegmenter:  # noqa: B008
        return PlanesSegmenter(
            self.planes, [self._of(plane).fit(support, backbone, run.part(plane)) for plane in self.planes]
        )

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> PlanesSegmenter:
        fitted = []
        for plane in self.planes:
            sliced = dataclasses.replace(slicer, plane=plane)  # type: ignore[arg-type]
            fitted.append(self._of(plane).restore(labels, sliced, backbone, below(plane, learned)))
        return PlanesSegmenter(self.planes, fitted)

    def _of(self, plane: str) -> Method:
        return _sliced(self.method, dataclasses.replace(self.method.slicer, plane=plane))  # type: ignore[arg-type]


def _sliced(method: Method, slicer: Slicer) -> Method:
    """The same method on slices that are cut otherwise."""
    if isinstance(method, Closer):
        return dataclasses.replace(method, method=_sliced(method.method, slicer))
    return dataclasses.replace(method, slicer=slicer)  # type: ignore[type-var]


class PlanesSegmenter(VotingSegmenter):
    """A segmenter a plane."""

    def __init__(self, planes: tuple[str, ...], fitted: list[Segmenter]) -> None:
        super().__init__(fitted[0].labels, fitted[0].slicer, fitted[0].backbone)
        self.planes = planes
        self.fitted = fitted

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits for slices of the first plane."""
        logits: Tensor = self.fitted[0](slices)
        return logits

    def learned(self) -> dict[str, Tensor]:
        pairs = zip(self.planes, self.fitted, strict=True)
        return {f"{plane}/{name}": tensor for plane, one in pairs for name, tensor in one.learned().items()}

    @property
    def voters(self) -> Sequence[Segmenter]:
        return self.fitted
