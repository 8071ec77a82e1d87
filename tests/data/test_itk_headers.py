"""MetaImage and NRRD headers: every field that places, scales or names voxels is kept, or refused by name."""

import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from handful.data.files import read_label_map, read_volume, write_label_map
from handful.data.formats import read_geometry
from handful.data.volume import LabelMap, Labels
from handful.errors import DamagedFile, InputError, UnsupportedInput

VOXELS = np.random.default_rng(0).integers(1, 2000, (6, 10, 12)).astype(np.int16)  # k, j, i
TURN = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)


def image(array: np.ndarray = VOXELS) -> sitk.Image:
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((1.5, 1.25, 3.0))
    made.SetOrigin((10.0, -20.0, 30.5))
    made.SetDirection(TURN)
    made.SetMetaData("0008|0060", "CT")
    return made


def itk(path: Path, old: str = "", new: str = "", compressed: bool = False) -> Path:
    """A sound file in which the text `old` of the header (a pattern) is replaced by `new`."""
    sitk.WriteImage(image(), str(path), compressed)
    content = path.read_bytes()
    changed = re.sub(old.encode(), new.encode().replace(b"\\", b"\\\\"), content, count=1, flags=re.MULTILINE)
    assert changed != content or not old
    path.write_bytes(changed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
def test_sound_file_is_read_as_itk_reads_it(tmp_path: Path, name: str, compressed: bool) -> None:
    volume = read_volume(itk(tmp_path / name, compressed=compressed))
    np.testing.assert_array_equal(volume.array[0], VOXELS.transpose(2, 1, 0))
    found = sitk.ReadImage(str(tmp_path / name))
    corner = np.diag([-1.0, -1, 1]) @ found.TransformIndexToPhysicalPoint((11, 9, 5))
    np.testing.assert_allclose((volume.geometry.affine @ [11, 9, 5, 1])[:3], corner, atol=1e-6)
    assert volume.modality == "CT"


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_voxels_of_every_type_are_kept(tmp_path: Path, name: str, kind: str) -> None:
    array = (VOXELS % 100).astype(kind)
    sitk.WriteImage(image(array), str(tmp_path / name), True)
    found = read_volume(tmp_path / name).array
    assert found.dtype == (np.float32 if kind == "f8" else np.dtype(kind))
    np.testing.assert_array_equal(found[0], array.transpose(2, 1, 0))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_pictures_of_two_dimensions_are_one_slice(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS[0]), str(tmp_path / name))
    np.testing.assert_array_equal(read_volume(tmp_path / name).array[0, ..., 0], VOXELS[0].T)


