"""Files nobody should trust: each is refused, by name, with what was found and what to do."""

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from handful.data.files import read_label_map, read_volume, write_label_map, write_volume
from handful.data.formats import read_notes
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import DamagedFile, GeometryMismatch, HandfulError, InputError, LabelError, UnsupportedInput


@pytest.fixture
def noisy(geometry: Geometry) -> Volume:
    """Voxels that do not compress, so that half a file holds half of them."""
    return Volume(np.random.default_rng(0).integers(-999, 999, (1, 9, 7, 5)).astype(np.int16), geometry)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("kept", [0.7, 0.99])
def test_truncated_file_error_states_where_it_ends(tmp_path: Path, noisy: Volume, name: str, kept: float) -> None:
    path = tmp_path / name
    write_volume(path, noisy)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DamagedFile, match=rf"{name}: .*(file ends after \d+ %|ends before its checksum|ends inside)"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_truncated_uncompressed_itk_file_error_states_where_it_ends(tmp_path: Path, noisy: Volume, name: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noisy.array[0]), str(tmp_path / name), False)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: -noisy.array.nbytes // 4])
    with pytest.raises(DamagedFile, match=r"file ends after 7\d %.* of 630 bytes\); copy the file again"):
        read_volume(tmp_path / name)


def test_truncated_file_is_measured_in_percent(tmp_path: Path, noisy: Volume) -> None:
    write_volume(tmp_path / "a.nii", noisy)
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(whole[: int(0.45 * len(whole))])
    with pytest.raises(DamagedFile, match=r"a\.nii: file ends after 45 % .*copy the file again"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("place", [-3, -7, -150])
def test_one_flipped_byte_in_a_compressed_file_is_noticed(tmp_path: Path, noisy: Volume, name: str, place: int) -> None:
    write_volume(tmp_path / name, noisy)
    content = bytearray((tmp_path / name).read_bytes())
    content[place] ^= 0x10
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"{name}: .*copy the file again"):
        read_volume(tmp_path / name)


def test_stream_that_inflates_beyond_its_header_is_refused(tmp_path: Path, noisy: Volume) -> None:
    write_volume(tmp_path / "a.nii", noisy)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes() + bytes(5_000_000)))
    with pytest.raises(DamagedFile, match=r"b\.nii\.gz: holds more than the 982 bytes that its header declares"):
        read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_scan_larger_than_allowed_is_refused_before_it_is_inflated(tmp_path: Path, noisy: Volume, name: str) -> None:
    write_volume(tmp_path / name, noisy)
    with pytest.raises(
        DamagedFile, match=rf"{name}: the header declares \d+ bytes of voxels, more than the allowed 500"
    ):
        read_volume(tmp_path / name, max_bytes=500)


def test_header_that_claims_terabytes_allocates_nothing(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"][:4] = [3, 30000, 30000, 30000]
    header["sform_code"], header["srow_x"], header["srow_y"], header["srow_z"] = (
        1,
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
    )
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(DamagedFile, match="header declares 54,000,000,000,352 bytes of voxels"):
        read_volume(tmp_path / "a.nii.gz")


def test_foreign_bytes_behind_the_gzip_stream_are_refused(tmp_path: Path, noisy: Volume) -> None:
    write_volume(tmp_path / "a.nii.gz", noisy)
    with (tmp_path / "a.nii.gz").open("ab") as file:
        file.write(b"rest of another file")
    with pytest.raises(DamagedFile, match="unknown bytes after the compressed stream"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd", "a.png", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>Sign in to download</html>" * 20])
def test_files_of_another_kind_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=name):
        read_volume(tmp_path / name)


def test_missing_file_folder_and_unknown_suffix_have_different_messages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.nii\.gz: no such file"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match=r"folder\.nii: a folder without DICOM files"):
        read_volume(tmp_path / "folder.nii")
    with pytest.raises(InputError, match=r"notes\.txt: no such file"):
        read_volume(tmp_path / "notes.txt")
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(UnsupportedInput, match=r"notes\.txt: unknown file format; handful reads DICOM and \.nii\.gz, "):
        read_volume(tmp_path / "notes.txt")


def _image(array: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    return nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1]) if affine is None else affine)


def _four_d() -> nib.Nifti1Image:
    return _image(np.zeros((4, 5, 6, 3), dtype=np.int16))


def _rgb() -> nib.Nifti1Image:
    return _image(np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


def _complex() -> nib.Nifti1Image:
    return _image(np.ones((4, 5, 6), dtype=np.complex64))


def _not_finite() -> nib.Nifti1Image:
    array = np.zeros((4, 5, 6), dtype=np.float32)
    array[1, 2, 3], array[3, 3, 3] = np.nan, np.inf
    return _image(array)


def _no_orientation() -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros((4, 5, 6), dtype=np.int16), None)


def _sheared() -> nib.Nifti1Image:
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.deg2rad(5))
    return _image(np.zeros((4, 5, 6), dtype=np.int16), affine)


def _singular() -> nib.Nifti1Image:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([1.0, 1, 0, 1]), code=1)
    return nib.Nifti1Image(np.zeros((4, 5, 6), dtype=np.int16), None, header)


def _unknown_place() -> nib.Nifti1Image:
    image = _singular()
    image.header["srow_z"] = [0, 0, np.nan, 0]
    return image


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (_four_d, r"4D, shape \(4, 5, 6, 3\).*split it into 3D files"),
        (_rgb, "voxels are RGB, not grey; save one"),
        (_complex, "voxels are complex64, not grey; save one"),
        (_not_finite, r"2 of 120 voxels are NaN or infinite, the first at \(1, 2, 3\); replace"),
        (_no_orientation, "neither qform nor sform, .*set one of them in the header"),
        (_sheared, r"sheared grid, two axes are 5\.00 degrees off the right angle; resample"),
        (_singular, "affine is singular.*repair the header"),
        (_unknown_place, "affine must be a finite 4x4 matrix.*repair the header"),
    ],
)
def test_unfit_volumes_are_refused_with_finding_and_remedy(
    tmp_path: Path, make: Callable[[], nib.Nifti1Image], finding: str
) -> None:
    make().to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UnsupportedInput, match=r"a\.nii\.gz: .*" + finding):
        read_volume(tmp_path / "a.nii.gz")


