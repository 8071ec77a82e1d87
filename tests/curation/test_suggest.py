import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handful.backbones.base import Backbone
from handful.checkpoint.model import load
from handful.curation.suggest import SuggestConfig, suggest
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError
from handful.jobs.digests import digest_of
from phantoms import LABELS, phantom

SLICES = 6


def cohort_of(*cases: Case) -> Cohort:
    return Cohort(cases, LABELS, "phantoms")


def case_of(seed: int, labelled: tuple[int, ...] = (), name: str | None = None) -> Case:
    """A phantom of which some slices are labelled; its slices lie across the voxel axis j."""
    image, reference = phantom(seed)
    classes = np.full_like(reference.array, IGNORE)
    for index in labelled:
        classes[:, index] = reference.array[:, index]
    known = LabelMap(classes, reference.geometry, LABELS) if labelled else None
    return Case(name or f"case-{seed}", image, known, LABELS)


def negative(seed: int) -> Case:
    """A scan that looks like no other: bright is dark in it."""
    image, _ = phantom(seed)
    return Case("negative", Volume(500 - image.array, image.geometry, "MR"), None, LABELS)


def places(cohort: Cohort, backbone: Backbone, **config: int | bool) -> list[tuple[str, int]]:
    found = suggest(cohort, backbone, config=SuggestConfig(**config)).suggestions
    return [(one.slice.case, one.slice.index) for one in found]


def test_only_unlabelled_slices_are_suggested_and_each_once(backbone: Backbone):
    cohort = cohort_of(case_of(0, tuple(range(SLICES))), case_of(1, (1, 2)), case_of(2))
    found = places(cohort, backbone, count=100)
    free = [("case-1", index) for index in (0, 3, 4, 5)] + [("case-2", index) for index in range(SLICES)]
    assert sorted(found) == free


def test_what_is_unlike_all_labelled_slices_comes_first(backbone: Backbone):
    cohort = cohort_of(case_of(0, tuple(range(SLICES))), case_of(1), negative(2))
    first = suggest(cohort, backbone, config=SuggestConfig(count=1)).suggestions[0]
    assert first.slice.case == "negative"
    assert first.nearest is not None
    assert first.nearest.case == "case-0"
    assert "unlike all labelled slices (nearest: case-0, slice" in first.reason


def test_a_copy_of_what_is_labelled_is_covered_and_comes_last(backbone: Backbone):
    twin = case_of(0, name="twin")
    cohort = cohort_of(case_of(0, tuple(range(SLICES))), twin, case_of(1))
    found = suggest(cohort, backbone, config=SuggestConfig(count=12)).suggestions
    assert {one.slice.case for one in found[:SLICES]} == {"case-1"}
    assert max(one.coverage for one in found if one.slice.case == "twin") < 1e-3


def test_suggestions_differ_among_themselves(backbone: Backbone):
    twins = [case_of(1, name="one"), case_of(1, name="other")]
    found = places(cohort_of(case_of(0, (2,)), *twins), backbone, count=8)
    of_twins = [index for case, index in found if case != "case-0"]
    assert len(set(of_twins)) == len(of_twins) == SLICES


def test_scores_fall_and_coverage_never_sums_to_more_than_all(backbone: Backbone):
    found = suggest(
        cohort_of(case_of(0, (2,)), case_of(1), case_of(2)), backbone, config=SuggestConfig(count=50)
    ).suggestions
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert sum(one.coverage for one in found) == pytest.approx(1, abs=1e-3)


def test_without_any_label_the_most_typical_slice_comes_first(backbone: Backbone):
    result = suggest(Cohort((case_of(1), case_of(2), negative(0)), None, "new"), backbone)
    assert result.labelled == 0
    assert result.suggestions[0].reason == "the most typical slice (nothing is labelled yet)"
    assert {one.nearest for one in result.suggestions} == {None}
    assert {one.disagreement for one in result.suggestions} == {None}


