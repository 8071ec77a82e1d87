"""Nearest slice: each slice gets the labels of the most similar labelled slice. A lower bound for other methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import CHUNK, Held, Method, Segmenter, Work, labelled_slices
from handful.methods.learned import Learned
from handful.methods.promptable import SIDE, thumbnails

CELLS = 16
"""Width and height in cells to which feature maps are pooled before they are compared."""
CERTAIN = 10.0
"""Logit of a copied label."""


@dataclass(frozen=True, kw_only=True)
class NearestSlice(Method):
    """Copies the labels of the most similar labelled slice; needs no training."""

    when = "a baseline that every method should beat"
    minutes = "seconds"
    needs_whole_masks = True

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    similarity: Literal["pixels", "embedding"] = "pixels"
    """Basis of the comparison: 'pixels' compares thumbnails of the slices, 'embedding' the backbone's embeddings."""

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> NearestSliceSegmenter:  # noqa: B008
        support = support.with_whole_masks()
        slicer = self.resolved_slicer(support)
        signatures: list[Tensor] = []
        classes: list[Tensor] = []
        for labelled in support.slices(slicer):
            chunks = torch.split(labelled.slices.to(backbone.device), CHUNK)
            signatures += [signature(chunk, backbone, self.similarity) for chunk in chunks]
            classes.append(labelled.classes.to(backbone.device))
        return NearestSliceSegmenter(support.labels, slicer, backbone, self.similarity, torch.cat(signatures), classes)

    @property
    def keeps_pictures(self) -> bool:
        return True

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        encoded = labelled_slices(self, support) if self.similarity == "embedding" else 0
        return (Work.of(self, support, encoded=encoded),)

    def needs_backbone(self, learned: Mapping[str, Tensor]) -> bool:
        return self.similarity == "embedding"

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> NearestSliceSegmenter:
        features = (
            SIDE**2 if self.similarity == "pixels" else backbone.channels * min(CELLS, backbone.feature_side) ** 2
        )
        signatures = Learned(learned, p=features).floats("signatures", "s p")
        classes = [
            Learned(learned).whole(f"classes/{case}", "n h w", low=IGNORE, high=len(labels))
            for case in range(len(learned) - 1)
        ]
        if sum(map(len, classes)) != len(signatures):
            raise SettingsError(f"{len(signatures)} signatures for {sum(map(len, classes))} labelled slices")
        return NearestSliceSegmenter(labels, slicer, backbone, self.similarity, signatures, classes)


class NearestSliceSegmenter(Segmenter):
    """Signatures and class numbers of the labelled slices; `classes` has one tensor (n, h, w) per case."""

    signatures: Tensor

    def __init__(
        self,
        labels: Labels,
        slicer: Slicer,
        backbone: Backbone,
        similarity: Literal["pixels", "embedding"],
        signatures: Float[Tensor, "n s"],
        classes: list[Tensor],
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.similarity: Literal["pixels", "embedding"] = similarity
        self.register_buffer("signatures", signatures, persistent=False)
        self.classes = classes
        self.owner = [(case, row) for case, maps in enumerate(classes) for row in range(len(maps))]

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        signatures = signature(slices, self.backbone, self.similarity)
        nearest = torch.cdist(signatures, self.signatures).argmin(dim=1)
        copied = torch.cat([self._labels_of(int(row), tuple(slices.shape[-2:])) for row in nearest]).to(slices.device)
        values = torch.arange(1, len(self.labels) + 1, device=slices.device)[:, None, None]
        return torch.where(copied == values, CERTAIN, -CERTAIN).to(slices)

    @property
    def holds(self) -> frozenset[Held]:
        return frozenset({"masks", "pictures" if self.similarity == "pixels" else "embeddings"})

    def learned(self) -> dict[str, Tensor]:
        return {"signatures": self.signatures} | {f"classes/{case}": maps for case, maps in enumerate(self.classes)}

    def _labels_of(self, row: int, size: tuple[int, ...]) -> Float[Tensor, "1 1 h w"]:
        case, place = self.owner[row]
        return F.interpolate(self.classes[case][place][None, None].float(), size, mode="nearest-exact")


@torch.no_grad()
def signature(
    slices: Float[Tensor, "n c h w"], backbone: Backbone, similarity: Literal["pixels", "embedding"]
) -> Float[Tensor, "n s"]:
    """Features to compare slices by Euclidean distance, with zero mean and unit variance per slice."""
    if similarity == "pixels":
        return thumbnails(slices)
    features = backbone.encode(slices).main
    compared = F.adaptive_avg_pool2d(features, min(CELLS, features.shape[-1])).flatten(1)
    return (compared - compared.mean(dim=1, keepdim=True)) / compared.std(dim=1, keepdim=True).clamp_min(1e-6)
