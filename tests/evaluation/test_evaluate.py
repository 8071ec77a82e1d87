"""Rows, empty rules, means and intervals, and what becomes of cases that go wrong."""

from pathlib import Path

import numpy as np
import pytest

from handful.data.cases import Case
from handful.data.files import write_label_map
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels
from handful.errors import GeometryMismatch, InputError, SettingsError
from handful.evaluation.evaluate import Estimate, Report, evaluate, evaluate_folders, score_case


def test_a_case_has_a_row_a_label_with_its_scores(label_map, cube):
    prediction, reference = label_map({1: cube(k=1), 2: cube(i=7)}), label_map({1: cube(k=2), 2: cube(i=7)})
    liver, spleen = score_case("ann", prediction, reference)
    assert (liver.case, liver.label, liver.name, liver.status, liver.unit) == ("ann", 1, "liver", "scored", "mm")
    assert liver.dice == pytest.approx(2 / 3)
    assert liver.hd95 == pytest.approx(3)
    assert liver.surface_dice == pytest.approx(17 / 26)
    assert (spleen.dice, spleen.iou, spleen.hd95, spleen.assd, spleen.surface_dice) == (1, 1, 0, 0, 1)


def test_the_tolerance_reaches_the_surface_dice(label_map, cube):
    liver, _ = score_case("ann", label_map({1: cube(k=1)}), label_map({1: cube(k=2)}), tolerance_mm=3.0)
    assert liver.surface_dice == 1


def test_volume_difference_is_signed_millilitres(label_map, cube):
    smaller, larger = label_map({1: (slice(1, 4), slice(1, 4), slice(1, 3))}), label_map({1: cube()})
    assert score_case("ann", smaller, larger)[0].volume_difference == pytest.approx(-9 * 6 / 1000)
    assert score_case("ann", larger, smaller)[0].volume_difference == pytest.approx(9 * 6 / 1000)


def test_volume_difference_of_a_picture_is_a_fraction_of_its_pixels(label_map, cube):
    row = score_case("photo", label_map({1: cube()}, unit="pixel"), label_map({}, unit="pixel"))[0]
    assert row.unit == "pixel"
    assert row.volume_difference == pytest.approx(27 / 960)


def test_a_missed_or_false_positive_label_scores_0_at_the_image_diagonal(label_map, cube):
    diagonal = np.linalg.norm([12, 20, 24])
    missed, false_positive = score_case("ann", label_map({2: cube()}), label_map({1: cube()}))
    assert (missed.status, false_positive.status) == ("missed", "false_positive")
    for row in (missed, false_positive):
        assert (row.dice, row.iou, row.surface_dice) == (0, 0, 0)
        assert row.hd95 == row.assd == pytest.approx(diagonal)


def test_an_absent_label_is_counted_and_left_out_of_the_mean(label_map, cube):
    full = label_map({1: cube(), 2: cube(i=7)})
    shifted, alone = label_map({1: cube(k=2)}), label_map({1: cube()})
    report = Report(rows=(*score_case("ann", full, full), *score_case("bob", shifted, alone)))
    assert report.rows[3].status == "absent"
    assert report.rows[3].dice == 1
    assert np.isnan(report.rows[3].hd95)
    _, spleen, mean = report.summary()
    assert (spleen.n, spleen.absent, spleen.missed, spleen.missed_of) == (1, 1, 0, 1)
    assert spleen.estimates["hd95"].mean == 0
    assert mean.estimates["dice"].mean == pytest.approx((1 + 2 / 3) / 2)


def test_a_missed_organ_worsens_every_mean(label_map, cube):
    reference = label_map({1: cube()})
    good = score_case("ann", label_map({1: cube(k=2)}), reference)
    before = Report(rows=tuple(good)).summary()[0]
    after = Report(rows=(*good, *score_case("bob", label_map({}), reference))).summary()[0]
    assert (after.n, after.missed, after.missed_of) == (2, 1, 2)
    for metric in ("dice", "iou", "surface_dice"):
        assert after.estimates[metric].mean == pytest.approx(before.estimates[metric].mean / 2)
    for metric in ("hd95", "assd"):
        assert after.estimates[metric].mean > before.estimates[metric].mean


def test_ignored_voxels_count_in_neither_map(label_map, cube):
    prediction, reference = label_map({1: cube(k=1), 2: cube(i=7, k=4)}), label_map({1: cube(k=1)})
    reference.array[:, :, 3:] = IGNORE
    liver, spleen = score_case("ann", prediction, reference)
    assert (liver.dice, liver.hd95) == (1, 0)
    assert (liver.counts.tp, liver.counts.tn) == (18, 12 * 10 * 3 - 18)
    assert spleen.status == "absent"


def test_a_label_in_the_prediction_only_is_a_false_positive(label_map, cube):
    reference = label_map({1: cube()}, labels=Labels((1,), ("liver",)))
    assert [row.status for row in score_case("ann", label_map({1: cube(), 2: cube(i=7)}), reference)] == [
        "scored",
        "false_positive",
    ]