def test_a_slice_is_named_by_the_voxel_axis_it_lies_across(backbone: Backbone):
    cohort = cohort_of(case_of(0, (2,)), case_of(1))
    for one in suggest(cohort, backbone, config=SuggestConfig(count=5)).suggestions:
        assert one.axis == 1
        assert one.slice.index in (one.slice.number, SLICES - 1 - one.slice.number)
        assert one.slice.slices == SLICES


def test_slices_without_signal_are_never_suggested(backbone: Backbone):
    image, _ = phantom(1)
    dark = image.array.copy()
    dark[:, :, :4] = 0
    cohort = cohort_of(case_of(0, (2,)), Case("half", Volume(dark, image.geometry, "MR"), None, LABELS))
    found = places(cohort, backbone, count=50)
    assert {index for case, index in found if case == "half"} == {4, 5}


def test_whole_cases_are_suggested_once_each_and_touched_ones_never(backbone: Backbone):
    cohort = cohort_of(case_of(0, tuple(range(SLICES))), case_of(1, (3,)), case_of(2), negative(3), case_of(4))
    result = suggest(cohort, backbone, config=SuggestConfig(count=9, whole_cases=True))
    assert sorted(one.slice.case for one in result.suggestions) == ["case-2", "case-4", "negative"]
    assert result.suggestions[0].slice.case == "negative"
    assert result.candidates == 3


def test_only_cases_that_may_be_suggested_are_segmented(model: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch):
    segmenter, segmented = load(model), []

    def predict(self: object, volume: Volume) -> LabelMap:
        segmented.append(volume)
        return LabelMap(np.zeros(volume.geometry.shape, np.int16), volume.geometry, LABELS)

    monkeypatch.setattr(type(segmenter), "predict", predict)
    image, _ = phantom(3)
    dark = Case("dark", Volume(np.zeros_like(image.array), image.geometry, "MR"), None, LABELS)
    wanted = replace(cohort, cases=(*cohort.cases[:1], case_of(1, (3,)), dark, case_of(2)))
    suggest(wanted, segmenter.backbone, segmenter, SuggestConfig(whole_cases=True))
    assert len(segmented) == 2, "case-2 alone, as it is and altered"


