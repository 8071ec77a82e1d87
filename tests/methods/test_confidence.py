"""How sure a segmenter is of the labels of its prediction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import tiny_models
from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import LabelMap
from handful.evaluation.metrics import overlap
from handful.methods.base import Method, Segmenter
from handful.methods.fate.method import Fate
from handful.methods.nearest_slice import NearestSlice
from handful.methods.unet.method import UNet
from handful.methods.volume_adapter.method import VolumeAdapter
from handful.methods.wrappers.planes import Planes
from handful.tuning.loop import TrainConfig
from phantoms import LABELS, phantom, support_set


@pytest.fixture(scope="module")
def support() -> SupportSet:
    return support_set(2)


def only_egg(truth: LabelMap) -> LabelMap:
    return replace(truth, array=np.where(truth.array == 1, 0, truth.array))


class Sure(Segmenter):
    """Says one logit of the first label everywhere, and that there is nothing else."""

    def __init__(self, backbone: Backbone, logit: float) -> None:
        super().__init__(LABELS, Slicer(), backbone)
        self.logit = logit

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        said = torch.full((len(slices), 2, *slices.shape[-2:]), -30.0)
        said[:, 0] = self.logit
        return said

    def learned(self) -> dict[str, Tensor]:
        return {}


def test_the_margin_is_how_far_a_label_is_above_the_background(sam: Backbone):
    image, truth = phantom(0)
    share = 1 / (1 + np.exp(-2.0))
    found = Sure(sam, 2.0).confidence(image, truth)
    assert found[1] == pytest.approx(2 * share - 1, abs=1e-5)
    assert found[3] == 0


@pytest.mark.parametrize(
    "method",
    [
        VolumeAdapter(depth=3, width=2, clicks=0, train=TrainConfig(iterations=4, learning_rate=1.0)),
        UNet(dims=3, depth=4, side=32, channels=2, train=TrainConfig(iterations=1, learning_rate=0.1)),
    ],
    ids=["volume-adapter", "3D U-Net"],
)
def test_slices_without_labels_are_context_for_their_neighbours(method: Method, support: SupportSet, sam: Backbone):
    segmenter = method.fit(support, sam)
    image, truth = phantom(7)
    view = segmenter.slicer.view(image)
    gaps = np.array(truth.array)
    view.of(gaps)[[1, 3]] = 0
    found = segmenter.confidence(image, replace(truth, array=gaps))
    shares = np.zeros((len(LABELS), *image.geometry.shape), dtype=np.float32)
    segmenter.add_probabilities(image, shares)
    shares = np.concatenate([1 - shares.sum(axis=0, keepdims=True), shares])
    for number, value in enumerate(LABELS.values, start=1):
        margins = np.maximum(shares[number] - np.delete(shares, number, axis=0).max(axis=0), 0)
        assert found[value] == pytest.approx(margins[gaps == value].mean(), rel=1e-3, abs=1e-5)


def test_fate_has_a_confidence_for_the_labels_that_are_there(support: SupportSet):
    fate = Fate().fit(support, tiny_models.tiny_sam2_video())
    image, truth = phantom(7)
    prediction = only_egg(truth)
    found = fate.confidence(image, prediction)
    assert set(found) == {3}
    _, said = fate.predict_explained(image)
    areas = torch.from_numpy((fate.slicer.view(image).of(prediction.array) == 3).sum(axis=(1, 2))).double()
    dice = torch.nan_to_num(2 * said.iou / (1 + said.iou) * said.object_score.sigmoid()).double()[:, 1]
    assert found[3] == pytest.approx(float((areas * dice).sum() / areas.sum()))


def test_voters_are_as_sure_of_a_label_as_they_agree_with_it(support: SupportSet, sam: Backbone):
    planes = Planes(NearestSlice(), ("axial", "coronal", "sagittal")).fit(support, sam)
    image, truth = phantom(7)
    prediction = only_egg(truth)
    found = planes.confidence(image, prediction)
    assert set(found) == {3}
    dice = [overlap(one.predict(image).array == 3, truth.array == 3).dice for one in planes.voters]
    assert len(set(dice)) == 3
    assert found[3] == pytest.approx(np.mean(dice))
