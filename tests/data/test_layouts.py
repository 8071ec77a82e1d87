"""Folders as people have them, read as cohorts without conversion."""

import json
from pathlib import Path

import numpy as np
import pytest

import dicom_series
from handful.data.checks import check_case
from handful.data.files import find_references, read_cohort, write_label_map, write_volume
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError, UnsupportedInput


@pytest.fixture
def put(tmp_path: Path, volume: Volume, label_map: LabelMap):
    """Writes the scan, or its labels where the folder's name says so, under a path."""

    def put(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            if "label" in path.parent.name:
                write_label_map(path, label_map)
            else:
                write_volume(path, volume)

    return put


def _say(folder: Path, **content: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


def test_images_and_labels_are_matched_by_stem_whatever_their_format(tmp_path: Path, put, labels: Labels) -> None:
    put("images/b.nii.gz", "images/a.mha", "labels/a.nii.gz", "images/c.nrrd")
    _say(
        tmp_path,
        name="Balls",
        modality="CT",
        labels={"0": "background", "1": "ball", "3": "egg"},
        patient=dict.fromkeys("abc", "x"),
    )
    cohort = read_cohort(tmp_path)
    assert (cohort.name, cohort.labels) == ("Balls", labels)
    assert [(case.name, case.reference is not None) for case in cohort.cases] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]
    assert {(case.modality, case.patient) for case in cohort.cases} == {("CT", "x")}
    assert cohort.cases[0].read_image().modality == "CT"


def test_labels_by_name_are_read_too_and_ignore_means_unlabelled(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz")
    _say(tmp_path, labels={"background": 0, "ball": 1, "ignore": 3})
    cohort = read_cohort(tmp_path)
    assert cohort.labels == Labels((1,), ("ball",))
    assert np.unique(cohort.cases[0].read_reference().array).tolist() == [IGNORE, 0, 1]


def test_the_ignored_value_can_be_stated_apart(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz")
    _say(tmp_path, labels={"ball": 1}, ignore=3)
    assert np.unique(read_cohort(tmp_path).cases[0].read_reference().array).tolist() == [IGNORE, 0, 1]


@pytest.mark.parametrize(
    ("stated", "problem"),
    [('{"1": "ball", "1": "egg"}', 'the entry "1" is there 2 times'), ('{"1": "\\ud800"}', "surrogates not allowed")],
    ids=["lost", "half"],
)
def test_nothing_in_dataset_json_is_lost_or_half_a_character(tmp_path: Path, put, stated: str, problem: str) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz")
    (tmp_path / "dataset.json").write_text(f'{{"labels": {stated}}}')
    with pytest.raises(InputError, match=problem):
        read_cohort(tmp_path)


def test_without_names_the_labels_are_those_found(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz")
    cohort = read_cohort(tmp_path)
    assert cohort.labels == Labels((1, 3), ("label 1", "label 3"))
    assert cohort.cases[0].labels == cohort.labels


def test_nnunet_raw_is_read(tmp_path: Path, put) -> None:
    put("imagesTr/a_1_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a_1.nii.gz")
    _say(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "ball": 1, "egg": 3}, file_ending=".nii.gz")
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["a_1", "b"]
    assert cohort.cases[0].modality == "CT"
    assert cohort.cases[0].read_reference().labels.names == ("ball", "egg")


def test_msd_is_read_by_its_list(tmp_path: Path, put) -> None:
    put("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/unlisted.nii.gz")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, {"image": "./imagesTr/._a.nii.gz"}]
    _say(tmp_path, modality={"0": "MRI"}, labels={"0": "background", "1": "ball", "3": "egg"}, training=training)
    cohort = read_cohort(tmp_path)
    assert [(case.name, case.modality) for case in cohort.cases] == [("a", "MRI")]
    assert cohort.cases[0].read_reference().array.max() == 3


def test_first_nnunet_lists_images_without_their_channel(tmp_path: Path, put) -> None:
    put("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    _say(tmp_path, modality={"0": "CT"}, labels={"0": "background", "1": "ball", "3": "egg"}, training=training)
    assert read_cohort(tmp_path).cases[0].image == tmp_path / "imagesTr" / "a_0000.nii.gz"


def test_listed_label_maps_of_one_name_in_several_folders_belong_to_their_cases(tmp_path: Path, put) -> None:
    put("p1/scan.nii.gz", "p2/scan.nii.gz", "p1_labels/seg.nii.gz", "p2_labels/seg.nii.gz")
    listed = {name: {"images": [f"{name}/scan.nii.gz"], "label": f"{name}_labels/seg.nii.gz"} for name in ("p1", "p2")}
    _say(tmp_path, channel_names={"0": "MR"}, labels={"background": 0, "ball": 1, "egg": 3}, dataset=listed)
    files = {name: tmp_path / f"{name}_labels" / "seg.nii.gz" for name in ("p1", "p2")}
    assert {case.name: case.reference for case in read_cohort(tmp_path).cases} == files
    references = find_references(tmp_path)
    assert (references.files, references.labels) == (files, Labels((1, 3), ("ball", "egg")))
    (tmp_path / "p1_labels" / "seg_slices.json").write_text('{"axis": 2, "labelled": [1]}')
    cohort = read_cohort(tmp_path)
    assert [case.reference is None for case in cohort.cases] == [True, False]
    assert "move it to p1_labels/seg.slices.json" in cohort.left_out[0].reason


def test_a_folder_of_listed_label_maps_next_to_the_images_is_not_left_out(tmp_path: Path, put) -> None:
    put("a.nii.gz", "labels/a.nii.gz", "other/b.nii.gz")
    _say(tmp_path, labels={"1": "ball", "3": "egg"}, training=[{"image": "a.nii.gz", "label": "labels/a.nii.gz"}])
    assert [one.file for one in read_cohort(tmp_path).left_out] == ["other"]


def test_a_listed_label_map_may_differ_from_its_image_in_the_suffix_alone(tmp_path: Path, put) -> None:
    put("labels/a.mha", "labels/a.nii.gz")
    _say(tmp_path, labels={"1": "ball", "3": "egg"}, training=[{"image": "labels/a.mha", "label": "labels/a.nii.gz"}])
    cohort = read_cohort(tmp_path)
    files = {"a": tmp_path / "labels" / "a.nii.gz"}
    assert {case.name: case.reference for case in cohort.cases} == find_references(tmp_path).files == files
    assert cohort.left_out == ()


def test_a_list_of_slices_next_to_a_listed_image_is_left_out_with_the_label_map(tmp_path: Path, put) -> None:
    put("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    training = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    _say(tmp_path, labels={"0": "background", "1": "ball", "3": "egg"}, training=training)
    (tmp_path / "imagesTr" / "a.slices.json").write_text('{"axis": 2, "labelled": [1]}')
    cohort = read_cohort(tmp_path)
    assert cohort.cases[0].reference is None
    assert "move it to labelsTr/a.slices.json" in cohort.left_out[0].reason


def test_listed_folders_of_dicom_are_cases_by_their_whole_names(tmp_path: Path) -> None:
    names = ["patient.A", "patient.B"]
    for number, name in enumerate(names):
        dicom_series.write(tmp_path / "scans" / name, dicom_series.series(2, series=f"1.2.{number}"))
    _say(tmp_path, training=[{"image": f"scans/{name}"} for name in names])
    assert [case.name for case in read_cohort(tmp_path).cases] == names


@pytest.mark.parametrize("name", ["../../a", "a/b", ".a", "a\\b", "x" * 250])
def test_a_listed_case_whose_name_no_output_can_have_is_left_out(tmp_path: Path, put, name: str) -> None:
    put("imagesTr/a.nii.gz", "imagesTr/b.nii.gz")
    listed = {name: {"images": ["imagesTr/a.nii.gz"]}, "b": {"images": ["imagesTr/b.nii.gz"]}}
    _say(tmp_path, channel_names={"0": "MR"}, labels={"background": 0, "ball": 1}, dataset=listed)
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["b"]
    assert any("name" in one.reason and one.file.startswith("dataset.json") for one in cohort.left_out)


@pytest.mark.parametrize("image", ["../a.nii.gz", "/a.nii.gz"])
def test_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path, image: str) -> None:
    _say(tmp_path, labels={"ball": 1}, training=[{"image": image}])
    with pytest.raises(InputError, match="is outside the folder"):
        read_cohort(tmp_path)


def test_listed_file_that_is_not_there_is_named(tmp_path: Path, put) -> None:
    put("imagesTr/a.nii.gz")
    _say(tmp_path, labels={"ball": 1}, training=[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}])
    with pytest.raises(InputError, match=r"a\.nii\.gz: listed in dataset\.json, but missing"):
        read_cohort(tmp_path)


def test_bare_folder_and_single_file_are_cases_without_labels(tmp_path: Path, put) -> None:
    put("scans/b.nii.gz", "scans/a.nrrd")
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    (tmp_path / "scans" / "._a.nrrd").write_bytes(b"left by a Mac")
    cohort = read_cohort(tmp_path / "scans")
    assert [case.name for case in cohort.cases] == ["a", "b"]
    assert (cohort.labels, cohort.cases[0].read_reference()) == (None, None)
    assert [case.name for case in read_cohort(tmp_path / "scans" / "b.nii.gz").cases] == ["b"]


def test_labels_without_image_and_doubles_are_named(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz", "labels/z.nii.gz")
    cohort = read_cohort(tmp_path)
    assert cohort.cases[0].reference is not None
    (orphan,) = cohort.left_out
    assert orphan.file == "labels/z.nii.gz"
    assert "the names of image and label map must be equal" in orphan.reason
    (tmp_path / "labels" / "a.nii.gz").unlink()
    with pytest.raises(InputError, match=r"no label map belongs to a scan\. labels/z\.nii\.gz: labels without an"):
        read_cohort(tmp_path)
    assert [case.name for case in read_cohort(tmp_path, images_only=True).cases] == ["a"]
    put("images/a.mha")
    with pytest.raises(InputError, match=r"two files for one case: .*a\.mha and .*a\.nii\.gz; remove"):
        read_cohort(tmp_path)


def test_folder_without_scans_lists_the_known_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no scans in a supported layout: images/ and labels/"):
        read_cohort(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        read_cohort(tmp_path / "none")


def test_cases_without_a_patient_are_refused_where_others_have_one(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "images/b.nii.gz")
    _say(tmp_path, patient={"a": "1"})
    with pytest.raises(InputError, match=r'no "patient" for b; add them'):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"labels": 3}',
        '{"labels": {"ball": "1"}}',
        '{"labels": {"a": 1, "b": 1}}',
        '{"ignore": "255"}',
        '{"labels": {"1": "a", "2": "a"}}',
        '{"labels": {"1": " "}}',
    ],
)
def test_wrong_dataset_json_is_refused_by_name(tmp_path: Path, put, content: str) -> None:
    put("images/a.nii.gz")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json: "):
        read_cohort(tmp_path)


def test_regions_are_refused_with_a_remedy(tmp_path: Path, put) -> None:
    put("imagesTr/a_0000.nii.gz")
    _say(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "whole": [1, 2]})
    with pytest.raises(UnsupportedInput, match="region-based labels"):
        read_cohort(tmp_path)


