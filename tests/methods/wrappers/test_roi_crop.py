"""Methods that are shown a window round the labelled region."""

import dataclasses

import numpy as np
import pytest

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Volume
from handful.errors import SettingsError
from handful.methods.catalog import build_method, method_settings
from handful.methods.wrappers.roi_crop import RoiCropSegmenter
from phantoms import LABELS, phantom, phantom_case, support_set
from scores import mean_dice


def far_away(seed: int, margin: int = 36) -> tuple[Volume, LabelMap]:
    """A phantom somewhere in a field of view four times as wide, on the grid that this makes."""
    image, truth = phantom(seed)
    rng = np.random.default_rng(seed)
    before = rng.integers(margin - 4, margin + 4, size=2)
    ni, nj, nk = truth.array.shape
    pads = [(int(before[0]), 2 * margin - int(before[0])), (0, 0), (int(before[1]), 2 * margin - int(before[1]))]
    affine = truth.geometry.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [pads[0][0], 0, pads[2][0]]
    geometry = Geometry((ni + 2 * margin, nj, nk + 2 * margin), affine)
    noise = 40 + rng.normal(0, 9, geometry.shape).astype(np.float32)
    inside = (slice(pads[0][0], pads[0][0] + ni), slice(None), slice(pads[2][0], pads[2][0] + nk))
    noise[inside] = image.array[0]
    return (
        dataclasses.replace(image, array=noise[None], geometry=geometry),
        LabelMap(np.pad(truth.array, pads), geometry, LABELS),
    )


def far_support(n: int = 3) -> SupportSet:
    cases = [Case(f"far-{seed}", *far_away(seed), labels=LABELS, patient=f"patient-{seed}") for seed in range(n)]
    return SupportSet(tuple(cases), LABELS)


def test_small_organs_are_found_that_are_lost_in_the_whole_slice(handful_tiny: Backbone):
    image, truth = far_away(7)
    whole = build_method("fate", {}).fit(far_support(), handful_tiny).predict(image)
    closer = build_method("fate", {"roi_margin": 1.4}).fit(far_support(), handful_tiny).predict(image)
    assert mean_dice(closer, truth) > mean_dice(whole, truth) + 0.1
    assert mean_dice(closer, truth) > 0.6


def test_the_answer_lies_on_the_grid_of_the_whole_scan(handful_tiny: Backbone):
    image, _ = far_away(7)
    found = build_method("nearest-slice", {"roi_margin": 1.4}).fit(far_support(), handful_tiny).predict(image)
    assert found.geometry is image.geometry
    assert set(np.unique(found.array)) <= {0, *LABELS.values}


def test_the_window_holds_what_is_labelled_in_an_unseen_scan(handful_tiny: Backbone):
    segmenter = build_method("nearest-slice", {"roi_margin": 1.4}).fit(far_support(), handful_tiny)
    assert isinstance(segmenter, RoiCropSegmenter)
    image, truth = far_away(9)
    view = segmenter.slicer.view(image)
    window = segmenter.window(view)
    rows, columns = (np.flatnonzero((view.of(truth.array) > 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    assert window.top <= rows[0]
    assert rows[-1] < window.bottom
    assert window.left <= columns[0]
    assert columns[-1] < window.right
    assert max(window.sides) < 0.5 * max(view.size)


def test_the_support_is_learnt_from_windows_that_lie_where_they_lay(handful_tiny: Backbone):
    seen: list[SupportSet] = []

    @dataclasses.dataclass(frozen=True)
    class Watching(type(build_method("nearest-slice", {}))):
        def fit(self, support, backbone, run=None):
            seen.append(support)
            return super().fit(support, backbone)

    closer = build_method("nearest-slice", {"roi_margin": 1.2})
    dataclasses.replace(closer, method=Watching()).fit(far_support(1), handful_tiny)
    image, truth = far_away(0)
    [case] = seen[0].cases
    cut, labels = case.read_image(), case.read_reference()
    assert np.prod(cut.geometry.shape) < 0.3 * np.prod(image.geometry.shape)
    assert (labels.array > 0).sum() == (truth.array > 0).sum()
    for corner in np.ndindex(2, 2, 2):
        voxel = np.array(corner) * (np.array(cut.geometry.shape) - 1)
        world = cut.geometry.affine @ [*voxel, 1]
        there = np.linalg.solve(image.geometry.affine, world)[:3].round().astype(int)
        assert cut.array[(0, *voxel)] == image.array[(0, *there)]


def test_a_region_that_fills_the_slices_changes_nothing(handful_tiny: Backbone):
    image, _ = phantom(7)
    whole = build_method("nearest-slice", {}).fit(support_set(), handful_tiny).predict(image)
    closer = build_method("nearest-slice", {"roi_margin": 9}).fit(support_set(), handful_tiny).predict(image)
    assert np.array_equal(whole.array, closer.array)


def test_where_nothing_is_recognised_the_window_is_where_the_support_had_its_labels(handful_tiny: Backbone):
    empty = dataclasses.replace(phantom_case(1), name="empty")
    reference = empty.read_reference()
    nothing = dataclasses.replace(empty, reference=dataclasses.replace(reference, array=0 * reference.array))
    support = SupportSet((phantom_case(0), nothing), LABELS)
    segmenter = build_method("nearest-slice", {"roi_margin": 1.2}).fit(support, handful_tiny)
    assert isinstance(segmenter, RoiCropSegmenter)
    view = segmenter.slicer.view(empty.read_image())
    window = segmenter.window(view)
    assert 0 <= window.top < window.bottom <= view.size[0]


def test_a_picture_is_looked_at_in_shares_of_its_size(handful_tiny: Backbone):
    def picture(seed: int, side: int) -> Case:
        rng = np.random.default_rng(seed)
        geometry = Geometry((side, side, 1), np.eye(4), unit="pixel")
        at = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1) / side
        ball = (np.linalg.norm(at - [0.55, 0.4], axis=-1) < 0.1)[..., None]
        array = (40 + 150 * ball + rng.normal(0, 5, ball.shape)).clip(0, 255).astype(np.uint8)
        labels = LabelMap(np.where(ball, 1, 0) + 3 * np.roll(ball, side // 5, axis=0), geometry, LABELS)
        labels.array[labels.array == 4] = 1
        return Case(f"picture-{seed}", Volume(array[None], geometry), labels, LABELS)

    support = SupportSet((picture(0, 64), picture(1, 96)), LABELS)
    segmenter = build_method("nearest-slice", {"roi_margin": 1.2}).fit(support, handful_tiny)
    assert isinstance(segmenter, RoiCropSegmenter)
    sides = [max(segmenter.window(segmenter.slicer.view(picture(2, side).read_image())).sides) for side in (80, 160)]
    assert sides[1] == pytest.approx(2 * sides[0], abs=2)


def test_the_setting_is_one_of_every_method_and_comes_back():
    method = build_method("few-shot-prompts", {"roi_margin": "1.5", "views": 2})
    settings = method_settings(method)
    assert settings["roi_margin"] == 1.5
    assert settings["views"] == 2
    assert build_method("few-shot-prompts", settings) == method
    assert build_method("fate", {"roi_margin": "none"}) == build_method("fate", {})


@pytest.mark.parametrize("value", ["near", "0.5", "-1", "inf"])
def test_a_window_that_cannot_be_is_refused_with_what_was_said(value: str):
    with pytest.raises(SettingsError, match=value.rstrip("0") if value != "-1" else "-1"):
        build_method("fate", {"roi_margin": value})
