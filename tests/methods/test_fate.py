"""FATE's propagation through a stack, on random SAM 2s with a positive object score, and its accuracy on handful-tiny.

Grey values are windowed by fixed numbers, so that changing one slice changes no other.
"""

import copy
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.methods.fate.method import Fate, FateSegmenter, SliceConfidence
from handful.methods.fate.recall import Neighbour, SlicePredictions
from handful.synthesis.episodes import phantom_cohort
from phantoms import LABELS, phantom, phantom_case, support_set
from whole import build_whole

PLAIN = Slicer(plane="axial", window=(0.0, 400.0))


@pytest.fixture(scope="module")
def video() -> MemoryBackbone:
    """A random SAM 2 that believes each object to be there, as far as its memory does not forbid it."""
    backbone = tiny_models.tiny_sam2_video(side=64)
    with torch.no_grad():
        backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3.0)
    return backbone


def fitted(video: Backbone, support: SupportSet | None = None, **settings: object) -> FateSegmenter:
    method = build_whole("fate", settings)
    assert isinstance(method, Fate)
    return dataclasses.replace(method, slicer=PLAIN).fit(support or support_set(2), video)


def answered(segmenter: FateSegmenter, volume: Volume) -> SliceConfidence:
    """Confidence says more than a label map of random weights does: it feels every change of a mask or a memory."""
    confidence = segmenter.predict_explained(volume)[1]
    assert (confidence.object_score > 0).any()
    return confidence


def changed(volume: Volume, number: int) -> Volume:
    """The volume with another slice of that number, upside down and darker."""
    array = volume.array.copy()
    slices = PLAIN.view(Volume(array, volume.geometry)).of(array[0])
    slices[number] = 0.8 * slices[number, ::-1]
    return dataclasses.replace(volume, array=array)


def mirrored(volume: Volume) -> Volume:
    """The volume with its slices in reverse order, on the same grid."""
    array = volume.array.copy()
    slices = PLAIN.view(Volume(array, volume.geometry)).of(array[0])
    slices[:] = slices[::-1].copy()
    return dataclasses.replace(volume, array=array)


def odd(volume: Volume) -> Volume:
    """The first five slices, so that there is one in the middle."""
    array = volume.array[:, :, :5]
    return Volume(array, dataclasses.replace(volume.geometry, shape=array.shape[1:]))


def same(a: torch.Tensor, b: torch.Tensor, atol: float = 0.0) -> bool:
    return torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True)


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Slices of each call of the image encoder meanwhile."""
    sizes: list[int] = []
    hook = backbone.image_encoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def banded(seed: int) -> Case:
    """Five slices of their own grey pattern; the ball is in the first three, the egg in the last alone."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 400, (24, 5, 28)).astype(np.float32)
    labels = np.zeros(image.shape, dtype=np.int16)
    labels[4:12, :3, 4:12] = 1
    labels[12:20, 4, 10:22] = 3
    geometry = dataclasses.replace(phantom(0)[0].geometry, shape=image.shape)
    return Case(f"banded-{seed}", Volume(image[None], geometry), LabelMap(labels, geometry, LABELS), LABELS)


def driven_by_hand(segmenter: FateSegmenter, case: Case) -> torch.Tensor:
    """Object scores (n, k) of the case's own slices, one label after the other, by the backbone's verbs alone.

    Every slice is a support of every slice; the middle is answered first, then down, then up; window 6.
    """
    backbone, view = segmenter.backbone, PLAIN.view(case.image)
    image = backbone.encode(view.cut(0, 5)).to(torch.float16).to(torch.float32)
    scores = torch.full((5, 2), torch.nan)
    for column, value in enumerate(LABELS.values):
        masks = torch.from_numpy((view.of(case.reference.array) == value).astype(np.float32))
        held = [i for i in range(5) if masks[i].any()]
        valid_mask = Memory.cat([backbone.memorize(image[i], masks[[i]]) for i in held])
        valid_mask = dataclasses.replace(
            valid_mask, spatial=valid_mask.spatial.half().float(), pointers=valid_mask.pointers.half().float()
        )
        left: dict[int, Memory] = {}
        for here in (2, 1, 0, 3, 4):
            near = [
                dataclasses.replace(memory, distance=(abs(here - there),), pointer_distance=(abs(here - there),))
                for there, memory in left.items()
            ]
            prediction = backbone.decode_recalled(backbone.recall(image[here], Memory.cat([valid_mask, *near])))
            left[here] = backbone.remember(image[here], prediction, distance=1)
            scores[here, column] = prediction.object_score[0, 0]
    return scores


