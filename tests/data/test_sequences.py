"""Scans with several sequences: how they are found, checked against each other, and read as channels."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort, read_volume, write_label_map, write_volume
from handful.data.made_for import MadeFor
from handful.data.slicing import ALL_SEQUENCES, Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Geometry, Volume
from handful.errors import GeometryMismatch, InputError, SettingsError, UnsupportedInput
from phantoms import (
    LABELS,
    SHAPE,
    geometry,
    phantom_case,
    sequence_case,
    sequence_phantom,
    sequence_support,
    support_set,
)

NAMES = ("T1", "FLAIR")


def write_sequences(folder: Path, name: str, volume: Volume) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, channel in enumerate(volume.array):
        write_volume(folder / f"{name}_{number:04d}.nii.gz", Volume(channel[None], volume.geometry))


def write_in_one_file(file: Path, volume: Volume) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.moveaxis(volume.array, 0, -1), volume.geometry.affine), file)


def write_json(folder: Path, **content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two cases in nnU-Net's layout."""
    for seed in range(2):
        image, reference = sequence_phantom(seed)
        write_sequences(tmp_path / "imagesTr", f"case-{seed}", image)
        (tmp_path / "labelsTr").mkdir(exist_ok=True)
        write_label_map(tmp_path / "labelsTr" / f"case-{seed}.nii.gz", reference)
    write_json(tmp_path, channel_names={"0": "T1", "1": "FLAIR"}, labels={"background": 0, "ball": 1, "egg": 3})
    return tmp_path


def same_as_phantom(cohort: Cohort, names: tuple[str, ...] = NAMES) -> bool:
    found = [case.read_image() for case in cohort.cases]
    wanted = [sequence_phantom(seed)[0] for seed in range(len(found))]
    return all(
        one.sequences == names and np.array_equal(one.array, other.array) and one.geometry.corner_distance(g) < 1e-3
        for one, other in zip(found, wanted, strict=True)
        for g in [other.geometry]
    )


# nnU-Net's numbered files.


def test_numbered_files_of_nnunet_are_one_case(raw: Path) -> None:
    cohort = read_cohort(raw)
    assert [case.name for case in cohort.cases] == ["case-0", "case-1"]
    assert same_as_phantom(cohort)
    assert not cohort.left_out
    assert len(cohort.files) == 6
    assert all(case.modality is None for case in cohort.cases)
    assert cohort.cases[0].read_reference().labels == LABELS


def test_sequences_without_stated_names_are_called_by_their_numbers(raw: Path) -> None:
    (raw / "dataset.json").unlink()
    assert same_as_phantom(read_cohort(raw), ("0000", "0001"))
    assert same_as_phantom(read_cohort(raw, channels=NAMES))


def test_the_images_of_an_nnunet_data_set_alone_have_its_names(raw: Path) -> None:
    cohort = read_cohort(raw / "imagesTr")
    assert same_as_phantom(cohort)
    assert cohort.labels is None


def test_numbered_files_in_images_are_sequences_if_labels_or_names_say_so(raw: Path) -> None:
    (raw / "imagesTr").rename(raw / "images")
    (raw / "labelsTr").rename(raw / "labels")
    assert same_as_phantom(read_cohort(raw))
    (raw / "dataset.json").unlink()
    assert same_as_phantom(read_cohort(raw), ("0000", "0001"))
    for label in (raw / "labels").iterdir():
        label.unlink()
    cases = read_cohort(raw).cases
    assert [case.name for case in cases] == ["case-0_0000", "case-0_0001", "case-1_0000", "case-1_0001"]
    assert same_as_phantom(read_cohort(raw, default_channels=NAMES))


def test_numbered_cases_of_one_sequence_stay_cases(tmp_path: Path) -> None:
    for number in range(2):
        case = phantom_case(number)
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        write_volume(tmp_path / "images" / f"scan_{number:04d}.nii.gz", case.read_image())
        write_label_map(tmp_path / "labels" / f"scan_{number:04d}.nii.gz", case.read_reference())
    for channels in ((), NAMES):
        cohort = read_cohort(tmp_path, channels=channels)
        assert [case.name for case in cohort.cases] == ["scan_0000", "scan_0001"]


