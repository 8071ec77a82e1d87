"""PNG, TIFF, BMP and JPEG: pixels that are not there are never made up, and every field that changes them is heeded."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from handful.data.cases import Case
from handful.data.checks import check_case
from handful.data.files import read_label_map, read_volume, write_label_map
from handful.data.formats import read_geometry, read_notes
from handful.data.label_values import doubt_about_values
from handful.data.volume import LabelMap, Labels
from handful.errors import DamagedFile, LabelError, UnsupportedInput

RNG = np.random.default_rng(0)
DEEP = RNG.integers(1, 60_000, (48, 40)).astype(np.uint16)
GREY = (DEEP % 254 + 1).astype(np.uint8)
COLOUR = RNG.integers(0, 255, (24, 20, 3)).astype(np.uint8)
ONE = Labels((1,), ("one",))


def pixels(path: Path) -> np.ndarray:
    """(y, x) or (y, x, 3), as read."""
    array = read_volume(path).array[..., 0]
    return array[0].T if len(array) == 1 else array.transpose(2, 1, 0)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path: Path, array: np.ndarray, depth: int, colour: int, extra: bytes = b"", **header: int) -> Path:
    """A PNG of rows (y, x · channels) without filters; `header` overrides width or height."""
    rows = [np.packbits(((row[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)) for row in array]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    size = (header.get("width", array.shape[1] // channels), header.get("height", len(array)))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)) + extra + chunk(b"IDAT", data)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    return path


def tag(path: Path, which: int, value: int, index: int = 0) -> None:
    """Overwrite one value of a tag in a little-endian TIFF."""
    content = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", content, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 12):
        found, kind, count, where = struct.unpack_from("<HHII", content, entry)
        if found == which:
            size = {3: 2, 4: 4}[kind]
            inline = size * count <= 4
            struct.pack_into({2: "<H", 4: "<I"}[size], content, (entry + 8 if inline else where) + size * index, value)
    path.write_bytes(content)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_of_every_depth_is_kept(tmp_path: Path, depth: int, colour: int, channels: int) -> None:
    array = RNG.integers(0, 2**depth, (24, 20, channels))
    found = pixels(png(tmp_path / "a.png", array.reshape(24, -1), depth, colour))
    kept = array[..., 0] if channels < 3 else array[..., :3]
    assert found.dtype == (np.uint16 if depth == 16 else np.uint8)
    np.testing.assert_array_equal(found, kept)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_label_numbers_in_a_png_are_as_stored(tmp_path: Path, depth: int) -> None:
    array = RNG.integers(0, min(2**depth, 100), (24, 20))
    array[0, 0] = 1
    np.testing.assert_array_equal(read_label_map(png(tmp_path / "a.png", array, depth, 0)).array[..., 0].T, array)
    if depth < 16:
        colours = chunk(b"PLTE", RNG.integers(0, 255, 3 * min(2**depth, 256)).astype(np.uint8).tobytes())
        path = png(tmp_path / "b.png", array, depth, 3, colours)
        np.testing.assert_array_equal(read_label_map(path).array[..., 0].T, array)


def test_interlaced_png_is_read(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR)
    pieces = []
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        pieces += [b"\0" + row.tobytes() for row in COLOUR[y::dy, x::dx]]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1))
    content = header + chunk(b"IDAT", zlib.compress(b"".join(pieces))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), COLOUR)


@pytest.mark.parametrize(
    ("header", "finding"),
    [
        ({"height": 47}, "holds more pixels than its header declares"),
        ({"height": 49}, "1,968 of 2,009 bytes of pixels"),
        ({"width": 39}, "holds more pixels"),
        ({"height": 0}, "40 x 0 pixels"),
        ({"height": 2**31}, "40 x 2147483648 pixels"),
        ({"width": 60_000, "height": 60_000}, "suspiciously many pixels"),
    ],
)
def test_png_whose_size_contradicts_its_pixels_is_refused(tmp_path: Path, header: dict[str, int], finding: str) -> None:
    path = png(tmp_path / "a.png", GREY, 8, 0, **header)
    for read in (read_volume, read_label_map):
        with pytest.raises(DamagedFile, match=rf"a\.png: .*{finding}"):
            read(path)


def test_png_with_impossible_chunks_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", GREY, 8, 0)
    whole = path.read_bytes()
    for content, finding in (
        (whole + b"x", "1 bytes follow the end of the picture"),
        (whole[:-12], "ends inside a chunk"),
        (whole.replace(b"IDAT", b"JDAT"), "wrong checksum"),
        (whole[:8] + whole[33:], "header is not the first chunk"),
        (whole[:33] + chunk(b"acTL", bytes(8)) + whole[33:], "animated PNG"),
        (whole[:33] + chunk(b"ABCD", bytes(8)) + whole[33:], "unknown kind of PNG"),
    ):
        path.write_bytes(content)
        with pytest.raises((DamagedFile, UnsupportedInput), match=rf"a\.png: .*{finding}"):
            read_volume(path)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("which", [273, 279])
def test_strips_that_are_not_there_are_never_zeros(tmp_path: Path, compression: str | None, which: int) -> None:
    for array in (DEEP, GREY):
        tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, rowsperstrip=4)
        np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), array)
        tag(tmp_path / "a.tif", which, 0, index=3)
        with pytest.raises(DamagedFile, match=r"a\.tif: .*strip 4 of 12 is missing: .*copy the file again"):
            read_volume(tmp_path / "a.tif")


def test_compression_that_cannot_hold_the_pixels_is_refused(tmp_path: Path) -> None:
    for compression in (2, 9, 65000):
        tifffile.imwrite(tmp_path / "a.tif", DEEP, rowsperstrip=4)
        tag(tmp_path / "a.tif", 259, compression)
        with pytest.raises(UnsupportedInput, match=rf"a\.tif: 16-bit pixels of compression {compression}; save"):
            read_volume(tmp_path / "a.tif")


def test_fax_pictures_are_read(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "a.tif", compression="group4", tiffinfo={262: 1})
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "a.tif").convert("L")))


def test_strips_that_overlap_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, rowsperstrip=4)
    first = tifffile.TiffFile(tmp_path / "a.tif").pages.first.dataoffsets[0]
    for offset in (first + 10, 20):
        tag(tmp_path / "a.tif", 273, offset, index=3)
        with pytest.raises(DamagedFile, match=r"a\.tif: .*strips overlap at byte"):
            read_volume(tmp_path / "a.tif")
    tag(tmp_path / "a.tif", 273, first, index=3)  # as programs store equal strips
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[12:16], GREY[:4])


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("height", [1, 24, 47, 49, 96, 1000, 2**31])
def test_tiff_with_another_height_is_refused(tmp_path: Path, compression: str | None, height: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression=compression, rowsperstrip=4)
    tag(tmp_path / "a.tif", 257, height)
    with pytest.raises(DamagedFile, match=r"a\.tif: .*(offsets and|damaged TIFF|cannot hold|are stored)"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "lzma", "zstd"])
def test_flipped_bits_in_a_compressed_tiff_are_read_or_explained(tmp_path: Path, compression: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP, compression=compression, rowsperstrip=4)
    whole = (tmp_path / "a.tif").read_bytes()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        content[rng.integers(400, len(content))] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.tif").write_bytes(content)
        with suppress(DamagedFile):
            assert pixels(tmp_path / "a.tif").shape == DEEP.shape


@pytest.mark.parametrize("predictor", [None, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("options", [{"rowsperstrip": 7}, {"tile": (16, 32)}, {"bigtiff": True}, {"byteorder": ">"}])
def test_tiff_of_every_layout_is_read(tmp_path: Path, kind: type, options: dict, predictor: bool | None) -> None:
    array = DEEP.astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", array, compression="zlib", predictor=predictor, **options)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), array)


def test_planes_and_alpha_of_a_tiff(tmp_path: Path) -> None:
    deep = COLOUR.astype(np.uint16) * 200
    tifffile.imwrite(tmp_path / "a.tif", deep.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), deep)
    four = np.concatenate([deep, deep[..., :1]], axis=2)
    tifffile.imwrite(tmp_path / "b.tif", four, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(pixels(tmp_path / "b.tif"), deep)
    for array in (four, four.astype(np.uint8)):
        tifffile.imwrite(tmp_path / "c.tif", array, photometric="rgb", extrasamples=["unspecified"])
        with pytest.raises(UnsupportedInput, match=r"c\.tif: 4 channels, of which 3 are grey or colour and none is"):
            read_volume(tmp_path / "c.tif")


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_is_inverted_in_images_but_not_in_labels(tmp_path: Path, bits: int) -> None:
    array = GREY if bits == 8 else DEEP
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), 2**bits - 1 - array)
    assert [note for note in read_notes(tmp_path / "a.tif") if "zero is white" in note]
    tifffile.imwrite(tmp_path / "b.tif", array % 4, photometric="miniswhite")
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.tif").array[..., 0].T, array % 4)


def test_black_and_white_labels_need_black_as_zero(tmp_path: Path) -> None:
    mask = Image.fromarray(GREY > 100)
    mask.save(tmp_path / "a.tif", tiffinfo={262: 1})
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.tif").array[..., 0].T, GREY > 100)
    mask.save(tmp_path / "a.tif", tiffinfo={262: 0})
    tag(tmp_path / "a.tif", 262, 0)
    with pytest.raises(UnsupportedInput, match=r"a\.tif: black-and-white labels of which zero is white"):
        read_label_map(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{"photometric": "palette"}, {"compression": "jpeg"}])
def test_palette_and_jpeg_tiffs_are_read_as_pillow_reads_them(tmp_path: Path, options: dict) -> None:
    if "photometric" in options:
        options = {**options, "colormap": RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257}
    array = GREY if "photometric" in options else np.full((48, 48, 3), (10, 200, 90), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    shown = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")).astype(int)
    assert np.abs(pixels(tmp_path / "a.tif") - shown).max() <= 2
    if "photometric" in options:
        np.testing.assert_array_equal(read_label_map(tmp_path / "a.tif").array[..., 0].T, GREY)


def test_stacks_behind_one_header_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, description="ImageJ=1.53\nimages=12\nslices=12\n", metadata=None)
    with pytest.raises(UnsupportedInput, match=r"a\.tif: a stack of 12 pictures without spacing"):
        read_volume(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = struct.unpack_from("<I", content, 4)[0]
    struct.pack_into("<I", content, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], at)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.tif: .*endless list"):
        read_volume(tmp_path / "a.tif")


def test_bmp_whose_size_contradicts_its_pixels_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.bmp")
    for height in (24, 47, 49, 480):
        content = bytearray((tmp_path / "a.bmp").read_bytes())
        struct.pack_into("<i", content, 22, height)
        (tmp_path / "b.bmp").write_bytes(content)
        with pytest.raises(DamagedFile, match=r"b\.bmp: truncated or damaged picture .*bytes, must be"):
            read_volume(tmp_path / "b.bmp")


def test_picture_with_a_thumbnail_is_no_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY)
        file.write(GREY[::4, ::4])
    with pytest.raises(UnsupportedInput, match=r"a\.tif: 2 pictures of different sizes, such as a thumbnail"):
        read_volume(tmp_path / "a.tif")


def test_tiff_of_single_bits_takes_no_more_memory_than_allowed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), bool))
    with pytest.raises(DamagedFile, match=r"a\.tif: 4,096 bytes, but 1,000 are allowed"):
        read_volume(tmp_path / "a.tif", max_bytes=1000)


def grey_bmp(path: Path, numbers: np.ndarray, bits: int, palette: list[int], compression: int = 0) -> None:
    """A BMP whose pixels are numbers of grey colours, upper row first."""
    digits = (numbers[:, :, None] >> np.arange(bits - 1, -1, -1) & 1).reshape(len(numbers), -1).astype(np.uint8)
    rows = np.packbits(np.pad(digits, ((0, 0), (0, -digits.shape[1] % 32))), axis=1).tobytes()
    colours = b"".join(bytes((grey, grey, grey, 0)) for grey in palette)
    sizes = (40, numbers.shape[1], -len(numbers), 1, bits, compression, len(rows), 0, 0, len(palette), 0)
    start = struct.pack("<IHHI", 54 + len(colours) + len(rows), 0, 0, 54 + len(colours))
    path.write_bytes(b"BM" + start + struct.pack("<IiiHHIIiiII", *sizes) + colours + rows)


@pytest.mark.parametrize(("bits", "palette"), [(8, [0, 255]), (4, [0, 255]), (4, [0, 1, 2]), (8, [0, 1, 2])])
def test_bmp_of_few_grey_colours_keeps_its_numbers(tmp_path: Path, bits: int, palette: list[int]) -> None:
    numbers = RNG.integers(0, len(palette), (6, 7))
    grey_bmp(tmp_path / "a.bmp", numbers, bits, palette)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.bmp").array[..., 0].T, numbers)
    np.testing.assert_array_equal(pixels(tmp_path / "a.bmp"), np.array(palette)[numbers])


def test_bmp_of_more_colours_than_its_palette_has_or_compressed_is_refused(tmp_path: Path) -> None:
    grey_bmp(tmp_path / "a.bmp", np.full((6, 7), 3), 8, [0, 255])
    with pytest.raises(DamagedFile, match=r"a\.bmp: pixels of colour 3, but the palette has 2"):
        read_volume(tmp_path / "a.bmp")
    grey_bmp(tmp_path / "b.bmp", np.zeros((6, 7), int), 8, [0, 255], compression=1)
    with pytest.raises(UnsupportedInput, match=r"b\.bmp: a compressed BMP of black and white"):
        read_volume(tmp_path / "b.bmp")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(9))
def test_pictures_lie_as_viewers_show_them(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(np.add.outer(np.arange(24), 8 * np.arange(16)).astype(np.uint8))
    smooth.save(tmp_path / "shown.png", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "shown.png"))).astype(int)
    if name == "a.tif":
        smooth.save(tmp_path / name, tiffinfo={274: max(orientation, 1)})
    else:
        smooth.save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
    assert np.abs(pixels(tmp_path / name) - shown).max() <= 2
    geometry = read_volume(tmp_path / name).geometry
    assert read_geometry(tmp_path / name).shape == geometry.shape == (*shown.shape[::-1], 1)
    assert bool(read_notes(tmp_path / name)) == (orientation > 1)
    if name != "a.jpg":
        np.testing.assert_array_equal(read_label_map(tmp_path / name).array[..., 0].T, shown)
    write_label_map(tmp_path / "b.png", LabelMap(np.ones(geometry.shape, np.int16), geometry, ONE))
    assert Image.open(tmp_path / "b.png").size == shown.shape[::-1]


def test_damaged_exif_is_refused_since_the_orientation_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    with pytest.raises(DamagedFile, match=r"a\.jpg: damaged EXIF data, so the orientation is unknown; save"):
        read_volume(tmp_path / "a.jpg")


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"])
def test_exif_without_entries_leaves_the_picture_as_stored(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), GREY)


def test_jpeg_named_png_is_read_as_an_image_but_not_as_labels(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray((GREY > 100).astype(np.uint8) * 255).save(content, "JPEG")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    assert read_volume(tmp_path / "a.png").array.shape == (1, 40, 48, 1)
    assert [note for note in read_notes(tmp_path / "a.png") if "a JPEG although it is named .png" in note]
    with pytest.raises(
        UnsupportedInput, match=r"a\.png: a JPEG although it is named \.png; JPEG compression changes .*threshold"
    ):
        read_label_map(tmp_path / "a.png")


def test_tiff_of_jpeg_strips_holds_no_labels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", (GREY > 100).astype(np.uint8) * 255, compression="jpeg")
    assert read_volume(tmp_path / "a.tif").array.shape == (1, 40, 48, 1)
    with pytest.raises(UnsupportedInput, match=r"a\.tif: a TIFF of JPEG strips; JPEG compression changes label"):
        read_label_map(tmp_path / "a.tif")


@pytest.mark.parametrize("start", [b"8BPS", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"SIMPLE  ="])
def test_no_other_parser_is_tried(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.png").write_bytes(start + bytes(500))
    with pytest.raises(DamagedFile, match=r"a\.png: not a readable picture, it starts with"):
        read_volume(tmp_path / "a.png")


def test_a_map_of_many_labels_is_read_at_once(tmp_path: Path) -> None:
    values = np.arange(60_000, dtype=np.uint16).reshape(200, 300)
    tifffile.imwrite(tmp_path / "a.tif", values)
    label_map = read_label_map(tmp_path / "a.tif")
    np.testing.assert_array_equal(label_map.array[..., 0].T, values)
    assert len(label_map.labels.values) == 59_999


def test_many_unnamed_values_are_doubted_as_grey_levels_or_instances(tmp_path: Path) -> None:
    ramp = np.zeros((64, 64, 1), np.int16)
    ramp[8:56, 8:56, 0] = np.add.outer(np.arange(48), np.arange(48)) % 60
    ids = np.zeros((64, 64, 1), np.int16)
    for number in range(49):
        ids[9 * (number // 7) : 9 * (number // 7) + 5, 9 * (number % 7) : 9 * (number % 7) + 5] = number + 1
    for array, finding in ((ramp, "are these grey levels"), (ids, "are these instance ids")):
        values = [int(value) for value in np.unique(array[array > 0])]
        unnamed = Labels.of({value: f"label {value}" for value in values})
        assert finding in (doubt_about_values(array, unnamed) or "")
        assert doubt_about_values(array, Labels.of({value: f"organ {value}" for value in values})) is None
        Image.fromarray(array[..., 0].astype(np.uint8)).save(tmp_path / "a.png")
        Image.fromarray(GREY[:40, :40]).resize((64, 64)).save(tmp_path / "b.png")
        messages = [found.message for found in check_case(Case("a", tmp_path / "b.png", tmp_path / "a.png", unnamed))]
        assert any(finding in message for message in messages)
        with pytest.raises(LabelError, match="are these grey levels or instance ids"):
            read_label_map(tmp_path / "a.png", Labels((255,), ("polyp",)))
    assert doubt_about_values(np.minimum(ids, 20), Labels.of({n: f"label {n}" for n in range(1, 21)})) is None