@torch.inference_mode()
def test_a_model_that_is_moved_to_another_device_takes_its_thresholds_along(video: MemoryBackbone) -> None:
    recall = fitted(copy.deepcopy(video)).to("meta")._recall
    assert recall._thresholds([0]).device == recall.bank.rows.device == torch.device("meta")


def test_the_walk_is_what_the_backbones_verbs_give_by_hand(video: MemoryBackbone):
    case = banded(0)
    segmenter = fitted(video, SupportSet((case,), LABELS), window=6, top_k=5)
    expected = driven_by_hand(segmenter, case)
    assert same(answered(segmenter, case.image).object_score, expected, 1e-4)


def test_the_order_of_the_supports_does_not_matter(video: MemoryBackbone):
    image, _ = phantom(7)
    some = support_set(2)
    turned = dataclasses.replace(some, cases=some.cases[::-1])
    a, b = (answered(fitted(video, support, window=6, top_k=4), image) for support in (some, turned))
    assert same(a.object_score, b.object_score, 1e-5)
    assert same(a.iou, b.iou, 1e-5)
    assert a.retrieved == b.retrieved


def test_labels_that_change_their_numbers_keep_their_answers(video: MemoryBackbone):
    def swapped(case: Case) -> Case:
        array = case.reference.array
        other = np.choose(array, [0, 3, 2, 1]).astype(array.dtype)
        return dataclasses.replace(case, reference=dataclasses.replace(case.reference, array=other))

    image, some = phantom(7)[0], support_set(2)
    turned = dataclasses.replace(some, cases=tuple(map(swapped, some.cases)))
    found, confidence = fitted(video, some, window=6).predict_explained(image)
    found_turned, confidence_turned = fitted(video, turned, window=6).predict_explained(image)
    assert same(confidence.object_score, confidence_turned.object_score.flip(1), 1e-5)
    assert np.mean(found.array == np.choose(found_turned.array, [0, 3, 2, 1])) > 0.999


def test_a_label_is_answered_alike_alone_and_among_others(video: MemoryBackbone):
    def ball_only(case: Case) -> Case:
        kept = np.where(case.reference.array == 1, 1, 0).astype(np.int16)
        labels = Labels((1,), ("ball",))
        return dataclasses.replace(case, reference=LabelMap(kept, case.reference.geometry, labels), labels=labels)

    image, some = phantom(7)[0], support_set(2)
    alone = SupportSet(tuple(map(ball_only, some.cases)), Labels((1,), ("ball",)))
    among = answered(fitted(video, some, window=6), image)
    single = answered(fitted(video, alone, window=6), image)
    assert same(among.object_score[:, :1], single.object_score, 1e-5)
    assert same(among.iou[:, :1], single.iou, 1e-5)


def test_without_neighbours_a_slice_is_answered_from_itself(video: MemoryBackbone):
    image, _ = phantom(7)
    segmenter = fitted(video, window=0, pointers=False)
    before, after = answered(segmenter, image), answered(segmenter, changed(image, 3))
    others = [0, 1, 2, 4, 5]
    assert same(before.object_score[others], after.object_score[others], 1e-5)
    assert not same(before.object_score[3], after.object_score[3], 1e-3)