def test_big_endian_voxels_are_turned(tmp_path: Path) -> None:
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 12 10 6\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(header.encode() + VOXELS.astype(">i2").tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").array[0], VOXELS.transpose(2, 1, 0))


LONG = "A" * 1500
REPLACED = ("endian", "kinds", "space", "space origin", "space directions")
ADDED = ("spacings", "space units")


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        *[("(?<=NDims = )3", n, f"NDims is '{n}', must be") for n in ("-1", "-12", "0", "9", "5000", "99999999999")],
        ("(?<=NDims = )3", LONG, "NDims is 'A+[.]{3} .1,500 characters.*must be of at most"),
        ("(?<=NDims = )3", "1", "DimSize is '12 10 6', must be 1 whole numbers"),
        ("(?<=DimSize = )12 10 6", "12 10 0", "DimSize is '12 10 0', must be from 1"),
        ("(?<=DimSize = )12 10 6", "12 10 5", "holds more than the 1,200 bytes that its header declares"),
        ("(?<=DimSize = )12 10 6", "12 10 7", "file ends after 86 % of its content"),
        ("(?<=DimSize = )12 10 6", "99999 99999 99999", "more than the allowed"),
        ("^TransformMatrix", "TransformMatriz", "no TransformMatrix in the header"),
        ("(?<=TransformMatrix = ).*", "2 0 0 0 1 0 0 0 1", "TransformMatrix is '2 0 .*rows of length 1"),
        ("(?<=TransformMatrix = ).*", "1 0 0 0 1 0 0 0", "TransformMatrix is .* must be 9 numbers"),
        ("^Offset = .*", "Offset = 7", "Offset is '7', must be 3 numbers"),
        ("^Offset = .*\n", "", "no Offset in the header"),
        ("^Offset = .*", "Offset = 1 2 1e999", "Offset is '1 2 1e999', must be finite numbers"),
        ("^Offset", "Position = 1 2 3\nOffset", "both Offset and Position"),
        ("^ElementSpacing = .*\n", "", "no ElementSpacing in the header; add it"),
        ("(?<=ElementSpacing = ).*", "0 0 0", "ElementSpacing is '0 0 0', must be positive"),
        ("(?<=ElementSpacing = ).*", "-1.5 1.5 3", "must be positive"),
        ("(?<=ElementSpacing = ).*", "abc", "ElementSpacing is 'abc', must be 3 numbers"),
        ("(?<=ElementSpacing = ).*", LONG, r"ElementSpacing is 'A+\.\.\. \(1,500 characters\)"),
        ("(?<=ElementSpacing = ).*", "1 1 1\nElementSpacing = 2 2 2", "ElementSpacing is in the header twice"),
        ("(?<=ElementType = )MET_SHORT", "MET_SHORT_ARRAY", "voxels are 'MET_SHORT_ARRAY'"),
        ("(?<=ElementType = )MET_SHORT", "MET_INT", "file ends after 50 %"),
        ("^BinaryDataByteOrderMSB = .*\n", "", "no BinaryDataByteOrderMSB in the header"),
        ("^BinaryDataByteOrderMSB = .*", "BinaryDataByteOrderMSB = Maybe", "is 'Maybe', must be True or False"),
        ("^BinaryData = True", "BinaryData = False", "voxels are text"),
        ("(?<=ObjectType = )Image", "Tube", "ObjectType is 'Tube'; save an image"),
        ("^DimSize", "HeaderSize = -1\nDimSize", "HeaderSize is -1, which not all programs heed"),
        ("^DimSize", "ElementToIntensityFunctionSlope = 2\nDimSize", "ElementToIntensityFunctionSlope is 2"),
        ("^DimSize", "DistanceUnits = um\nDimSize", "DistanceUnits is 'um'; save the file with its spacing in mm"),
        ("^DimSize", "\x01\x02 = 5\nDimSize", "not NAME = VALUE"),
        ("(?<=ElementDataFile = )LOCAL", "b.raw", "its voxels should be in 'b.raw', which is not there"),
        ("(?<=ElementDataFile = )LOCAL", "../a.raw", "voxels are in '../a.raw'"),
        ("(?<=ElementDataFile = )LOCAL", "LIST", "voxels are in 'LIST'"),
        ("(?<=ElementDataFile = )LOCAL", "slice%03d.raw 1 6 1", "voxels are in 'slice%03d"),
    ],
)
def test_impossible_metaimage_field_is_refused_by_name(tmp_path: Path, old: str, new: str, finding: str) -> None:
    path = itk(tmp_path / "a.mha", old, new)
    for read in (read_volume, read_label_map):
        with pytest.raises(InputError, match=r"a\.mha: .*" + finding):
            read(path)


@pytest.mark.parametrize("size", ["0", "1", "100", "9999999", "-5"])
def test_wrong_size_of_the_compressed_voxels_is_refused(tmp_path: Path, size: str) -> None:
    path = itk(tmp_path / "a.mha", r"(?<=CompressedDataSize = )\d+", size, compressed=True)
    with pytest.raises(DamagedFile, match=r"a\.mha: .*(declares \S+ compressed bytes|CompressedDataSize is)"):
        read_volume(path)


