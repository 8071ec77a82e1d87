import dataclasses

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, Geometry, Volume
from handful.methods.nearest_slice import NearestSlice, signature
from phantoms import LABELS, phantom, support_set


@pytest.mark.parametrize("similarity", ["pixels", "embedding"])
def test_a_slice_of_the_support_gets_its_own_labels(similarity: str, sam: Backbone):
    image, reference = phantom(1)
    segmenter = NearestSlice(similarity=similarity).fit(support_set(3), sam)
    assert np.array_equal(segmenter.predict(image).array, reference.array)


def test_labels_are_stretched_onto_the_slice_without_new_values(sam: Backbone):
    segmenter = NearestSlice().fit(support_set(1), sam)
    slices = segmenter.slicer.cut(phantom(0)[0])
    logits = segmenter(torch.nn.functional.interpolate(slices, (50, 61)))
    assert logits.shape == (6, 2, 50, 61)
    assert set(logits.unique().tolist()) == {-10.0, 10.0}


def test_brightness_and_contrast_of_a_slice_do_not_matter(sam: Backbone):
    slices = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(signature(slices, sam, "pixels"), signature(slices * 0.3 + 0.2, sam, "pixels"), atol=1e-4)


def test_an_empty_slice_has_a_finite_signature(sam: Backbone):
    assert signature(torch.zeros(1, 1, 8, 8), sam, "pixels").isfinite().all()


def test_only_labelled_slices_are_copied_from(sam: Backbone):
    image, reference = phantom(0)
    valid_mask = np.full_like(reference.array, IGNORE)
    valid_mask[:, 2] = reference.array[:, 2]
    case = Case(name="one", image=image, reference=dataclasses.replace(reference, array=valid_mask), labels=LABELS)
    found = NearestSlice().fit(SupportSet((case,), LABELS), sam).predict(image)
    assert all(np.array_equal(found.array[:, j], reference.array[:, 2]) for j in range(6))


@pytest.mark.parametrize(("side", "most"), [(512, 8), (1024, 2), (1500, 1), (3000, 1)])
def test_of_large_slices_few_are_in_memory_at_once(sam: Backbone, side: int, most: int):
    segmenter = NearestSlice().fit(support_set(1), sam)
    voxels = np.broadcast_to(np.arange(side, dtype=np.int16), (1, 10, side, side)).transpose(0, 2, 3, 1)
    stack = segmenter.slicer.view(Volume(voxels, Geometry((side, side, 10), np.eye(4))))
    assert stack.size == (side, side)
    numbers, logits = next(iter(segmenter.logits_of(stack)))
    assert len(numbers) == len(logits) == most