def test_the_first_walk_knows_nothing_of_the_other_side(video: MemoryBackbone):
    image, _ = phantom(7)
    segmenter = fitted(video, window=2, top_k=5)
    before, after = answered(segmenter, image), answered(segmenter, changed(image, 4))
    assert same(before.object_score[:4], after.object_score[:4], 1e-5)
    assert not same(before.object_score[5], after.object_score[5], 1e-6)


def test_a_slice_uses_the_nearest_of_the_slices_that_were_predicted_before_it(
    video: MemoryBackbone, monkeypatch: pytest.MonkeyPatch
):
    segmenter = fitted(video, window=2)
    used: dict[int, set[int]] = {}
    predict = segmenter._recall.predict

    def noting(
        image: ImageEmbeddings, retrieved: Sequence[tuple[int, ...]], numbers: Sequence[int], near: Sequence[Neighbour]
    ) -> SlicePredictions:
        used[numbers[0]] = {neighbour.number for neighbour in near}
        return predict(image, retrieved, numbers, near)

    monkeypatch.setattr(segmenter._recall, "predict", noting)
    segmenter.predict(phantom(7)[0])
    assert used == {3: set(), 2: {3}, 1: {2, 3}, 0: {1, 2}, 4: {2, 3}, 5: {3, 4}}


def test_a_mirrored_stack_gets_the_mirrored_answer(video: MemoryBackbone):
    image = odd(phantom(7)[0])
    segmenter = fitted(video, window=6, top_k=5, forward_uses_reverse=False)
    found, confidence = segmenter.predict_explained(image)
    turned, confidence_turned = segmenter.predict_explained(mirrored(image))
    assert same(confidence.object_score, confidence_turned.object_score.flip(0), 1e-5)
    assert np.mean(found.array[:, ::-1] == turned.array) > 0.999
    carried = answered(fitted(video, window=6, top_k=5), image)  # not if the second half uses memories of the first
    assert not same(confidence.object_score, carried.object_score, 1e-6)


def test_a_neighbour_is_told_that_a_label_was_called_present(video: MemoryBackbone):
    """With a threshold below its score, a label that was predicted as present is remembered as present."""
    image, _ = phantom(7)
    thresholds: list[torch.Tensor] = []
    remember = video.remember

    def noting(*args: object, absent_below: torch.Tensor, **kwargs: object) -> Memory:
        thresholds.append(absent_below)
        return remember(*args, absent_below=absent_below, **kwargs)  # type: ignore[arg-type]

    video.remember = noting  # type: ignore[method-assign]
    try:
        fitted(video, window=1, absent_below=-2.0).predict(image)
    finally:
        del video.remember
    assert thresholds
    assert all((one == -2.0).all() for one in thresholds)


def test_farther_neighbours_and_pointers_count(video: MemoryBackbone):
    image, _ = phantom(7)
    scores = [
        answered(fitted(video, window=window, pointers=pointers), image).object_score
        for window, pointers in ((0, True), (1, True), (6, True), (6, False))
    ]
    assert not any(same(a, b, 1e-6) for a, b in itertools.pairwise(scores))


def test_a_label_first_seen_late_is_answered_and_none_lingers(video: MemoryBackbone):
    """Each slice retrieves itself: what is asked for is what its own support holds, no matter what came before."""
    case = banded(0)
    segmenter = fitted(video, SupportSet((case,), LABELS), window=6, top_k=1)
    confidence = answered(segmenter, case.image)
    numbers = [index for ((_, index),) in confidence.retrieved]
    held = (PLAIN.view(case.image).of(case.reference.array)[..., None] == LABELS.values).any(axis=(1, 2))
    assert numbers == [0, 1, 2, 3, 4]
    assert np.array_equal(~confidence.object_score.isnan().numpy(), held)


def test_volumes_leave_no_trace_in_each_other(video: MemoryBackbone):
    segmenter = fitted(video, window=6)
    first = answered(segmenter, phantom(7)[0])
    segmenter.predict(phantom(8)[0])
    assert same(first.object_score, answered(segmenter, phantom(7)[0]).object_score)