def test_unknown_fields_that_describe_are_ignored(tmp_path: Path) -> None:
    path = itk(tmp_path / "a.mha", "^DimSize", f"Comment = {'long ' * 10_000}\n0010|0010 = Nobody^\nDimSize")
    assert read_volume(path).array.shape == (1, 12, 10, 6)
    path = itk(tmp_path / "a.nrrd", "^kinds", f"comment:={'long ' * 30_000}\n# remark: x\nkinds")
    assert read_volume(path).array.shape == (1, 12, 10, 6)


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        *[(f"^{key}: .*", f"{key}: {LONG}", key) for key in REPLACED],
        *[("^kinds", f"{key}: {LONG}\nkinds", "repair the header|remove the spacings") for key in ADDED],
        ("(?<=NRRD000)4", "9", "unknown version of NRRD"),
        ("^dimension: 3", "dimension: 0", "dimension is '0', must be from 1"),
        ("^dimension: 3", "dimension: 99999999999", "dimension is '99999999999'"),
        ("^dimension: 3", "dimension: 5", "dimension is '5', must be 2 to 4"),
        ("^dimension: 3", "dimension: 2", "sizes is '12 10 6', must be 2 whole numbers"),
        ("^sizes: .*", "sizes: 12 10 5", "holds more than the 1,200 bytes"),
        ("^sizes: .*", "sizes: 12 10 7", "file ends after 86 %"),
        ("^sizes: .*", "sizes: 12 10 0", "sizes is '12 10 0'"),
        *[("(?<=^space: ).*", s, f"space '{s}' does not say where left and right of the patient are") for s in (
            "3D-right-handed", "3D-left-handed", "scanner-xyz", "right-up")],
        ("^space: .*", "space dimension: 3", "no space, so left and right are unknown; .*'space: left-posterior"),
        ("^space directions: .*\n", "", "no space directions, so left and right are unknown"),
        ("(?<=^space directions: ).*", "(1,0,0) (0,1,0)", "space directions is .*must be 3 vectors"),
        ("(?<=^space directions: ).*", "(1,0,0) (0,1,0) (0,0,nan)", "space directions is .*must be 3 numbers"),
        ("(?<=^space directions: ).*", "(1,0,0) (0,1,0) (0,0,0)", "affine is singular"),
        ("^space origin: .*\n", "", "no space origin in the header"),
        ("(?<=^space origin: ).*", "(1,2)", "space origin is '.1,2.', must be 3 numbers"),
        ("^space origin", "space originn", "'space originn: .*', is no field of NRRD"),
        ("^kinds", "spacings: 2 2 2\nkinds", "both spacings and space directions"),
        ("^kinds", 'space units: "um" "um" "um"\nkinds', "space units are 'um'; save the file in mm"),
        ("^kinds: .*", "kinds: domain domain time", "an axis of kind 'time' has a direction in space"),
        ("^kinds: .*", "kinds: domain domain", "kinds is 'domain domain', must be 3 words"),
        ("^endian: .*\n", "", "no endian in the header"),
        ("^endian: little", "endian: middle", "endian is 'middle', must be little or big"),
        ("^type: short", "type: block", "voxels of type 'block'"),
        ("^type: short", "type: int", "file ends after 50 %"),
        ("^encoding: raw", "encoding: bzip2", "encoding 'bzip2'; save it as raw or gzip"),
        ("^encoding", "byte skip: 4\nencoding", "uses a byte skip"),
        ("^encoding", "line skip: 1\nencoding", "uses a line skip"),
        ("^encoding", "data file: /etc/passwd\nencoding", "voxels are in '/etc/passwd'"),
        ("^encoding", "data file: LIST\nencoding", "voxels are in 'LIST'"),
        ("^type: short", "type: short\ntype: short", "type is in the header twice"),
    ],
)  # fmt: skip
def test_impossible_nrrd_field_is_refused_by_name(tmp_path: Path, old: str, new: str, finding: str) -> None:
    path = itk(tmp_path / "a.nrrd", old, new)
    for read in (read_volume, read_label_map):
        with pytest.raises((DamagedFile, UnsupportedInput), match=rf"a\.nrrd: .*({finding})"):
            read(path)


