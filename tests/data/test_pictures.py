"""Pictures as volumes of one slice: axes, channels, depths, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from handful.data.files import read_cohort, read_label_map, read_volume, write_label_map, write_volume
from handful.data.formats import read_geometry
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import DamagedFile, LabelError, UnsupportedInput

HEIGHT, WIDTH = 6, 9


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)


@pytest.fixture
def colour() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_picture_lies_with_x_along_i_and_y_along_j(tmp_path: Path, grey: np.ndarray, name: str) -> None:
    Image.fromarray(grey).save(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.array.shape == (1, WIDTH, HEIGHT, 1)
    assert volume.array[0, 8, 2, 0] == grey[2, 8]
    assert volume.geometry.unit == "pixel"
    np.testing.assert_array_equal(volume.geometry.affine, np.diag([-1, -1, 1, 1]))
    assert read_geometry(tmp_path / name).shape == volume.geometry.shape


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_colours_are_three_channels_and_alpha_is_dropped(tmp_path: Path, colour: np.ndarray, name: str) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 7, dtype=np.uint8)
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array[..., 0], colour.transpose(2, 1, 0))


def test_jpeg_is_read_close_to_its_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 24), 77, dtype=np.uint8)).save(tmp_path / "a.JPG")
    assert np.abs(read_volume(tmp_path / "a.JPG").array.astype(int) - 77).max() <= 1


def test_palette_becomes_colours(tmp_path: Path, grey: np.ndarray) -> None:
    image = Image.fromarray(grey % 3).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata((grey % 3).ravel().tolist())
    image.save(tmp_path / "a.png")
    assert read_volume(tmp_path / "a.png").array[1, 4, 3, 0] == (20, 50, 80)[grey[3, 4] % 3]


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.float32)])
def test_deep_grey_values_are_kept(tmp_path: Path, name: str, dtype) -> None:
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 1000).astype(dtype)
    tifffile.imwrite(tmp_path / name, values) if name == "a.tif" else Image.fromarray(values).save(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T, values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_deep_colour_tiff_is_read_however_its_channels_lie(tmp_path: Path, colour: np.ndarray, planar: str) -> None:
    deep = colour.astype(np.uint16) * 200
    stored = deep if planar == "contig" else deep.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[..., 0], deep.transpose(2, 1, 0))


@pytest.mark.parametrize(("dtype", "name"), [(np.uint8, "a.png"), (np.uint16, "a.png"), (np.float32, "a.tif")])
def test_picture_survives_the_file(tmp_path: Path, dtype, name: str) -> None:
    geometry = Geometry((WIDTH, HEIGHT, 1), np.diag([-1.0, -1, 1, 1]), "pixel")
    volume = Volume(np.arange(WIDTH * HEIGHT).reshape(1, WIDTH, HEIGHT, 1).astype(dtype), geometry)
    write_volume(tmp_path / name, volume)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, volume.array)


def test_colour_picture_survives_the_file(tmp_path: Path, colour: np.ndarray) -> None:
    geometry = Geometry((WIDTH, HEIGHT, 1), np.diag([-1.0, -1, 1, 1]), "pixel")
    volume = Volume(colour.transpose(2, 1, 0)[..., None], geometry)
    for name in ("a.png", "a.bmp", "a.tif"):
        write_volume(tmp_path / name, volume)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, volume.array)


def test_label_picture_holds_numbers_not_grey_levels(tmp_path: Path, grey: np.ndarray) -> None:
    geometry = Geometry((WIDTH, HEIGHT, 1), np.diag([-1.0, -1, 1, 1]), "pixel")
    label_map = LabelMap((grey.T[..., None] % 3).astype(np.int16), geometry, Labels((1, 2), ("a", "b")))
    write_label_map(tmp_path / "a.png", label_map)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), grey % 3)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").array, label_map.array)


def test_black_and_white_and_palette_labels_are_their_indices(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "bits.png").array[..., 0].T, grey > 100)
    image = Image.fromarray(grey % 4, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "palette.png").array[..., 0].T, grey % 4)


def test_masks_of_1_and_masks_of_255_are_not_taken_for_two_labels(tmp_path: Path, grey: np.ndarray) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    inside = grey > 100
    for name, mask in (("a", inside), ("b", inside * np.uint8(255)), ("empty", np.zeros_like(grey))):
        Image.fromarray(grey).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "labels" / f"{name}.png")
    with pytest.raises(LabelError, match=r"only label is 1 in .*a\.png, but 255 in .*b\.png: one label or two\?"):
        read_cohort(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {"cyst": 1, "tumour": 255}}')
    assert read_cohort(tmp_path).labels == Labels((1, 255), ("cyst", "tumour"))


def test_labels_in_colour_or_jpeg_are_refused(tmp_path: Path, colour: np.ndarray, grey: np.ndarray) -> None:
    Image.fromarray(colour).save(tmp_path / "a.png")
    with pytest.raises(UnsupportedInput, match=r"a\.png: labels are colours \(RGB\); save one channel"):
        read_label_map(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.jpg")
    with pytest.raises(UnsupportedInput, match=r"a\.jpg: JPEG compression changes label values; save labels as \.png"):
        read_label_map(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "deep.tif"])
def test_truncated_picture_is_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    if name == "deep.tif":
        tifffile.imwrite(tmp_path / name, noise.astype(np.uint16))
    else:
        Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(DamagedFile, match=rf"{name}: .*; copy the file again|{name}: .*; check where it came from"):
        read_volume(tmp_path / name)


def test_flipped_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[2000] ^= 0x10
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.png: truncated or damaged picture"):
        read_volume(tmp_path / "a.png")


def test_picture_of_suspiciously_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(DamagedFile, match=r"a\.png: suspiciously many pixels .*cut it into tiles"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stack_in_a_tiff_is_refused_with_a_remedy(tmp_path: Path, dtype) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 6), dtype=dtype), photometric="minisblack")
    with pytest.raises(UnsupportedInput, match=r"a stack of 4 pictures without spacing; save it as one \.nii\.gz"):
        read_volume(tmp_path / "a.tif")


def test_volume_in_space_is_not_written_as_a_picture(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(UnsupportedInput, match=r"a picture cannot store the grid \(9, 7, 5\); write \.nii\.gz"):
        write_volume(tmp_path / "a.png", volume)
