"""DICOM series: regular ones become volumes, placed as ITK places them; all others are refused by their cause."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name

import dicom_series as made
from handful.data.checks import check_case
from handful.data.dicom.series import SeriesChoice
from handful.data.files import read_cohort, read_volume, write_volume
from handful.data.formats import read_geometry, read_notes
from handful.data.volume import Volume
from handful.errors import DamagedFile, HandfulError, InputError, UnsupportedInput

TRUTH = made.voxels().transpose(2, 1, 0)


def by_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (i, j, k) and RAS affine of SimpleITK's own DICOM reader."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def refusal(folder: Path, **options: Any) -> str:
    """The message of the error that reading a folder raises, which is clear and holds nothing of the patient."""
    with pytest.raises(InputError) as caught:
        read_volume(folder, **options)
    message = str(caught.value)
    assert made.NAME not in message
    assert made.IDENTITY not in message
    assert str(folder) in message
    return message


def turned(degrees: float, about: int) -> np.ndarray:
    one, two = (axis for axis in range(3) if axis != about)
    matrix = np.eye(3)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix[one, one], matrix[two, two], matrix[one, two], matrix[two, one] = cos, cos, -sin, sin
    return matrix


@pytest.mark.parametrize("axes", made.ORIENTATIONS, ids=lambda axes: str(axes.astype(int).ravel().tolist()))
def test_grid_and_voxels_are_those_of_itk_in_48_orientations(axes: np.ndarray, tmp_path: Path):
    folder = made.write(tmp_path / "series", made.series(3, axes=axes))
    volume, (voxels, affine) = read_volume(folder), by_itk(folder)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(volume.array[0], voxels)


def test_an_oblique_series_lies_where_itk_has_it(tmp_path: Path):
    axes = turned(20, about=0) @ turned(-35, about=2)
    folder = made.write(tmp_path / "series", made.series(axes=np.round(axes, 6)))
    volume, (voxels, affine) = read_volume(folder), by_itk(folder)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(volume.array[0], voxels)


def test_directions_of_almost_unit_length_do_not_change_the_spacing(tmp_path: Path):
    images = made.series(ImageOrientationPatient=[1.0009, 0, 0, 0, 0.9992, 0])
    folder = made.write(tmp_path / "scan", images)
    np.testing.assert_allclose(read_volume(folder).geometry.spacing, [0.5, 0.75, 3.0], rtol=1e-9)


def test_a_tree_of_files_and_an_archive_of_it_are_one_volume(tmp_path: Path):
    images = made.series()
    made.write(tmp_path / "scan" / "a" / "deep", images[:2])
    made.write(tmp_path / "scan" / "b", images[2:])
    (tmp_path / "scan" / "report.txt").write_text("no scan")
    (tmp_path / "scan" / ".DS_Store").write_text("ignored")
    for path in (tmp_path / "scan", made.zipped(tmp_path / "scan")):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array[0], TRUTH)
        assert volume.modality == "CT"
        assert read_geometry(path).shape == (made.COLUMNS, made.ROWS, made.SLICES)
        (note,) = read_notes(path)
        assert "report.txt is not a DICOM file" in note


def test_each_slice_has_its_own_rescale(tmp_path: Path):
    images = made.series()
    for index, data in enumerate(images):
        data.RescaleSlope, data.RescaleIntercept = 1 + index / 2, -100 * index
    volume = read_volume(made.write(tmp_path / "series", images))
    index = np.arange(made.SLICES)
    np.testing.assert_allclose(volume.array[0], TRUTH * (1 + index / 2) - 100 * index)
    assert volume.array.dtype == np.float32


def test_a_whole_intercept_keeps_integers(tmp_path: Path):
    images = made.series(dtype=np.uint16, RescaleSlope=1, RescaleIntercept=-1024, BitsStored=12, HighBit=11)
    array = read_volume(made.write(tmp_path / "series", images)).array
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array[0], TRUTH - 1024)


def test_unused_bits_are_no_part_of_a_value(tmp_path: Path):
    images = [
        made.image(pixels | 0xF000, position=(0, 0, 3 * index), BitsStored=12, HighBit=11)
        for index, pixels in enumerate(made.voxels(dtype=np.uint16))
    ]
    np.testing.assert_array_equal(read_volume(made.write(tmp_path / "series", images)).array[0], TRUTH)


def test_an_enhanced_file_has_frames_in_any_order_with_a_rescale_each(tmp_path: Path):
    slopes = [1.0, 2.0, 3.0, 4.0]
    made.write(tmp_path, [made.enhanced(slopes, order=[2, 0, 3, 1])], ["file.dcm"])
    volume = read_volume(tmp_path / "file.dcm")
    np.testing.assert_array_equal(volume.array[0], made.voxels(4).transpose(2, 1, 0) * slopes + 1)
    assert volume.geometry.spacing.tolist() == [0.5, 0.75, 3.0]
    assert volume.modality == "MR"


@pytest.mark.parametrize("encoding", ["jpeg lossless", "jpeg-ls", "jpeg 2000", "rle"])
def test_compressed_voxels_are_exact(encoding: str, tmp_path: Path):
    images = [made.compressed(data, encoding) for data in made.series(3, dtype=np.uint16)]
    array = read_volume(made.write(tmp_path / "series", images)).array
    np.testing.assert_array_equal(array[0], made.voxels(3).transpose(2, 1, 0))


def test_padding_becomes_the_lowest_value_of_the_others(tmp_path: Path):
    images = made.series(RescaleSlope=1, RescaleIntercept=-1000)
    for data in images:
        pixels = data.pixel_array.copy() + 5
        pixels[0, :] = -2000
        made.set_pixels(data, pixels)
        data.add_new("PixelPaddingValue", "SS", -2000)
    folder = made.write(tmp_path / "series", images)
    array = read_volume(folder).array
    assert (array[0, :, 0] == array[0, :, 1:].min()).all()
    assert any("PixelPaddingValue" in note for note in read_notes(folder))


def test_no_value_of_a_colour_is_padding(tmp_path: Path):
    pixels = np.full((8, 10, 3), (0, 200, 100), np.uint8)
    pixels[0, 0] = (50, 60, 70)
    data = made.image(pixels, position=None, modality="US")
    data.add_new("PixelPaddingValue", "US", 0)
    array = read_volume(made.write(tmp_path / "picture", [data])).array
    np.testing.assert_array_equal(array[..., 0], pixels.transpose(2, 1, 0))


def test_compressed_negative_values_and_colours_are_right(tmp_path: Path):
    images = made.series(3, dtype=np.uint16)
    for data in images:
        made.set_pixels(data, data.pixel_array - np.uint16(300))
        made.compressed(data, "jpeg lossless").PixelRepresentation = 1
    array = read_volume(made.write(tmp_path / "series", images)).array
    np.testing.assert_array_equal(array[0], made.voxels(3).transpose(2, 1, 0) - 300)
    colour = made.image(np.full((8, 10, 3), (200, 40, 90), np.uint8), position=None, modality="US", PixelSpacing=None)
    made.compressed(colour, "jpeg").PhotometricInterpretation = "YBR_FULL_422"
    found = read_volume(made.write(tmp_path / "picture", [colour])).array
    np.testing.assert_allclose(found[:, 4, 4, 0], (200, 40, 90), atol=4)


def test_lossy_compression_is_read(tmp_path: Path):
    data = made.image(np.full((8, 10), 90, np.uint8), position=None, modality="US", PixelSpacing=None)
    array = read_volume(made.write(tmp_path / "picture", [made.compressed(data, "jpeg")])).array
    np.testing.assert_allclose(array, 90, atol=2)


@pytest.mark.parametrize("modality", ["CR", "DX", "US"])
def test_a_single_image_without_a_position_is_a_picture(modality: str, tmp_path: Path):
    pixels = made.voxels(1, np.uint16)[0]
    made.write(tmp_path, [made.image(pixels, position=None, modality=modality, PixelSpacing=None)], ["a.dcm"])
    volume = read_volume(tmp_path / "a.dcm")
    np.testing.assert_array_equal(volume.array[0, :, :, 0], pixels.T)
    assert (volume.geometry.unit, volume.modality) == ("pixel", modality)


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, "mm"),
        ({"ImagerPixelSpacing": [0.75, 0.5]}, "pixel"),
        ({"ImagerPixelSpacing": [0.75, 0.5], "PixelSpacingCalibrationType": "GEOMETRY"}, "mm"),
        ({"ImagerPixelSpacing": [0.8, 0.6]}, "mm"),
        ({"ImagerPixelSpacing": [0.8, 0.6], "PixelSpacing": None}, "pixel"),
    ],
)
def test_a_picture_is_in_mm_only_by_a_pixel_spacing_in_the_patient(changes: dict[str, Any], unit: str, tmp_path: Path):
    data = made.image(made.voxels(1, np.uint16)[0], position=None, modality="DX", **changes)
    geometry = read_volume(made.write(tmp_path / "picture", [data])).geometry
    assert geometry.unit == unit
    assert geometry.spacing[:2].tolist() == ([0.5, 0.75] if unit == "mm" else [1, 1])


def test_monochrome1_is_inverted_in_pictures_and_kept_in_volumes(tmp_path: Path):
    pixels = made.voxels(1, np.uint16)[0]
    picture = made.image(pixels, position=None, modality="CR", PhotometricInterpretation="MONOCHROME1")
    array = read_volume(made.write(tmp_path / "picture", [picture])).array
    np.testing.assert_array_equal(array[0, :, :, 0], pixels.max() - pixels.T)
    images = made.series(PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(made.write(tmp_path / "volume", images)).array[0], TRUTH)


def test_a_colour_picture_has_three_channels(tmp_path: Path):
    pixels = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    data = made.image(pixels, position=None, modality="US")
    array = read_volume(made.write(tmp_path / "picture", [data])).array
    np.testing.assert_array_equal(array[..., 0], pixels.transpose(2, 1, 0))


def moved(index: int, offset: tuple[float, float, float]) -> Callable[[list[Any]], list[Any]]:
    def change(images: list[Any]) -> list[Any]:
        position = np.array(images[index].ImagePositionPatient, float) + offset
        images[index].ImagePositionPatient = position.tolist()
        return images

    return change


def shifted(images: list[Any], step: tuple[float, float, float], start: int = 0) -> list[Any]:
    for index, data in enumerate(images):
        if index >= start:
            position = np.array(data.ImagePositionPatient, float) + np.array(step) * (index if not start else 1)
            data.ImagePositionPatient = position.tolist()
    return images


def changed(index: int, **attributes: Any) -> Callable[[list[Any]], list[Any]]:
    def change(images: list[Any]) -> list[Any]:
        for keyword, value in attributes.items():
            if value is None:
                delattr(images[index], keyword)
            else:
                setattr(images[index], keyword, value)
        return images

    return change


def with_scout(images: list[Any]) -> list[Any]:
    scout = made.image(made.voxels(1)[0], axes=turned(90, about=0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return [*images, scout]


def every_twice(images: list[Any]) -> list[Any]:
    return [*images, *made.series()]


def one_file_of_two_echoes(images: list[Any]) -> list[Any]:
    data = made.enhanced([1.0] * 4)
    for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0.0, 0.0, 3.0 * (index % 2)]
    return [data]


def every_twice_a_little_apart(images: list[Any]) -> list[Any]:
    others = made.series()
    for data in others:
        data.ImagePositionPatient = [
            float(part) + off for part, off in zip(data.ImagePositionPatient, (0, 0, 0.02), strict=True)
        ]
    return [*images, *others]


NAMES = [f"slice{index}" for index in range(12)]
IRREGULAR = {
    "missing slice": (
        lambda images: images[:2] + images[3:],
        ["1 of 6 slices are missing", "between slice1 and slice2 the gap is 6 mm", "slice 2 "],
    ),
    "double position": (lambda images: [*images, made.series()[2]], ["double positions (1)", "slice2", "slice6"]),
    "every position twice in one file": (one_file_of_two_echoes, ["2 images at each of 2 positions", "split the file"]),
    "every position twice, a little apart": (every_twice_a_little_apart, ["2 images at each of 6 positions"]),
    "every position twice": (every_twice, ["2 images at each of 6 positions"]),
    "0.1 mm off": (moved(2, (0, 0, 0.1)), ["slice2 is 0.1 mm off", "0.03 mm are allowed", "--slice-tolerance"]),
    "0.1 mm sideways": (moved(2, (0.1, 0, 0)), ["slice2 is 0.1 mm off"]),
    "gantry tilt": (lambda images: shifted(images, (0, 3 * np.tan(np.deg2rad(15)), 0)), ["tilt", "15.00 degrees"]),
    "mosaics": (
        lambda images: [changed(0, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])(images)[0]],
        ["mosaics of Siemens", "slice0", "dcm2niix"],
    ),
    "scout": (with_scout, ["slice6 is a scout", "another orientation"]),
    "last three 30 mm away": (lambda images: shifted(images, (0, 0, 27), start=3), ["9 of 15 slices", "30 mm"]),
    "no position in one": (changed(4, ImagePositionPatient=None), ["no ImagePositionPatient in slice4"]),
    "other orientation": (
        changed(1, ImageOrientationPatient=[1, 0, 0, 0, 0.98, 0.199]),
        ["1 of 6 images have another orientation", "slice1"],
    ),
    "other pixel spacing": (changed(3, PixelSpacing=[0.75, 0.6]), ["another pixel spacing", "0.6", "slice3"]),
    "several patients": (
        changed(3, PatientID=f"{made.IDENTITY}2"),
        ["images of 2 patients (PatientID) in one series: slice3"],
    ),
    "other frame of reference": (changed(5, FrameOfReferenceUID="1.2.10"), ["another frame of reference", "slice5"]),
}


@pytest.mark.parametrize("fault", IRREGULAR)
def test_an_irregular_series_is_refused_by_its_cause(fault: str, tmp_path: Path):
    change, parts = IRREGULAR[fault]
    message = refusal(made.write(tmp_path / "series", change(made.series()), NAMES))
    for part in parts:
        assert part in message


def test_other_sizes_and_no_positions_are_refused(tmp_path: Path):
    images = made.series()
    made.set_pixels(images[3], np.zeros((4, 4), np.int16))
    assert "1 of 6 images have another size (4 x 4 instead of 10 x 8): slice3" in refusal(
        made.write(tmp_path / "size", images, NAMES)
    )
    images = [made.image(pixels, position=None) for pixels in made.voxels()]
    assert "6 images without ImagePositionPatient" in refusal(made.write(tmp_path / "none", images))


def test_a_slice_off_its_position_is_read_with_a_tolerance(tmp_path: Path):
    folder = made.write(tmp_path / "series", moved(2, (0, 0, 0.1))(made.series()))
    volume = read_volume(folder, slice_tolerance=0.2)
    np.testing.assert_array_equal(volume.array[0], TRUTH)
    np.testing.assert_allclose(volume.geometry.spacing, [0.5, 0.75, 3.0])
    assert "0.05 mm are allowed" in refusal(folder, slice_tolerance=0.05)


def two_series(folder: Path) -> Path:
    made.write(folder / "one", made.series(series="1.2.1", number=2))
    made.write(folder / "two", made.series(3, series="1.2.2", number=7, modality="MR"))
    return folder


def test_one_of_several_series_is_chosen_by_number_or_uid(tmp_path: Path):
    folder = two_series(tmp_path / "study")
    message = refusal(folder)
    assert "2 series" in message
    assert "number 2: 'series 2', CT, 6 images, 1.2.1" in message
    assert "number 7: 'series 7', MR, 3 images, 1.2.2" in message
    for choice in ("7", "1.2.2"):
        volume = read_volume(folder, series=choice)
        assert (volume.array.shape[-1], volume.modality) == (3, "MR")
        assert any("other series are left out" in note for note in read_notes(folder, SeriesChoice(choice)))
    assert "none of them with number or UID '9'" in refusal(folder, series="9")
    assert "patient" not in message


def test_the_patient_of_a_case_is_that_of_its_series(tmp_path: Path):
    folder = two_series(tmp_path / "images" / "mixed")
    made.write(folder / "two", made.series(3, series="1.2.2", number=7, PatientID=f"{made.IDENTITY}2"))
    made.write(tmp_path / "images" / "own", made.series(series="1.2.5", PatientID=f"{made.IDENTITY}2"))
    message = refusal(folder)
    assert "6 images, patient 1 of 2, 1.2.1" in message
    assert "3 images, patient 2 of 2, 1.2.2" in message
    (tmp_path / "dataset.json").write_text('{"series": {"mixed": 7}}')
    assert [case.patient for case in read_cohort(tmp_path).cases] == ["mixed", "mixed"]


HOSTILE = {
    "rows that exceed the bytes": ({"Rows": 65535, "Columns": 65535}, "truncated"),
    "fewer rows than bytes": ({"Rows": 4}, "need 80"),
    "no rows": ({"Rows": 0}, "Rows is 0"),
    "zero spacing": ({"PixelSpacing": [0, 0.5]}, "must be positive"),
    "vectors that are not unit": ({"ImageOrientationPatient": [2.0, 0, 0, 0, 1, 0]}, "must be 1"),
    "vectors at no right angle": ({"ImageOrientationPatient": [1.0, 0, 0, 0.6, 0.8, 0]}, "53.13 degrees"),
    "five numbers": ({"ImageOrientationPatient": [1.0, 0, 0, 0, 1]}, "has 5 values, not 6"),
    "slope of zero": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    "stored bits": ({"BitsStored": 40}, "40 of 16 bits"),
    "high bit": ({"HighBit": 3}, "highest bit 3"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE"),
    "many frames": ({"NumberOfFrames": 10**9}, "1000000000 frames"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_values_are_refused_in_little_memory(fault: str, tmp_path: Path):
    changes, part = HOSTILE[fault]
    folder = made.write(tmp_path / "series", made.series(2, **changes))
    tracemalloc.start()
    try:
        assert part in refusal(folder)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"0.75\\0.5", b"NaN \\0.5", "PixelSpacing is nan"),
        (b"0.75\\0.5", b"abcd\\0.5", "PixelSpacing is not a number"),
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.77", "transfer syntax '1.2.840.10008.1.2.77' is not read"),
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", "truncated or damaged"),
        (b"\x28\0\x10\0US", b"\x28\0\x10\0??", "Rows has"),
    ],
)
def test_broken_headers_are_refused(old: bytes, new: bytes, part: str, tmp_path: Path):
    folder = made.write(tmp_path / "series", made.series(2), ["a", "b"])
    content = (folder / "a").read_bytes()
    assert content.count(old) == 1
    (folder / "a").write_bytes(content.replace(old, new))
    assert part in refusal(folder)


@pytest.mark.parametrize("encoding", ["native", "jpeg-ls", "rle"])
def test_no_truncated_file_is_read(encoding: str, tmp_path: Path):
    data = made.series(1, dtype=np.uint16)[0]
    data = data if encoding == "native" else made.compressed(data, encoding)
    path = made.write(tmp_path / "series", [data], ["a.dcm"]) / "a.dcm"
    content = path.read_bytes()
    for end in range(0, len(content) - 10, 41):
        path.write_bytes(content[:end])
        with pytest.raises(HandfulError):
            read_volume(path)


def test_no_damaged_byte_raises_a_raw_error(tmp_path: Path):
    path = made.write(tmp_path / "series", made.series(1), ["a.dcm"]) / "a.dcm"
    content = bytearray(path.read_bytes())
    for place in range(128, len(content) - 2 * made.ROWS * made.COLUMNS, 11):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with suppress(HandfulError):
            read_volume(path)


def test_a_compressed_picture_of_another_size_is_refused(tmp_path: Path):
    data = made.compressed(made.series(1, dtype=np.uint16)[0], "jpeg-ls")
    data.Rows = 9
    assert "10 x 8 pixels and 1 samples, but the header says 10 x 9 and 1" in refusal(
        made.write(tmp_path / "series", [data])
    )


def test_files_in_spite_of_their_name_and_folders_of_other_files_are_refused(tmp_path: Path):
    folder = made.write(tmp_path / "series", made.series(2))
    (folder / "lost.dcm").write_bytes(b"<html>")
    assert "not a DICOM file in spite of its name" in refusal(folder)
    (tmp_path / "text.zip").write_bytes(b"PK\3\4 no archive")
    assert "not a readable .zip" in refusal(tmp_path / "text.zip")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(UnsupportedInput, match=r"a\.txt is not a DICOM file"):
        read_volume(made.zipped(tmp_path / "texts"))


def test_a_damaged_archive_is_refused(tmp_path: Path):
    archive = made.zipped(made.write(tmp_path / "series", made.series(2)))
    content = bytearray(archive.read_bytes())
    content[200:240] = bytes(40)
    archive.write_bytes(content)
    with pytest.raises(DamagedFile):
        read_volume(archive)


def test_cases_of_a_cohort_may_be_dicom_and_those_of_one_patient_stay_together(tmp_path: Path, volume: Volume):
    images = tmp_path / "images"
    made.write(images / "a_folder", made.series(series="1.2.1"))
    made.zipped(made.write(images / "b_archive", made.series(series="1.2.2", PatientID=f"{made.IDENTITY}2")))
    for path in (images / "b_archive").iterdir():
        path.unlink()
    (images / "b_archive").rmdir()
    made.write(images, made.series(1, series="1.2.3"), ["c_file.dcm"])
    write_volume(images / "d.nii.gz", volume)
    (images / "notes").mkdir()
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["a_folder", "b_archive", "c_file", "d"]
    assert [case.patient for case in cohort.cases] == ["a_folder", "b_archive", "a_folder", None]
    assert [case.read_image().modality for case in cohort.cases] == ["CT", "CT", "CT", None]
    folder, archive, *others = (case.image_digest() for case in cohort.cases)
    assert folder == archive
    assert len({folder, *others}) == 3


def test_dicom_next_to_other_scans_is_a_case_or_left_out(tmp_path: Path, volume: Volume):
    write_volume(tmp_path / "a.nii.gz", volume)
    made.write(tmp_path / "b", made.series(2))
    assert [case.name for case in read_cohort(tmp_path).cases] == ["a", "b"]
    made.write(tmp_path, made.series(2))
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["a", "b"]
    assert [(one.file, "next to other scans" in one.reason) for one in cohort.left_out] == [
        ("IM0001", True),
        ("IM0003", True),
    ]


def test_dicom_is_left_out_where_several_sequences_are_named(tmp_path: Path, volume: Volume):
    for name in ("a_0000", "a_0001"):
        made.write(tmp_path / "images" / name, made.series(2))
    write_volume(tmp_path / "images" / "b_0000.nii.gz", volume)
    write_volume(tmp_path / "images" / "b_0001.nii.gz", volume)
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}}')
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["b"]
    assert [one.file for one in cohort.left_out] == ["images/a_0000", "images/a_0001"]
    assert "not read from DICOM: convert each series to NIfTI" in cohort.left_out[0].reason
    (tmp_path / "images" / "b_0000.nii.gz").unlink()
    (tmp_path / "images" / "b_0001.nii.gz").rename(tmp_path / "images" / "b.nii.gz")
    assert [one.file for one in read_cohort(tmp_path).left_out] == ["images/a_0000", "images/a_0001"]
    with pytest.raises(UnsupportedInput, match=r"names 2 sequences \(T1, T2\)"):
        read_cohort(tmp_path / "images" / "a_0000", channels=("T1", "T2"))
    assert len(read_cohort(tmp_path / "images" / "a_0000", channels=("red", "green", "blue")).cases) == 1


def test_objects_without_a_scan_are_left_out_by_name(tmp_path: Path):
    images = made.series(2)
    report, segmentation = made.series(2)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData"):
        delattr(report, keyword)
    segmentation.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    folder = made.write(tmp_path / "scan", [*images, report, segmentation], ["0", "1", "report", "seg"])
    assert read_volume(folder).array.shape[-1] == 2
    assert [note.split(": ")[1] for note in read_notes(folder)] == [
        "report is a DICOM object without a scan (Basic Text SR Storage); left out",
        "seg is a DICOM object without a scan (Segmentation Storage); left out",
    ]
    report.SOPClassUID = made.CT
    report.save_as(folder / "report")
    assert "report: an image file without an image, so it is truncated" in refusal(folder)


def test_slices_directly_in_images_are_not_taken_for_scans(tmp_path: Path):
    made.write(tmp_path / "images", made.series())
    with pytest.raises(InputError, match=r"no scans .*IM0001: a slice of a DICOM series; put the files"):
        read_cohort(tmp_path)


def test_dataset_json_chooses_the_series_of_a_case(tmp_path: Path):
    two_series(tmp_path / "images" / "study")
    (tmp_path / "dataset.json").write_text('{"series": {"study": 7}}')
    (case,) = read_cohort(tmp_path).cases
    assert case.read_image().array.shape[-1] == 3
    (other,) = read_cohort(tmp_path, series="2").cases
    assert other.read_geometry().shape[-1] == made.SLICES


def test_doctor_lists_what_is_wrong_and_what_was_left_out(tmp_path: Path):
    folder = made.write(tmp_path / "scan", made.series())
    (folder / "notes.txt").write_text("a")
    (case,) = read_cohort(folder).cases
    assert any("notes.txt is not a DICOM file; left out" in finding.message for finding in check_case(case))
    (folder / sorted(path.name for path in folder.iterdir())[2]).unlink()
    (finding, *_) = check_case(case)
    assert finding.severity == "error"
    assert "missing" in finding.message


def test_bytes_behind_the_pixels_are_a_fault_unless_they_are_elements(tmp_path: Path):
    images = made.series()
    images[2].add_new(0xFFFCFFFC, "OB", b"\0" * 6)  # trailing padding, as the standard has it
    folder = made.write(tmp_path / "s", images)
    truth = read_volume(folder)
    file = folder / "IM0003"
    content = file.read_bytes()
    for damage in (b"\0", b"\1\2\3", b"\1" * 40):
        file.write_bytes(content + damage)
        with pytest.raises(DamagedFile, match=r"IM0003.*behind its last element"):
            read_volume(folder)
    file.write_bytes(content)
    assert np.array_equal(read_volume(folder).array, truth.array)


def test_a_series_of_which_one_image_lost_its_rescale_is_refused(tmp_path: Path):
    images = made.series(RescaleSlope=1, RescaleIntercept=-1024)
    del images[4].RescaleSlope, images[4].RescaleIntercept
    with pytest.raises(UnsupportedInput, match=r"1 of 6 images have another rescale \(none"):
        read_volume(made.write(tmp_path / "s", images))


def test_an_image_whose_class_is_unknown_is_not_passed_over(tmp_path: Path):
    folder = made.write(tmp_path / "s", made.series())
    file = folder / "IM0003"
    content = file.read_bytes()
    at = content.index(b"\x08\0\x16\0UI")
    file.write_bytes(content[:at] + b"1234" + content[at:])
    with pytest.raises(DamagedFile, match="IM0003"):
        read_volume(folder)