def test_one_damaged_label_file_does_not_hide_the_rest(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz", "images/b.nii.gz", "labels/b.nii.gz")
    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"")
    good, bad = read_cohort(tmp_path).cases
    assert not check_case(good)
    assert [finding.severity for finding in check_case(bad)] == ["error"]


def test_references_are_found_in_a_cohort_and_in_a_folder_of_label_maps(tmp_path: Path, put) -> None:
    put("images/a.nii.gz", "labels/a.nii.gz")
    assert find_references(tmp_path).folder == tmp_path / "labels"
    assert find_references(tmp_path).labels is None
    _say(tmp_path, labels={"background": 0, "ball": 1, "ignore": 2})
    for folder in (tmp_path, tmp_path / "labels"):
        found = find_references(folder)
        assert (found.folder, found.labels, found.ignore) == (tmp_path / "labels", Labels.of({1: "ball"}), 2)


def test_references_without_scans_have_the_values_that_dataset_json_states(tmp_path: Path, put) -> None:
    put("labels/a.nii.gz")
    _say(tmp_path, labels={"ball": 1, "background": 3})
    found = find_references(tmp_path)
    assert (found.folder, found.problem) == (tmp_path / "labels", None)
    assert (found.labels, found.ignore, found.background) == (Labels((1,), ("ball",)), 0, 3)
    (tmp_path / "dataset.json").write_text("{")
    assert "not valid JSON" in str(find_references(tmp_path).problem)


@pytest.mark.realdata
def test_real_cohorts_are_read_and_checked(realdata: Path) -> None:
    folders = sorted(path for path in realdata.iterdir() if (path / "dataset.json").is_file())
    assert folders
    for folder in folders:
        cohort = read_cohort(folder)
        assert cohort.labels is not None
        assert all(case.reference is not None for case in cohort.cases)
        for case in cohort.cases[:5]:
            assert not [finding for finding in check_case(case) if finding.severity == "error"]