def test_a_case_without_one_of_the_sequences_is_left_out_with_a_remedy(raw: Path) -> None:
    (raw / "imagesTr" / "case-1_0001.nii.gz").unlink()
    cohort = read_cohort(raw)
    assert [case.name for case in cohort.cases] == ["case-0"]
    reasons = {one.file: one.reason for one in cohort.left_out}
    assert "case-1_0001 (FLAIR)" in reasons["imagesTr/case-1_0000.nii.gz"]
    assert "add it, or remove" in reasons["imagesTr/case-1_0000.nii.gz"]
    assert "left out, too" in reasons["labelsTr/case-1.nii.gz"]


def test_a_sequence_that_dataset_json_does_not_name_is_left_out(raw: Path) -> None:
    write_json(raw, channel_names={"0": "T1"}, labels={"background": 0, "ball": 1, "egg": 3})
    cohort = read_cohort(raw)
    assert [case.read_image().sequences for case in cohort.cases] == [(), ()]
    assert [one.file for one in cohort.left_out] == ["imagesTr/case-0_0001.nii.gz", "imagesTr/case-1_0001.nii.gz"]
    assert "dataset.json names 1 (T1)" in cohort.left_out[0].reason


def test_a_list_without_numbers_finds_the_numbered_files(raw: Path) -> None:
    entries = [{"image": f"./imagesTr/case-{n}.nii.gz", "label": f"./labelsTr/case-{n}.nii.gz"} for n in range(2)]
    labels = {"0": "background", "1": "ball", "3": "egg"}
    write_json(raw, modality={"0": "T1", "1": "FLAIR"}, labels=labels, training=entries)
    cohort = read_cohort(raw)
    assert same_as_phantom(cohort)
    assert not cohort.left_out
    (raw / "imagesTr" / "case-0_0001.nii.gz").unlink()
    cohort = read_cohort(raw)
    assert [case.name for case in cohort.cases] == ["case-1"]
    assert any("case-0_0001.nii.gz: listed in dataset.json, but missing" in one.reason for one in cohort.left_out)


def test_names_that_several_channels_have_get_their_numbers(raw: Path) -> None:
    write_json(raw, channel_names={"0": "MRI", "1": "MRI"}, labels={"background": 0, "ball": 1, "egg": 3})
    assert same_as_phantom(read_cohort(raw), ("MRI 0", "MRI 1"))


def test_sequences_on_other_grids_fail_by_name(raw: Path) -> None:
    volume = read_volume(raw / "imagesTr" / "case-0_0001.nii.gz")
    affine = volume.geometry.affine.copy()
    affine[0, 3] += 1.0
    write_volume(raw / "imagesTr" / "case-0_0001.nii.gz", Volume(volume.array, Geometry(SHAPE, affine)))
    with pytest.raises(GeometryMismatch, match=r"sequences T1 and FLAIR \(case-0_0000.*case-0_0001.*resample one"):
        read_cohort(raw).cases[0].read_image()


def test_a_sequence_in_another_order_of_voxels_is_turned(raw: Path) -> None:
    volume = read_volume(raw / "imagesTr" / "case-0_0001.nii.gz")
    affine = volume.geometry.affine @ np.diag([-1.0, 1, 1, 1])[:, [2, 1, 0, 3]]
    affine[:3, 3] = (volume.geometry.affine @ [SHAPE[0] - 1, 0, 0, 1])[:3]
    turned = volume.array[:, ::-1].transpose(0, 3, 2, 1)
    write_volume(raw / "imagesTr" / "case-0_0001.nii.gz", Volume(turned, Geometry(turned.shape[1:], affine)))
    assert same_as_phantom(read_cohort(raw))


def test_the_digest_depends_on_names_and_on_every_file(raw: Path) -> None:
    case = read_cohort(raw).cases[0]
    volume, digest = case.read_image_and_digest()
    assert volume.sequences == NAMES
    assert digest == case.image_digest()
    assert digest != read_cohort(raw, channels=("T2", "FLAIR")).cases[0].image_digest()
    other, _ = sequence_phantom(5)
    write_volume(raw / "imagesTr" / "case-0_0001.nii.gz", Volume(other.array[1:], other.geometry))
    assert digest != case.image_digest()


# A fourth axis.


