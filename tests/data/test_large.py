"""Large scans are read from their files or from temporary ones, and written piece by piece: same voxels and digests."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import dicom_series as made
from handful.data.files import read_label_map, read_volume, write_label_map, write_volume
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import DamagedFile, InputError
from handful.jobs import scratch
from handful.jobs.digests import Digest, digest_of

SHAPE = (9, 7, 5)
VOXELS = (np.arange(9 * 7 * 5).reshape(SHAPE) * 3 - 100).astype(np.int16)
GEOMETRY = Geometry(SHAPE, np.diag([0.3, 1 / 3, 0.7, 1.0]))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All arrays count as large. Returns the folder of temporary files."""
    monkeypatch.setattr(scratch, "LARGE", 1)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def written(path: Path) -> Path:
    """The voxels in a file, uncompressed unless its name says otherwise."""
    if ".nii" in path.name:
        image = nib.Nifti1Image(VOXELS, GEOMETRY.affine)
        if "scaled" in path.name:
            image.header.set_slope_inter(2, -7)
        if "swapped" in path.name:
            image = nib.Nifti1Image(VOXELS, GEOMETRY.affine, image.header.as_byteswapped(">"))
        if "floats" in path.name:
            image = nib.Nifti1Image(VOXELS / 7, GEOMETRY.affine)
        nib.save(image, path)
    else:
        image = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0))
        sitk.WriteImage(image, str(path), useCompression="packed" in path.name)
    return path


def file_of(array: np.ndarray) -> Path | None:
    """The file that an array is in; None if it has no name."""
    while not isinstance(array, np.memmap):
        assert isinstance(array.base, np.ndarray), "in memory"
        array = array.base
    return Path(array.filename) if isinstance(array.filename, (str, Path)) else None


IN_PLACE = ["a.nii", "a.mha", "a.mhd", "a.nrrd", "a.nhdr"]
IN_TEMPORARY_FILE = ["a.nii.gz", "packed.mha", "packed.nrrd", "swapped.nii", "scaled.nii.gz", "floats.nii"]


@pytest.mark.parametrize("name", IN_PLACE + IN_TEMPORARY_FILE)
def test_a_large_scan_has_the_same_voxels_and_digests_as_a_small_one(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
):
    path = written(tmp_path / name)
    small_digest, large_digest = Digest(), Digest()
    small = read_volume(path, digest=small_digest)
    folder = request.getfixturevalue("large")
    read = read_volume(path, digest=large_digest)
    np.testing.assert_array_equal(read.array, small.array, strict=True)
    assert digest_of(read.array) == digest_of(small.array)
    assert large_digest.hex() == small_digest.hex()
    assert list(folder.iterdir()) == []
    place = file_of(read.array)
    assert (place is not None and place.stem == "a") == (name in IN_PLACE)


def test_a_large_dicom_series_has_the_same_voxels_as_a_small_one(tmp_path: Path, request: pytest.FixtureRequest):
    images = made.series(RescaleSlope=1, RescaleIntercept=-1000)
    for data in images[1:]:
        pixels = data.pixel_array.copy() + 5
        pixels[: 3 if data is images[1] else None] = -2000
        made.set_pixels(data, pixels)
        data.add_new("PixelPaddingValue", "SS", -2000)
    folder = made.write(tmp_path / "series", images)
    small = read_volume(folder)
    request.getfixturevalue("large")
    read = read_volume(folder)
    np.testing.assert_array_equal(read.array, small.array, strict=True)
    assert file_of(read.array) is None
    assert np.count_nonzero(read.array == read.array.min()) > read.array[0, :, :, 2].size  # padded


def test_writing_into_a_scan_leaves_its_file_as_it_is(large: Path, tmp_path: Path):
    path = written(tmp_path / "a.nii")
    before = path.read_bytes()
    read_volume(path).array[...] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "packed.nrrd"])
@pytest.mark.parametrize("change", [lambda content: content[:-9], lambda content: content + b"12"])
def test_a_damaged_large_scan_is_refused(large: Path, tmp_path: Path, name: str, change):
    path = written(tmp_path / name)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedFile, match=name):
        read_volume(path)


def test_no_space_is_taken_for_voxels_that_a_file_cannot_hold(large: Path, tmp_path: Path):
    path = written(tmp_path / "a.nii.gz")
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([2000, 2000, 900], np.int16).tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DamagedFile, match="ends after"):
        read_volume(path)


def test_a_missing_folder_for_temporary_files_is_named(large: Path, tmp_path: Path):
    path = written(tmp_path / "a.nii.gz")
    large.rmdir()
    with pytest.raises(InputError, match=rf"{large}: a temporary file .* cannot be written .*TMPDIR"):
        read_volume(path)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz", "out.mha", "out.nrrd"])
def test_a_large_label_map_is_written_so_that_every_program_reads_it(large: Path, tmp_path: Path, name: str):
    labels = Labels((1, 2), ("liver", "spleen"))
    array = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.int16)
    write_label_map(tmp_path / name, LabelMap(array, GEOMETRY, labels))
    np.testing.assert_array_equal(read_label_map(tmp_path / name, labels).array, array)
    image = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array)
    np.testing.assert_allclose(image.GetSpacing(), GEOMETRY.spacing, rtol=1e-6)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_nifti_files_of_large_and_small_volumes_have_the_same_bytes(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
):
    volume = Volume(VOXELS[None], GEOMETRY)
    write_volume(tmp_path / name, volume)
    request.getfixturevalue("large")
    write_volume(tmp_path / f"large {name}", volume)
    assert (tmp_path / f"large {name}").read_bytes() == (tmp_path / name).read_bytes()