@pytest.mark.parametrize(
    ("space", "signs"), [("RAS", (1, 1)), ("right-anterior-superior", (1, 1)), ("LAS", (-1, 1)), ("LPS", (-1, -1))]
)
def test_anatomical_spaces_are_kept(tmp_path: Path, space: str, signs: tuple[int, int]) -> None:
    path = itk(tmp_path / "a.nrrd", "(?<=^space: ).*", space)
    np.testing.assert_allclose(read_geometry(path).affine[:2, 3], np.array(signs) * [10, -20])


def test_long_header_of_a_segmentation_is_read(tmp_path: Path) -> None:
    keys = "\n".join(f"Segment{n}_Name:=part {n}\nSegment{n}_Tags:={'tag' * 150}" for n in range(200))
    path = itk(tmp_path / "a.seg.nrrd", "^kinds", f"{keys}\nkinds")
    assert path.stat().st_size > 2**16 + VOXELS.nbytes
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS.transpose(2, 1, 0))


def test_overlapping_segments_are_refused_with_the_way_out(tmp_path: Path) -> None:
    layers = sitk.GetImageFromArray(np.zeros((6, 10, 12, 2), np.uint8), isVector=True)
    sitk.WriteImage(layers, str(tmp_path / "a.seg.nrrd"))
    content = (tmp_path / "a.seg.nrrd").read_bytes().replace(b"kinds: vector", b"Segment0_ID:=a\nkinds: list")
    (tmp_path / "a.seg.nrrd").write_bytes(content)
    with pytest.raises(UnsupportedInput, match=r"segments overlap \(2 layers\).*export the segments as a label map"):
        read_label_map(tmp_path / "a.seg.nrrd")


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_bytes_after_the_voxels_are_refused(tmp_path: Path, name: str, compressed: bool) -> None:
    path = itk(tmp_path / name, compressed=compressed)
    path.write_bytes(path.read_bytes() + b"\x07")
    with pytest.raises(DamagedFile, match=f"{name}: .*(holds more than|unknown bytes after|compressed bytes)"):
        read_volume(path)


def test_raw_voxels_in_a_second_file_must_be_as_many_as_declared(tmp_path: Path) -> None:
    path = itk(tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes() + b"\0\0")
    with pytest.raises(DamagedFile, match=r"a\.raw|a\.mhd"):
        read_volume(path)


def test_compressed_voxels_that_inflate_to_more_are_refused(tmp_path: Path) -> None:
    content = itk(tmp_path / "a.nrrd", compressed=True).read_bytes()
    header = content[: content.index(b"\n\n") + 2]
    (tmp_path / "a.nrrd").write_bytes(header + zlib.compress(VOXELS.tobytes() + b"\0"))
    with pytest.raises(DamagedFile, match=r"a\.nrrd: holds more than the 1,440 bytes"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("spacing", [6.5e-5, 3.5e-5])
def test_voxels_of_nanometres_are_sound_and_survive_the_file(tmp_path: Path, spacing: float) -> None:
    made = image()
    made.SetSpacing((spacing,) * 3)
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(made, str(tmp_path / name), True)
        geometry = read_volume(tmp_path / name).geometry
        np.testing.assert_allclose(geometry.spacing, spacing)
        label_map = LabelMap((VOXELS.transpose(2, 1, 0) > 999).astype(np.int16), geometry, Labels((1,), ("one",)))
        write_label_map(tmp_path / f"labels-{name}", label_map)
        np.testing.assert_allclose(read_geometry(tmp_path / f"labels-{name}").affine, geometry.affine, rtol=1e-9)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii.gz"])
def test_no_library_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    sitk.WriteImage(image(), str(tmp_path / name), True)
    for module, function in ((sitk, "ReadImage"), (sitk, "ImageFileReader"), (nib, "load"), (nib, "Nifti1Image")):
        monkeypatch.delattr(module, function)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array[0], VOXELS.transpose(2, 1, 0))
