"""DICOM segmentations (DICOM-SEG) and contours (RTSTRUCT) as label maps on the grid of the scan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.dicom.contours import Contours, is_contours, read_contours
from handful.data.dicom.headers import SEGMENTATIONS, Frame, encoding_of, frames_of, text_of, whole_number
from handful.data.dicom.pixels import most_decoded, require_end
from handful.data.dicom.series import SeriesChoice, dicom_frame_of_reference, opened
from handful.data.dicom.sources import Bounded, Source, is_dicom_start, refusing
from handful.data.volume import LPS_TO_RAS, Geometry
from handful.errors import DamagedFile, GeometryMismatch, HandfulError, LabelError, UnsupportedInput
from handful.jobs.plain_text import counted

LONGEST_NAME = 64
"""Letters of the name of a segment or structure in DICOM (SegmentLabel and ROIName, VR LO)."""

_OFF_GRID = 0.25
"""Voxels that a frame may be off the grid of the scan."""
_SEGMENT_NUMBER = 0x0062000B
"""Tag of ReferencedSegmentNumber."""


@dataclass(frozen=True, eq=False)
class _Segmentation:
    """The header of a segmentation."""

    path: Path
    source: Source
    encoding: str
    dataset: Any
    rows: int
    columns: int
    is_label_map: bool
    names: Mapping[int, str]
    """Of the segments, by number."""
    frames: tuple[Frame, ...]


def read_segmentation(
    path: Path, max_bytes: int, grid: Geometry | None = None
) -> tuple[NDArray[Any], Geometry, dict[int, str]]:
    """Segment numbers of the voxels (i, j, k), their grid, and the names of the segments by number.

    `grid` is that of the scan, in RAS mm; the frames may lie along any of its axes, in any direction. Without it, the
    grid is the smallest one that holds all frames. Segmentations of one bit per voxel (BINARY), label maps, and closed
    contours (RTSTRUCT), which need the `grid`, are read. The structures of contours are numbered from 1.

    Raises GeometryMismatch for frames that do not lie on the grid, LabelError where segments overlap, UnsupportedInput
    for other DICOM objects and for fractions, DamagedFile for files that are truncated or too large.
    """
    found: _Segmentation | Contours
    if is_contours(path):
        grid = grid or segmentation_grid(path)
        found = read_contours(path)
        parts: Iterable[tuple[tuple[NDArray[Any], ...], Any]] = (
            (places, number) for number, places in found.areas(grid)
        )
    else:
        found = _header(path)
        grid = grid or _bounded(path, segmentation_grid(path), max_bytes)
        _require_every_slice(found, grid)
        parts = _placed_frames(found, grid, max_bytes)
    array = np.zeros(grid.shape, np.int32 if max(found.names) >= 2**15 else np.int16)
    overlaps: dict[tuple[int, int], int] = {}
    for places, values in parts:
        for pair, count in _count_pairs(array[places], values):
            overlaps[pair] = overlaps.get(pair, 0) + count
        array[places] = values
    if overlaps:
        raise LabelError(_overlapping(path, found.names, overlaps))
    if unknown := sorted(set(np.unique(array).tolist()) - {0, *found.names}):
        raise DamagedFile(f"{path}: segments {unknown[:5]} are not described in the header; export the file again")
    return array, grid, dict(found.names)


def _bounded(path: Path, grid: Geometry, max_bytes: int) -> Geometry:
    """The grid. Raises DamagedFile if its voxels take too much memory: two small frames may be far apart."""
    size = 2 * math.prod(grid.shape)
    if size > max_bytes:
        raise DamagedFile(
            f"{path}: its frames span {grid.shape} voxels, {size:,} bytes, but {max_bytes:,} are allowed; read it with "
            "its scan, or correct the positions"
        )
    return grid


def _placed_frames(
    found: _Segmentation, grid: Geometry, max_bytes: int
) -> Iterator[tuple[tuple[NDArray[Any], ...], Any]]:
    """The labelled voxels of each frame, and their segment numbers."""
    depth = np.int32 if max(found.names) >= 2**15 else np.int16
    for frame, number, pixels in _frames(found, max_bytes):
        rows, columns = np.nonzero(pixels)
        if len(rows):
            values = pixels[rows, columns].astype(depth) if number is None else depth(number)
            yield _places(found, frame, grid, rows, columns), values


def segment_names(path: Path) -> dict[int, str]:
    """The names of the segments by number, from the header."""
    return dict((read_contours(path) if is_contours(path) else _header(path)).names)


def segmentation_grid(*paths: Path) -> Geometry:
    """The smallest regular grid (RAS mm) that holds the frames of all these segmentations, from their headers.

    Raises GeometryMismatch if the frames do not lie on one, and for contours, which have no grid.
    """
    if contours := [path for path in paths if is_contours(path)]:
        raise GeometryMismatch(f"{contours[0]}: contours (RTSTRUCT) have no grid of their own; give their scan, too")
    found = [_header(path) for path in paths]
    frames = [frame for one in found for frame in one.frames]
    first, where = found[0], str(paths[0])
    if any((one.rows, one.columns) != (first.rows, first.columns) for one in found):
        raise GeometryMismatch(f"{where}: its frames differ in size from those of {paths[-1]}; resample one")
    if first.frames[0].position is None:
        return Geometry((first.columns, first.rows, 1), np.diag([-1.0, -1.0, 1.0, 1.0]), unit="pixel")
    affine = _affine(where, first.frames[0])
    offsets = np.array([np.linalg.solve(affine, [*(frame.position or ()), 1.0])[:3] for frame in frames])
    heights = offsets[:, 2] * np.linalg.norm(affine[:3, 2])
    step = _step(where, heights, first.frames[0].thickness)
    turned = [np.abs(_affine(where, frame)[:3, :2] - affine[:3, :2]).max() for frame in frames]
    if np.abs(offsets[:, :2]).max() > _OFF_GRID or max(turned) > 1e-3 * np.abs(affine[:3, :2]).max():
        raise GeometryMismatch(
            f"{where}: its frames do not lie in one stack, so they have a place only on the grid of the scan; "
            "give the scan too, or export the segmentation on the grid of the scan"
        )
    affine[:3, 2] *= step / np.linalg.norm(affine[:3, 2])
    affine[:3, 3] += affine[:3, 2] * heights.min() / step
    count = round(float(np.ptp(heights)) / step) + 1
    if count > 65535:
        raise DamagedFile(f"{where}: its frames are {count:,} slices apart; correct the header")
    return Geometry((first.columns, first.rows, count), LPS_TO_RAS @ affine)


def referenced_series(path: Path) -> str | None:
    """The UID of the only series that a segmentation refers to; None if there is none, or the file cannot be read."""
    try:
        if is_contours(path):
            return read_contours(path).series
        series = list(_header(path).dataset.get("ReferencedSeriesSequence") or ())
    except HandfulError:
        return None  # the label map fails with its reason when it is read
    return text_of(series[0], "SeriesInstanceUID") or None if len(series) == 1 else None


def require_same_frame(segmentation: Path, scan: Path, choice: SeriesChoice) -> None:
    """Raise GeometryMismatch if a segmentation states another frame of reference than its scan."""
    if is_contours(segmentation):
        stated = read_contours(segmentation).frame_of_reference
    else:
        stated = text_of(_header(segmentation).dataset, "FrameOfReferenceUID")
    own = dicom_frame_of_reference(scan, choice)
    if stated and own and stated != own:
        raise GeometryMismatch(
            f"{segmentation}: has another frame of reference than the scan {scan}, so it belongs to another "
            "examination or series; take its own scan, or choose the series with --series"
        )


def _header(path: Path) -> _Segmentation:
    from pydicom import dcmread

    where = str(path)
    with opened(path) as (source, *_), source.open() as file:
        content = Bounded(file, source.size)
        if not is_dicom_start(content.read(132)):
            raise DamagedFile(f"{path}: not a DICOM file in spite of its name; export it again, or remove it")
        with refusing(where, "unreadable DICOM header"):
            encoding = encoding_of(content, where)
            dataset = dcmread(content, stop_before_pixels=True)
            _require_segmentation(path, dataset)
            return _Segmentation(
                path,
                source,
                encoding,
                dataset,
                rows=whole_number(dataset, "Rows", where, least=1),
                columns=whole_number(dataset, "Columns", where, least=1),
                is_label_map=text_of(dataset, "SegmentationType") == "LABELMAP",
                names=_names(where, dataset),
                frames=frames_of(source, dataset, where),
            )


def _require_segmentation(path: Path, dataset: Any) -> None:
    kind = text_of(dataset, "SOPClassUID")
    if kind not in SEGMENTATIONS:
        raise UnsupportedInput(
            f"{path}: not a segmentation; labels are read from DICOM-SEG, RTSTRUCT, .nii.gz and others"
        )
    if (stated := text_of(dataset, "SegmentationType")) not in ("BINARY", "LABELMAP"):
        raise UnsupportedInput(f"{path}: segmentation type {stated[:16]!r}; export it as BINARY, without fractions")


def _names(where: str, dataset: Any) -> dict[int, str]:
    segments = list(dataset.get("SegmentSequence") or ())
    numbers = [whole_number(segment, "SegmentNumber", where, least=0) for segment in segments]
    names = {
        number: text_of(segment, "SegmentLabel") or f"label {number}"
        for number, segment in zip(numbers, segments, strict=True)
        if number > 0
    }
    if not names:
        raise LabelError(f"{where}: describes no segment; export it again")
    return names


def _frames(found: _Segmentation, max_bytes: int) -> Iterator[tuple[Frame, int | None, NDArray[Any]]]:
    """Each frame with its segment number (None in label maps) and its pixels (rows, columns)."""
    from pydicom import dcmread

    where = str(found.path)
    with refusing(where, "unreadable DICOM header"):
        numbers = [None] * len(found.frames) if found.is_label_map else _numbers(where, found)
        depth = whole_number(found.dataset, "BitsAllocated", where, least=1)
    if depth not in (1, 8, 16):
        raise UnsupportedInput(f"{where}: {depth} bits per pixel; export it with 1, 8 or 16 bits")
    _require_bounded(found, depth, max_bytes)
    with found.source.open() as file, refusing(where, "pixel data cannot be decoded"):
        dataset = dcmread(Bounded(file, found.source.size))
        require_end(where, file, dataset, found.source.size)
        content = dataset.get("PixelData") or b""
        decoded = [] if found.encoding == "native" else list(_decoded(found, dataset))
    if decoded and len(decoded) != len(found.frames):
        raise DamagedFile(f"{where}: {len(decoded)} compressed frames of {len(found.frames)}; copy the file again")
    yield from zip(found.frames, numbers, decoded or _native(where, found, depth, content), strict=True)


def _require_bounded(found: _Segmentation, depth: int, max_bytes: int) -> None:
    pixels = found.rows * found.columns * len(found.frames)
    size, held = -(-pixels * depth // 8), found.source.size
    if found.encoding == "native" and size > held:
        raise DamagedFile(f"{found.path}: truncated: {held:,} bytes for {size:,} bytes of pixels; copy the file again")
    if pixels > max_bytes or size > most_decoded(held):
        raise DamagedFile(f"{found.path}: {held:,} bytes declare {pixels:,} pixels, more than allowed; do not use it")


def _numbers(where: str, found: _Segmentation) -> list[int]:
    shared = list(found.dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    own = list(found.dataset.get("PerFrameFunctionalGroupsSequence") or ()) or [{}] * len(found.frames)
    numbers = []
    for group in own:
        items = [item for place in (group, *shared) for item in list(place.get("SegmentIdentificationSequence") or ())]
        if not items:
            raise DamagedFile(f"{where}: a frame without its segment number; export the file again")
        numbers.append(whole_number(items[0], "ReferencedSegmentNumber", where, least=1))
    _require_indexed(where, found.dataset, own, numbers)
    return numbers


def _require_indexed(where: str, dataset: Any, groups: Sequence[Any], numbers: Sequence[int]) -> None:
    """Raise DamagedFile for a frame whose segment number is not that of the frames with the same index.

    Most files state the segment of a frame twice: by its number and as one of the indices of the frame. Files in which
    the two disagree for many frames are taken as they are, since their indices have another meaning.
    """
    pointers = [item.get("DimensionIndexPointer") for item in dataset.get("DimensionIndexSequence") or ()]
    if _SEGMENT_NUMBER not in pointers or len(groups) != len(numbers):
        return
    place = pointers.index(_SEGMENT_NUMBER)
    contents = [list(group.get("FrameContentSequence") or ())[:1] for group in groups]
    indices = [content[0].get("DimensionIndexValues") if content else None for content in contents]
    stated = [
        index if isinstance(index, int) else index[place] if index is not None and place < len(index) else None
        for index in indices
    ]
    usual = {
        index: Counter(number for one, number in zip(stated, numbers, strict=True) if one == index).most_common(1)[0][0]
        for index in set(stated)
    }
    odd = [row for row, (index, number) in enumerate(zip(stated, numbers, strict=True), 1) if usual[index] != number]
    if len(usual) > 1 and 0 < len(odd) <= max(1, len(numbers) // 10):
        raise DamagedFile(
            f"{where}: frame {odd[0]} is that of segment {numbers[odd[0] - 1]} by its number, but by its index that of "
            f"segment {usual[stated[odd[0] - 1]]}; export the file again"
        )


def _native(where: str, found: _Segmentation, depth: int, content: bytes) -> Iterator[NDArray[Any]]:
    size = found.rows * found.columns
    needed = -(-size * len(found.frames) * depth // 8)
    if len(content) not in (needed, needed + needed % 2):  # an odd length is padded to an even one
        problem = "truncated" if len(content) < needed else "its header does not fit its pixels"
        raise DamagedFile(
            f"{where}: {problem}: {len(content):,} bytes of pixels, and {len(found.frames)} frames of {found.rows} by "
            f"{found.columns} pixels take {needed:,}; copy or export the file again"
        )
    for index in range(len(found.frames)):
        start = index * size
        if depth == 1:
            packed = np.frombuffer(content, np.uint8)[start // 8 : (start + size + 7) // 8]
            pixels = np.unpackbits(packed, bitorder="little")[start % 8 :][:size]
        else:
            pixels = np.frombuffer(content, f"<u{depth // 8}", count=size, offset=start * depth // 8)
        yield pixels.reshape(found.rows, found.columns)


def _decoded(found: _Segmentation, dataset: Any) -> Iterator[NDArray[Any]]:
    from pydicom.pixels import iter_pixels

    for pixels in iter_pixels(dataset):
        if pixels.shape != (found.rows, found.columns):
            raise DamagedFile(f"{found.path}: a frame of {pixels.shape} pixels, not ({found.rows}, {found.columns})")
        yield pixels


def _affine(where: str, frame: Frame) -> NDArray[np.float64]:
    """From column, row and slice of a frame to LPS mm; the slice axis is the normal, of length `thickness`."""
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        raise DamagedFile(f"{where}: {frame.name} has no position, orientation or pixel spacing; export it again")
    directions = np.array(frame.orientation).reshape(2, 3)
    row, column = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(1e-12)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * frame.spacing[1], column * frame.spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(row, column) * frame.thickness, frame.position
    if abs(np.linalg.det(affine)) < 1e-12:
        raise DamagedFile(f"{where}: {frame.name} has an impossible orientation; export the file again")
    return affine


def _step(where: str, heights: NDArray[Any], thickness: float) -> float:
    """The distance between slices: that of the header, or the smallest one between frames, if all heights fit it."""
    gaps = np.diff(np.unique(np.round(heights, 4)))
    gaps = gaps[gaps > 0.01 * thickness]
    if not len(gaps):
        return thickness
    for step in (thickness, float(gaps.min())):
        whole = gaps / step
        if whole.min() > 1 - _OFF_GRID and np.abs(whole - np.rint(whole)).max() < _OFF_GRID:
            return step
    raise GeometryMismatch(
        f"{where}: its frames are {gaps.min():.4g} to {gaps.max():.4g} mm apart, which fits no regular grid; "
        "export the segmentation on the grid of the scan"
    )


def _places(
    found: _Segmentation, frame: Frame, grid: Geometry, rows: NDArray[Any], columns: NDArray[Any]
) -> tuple[NDArray[Any], ...]:
    """The voxels of these pixels. Raises GeometryMismatch if the frame does not lie on the grid."""
    to_voxels: NDArray[Any] = np.eye(4)
    if frame.position is not None:
        to_voxels = np.linalg.solve(grid.affine, LPS_TO_RAS @ _affine(str(found.path), frame))
    whole = np.rint(to_voxels)
    corners = np.array([[0, 0, 0, 1], [found.columns - 1, 0, 0, 1], [0, found.rows - 1, 0, 1]]).T
    off = float(np.abs((to_voxels - whole) @ corners)[:3].max())
    places = (whole @ np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]))[:3].astype(np.int64)
    if off > _OFF_GRID or np.abs(whole[:3, :2]).sum() != 2:
        raise GeometryMismatch(
            f"{found.path}: {frame.name} lies up to {off:.2g} voxels off the grid of its scan; take the scan that it "
            "was made on, or export it on the grid of this one"
        )
    if places.min() < 0 or (places >= np.array(grid.shape)[:, None]).any():
        raise GeometryMismatch(
            f"{found.path}: {frame.name} lies outside its scan of {grid.shape} voxels; take its scan"
        )
    return tuple(places)


def _require_every_slice(found: _Segmentation, grid: Geometry) -> None:
    """Raise GeometryMismatch if the slices of a segmentation are coarser than those of the scan.

    Each of its frames may lie on the grid, but it says nothing of the slices between them.
    """
    if any(frame.position is None for frame in found.frames):
        return
    to_grid = np.linalg.inv(grid.affine) @ LPS_TO_RAS
    across = (to_grid @ _affine(str(found.path), found.frames[0]))[:3, 2]
    axis = int(np.abs(across).argmax())
    heights = [(to_grid @ np.array([*(frame.position or ()), 1.0]))[axis] for frame in found.frames]
    gaps = np.diff(np.unique(np.rint(heights)))
    if abs(across[axis]) > 1 + _OFF_GRID and (not len(gaps) or gaps.min() > 1):
        own = float(grid.spacing[axis])
        raise GeometryMismatch(
            f"{found.path}: its slices are {abs(across[axis]) * own:.4g} mm apart, those of the scan {own:.4g} mm; "
            "take the scan that it was made on, or resample the segmentation onto the grid of this one"
        )


def _count_pairs(before: NDArray[Any], values: Any) -> Iterator[tuple[tuple[int, int], int]]:
    """Pairs of segments that hold the same voxel, and the number of these voxels."""
    both = (before != 0) & (before != values)
    if both.any():
        pairs = np.stack([before, np.broadcast_to(values, before.shape)])[:, both]
        for (one, other), count in zip(*np.unique(np.sort(pairs, axis=0).T, axis=0, return_counts=True), strict=True):
            yield (int(one), int(other)), int(count)


def _overlapping(path: Path, names: Mapping[int, str], overlaps: Mapping[tuple[int, int], int]) -> str:
    pairs: Sequence[tuple[tuple[int, int], int]] = sorted(overlaps.items(), key=lambda item: -item[1])[:3]
    listed = "; ".join(
        f"{names.get(one)!r} and {names.get(other)!r} in {counted(count, 'voxel')}" for (one, other), count in pairs
    )
    return (
        f"{path}: segments overlap ({listed}), but a voxel has one label; export them without overlap (3D "
        "Slicer: Segment Editor, Masking, Modify other segments: Overwrite all), or leave one of them out"
    )