@pytest.mark.parametrize("allow_empty", [False, True])
def test_what_no_retrieved_support_holds_stays_absent(video: MemoryBackbone, allow_empty: bool):
    image, _ = phantom(7)
    array = image.array.copy()
    air = dataclasses.replace(image, array=np.random.default_rng(0).uniform(0, 20, array.shape).astype(np.float32))
    nothing = dataclasses.replace(phantom(0)[1], array=np.zeros(array.shape[1:], dtype=np.int16))
    empty = dataclasses.replace(phantom_case(0), name="air", image=air, reference=nothing)
    support = SupportSet((*support_set(1).cases, empty), LABELS)
    segmenter = fitted(video, support, top_k=3, allow_empty=allow_empty)
    found, confidence = segmenter.predict_explained(air)
    assert not found.array.any()
    assert confidence.object_score.isnan().all()
    always = fitted(video, support, top_k=3, foreground_only=True)
    assert not answered(always, air).object_score.isnan().all()


def test_an_empty_mask_speaks_where_it_is_allowed_to(video: MemoryBackbone):
    image, _ = phantom(7)
    silent, speaking = (answered(fitted(video, top_k=8, allow_empty=allowed), image) for allowed in (False, True))
    assert same(silent.object_score.isnan(), speaking.object_score.isnan())
    assert not same(silent.object_score, speaking.object_score, 1e-3)


def test_an_object_whose_score_is_negative_is_absent(video: MemoryBackbone):
    doubting = tiny_models.tiny_sam2_video(side=64)
    with torch.no_grad():
        doubting.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-30.0)
    found, confidence = fitted(doubting, window=1).predict_explained(phantom(7)[0])
    assert (confidence.object_score[~confidence.object_score.isnan()] < 0).all()
    assert not found.array.any()


def test_how_sure_the_model_must_be_is_a_setting(video: MemoryBackbone):
    volume = phantom(7)[0]
    score = answered(fitted(video, window=0), volume).object_score
    valid_mask = score[~score.isnan()]
    found = [
        (fitted(video, window=0, absent_below=below).predict(volume).array > 0).any()
        for below in (float(valid_mask.max()) + 1, float(valid_mask.min()) - 1)
    ]
    assert found == [False, True]


def test_a_slice_without_signal_stays_empty(video: MemoryBackbone):
    image, _ = phantom(7)
    blank = dataclasses.replace(image, array=np.full_like(image.array, 100))
    found, confidence = fitted(video, foreground_only=True).predict_explained(blank)
    assert not found.array.any()
    assert confidence.retrieved == ((),) * 6


@pytest.mark.parametrize("window", [0, 1])
def test_each_query_slice_is_encoded_once_and_no_support_again(video: MemoryBackbone, window: int):
    with counted(video) as in_fit:
        segmenter = fitted(video, window=window)
    with counted(video) as in_predict:
        segmenter.predict(phantom(7)[0])
    assert (sum(in_fit), sum(in_predict)) == (2 * 6, 6)


def test_the_second_sweep_looks_both_ways(video: MemoryBackbone):
    image, _ = phantom(7)
    once, twice = (fitted(video, window=1, second_sweep=again) for again in (False, True))
    assert same(answered(once, image).object_score[4], answered(once, changed(image, 5)).object_score[4], 1e-5)
    assert not same(answered(twice, image).object_score[4], answered(twice, changed(image, 5)).object_score[4], 1e-6)
    with counted(video) as encoded:
        twice.predict(image)
    assert sum(encoded) == 2 * 6


def test_fused_walks_make_no_difference_between_up_and_down(video: MemoryBackbone):
    image, _ = phantom(7)
    segmenter = fitted(video, window=2, fuse=True)
    confidence, turned = answered(segmenter, image), answered(segmenter, mirrored(image))
    assert same(confidence.object_score, turned.object_score.flip(0), 1e-5)
    assert not same(confidence.object_score, answered(fitted(video, window=2), image).object_score, 1e-6)


