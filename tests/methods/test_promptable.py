"""Whoever is asked answers what is asked, where it is asked, and nothing else; prompts say what their masks say."""

import dataclasses

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import GeometryMismatch, SettingsError
from handful.methods.base import to_classes
from handful.methods.promptable import Prompted, SimulatedAnnotator, TransferredPrompts, as_prompts, thumbnails
from handful.methods.zero_shot import FrozenPromptable, ZeroShot
from handful.prompts.prompts import PADDING, Prompts
from phantoms import LABELS, phantom, support_set


@pytest.fixture(scope="module")
def promptable(handful_tiny: Backbone) -> FrozenPromptable:
    return ZeroShot().promptable(LABELS, handful_tiny)


def middle_slice(volume: Volume) -> torch.Tensor:
    return Slicer().cut(volume)[2:3]


def boxes_of(reference: LabelMap, volume: Volume) -> torch.Tensor:
    boxes = SimulatedAnnotator(reference, LABELS)(Slicer().view(volume)).boxes
    assert boxes is not None
    return boxes


def test_the_mask_follows_the_box(promptable: FrozenPromptable) -> None:
    image, reference = phantom(7)
    ball, egg = boxes_of(reference, image)[2]
    for first, second in ((ball, egg), (egg, ball)):
        logits = promptable(middle_slice(image), Prompts(boxes=torch.stack([first, second])[None]))
        for found, box in zip(logits[0] > 0, (first, second), strict=True):
            rows, columns = found.nonzero().float().mean(dim=0).tolist()
            assert box[0] <= columns <= box[2]
            assert box[1] <= rows <= box[3]


def test_the_mask_follows_the_point(handful_tiny: Backbone) -> None:
    image, reference = phantom(7)
    annotator = SimulatedAnnotator(reference, LABELS, "points-1")
    points = annotator(Slicer().view(image)).points
    assert points is not None
    asked = Prompts(points=points[2:3], point_labels=torch.ones(1, 2, 1, dtype=torch.int64))
    found = ZeroShot().promptable(LABELS, handful_tiny)(middle_slice(image), asked)[0] > 0
    for label, (x, y) in enumerate(points[2, :, 0].long().tolist()):
        assert found[label, y, x]
        assert not found[1 - label, y, x]


@pytest.mark.parametrize("box_crop", [False, True])
def test_a_label_without_a_box_stays_empty(box_crop: bool, handful_tiny: Backbone) -> None:
    image, reference = phantom(7)
    boxes = boxes_of(reference, image)[2:3]
    boxes[:, 1] = 0
    logits = ZeroShot(box_crop=box_crop).promptable(LABELS, handful_tiny)(middle_slice(image), Prompts(boxes=boxes))
    assert (logits[:, 0] > 0).any()
    assert (logits[:, 1] < -1000).all()


def test_a_label_without_a_point_stays_empty(promptable: FrozenPromptable) -> None:
    labels = torch.tensor([[[PADDING], [1]]])
    asked = Prompts(points=torch.full((1, 2, 1, 2), 12.0), point_labels=labels)
    assert (promptable(middle_slice(phantom(7)[0]), asked)[:, 0] < -1000).all()


def test_slices_without_any_prompt_stay_empty_and_all_others_are_segmented(promptable: FrozenPromptable) -> None:
    image, reference = phantom(7)
    boxes = boxes_of(reference, image)
    boxes[[0, 3]] = 0
    stack = Slicer().view(image)
    found = stack.of(promptable.predict(image, Prompts(boxes=boxes)).array)
    for number in range(len(stack)):
        for label, value in enumerate(LABELS.values):
            assert (found[number] == value).any() == bool(boxes[number, label].any())


def test_a_given_prompt_and_a_prompter_are_one_path(promptable: FrozenPromptable) -> None:
    image, reference = phantom(7)
    annotator = SimulatedAnnotator(reference, LABELS, jitter=0.1, seed=4)
    prompts = annotator(Slicer().view(image))
    given, read = promptable.predict(image, prompts), Prompted(promptable, annotator).predict(image)
    assert np.array_equal(given.array, read.array)
    assert given.array.any()


def test_prompts_for_other_slices_or_labels_are_refused(promptable: FrozenPromptable) -> None:
    image, _ = phantom(7)
    with pytest.raises(SettingsError, match="prompts for 5 slices, but there are 6"):
        promptable.predict(image, Prompts(boxes=torch.ones(5, 2, 4)))
    with pytest.raises(SettingsError, match=r"\(6, 3\), but there are \(6, 2\)"):
        promptable.predict(image, Prompts(boxes=torch.ones(6, 3, 4)))
    with pytest.raises(SettingsError, match="empty prompts"):
        promptable.predict(image, Prompts())


def test_slices_alone_are_segmented_as_in_the_stack(handful_tiny: Backbone) -> None:
    image, _ = phantom(7)
    segmenter = ZeroShot().fit(support_set(2), handful_tiny)
    stack = segmenter.slicer.view(image)
    with torch.inference_mode():
        classes = to_classes(segmenter(stack.cut(0, len(stack)))).numpy()
    assert np.array_equal(np.array([0, *LABELS.values])[classes], stack.of(segmenter.predict(image).array))


# The simulated annotator


