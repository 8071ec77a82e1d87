"""The voxel grid of a series, or what prevents one: which file, the value, and the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.dicom.headers import Frame, Header
from handful.data.volume import LPS_TO_RAS, Geometry
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.plain_text import some

RELATIVE_TOLERANCE = 0.01
"""Part of the slice spacing by which a slice may be off its regular position."""
_MAX_TILT = 0.05
"""Degrees; positions and orientations are rounded when they are written."""
_SAME = 1e-3
"""Tolerance of direction cosines, and of pixel spacings relative to their size."""
_WHOLE_GAP = 0.2
"""A gap this near to a whole number of slice spacings means missing slices; all others are uneven."""
_BETWEEN = 10
"""Times the usual gap beyond which a gap may be the one between positions of several images each."""

_RESCALED = {True: "slope and intercept", False: "none"}

Slice = tuple[Header, Frame]


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of a series in the order of the third axis of their grid."""

    slices: tuple[Slice, ...]
    geometry: Geometry
    is_picture: bool


def stack(path: Path, headers: Sequence[Header], tolerance: float | None = None) -> Stack:
    """The grid of the images of one series: i along rows (to the next column), j along columns, k along the normal.

    `tolerance` (mm) is how far a slice may be off its regular position; None: RELATIVE_TOLERANCE of the spacing.
    Raises UnsupportedInput or DamagedFile, with the files concerned, if the slices do not lie on one regular grid.
    """
    slices = [(header, frame) for header in headers for frame in header.frames]
    _require_no_mosaic(path, headers)
    _require_one_patient(path, headers)
    _require_equal(path, slices)
    if len(slices) == 1 and slices[0][1].position is None:
        return Stack(tuple(slices), _picture_grid(*slices[0]), is_picture=True)
    _require_placed(path, slices)
    axes = _axes(path, slices[0][1])
    positions = np.array([frame.position for _, frame in slices])
    order = np.argsort(positions @ axes[2], kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    step = _step(path, slices, positions, axes, tolerance)
    affine = np.eye(4)
    row_gap, column_gap = slices[0][1].spacing or (1.0, 1.0)
    affine[:3, :3] = np.column_stack([axes[0] * column_gap, axes[1] * row_gap, step])
    affine[:3, 3] = positions[0]
    shape = (slices[0][0].columns, slices[0][0].rows, len(slices))
    return Stack(tuple(slices), Geometry(shape, LPS_TO_RAS @ affine), is_picture=False)


def _require_no_mosaic(path: Path, headers: Sequence[Header]) -> None:
    """Raise UnsupportedInput for pictures that hold many slices, whose places only Siemens' private elements state."""
    if mosaics := [(header, header.frames[0]) for header in headers if header.is_mosaic]:
        raise UnsupportedInput(
            f"{path}: mosaics of Siemens, many slices side by side in one picture: {_names(mosaics)}; convert the "
            "series with dcm2niix, and use its file"
        )


def _require_one_patient(path: Path, headers: Sequence[Header]) -> None:
    """Raise UnsupportedInput if images of one series have different patient IDs; the message holds no ID."""
    counts = Counter(header.patient for header in headers if header.patient)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    others = [(header, header.frames[0]) for header in headers if header.patient not in (None, usual)]
    raise UnsupportedInput(
        f"{path}: images of {len(counts)} patients (PatientID) in one series: {_names(others)} of another than most; "
        "put the images of each patient into a folder of their own"
    )


def _require_equal(path: Path, slices: Sequence[Slice]) -> None:
    """Raise UnsupportedInput, with the files, if images differ from most others; a scout is called so."""
    _require_one(path, slices, "size", lambda h, _: (h.columns, h.rows), lambda a, b: a == b)
    _require_one(path, slices, "colours", lambda h, _: (h.samples, h.photometric), lambda a, b: a == b)
    _require_one(path, slices, "orientation", lambda _, f: f.orientation, _near(absolute=_SAME))
    _require_one(path, slices, "pixel spacing", lambda _, f: f.spacing, _near(relative=_SAME))
    _require_one(path, slices, "rescale", lambda _, f: _RESCALED[f.is_rescaled], lambda a, b: a == b)
    _require_one(path, slices, "frame of reference", lambda h, _: h.frame_of_reference, lambda a, b: a == b)


def _near(absolute: float = 0.0, relative: float = 0.0) -> Callable[[Any, Any], bool]:
    def near(a: Any, b: Any) -> bool:
        return a is b or (a is not None and b is not None and bool(np.allclose(a, b, rtol=relative, atol=absolute)))

    return near


def _require_one(
    path: Path,
    slices: Sequence[Slice],
    what: str,
    value: Callable[[Header, Frame], Any],
    equal: Callable[[Any, Any], bool],
) -> None:
    usual = Counter(value(*one) for one in slices).most_common(1)[0][0]
    others = [one for one in slices if not equal(value(*one), usual)]
    if not others:
        return
    scouts = [one for one in others if one[0].is_scout]
    if scouts:
        raise UnsupportedInput(
            f"{path}: {_names(scouts)} is a scout (localizer) with another {what} ({_shown(value(*scouts[0]))}) than "
            f"the other images ({_shown(usual)}); remove it from the series"
        )
    raise UnsupportedInput(
        f"{path}: {len(others)} of {len(slices)} images have another {what} ({_shown(value(*others[0]))} instead of "
        f"{_shown(usual)}): {_names(others)}; move them to a folder of their own"
    )


def _require_placed(path: Path, slices: Sequence[Slice]) -> None:
    for name, value in (("ImagePositionPatient", "position"), ("ImageOrientationPatient", "orientation")):
        lost = [one for one in slices if getattr(one[1], value) is None]
        if len(lost) == len(slices) and len(slices) > 1:
            raise UnsupportedInput(
                f"{path}: {len(slices)} images without {name}, so they are no volume; put each picture into images/ as "
                "a case of its own, or export the original series"
            )
        if lost:
            raise DamagedFile(f"{path}: no {name} in {_names(lost)}; export the series again")
    if slices[0][1].spacing is None:
        raise DamagedFile(f"{path}: no PixelSpacing in {_names(slices)}; export the series again")


def _axes(path: Path, frame: Frame) -> NDArray[np.float64]:
    """Unit vectors along rows, along columns, and normal to both, one per row."""
    row, column = np.array(frame.orientation).reshape(2, 3)
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > _SAME:
        raise DamagedFile(
            f"{path}: ImageOrientationPatient of {frame.name} has vectors of lengths {lengths[0]:.4g} and "
            f"{lengths[1]:.4g}, but they must be 1; correct the header"
        )
    if abs(row @ column) > _SAME:
        angle = np.degrees(np.arccos(np.clip(row @ column, -1, 1)))
        raise DamagedFile(
            f"{path}: rows and columns of {frame.name} are at {angle:.2f} degrees by ImageOrientationPatient, not at a "
            "right angle; correct the header"
        )
    row, column = row / lengths[0], column / lengths[1]  # so that distances are those of PixelSpacing
    return np.array([row, column, np.cross(row, column)])


def _step(
    path: Path, slices: Sequence[Slice], positions: NDArray[Any], axes: NDArray[np.float64], tolerance: float | None
) -> NDArray[np.float64]:
    """The vector (LPS, mm) from a slice to the next. Raises UnsupportedInput for all irregular series."""
    if len(slices) == 1:
        return np.asarray(axes[2] * slices[0][1].thickness)
    offsets = (positions - positions[0]) @ axes.T
    gaps = np.diff(offsets[:, 2])
    _require_no_doubles(path, slices, gaps)
    usual = float(np.median(gaps))
    allowed = RELATIVE_TOLERANCE * usual if tolerance is None else tolerance
    _require_all_there(path, slices, offsets[:, 2], usual)
    _require_untilted(path, offsets)
    step = np.asarray((positions[-1] - positions[0]) / (len(slices) - 1), dtype=np.float64)
    regular = positions[0] + np.arange(len(slices))[:, None] * step
    distance = np.linalg.norm(positions - regular, axis=1)
    worst = int(distance.argmax())
    if distance[worst] > allowed:
        raise UnsupportedInput(
            f"{path}: uneven slices: {slices[worst][1].name} is {distance[worst]:.3g} mm off its regular position, "
            f"{allowed:.3g} mm are allowed at a spacing of {usual:.4g} mm (gaps from {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm); resample the series, or allow more with --slice-tolerance MM"
        )
    return step


def _require_no_doubles(path: Path, slices: Sequence[Slice], gaps: NDArray[Any]) -> None:
    same = _at_one_position(gaps)
    if not same.any():
        return
    pairs = np.flatnonzero(same)
    groups = len(slices) - len(pairs)
    in_one_file = len({id(header) for header, _ in slices}) == 1
    split = "split the file, for example with dcm2niix, and use one of its parts"
    if len(slices) % groups == 0 and len(slices) // groups > 1 and len(pairs) > 1:
        remedy = split if in_one_file else "put the files of one of them into a folder of their own"
        raise UnsupportedInput(
            f"{path}: {len(slices) // groups} images at each of {groups} positions (time points, echoes, b-values or "
            f"a copy of each file); {remedy}"
        )
    first = pairs[0]
    raise UnsupportedInput(
        f"{path}: double positions ({len(pairs)}), for example that of {slices[first][1].name} and "
        f"{slices[first + 1][1].name}; {split if in_one_file else 'remove one file of each pair'}"
    )


def _at_one_position(gaps: NDArray[Any]) -> NDArray[np.bool_]:
    """Which gaps are between images at one position; echoes and time points may be some micrometres apart."""
    usual = float(np.median(gaps))
    apart = gaps > _BETWEEN * usual
    groups = np.split(np.concatenate([[0.0], np.cumsum(gaps)]), np.flatnonzero(apart) + 1)
    if apart.any() and len(set(map(len, groups))) == 1:
        widest = max(float(np.ptp(group)) for group in groups)
        if widest < gaps[apart].min() / 20:
            return np.asarray(~apart)
    return np.asarray(gaps < RELATIVE_TOLERANCE * max(usual, 0.1))


def _require_all_there(path: Path, slices: Sequence[Slice], heights: NDArray[Any], usual: float) -> None:
    """Raise UnsupportedInput for gaps of several slice spacings, with the positions that are missing."""
    gaps = np.diff(heights)
    whole = np.rint(gaps / usual)
    missing = np.where(np.abs(gaps / usual - whole) < _WHOLE_GAP, whole.astype(int) - 1, 0)
    if not (missing > 0).any():
        return
    worst = int(missing.argmax())
    raise UnsupportedInput(
        f"{path}: {int(missing[missing > 0].sum())} of {len(slices) + int(missing[missing > 0].sum())} slices are "
        f"missing: between {slices[worst][1].name} and {slices[worst + 1][1].name} the gap is {gaps[worst]:.4g} mm, "
        f"elsewhere {usual:.4g} mm, so slice {worst + 1} (counted from 0) {heights[worst] + usual:.4g} mm from the "
        "first one is not there; export the whole series, or the part before and after the gap as two"
    )


def _require_untilted(path: Path, offsets: NDArray[Any]) -> None:
    """Raise UnsupportedInput if the slices are shifted sideways from one to the next."""
    sideways = float(np.linalg.norm(offsets[-1, :2]))
    tilt = float(np.degrees(np.arctan2(sideways, offsets[-1, 2])))
    if tilt > _MAX_TILT:
        raise UnsupportedInput(
            f"{path}: gantry tilt: the slices are shifted sideways by {tilt:.2f} degrees, so their axes are not at "
            "right angles; correct the tilt, for example with dcm2niix, and use its file"
        )


def _picture_grid(header: Header, frame: Frame) -> Geometry:
    """x runs to the patient's left and y to the back, in mm if the header states the size of a pixel in the patient."""
    shape = (header.columns, header.rows, 1)
    if frame.spacing is None or not header.is_calibrated:
        return Geometry(shape, np.diag([-1.0, -1.0, 1.0, 1.0]), unit="pixel")
    return Geometry(shape, np.diag([-frame.spacing[1], -frame.spacing[0], frame.thickness, 1.0]))


def _names(slices: Sequence[Slice]) -> str:
    return some([frame.name for _, frame in slices])


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "none"
    parts = value if isinstance(value, tuple) else (value,)
    return " x ".join(f"{part:g}" if isinstance(part, float) else str(part)[:64] for part in parts)
