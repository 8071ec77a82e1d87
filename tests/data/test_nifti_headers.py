"""Every field of a NIfTI header that places, scales or names voxels is kept, or refused by file, finding and remedy."""

import gzip
import struct
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from handful.data.files import read_label_map, read_volume, write_label_map
from handful.data.formats import read_geometry, read_notes
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels
from handful.errors import DamagedFile, HandfulError, InputError, UnsupportedInput

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])
VOXELS = np.random.default_rng(0).integers(1, 2000, (12, 10, 6)).astype(np.int16)
ONE = Labels((1,), ("one",))
TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0, 5], [np.sin(0.3), np.cos(0.3), 0, -20], [0, 0, 1, 7], [0, 0, 0, 1]])
INF, NAN = float("inf"), float("nan")


def nifti(
    path: Path,
    *edits: tuple[int, str, float],
    sform: int = 1,
    qform: int = 1,
    array: np.ndarray = VOXELS,
    units: str = "mm",
    second: bool = False,
) -> Path:
    """A sound file, then numbers packed at places of its header."""
    image = (nib.Nifti2Image if second else nib.Nifti1Image)(array, AFFINE)
    image.header.set_xyzt_units(units)
    image.set_sform(AFFINE, sform)
    image.set_qform(AFFINE, qform)
    content = bytearray(image.to_bytes())
    for at, kind, value in edits:
        struct.pack_into(f"<{kind}", content, at, value)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("second", [False, True])
def test_sound_file_is_read_as_nibabel_reads_it(tmp_path: Path, name: str, second: bool) -> None:
    path = nifti(tmp_path / name, second=second)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], VOXELS)
    np.testing.assert_allclose(volume.geometry.affine, nib.load(path).affine, rtol=1e-6)
    assert read_notes(path) == []


def test_big_endian_file_with_a_scale_is_read_as_nibabel_reads_it(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS.astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").array[0], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_qform_is_the_rotation_that_nibabel_computes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edits = [
        (256 + 4 * n, "f", value) for n, value in enumerate([*rng.uniform(-0.5, 0.5, 3), *rng.uniform(-90, 90, 3)])
    ]
    path = nifti(tmp_path / "a.nii", *edits, (76, "f", (-1.0, 1.0)[seed % 2]), sform=0)
    np.testing.assert_allclose(read_geometry(path).affine, nib.load(path).affine, atol=1e-5)


@pytest.mark.parametrize(
    ("edits", "forms", "finding"),
    [
        ([(80, "f", 0.0)], (0, 1), r"qform: pixdim\[1\] is 0, so the voxel size is unknown; set it"),
        ([(88, "f", -3.0)], (0, 1), r"qform: pixdim\[3\] is -3, so the voxel size is unknown"),
        ([(80, "f", NAN)], (0, 1), r"qform: pixdim\[1\] is nan"),
        ([(76, "f", 0.5)], (0, 1), r"qform: pixdim\[0\] is 0\.5, must be 1 or -1"),
        ([(256, "f", 5.0)], (0, 1), r"qform: the quaternion \(5, .*no rotation; repair"),
        ([(256, "f", NAN)], (0, 1), r"qform: the quaternion \(nan, "),
        ([(268, "f", INF)], (0, 1), r"qform: affine must be a finite"),
        ([(280, "f", 0.0)], (1, 1), r"sform: affine is singular.*set sform_code to 0, so that the qform is used"),
        ([(280, "f", 1e30)], (1, 0), r"sform: impossible voxel size"),
        ([(254, "h", 9)], (1, 1), "sform_code is 9, must be 0 to 5"),
        ([(252, "h", -1)], (1, 1), "qform_code is -1"),
        ([(123, "B", 7)], (1, 1), r"xyzt_units is 7, which is no unit; set it to 2 \(mm\)"),
        ([(108, "f", NAN)], (1, 1), "vox_offset is nan, but the voxels start at byte 352"),
        ([(108, "f", INF)], (1, 1), "vox_offset is inf"),
        ([(108, "f", -1.0)], (1, 1), "vox_offset is -1"),
        ([(108, "f", 352.5)], (1, 1), r"vox_offset is 352\.5"),
        ([(108, "f", 368.0)], (1, 1), "file ends after 99 % of its content"),
        ([(112, "f", 1.0), (116, "f", NAN)], (1, 1), "scl_inter is nan, .*set scl_inter to 0 in the header"),
        ([(112, "f", 2.0), (116, "f", INF)], (1, 1), "scl_inter is inf, so the grey values are unknown"),
        ([(112, "f", INF)], (1, 1), "scl_slope is inf, .*set scl_slope to 1 and scl_inter to 0"),
        ([(112, "f", 1e38)], (1, 1), "720 of 720 voxels are NaN or infinite|voxels are NaN or infinite"),
        ([(40, "h", 0)], (1, 1), "declares 0 dimensions"),
        ([(40, "h", -1)], (1, 1), "declares -1 dimensions"),
        ([(40, "h", 8)], (1, 1), "declares 8 dimensions"),
        ([(40, "h", 4), (48, "h", 0)], (1, 1), r"declares the shape \(12, 10, 6, 0\)"),
        ([(42, "h", -12)], (1, 1), r"declares the shape \(-12, 10, 6\)"),
        ([(42, "h", 6)], (1, 1), "holds more than the 1,072 bytes that its header declares"),
        ([(46, "h", 3)], (1, 1), "holds more than the 1,072 bytes"),
        ([(42, "h", 24)], (1, 1), "file ends after 55 % of its content"),
        ([(42, "h", 32767), (44, "h", 32767), (46, "h", 32767)], (1, 1), "more than the allowed"),
        ([(70, "h", 0)], (1, 1), "unknown voxel type 0"),
        ([(70, "h", 1)], (1, 1), "voxels are single bits, not grey"),
        ([(70, "h", 1536)], (1, 1), "voxels are float128, not grey"),
        ([(72, "h", 8)], (1, 1), "declares int16 voxels of 8 bits"),
        ([(70, "h", 512), (72, "h", 32)], (1, 1), "declares uint16 voxels of 32 bits"),
        ([(68, "h", 1008)], (1, 1), r"holds a set of points \(intent_code 1008\), not an image"),
        ([(0, "i", 0)], (1, 1), "states a size of 0 bytes, not 348"),
    ],
)
def test_impossible_field_is_refused_by_name(
    tmp_path: Path, edits: list[tuple[int, str, float]], forms: tuple[int, int], finding: str
) -> None:
    path = nifti(tmp_path / "a.nii", *edits, sform=forms[0], qform=forms[1])
    with pytest.raises((DamagedFile, UnsupportedInput), match=r"a\.nii: .*" + finding):
        read_volume(path)


