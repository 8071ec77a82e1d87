"""Damage to DICOM: single tags at any depth, whole files, and bytes; and what a reader made of it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydicom import config, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

import dicom_series as made
from fuzz.workers import Trial
from handful.data.dicom.segmentation import Maker, SegmentationStyle, write_segmentation
from handful.data.dicom.series import ONLY_SERIES
from handful.data.formats import read_geometry, read_label_map, read_notes, read_volume
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import HandfulError

TEXTS = (
    "",
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1\\1",
    "nan",
    "inf",
    "1e999",
    "99999999999",
    "A" * 400,
    "1.5",
    "\xff",
    "1\\0\\0",
)
SHORTS = (0, 1, 2, 3, 7, 8, 12, 16, 32, 255, 2**15, 2**16 - 1)
PLACING = {
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("PixelSpacingCalibrationType", "ImagerPixelSpacing"),
}
SCALING = {
    *("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation"),
    *("PhotometricInterpretation", "PlanarConfiguration"),
}
"""Tags that stand alone: with another value, the file is as sound as before."""
NAMING = {"ReferencedSegmentNumber", "SegmentNumber", "ROINumber", "ReferencedROINumber"}
"""Numbers of segments; with another one of those that are described, a frame is that of another segment."""
OUTLINES = {"ContourData", "ContourSequence", "ROIContourSequence"}
"""Corners of contours, and lists of them, which may be shorter."""
SYNTAXES = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2", ""),
)


@dataclass(frozen=True)
class Series:
    """The files of a scan, or labels of the first scan."""

    name: str
    files: Mapping[str, bytes]
    labels: bool = False
    packed: bool = False
    """Whether pixels are compressed."""


@dataclass(frozen=True)
class Edit:
    """Damaged files and what was done to them."""

    series: Series
    files: Mapping[str, bytes]
    what: str
    tags: frozenset[str]
    """Keywords of the tags that were changed, outermost first; "" for one that is not known."""
    touched: int = 0
    """Bytes of pixels that were overwritten."""
    values: frozenset[int] = frozenset()
    """Numbers that were written."""


@cache
def originals() -> tuple[Series, ...]:
    """All series; the same in every process."""
    ct = made.series(RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=-2000, StudyID="1")
    per_slice = made.series(modality="MR")
    for index, data in enumerate(per_slice):
        data.RescaleSlope, data.RescaleIntercept = 0.5 + index, index
    rle = [made.compressed(data, "rle") for data in made.series()]
    jpeg = [made.compressed(data, "jpeg lossless") for data in made.series(dtype=np.uint16)]
    colour = np.random.default_rng(0).integers(1, 255, (9, 8, 3)).astype(np.uint8)
    picture = made.image(colour, position=None, modality="US", PixelSpacing=None, SliceThickness=None)
    scan = Series("ct", _files(ct))
    return (
        scan,
        Series("scaled", _files(per_slice)),
        Series("rle", _files(rle), packed=True),
        Series("jpeg", _files(jpeg), packed=True),
        Series("enhanced", _files([made.enhanced([1.0, 2.0, 0.5])])),
        Series("picture", _files([picture])),
        *_segmentations(scan),
    )


def _files(images: list[FileDataset]) -> dict[str, bytes]:
    found = {}
    for index, data in enumerate(images):
        content = io.BytesIO()
        data.save_as(content, enforce_file_format=True)
        found[f"IM{index:02d}.dcm"] = content.getvalue()
    return found


def _segmentations(scan: Series) -> Iterator[Series]:
    with TemporaryDirectory() as name:
        folder = Path(name) / "scan"
        _write(scan.files, folder)
        geometry = read_volume(folder).geometry
        array = np.zeros(geometry.shape, np.int16)
        array[1:4, 2:7, 1:3], array[5, 1, 1:-1], array[6:9, 5:7, -3:-1] = 1, 2, 5
        label_map = LabelMap(array, geometry, Labels((1, 2, 5), ("liver", "tumour", "spleen")))
        for encoding in ("BINARY", "LABELMAP"):
            out = Path(name) / f"{encoding}.dcm"
            style = SegmentationStyle(encoding, {}, Maker("fate", "ab" * 32))  # type: ignore[arg-type]
            write_segmentation(out, label_map, folder, ONLY_SERIES, style)
            yield Series(encoding.lower(), {"seg.dcm": out.read_bytes()}, labels=True)
        yield Series("contours", {"seg.dcm": _contours(geometry)}, labels=True)


def _contours(grid: Geometry) -> bytes:
    """A structure on three slices, with a hole on one of them, and another structure next to it."""
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine

    def square(low: float, high: float, index: int) -> np.ndarray:
        corners = np.array([[low, low], [high, low], [high, high], [low, high]])
        return np.asarray((to_lps @ np.c_[corners, np.full(4, index), np.ones(4)].T)[:3].T)

    liver = [square(0.5, 5.5, index) for index in (1, 2, 3)] + [square(1.5, 3.5, 2)]
    return _files([made.contours({"liver": liver, "cyst": [square(5.6, 7.4, 2)]})])["IM00.dcm"]


def damaged(number: int) -> Trial:
    """The trial of that number."""
    rng = np.random.default_rng([88, number])
    series = originals()[number % len(originals())]
    config.settings.writing_validation_mode = config.IGNORE
    config.settings.reading_validation_mode = config.IGNORE
    edit = _edited(series, rng)
    return f"header {series.name}: {edit.what}", lambda folder: _outcome(edit, folder)


def _edited(series: Series, rng: np.random.Generator) -> Edit:
    chance = rng.random()
    if chance < 0.3:
        return _bytes(series, rng)
    if chance < 0.4 and len(series.files) > 1:
        return _whole_files(series, rng)
    return _tag(series, rng)


def _whole_files(series: Series, rng: np.random.Generator) -> Edit:
    files = dict(series.files)
    name = str(rng.choice(sorted(files)))
    kind = str(rng.choice(["remove", "double", "other", "empty", "cut"]))
    if kind == "remove":
        del files[name]
    elif kind == "double":
        files["copy.dcm"] = files[name]
    elif kind == "other":
        files["other.dcm"] = originals()[5].files["IM00.dcm"]
    else:
        files[name] = b"" if kind == "empty" else files[name][: int(rng.integers(1, len(files[name])))]
    ends = kind == "remove" and name in (min(series.files), max(series.files))
    return Edit(series, files, f"{kind} of {name}", frozenset({"an outermost slice"} if ends else {"a file"}))


def _bytes(series: Series, rng: np.random.Generator) -> Edit:
    name = str(rng.choice(sorted(series.files)))
    whole = series.files[name]
    at = int(rng.integers(132, len(whole)))
    kind = str(rng.choice(["flip", "bytes", "cut", "insert", "delete", "zeros"]))
    size = int(rng.integers(1, 9))
    part = whole[at : at + size]
    new = {
        "flip": lambda: whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :],
        "bytes": lambda: whole[:at] + rng.bytes(len(part)) + whole[at + len(part) :],
        "cut": lambda: whole[:at],
        "insert": lambda: whole[:at] + rng.bytes(size) + whole[at:],
        "delete": lambda: whole[:at] + whole[at + size :],
        "zeros": lambda: whole[:at] + bytes(len(part)) + whole[at + len(part) :],
    }[kind]()
    tags = _at(series.name, name, whole, at) | _at(series.name, name, whole, min(len(whole) - 1, at + size))
    return Edit(series, {**series.files, name: new}, f"{kind} at {at} of {name} in {sorted(tags)}", tags, touched=size)


def _at(series: str, name: str, content: bytes, at: int) -> frozenset[str]:
    """Keywords of the element that has the byte `at`, and of those that contain it."""
    places = [(start, keywords) for start, keywords in _starts(series, name, content) if start <= at]
    return frozenset(places[-1][1] if places else ("",))


@cache
def _starts(series: str, name: str, content: bytes) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Where each element begins, found by its tag and, where it has one, its value representation."""
    found: list[tuple[int, tuple[str, ...]]] = []
    at = 132

    def walk(dataset: Dataset, above: tuple[str, ...]) -> None:
        nonlocal at
        for element in dataset:
            tag = struct.pack("<HH", element.tag.group, element.tag.element)
            at = content.index(tag + element.VR.encode(), at)
            found.append((at, (*above, element.keyword)))
            at += 8
            for item in element.value if element.VR == "SQ" else ():
                walk(item, (*above, element.keyword))

    data = dcmread(io.BytesIO(content))
    walk(data.file_meta, ())
    walk(data, ())
    return tuple(found)


