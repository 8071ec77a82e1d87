"""Methods that look at slices of several planes and vote."""

import dataclasses

import numpy as np
import pytest
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.data.volume import LabelMap, Volume
from handful.errors import SettingsError
from handful.methods.base import Segmenter
from handful.methods.catalog import build_method, method_settings
from handful.methods.wrappers.planes import PlanesSegmenter
from phantoms import phantom, support_set
from whole import build_whole

THREE = {"planes": "axial,coronal,sagittal"}


class Saying(Segmenter):
    """Says the same of every volume."""

    def __init__(self, like: Segmenter, array: np.ndarray) -> None:
        super().__init__(like.labels, like.slicer, like.backbone)
        self.array = array

    def forward(self, slices: Tensor) -> Tensor:
        raise AssertionError

    def learned(self) -> dict[str, Tensor]:
        return {}

    def predict(self, volume: Volume) -> LabelMap:
        return LabelMap(self.array, volume.geometry, self.labels)


def fitted(backbone: Backbone, planes: str = THREE["planes"]) -> PlanesSegmenter:
    segmenter = build_whole("nearest-slice", {"planes": planes}).fit(support_set(2), backbone)
    assert isinstance(segmenter, PlanesSegmenter)
    return segmenter


def test_each_plane_is_cut_its_own_way(sam: Backbone):
    assert [one.slicer.plane for one in fitted(sam).voters] == ["axial", "coronal", "sagittal"]


def test_the_label_with_most_votes_wins_and_the_first_plane_breaks_ties(sam: Backbone):
    segmenter = fitted(sam)
    image, _ = phantom(7)
    votes = [np.zeros(image.geometry.shape, dtype=np.int16) for _ in range(3)]
    cases = {0: (1, 1, 3), 1: (1, 3, 3), 2: (3, 1, 1), 3: (1, 3, 0), 4: (0, 3, 3), 5: (3, 0, 1)}
    for voxel, said in cases.items():
        for array, value in zip(votes, said, strict=True):
            array[voxel, 0, 0] = value
    segmenter.fitted = nn.ModuleDict({str(place): Saying(segmenter, array) for place, array in enumerate(votes)})
    found = segmenter.predict(image).array
    assert [int(found[voxel, 0, 0]) for voxel in cases] == [1, 3, 1, 1, 3, 3]
    assert not found[6:].any()


def test_planes_and_roi_margin_come_back_from_settings():
    method = build_whole("fate", THREE | {"roi_margin": 1.5, "top_k": 3})
    assert build_method("fate", method_settings(method)) == method
    assert dataclasses.replace(method, planes=("axial", "coronal")) != method


@pytest.mark.parametrize("planes", ["axial", "axial,axial", "axial,oblique"])
def test_planes_that_cannot_vote_are_refused_with_their_value(planes: str):
    with pytest.raises(SettingsError, match=planes):
        build_whole("fate", {"planes": planes})