@pytest.mark.parametrize(("slope", "inter"), [(NAN, NAN), (0.0, 5.0), (0.0, NAN), (NAN, 0.0)])
def test_a_scale_that_is_not_set_leaves_the_voxels_as_stored(tmp_path: Path, slope: float, inter: float) -> None:
    path = nifti(tmp_path / "a.nii", (112, "f", slope), (116, "f", inter))
    assert read_volume(path).array.dtype == np.int16
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS)


@pytest.mark.parametrize("pixdim", [0.0, -1.5, NAN])
def test_pixdim_beside_a_sound_sform_is_noted(tmp_path: Path, pixdim: float) -> None:
    path = nifti(tmp_path / "a.nii", (80, "f", pixdim), qform=0)
    np.testing.assert_array_equal(read_volume(path).geometry.affine, AFFINE)
    assert [note for note in read_notes(path) if "pixdim declares voxels of" in note]


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_units_become_millimetres(tmp_path: Path, units: str, factor: float) -> None:
    path = nifti(tmp_path / "a.nii", units=units)
    expected = AFFINE.copy()
    expected[:3] *= factor
    np.testing.assert_allclose(read_volume(path).geometry.affine, expected)
    assert bool(read_notes(path)) == (factor != 1)


def test_voxels_of_65_nanometres_are_sound(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([6.5e-5, 6.5e-5, 6.5e-5, 1]))
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").geometry.spacing, 6.5e-5)


def test_transfer_as_text_is_noticed(tmp_path: Path) -> None:
    big = np.tile(VOXELS, (4, 4, 2))
    content = nifti(tmp_path / "a.nii", array=big).read_bytes()
    (tmp_path / "a.nii").write_bytes(content[:352] + content[352:].replace(b"\n", b"\r\n"))
    with pytest.raises(DamagedFile, match=r"holds more than .*copy the file again, in binary mode"):
        read_volume(tmp_path / "a.nii")
    content = nifti(tmp_path / "b.nii", second=True).read_bytes()
    (tmp_path / "b.nii").write_bytes(content.replace(b"\r\n", b"\n"))
    with pytest.raises(DamagedFile, match=r"b\.nii: changed by a transfer as text"):
        read_volume(tmp_path / "b.nii")