def _tag(series: Series, rng: np.random.Generator) -> Edit:
    """One element, in one file or in all, at any depth: removed, or with another value or representation."""
    everywhere = rng.random() < 0.5
    chosen = sorted(series.files) if everywhere else [str(rng.choice(sorted(series.files)))]
    seed = int(rng.integers(2**31))
    files, what, tags, values = dict(series.files), "", frozenset[str](), frozenset[int]()
    for name in chosen:
        files[name], what, tags, values = _changed(series.files[name], np.random.default_rng(seed))
    return Edit(series, files, f"{what} in {'all files' if everywhere else chosen[0]}", tags, values=values)


def _changed(content: bytes, rng: np.random.Generator) -> tuple[bytes, str, frozenset[str], frozenset[int]]:
    data = dcmread(io.BytesIO(content))
    if rng.random() < 0.08:
        syntax = str(rng.choice(SYNTAXES))
        new = content.replace(
            b"\x02\x00\x10\x00UI" + _sized(data.file_meta.TransferSyntaxUID),
            b"\x02\x00\x10\x00UI" + _sized(syntax),
        )
        return new, f"transfer syntax {syntax!r}", frozenset({"TransferSyntaxUID"}), frozenset()
    where, above = data, ()
    while True:
        tag = Tag(list(where.keys())[int(rng.integers(len(where)))])
        keyword = keyword_for_tag(tag)
        element = where.get_item(tag)
        if getattr(element, "VR", "") != "SQ" or rng.random() < 0.15 or not where[tag].value:
            break
        items = where[tag].value
        where, above = items[int(rng.integers(len(items)))], (*above, keyword)
    kind = str(rng.choice(["value", "value", "value", "remove", "representation", "private"]))
    values: frozenset[int] = frozenset()
    if kind == "remove":
        del where[tag]
    elif kind == "private":
        where.add_new(Tag(0x0009, 0x0010), "LO", "SOMEONE")
        where.add_new(Tag(0x0009, 0x1001), "UN", rng.bytes(6))
        tag, keyword = Tag(0x0009, 0x1001), "private"
    else:
        values = _replaced(where, tag, kind, rng)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=False)
    return (
        out.getvalue(),
        f"{kind} of {'/'.join((*above, keyword))} {sorted(values)}",
        frozenset({*above, keyword}),
        values,
    )