def test_labels_narrow_what_is_scored(label_map, cube):
    rows = score_case("ann", label_map({}), label_map({1: cube()}), labels=Labels((2,), ("milt",)))
    assert [(row.label, row.name, row.status) for row in rows] == [(2, "milt", "absent")]


def test_maps_on_two_grids_are_refused(label_map, cube):
    reference = label_map({1: cube()})
    moved = reference.geometry.affine.copy()
    moved[0, 3] += 5
    prediction = LabelMap(reference.array, Geometry(reference.geometry.shape, moved), reference.labels)
    with pytest.raises(GeometryMismatch, match=r"'ann'.*differ by up to 5 mm"):
        score_case("ann", prediction, reference)


def test_interval_lies_within_the_values_and_round_the_mean():
    values = [0.2, 0.85, 0.9, 0.91, 0.95]
    estimate = Estimate.of(values)
    assert min(values) <= estimate.low < estimate.mean < estimate.high <= max(values)
    assert estimate.sd == pytest.approx(np.std(values, ddof=1))


def test_interval_is_the_seed_s():
    values = [0.2, 0.85, 0.9, 0.91, 0.95]
    assert Estimate.of(values, seed=3) == Estimate.of(values, seed=3)
    assert Estimate.of(values, seed=3) != Estimate.of(values, seed=4)


def test_equal_values_have_an_interval_of_no_width():
    estimate = Estimate.of([0.5, 0.5, 0.5])
    assert (estimate.mean, estimate.sd, estimate.low, estimate.high) == (0.5, 0, 0.5, 0.5)


def test_one_value_has_a_mean_and_no_interval():
    estimate = Estimate.of([0.5])
    assert estimate.mean == 0.5
    assert np.isnan([estimate.sd, estimate.low, estimate.high]).all()


def test_the_overall_mean_resamples_cases_not_labels(label_map, cube):
    """Both cases have one label right and one missed: their means are equal, so no resample can differ."""
    reference = label_map({1: cube(), 2: cube(i=7)})
    rows = [
        *score_case("ann", label_map({1: cube()}), reference),
        *score_case("bob", label_map({2: cube(i=7)}), reference),
    ]
    liver, _, mean = Report(rows=tuple(rows)).summary()
    assert liver.estimates["dice"].low < liver.estimates["dice"].high
    assert (mean.n, mean.missed, mean.missed_of) == (2, 2, 4)
    assert mean.estimates["dice"].low == mean.estimates["dice"].mean == mean.estimates["dice"].high == 0.5


def test_a_report_without_rows_sums_up_to_nothing():
    (mean,) = Report(rows=()).summary()
    assert mean.n == 0
    assert np.isnan(mean.estimates["dice"].mean)


def case(name: str, reference: LabelMap | None, scan) -> Case:
    shown = reference or LabelMap(
        np.zeros((12, 10, 8), np.int16), Geometry((12, 10, 8), np.eye(4)), Labels((1,), ("x",))
    )
    return Case(name=name, image=scan(shown), reference=reference, labels=shown.labels)


def test_evaluate_scores_what_is_segmented(label_map, cube, scan):
    reference = label_map({1: cube(), 2: cube(i=7)})
    report = evaluate(lambda volume: reference, [case("ann", reference, scan), case("bob", reference, scan)])
    assert [(row.case, row.label, row.dice) for row in report.rows] == [
        ("ann", 1, 1),
        ("ann", 2, 1),
        ("bob", 1, 1),
        ("bob", 2, 1),
    ]
    assert not report.failures


def test_a_case_that_cannot_be_segmented_is_missed_and_the_others_go_on(label_map, cube, scan):
    reference = label_map({1: cube()})
    answers = iter([None, reference])

    def segment(volume):
        answer = next(answers)
        if answer is None:
            raise InputError("the scan of a potato")
        return answer

    report = evaluate(segment, [case("ann", reference, scan), case("bob", reference, scan)])
    assert [(f.case, f.reason) for f in report.failures] == [("ann", "the scan of a potato")]
    assert [(row.case, row.status) for row in report.rows if row.label == 1] == [("ann", "missed"), ("bob", "scored")]


def test_a_case_without_reference_is_listed_and_not_scored(label_map, cube, scan):
    report = evaluate(lambda volume: label_map({}), [case("ann", None, scan)])
    assert report.rows == ()
    assert "'ann' has no reference" in report.failures[0].reason


def test_a_programming_error_is_not_taken_for_a_failed_case(label_map, cube, scan):
    with pytest.raises(ZeroDivisionError):
        evaluate(lambda volume: 1 / 0, [case("ann", label_map({1: cube()}), scan)])


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance: float, label_map):
    with pytest.raises(SettingsError, match=f"got {tolerance}"):
        evaluate(lambda volume: label_map({}), [], tolerance_mm=tolerance)