@pytest.mark.parametrize(("start", "expected"), [("middle", 2), ("best", 1)])
def test_the_walk_begins_in_the_middle_or_where_most_labels_are(video: MemoryBackbone, start: str, expected: int):
    """The slice it begins with is the only one that is answered as if it had no neighbours."""
    case = banded(0)
    labels = case.reference.array.copy()
    labels[:] = 0
    labels[4:12, :, 4:12] = 1
    labels[12:20, 1, 10:22] = 3
    case = dataclasses.replace(case, reference=dataclasses.replace(case.reference, array=labels))
    support = SupportSet((case,), LABELS)
    alone = answered(fitted(video, support, top_k=1, window=0), case.image)
    walked = answered(fitted(video, support, top_k=1, window=1, start=start), case.image)
    unmoved = [i for i in range(5) if same(alone.object_score[i, :1], walked.object_score[i, :1], 1e-6)]
    assert [PLAIN.view(case.image).of(np.indices(labels.shape)[1])[i, 0, 0] for i in unmoved] == [expected]


def test_diverse_supports_come_from_every_case(video: MemoryBackbone):
    image = phantom(0)[0]
    for diverse in (False, True):
        confidence = answered(fitted(video, support_set(3), top_k=3, diverse=diverse), image)
        cases = [len({case for case, _ in supports}) for supports in confidence.retrieved]
        assert (min(cases) == 3) is diverse


def test_supports_lie_near_where_they_are_told_to(video: MemoryBackbone):
    image, _ = phantom(7)
    for tolerance in (1.0, 0.1):
        confidence = answered(fitted(video, top_k=2, slice_position_tolerance=tolerance), image)
        away = [abs(number - i) for i, supports in enumerate(confidence.retrieved) for _, number in supports]
        assert (max(away) == 0) is (tolerance == 0.1)


@pytest.mark.parametrize("similarity", ["cosine", "pooled", "l1"])
def test_a_slice_of_the_support_retrieves_itself_first(video: MemoryBackbone, similarity: str):
    confidence = answered(fitted(video, support_set(3), similarity=similarity), phantom(1)[0])
    assert [supports[0] for supports in confidence.retrieved] == [("phantom-1", number) for number in range(6)]


def test_a_structure_finer_than_the_models_square_is_still_remembered(video: MemoryBackbone):
    geometry = Geometry((300, 300, 1), np.eye(4))
    image = Volume(np.random.default_rng(0).uniform(0, 400, (1, 300, 300, 1)).astype(np.float32), geometry)
    labels = np.zeros(geometry.shape, dtype=np.int16)
    labels[100, 100], labels[200:220, 200:220] = 1, 3
    support = SupportSet((Case("fine", image, LabelMap(labels, geometry, LABELS), LABELS),), LABELS)
    segmenter = Fate(slicer=Slicer(plane="axial", window=(0.0, 400.0))).fit(support, video)
    forgotten = video.model.no_object_pointer[0].half()
    assert len(segmenter.bank.pointers) == 2
    assert not any(torch.allclose(pointer, forgotten, atol=1e-2) for pointer in segmenter.bank.pointers)


def test_pictures_of_several_sizes_need_no_neighbours(video: MemoryBackbone):
    def picture(seed: int, height: int, width: int) -> Case:
        rng = np.random.default_rng(seed)
        geometry = Geometry((width, height, 1), np.eye(4), unit="pixel")
        labels = np.zeros(geometry.shape, dtype=np.int16)
        labels[2:9, 2:9], labels[10:16, 8:15] = 1, 3
        image = Volume(rng.integers(0, 255, (3, *geometry.shape), dtype=np.uint8), geometry)
        return Case(f"picture-{seed}", image, LabelMap(labels, geometry, LABELS), LABELS)

    support = SupportSet((picture(0, 20, 30), picture(1, 33, 21)), LABELS)
    query = picture(2, 40, 26).image
    found, confidence = Fate(window=6).fit(support, video).predict_explained(query)
    assert found.array.shape == (26, 40, 1)
    assert sorted(confidence.retrieved[0]) == [("picture-0", 0), ("picture-1", 0)]
    assert not confidence.object_score.isnan().any()


