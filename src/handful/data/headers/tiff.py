"""Headers of TIFF and BigTIFF files with one picture, and the orientation in EXIF data, which is a TIFF header.

Source: TIFF 6.0 specification, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from handful.errors import DamagedFile, UnsupportedInput

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 8, 32946, 32773
JPEG_COMPRESSIONS = (6, 7, 34892)
"""Old JPEG, JPEG, and lossy JPEG of DNG."""
_NAMES = {
    256: "ImageWidth", 257: "ImageLength", 258: "BitsPerSample", 259: "Compression", 262: "PhotometricInterpretation",
    266: "FillOrder", 273: "StripOffsets", 274: "Orientation", 277: "SamplesPerPixel", 278: "RowsPerStrip",
    279: "StripByteCounts", 284: "PlanarConfiguration", 317: "Predictor", 320: "ColorMap", 322: "TileWidth",
    323: "TileLength", 324: "TileOffsets", 325: "TileByteCounts", 338: "ExtraSamples", 339: "SampleFormat",
}  # fmt: skip
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value, by the number of its type."""
_DESCRIPTION = 270
_MOST_ENTRIES, _MOST_PAGES, _MOST_VALUES = 4096, 10_000, 2**22
_SAMPLE_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_BITS = {"u": (1, 2, 4, 8, 10, 12, 14, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
_GREATEST_RATIO = {UNCOMPRESSED: 1, LZW: 4096, DEFLATE: 1032, OLD_DEFLATE: 1032, PACKBITS: 64}
_ANY_RATIO = 100_000
"""Bytes of pixels per stored byte that a compression can reach."""


@dataclass(frozen=True)
class Segment:
    """One strip or tile: where its bytes are, and which pixels it holds."""

    offset: int
    count: int
    """Bytes as stored."""
    plane: int
    row: int
    column: int


@dataclass(frozen=True)
class TiffHeader:
    """What the only page of a file says."""

    width: int
    height: int
    samples: int
    bits: int
    kind: str
    """Type of the samples: "u", "i" or "f"."""
    byteorder: str
    compression: int
    photometric: int
    planar: bool
    """Whether each channel is stored on its own."""
    predictor: int
    reversed_bits: bool
    orientation: int
    extra: tuple[int, ...]
    """Meaning of the samples beyond grey or colour: 1 and 2 are alpha."""
    colormap: tuple[int, ...]
    segment_shape: tuple[int, int]
    """Rows and columns of a full strip or tile."""
    tiled: bool
    segments: tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the decompressed picture; its pixels may share bytes."""
        return self.height * -(-self.width * self.samples * self.bits // 8)

    @property
    def memory(self) -> int:
        """Bytes of the pixels in memory, where each sample has bytes of its own."""
        return self.height * self.width * self.samples * -(-self.bits // 8)

    @property
    def greatest_ratio(self) -> int:
        """Bytes of pixels that one stored byte can hold."""
        return _GREATEST_RATIO.get(self.compression, _ANY_RATIO)

    def rows_of(self, segment: Segment) -> int:
        """Rows stored in a segment: a strip ends with the picture, a tile is always full."""
        return self.segment_shape[0] if self.tiled else min(self.segment_shape[0], self.height - segment.row)


def read_tiff_header(file: BufferedIOBase, path: Path) -> TiffHeader:
    """The header of a file with one picture. Raises DamagedFile or UnsupportedInput."""
    source = _Source(file, path)
    directory = source.first_directory()
    _require_one_picture(source)
    _require_no_hidden_stack(directory)
    samples = directory.one(277, 1, high=64)
    kind, bits = _sample_type(directory, samples)
    tiled = 322 in directory.entries or 324 in directory.entries
    width, height = directory.one(256), directory.one(257)
    planar = directory.one(284, 1, high=2) == 2 and samples > 1
    if tiled:
        shape = directory.one(323, high=2**20), directory.one(322, high=2**20)
    else:
        shape = min(directory.one(278, 2**32 - 1), height), width
    segments = _segments(directory, tiled, shape, (height, width), samples if planar else 1)
    header = TiffHeader(
        width=width,
        height=height,
        samples=samples,
        bits=bits,
        kind=kind,
        byteorder=source.order,
        compression=directory.one(259, UNCOMPRESSED),
        photometric=directory.one(262, low=0),
        planar=planar,
        predictor=directory.one(317, 1, high=3),
        reversed_bits=directory.one(266, 1, high=2) == 2,
        orientation=directory.orientation(),
        extra=directory.whole(338) if 338 in directory.entries else (),
        colormap=directory.whole(320) if 320 in directory.entries else (),
        segment_shape=shape,
        tiled=tiled,
        segments=segments,
    )
    _require_possible(header, path)
    return header


def exif_orientation(content: bytes, path: Path) -> int:
    """The orientation, 1 to 8, in EXIF data; 1 if it has none. Raises DamagedFile."""
    try:
        return _Source(io.BytesIO(content.removeprefix(b"Exif\0\0")), path).first_directory().orientation()
    except DamagedFile as error:
        raise DamagedFile(
            f"{path}: damaged EXIF data, so the orientation is unknown; save the picture again without EXIF"
        ) from error


class _Source:
    """A file whose reads stay within it."""

    def __init__(self, file: BufferedIOBase, path: Path) -> None:
        self._file, self.path = file, path
        self.size = file.seek(0, io.SEEK_END)
        start = self.at(0, 4)
        self.order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(f"{self.order}H", start[2:])[0] if self.order else 0
        if version not in (42, 43):
            raise DamagedFile(f"{path}: not a readable picture, it starts with {start!r}; check where it came from")
        self.big = version == 43
        if self.big and self.at(4, 4) != struct.pack(f"{self.order}HH", 8, 0):
            raise self.damaged("an impossible BigTIFF header")

    def at(self, offset: int, size: int) -> bytes:
        """Bytes of the file. Raises DamagedFile if it has fewer."""
        if offset + size > self.size:
            raise self.damaged(f"points to byte {offset + size:,} of {self.size:,}")
        self._file.seek(offset)
        return self._file.read(size)

    def damaged(self, finding: str) -> DamagedFile:
        return DamagedFile(f"{self.path}: incomplete TIFF ({finding}); copy the file again")

    def number(self, offset: int, kind: str) -> int:
        value: int = struct.unpack(f"{self.order}{kind}", self.at(offset, struct.calcsize(f"<{kind}")))[0]
        return value

    def first_directory(self) -> _Directory:
        """The directory of the first picture."""
        return self.directory(self.first_offset())

    def directory(self, offset: int) -> _Directory:
        """The directory at an offset."""
        count, entry, size = self._layout(offset)
        entries: dict[int, tuple[int, int, int]] = {}
        table = self.at(offset + entry, count * size)
        for start in range(0, len(table), size):
            tag, kind, number = struct.unpack_from(f"{self.order}HH{'Q' if self.big else 'I'}", table, start)
            if tag in entries and tag in _NAMES:
                raise self.damaged(f"{_NAMES[tag]} is there twice")
            inline = offset + entry + start + (12 if self.big else 8)
            entries[tag] = (kind, number, inline)
        return _Directory(self, entries)

    def first_offset(self) -> int:
        """Where the first directory is."""
        return self.number(8, "Q") if self.big else self.number(4, "I")

    def directories(self) -> list[int]:
        """The offsets of the directories, each of which points to the next one."""
        visited: dict[int, None] = {}
        offset = self.first_offset()
        while offset:
            if offset in visited or len(visited) >= _MOST_PAGES:
                raise self.damaged("an endless list of pictures")
            visited[offset] = None
            count, entry, size = self._layout(offset)
            offset = self.number(offset + entry + count * size, "Q" if self.big else "I")
        return list(visited)

    def _layout(self, offset: int) -> tuple[int, int, int]:
        """Number of entries of a directory, offset of the first one, and bytes of each."""
        count = self.number(offset, "Q" if self.big else "H")
        if count > _MOST_ENTRIES:
            raise self.damaged(f"a directory of {count:,} entries")
        return (count, 8, 20) if self.big else (count, 2, 12)


@dataclass(frozen=True)
class _Directory:
    """The entries of one picture: type, number of values, and offset of the entry's value field, by tag."""

    source: _Source
    entries: dict[int, tuple[int, int, int]]

    def raw(self, tag: int) -> tuple[int, int, bytes]:
        """Type, number of values and bytes of an entry."""
        kind, count, inline = self.entries[tag]
        size = _SIZES.get(kind, 0) * count
        name = _NAMES.get(tag, f"tag {tag}")
        if size == 0 or count > _MOST_VALUES:
            raise self.source.damaged(f"{name} has {count:,} values of type {kind}")
        word = "Q" if self.source.big else "I"
        offset = inline if size <= struct.calcsize(word) else self.source.number(inline, word)
        return kind, count, self.source.at(offset, size)

    def whole(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of an entry. Raises DamagedFile if it is missing or has another type."""
        if tag not in self.entries:
            raise self.source.damaged(f"no {_NAMES[tag]}")
        kind, count, content = self.raw(tag)
        if kind not in _INTEGERS:
            raise self.source.damaged(f"{_NAMES[tag]} has type {kind}, not whole numbers")
        return struct.unpack(f"{self.source.order}{count}{_INTEGERS[kind]}", content)

    def one(self, tag: int, default: int | None = None, low: int = 1, high: int = 2**32 - 1) -> int:
        """The only number of an entry, from `low` to `high`."""
        if default is not None and tag not in self.entries:
            return default
        values = self.whole(tag)
        if len(values) != 1 or not low <= values[0] <= high:
            shown = ", ".join(str(value) for value in values[:5])
            raise self.source.damaged(f"{_NAMES[tag]} is {shown}")
        return values[0]

    def orientation(self) -> int:
        """1 to 8; 1, as stored, if it is missing or 0."""
        return self.one(274, 1, low=0, high=8) or 1


def _sample_type(directory: _Directory, samples: int) -> tuple[str, int]:
    path = directory.source.path
    bits = directory.whole(258) if 258 in directory.entries else (1,)
    kinds = directory.whole(339) if 339 in directory.entries else (1,)
    for name, values in (("BitsPerSample", bits), ("SampleFormat", kinds)):
        if len(values) not in (1, samples) or len(set(values)) != 1:
            raise UnsupportedInput(f"{path}: {name} is {values[:8]} for {samples} channels; save equal channels")
    kind = _SAMPLE_KINDS.get(kinds[0])
    if kind is None:
        raise UnsupportedInput(f"{path}: pixels are complex (SampleFormat {kinds[0]}); save grey values")
    if bits[0] not in _BITS[kind]:
        raise UnsupportedInput(f"{path}: pixels of {bits[0]} bits (SampleFormat {kinds[0]}); save 8 or 16 bits")
    return kind, bits[0]


def _segments(
    directory: _Directory, tiled: bool, shape: tuple[int, int], size: tuple[int, int], planes: int
) -> tuple[Segment, ...]:
    """All strips or tiles. Raises DamagedFile unless they are as many as the picture needs, each within the file."""
    offsets, counts = (directory.whole(tag) for tag in ((324, 325) if tiled else (273, 279)))
    down, across = (math.ceil(whole / part) for whole, part in zip(size, shape, strict=True))
    if not len(offsets) == len(counts) == down * across * planes:
        raise directory.source.damaged(
            f"{len(offsets):,} offsets and {len(counts):,} sizes of strips, must be {down * across * planes:,}"
        )
    segments = []
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        if offset < 8 or count < 1 or offset + count > directory.source.size:
            raise directory.source.damaged(
                f"strip {number + 1} of {len(offsets)} is missing: {count:,} bytes at byte {offset:,} "
                f"of {directory.source.size:,}"
            )
        plane, place = divmod(number, down * across)
        row, column = divmod(place, across)
        segments.append(Segment(offset, count, plane, row * shape[0], column * shape[1]))
    _require_apart(directory, {(segment.offset, segment.count) for segment in segments})
    return tuple(segments)


def _require_apart(directory: _Directory, stored: set[tuple[int, int]]) -> None:
    """Raise DamagedFile if strips overlap each other or the directory; equal strips may share their bytes."""
    places = [inline for _, _, inline in directory.entries.values()]
    blocks = sorted(stored | {(min(places), max(places) - min(places) + 4)})
    for (offset, count), (following, _) in itertools.pairwise(blocks):
        if offset + count > following:
            raise directory.source.damaged(f"strips overlap at byte {following:,}")


def _require_one_picture(source: _Source) -> None:
    """Raise UnsupportedInput for a stack, and for a picture with smaller copies."""
    pages = source.directories()
    if len(pages) < 2:
        return
    sizes = {(page.one(256), page.one(257)) for page in map(source.directory, pages)}
    if len(sizes) > 1:
        raise UnsupportedInput(
            f"{source.path}: {len(pages)} pictures of different sizes, such as a thumbnail or the levels of a slide; "
            "save the one that is meant as a file of its own"
        )
    raise UnsupportedInput(f"{source.path}: a stack of {len(pages)} pictures without spacing; save it as one .nii.gz")


def _require_no_hidden_stack(directory: _Directory) -> None:
    """Raise UnsupportedInput for the stacks of ImageJ and tifffile that have one directory for all pictures."""
    if _DESCRIPTION not in directory.entries:
        return
    description = directory.raw(_DESCRIPTION)[2][:10_000].decode("latin1")
    images = re.search(r"^images=(\d+)", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    pages = int(images.group(1)[:9]) if images else 2 if '"truncated": true' in description else 1
    if pages > 1:
        many = str(pages) if images else "several"
        raise UnsupportedInput(
            f"{directory.source.path}: a stack of {many} pictures without spacing; save it as one .nii.gz"
        )


def _require_possible(header: TiffHeader, path: Path) -> None:
    stored = sum(segment.count for segment in header.segments)
    if header.nbytes > stored * header.greatest_ratio:
        raise DamagedFile(
            f"{path}: the header declares {header.nbytes:,} bytes of pixels, but {stored:,} bytes are stored; "
            "copy the file again"
        )
    if header.photometric == PALETTE and (header.kind != "u" or len(header.colormap) != 3 * 2**header.bits):
        raise DamagedFile(f"{path}: a palette of {len(header.colormap):,} numbers; save the picture again")
