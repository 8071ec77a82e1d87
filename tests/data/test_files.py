"""Scans and label maps written and read again: voxels, types, grids and bytes."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from handful.data.files import read_label_map, read_volume, stem, write_label_map, write_volume
from handful.data.formats import read_geometry, read_notes
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, UnsupportedInput
from handful.jobs.digests import digest_of_file

GREY = ["scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha"]


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_volume_survives_the_file_with_its_voxel_type(tmp_path: Path, geometry: Geometry, name: str, dtype) -> None:
    voxels = np.arange(9 * 7 * 5).reshape(1, 9, 7, 5).astype(dtype)
    write_volume(tmp_path / name, Volume(voxels, geometry))
    back = read_volume(tmp_path / name)
    assert back.array.dtype == dtype
    np.testing.assert_array_equal(back.array, voxels)
    np.testing.assert_allclose(back.geometry.affine, geometry.affine, rtol=1e-6)


@pytest.mark.parametrize("name", GREY)
def test_label_map_survives_the_file(tmp_path: Path, label_map: LabelMap, labels: Labels, name: str) -> None:
    write_label_map(tmp_path / name, label_map)
    back = read_label_map(tmp_path / name, labels)
    np.testing.assert_array_equal(back.array, label_map.array)
    assert back.labels == labels
    np.testing.assert_allclose(read_geometry(tmp_path / name).affine, label_map.geometry.affine, rtol=1e-6)


def test_nifti_labels_are_stored_small_with_both_transforms_equal_to_the_affine(
    tmp_path: Path, label_map: LabelMap
) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_array_equal(image.get_sform().astype(np.float32), label_map.geometry.affine.astype(np.float32))
    np.testing.assert_allclose(image.get_qform(), label_map.geometry.affine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("highest", "dtype"), [(255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_labels_are_stored_in_the_smallest_type_that_holds_them(
    tmp_path: Path, geometry: Geometry, highest: int, dtype
) -> None:
    array = np.zeros(geometry.shape, dtype=np.int32)
    array[1, 2, 3] = highest
    write_label_map(tmp_path / "a.nii.gz", LabelMap(array, geometry, Labels((highest,), ("far",))))
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == dtype
    assert read_label_map(tmp_path / "a.nii.gz").array.max() == highest


def test_unlabelled_voxels_survive_the_file(tmp_path: Path, label_map: LabelMap) -> None:
    label_map.array[0] = IGNORE
    write_label_map(tmp_path / "a.nii.gz", label_map)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii.gz").array, label_map.array)


@pytest.mark.parametrize("name", GREY)
def test_equal_label_maps_give_equal_bytes(tmp_path: Path, label_map: LabelMap, name: str) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_label_map(tmp_path / folder / name, label_map)
    assert digest_of_file(tmp_path / "first" / name) == digest_of_file(tmp_path / "second" / name)


def test_gzip_carries_no_time_and_no_name(tmp_path: Path, label_map: LabelMap) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    assert (tmp_path / "a.nii.gz").read_bytes()[3:8] == bytes(5)  # flags and time, RFC 1952


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
def test_simpleitk_and_nibabel_agree_on_where_a_voxel_lies(tmp_path: Path, volume: Volume, name: str) -> None:
    write_volume(tmp_path / name, volume)
    x, y, z = sitk.ReadImage(str(tmp_path / name)).TransformIndexToPhysicalPoint((4, 2, 3))
    np.testing.assert_allclose([-x, -y, z], (volume.geometry.affine @ [4, 2, 3, 1])[:3])


@pytest.mark.parametrize(
    ("header", "compressed"), [("a.mhd", False), ("a.mhd", True), ("a.nhdr", False), ("a.nhdr", True)]
)
def test_header_and_voxels_in_two_files_are_read(tmp_path: Path, volume: Volume, header: str, compressed: bool) -> None:
    image = sitk.GetImageFromArray(volume.array[0].transpose(2, 1, 0))
    sitk.WriteImage(image, str(tmp_path / header), compressed)
    np.testing.assert_array_equal(read_volume(tmp_path / header).array, volume.array)


def test_scaled_voxels_are_read_as_32_bit_floats(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((3, 4, 5), 7, dtype=np.int16), np.diag([2, 2, 2, 1]))
    image.header.set_slope_inter(0.5, -1)
    _write_unscaled(image, tmp_path / "a.nii")
    back = read_volume(tmp_path / "a.nii")
    assert back.array.dtype == np.float32
    assert np.unique(back.array).tolist() == [2.5]


def test_big_endian_files_are_read_as_native_voxels(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(voxels.dtype)
    nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1]), header).to_filename(tmp_path / "a.nii")
    back = read_volume(tmp_path / "a.nii")
    assert back.array.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(back.array[0], voxels)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.Nifti2Image(voxels, np.diag([2, 2, 2, 1])).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array[0], voxels)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 6, 1)])
def test_missing_and_single_axes_of_nifti_give_three(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.Nifti1Image(np.zeros(shape, dtype=np.int16), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").geometry.shape == (*shape, 1)[:3]


def test_gzip_of_several_members_is_read_to_the_end(tmp_path: Path, volume: Volume) -> None:
    write_volume(tmp_path / "a.nii", volume)
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]) + b"\0" * 600)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, volume.array)


def test_plain_file_named_gz_is_read_with_a_note(tmp_path: Path, volume: Volume) -> None:
    write_volume(tmp_path / "a.nii", volume)
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, volume.array)
    assert "not compressed" in read_notes(tmp_path / "a.nii.gz")[0]


def test_disagreeing_transforms_are_noted_and_the_sform_is_used(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), dtype=np.int16), np.diag([1, 1, 2, 1]))
    image.set_qform(np.diag([-1, 1, 2, 1]), code=1)
    image.set_sform(np.diag([1, 1, 2, 1]), code=1)
    image.to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").geometry.affine, np.diag([1, 1, 2, 1]))
    assert "the sform is used" in read_notes(tmp_path / "a.nii.gz")[0]


def test_nearly_whole_float_labels_are_rounded_not_truncated(tmp_path: Path, geometry: Geometry) -> None:
    array = np.full(geometry.shape, 1.9999, dtype=np.float64)
    nib.Nifti1Image(array, geometry.affine).to_filename(tmp_path / "a.nii.gz")
    assert np.unique(read_label_map(tmp_path / "a.nii.gz").array).tolist() == [2]


def test_labels_without_names_are_found_by_value(tmp_path: Path, label_map: LabelMap) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    assert read_label_map(tmp_path / "a.nii.gz").labels.as_dict() == {1: "label 1", 3: "label 3"}


def test_the_value_to_ignore_becomes_unlabelled(tmp_path: Path, label_map: LabelMap) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    back = read_label_map(tmp_path / "a.nii.gz", Labels((1,), ("ball",)), ignore=3)
    np.testing.assert_array_equal(back.array == IGNORE, label_map.array == 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_a_sidecar_does_not_list_are_unlabelled_and_empty_listed_ones_are_background(
    tmp_path: Path, label_map: LabelMap, axis: int
) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    (tmp_path / "a.slices.json").write_text(json.dumps({"axis": axis, "labelled": [0, 2]}))
    back = np.moveaxis(read_label_map(tmp_path / "a.nii.gz").array, axis, 0)
    written = np.moveaxis(label_map.array, axis, 0)
    assert (np.delete(back, [0, 2], axis=0) == IGNORE).all()
    np.testing.assert_array_equal(back[[0, 2]], written[[0, 2]])


def test_without_a_sidecar_empty_slices_count_as_background(tmp_path: Path, label_map: LabelMap) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    assert (read_label_map(tmp_path / "a.nii.gz").array[..., 0] == 0).all()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"axis": 3, "labelled": [0]}', '{"axis": 0, "labelled": [9]}', '{"axis": 0}']
)
def test_wrong_sidecar_is_refused_by_name(tmp_path: Path, label_map: LabelMap, content: str) -> None:
    write_label_map(tmp_path / "a.nii.gz", label_map)
    (tmp_path / "a.slices.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.slices\.json: must be .* correct it"):
        read_label_map(tmp_path / "a.nii.gz")


def test_stem_knows_double_suffixes() -> None:
    names = ["a/liver_1.nii.gz", "liver.1.mha", "x.PNG", "notes.txt"]
    assert [stem(name) for name in names] == ["liver_1", "liver.1", "x", "notes"]


@pytest.mark.parametrize("name", [*GREY, "scan.tif", "scan.png"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    grid = Geometry((300, 300, 1), np.diag([-1.0, -1, 1, 1]))
    noise = np.random.default_rng(0).integers(0, 60000, (1, *grid.shape)).astype(np.uint16)
    write_volume(tmp_path / name, Volume(np.zeros_like(noise), grid))
    before = (tmp_path / name).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"too large|cannot be written|24896 written"):
            write_volume(tmp_path / name, Volume(noise, grid))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_writing_into_a_missing_folder_is_refused(tmp_path: Path, label_map: LabelMap) -> None:
    with pytest.raises(InputError, match="does not exist; create it first"):
        write_label_map(tmp_path / "none" / "a.nii.gz", label_map)


def test_formats_of_two_files_are_not_written(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(UnsupportedInput, match=r"write \.mha or \.nrrd"):
        write_volume(tmp_path / "a.mhd", volume)


def test_label_map_without_any_label_needs_names(tmp_path: Path, label_map: LabelMap, labels: Labels) -> None:
    label_map.array[:] = 0
    write_label_map(tmp_path / "a.nii.gz", label_map)
    with pytest.raises(LabelError, match="contains no label, and no label names are given"):
        read_label_map(tmp_path / "a.nii.gz")
    assert not read_label_map(tmp_path / "a.nii.gz", labels).array.any()


def _write_unscaled(image: nib.Nifti1Image, path: Path) -> None:
    """The voxels as they are under the header's slope, where nibabel would rescale them."""
    header = image.header
    header.set_data_dtype(image.get_data_dtype())
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + b"\0" * 4 + np.asarray(image.dataobj).tobytes(order="F"))