@pytest.mark.parametrize("surplus", [b"\0", b"x", bytes(1000)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_one_byte_too_many_is_refused(tmp_path: Path, name: str, surplus: bytes) -> None:
    content = nifti(tmp_path / "plain.nii").read_bytes() + surplus
    (tmp_path / name).write_bytes(gzip.compress(content) if name == "a.nii.gz" else content)
    with pytest.raises(DamagedFile, match=f"{name}: holds more than the 1,792 bytes that its header declares"):
        read_volume(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_memory_is_taken_as_bytes_come(tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource")
    path = nifti(tmp_path / name, *((at, "h", 1500) for at in (42, 44, 46)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedFile, match="file ends after 0 % of its content"):
        read_volume(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # of 6.75 GB


@pytest.mark.parametrize(("qform_code", "sform_code"), [(1, 2), (1, 1), (2, 2), (1, 3), (1, 4), (3, 0), (0, 4)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_label_map_lies_on_its_scan_by_both_transforms(
    tmp_path: Path, name: str, qform_code: int, sform_code: int
) -> None:
    scan = nib.Nifti1Image(VOXELS, AFFINE)
    scan.header.set_xyzt_units("mm", "sec")
    scan.set_qform(TURN @ AFFINE, qform_code)
    scan.set_sform(AFFINE, sform_code)
    scan.to_filename(tmp_path / f"scan-{name}")
    volume = read_volume(tmp_path / f"scan-{name}")
    write_label_map(tmp_path / name, LabelMap((VOXELS > 999).astype(np.int16), volume.geometry, ONE))
    headers = [nib.load(tmp_path / file).header for file in (f"scan-{name}", name)]
    for field in ("qform_code", "sform_code", "xyzt_units", "qoffset_y", "quatern_d", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(headers[0][field], headers[1][field], err_msg=field)
    np.testing.assert_array_equal(headers[0]["pixdim"][:4], headers[1]["pixdim"][:4])
    ours, theirs = (sitk.ReadImage(str(tmp_path / file)) for file in (name, f"scan-{name}"))
    assert ours.GetOrigin() == theirs.GetOrigin()
    assert (ours.GetSpacing(), ours.GetDirection()) == (theirs.GetSpacing(), theirs.GetDirection())
    np.testing.assert_array_equal(read_label_map(tmp_path / name, ONE).geometry.affine, volume.geometry.affine)


def test_label_map_of_a_scan_in_micrometres_stays_in_micrometres(tmp_path: Path) -> None:
    geometry = read_volume(nifti(tmp_path / "a.nii", units="micron")).geometry
    write_label_map(tmp_path / "b.nii", LabelMap((VOXELS > 999).astype(np.int16), geometry, ONE))
    assert nib.load(tmp_path / "b.nii").header.get_xyzt_units()[0] == "micron"
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").affine, AFFINE)
    np.testing.assert_array_equal(read_geometry(tmp_path / "b.nii").affine, geometry.affine)


def test_transforms_of_the_scan_are_not_those_of_a_crop(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii"))
    affine = volume.geometry.affine.copy()
    affine[:3, 3] = 30.0
    moved = Geometry(volume.geometry.shape, affine, transforms=volume.geometry.transforms)
    write_label_map(tmp_path / "b.nii", LabelMap((VOXELS > 999).astype(np.int16), moved, ONE))
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").affine, affine)


def test_a_segmented_scan_keeps_both_transforms(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii"))
    slicer = Slicer(plane="coronal", window=(0.0, 2000.0))
    label_map = slicer.stack(np.ones(slicer.cut(volume)[:, 0].shape, np.int16), volume.geometry, ONE)
    assert volume.geometry.transforms is not None
    assert label_map.geometry.transforms == volume.geometry.transforms


def test_padding_values_of_ct_are_kept(tmp_path: Path) -> None:
    array = VOXELS.copy()
    array[:2] = -2000
    array[2:4] = -3024
    found = read_volume(nifti(tmp_path / "a.nii", array=array)).array
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found[0], array)


def test_exception_of_a_library_becomes_an_error_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "a.nii")
    for raised, expected in (
        (KeyError("x"), DamagedFile),
        (MemoryError(), InputError),
        (OSError(5, "I/O"), InputError),
    ):

        def fail(*_: object, error: BaseException = raised) -> None:
            raise error

        monkeypatch.setattr("handful.data.nifti.read_nifti_header", fail)
        for read in (read_volume, read_label_map, read_geometry, read_notes):
            with pytest.raises(expected, match=r"a\.nii: "):
                read(path)


def test_names_that_no_file_can_have_are_refused() -> None:
    for name in ("a\0.nii.gz", "a" * 5000 + ".nii.gz"):
        with pytest.raises(HandfulError, match="nii"):
            read_volume(name)
