"""Contours of structures (RTSTRUCT) as label maps, on the grid of the scan that they were made on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from handful.data.dicom.headers import encoding_of, text_of, whole_number
from handful.data.dicom.series import opened
from handful.data.dicom.sources import Bounded, is_dicom_start, refusing
from handful.data.volume import LPS_TO_RAS, Geometry
from handful.errors import DamagedFile, GeometryMismatch, LabelError, UnsupportedInput

_CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
_SOP_CLASS = 0x00080016
_POINTS = 0x30060050
"""Tag of ContourData."""
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_SLICE = 0.25
"""Slices that a point may be off its slice."""
_MOST_CROSSINGS = 2**24
"""Rows that the edges of one contour may cross, so that a crafted file cannot fill the memory."""
_MOST_OVERLAPPING = 1000
"""Contours of one structure in one slice that may contain each other."""

Area = tuple[int, tuple[NDArray[Any], ...]]
"""Number of a structure, and the voxels of one of its slices."""


@dataclass(frozen=True, eq=False)
class Contours:
    """The structures of an RTSTRUCT file."""

    path: Path
    names: Mapping[int, str]
    """By number."""
    frame_of_reference: str
    series: str | None
    """The UID of the only series that it refers to."""
    points: Sequence[tuple[int, Float[np.ndarray, "_ 3"]]]
    """Number of the structure, and corners in LPS mm, of each contour."""

    def areas(self, grid: Geometry) -> Iterator[Area]:
        """The voxels whose centres lie inside the contours, by structure and slice of the grid (RAS mm).

        A contour inside another one of its structure is a hole, as radiotherapy programs export it. Raises
        GeometryMismatch for contours that do not lie on the slices or within the grid, or that leave slices out;
        LabelError where two contours of a structure cross each other.
        """
        to_voxels = np.linalg.inv(grid.affine) @ LPS_TO_RAS
        placed = [(number, points @ to_voxels[:3, :3].T + to_voxels[:3, 3]) for number, points in self.points]
        axis = int(np.sum([np.ptp(points, axis=0) for _, points in placed], axis=0).argmin())
        across = [other for other in range(3) if other != axis]
        slices: dict[int, dict[int, list[NDArray[Any]]]] = defaultdict(lambda: defaultdict(list))
        for number, points in placed:
            self._require_placed(number, points, axis, grid)
            slices[number][round(float(points[:, axis].mean()))].append(points[:, across])
        size = (grid.shape[across[0]], grid.shape[across[1]])
        for number, planes in slices.items():
            self._require_every_slice(number, sorted(planes))
            for index, contours in planes.items():
                inside = self._inside(number, contours, size)
                places = [*np.nonzero(inside)]
                places.insert(axis, np.full(len(places[0]), index))
                yield number, tuple(places)

    def _require_placed(self, number: int, points: NDArray[Any], axis: int, grid: Geometry) -> None:
        index, last = points[:, axis].mean(), grid.shape[axis] - 1
        if not (points.min() >= -1 and (points <= grid.shape).all() and -0.5 <= index < last + 0.5):
            raise GeometryMismatch(
                f"{self.path}: a contour of {self.names[number]!r} lies outside its scan of {grid.shape} voxels; take "
                "the scan that it was made on"
            )
        off = float(np.abs(points[:, axis] - round(float(index))).max())
        if off > _OFF_SLICE:
            raise GeometryMismatch(
                f"{self.path}: a contour of {self.names[number]!r} lies up to {off:.2g} slices off the slices of its "
                "scan; take the scan that it was made on"
            )

    def _require_every_slice(self, number: int, slices: Sequence[int]) -> None:
        gaps = np.diff(slices)
        if len(gaps) and gaps.min() > 1:
            raise GeometryMismatch(
                f"{self.path}: contours of {self.names[number]!r} leave slices of the scan out (at least "
                f"{gaps.min() - 1} between two); interpolate them in the program that made them"
            )

    def _inside(self, number: int, contours: Sequence[NDArray[Any]], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        filled, covered = np.zeros(size, bool), np.zeros(size, bool)
        earlier: list[NDArray[Any]] = []
        for points in contours:
            inside = _filled(str(self.path), points, size)
            pixels = np.flatnonzero(inside)
            if (covered & inside).any():
                shared = [(np.count_nonzero(inside.ravel()[other]), len(other)) for other in earlier]
                if len(earlier) > _MOST_OVERLAPPING or any(0 < n < min(whole, len(pixels)) for n, whole in shared):
                    raise LabelError(
                        f"{self.path}: contours of {self.names[number]!r} cross each other in a slice; correct them in "
                        "the program that made them, or convert them to DICOM-SEG"
                    )
            earlier.append(pixels)
            covered |= inside
            filled ^= inside
        return filled


def is_contours(path: Path) -> bool:
    """Whether a DICOM file is an RTSTRUCT, by its first elements. Raises DamagedFile if these cannot be read."""
    from pydicom.filereader import read_partial

    with opened(path) as (source, *_), source.open() as file:
        content = Bounded(file, source.size)
        if not is_dicom_start(content.read(132)):
            return False
        with refusing(str(path), "unreadable DICOM header"):
            encoding_of(content, str(path))
            start = read_partial(content, stop_when=lambda tag, vr, length: tag > _SOP_CLASS)
            return text_of(start, "SOPClassUID") == _CONTOURS


def read_contours(path: Path) -> Contours:
    """The structures of an RTSTRUCT with their contours (DICOM PS3.3, C.8.8.5 and C.8.8.6).

    Structures of nothing but points, such as the isocentre, are left out. Raises UnsupportedInput for other points and
    for open lines, LabelError if no structure is left, DamagedFile for numbers that cannot be.
    """
    from pydicom import dcmread

    where = str(path)
    with opened(path) as (source, *_), source.open() as file, refusing(where, "unreadable DICOM header"):
        dataset = dcmread(Bounded(file, source.size))
        names = {
            whole_number(one, "ROINumber", where, least=0): text_of(one, "ROIName")
            for one in dataset.get("StructureSetROISequence") or ()
        }
        named = {number: name or f"structure {number}" for number, name in names.items()}
        points = [
            (number, _points(where, named[number], contour))
            for structure in dataset.get("ROIContourSequence") or ()
            for number in [_known(where, structure, named)]
            if not _marks_points(structure)
            for contour in structure.get("ContourSequence") or ()
        ]
        closed = {number for number, _ in points}
        if not closed:
            raise LabelError(f"{where}: has no closed contour; export it again")
        # numbers from 1, since voxels of value 0 are background
        numbers = {number: one for one, number in enumerate(sorted(closed), start=1)}
        frame, series = _references(dataset)
        return Contours(
            path,
            {numbers[number]: named[number] for number in sorted(closed)},
            frame,
            series,
            [(numbers[number], corners) for number, corners in points],
        )


def _known(where: str, structure: Any, names: Mapping[int, str]) -> int:
    number = whole_number(structure, "ReferencedROINumber", where, least=0)
    if number not in names:
        raise DamagedFile(f"{where}: contours of structure {number}, which has no name; export the file again")
    return number


def _marks_points(structure: Any) -> bool:
    """Whether it marks places, as the isocentre of a treatment does, and encloses nothing."""
    kinds = {text_of(contour, "ContourGeometricType") for contour in structure.get("ContourSequence") or ()}
    return kinds == {"POINT"}


def _points(where: str, name: str, contour: Any) -> Float[np.ndarray, "n 3"]:
    kind = text_of(contour, "ContourGeometricType")
    if kind not in _CLOSED:
        raise UnsupportedInput(
            f"{where}: {name!r} has a contour of type {kind[:16]!r}, which encloses no area; export closed contours, "
            "without points and lines"
        )
    stated = whole_number(contour, "NumberOfContourPoints", where, least=1)
    values = np.array(_listed(contour.get_item(_POINTS)), np.float64)
    if len(values) != 3 * stated or not np.isfinite(values).all():
        raise DamagedFile(f"{where}: a contour of {name!r} is not {stated} points of 3 numbers; export the file again")
    return values.reshape(-1, 3)


def _listed(element: Any) -> Sequence[Any]:
    """The numbers of an element. A million takes pydicom seconds, so its bytes are split where they are not parsed."""
    value = element.value
    return value.rstrip(b" \0").split(b"\\") if isinstance(value, bytes) else list(value)


def _references(dataset: Any) -> tuple[str, str | None]:
    """The frame of reference, and the UID of the only series."""
    frames = list(dataset.get("ReferencedFrameOfReferenceSequence") or ())
    series = {
        text_of(one, "SeriesInstanceUID")
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for one in study.get("RTReferencedSeriesSequence") or ()
    }
    stated = {text_of(frame, "FrameOfReferenceUID") for frame in frames} - {""}
    return (stated.pop() if len(stated) == 1 else ""), (series.pop() or None if len(series) == 1 else None)


def _filled(where: str, corners: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centres lie inside a closed polygon, by the even-odd rule; corners are in pixels.

    Edges that are passed twice, as those of a keyhole, cancel each other.
    """
    start, end = corners, np.roll(corners, -1, axis=0)
    first = np.ceil(np.minimum(start[:, 0], end[:, 0])).clip(0, size[0]).astype(np.int64)
    counts = np.ceil(np.maximum(start[:, 0], end[:, 0])).clip(0, size[0]).astype(np.int64) - first
    if counts.sum() > _MOST_CROSSINGS:
        raise DamagedFile(f"{where}: a contour of {len(corners):,} points that crosses itself; do not use the file")
    edge = np.repeat(np.arange(len(corners)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (end - start)[edge]
    crossing = start[edge, 1] + (row - start[edge, 0]) * slope[:, 1] / slope[:, 0]
    turns = np.zeros((size[0], size[1] + 1), bool)
    np.logical_xor.at(turns, (row, np.ceil(crossing).clip(0, size[1]).astype(np.int64)), True)
    return np.logical_xor.accumulate(turns, axis=1)[:, :-1]
