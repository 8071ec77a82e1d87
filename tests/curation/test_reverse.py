"""Reverse classification: which method it takes, which slices it uses, and what it says of right and wrong labels."""

from dataclasses import replace

import numpy as np
import pytest

import tiny_models
from handful.backbones.base import Backbone
from handful.curation.reverse import MOST_SLICES, ScoredSlices, reverse_dice, reverse_method
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.methods.base import Method
from handful.methods.fate.method import Fate
from handful.methods.nearest_slice import NearestSlice
from phantoms import LABELS, phantom


@pytest.fixture(scope="module")
def slicer() -> Slicer:
    return Slicer(plane="axial", window=(0.0, 400.0))


@pytest.mark.parametrize(("name", "kind"), [("auto", NearestSlice), ("nearest-slice", NearestSlice), ("fate", Fate)])
def test_the_method_has_the_slicer_of_the_model(name: str, kind: type[Method], backbone: Backbone, slicer: Slicer):
    method = reverse_method(name, backbone, slicer)
    assert isinstance(method, kind)
    assert method.slicer == slicer


def test_a_backbone_with_a_memory_is_used_by_fate_and_none_is_no_method(backbone: Backbone, slicer: Slicer):
    assert isinstance(reverse_method("auto", tiny_models.tiny_sam2_video(), slicer), Fate)
    assert reverse_method("none", backbone, slicer) is None


def test_the_truth_reaches_more_than_a_shifted_mask(backbone: Backbone, slicer: Slicer):
    method = NearestSlice(slicer=slicer)
    other, reference = phantom(1)
    scored = [ScoredSlices.of(view := slicer.view(other), view.of(reference.array), LABELS)]
    image, truth = phantom(0)
    shifted = replace(truth, array=np.ascontiguousarray(np.roll(truth.array, 8, axis=0)))
    right, wrong = (
        reverse_dice(method, backbone, image, prediction, LABELS, scored) for prediction in (truth, shifted)
    )
    assert set(right) == set(wrong) == {1, 3}
    assert all(right[value] > wrong[value] + 0.1 for value in right)


def test_a_label_that_no_support_case_holds_is_not_scored(backbone: Backbone, slicer: Slicer):
    other, reference = phantom(1)
    scored = [
        ScoredSlices.of(view := slicer.view(other), view.of(np.where(reference.array == 1, 0, reference.array)), LABELS)
    ]
    image, truth = phantom(0)
    assert set(reverse_dice(NearestSlice(slicer=slicer), backbone, image, truth, LABELS, scored)) == {3}


def tower(n: int) -> tuple[Volume, LabelMap]:
    """A column through the middle of many slices, widest in slice 33."""
    labels = np.zeros((16, 16, n), dtype=np.int16)
    labels[6:8, 6:8, 20 : n - 20] = 1
    labels[4:10, 4:10, 33] = 1
    geometry = Geometry(labels.shape, np.eye(4))
    image = np.random.default_rng(0).uniform(0, 400, (1, *labels.shape)).astype(np.float32)
    return Volume(image, geometry), LabelMap(labels, geometry, Labels((1,), ("column",)))


def test_many_slices_are_thinned_out_round_the_label_and_the_largest_area_stays(slicer: Slicer):
    image, truth = tower(120)
    view = slicer.view(image)
    chosen = ScoredSlices.of(view, view.of(truth.array), truth.labels)
    assert len(chosen.slices) == len(chosen.classes) <= MOST_SLICES
    areas = (chosen.classes == 1).sum(axis=(1, 2))
    assert areas.max() == 36
    assert areas.min() == 0


def test_unlabelled_slices_are_never_scored(slicer: Slicer):
    image, truth = tower(60)
    array = truth.array.copy()
    array[:, :, ::2] = IGNORE
    view = slicer.view(image)
    assert (ScoredSlices.of(view, view.of(array), truth.labels).classes != IGNORE).all()