def test_a_fourth_axis_is_read_if_its_sequences_are_named(tmp_path: Path) -> None:
    image, reference = sequence_phantom(0)
    write_in_one_file(tmp_path / "imagesTr" / "a.nii.gz", image)
    (tmp_path / "labelsTr").mkdir()
    write_label_map(tmp_path / "labelsTr" / "a.nii.gz", reference)
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    labels = {"0": "background", "1": "ball", "3": "egg"}
    write_json(tmp_path, modality={"0": "T1", "1": "FLAIR"}, labels=labels, training=listed)
    case = read_cohort(tmp_path).cases[0]
    assert same_as_phantom(read_cohort(tmp_path))
    assert case.read_geometry().shape == SHAPE
    assert case.read_reference().geometry.shape == SHAPE
    assert case.image_digest() == case.read_image_and_digest()[1]
    assert same_as_phantom(read_cohort(tmp_path / "imagesTr" / "a.nii.gz", channels=NAMES))


def test_a_fourth_axis_of_unknown_meaning_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_in_one_file(tmp_path / "a.nii.gz", sequence_phantom(0)[0])
    case = read_cohort(tmp_path).cases[0]
    with pytest.raises(
        UnsupportedInput, match=r"name them \(channel_names in dataset.json, or --channels\); if .* time"
    ):
        case.read_image()
    with pytest.raises(UnsupportedInput, match="3 sequences are expected"):
        read_cohort(tmp_path, channels=("T1", "T2", "FLAIR")).cases[0].read_image()


@pytest.mark.parametrize("first", [True, False])
def test_values_per_voxel_in_nrrd_are_sequences(tmp_path: Path, first: bool) -> None:
    image, _ = sequence_phantom(0)
    write_volume(tmp_path / "one.nrrd", Volume(image.array[:1], image.geometry))
    header, _ = (tmp_path / "one.nrrd").read_bytes().split(b"\n\n", 1)
    lines = dict(line.split(": ", 1) for line in header.decode().splitlines()[3:])
    sizes, directions = lines["sizes"], lines["space directions"]
    stored = image.array.transpose(3, 2, 1, 0) if first else image.array.transpose(0, 3, 2, 1)
    fields = {
        **lines,
        "dimension": "4",
        "sizes": f"2 {sizes}" if first else f"{sizes} 2",
        "space directions": f"none {directions}" if first else f"{directions} none",
        "kinds": "list domain domain domain" if first else "domain domain domain list",
        "encoding": "raw",
    }
    text = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    (tmp_path / "both.nrrd").write_bytes(text.encode() + stored.astype("<f4").tobytes())
    found = read_volume(tmp_path / "both.nrrd", sequences=NAMES)
    assert np.array_equal(found.array, image.array)
    assert found.geometry.corner_distance(image.geometry) < 1e-3
    with pytest.raises(UnsupportedInput, match="2 values per voxel; if they are sequences"):
        read_volume(tmp_path / "both.nrrd")


def test_formats_without_such_an_axis_say_so(tmp_path: Path) -> None:
    Image.new("L", (4, 5)).save(tmp_path / "a.png")
    with pytest.raises(UnsupportedInput, match=r"save each sequence as its own \.nii\.gz"):
        read_volume(tmp_path / "a.png", sequences=NAMES)
    write_volume(tmp_path / "a.mha", phantom_case(0).read_image())
    with pytest.raises(UnsupportedInput, match="2 sequences are expected"):
        read_volume(tmp_path / "a.mha", sequences=NAMES)


# As slices.


def test_each_sequence_has_a_window_of_its_own() -> None:
    image, _ = sequence_phantom(0)
    far = replace(image, array=image.array * np.array([1.0, 1000.0], np.float32)[:, None, None, None])
    slicer = Slicer(sequences=("all",))
    assert np.allclose(slicer.cut(image), slicer.cut(far), atol=1e-5)
    alone = slicer.cut(Volume(image.array[1:], image.geometry))
    assert np.array_equal(slicer.cut(image)[:, 1:], alone)


def test_a_ct_among_the_sequences_is_shown_in_hounsfield_units() -> None:
    array = np.stack([np.full(SHAPE, 40.0, np.float32), np.full(SHAPE, 7.0, np.float32)])
    array[:, 0] = [[[-1000.0]], [[1.0]]]
    view = Slicer().view(Volume(array, geometry(), sequences=("CT", "PET")))
    assert view.limits[0] == (-160.0, 240.0)
    assert view.limits[1] == pytest.approx((1.0, 7.0))


def test_sequences_are_chosen_by_name_and_number() -> None:
    image, _ = sequence_phantom(0, ("A", "B", "C", "D"))
    cut = {names: Slicer(sequences=names).cut(image) for names in ((), ("all",), ("D", "1"))}
    assert [slices.shape[1] for slices in cut.values()] == [3, 4, 2]
    assert np.array_equal(cut["D", "1"], cut["all",][:, [3, 1]])
    assert Slicer().for_display().cut(image).shape[1] == 1
    assert np.array_equal(Slicer(sequences=("D", "1")).for_display().cut(image), cut["all",][:, 3:])
    with pytest.raises(UnsupportedInput, match="no sequence 'T9' in this scan, which has A, B, C, D"):
        Slicer(sequences=("T9",)).cut(image)