def test_the_annotators_box_is_that_of_the_truth_up_to_the_slices_edge() -> None:
    image, reference = phantom(7)
    array = np.zeros_like(reference.array)
    stack = Slicer().view(image)
    stack.of(array)[1, 0:3, 4:28] = 3
    prompts = SimulatedAnnotator(dataclasses.replace(reference, array=array), LABELS)(stack)
    assert prompts.boxes is not None
    assert prompts.boxes[1, 1].tolist() == [4, 0, min(27, stack.size[1] - 1), 2]
    assert not prompts.boxes[1, 0].any()
    assert not prompts.boxes[[0, 2, 3, 4, 5]].any()


@pytest.mark.parametrize(("kind", "count"), [("points-1", 1), ("points-3", 3), ("points-5", 5)])
def test_the_annotators_points_lie_inside_their_labels(kind: str, count: int) -> None:
    image, reference = phantom(7)
    stack = Slicer().view(image)
    prompts = SimulatedAnnotator(reference, LABELS, kind)(stack)
    assert prompts.points is not None
    assert prompts.point_labels is not None
    assert prompts.points.shape == (6, 2, count, 2)
    truth = stack.of(reference.array)
    for n, k, p in torch.nonzero(prompts.point_labels == 1).tolist():
        x, y = prompts.points[n, k, p].long().tolist()
        assert truth[n, y, x] == LABELS.values[k]
    absent = torch.tensor([[not (one == value).any() for value in LABELS.values] for one in truth])
    assert absent.any()
    assert (prompts.point_labels[absent] == PADDING).all()


def test_the_annotators_jitter_has_the_given_size_and_is_the_same_for_one_seed() -> None:
    image, reference = phantom(7)
    stack = Slicer().view(image)
    exact, shaken, again, other = (
        SimulatedAnnotator(reference, LABELS, jitter=jitter, seed=seed)(stack).boxes
        for jitter, seed in ((0.0, 0), (0.2, 1), (0.2, 1), (0.2, 2))
    )
    assert torch.equal(shaken, again)
    assert not torch.equal(shaken, other)
    size = (exact[..., 2:] - exact[..., :2] + 1).repeat(1, 1, 2)
    off = (shaken - exact).abs()
    assert (off <= 0.2 * size + 1e-4).all()
    assert off.max() > 0.05


def test_a_annotator_of_another_scan_is_refused(promptable: FrozenPromptable) -> None:
    image, reference = phantom(7)
    affine = reference.geometry.affine.copy()
    affine[:3, 3] += 30
    elsewhere = dataclasses.replace(reference, geometry=dataclasses.replace(reference.geometry, affine=affine))
    with pytest.raises(GeometryMismatch, match="simulated annotator"):
        Prompted(promptable, SimulatedAnnotator(elsewhere, LABELS)).predict(image)


def test_the_annotator_prompts_for_the_segmenters_labels_only() -> None:
    image, reference = phantom(7)
    stack = Slicer().view(image)
    prompts = SimulatedAnnotator(reference, Labels((3, 9), ("egg", "none")))(stack)
    both = SimulatedAnnotator(reference, LABELS)(stack)
    assert prompts.boxes is not None
    assert both.boxes is not None
    assert torch.equal(prompts.boxes[:, 0], both.boxes[:, 1])
    assert not prompts.boxes[:, 1].any()


# Prompts carried over from labelled slices


def test_a_labelled_slice_gets_its_own_prompts() -> None:
    image, reference = phantom(1)
    stack = Slicer().view(image)
    carried = TransferredPrompts.of(support_set(3).slices(Slicer().resolve([image])), "box", 0)(stack)
    assert torch.equal(carried.boxes, boxes_of(reference, image))


def test_prompts_grow_with_the_slice() -> None:
    masks = torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    masks[..., 5:10, 12:18] = True
    looks, sizes = thumbnails(torch.rand(1, 1, 20, 30)), torch.tensor([[20, 30]])
    volume = Volume(np.random.default_rng(0).random((1, 90, 40, 1), np.float32), _flat((90, 40, 1)))
    rng = torch.Generator().manual_seed(0)
    stack = Slicer(plane="axial").view(volume)
    assert stack.size == (40, 90)
    boxes = TransferredPrompts(looks, sizes, as_prompts(masks, "box", 0.0, rng))(stack).boxes
    assert boxes is not None
    torch.testing.assert_close(boxes, torch.tensor([[[36.0, 10.0, 53.0, 19.0]]]))
    here = as_prompts(masks, "points-1", 0.0, rng).points
    there = TransferredPrompts(looks, sizes, as_prompts(masks, "points-1", 0.0, rng))(stack).points
    torch.testing.assert_close(there, (here + 0.5) * torch.tensor([3.0, 2.0]) - 0.5)


def test_brightness_and_contrast_of_a_slice_do_not_matter() -> None:
    slices = torch.rand(2, 1, 40, 40)
    torch.testing.assert_close(thumbnails(slices), thumbnails(0.3 * slices + 0.2), atol=1e-4, rtol=1e-4)
    assert thumbnails(torch.zeros(1, 1, 8, 8)).isfinite().all()


def _flat(shape: tuple[int, int, int]):  # type: ignore[no-untyped-def]
    geometry = phantom(0)[0].geometry
    return dataclasses.replace(geometry, shape=shape, affine=np.diag([-1.0, -1.0, -1.0, 1.0]))
