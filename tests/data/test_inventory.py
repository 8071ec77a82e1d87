"""Each file of a cohort is read, or listed with the reason and the remedy."""

import gzip
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import dicom_series
from handful.data.cases import Cohort
from handful.data.checks import check_case
from handful.data.files import find_references, read_cohort, read_label_map, write_label_map, write_volume
from handful.data.inventory import LONGEST
from handful.data.sequences import SequenceFiles
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, UnsupportedInput

ANNEX = "../.git/annex/objects/xX/MD5E-s4711--0123.nii.gz"


@pytest.fixture
def own(tmp_path: Path, volume: Volume, label_map: LabelMap) -> Path:
    """images/ and labels/ of a and b."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for name in "ab":
        write_volume(tmp_path / "images" / f"{name}.nii.gz", volume)
        write_label_map(tmp_path / "labels" / f"{name}.nii.gz", label_map)
    return tmp_path


def left_out(cohort: Cohort) -> dict[str, str]:
    return {one.file: one.reason for one in cohort.left_out}


def only(folder: Path) -> tuple[str, str]:
    """Name and reason of the one file that is left out of a cohort whose case a is sound."""
    cohort = read_cohort(folder)
    assert cohort.cases[0].read_reference() is not None
    (one,) = cohort.left_out
    return one.file, one.reason


def test_files_that_nobody_means_as_scans_are_passed_over(own: Path):
    for name in (
        "README",
        "LICENSE.md",
        "notes.txt",
        "Thumbs.db",
        "desktop.ini",
        "table.csv",
        ".DS_Store",
        "._a.nii.gz",
    ):
        for part in (".", "images", "labels"):
            (own / part / name).write_text("no scan")
    (own / "images" / "a.json").write_text("{}")  # facts of a scan, as in BIDS
    (own / "predictions" / ".handful").mkdir(parents=True)
    assert read_cohort(own).left_out == ()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("c.mgz", "mri_convert"),
        ("c.hdr", "one .nii.gz"),
        ("c.img", "one .nii.gz"),
        ("c.nii.bz2", "unpack"),
        ("c.gif", ".png"),
        ("c.tar.gz", "unpack"),
        ("c.raw", "header"),
        ("c.xyz", "unknown file format"),
        ("c", "unknown file format"),
    ],
)
@pytest.mark.parametrize("part", ["images", "labels"])
def test_unread_formats_are_listed_with_a_remedy(own: Path, part: str, name: str, remedy: str):
    (own / part / name).write_bytes(b"voxels")
    file, reason = only(own)
    assert file == f"{part}/{name}"
    assert remedy in reason


def test_scans_outside_the_folders_of_the_layout_are_listed(own: Path, volume: Volume):
    write_volume(own / "c.nii.gz", volume)
    (own / "images" / "more").mkdir()
    write_volume(own / "images" / "more" / "d.nii.gz", volume)
    (own / "Masks").mkdir()
    write_volume(own / "Masks" / "d.nii.gz", volume)
    (own / "images" / "e.nii.gz").mkdir()
    found = left_out(read_cohort(own))
    assert found.keys() == {"c.nii.gz", "images/more", "Masks", "images/e.nii.gz"}
    assert "move it into images/ or labels/" in found["c.nii.gz"]
    assert "read from images/ or labels/" in found["Masks"]


def test_links_that_lead_nowhere_and_pointers_are_listed(own: Path):
    (own / "images" / "c.nii.gz").symlink_to(ANNEX)
    (own / "labels" / "b.nii.gz").unlink()
    (own / "labels" / "b.nii.gz").symlink_to(ANNEX)
    (own / "images" / "d.nii.gz").write_bytes(b"/annex/objects/MD5E-s4711--0123.nii.gz\n")
    (own / "images" / "e.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (own / "images" / "f.nii.gz.dvc").write_text("outs:\n")
    (own / "images" / "a.nii.gz.dvc").write_text("outs:\n")  # that scan is there
    cohort = read_cohort(own)
    assert [(case.name, case.reference is None) for case in cohort.cases] == [("a", False), ("b", True)]
    found = left_out(cohort)
    assert found.keys() == {f"images/{n}.nii.gz" for n in "cde"} | {"images/f.nii.gz.dvc", "labels/b.nii.gz"}
    assert "a link that leads nowhere" in found["labels/b.nii.gz"]
    assert all("fetch it" in reason for reason in found.values())


def test_a_label_map_of_a_scan_that_is_left_out_says_so(own: Path):
    (own / "images" / "b.nii.gz").unlink()
    (own / "images" / "b.nii.gz").symlink_to(ANNEX)
    assert "left out, too" in left_out(read_cohort(own))["labels/b.nii.gz"]


@pytest.mark.parametrize(
    "name",
    ["a.nii.gz.slices.json", "a.Slices.json", "a_slices.json", "a.slice.json", "a.slices.json.txt", "A.slices.json"],
)
def test_labels_are_left_out_while_their_list_of_slices_has_a_wrong_name(own: Path, name: str):
    (own / "labels" / name).write_text('{"axis": 2, "labelled": [1]}')
    cohort = read_cohort(own)
    (one,) = cohort.left_out
    assert one.file == f"labels/{name}"
    assert "a.slices.json" in one.reason
    assert [case.reference is None for case in cohort.cases] == [True, False]
    assert find_references(own).left_out == (one,)


def test_a_list_of_slices_without_label_map_is_not_that_of_a_case_with_a_shorter_name(own: Path):
    (own / "labels" / "a1.slices.json").write_text('{"axis": 2, "labelled": [1]}')
    cohort = read_cohort(own)
    assert "without a label map of its name" in left_out(cohort)["labels/a1.slices.json"]
    assert [case.reference is None for case in cohort.cases] == [False, False]


@pytest.mark.parametrize("place", ["images", "."])
def test_a_list_of_slices_in_another_folder_is_listed(own: Path, place: str):
    (own / place / "a.slices.json").write_text('{"axis": 2, "labelled": [1]}')
    cohort = read_cohort(own)
    assert "move it to labels/a.slices.json" in cohort.left_out[0].reason
    assert cohort.cases[0].reference is None


def test_lists_of_slices_and_dataset_json_may_begin_with_a_byte_order_mark(own: Path):
    mark = b"\xef\xbb\xbf"
    (own / "labels" / "a.slices.json").write_bytes(mark + b'{"axis": 2, "labelled": [1]}')
    (own / "dataset.json").write_bytes(mark + b'{"labels": {"0": "background", "1": "ball", "3": "egg"}}\r\n')
    cohort = read_cohort(own)
    assert cohort.labels == Labels((1, 3), ("ball", "egg"))
    reference = cohort.cases[0].read_reference()
    assert reference is not None
    assert (reference.array[..., 0] == IGNORE).all()


@pytest.mark.parametrize("name", ["dataset.json.txt", "datasets.json", "dataset (1).json"])
def test_a_dataset_json_of_another_name_is_listed_while_there_is_none(own: Path, name: str):
    (own / name).write_text('{"labels": {"1": "ball", "3": "egg"}}')
    file, reason = only(own)
    assert (file, "rename it" in reason) == (name, True)
    (own / name).rename(own / "dataset.json")
    (own / name).write_text("a copy")
    assert read_cohort(own).left_out == ()


@pytest.mark.parametrize("name", ["a_seg", "a_mask", "a_0000", "seg-a"])
def test_suffixes_of_label_maps_are_explained(own: Path, name: str):
    (own / "labels" / "a.nii.gz").rename(own / "labels" / f"{name}.nii.gz")
    reason = left_out(read_cohort(own))[f"labels/{name}.nii.gz"]
    assert "names of image and label map must be equal" in reason
    assert "if a is meant, call the label map a" in reason


def test_letters_composed_in_two_ways_are_one_name(own: Path):
    for part, form in (("images", "NFD"), ("labels", "NFC")):
        (own / part / "b.nii.gz").rename(own / part / unicodedata.normalize(form, "Müller.nii.gz"))
    (own / "dataset.json").write_text(json.dumps({"patient": {"a": 1, unicodedata.normalize("NFD", "Müller"): 2}}))
    case = read_cohort(own).cases[0] if read_cohort(own).cases[0].name != "a" else read_cohort(own).cases[1]
    assert case.name == unicodedata.normalize("NFC", "Müller")
    assert case.reference is not None
    assert case.patient == "2"


def test_names_that_cannot_be_written_are_listed(own: Path):
    for part in ("images", "labels"):
        folder = os.fsencode(own / part)
        os.rename(folder + b"/b.nii.gz", folder + b"/M\xfcller.nii.gz")
    (own / "images" / f"{'x' * (LONGEST + 1)}.nii.gz").write_bytes(b"")
    (own / "images" / "c\\d.nii.gz").write_bytes(b"")
    found = left_out(read_cohort(own))
    assert "not UTF-8; rename it" in found["images/M\\xfcller.nii.gz"]
    assert "not UTF-8" in found["labels/M\\xfcller.nii.gz"]
    assert f"shorten it to {LONGEST}" in found[f"images/{'x' * (LONGEST + 1)}.nii.gz"]
    assert "backslash" in found["images/c\\d.nii.gz"]
    assert [case.name for case in read_cohort(own).cases] == ["a"]


def test_voxels_that_a_header_names_belong_to_it(own: Path):
    (own / "images" / "c.mhd").write_bytes(b"NDims = 3\r\nElementDataFile = c.raw\r\n")
    (own / "images" / "c.raw").write_bytes(b"")
    (own / "images" / "d.nhdr").write_bytes(b"NRRD0004\ndata file: d.raw.gz\n")
    (own / "images" / "d.raw.gz").write_bytes(b"")
    (own / "images" / "e.raw").write_bytes(b"")
    assert left_out(read_cohort(own)).keys() == {"images/e.raw"}


def test_dicom_pictures_are_cases_by_their_whole_names(tmp_path: Path):
    names = ["1.2.840.1.1", "1.2.840.1.2", "CR.0001", "CR.0002"]
    pictures = [dicom_series.image(dicom_series.voxels(1)[0], position=None, series=f"1.9.{n}") for n in range(4)]
    dicom_series.write(tmp_path / "images", pictures, names)
    assert [case.name for case in read_cohort(tmp_path).cases] == names


def test_dicom_is_listed_where_it_is_not_read(own: Path, volume: Volume):
    dicom_series.write(own / "labels" / "c", dicom_series.series(2))
    assert "labels are read from a DICOM-SEG file" in left_out(read_cohort(own))["labels/c"]
    (own / "imagesTr").mkdir()
    write_volume(own / "imagesTr" / "a_0000.nii.gz", volume)
    write_volume(own / "imagesTr" / "b.nii.gz", volume)
    dicom_series.write(own / "imagesTr" / "d", dicom_series.series(2))
    cohort = read_cohort(own)
    assert [case.name for case in cohort.cases] == ["a"]
    found = left_out(cohort)
    assert "DICOM in imagesTr/" in found["imagesTr/d"]
    assert "such as _0000" in found["imagesTr/b.nii.gz"]
    assert {"images", "labels"} <= found.keys()  # scans of another layout


def test_a_flat_folder_lists_folders_of_scans(tmp_path: Path, volume: Volume):
    write_volume(tmp_path / "a.nii.gz", volume)
    (tmp_path / "labels").mkdir()
    write_volume(tmp_path / "labels" / "a.nii.gz", volume)
    (tmp_path / "out" / ".handful").mkdir(parents=True)
    write_volume(tmp_path / "out" / "a.nii.gz", volume)  # written by handful
    assert left_out(read_cohort(tmp_path)).keys() == {"labels"}


def test_the_channel_is_no_part_of_the_name_in_a_folder_of_nnunet(tmp_path: Path, volume: Volume):
    (tmp_path / "imagesTs").mkdir()
    write_volume(tmp_path / "imagesTs" / "a_0000.nii.gz", volume)
    assert [case.name for case in read_cohort(tmp_path / "imagesTs").cases] == ["a"]


def listing(folder: Path, *training: object) -> Cohort:
    content = {"labels": {"1": "ball", "3": "egg"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps(content))
    return read_cohort(folder)


def test_lists_of_other_systems_and_programs_are_read(own: Path):
    cohort = listing(
        own,
        {"image": r".\images\a.nii.gz", "label": r".\labels\a.nii.gz"},
        {"image": ["./images/b.nii.gz"], "label": ["./labels/b.nii.gz"]},
    )
    assert [(case.name, case.reference is not None) for case in cohort.cases] == [("a", True), ("b", True)]
    assert cohort.left_out == ()


def test_the_named_files_of_nnunet_are_read(own: Path):
    files = {
        "first": {"images": ["images/a.nii.gz"], "label": "labels/a.nii.gz"},
        "second": {"images": ["images/b.nii.gz"]},
        "elsewhere": {"images": ["../b.nii.gz"], "label": None},
        "wrong": 3,
    }
    (own / "dataset.json").write_text(json.dumps({"labels": {"ball": 1, "egg": 3}, "dataset": files}))
    cohort = read_cohort(own)
    assert [(case.name, case.reference is not None) for case in cohort.cases] == [("first", True), ("second", False)]
    assert cohort.labels.as_dict() == {1: "ball", 3: "egg"}
    found = left_out(cohort)
    assert "outside the folder" in found["dataset.json: ../b.nii.gz"]
    assert "must hold" in found["dataset.json: 3"]


def test_the_named_files_of_nnunet_may_be_several_sequences(own: Path):
    files = {"first": {"images": ["images/a.nii.gz", "images/b.nii.gz"], "label": "labels/a.nii.gz"}}
    content = {"labels": {"ball": 1, "egg": 3}, "dataset": files, "channel_names": {"0": "T1", "1": "T2"}}
    (own / "dataset.json").write_text(json.dumps(content))
    [case] = read_cohort(own).cases
    assert isinstance(case.image, SequenceFiles)
    assert (case.name, case.image.names) == ("first", ("T1", "T2"))
    (own / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "T1"}}))
    with pytest.raises(InputError, match="2 images in"):
        read_cohort(own)


def test_entries_that_cannot_be_used_and_scans_that_are_not_listed_are_left_out(own: Path):
    sound = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}
    cohort = listing(own, sound, {"image": r"C:\scans\c.nii.gz"}, {"image": "images/d.nii.gz"}, {"image": 3})
    assert [case.name for case in cohort.cases] == ["a"]
    found = left_out(cohort)
    assert "outside the folder" in found["dataset.json: C:\\scans\\c.nii.gz"]
    assert "missing" in found["dataset.json: images/d.nii.gz"]
    assert "must be one path" in found["dataset.json: 3"]
    assert 'not in "training" of dataset.json' in found["images/b.nii.gz"]
    with pytest.raises(UnsupportedInput, match="must be one path"):
        listing(own, {"image": "images/a.nii.gz", "label": ["labels/a.nii.gz", "labels/b.nii.gz"]})


def test_the_modality_may_be_a_list_of_one(own: Path):
    (own / "dataset.json").write_text('{"modality": ["CT"], "labels": {"1": "ball", "3": "egg"}}')
    assert read_cohort(own).cases[0].modality == "CT"


def test_colour_pictures_in_the_layout_of_nnunet_are_read(tmp_path: Path):
    grid = Geometry((8, 6, 1), np.diag([-1.0, -1.0, 1.0, 1.0]), unit="pixel")
    (tmp_path / "imagesTr").mkdir()
    write_volume(tmp_path / "imagesTr" / "a_0000.png", Volume(np.zeros((3, 8, 6, 1), dtype=np.uint8), grid))
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "spot": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"file_ending": ".png"}))
    (case,) = read_cohort(tmp_path).cases
    assert (case.name, case.modality, case.read_image().array.shape[0]) == ("a", None, 3)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"labels": {"²": "ball"}}', '{"labels": {"--1": "ball"}}'])
def test_odd_json_is_refused_by_the_name_of_its_file(own: Path, content: str):
    (own / "dataset.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_cohort(own)


def test_a_list_of_slices_that_is_a_folder_is_an_error_of_its_case(own: Path):
    (own / "labels" / "a.slices.json").mkdir()
    (own / "dataset.json").write_text('{"labels": {"1": "ball", "3": "egg"}}')
    (finding,) = check_case(read_cohort(own).cases[0])
    assert "a.slices.json: must be" in finding.message


def segmentation(path: Path, segments: dict[int, str], layers: dict[int, int] | None = None) -> Path:
    """A file as 3D Slicer saves it, on the grid of 4 x 5 x 3 voxels; slice n has the value n."""
    voxels = np.zeros((4, 5, 3), dtype=np.uint8)
    voxels[1:3, 1:4] = np.arange(3)
    header = ["NRRD0004", "type: unsigned char", "dimension: 3", "space: left-posterior-superior", "sizes: 4 5 3"]
    header += ["space directions: (1,0,0) (0,1,0) (0,0,3)", "kinds: domain domain domain", "endian: little"]
    header += ["encoding: gzip", "space origin: (0,0,0)"]
    for number, (value, name) in enumerate(segments.items()):
        fields = {"Name": name, "LabelValue": value, "Layer": (layers or {}).get(value, 0), "Tags": "x" * 500}
        header += [f"Segment{number}_{key}:={text}" for key, text in fields.items()]
    path.write_bytes("\n".join(header).encode() + b"\n\n" + gzip.compress(voxels.tobytes(order="F")))
    return path


def test_segments_are_labels_by_name(tmp_path: Path):
    found = read_label_map(segmentation(tmp_path / "a.seg.nrrd", {1: "liver", 2: "Milz"}))
    assert found.labels.as_dict() == {1: "liver", 2: "Milz"}
    other = read_label_map(tmp_path / "a.seg.nrrd", Labels((1, 4), ("milz", "Liver")))
    assert [np.unique(other.array[..., slice]).tolist() for slice in range(3)] == [[0], [0, 4], [0, 1]]
    by_value = read_label_map(tmp_path / "a.seg.nrrd", Labels((1, 2), ("one", "two")))
    assert by_value.array.max() == 2
    with pytest.raises(LabelError, match="segment 2 is 'Milz', which is no label"):
        read_label_map(tmp_path / "a.seg.nrrd", Labels((1, 2), ("liver", "spleen")))


def test_strokes_in_segments_are_scribbles_if_dataset_json_names_the_background(tmp_path: Path):
    labels = Labels((1,), ("liver",))
    file = segmentation(tmp_path / "a.seg.nrrd", {1: "liver", 2: "background"})
    by_slice = [np.unique(part).tolist() for part in read_label_map(file, labels, 0, 3).array.transpose(2, 0, 1)]
    assert by_slice == [[IGNORE], [IGNORE, 1], [IGNORE, 0]]
    with pytest.raises(LabelError, match="segment 2 is 'background', which is no label"):
        read_label_map(file, labels)
    alone = segmentation(tmp_path / "b.seg.nrrd", {1: "background", 2: "background"})
    assert np.unique(read_label_map(alone, labels, 0, 3).array).tolist() == [IGNORE, 0]


def test_segments_without_a_voxel_are_labels(tmp_path: Path):
    file = segmentation(tmp_path / "a.seg.nrrd", {1: "liver", 2: "spleen"})
    header = file.read_bytes().partition(b"\n\n")[0]
    file.write_bytes(header + b"\n\n" + gzip.compress(bytes(60)))
    assert read_label_map(file).labels.names == ("liver", "spleen")


def test_overlapping_segments_are_refused_with_the_way_out(tmp_path: Path):
    file = segmentation(tmp_path / "a.seg.nrrd", {1: "liver", 2: "lesion"}, {2: 1})
    with pytest.raises(UnsupportedInput, match=r"overlapping segments of 3D Slicer in 2 layers.*export .* label map"):
        read_label_map(file)


def test_segmentations_belong_to_their_scans_and_agree_on_names(tmp_path: Path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for name, segments in (("a", {1: "liver", 2: "spleen"}), ("b", {1: "spleen", 2: "liver"})):
        segmentation(tmp_path / "images" / f"{name}.nrrd", {})
        segmentation(tmp_path / "labels" / f"{name}.seg.nrrd", segments)
    cohort = read_cohort(tmp_path)
    assert cohort.labels is not None
    assert cohort.labels.as_dict() == {1: "liver", 2: "spleen"}
    first, second = (case.read_reference() for case in cohort.cases)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.array[..., 1], second.array[..., 2])