@pytest.fixture
def folders(tmp_path: Path, label_map, cube) -> tuple[Path, Path]:
    """References of three cases; a shifted prediction of ann, none of bob, and a perfect one of eve."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for folder in (predictions, references):
        folder.mkdir()
    for name in ("ann", "bob", "eve"):
        write_label_map(references / f"{name}.nii.gz", label_map({1: cube(), 2: cube(i=7)}))
    write_label_map(predictions / "ann.nii.gz", label_map({1: cube(k=2), 2: cube(i=7)}))
    write_label_map(predictions / "eve.nii.gz", label_map({1: cube(), 2: cube(i=7)}))
    (predictions / "notes.txt").write_text("not a scan")
    return predictions, references


def test_folders_are_matched_by_stem(folders, label_map):
    report = evaluate_folders(*folders, labels=Labels((1, 2), ("liver", "spleen")))
    scored = {(row.case, row.name): row.dice for row in report.rows}
    assert scored[("ann", "liver")] == pytest.approx(2 / 3)
    assert scored[("eve", "liver")] == 1
    assert report.files["ann"].prediction.endswith("ann.nii.gz")


def test_references_may_have_other_names_than_the_predictions(folders):
    predictions, references = folders
    report = evaluate_folders(predictions, {"ann": references / "eve.nii.gz", "eve": references / "eve.nii.gz"})
    assert (report.failures, {row.case for row in report.rows}) == ((), {"ann", "eve"})
    assert report.files["ann"].reference.endswith("eve.nii.gz")


def test_a_stated_background_is_no_label_in_references_and_predictions(folders):
    predictions, references = folders
    stated = Labels((1,), ("liver",)), 0, 2
    report = evaluate_folders(predictions, references, 1.0, *stated)
    assert {failure.case for failure in report.failures} == {"bob"}
    (ann,) = (row for row in report.rows if row.case == "ann")
    counts = ann.counts
    assert (counts.n_ref, counts.tp + counts.fp + counts.fn + counts.tn) == (27, 54)  # the liver, and the background


def test_a_report_of_some_cases_has_their_rows_failures_and_files_only(folders):
    report = evaluate_folders(*folders)
    bob = report.only(["bob"])
    assert {row.case for row in bob.rows} == {one.case for one in bob.failures} == set(bob.files) == {"bob"}
    others = report.only(["ann", "eve"])
    assert (len(bob.rows) + len(others.rows), others.failures) == (len(report.rows), ())


def test_a_prediction_that_is_not_there_is_missed_and_listed(folders):
    report = evaluate_folders(*folders)
    assert [row.status for row in report.rows if row.case == "bob"] == ["missed", "missed"]
    assert [failure.case for failure in report.failures] == ["bob"]
    assert "no prediction" in report.failures[0].reason
    assert report.files["bob"].prediction is None


def test_predictions_none_of_which_has_the_name_of_a_reference_are_refused(folders, tmp_path):
    predictions, references = folders
    names = {f"patient-{number}": path for number, path in enumerate(sorted(references.iterdir()))}
    with pytest.raises(InputError, match="no prediction of any reference: its label maps are ann"):
        evaluate_folders(predictions, names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it contains no label map"):
        evaluate_folders(tmp_path / "empty", references)


def test_a_prediction_on_another_grid_is_a_failure_and_the_others_go_on(folders, label_map, cube):
    predictions, references = folders
    odd = LabelMap(np.ones((3, 3, 3), np.int16), Geometry((3, 3, 3), np.eye(4)), Labels((1,), ("liver",)))
    write_label_map(predictions / "ann.nii.gz", odd)
    report = evaluate_folders(predictions, references)
    assert [failure.case for failure in report.failures] == ["ann", "bob"]
    assert "(3, 3, 3)" in report.failures[0].reason
    assert {row.status for row in report.rows if row.case == "ann"} == {"missed"}
    assert {row.dice for row in report.rows if row.case == "eve"} == {1.0}


def test_a_damaged_prediction_is_missed_and_a_damaged_reference_is_not_scored(folders):
    predictions, references = folders
    for path in (predictions / "ann.nii.gz", references / "eve.nii.gz"):
        path.write_bytes(path.read_bytes()[:-40])
    report = evaluate_folders(predictions, references)
    assert [failure.case for failure in report.failures] == ["ann", "bob", "eve"]
    assert "ann.nii.gz" in report.failures[0].reason
    assert not [one.reason for one in report.failures if str(predictions.parent) in one.reason]  # as of a patient
    assert {row.status for row in report.rows if row.case == "ann"} == {"missed"}
    assert not [row for row in report.rows if row.case == "eve"]


def test_two_files_of_one_stem_are_refused(folders, label_map):
    _, references = folders
    write_label_map(references / "ann.nii", label_map({}))
    with pytest.raises(InputError, match=r"two files for one case: .*ann"):
        evaluate_folders(*folders)


def test_a_folder_without_references_is_refused(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label map"):
        evaluate_folders(folders[0], tmp_path / "empty")
    with pytest.raises(InputError, match="not a folder"):
        evaluate_folders(folders[0], tmp_path / "nowhere")