def _replaced(where: Dataset, tag: Any, kind: str, rng: np.random.Generator) -> frozenset[int]:
    element = where.get_item(tag)
    vr = element.VR
    written: frozenset[int] = frozenset()
    if kind == "representation":
        others = ["OB", "OW"] if tag == Tag("PixelData") else ["LO", "DS", "US", "OB", "UN", "UI", "FD", "SH"]
        vr = str(rng.choice(others))
        value = element.value if isinstance(element.value, bytes) else b"1 "
    elif vr in ("US", "SS", "OW") and tag != Tag("PixelData"):
        number = int(rng.choice(SHORTS))
        value, written = struct.pack("<H", number), frozenset({number})
    elif tag == Tag("PixelData"):
        whole = bytes(where[tag].value)
        value = whole[: int(rng.integers(len(whole))) // 2 * 2]
    else:
        text = str(rng.choice(TEXTS))
        value = text.encode("latin1") + b" " * (len(text) % 2)
        written = frozenset({int(text)} if text.isdecimal() else ())
    where._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)
    return written


def _sized(uid: str) -> bytes:
    padded = uid.encode() + b"\0" * (len(uid) % 2)
    return struct.pack("<H", len(padded)) + padded


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@cache
def _truth(name: str) -> Volume | LabelMap:
    with TemporaryDirectory() as folder:
        series = next(one for one in originals() if one.name == name)
        _write(series.files, Path(folder) / "s")
        return (
            read_label_map(_path(series, Path(folder) / "s"), grid=_grid())
            if series.labels
            else read_volume(Path(folder) / "s")
        )