def test_inconsistent_predictions_are_a_reason(model: Path, cohort: Cohort):
    segmenter = load(model)
    cases = [replace(case, reference=None) if case.name != "case-0" else case for case in cohort.cases]
    wanted = replace(cohort, cases=tuple(cases))
    found = suggest(wanted, segmenter.backbone, segmenter, SuggestConfig(count=18)).suggestions
    said = [one.disagreement for one in found if one.disagreement is not None]
    assert len(said) == len(found) == 18
    assert all(0 <= one <= 1 for one in said)
    assert max(said) > 0
    telling = [one for one in found if "inconsistently" in one.reason]
    assert telling
    assert all(any(one.reason.startswith(f"the model predicts {n} inconsistently") for n in ("ball", "egg"))
               for one in telling)  # fmt: skip
    median = sorted(said)[len(said) // 2]
    assert all((one.disagreement or 0) >= median * 0.99 for one in telling)


def test_disagreement_raises_what_would_score_alike(model: Path, cohort: Cohort):
    segmenter = load(model)
    cases = tuple(replace(case, reference=None) if case.name != "case-0" else case for case in cohort.cases)
    for one in suggest(replace(cohort, cases=cases), segmenter.backbone, segmenter).suggestions:
        assert one.coverage / 2 <= one.score <= one.coverage


def test_a_case_that_training_was_uncertain_about_ranks_higher_and_the_reason_says_so(model: Path, cohort: Cohort):
    segmenter = load(model)
    cases = tuple(replace(case, reference=None) if case.name != "case-0" else case for case in cohort.cases)
    wanted, config = replace(cohort, cases=cases), SuggestConfig(whole_cases=True)
    last = suggest(wanted, segmenter.backbone, segmenter, config).suggestions[-1].slice.case
    scan = next(case for case in cohort.cases if case.name == last).read_image()
    agreement = {digest_of(scan.array): 0.1}
    first = suggest(wanted, segmenter.backbone, segmenter, config, agreement=agreement).suggestions
    uncertain = next(one for one in first if one.slice.case == last)
    assert uncertain.disagreement == pytest.approx(0.9)
    assert uncertain.reason.startswith("the model was uncertain about this case in training (agreement 0.10)")
    assert all("in training" not in one.reason for one in first if one.slice.case != last)


def test_the_prediction_of_a_suggested_slice_is_that_of_predict(model: Path, cohort: Cohort):
    segmenter = load(model)
    cases = tuple(replace(case, reference=None) if case.name != "case-0" else case for case in cohort.cases)
    one = suggest(replace(cohort, cases=cases), segmenter.backbone, segmenter).suggestions[0]
    image = next(case for case in cohort.cases if case.name == one.slice.case).read_image()
    expected = segmenter.slicer.view(image).of(segmenter.predict(image).array)[one.slice.number]
    assert one.predicted is not None
    np.testing.assert_array_equal(one.predicted, expected)


def test_a_model_of_other_labels_is_refused(model: Path, backbone: Backbone):
    other = Labels((1, 2), ("liver", "spleen"))
    cohort = Cohort((case_of(1),), other, "livers")
    with pytest.raises(LabelError, match=r"ball.*'livers'.*liver"):
        suggest(cohort, backbone, load(model))


def test_nothing_left_to_label_is_an_error(backbone: Backbone):
    every = cohort_of(case_of(0, tuple(range(SLICES))))
    with pytest.raises(InputError, match="no unlabelled slice left"):
        suggest(every, backbone)
    with pytest.raises(InputError, match="no unlabelled case left"):
        suggest(cohort_of(case_of(0, (1,))), backbone, config=SuggestConfig(whole_cases=True))


def test_a_count_below_one_is_refused():
    with pytest.raises(SettingsError, match="count"):
        SuggestConfig(count=0)


def test_a_damaged_scan_is_listed_and_the_others_are_used(folder: Path, backbone: Backbone, tmp_path: Path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "labels" / "case-2.nii.gz").unlink()
    (own / "labels" / "case-3.nii.gz").unlink()
    scan = own / "images" / "case-3.nii.gz"
    scan.write_bytes(scan.read_bytes()[:2000])
    result = suggest(read_cohort(own), backbone)
    assert [one.case for one in result.failures] == ["case-3"]
    assert {one.slice.case for one in result.suggestions} == {"case-2"}


@pytest.mark.parametrize("slicer", [Slicer(), Slicer(plane="axial", window="percentile")])
def test_where_no_scan_can_be_read_the_first_reason_is_given(
    folder: Path, backbone: Backbone, tmp_path: Path, slicer: Slicer
):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    shutil.rmtree(own / "labels")
    for scan in (own / "images").iterdir():
        scan.write_bytes(b"no scan")
    with pytest.raises(InputError, match=r"the first of 4 cases failed.*case-0"):
        suggest(read_cohort(own), backbone, config=SuggestConfig(slicer=slicer))


def test_an_empty_cohort_is_refused(backbone: Backbone):
    with pytest.raises(InputError, match="'nobody' is empty"):
        suggest(Cohort((), None, "nobody"), backbone)


def test_the_index_is_what_the_sidecar_of_a_label_map_takes(folder: Path, backbone: Backbone, tmp_path: Path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "labels" / "case-3.nii.gz").unlink()
    first = suggest(read_cohort(own), backbone, config=SuggestConfig(count=1)).suggestions[0]
    shutil.copy(folder / "labels" / "case-3.nii.gz", own / "labels")
    said = {"axis": first.axis, "labelled": [first.slice.index]}
    (own / "labels" / "case-3.slices.json").write_text(json.dumps(said))
    result = suggest(read_cohort(own), backbone, config=SuggestConfig(count=9))
    assert result.candidates == SLICES - 1
    assert first.slice.number not in {one.slice.number for one in result.suggestions}
