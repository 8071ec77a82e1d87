"""Methods that are shown a window round the labelled region."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_models
from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import build_method, method_settings
from handful.methods.fate.method import Fate
from handful.methods.wrappers.roi_crop import RoiCrop, RoiCropSegmenter
from handful.methods.wrappers.roi_place import Locator
from handful.methods.wrappers.roi_window import Region, Windows, region_of
from handful.methods.zero_shot import ZeroShot
from phantoms import LABELS, phantom, phantom_case, support_set
from scores import mean_dice
from whole import build_whole


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
    whole = build_whole("fate", {"roi_margin": "none"}).fit(far_support(), handful_tiny).predict(image)
    cropped = build_whole("fate", {"roi_margin": 1.4}).fit(far_support(), handful_tiny).predict(image)
    assert mean_dice(cropped, truth) > mean_dice(whole, truth) + 0.1
    assert mean_dice(cropped, truth) > 0.6


def test_the_prediction_lies_on_the_grid_of_the_whole_scan(handful_tiny: Backbone):
    image, _ = far_away(7)
    found = build_whole("nearest-slice", {"roi_margin": 1.4}).fit(far_support(), handful_tiny).predict(image)
    assert found.geometry is image.geometry
    assert set(np.unique(found.array)) <= {0, *LABELS.values}


def test_the_window_holds_what_is_labelled_in_an_unseen_scan(handful_tiny: Backbone):
    segmenter = build_whole("nearest-slice", {"roi_margin": 1.4}).fit(far_support(), handful_tiny)
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
    class Watching(type(build_whole("nearest-slice", {"roi_margin": "none"}))):
        def fit(self, support, backbone, run=None):
            seen.append(support)
            return super().fit(support, backbone)

    cropped = build_whole("nearest-slice", {"roi_margin": 1.2})
    dataclasses.replace(cropped, method=Watching()).fit(far_support(1), handful_tiny)
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
    whole = build_whole("nearest-slice", {"roi_margin": "none"}).fit(support_set(), handful_tiny).predict(image)
    cropped = build_whole("nearest-slice", {"roi_margin": 9}).fit(support_set(), handful_tiny).predict(image)
    assert np.array_equal(whole.array, cropped.array)


def test_where_nothing_is_recognised_the_window_is_where_the_support_had_its_labels(handful_tiny: Backbone):
    empty = dataclasses.replace(phantom_case(1), name="empty")
    reference = empty.read_reference()
    nothing = dataclasses.replace(empty, reference=dataclasses.replace(reference, array=0 * reference.array))
    support = SupportSet((phantom_case(0), nothing), LABELS)
    segmenter = build_whole("nearest-slice", {"roi_margin": 1.2}).fit(support, handful_tiny)
    assert isinstance(segmenter, RoiCropSegmenter)
    view = segmenter.slicer.view(empty.read_image())
    window = segmenter.window(view)
    assert 0 <= window.top < window.bottom <= view.size[0]


def test_windows_of_pictures_are_fractions_of_their_size(handful_tiny: Backbone):
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
    segmenter = build_whole("nearest-slice", {"roi_margin": 1.2}).fit(support, handful_tiny)
    assert isinstance(segmenter, RoiCropSegmenter)
    sides = [max(segmenter.window(segmenter.slicer.view(picture(2, side).read_image())).sides) for side in (80, 160)]
    assert sides[1] == pytest.approx(2 * sides[0], abs=2)


def test_the_setting_is_one_of_every_method_and_comes_back():
    method = build_whole("few-shot-prompts", {"roi_margin": "1.5", "views": 2})
    settings = method_settings(method)
    assert settings["roi_margin"] == 1.5
    assert settings["views"] == 2
    assert build_whole("few-shot-prompts", settings) == method
    assert build_whole("fate", {"roi_margin": "none"}) == Fate()
    assert method_settings(build_method("fate", {}))["roi_margin"] == "auto"
    assert method_settings(Fate())["roi_margin"] == "none"


@pytest.mark.parametrize("value", ["near", "0.5", "-1", "inf"])
def test_an_invalid_window_is_refused_with_its_value(value: str):
    with pytest.raises(SettingsError, match=value.rstrip("0") if value != "-1" else "-1"):
        build_whole("fate", {"roi_margin": value})


def ball_case(name: str, middle: tuple[int, int], radius: int = 8, side: int = 96) -> Case:
    """A bright ball in a dark field of 96 × 96 × 3 voxels of 1 mm, labelled."""
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    ball = np.linalg.norm(at - np.array(middle), axis=-1) < radius
    rng = np.random.default_rng(sum(middle))
    image = np.where(ball, 200, 40)[..., None] + rng.normal(0, 4, (side, side, 3))
    labels = Labels((1,), ("ball",))
    geometry = Geometry((side, side, 3), np.diag([1.0, 1.0, 5.0, 1.0]))
    volume = Volume(image.astype(np.float32)[None], geometry)
    return Case(
        name, volume, LabelMap(np.repeat(ball[..., None], 3, axis=2).astype(np.int16), geometry, labels), labels
    )


def balls(*middles: tuple[int, int], radius: int = 8) -> SupportSet:
    cases = [ball_case(f"ball-{number}", middle, radius) for number, middle in enumerate(middles)]
    return SupportSet(tuple(cases), Labels((1,), ("ball",)))


@dataclasses.dataclass(frozen=True)
class Bright(Method):
    """Whatever is bright: a method whose right answer is known inside any window."""

    slicer: Slicer = Slicer(window=(0.0, 255.0))

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> Segmenter:  # noqa: B008
        return BrightSegmenter(support.labels, support.resolve(self.slicer), backbone)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> Segmenter:
        return BrightSegmenter(labels, slicer, backbone)


class BrightSegmenter(Segmenter):
    def forward(self, slices: Tensor) -> Tensor:
        return 100 * (slices[:, :1] - 0.5)

    def learned(self) -> dict[str, Tensor]:
        return {}


def decided(support: SupportSet) -> str:
    fitted = RoiCrop(Bright()).fit(support, tiny_models.tiny_sam())
    return " ".join(fitted.decisions)


def test_small_organs_at_one_place_are_cropped_to():
    assert "crop to 1.4 times the labelled region, which spans 16% of a slice" in decided(
        balls((40, 40), (42, 41), (41, 38))
    )


def test_organs_are_cropped_to_wherever_they_lie():
    support = balls((12, 12), (80, 80), (12, 80), (80, 12))
    fitted = RoiCrop(Bright()).fit(support, tiny_models.tiny_sam())
    assert fitted.decisions[0].startswith("crop to 1.4 times")
    case = ball_case("elsewhere", (46, 60))
    view = fitted.slicer.view(case.read_image())
    window = fitted.window(view)
    assert window.holds(region_of(view, case.read_reference()))
    assert max(window.sides) < 30
    assert np.hypot(*np.subtract(window.middle, region_of(view, case.read_reference()).middle)) < 5


def test_the_crop_has_room_for_the_largest_organ():
    cases = [ball_case("small", (40, 40), 6), ball_case("large", (42, 41), 12), ball_case("middle", (41, 38), 8)]
    fitted = RoiCrop(Bright()).fit(SupportSet(tuple(cases), Labels((1,), ("ball",))), tiny_models.tiny_sam())
    assert fitted.decisions[0].startswith("crop to 1.4 times")
    assert max(fitted.window(fitted.slicer.view(cases[0].read_image())).sides) == round(1.4 * 23)


def test_what_does_not_show_in_the_image_is_not_cropped_to():
    middles = [(12, 12), (80, 80), (12, 80), (80, 12)]
    shown = [ball_case(f"ball-{number}", middle) for number, middle in enumerate(middles)]
    hidden = [
        dataclasses.replace(case, reference=other.read_reference())
        for case, other in zip(shown, [*shown[1:], shown[0]], strict=True)
    ]
    assert "is not found in every case left out" in decided(SupportSet(tuple(hidden), Labels((1,), ("ball",))))


def test_cases_of_one_patient_are_left_out_together():
    """Two scans of a patient look alike, which says nothing of the next patient."""
    labels = Labels((1,), ("ball",))
    cases = [ball_case(f"ball-{number}", (20 + 9 * number, 40)) for number in range(4)]
    for number in (2, 3):  # the labelled ball is striped, and there is a bright one that is not labelled
        image = cases[number].read_image()
        striped = image.array.copy()
        striped[:, ::2][np.repeat((image.array > 120)[:, ::2], 1, axis=0)] = 0
        striped = np.maximum(striped, np.roll(image.array, 35, axis=2))
        cases[number] = dataclasses.replace(cases[number], image=dataclasses.replace(image, array=striped))
    of_three = [dataclasses.replace(case, patient=patient) for case, patient in zip(cases, "abcc", strict=True)]
    assert decided(SupportSet(tuple(cases), labels)).startswith("crop to ")
    assert "is not found in every case left out" in decided(SupportSet(tuple(of_three), labels))


def test_the_cases_of_a_single_patient_are_cropped_to_with_more_room():
    cases = [dataclasses.replace(ball_case(f"ball-{n}", (40 + n, 40)), patient="a") for n in range(3)]
    assert decided(SupportSet(tuple(cases), Labels((1,), ("ball",)))).startswith("crop to 2 times")


def test_of_many_cases_twenty_are_left_out():
    middles = [(30 + 2 * number, 40) for number in range(22)]
    assert "each of 20 labelled cases, left out in turn" in decided(balls(*middles))


def without_labels(case: Case) -> Case:
    """The case with an empty reference."""
    reference = case.read_reference()
    return dataclasses.replace(
        case, reference=dataclasses.replace(reference, array=np.zeros_like(reference.array)), labels=reference.labels
    )


@pytest.mark.parametrize(
    ("middles", "decision"),
    [
        (
            [(40, 40), (42, 41), (41, 38)],
            "crop to 1.4 times the labelled region, which spans 16% of a slice: each labelled case",
        ),
        ([(40, 40)], "crop to 2 times the labelled region, which spans 16% of a slice: each labelled slice"),
    ],
)
def test_a_case_without_labels_does_not_count_where_the_crop_is_chosen(middles: list[tuple[int, int]], decision: str):
    empty = without_labels(ball_case("empty", (70, 20)))
    support = SupportSet((*balls(*middles).cases, empty), Labels((1,), ("ball",)))
    fitted = RoiCrop(Bright()).fit(support, tiny_models.tiny_sam())
    assert fitted.decisions[0].startswith(decision)
    case = ball_case("other", (43, 40))
    assert fitted.window(fitted.slicer.view(case.read_image())).holds(
        region_of(fitted.slicer.view(case.read_image()), case.read_reference())
    )


def test_a_case_without_labels_is_cropped_where_the_others_have_theirs():
    empty = without_labels(ball_case("empty", (70, 20)))
    support = SupportSet((*balls((30, 40), (34, 40)).cases, empty), Labels((1,), ("ball",)))
    slicer = support.resolve(Slicer())
    cropped, cropper = RoiCrop(Bright())._cropped(support, slicer, 1.4)
    first, second, third = (cropper.windows.of_case(facts, slicer) for facts in support.facts)
    assert cropped.cases[2].read_image().geometry.shape == cropped.cases[0].read_image().geometry.shape
    assert np.abs(np.subtract(third.middle, np.add(first.middle, second.middle) / 2)).max() < 1


def test_a_region_that_is_most_of_a_slice_is_not_cropped_to():
    assert decided(balls((48, 48), (47, 48), radius=30)) == "no crop: the labelled region spans 61% of a slice"


def test_one_case_is_cropped_to_with_more_room():
    assert decided(balls((40, 40))).startswith("crop to 2 times")


def test_a_single_labelled_picture_is_not_cropped_to():
    case = ball_case("one", (40, 40))
    volume, reference = case.read_image(), case.read_reference()
    geometry = Geometry((96, 96, 1), volume.geometry.affine)
    one = Case(
        "one",
        dataclasses.replace(volume, array=volume.array[..., :1], geometry=geometry),
        dataclasses.replace(reference, array=reference.array[..., :1], geometry=geometry),
        reference.labels,
    )
    assert decided(SupportSet((one,), reference.labels)).startswith("no crop: a single labelled slice")


@dataclasses.dataclass(frozen=True, eq=False)
class AtOnePlace(Locator):
    """Finds all regions at voxel (40, 40), wherever they lie."""

    def __call__(self, stack: SliceView) -> np.ndarray:
        marked = np.zeros(stack.volume.geometry.shape)
        marked[40, 40] = 1
        return stack.of(marked)[0]


def placed_wrongly() -> RoiCropSegmenter:
    fitted = RoiCrop(Bright(), 1.4).fit(balls((40, 40), (41, 40)), tiny_models.tiny_sam())
    locator = AtOnePlace(fitted.cropper.locator.moments)
    fitted.cropper = dataclasses.replace(fitted.cropper, locator=locator)
    return fitted


def test_an_organ_that_reaches_the_rim_widens_the_window_on_that_side():
    case = ball_case("elsewhere", (52, 48))
    fixed = placed_wrongly()
    window = fixed.window(fixed.slicer.view(case.read_image()))
    assert not window.holds(region_of(fixed.slicer.view(case.read_image()), case.read_reference()))
    assert np.array_equal(fixed.predict(case.read_image()).array, case.read_reference().array)


def test_a_false_positive_at_the_rim_does_not_lead_away_from_the_organ():
    case = ball_case("bright spot", (40, 40))
    volume, truth = case.read_image(), case.read_reference()
    pixels = volume.array.copy()
    pixels[:, 27:30, 27:60] = 200  # a bright strip that runs out of the window
    fixed = placed_wrongly()
    changed = dataclasses.replace(volume, array=pixels)
    found = fixed.predict(changed).array
    assert found[truth.array == 1].all()
    found[fixed.window(fixed.slicer.view(changed)).block] = 0
    assert not found.any(), "the window is still the first one"


def test_an_organ_that_fills_the_window_widens_it_on_all_sides():
    case = ball_case("larger", (40, 40), radius=20)
    fixed = RoiCrop(Bright(), 1.4).fit(balls((40, 40), (41, 40)), tiny_models.tiny_sam())
    assert np.array_equal(fixed.predict(case.read_image()).array, case.read_reference().array)


def test_without_a_crop_it_predicts_as_the_method_itself(handful_tiny: Backbone):
    image, _ = phantom(7)
    alone = build_whole("fate", {"roi_margin": "none"}).fit(support_set(), handful_tiny)
    auto = build_whole("fate", {"roi_margin": "auto"}).fit(support_set(), handful_tiny)
    assert auto.decisions == ("no crop: the labelled region spans 82% of a slice",)
    assert np.array_equal(auto.predict(image).array, alone.predict(image).array)
    assert auto.confidence(image, auto.predict(image)) == alone.confidence(image, alone.predict(image))
    again = build_whole("fate", {"roi_margin": "auto"}).restore(LABELS, auto.slicer, handful_tiny, auto.learned())
    assert np.array_equal(again.predict(image).array, alone.predict(image).array)


@pytest.mark.parametrize("margin", [None, 1.4])
def test_a_model_of_whole_slices_takes_the_prompts_of_its_method_one_of_crops_takes_none(
    margin: float | None, handful_tiny: Backbone
):
    method = ZeroShot(box_crop=True)
    crop = RoiCrop(method) if margin is None else RoiCrop(method, margin)
    segmenter = crop.fit(support_set(2), handful_tiny)
    assert isinstance(segmenter, RoiCropSegmenter)
    assert (segmenter.cropper is None) == (margin is None)
    promptable = segmenter.promptable()
    assert (promptable is None) == (margin is not None)
    assert promptable is None or promptable.encoder is None  # each box is cropped to and encoded


def test_reasons_confidence_and_corrections_reach_the_method_inside_the_crop(handful_tiny: Backbone):
    image, truth = far_away(7)
    segmenter = build_whole("fate", {"roi_margin": "auto"}).fit(far_support(), handful_tiny)
    explained = segmenter.predict_explained(image)
    assert np.array_equal(explained.label_map.array, segmenter.predict(image).array)
    sure = segmenter.confidence(image, explained.label_map, explained.reasons)
    assert set(sure) == set(np.unique(explained.label_map.array)) - {0}
    case, number = explained.reasons.retrieved[3][0]
    assert segmenter.support_picture(case, number).case == case
    own = SupportSet((Case("own", image, truth, LABELS),), LABELS)
    extended = segmenter.extend(own).predict_explained(image)
    assert ("own", 3) in extended.reasons.retrieved[3]
    assert mean_dice(extended.label_map, truth) > 0.95


def test_a_model_whose_crop_was_placed_by_thumbnails_is_refused_with_the_reason():
    method = RoiCrop(Bright(), 1.4)
    fitted = method.fit(balls((40, 40), (41, 40)), tiny_models.tiny_sam())
    earlier = fitted.learned() | {"where/thumbnails": torch.zeros(6, 1024)}
    with pytest.raises(SettingsError, match="fit again"):
        method.restore(fitted.labels, fitted.slicer, fitted.backbone, earlier)


def test_pixel_sizes_that_contradict_the_labels_are_not_used():
    def region(edge: int, side: int, spacing: float) -> Region:
        geometry = Geometry((edge, edge, 4), np.diag([spacing, spacing, 5.0, 1.0]))
        return Region(Slicer(plane="axial").grid(geometry), 10, 10, 10 + side, 10 + side)

    alike_in_mm = [region(100, 50, 1.0), region(400, 100, 0.5)]
    alike_as_shares = [region(100, 30, 1.5), region(300, 90, 1.5)]
    assert Windows.of(alike_in_mm, 2.0).sides(alike_in_mm[1].grid) == (200, 200)
    wrong = Windows.of(alike_as_shares, 2.0)
    assert [wrong.sides(one.grid) for one in alike_as_shares] == [(60, 60), (180, 180)]