def test_what_every_picture_holds_is_never_called_absent(video: MemoryBackbone):
    """Of pictures each is a case of its own, and one that lacks the label tells that there are such."""

    def picture(seed: int, labels: np.ndarray) -> Case:
        pixels = np.random.default_rng(seed).integers(0, 255, (1, 24, 24, 1)).astype(np.uint8)
        geometry = Geometry((24, 24, 1), np.eye(4), unit="pixel")
        return Case(f"picture-{seed}", Volume(pixels, geometry), LabelMap(labels, geometry, LABELS), LABELS)

    both = np.zeros((24, 24, 1), dtype=np.int16)
    both[2:12, 2:12], both[12:22, 8:20] = 1, 3
    first_alone = np.where(both == 1, both, 0)
    query = picture(2, both).image
    sure = Fate(absent_below=1e6)

    def shown(*labels: np.ndarray) -> set[int]:
        support = SupportSet(tuple(picture(seed, one) for seed, one in enumerate(labels)), LABELS)
        segmenter = sure.fit(support, video)
        logits = segmenter.forward(Slicer().view(query).cut(0, 1))
        return {value for index, value in enumerate(LABELS.values) if (logits[0, index] > -1000).any()}

    assert shown(both, both) == {1, 3}
    assert shown(both, first_alone) == {1}


def test_each_support_slice_is_kept_as_a_small_picture_of_its_shape_in_the_patient(video: MemoryBackbone):
    """24 x 12 pixels of 1 x 4 mm are twice as wide as high; a lesion of one pixel is still seen."""
    geometry = Geometry((12, 24, 1), np.diag([4.0, 1.0, 1.0, 1.0]))
    image = np.full((1, *geometry.shape), 200, dtype=np.float32)
    labels = np.zeros(geometry.shape, dtype=np.int16)
    labels[:6], labels[9, 12] = 1, 3
    case = Case("wide", Volume(image, geometry), LabelMap(labels, geometry, LABELS), LABELS)
    segmenter = fitted(video, SupportSet((case,), LABELS))
    for seen in (segmenter, segmenter.method.restore(LABELS, PLAIN, video, segmenter.learned())):
        picture = seen.support_picture("wide", 0)
        assert picture.image.shape == (96, 96, 3)
        assert (picture.image[24:72] == 128).all()
        assert not picture.image[:24].any()
        assert not picture.image[72:].any()
        assert [int((picture.labels == value).sum()) for value in (1, 3)] == [48 * 48, 8 * 2]


def test_the_finest_structure_stays_to_be_seen_in_a_picture(video: MemoryBackbone):
    geometry = Geometry((300, 300, 1), np.eye(4))
    labels = np.zeros(geometry.shape, dtype=np.int16)
    labels[100, 100], labels[200:220, 200:220] = 1, 3
    image = np.random.default_rng(0).uniform(0, 400, (1, *geometry.shape)).astype(np.float32)
    case = Case("fine", Volume(image, geometry), LabelMap(labels, geometry, LABELS), LABELS)
    picture = fitted(video, SupportSet((case,), LABELS)).support_picture("fine", 0)
    assert (picture.labels == 1).any()


def test_a_backbone_without_memory_is_refused_with_those_that_have_one(sam2: Backbone, video: MemoryBackbone):
    with pytest.raises(SettingsError, match=r"'tiny-sam2' has none; take handful-tiny, .*sam2\.1-hiera-tiny"):
        Fate().fit(support_set(1), sam2)
    learned = fitted(video).learned()
    with pytest.raises(SettingsError, match="'tiny-sam2' has none"):
        Fate().restore(LABELS, PLAIN, sam2, learned)


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 0}, {"window": 7}, {"window": -1}, {"slice_position_tolerance": 1.5}, {"window": 0, "fuse": True},
     {"window": 0, "second_sweep": True}, {"similarity": "taste"}, {"start": "end"}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object]):
    with pytest.raises(SettingsError, match=list(settings)[-1]):
        build_whole("fate", settings)


