"""DICOM segmentations: written in the planes of the scan, read back by three programs, refused by their cause."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from PIL import ImageColor
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import dicom_series as made
from handful.data.checks import check_case
from handful.data.dicom.segmentation import Maker, SegmentationStyle, write_segmentation
from handful.data.dicom.series import ONLY_SERIES, SeriesChoice
from handful.data.dicom.terms import TISSUE, Code, Term, read_terms, require_labels, standard_term
from handful.data.files import read_cohort, read_label_map, read_volume, write_label_map
from handful.data.label_colours import COLOURS
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels
from handful.errors import (
    DamagedFile,
    GeometryMismatch,
    HandfulError,
    InputError,
    LabelError,
    SettingsError,
    UnsupportedInput,
)
from handful.evaluation.evaluate import evaluate_folders

LABELS = Labels((1, 2, 5), ("liver", "my tumour", "spleen"))
MAKER = Maker("fate", "ab" * 32)


def blobs(geometry: Geometry, labels: Labels = LABELS) -> LabelMap:
    """No symmetry in any direction; the first and the last slice are empty."""
    array = np.zeros(geometry.shape, np.int16)
    array[1:4, 2:7, 1:3] = 1
    array[5, 1, 1:-1] = 2
    array[6:9, 5:7, -3:-1] = 5
    return LabelMap(array, geometry, labels)


def written(folder: Path, out: Path, style: SegmentationStyle | None = None, **choice: Any) -> LabelMap:
    """The label map of which `out` is the segmentation."""
    label_map = blobs(read_volume(folder, **choice).geometry)
    write_segmentation(out, label_map, folder, SeriesChoice(**choice), style or SegmentationStyle(maker=MAKER))
    return label_map


def by_pydicom(path: Path, geometry: Geometry, values: Sequence[int]) -> NDArray[Any]:
    """The voxels by the header alone: each pixel's point in the patient, and the voxel of the scan that is there."""
    data = dcmread(path)
    shared = data.SharedFunctionalGroupsSequence[0]
    row_gap, column_gap = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    found = np.zeros(geometry.shape, int)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    for frame, group in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            point = origin + cosines[:3] * column * column_gap + cosines[3:] * row * row_gap
            voxel = np.linalg.solve(geometry.affine, [-point[0], -point[1], point[2], 1])[:3]
            np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-3)
            number = frame[row, column]
            if "SegmentIdentificationSequence" in group:
                number = values[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
            found[tuple(np.rint(voxel).astype(int))] = number
    return found


def by_dcmqi(path: Path, geometry: Geometry, values: Sequence[int], folder: Path) -> NDArray[Any]:
    """The voxels by dcmqi's segimage2itkimage, each point looked up in its NRRD files by SimpleITK."""
    folder.mkdir()
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd"]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    found = np.zeros(geometry.shape, int)
    for file in folder.glob("*.nrrd"):
        image = sitk.ReadImage(str(file))
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        voxels = np.argwhere(sitk.GetArrayFromImage(image).transpose(2, 1, 0))
        points = np.diag([-1, -1, 1, 1]) @ affine @ np.c_[voxels, np.ones(len(voxels))].T
        places = np.linalg.solve(geometry.affine, points)[:3]
        np.testing.assert_allclose(places, np.rint(places), atol=1e-3)
        found[tuple(np.rint(places).astype(int))] = values[int(file.stem) - 1]
    return found


def oblique() -> NDArray[Any]:
    one, _ = np.linalg.qr(np.array([[3.0, 1, 0.5], [-1, 4, 0.7], [0.2, -0.6, 5]]))
    return np.asarray(one * np.sign(np.linalg.det(one)))


@pytest.mark.parametrize("axes", made.ORIENTATIONS, ids=lambda axes: str(axes.astype(int).ravel().tolist()))
def test_pydicom_and_handful_find_the_same_voxels_in_48_orientations(axes: NDArray[Any], tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5, axes=axes))
    truth = written(folder, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(by_pydicom(tmp_path / "seg.dcm", truth.geometry, LABELS.values), truth.array)
    again = read_label_map(tmp_path / "seg.dcm", LABELS, grid=truth.geometry)
    np.testing.assert_array_equal(again.array, truth.array)


def enhanced(tmp_path: Path) -> Path:
    return made.write(tmp_path / "scan", [made.enhanced([1.0] * 5, order=[3, 0, 4, 1, 2])])


SCANS: dict[str, Callable[[Path], Path]] = {
    "oblique": lambda tmp: made.write(tmp / "scan", made.series(5, axes=oblique())),
    "left-handed": lambda tmp: made.write(tmp / "scan", made.series(5, axes=made.ORIENTATIONS[13])),
    "zip": lambda tmp: made.zipped(made.write(tmp / "scan", made.series(5))),
    "enhanced": enhanced,
    "compressed": lambda tmp: made.write(tmp / "scan", [made.compressed(one, "rle") for one in made.series(5)]),
}


@pytest.mark.parametrize("encoding", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("scan", SCANS)
def test_both_find_the_same_voxels_of_every_kind_of_scan(scan: str, encoding: Any, tmp_path: Path):
    folder, out = SCANS[scan](tmp_path), tmp_path / "seg.dcm"
    truth = written(folder, out, SegmentationStyle(encoding, maker=MAKER))
    np.testing.assert_array_equal(read_label_map(out, LABELS, grid=truth.geometry).array, truth.array)
    np.testing.assert_array_equal(by_pydicom(out, truth.geometry, LABELS.values), truth.array)


@pytest.mark.process
@pytest.mark.parametrize("scan", SCANS)
def test_dcmqi_finds_the_same_voxels(scan: str, tmp_path: Path):
    folder, out = SCANS[scan](tmp_path), tmp_path / "seg.dcm"
    truth = written(folder, out)
    np.testing.assert_array_equal(by_dcmqi(out, truth.geometry, LABELS.values, tmp_path / "itk"), truth.array)


@pytest.mark.process
@pytest.mark.parametrize("scan", ["oblique", "left-handed"])
def test_segmentations_of_dcmqi_are_read(scan: str, tmp_path: Path):
    folder = SCANS[scan](tmp_path)
    truth = blobs(read_volume(folder).geometry)
    write_label_map(tmp_path / "truth.nrrd", truth)
    code = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    segments = [
        {
            "labelID": value,
            "SegmentLabel": name,
            "SegmentDescription": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code,
            "SegmentedPropertyTypeCodeSequence": code,
        }
        for value, name in LABELS.as_dict().items()
    ]
    meta = {"ContentCreatorName": "Nobody", "SeriesNumber": "9", "InstanceNumber": "1", "segmentAttributes": [segments]}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    program = Path(sys.executable).with_name("itkimage2segimage")
    command = [program, "--inputImageList", tmp_path / "truth.nrrd", "--inputDICOMDirectory", folder]
    command += ["--outputDICOM", tmp_path / "seg.dcm", "--inputMetadata", tmp_path / "meta.json", "--skip", "1"]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    again = read_label_map(tmp_path / "seg.dcm", LABELS, grid=truth.geometry)
    np.testing.assert_array_equal(again.array, truth.array)


def test_frames_refer_to_the_image_at_their_place(tmp_path: Path):
    images = made.series(5)
    folder = made.write(tmp_path / "scan", images)
    written(folder, tmp_path / "seg.dcm")
    data = dcmread(tmp_path / "seg.dcm")
    place = {one.SOPInstanceUID: list(one.ImagePositionPatient) for one in images}
    for group in data.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert place[source] == list(group.PlanePositionSequence[0].ImagePositionPatient)
    (series,) = data.ReferencedSeriesSequence
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} == set(place)
    assert (series.SeriesInstanceUID, data.FrameOfReferenceUID) == ("1.2.3.4", "1.2.9")
    assert (data.PatientName, data.PatientID, data.StudyInstanceUID) == (made.NAME, made.IDENTITY, made.STUDY)
    assert (data.Modality, data.SeriesNumber, data.NumberOfFrames) == ("SEG", 1001, 2 + 3 + 2)
    assert len(data.SharedFunctionalGroupsSequence) == 1


def test_segments_have_names_terms_and_their_maker(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    own = Term(Code("4147007", "SCT", "Mass"), Code("49755003", "SCT", "Morphologically Altered Structure"))
    written(folder, tmp_path / "seg.dcm", SegmentationStyle(terms={"my tumour": own}, maker=MAKER))
    segments = dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [one.SegmentLabel for one in segments] == ["liver", "my tumour", "spleen"]
    types = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    assert [one.CodeValue for one in types] == ["10200004", "4147007", "78961009"]
    assert segments[1].SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert {one.SegmentAlgorithmType for one in segments} == {"AUTOMATIC"}
    maker = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert maker.AlgorithmName == "handful fate"
    assert MAKER.model in maker.AlgorithmParameters


def test_labels_by_hand_state_no_algorithm(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    written(folder, tmp_path / "seg.dcm", SegmentationStyle())
    data = dcmread(tmp_path / "seg.dcm")
    assert (data.SeriesDescription, data.ContentDescription) == ("handful manual", "Labels finished by a person")
    for one in data.SegmentSequence:
        assert one.SegmentAlgorithmType == "MANUAL"
        assert not {"SegmentAlgorithmName", "SegmentationAlgorithmIdentificationSequence"} & {e.keyword for e in one}


def test_a_model_of_an_unknown_method_is_stated_by_its_digest(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    written(folder, tmp_path / "seg.dcm", SegmentationStyle(maker=Maker("", MAKER.model)))
    maker = dcmread(tmp_path / "seg.dcm").SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (maker.AlgorithmName, MAKER.model in maker.AlgorithmParameters) == ("handful", True)


def test_segments_have_the_colours_of_pictures(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    written(folder, tmp_path / "seg.dcm")
    stored = [one.RecommendedDisplayCIELabValue for one in dcmread(tmp_path / "seg.dcm").SegmentSequence]
    for one, colour in zip(stored, COLOURS, strict=False):
        shown = CIELabColor.from_dicom_value(one).to_rgb()
        assert np.abs(np.subtract(shown, ImageColor.getrgb(colour))).max() <= 2, colour


def test_equal_results_have_equal_uids_and_others_do_not(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    uids = []
    for style in (
        SegmentationStyle(),
        SegmentationStyle(),
        SegmentationStyle(maker=MAKER),
        SegmentationStyle("LABELMAP"),
    ):
        written(folder, tmp_path / "seg.dcm", style)
        data = dcmread(tmp_path / "seg.dcm")
        uids.append((data.SOPInstanceUID, data.SeriesInstanceUID))
        assert data.SOPInstanceUID != data.SeriesInstanceUID
    assert uids[0] == uids[1]
    assert len(set(uids)) == 3


def test_an_empty_result_is_a_small_file_that_is_read_as_empty(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series(6)), tmp_path / "seg.dcm"
    geometry = read_volume(folder).geometry
    write_segmentation(out, LabelMap(np.zeros(geometry.shape, np.int16), geometry, LABELS), folder)
    assert dcmread(out).NumberOfFrames == len(LABELS)
    assert not read_label_map(out, LABELS, grid=geometry).array.any()


def test_a_picture_has_a_segmentation_without_a_place(tmp_path: Path):
    image = made.image(made.voxels(1)[0], position=None, modality="US", FrameOfReferenceUID=None, PixelSpacing=None)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    folder, out = made.write(tmp_path / "scan", [image]), tmp_path / "seg.dcm"
    geometry = read_volume(folder).geometry
    array = np.zeros(geometry.shape, np.int16)
    array[2:5, 1:3] = 1
    write_segmentation(out, LabelMap(array, geometry, LABELS), folder)
    np.testing.assert_array_equal(read_label_map(out, LABELS, grid=geometry).array, array)
    np.testing.assert_array_equal(read_label_map(out, LABELS).array, array)


def test_large_label_values_are_segments_of_their_own(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series()), tmp_path / "seg.dcm"
    label_map = blobs(read_volume(folder).geometry)
    labels = Labels((1, 2, 2**31 - 1), LABELS.names)
    array = np.where(label_map.array == 5, 2**31 - 1, label_map.array.astype(np.int32))
    large = LabelMap(array, label_map.geometry, labels)
    write_segmentation(out, large, folder, ONLY_SERIES, SegmentationStyle(maker=MAKER))
    np.testing.assert_array_equal(read_label_map(out, labels, grid=large.geometry).array, array)
    with pytest.raises(UnsupportedInput, match="values up to 65,535; write BINARY"):
        write_segmentation(out, large, folder, ONLY_SERIES, SegmentationStyle("LABELMAP", {}, MAKER))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [({"StudyInstanceUID": None}, "no StudyInstanceUID"), ({"FrameOfReferenceUID": None}, "no FrameOfReferenceUID")],
)
def test_scans_that_nothing_can_refer_to_are_refused(changes: dict[str, None], cause: str, tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5, **changes))
    with pytest.raises(UnsupportedInput, match=f"{cause}.*write .nii.gz") as caught:
        written(folder, tmp_path / "seg.dcm")
    assert made.IDENTITY not in str(caught.value)
    assert not (tmp_path / "seg.dcm").exists()


def test_unlabelled_voxels_and_other_grids_are_refused(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series(5)), tmp_path / "seg.dcm"
    truth = blobs(read_volume(folder).geometry)
    truth.array[0, 0, 0] = IGNORE
    with pytest.raises(LabelError, match="unlabelled"):
        write_segmentation(out, truth, folder)
    moved = Geometry(truth.geometry.shape, truth.geometry.affine + np.diag([0, 0, 5.0, 0]))
    with pytest.raises(GeometryMismatch):
        write_segmentation(out, blobs(moved), folder)


def test_slices_that_are_off_within_the_tolerance_keep_their_own_place(tmp_path: Path):
    images = made.series(5)
    images[2].ImagePositionPatient = (np.array(images[2].ImagePositionPatient, float) + np.array([0, 0, 0.1])).tolist()
    folder, out = made.write(tmp_path / "scan", images), tmp_path / "seg.dcm"
    truth = written(folder, out, slice_tolerance=0.2)
    np.testing.assert_array_equal(read_label_map(out, LABELS, grid=truth.geometry).array, truth.array)


def segmentation(images: Sequence[Any], pixels: NDArray[Any], names: Sequence[str], kind: str = "BINARY") -> Any:
    """A segmentation by highdicom with these segments (slices, rows, columns, segments), as others write it."""
    codes = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    described = [
        highdicom.seg.SegmentDescription(number, name, codes, codes, "MANUAL") for number, name in enumerate(names, 1)
    ]
    for one in images:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(one, keyword, None)
    uids = [generate_uid() for _ in range(2)]
    return highdicom.seg.Segmentation(
        images, pixels, kind, described, uids[0], 9, uids[1], 1, "others", "others", "1", "1"
    )


def test_overlapping_segments_are_refused_with_the_way_out(tmp_path: Path):
    images = made.series(3)
    pixels = np.zeros((3, made.ROWS, made.COLUMNS, 2), np.uint8)
    pixels[1, 2:5, 2:5, 0] = 1
    pixels[1, 4:7, 4:7, 1] = 1
    segmentation(images, pixels, ["liver", "spleen"]).save_as(tmp_path / "seg.dcm")
    folder = made.write(tmp_path / "scan", images)
    with pytest.raises(LabelError, match=r"'liver' and 'spleen' in 1 voxel.*Overwrite all"):
        read_label_map(tmp_path / "seg.dcm", grid=read_volume(folder).geometry)


def changed(path: Path, **values: Any) -> Path:
    data = dcmread(path)
    for keyword, value in values.items():
        setattr(data, keyword, value)
    data.save_as(path)
    return path


@pytest.mark.parametrize(
    ("values", "error", "cause"),
    [
        ({"SegmentationType": "FRACTIONAL"}, UnsupportedInput, "without fractions"),
        ({"SOPClassUID": made.CT}, UnsupportedInput, "not a segmentation"),
        ({"NumberOfFrames": 3}, DamagedFile, "3 frames, but descriptions of 7"),
        ({"Rows": 60000, "Columns": 60000}, DamagedFile, "truncated"),
        ({"PixelData": b"\0\0"}, DamagedFile, "truncated"),
        ({"Rows": 7}, DamagedFile, "does not fit its pixels"),
        ({"SegmentSequence": []}, LabelError, "describes no segment"),
    ],
)
def test_other_objects_and_damaged_files_are_refused(values: Any, error: type[Exception], cause: str, tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    truth = written(folder, tmp_path / "seg.dcm")
    path = changed(tmp_path / "seg.dcm", **values)
    with pytest.raises(error, match=cause) as caught:
        read_label_map(path, LABELS, grid=truth.geometry)
    assert made.IDENTITY not in str(caught.value)


def test_frames_that_are_far_apart_take_no_more_memory_than_allowed(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series(5)), tmp_path / "seg.dcm"
    written(folder, out)
    data = dcmread(out)
    data.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0].ImagePositionPatient = [-12.5, 7.25, 60_040]
    data.save_as(out)
    with pytest.raises(
        DamagedFile, match=r"its frames span \(10, 8, (19999|20000)\) voxels, .* but 1,000,000 are allowed"
    ):
        read_label_map(out, max_bytes=1_000_000)


def test_segments_become_the_labels_of_their_name_and_others_are_refused(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series(5)), tmp_path / "seg.dcm"
    truth = written(folder, out)
    other = Labels((3, 4, 7), ("Spleen", "liver", "my_tumour"))
    again = read_label_map(out, other, grid=truth.geometry).array
    for ours, theirs in ((1, 4), (2, 7), (5, 3)):
        np.testing.assert_array_equal(truth.array == ours, again == theirs)
    with pytest.raises(LabelError, match=r"segment 2 is 'my tumour', which is no label.*dataset.json"):
        read_label_map(out, Labels((1, 2), ("liver", "spleen")), grid=truth.geometry)
    numbered = read_label_map(out, Labels((1, 2, 3), ("label 1", "label 2", "label 3")), grid=truth.geometry)
    assert set(np.unique(numbered.array)) == {0, 1, 2, 3}
    assert read_label_map(out).labels.as_dict() == {1: "liver", 2: "my tumour", 3: "spleen"}


def test_names_that_dicom_cuts_are_those_of_the_labels(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series(5)), tmp_path / "seg.dcm"
    grid = read_volume(folder).geometry
    long = Labels((1, 2, 5), ("liver", f"tumour {'of the liver ' * 6}", "spleen"))
    truth = blobs(grid, long)
    write_segmentation(out, truth, folder, style=SegmentationStyle(maker=MAKER))
    np.testing.assert_array_equal(read_label_map(out, long, grid=grid).array, truth.array)
    twice = blobs(grid, Labels((1, 2, 5), ("liver", f"{'tumour ' * 10}a", f"{'tumour ' * 10}b")))
    with pytest.raises(LabelError, match="64 letters for a name, and several labels begin with 'tumour tumour"):
        write_segmentation(out, twice, folder, style=SegmentationStyle(maker=MAKER))


def test_strokes_in_segments_are_scribbles_if_dataset_json_names_the_background(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    label_map = blobs(read_volume(folder).geometry, Labels((1, 2, 5), ("liver", "background", "spleen")))
    write_segmentation(tmp_path / "a.dcm", label_map, folder)
    labels = Labels((3, 4), ("spleen", "liver"))
    found = read_label_map(tmp_path / "a.dcm", labels, 0, 9, grid=label_map.geometry).array
    meaning = {0: IGNORE, 1: 4, 2: 0, 5: 3}
    np.testing.assert_array_equal(found, np.vectorize(meaning.get)(label_map.array))


def test_a_cohort_has_segmentations_as_labels(tmp_path: Path):
    for case in ("a", "b"):
        folder = made.write(tmp_path / "cohort" / "images" / case, made.series(5, series=f"1.2.{ord(case)}"))
        (tmp_path / "cohort" / "labels").mkdir(exist_ok=True)
        names = Labels((1, 2, 5), ("liver", "my tumour", "spleen") if case == "a" else ("spleen", "liver", "cyst"))
        truth = blobs(read_volume(folder).geometry, names)
        write_segmentation(tmp_path / "cohort" / "labels" / f"{case}.dcm", truth, folder)
    cohort = read_cohort(tmp_path / "cohort")
    assert cohort.labels is not None
    assert cohort.labels.as_dict() == {1: "liver", 2: "my tumour", 3: "spleen", 4: "cyst"}
    reference = cohort.cases[1].read_reference()
    assert reference is not None
    np.testing.assert_array_equal(reference.array == 1, truth.array == 2)
    np.testing.assert_array_equal(reference.array == 4, truth.array == 5)


def test_labels_in_a_segmentation_are_checked(tmp_path: Path):
    folder = made.write(tmp_path / "images" / "a", made.series(5))
    (tmp_path / "labels").mkdir()
    written(folder, tmp_path / "labels" / "a.dcm")
    (case,) = read_cohort(tmp_path).cases
    assert [one.message for one in check_case(case) if one.severity == "error" or "label" in one.message] == []
    changed(tmp_path / "labels" / "a.dcm", FrameOfReferenceUID="1.2.10")
    assert ["frame of reference" in one.message for one in check_case(case) if one.severity == "error"] == [True]


@pytest.mark.parametrize("archive", [False, True])
def test_a_segmentation_chooses_the_series_that_it_refers_to(archive: bool, tmp_path: Path):
    folder = made.write(tmp_path / "images" / "a", made.series(5, series="1.2.77", number=2))
    made.write(folder / "thin", made.series(9, gap=1.5, series="1.2.78", number=3))
    (tmp_path / "labels").mkdir()
    truth = written(folder, tmp_path / "labels" / "a.dcm", series="2")
    if archive:
        made.zipped(folder)
        shutil.rmtree(folder)
    (case,) = read_cohort(tmp_path).cases
    assert case.read_geometry().shape == truth.geometry.shape
    reference = case.read_reference()
    assert reference is not None
    np.testing.assert_array_equal(reference.array > 0, truth.array > 0)
    (other,) = read_cohort(tmp_path, series="3").cases
    assert other.read_geometry().shape[2] == 9
    with pytest.raises(GeometryMismatch, match=r"its slices are 3 mm apart, those of the scan 1.5 mm"):
        other.read_reference()


def test_a_segmentation_of_another_examination_is_refused(tmp_path: Path):
    folder = made.write(tmp_path / "images" / "a", made.series(5))
    other = made.write(tmp_path / "other", made.series(5, FrameOfReferenceUID="1.2.10"))
    (tmp_path / "labels").mkdir()
    written(other, tmp_path / "labels" / "a.dcm")
    (case,) = read_cohort(tmp_path).cases
    with pytest.raises(GeometryMismatch, match="another frame of reference"):
        case.read_reference()
    moved = made.write(tmp_path / "moved", made.series(5, gap=2.5, series="1.2.80"))
    written(moved, tmp_path / "labels" / "a.dcm")
    with pytest.raises(GeometryMismatch, match="voxels off the grid"):
        case.read_reference()
    assert folder.is_dir()


def test_scores_are_the_same_whether_either_folder_holds_segmentations(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series(5))
    truth = blobs(read_volume(folder).geometry)
    array = truth.array.copy()
    array[1:3, 2:7, 1:3] = 0
    array[3, 3, 0] = 5
    predicted = LabelMap(array, truth.geometry, LABELS)
    scores = []
    for kinds in (("nii.gz", "nii.gz"), ("nii.gz", "dcm"), ("dcm", "nii.gz"), ("dcm", "dcm")):
        for kind, name, content in zip(kinds, ("truth", "predicted"), (truth, predicted), strict=True):
            out = tmp_path / "-".join(kinds) / name
            out.mkdir(parents=True)
            if kind == "dcm":
                write_segmentation(out / "a.dcm", content, folder)
            else:
                write_label_map(out / "a.nii.gz", content)
        report = evaluate_folders(
            *(tmp_path / "-".join(kinds) / name for name in ("predicted", "truth")), labels=LABELS
        )
        assert report.failures == ()
        scores.append([(row.label, row.dice, row.hd95, row.counts.n_pred) for row in report.rows])
    assert scores[0][0][1] < 1
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0])


def test_terms_come_from_the_standard_or_a_file(tmp_path: Path):
    assert standard_term("Liver").type.value == "10200004"
    assert standard_term("adrenal_gland").category.meaning == "Anatomical Structure"
    assert standard_term("cyst").category.meaning.startswith("Morphologically")
    assert standard_term("thing 7") == TISSUE
    file = tmp_path / "terms.toml"
    file.write_text('[tumour]\ntype = { value = "4147007", scheme = "SCT", meaning = "Mass" }\n')
    assert read_terms(file) == {"tumour": Term(Code("4147007", "SCT", "Mass"))}
    (tmp_path / "terms.json").write_text(
        '{"tumour": {"type": {"value": "4147007", "scheme": "SCT", "meaning": "Mass"}}}'
    )
    assert read_terms(tmp_path / "terms.json") == read_terms(file)
    with pytest.raises(SettingsError, match="did you mean 'tumor'"):
        require_labels(read_terms(file), ["tumor", "liver"])


@pytest.mark.parametrize("text", ["tumour", "[tumour]\ntype = 4", "[tumour]\n", '[t.type]\nvalue="1"\nscheme="SCT"\n'])
def test_a_wrong_file_of_terms_is_refused(text: str, tmp_path: Path):
    (tmp_path / "terms.toml").write_text(text)
    with pytest.raises(InputError, match=r"terms.toml.*write"):
        read_terms(tmp_path / "terms.toml")


def test_a_series_of_several_multiframe_files_is_refused(tmp_path: Path):
    one, two = made.enhanced([1.0] * 3), made.enhanced([1.0] * 3)
    for index, group in enumerate(two.PerFrameFunctionalGroupsSequence):
        plane = Dataset()
        plane.ImagePositionPatient = [1.0, 2.0, 3.0 * (index + 3)]
        group.PlanePositionSequence = [plane]
    folder = made.write(tmp_path / "scan", [one, two])
    with pytest.raises(UnsupportedInput, match="several multi-frame files"):
        written(folder, tmp_path / "seg.dcm")


def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path):
    folder, out = made.write(tmp_path / "scan", made.series(5)), tmp_path / "seg.dcm"
    truth = written(folder, out)
    content, rng = out.read_bytes(), np.random.default_rng(27)
    outcomes, messages = set(), []
    for _ in range(60):
        damaged = bytearray(content)
        start = int(rng.integers(132, len(damaged) - 8))
        damaged[start : start + 4] = [b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\x01"][rng.integers(4)]
        out.write_bytes(damaged)
        try:
            outcomes.add(read_label_map(out, LABELS, grid=truth.geometry).array.shape)
        except HandfulError as error:
            outcomes.add(type(error))
            messages.append(str(error))
    assert all(str(out) in message and made.IDENTITY not in message for message in messages)
    assert {truth.geometry.shape, DamagedFile} <= outcomes


def test_a_frame_whose_number_contradicts_its_index_is_refused(tmp_path: Path):
    scan = made.write(tmp_path / "scan", made.series(12))
    written(scan, tmp_path / "seg.dcm")
    data = dcmread(tmp_path / "seg.dcm")
    frames = data.PerFrameFunctionalGroupsSequence
    frames[3].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 3
    data.save_as(tmp_path / "seg.dcm")
    with pytest.raises(DamagedFile, match="frame 4 is that of segment 3 by its number, but by its index"):
        read_label_map(tmp_path / "seg.dcm", grid=read_volume(scan).geometry)
    for frame in frames:  # all the same, so they do not count
        frame.FrameContentSequence[0].DimensionIndexValues = [1, 1]
    data.save_as(tmp_path / "seg.dcm")
    read_label_map(tmp_path / "seg.dcm", grid=read_volume(scan).geometry)
