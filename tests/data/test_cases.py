"""Cases, cohorts and support sets: what is drawn, what is handed to methods, and what is found wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handful.data.cases import Case, Cohort
from handful.data.checks import check_case
from handful.data.files import write_label_map, write_volume
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import GeometryMismatch, InputError, LabelError, SettingsError, UnsupportedInput


@pytest.fixture
def case(volume: Volume, label_map: LabelMap, labels: Labels) -> Case:
    return Case("one", volume, label_map, labels)


def _moved(label_map: LabelMap, millimetres: float) -> LabelMap:
    affine = label_map.geometry.affine.copy()
    affine[0, 3] += millimetres
    return replace(label_map, geometry=Geometry(label_map.geometry.shape, affine))


def _cohort(volume: Volume, label_map: LabelMap, order: list[int]) -> Cohort:
    """Twelve cases of six patients, the last two cases without labels."""
    cases = [Case(f"c{n}", volume, label_map if n < 10 else None, label_map.labels, f"p{n % 6}") for n in order]
    return Cohort(tuple(cases), label_map.labels, "twelve")


def test_a_split_takes_different_patients_and_keeps_theirs_out_of_the_rest(volume: Volume, label_map: LabelMap) -> None:
    support, rest = _cohort(volume, label_map, list(range(12))).split(3, seed=0)
    drawn = {case.patient for case in support}
    assert (len(support), len(drawn), len(rest)) == (3, 3, 6)
    assert drawn.isdisjoint(case.patient for case in rest)
    assert all(case.reference is not None for case in support)


def test_a_split_depends_on_the_seed_but_not_on_the_order_of_cases(volume: Volume, label_map: LabelMap) -> None:
    there = _cohort(volume, label_map, list(range(12)))
    back = _cohort(volume, label_map, list(range(12))[::-1])
    for seed in range(5):
        for one, other in zip(there.split(2, seed), back.split(2, seed), strict=True):
            assert [case.name for case in one] == [case.name for case in other]
    assert len({tuple(case.name for case in there.split(2, seed)[0]) for seed in range(10)}) > 3


def test_a_larger_split_contains_the_smaller_one(volume: Volume, label_map: LabelMap) -> None:
    cohort = _cohort(volume, label_map, list(range(12)))
    assert cohort.split(5, seed=1)[0][:2] == cohort.split(2, seed=1)[0]


def test_a_few_test_cases_are_random_and_others_in_each_split(volume: Volume, label_map: LabelMap) -> None:
    cohort = Cohort(tuple(Case(f"case-{n:02}", volume, label_map) for n in range(40)), label_map.labels, "forty")
    found = [[case.name for case in cohort.test_cases(2, seed, 5)] for seed in range(20)]
    assert all(len(names) == 5 and names == sorted(names) for names in found)
    assert len({tuple(names) for names in found}) == 20
    assert len({name for names in found for name in names}) > 30, "not always the same ones"
    for seed, names in enumerate(found):
        assert not {case.name for case in cohort.split(2, seed)[0]} & set(names)
        assert [case.name for case in cohort.test_cases(4, seed, 5)] == names, "more labels, the same test cases"
    assert len(cohort.test_cases(2, 0)) == len(cohort.test_cases(2, 0, 99)) == 38


@pytest.mark.parametrize("shots", [0, 7])
def test_drawing_more_patients_than_there_are_is_refused(volume: Volume, label_map: LabelMap, shots: int) -> None:
    with pytest.raises(SettingsError, match=f"'twelve': cannot choose {shots} labelled patients, there are 6"):
        _cohort(volume, label_map, list(range(12))).split(shots, seed=0)


def test_cases_of_one_name_are_refused(case: Case) -> None:
    with pytest.raises(InputError, match="several cases called one"):
        Cohort((case, case), case.labels, "double")


def test_empty_support_is_refused(labels: Labels) -> None:
    with pytest.raises(InputError, match="support set is empty; give at least one labelled case"):
        SupportSet((), labels)


def test_support_case_without_labels_is_named(case: Case, labels: Labels) -> None:
    with pytest.raises(LabelError, match="support case 'one' has no labels"):
        SupportSet((replace(case, reference=None),), labels)


def test_label_that_no_support_slice_holds_is_named(case: Case) -> None:
    wanted = Labels((1, 3, 4), ("ball", "egg", "spleen"))
    with pytest.raises(LabelError, match=r"no support slice holds the label 'spleen' \(4\) \(cases one\); add a case"):
        SupportSet((replace(case, labels=wanted),), wanted)


def test_unlabelled_label_does_not_count_as_held(case: Case, label_map: LabelMap, labels: Labels) -> None:
    label_map.array[label_map.array == 3] = IGNORE
    with pytest.raises(LabelError, match="'egg'"):
        SupportSet((case,), labels)


def test_support_without_any_labelled_slice_is_refused(case: Case, label_map: LabelMap, labels: Labels) -> None:
    label_map.array[:] = IGNORE
    with pytest.raises(LabelError, match=r"'one' has no labelled slice; list some in its \.slices\.json"):
        SupportSet((case,), labels)


def test_support_slices_hold_image_masks_and_what_is_known(case: Case, label_map: LabelMap, labels: Labels) -> None:
    label_map.array[:, :, 0] = IGNORE
    label_map.array[:4, :, 3] = IGNORE
    slicer = Slicer(plane="axial", window=(0, 400))
    (slices,) = SupportSet((case,), labels).slices(slicer)
    view = slicer.view(case.read_image())
    classes = view.of(label_map.array)
    expected = [n for n in range(5) if (classes[n] != IGNORE).any()]
    assert (list(slices.index), slices.count, slices.case) == (expected, 5, "one")
    assert len(expected) == 4
    torch.testing.assert_close(slices.slices, slicer.cut(case.read_image())[expected])
    for k, value in enumerate(labels.values):
        np.testing.assert_array_equal(slices.masks()[:, k], classes[expected] == value)
    np.testing.assert_array_equal(slices.valid_mask, classes[expected] != IGNORE)


def test_sidecar_decides_which_slices_of_a_file_support(
    tmp_path: Path, volume: Volume, label_map: LabelMap, labels: Labels
) -> None:
    write_label_map(tmp_path / "one.nii.gz", label_map)
    (tmp_path / "one.slices.json").write_text(json.dumps({"axis": 2, "labelled": [0, 2, 3]}))
    support = SupportSet((Case("one", volume, tmp_path / "one.nii.gz", labels),), labels)
    (slices,) = support.slices(Slicer(plane="axial", window=(0, 400)))
    assert len(slices.index) == 3
    assert slices.valid_mask.all()
    assert (slices.masks().sum(dim=(1, 2, 3)) == 0).sum() == 1  # slice 0: labelled, and empty


def test_values_outside_the_support_labels_are_background(case: Case) -> None:
    (slices,) = SupportSet((case,), Labels((3,), ("egg",))).slices(Slicer(plane="axial"))
    assert slices.masks().shape[1] == 1
    assert slices.valid_mask.all()


def test_reference_of_another_shape_names_case_and_both_shapes(volume: Volume, labels: Labels) -> None:
    geometry = Geometry((9, 7, 4), volume.geometry.affine)
    case = Case("one", volume, LabelMap(np.ones(geometry.shape, np.int16), geometry, labels), labels)
    with pytest.raises(GeometryMismatch, match=r"case 'one': .*\(9, 7, 5\) and \(9, 7, 4\) voxels; resample"):
        case.read_reference()


def test_reference_files_of_another_grid_are_named(tmp_path: Path, volume: Volume, label_map: LabelMap) -> None:
    write_volume(tmp_path / "image.nii.gz", volume)
    write_label_map(tmp_path / "label.nii.gz", _moved(label_map, 5.0))
    case = Case("one", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    with pytest.raises(GeometryMismatch, match=r"image\.nii\.gz.*label\.nii\.gz.*differ by up to 5 mm"):
        case.read_reference()


def test_reference_within_half_a_voxel_lies_on_the_image_grid_and_is_reported(case: Case, label_map: LabelMap) -> None:
    off = replace(case, reference=_moved(label_map, 0.3))
    assert off.read_reference().geometry is case.image.geometry
    (finding,) = check_case(off)
    assert finding.severity == "warning"
    assert "differ by 0.3 mm, less than half a voxel" in finding.message
    assert not check_case(replace(case, reference=_moved(label_map, 3e-4)))


def test_reference_with_values_that_are_no_label_is_refused(case: Case) -> None:
    with pytest.raises(LabelError, match=r"case 'one': values that are not labels: 3 in 9 voxels, slices 3"):
        replace(case, labels=Labels((1,), ("ball",))).read_reference()


def test_image_in_memory_with_nan_is_refused(case: Case, geometry: Geometry) -> None:
    voxels = np.zeros((1, *geometry.shape), dtype=np.float32)
    voxels[0, 1, 2, 3] = np.nan
    broken = replace(case, image=Volume(voxels, geometry))
    with pytest.raises(UnsupportedInput, match=r"case 'one': 1 of 315 voxels are NaN .* the first at \(1, 2, 3\)"):
        broken.read_image()
    assert [finding.severity for finding in check_case(broken)] == ["error"]


def test_a_good_case_has_no_findings(case: Case) -> None:
    assert check_case(case) == []


def test_constant_image_is_found_to_have_no_signal(case: Case, geometry: Geometry) -> None:
    flat = replace(case, image=Volume(np.full((1, *geometry.shape), 7, np.int16), geometry))
    (finding,) = check_case(flat)
    assert (finding.severity, finding.message[:41]) == ("warning", "no signal: every voxel has the value 7, s")


def test_ct_without_the_peaks_of_a_ct_is_doubted(case: Case) -> None:
    (finding,) = check_case(replace(case, modality="CT"))
    assert finding.severity == "warning"
    assert "dataset.json says CT, but the voxels lack the peaks of air and soft tissue" in finding.message


def test_one_slice_is_noted(volume: Volume) -> None:
    geometry = Geometry((9, 7, 1), volume.geometry.affine)
    (finding,) = check_case(Case("one", Volume(volume.array[..., :1], geometry)))
    assert (finding.severity, finding.message) == ("note", "only one slice, grid (9, 7, 1); segmented like a picture")


def test_picture_of_one_slice_is_nothing_to_note(volume: Volume) -> None:
    geometry = Geometry((9, 7, 1), np.diag([-1.0, -1, 1, 1]), unit="pixel")
    assert check_case(Case("one", Volume(volume.array[..., :1], geometry))) == []


def test_empty_reference_is_a_warning(case: Case, label_map: LabelMap) -> None:
    label_map.array[:] = 0
    (finding,) = check_case(case)
    assert (finding.severity, "contains no label" in finding.message) == ("warning", True)


def test_huge_volume_is_noted_with_the_space_it_needs(geometry: Geometry) -> None:
    grid = Geometry((1024, 1024, 400), geometry.affine)
    voxels = np.broadcast_to(np.array([0, 1] * 200, dtype=np.int8), (1, *grid.shape))  # strides of 0: no memory
    (finding,) = check_case(Case("big", Volume(voxels, grid)))
    assert "need about 2.0 GiB for temporary files" in finding.message


def test_damaged_image_is_an_error_that_ends_the_checks(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"")
    (finding,) = check_case(Case("one", tmp_path / "a.nii.gz", tmp_path / "none.nii.gz"))
    assert (finding.case, finding.severity) == ("one", "error")
    assert "a.nii.gz: ends after 0 bytes" in finding.message


def test_missing_reference_file_is_an_error(tmp_path: Path, volume: Volume, labels: Labels) -> None:
    (finding,) = check_case(Case("one", volume, tmp_path / "none.nii.gz", labels))
    assert finding.severity == "error"
    assert "none.nii.gz: no such file" in finding.message


def test_labelled_slices_take_no_more_memory_for_more_labels(volume: Volume) -> None:
    def held(count: int) -> int:
        array = np.arange(np.prod(volume.geometry.shape)).reshape(volume.geometry.shape) % (count + 1)
        labels = Labels(tuple(range(1, count + 1)), tuple(map(str, range(count))))
        case = Case("one", volume, LabelMap(array.astype(np.int16), volume.geometry, labels), labels)
        (slices,) = SupportSet((case,), labels).slices(Slicer(plane="axial"))
        assert slices.masks([0]).shape[:2] == (1, count)
        assert slices.present().shape == (len(slices.index), count)
        return sum(part.nbytes for part in vars(slices).values() if isinstance(part, torch.Tensor))

    assert held(117) == held(2)