def test_left_and_right_stay_left_and_right(handful_tiny: MemoryBackbone):
    cases = []
    for scan in phantom_cohort(3, seed=0, shape=(96, 88, 10)):
        geometry, labels = Geometry(scan.image.shape, scan.affine), Labels.of(scan.names)
        reference = LabelMap(scan.labels, geometry, labels)
        cases.append(Case(scan.name, Volume(scan.image[None], geometry), reference, labels))
    truth = cases[2].reference
    found = Fate().fit(SupportSet(tuple(cases[:2]), truth.labels), handful_tiny).predict(cases[2].image)
    left, right = (value for value, name in truth.labels.as_dict().items() if "kidney" in name)
    for own, other in ((left, right), (right, left)):
        there = found.array[truth.array == own]
        assert (there == own).mean() > 0.4
        assert (there == other).mean() < 0.04


def noise(slices: int) -> Volume:
    """So many slices of noise on the phantoms' grid."""
    image = np.random.default_rng(0).uniform(0, 400, (24, slices, 28)).astype(np.float32)
    return Volume(image[None], dataclasses.replace(phantom(0)[0].geometry, shape=image.shape))


def most_held(segmenter: FateSegmenter, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that embeddings, predictions and memories held at once while the volume was predicted.

    Looked at whenever a slice has been encoded, recalled or remembered.
    """
    held: weakref.WeakSet[ImageEmbeddings | MaskPrediction | Memory] = weakref.WeakSet()
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        fields = [value for one in held for value in vars(one).values()]
        tensors = [t for value in fields for t in (value if isinstance(value, tuple) else (value,))]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor)}
        most = max(most, sum(storage.nbytes() for storage in storages.values()))

    with monkeypatch.context() as patch:
        for kind in (ImageEmbeddings, MaskPrediction, Memory):

            def remembered(self: object, *values: object, init: Callable[..., None] = kind.__init__, **named: object):
                init(self, *values, **named)
                held.add(self)

            patch.setattr(kind, "__init__", remembered)
        model = segmenter.backbone.model
        watched = (model.vision_encoder, model.memory_attention, model.memory_encoder)
        hooks = [module.register_forward_hook(look) for module in watched]
        segmenter.predict(volume)
        for hook in hooks:
            hook.remove()
    return most


def test_half_the_bits_move_no_more_than_borders(handful_tiny: MemoryBackbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.jobs.precision.has_bfloat16", lambda device: True)  # emulated where it is not
    image, _ = phantom(7)
    exact = Fate().fit(support_set(2), handful_tiny)
    coarse = Fate(precision="bfloat16").restore(exact.labels, exact.slicer, handful_tiny, exact.learned())
    one, sure = exact.predict_explained(image)
    kinds: set[torch.dtype] = set()
    hook = handful_tiny.image_encoder.register_forward_hook(
        lambda *found: kinds.add(found[2].fpn_hidden_states[-1].dtype)
    )
    other, less_sure = coarse.predict_explained(image)
    hook.remove()
    assert kinds == {torch.float32}  # embeddings are those that a cache has
    assert not torch.equal(sure.object_score, less_sure.object_score)
    assert torch.allclose(sure.object_score, less_sure.object_score, atol=0.5, equal_nan=True)
    assert (one.array != other.array).sum() < 0.1 * (one.array > 0).sum()


@pytest.mark.parametrize("settings", [{"window": 0}, {"window": 3}, {"window": 2, "fuse": True},
                                      {"window": 2, "second_sweep": True}])  # fmt: skip
def test_what_is_held_does_not_grow_with_the_number_of_slices(
    video: MemoryBackbone, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    segmenter = fitted(video, top_k=2, **settings)
    few, many = (most_held(segmenter, noise(slices), monkeypatch) for slices in (24, 40))
    assert 0 < many <= few