@cache
def _grid() -> Geometry:
    return _truth("ct").geometry


def _path(series: Series, folder: Path) -> Path:
    return folder / "seg.dcm" if series.labels else folder


def _outcome(edit: Edit, folder: Path) -> str:
    series, place = edit.series, folder / "planted"
    _write(edit.files, place)
    path = _path(series, place)
    reads: list[Callable[[], Any]] = (
        [lambda: read_label_map(path, grid=_grid())] if series.labels else [lambda: read_volume(path)]
    )
    reads += [] if series.labels else [lambda: read_geometry(path), lambda: read_notes(path)]
    found: list[Any] = []
    refused = False
    for number, read in enumerate(reads):
        try:
            found.append(read())
        except HandfulError as error:
            if "planted" not in str(error) and not any(name in str(error) for name in edit.files):
                return f"refused without the name of the file: {error}"
            if "needs more memory" in str(error):
                return f"refused by the last resort: {error}"
            if number == 0:
                refused = True
        except Exception as error:
            return f"raw {type(error).__name__}: {error}"
        if refused:
            return "refused"
    return _judged(edit, _truth(series.name), found[0])


def _judged(edit: Edit, truth: Any, found: Any) -> str:
    same_shape = found.array.shape == truth.array.shape
    same_place = found.geometry.shape == truth.geometry.shape and np.allclose(
        found.geometry.affine, truth.geometry.affine, rtol=1e-9, atol=0
    )
    same_names = not edit.series.labels or found.labels == truth.labels
    if same_shape and same_place and same_names and np.array_equal(found.array, truth.array):
        return "equal"
    if "an outermost slice" in edit.tags:
        return "no checksum could tell"
    if not same_shape:
        return f"silently wrong: {found.array.shape} voxels of {truth.array.shape}"
    if not same_place and not edit.tags & PLACING:
        return f"silently wrong: another place by {sorted(edit.tags)}"
    return _other_values(edit, truth, found)


def _other_values(edit: Edit, truth: Any, found: Any) -> str:
    differ = int((found.array != truth.array).sum())
    if not differ:
        return "no checksum could tell"
    if edit.series.labels:
        return _other_labels(edit, truth, found, differ)
    if edit.tags & SCALING or ("PixelData" in edit.tags and (edit.series.packed or differ <= edit.touched)):
        return "no checksum could tell"
    return f"silently wrong: {differ} values differ by {sorted(edit.tags)}"


def _other_labels(edit: Edit, truth: Any, found: Any, differ: int) -> str:
    """Neither bits of a mask nor corners, numbers of described segments or places of frames have a checksum."""
    if "PixelData" in edit.tags and differ <= 8 * max(1, edit.touched):
        return "no checksum could tell"
    if edit.tags & (NAMING | PLACING | OUTLINES):
        return "no checksum could tell"
    return f"silently wrong: {differ} labels differ by {sorted(edit.tags)}"