def test_a_scan_of_one_sequence_is_no_scan_of_two() -> None:
    grey = phantom_case(0).read_image()
    with pytest.raises(UnsupportedInput, match="the sequences T1, FLAIR are needed"):
        Slicer(sequences=NAMES).cut(grey)
    with pytest.raises(SettingsError, match="the scans have one sequence"):
        SupportSet((phantom_case(0),), LABELS).resolve(Slicer(sequences=NAMES))


# As a support set, and for a model.


def test_a_support_set_names_the_sequences_that_are_used() -> None:
    support = sequence_support(1, ("A", "B", "C", "D"))
    assert support.resolve(Slicer()).sequences == ("A", "B", "C")
    assert support.resolve(Slicer(sequences=("3", "A"))).sequences == ("D", "A")
    assert support.resolve(Slicer()).window == "each"


def test_cases_with_other_sequences_do_not_mix() -> None:
    with pytest.raises(InputError, match="'phantom-1' has one channel, and case 'phantom-0' has T1, FLAIR"):
        SupportSet((sequence_case(0), phantom_case(1)), LABELS)


def test_scans_are_arranged_as_the_model_was_fitted() -> None:
    support = sequence_support(1)
    kind = MadeFor.of(support, support.resolve(Slicer()))
    image, _ = sequence_phantom(0)
    turned = replace(image, array=image.array[::-1], sequences=NAMES[::-1])
    unnamed = replace(image, sequences=("0000", "0001"))
    for scan in (image, turned, unnamed):
        arranged = kind.arranged(scan)
        assert arranged.sequences == NAMES
        assert np.array_equal(arranged.array, image.array)
    for other in (
        replace(image, sequences=("T1", "T2")),
        replace(image, array=image.array[:1], sequences=("T1",)),
        phantom_case(0).read_image(),
    ):
        with pytest.raises(UnsupportedInput, match="the model was fitted on T1, FLAIR, and this scan has"):
            kind.require_usable(other)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "reason"),
    [
        (sequence_support(1), phantom_case(4), "T1, FLAIR are needed, and this scan has one"),
        (sequence_support(1), sequence_case(4, ("T1", "T2")), "no sequence 'FLAIR'"),
        (support_set(1), sequence_case(4), "has the sequences T1, FLAIR, and the labelled scans have one"),
    ],
)
def test_an_unlabelled_scan_with_other_sequences_is_named(labelled: SupportSet, unlabelled: Case, reason: str) -> None:
    fine = replace(labelled.cases[0], name="fine")
    support = replace(labelled, unlabelled=UnlabelledScans.of((fine, replace(unlabelled, name="odd one"))))
    slicer = Slicer(sequences=ALL_SEQUENCES) if labelled.sequences else Slicer()
    views = support.unlabelled_views(slicer)
    assert next(views)[0] == "fine"
    with pytest.raises(UnsupportedInput, match=rf"unlabelled case 'odd one': .*{reason}"):
        next(views)
    if labelled.sequences:
        cropped = support.unlabelled.cropped(lambda scan: support.resolve(slicer).view(scan).grid.block((0, 8), (0, 8)))
        with pytest.raises(UnsupportedInput, match="unlabelled case 'odd one': "):
            list(cropped)


def test_held_cases_and_unlabelled_scans_keep_their_sequences(raw: Path) -> None:
    cases = read_cohort(raw).cases
    with SupportSet(cases[:1], LABELS).held() as held:
        assert held.sequences == NAMES
        assert held.cases[0].read_image().sequences == NAMES
    assert [volume.sequences for _, volume in UnlabelledScans.of(cases)] == [NAMES, NAMES]


def test_a_volume_names_its_channels() -> None:
    image, _ = sequence_phantom(0)
    with pytest.raises(UnsupportedInput, match="name the channels if they are sequences"):
        Volume(image.array, image.geometry)
    with pytest.raises(UnsupportedInput, match="give each channel its own name"):
        Volume(image.array, image.geometry, sequences=("T1", "T1"))
    assert Case("a", image).modality_evidence(image).sequences == NAMES
