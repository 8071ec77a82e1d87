"""How far two predictions of a scan lie apart."""

from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.checkpoint.model import load
from handful.curation.disagreement import SegmentedCase
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.methods.base import Segmenter
from phantoms import phantom

SIZE = 40
KNOWN = Labels((1, 2), ("square", "nothing"))
GRID = Geometry((SIZE, SIZE, 1), np.eye(4), unit="pixel")


def picture(kind: type = np.float32) -> Volume:
    values = np.random.default_rng(0).uniform(0, 100, (1, SIZE, SIZE, 1))
    return Volume(values.astype(kind), GRID)


class Drawing(Segmenter):
    """Predicts the masks it was given, one for each call, whatever the volume."""

    def __init__(self, backbone: Backbone, *masks: np.ndarray) -> None:
        super().__init__(KNOWN, Slicer(window=(0.0, 100.0)), backbone)
        self.masks = list(masks)
        self.volumes: list[Volume] = []

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        raise NotImplementedError

    def learned(self) -> dict[str, Tensor]:
        return {}

    def predict(self, volume: Volume) -> LabelMap:
        self.volumes.append(volume)
        return LabelMap(self.masks[len(self.volumes) - 1], GRID, KNOWN)


def square(start: int, side: int = 10) -> np.ndarray:
    """As an array (i, j, 1)."""
    made = np.zeros((SIZE, SIZE, 1), dtype=np.int16)
    made[start : start + side, start : start + side] = 1
    return made


def segmented(backbone: Backbone, *masks: np.ndarray) -> tuple[SegmentedCase, Drawing]:
    segmenter = Drawing(backbone, *masks)
    image = picture()
    return SegmentedCase.of(segmenter, image, segmenter.slicer.view(image)), segmenter


def moved(backbone: Backbone, mask: np.ndarray) -> np.ndarray:
    """The mask where the altered scan has it: one pixel down and to the right in the slice."""
    view = Slicer().view(picture())
    out = np.zeros_like(mask)
    view.of(out)[:, 1:, 1:] = view.of(mask)[:, :-1, :-1]
    return out


def test_a_prediction_that_moves_with_the_scan_contradicts_nothing(backbone: Backbone):
    found, _ = segmented(backbone, square(10), moved(backbone, square(10)))
    assert found.disagreement.tolist() == [0.0]


def test_two_masks_apart_contradict_each_other_up_to_the_steadying_share(backbone: Backbone):
    found, _ = segmented(backbone, square(4), moved(backbone, square(24)))
    assert found.distances[0, 0] == pytest.approx(200 / (200 + 0.25 * 200))
    assert found.worst([0]) == "square"


def test_a_label_that_neither_prediction_holds_does_not_count(backbone: Backbone):
    found, _ = segmented(backbone, square(4), moved(backbone, square(24)))
    assert np.isnan(found.distances[0, 1])
    assert found.disagreement[0] == found.distances[0, 0]
    nothing, _ = segmented(backbone, 0 * square(4), 0 * square(4))
    assert nothing.disagreement.tolist() == [0.0]


def test_the_first_prediction_is_kept_as_it_was(backbone: Backbone):
    found, segmenter = segmented(backbone, square(7), 0 * square(7))
    np.testing.assert_array_equal(found.predicted(0), segmenter.slicer.view(picture()).of(square(7))[0])


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.int16])
def test_the_altered_scan_keeps_its_type_and_what_lies_outside_the_window(kind: type, backbone: Backbone):
    image = picture(kind)
    image.array[0, 20] = 120 if kind is np.uint8 else 500
    segmenter = Drawing(backbone, square(5), square(5))
    SegmentedCase.of(segmenter, image, segmenter.slicer.view(image))
    altered = segmenter.volumes[1].array
    assert altered.dtype == image.array.dtype
    assert (altered == image.array.max()).sum() == SIZE
    inside = altered[altered <= 100].astype(float)
    assert inside.mean() > image.array[image.array <= 100].astype(float).mean()


def test_the_prediction_of_the_unaltered_scan_is_kept(model: Path):
    segmenter = load(model)
    image, _ = phantom(5)
    view = segmenter.slicer.view(image)
    found = SegmentedCase.of(segmenter, image, view)
    expected = view.of(segmenter.predict(image).array)
    for number in range(len(view)):
        np.testing.assert_array_equal(found.predicted(number), expected[number])
    assert found.disagreement.shape == (len(view),)
    assert found.disagreement.max() > 0