def test_a_shear_within_rounding_is_kept_as_it_is(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 5e-4
    _image(np.zeros((4, 5, 6), dtype=np.int16), affine).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").geometry.affine, affine, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        (1.5, "values that are not whole numbers in 63 voxels, for example 1.5; threshold the map"),
        (-2, "label value -2 in 63 voxels, slices 2 of the last axis; labels are whole numbers from 0"),
        (
            7,
            "values that are not labels: 7 in 63 voxels, slices 2 of the last axis. The labels are 0 and {1: 'ball'",
        ),
        (np.nan, "63 of 315 voxels are NaN or infinite"),
    ],
)
def test_wrong_label_values_are_listed(
    tmp_path: Path, geometry: Geometry, labels: Labels, value: float, finding: str
) -> None:
    array = np.zeros(geometry.shape, dtype=np.float32)
    array[:, :, 2] = value
    nib.Nifti1Image(array, geometry.affine).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: .*" + re.escape(finding)):
        read_label_map(tmp_path / "a.nii.gz", labels)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_itk_volumes_of_colours_and_of_four_axes_are_refused(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(tmp_path / name))
    with pytest.raises(UnsupportedInput, match=rf"{name}: 3 values per voxel"):
        read_volume(tmp_path / name)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 4, 5, 6), np.uint8), isVector=False), str(tmp_path / name))
    with pytest.raises(UnsupportedInput, match=rf"{name}: 4D, shape \(6, 5, 4, 2\)"):
        read_volume(tmp_path / name)


def test_header_that_points_out_of_its_folder_is_refused(tmp_path: Path, volume: Volume) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(volume.array[0]), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(text.replace("a.raw", "../elsewhere/a.raw"))
    with pytest.raises(UnsupportedInput, match=r"voxels are in '\.\./elsewhere/a\.raw'"):
        read_volume(tmp_path / "a.mhd")


def test_nrrd_without_orientation_is_refused(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(16))
    with pytest.raises(UnsupportedInput, match="no space directions, so left and right are unknown"):
        read_volume(tmp_path / "a.nrrd")


def test_mha_whose_zlib_stream_is_another_one_is_refused(tmp_path: Path, noisy: Volume) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noisy.array[0]), str(tmp_path / "a.mha"), True)
    content = (tmp_path / "a.mha").read_bytes()
    header = content[: content.index(b"LOCAL\n") + 6]
    (tmp_path / "a.mha").write_bytes(header + zlib.compress(bytes(100)))
    with pytest.raises(DamagedFile, match="file ends after 16 % of its content"):
        read_volume(tmp_path / "a.mha")


def test_voxels_of_another_shape_than_the_grid_cannot_be_built(geometry: Geometry, labels: Labels) -> None:
    with pytest.raises(GeometryMismatch, match="on a"):
        LabelMap(np.zeros((9, 7, 4), dtype=np.int16), geometry, labels)


def test_one_voxel_out_of_range_is_refused_as_a_label(tmp_path: Path, geometry: Geometry) -> None:
    array = np.zeros(geometry.shape, dtype=np.uint32)
    array[0, 0, 0] = 2**31
    nib.Nifti1Image(array, geometry.affine).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(LabelError, match="label value 2147483648 in 1 voxel, slices 0"):
        read_label_map(tmp_path / "a.nii.gz")


def test_labels_on_a_sheared_grid_are_refused_too(tmp_path: Path) -> None:
    _sheared().to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UnsupportedInput, match="sheared grid"):
        read_label_map(tmp_path / "a.nii.gz", Labels((1,), ("ball",)))


def test_three_channels_are_not_written_as_nifti(tmp_path: Path) -> None:
    colour = Volume(np.zeros((3, 4, 5, 1), dtype=np.uint8), Geometry((4, 5, 1), np.diag([-1.0, -1, 1, 1])))
    for name in ("a.nii.gz", "a.mha"):
        with pytest.raises(UnsupportedInput, match=r"has 3; write \.png"):
            write_volume(tmp_path / name, colour)
    assert not list(tmp_path.iterdir())


def test_written_label_map_is_refused_when_a_byte_of_it_is_lost(tmp_path: Path, label_map: LabelMap) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-1])
    with pytest.raises(DamagedFile, match="compressed stream ends before its checksum"):
        read_label_map(tmp_path / "a.nii.gz")


@pytest.mark.filterwarnings("ignore")  # what the libraries say about damage before they give up
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.png", "a.tif", "a.bmp"])
def test_random_damage_is_read_or_explained_but_never_a_crash(tmp_path: Path, geometry: Geometry, name: str) -> None:
    if name in ("a.png", "a.tif", "a.bmp"):
        geometry = Geometry((9, 7, 1), np.diag([-1.0, -1, 1, 1]), "pixel")
    write_volume(tmp_path / name, Volume(np.full((1, *geometry.shape), 7, dtype=np.uint8), geometry))
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(0)
    explained: list[str] = []
    for trial in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(min(len(whole), 400))] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged[: rng.integers(len(whole))] if trial % 5 == 0 else damaged)
        for read in (read_volume, read_label_map, read_notes):
            try:
                read(tmp_path / name)
            except HandfulError as error:
                explained.append(str(error))
    assert len(explained) > 40
    assert all(name in message for message in explained)
