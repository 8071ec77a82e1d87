"""DICOM folders and archives as volumes: the series that are there, the chosen one, its grid and its voxels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from handful.data.dicom.headers import Header, read_header
from handful.data.dicom.pixels import read_voxels
from handful.data.dicom.sources import Source, open_sources, silenced
from handful.data.dicom.stack import Stack, stack
from handful.data.verified import MAX_BYTES
from handful.data.volume import Geometry
from handful.errors import HandfulError, InputError, UnsupportedInput
from handful.jobs.digests import Digest
from handful.jobs.plain_text import counted


@dataclass(frozen=True)
class SeriesChoice:
    """Which series of a DICOM folder is the scan, and how regular its slices must be."""

    series: str | None = None
    """SeriesNumber or SeriesInstanceUID. None: the only one."""
    slice_tolerance: float | None = None
    """Millimetres that a slice may be off its regular position. None: 1 % of the slice spacing."""


ONLY_SERIES = SeriesChoice()
"""No choice: there is one series, and it is regular."""


@dataclass(frozen=True)
class _Folder:
    series: Mapping[str, Sequence[Header]]
    """The images of each series, by UID."""
    left_out: Sequence[tuple[str, str]]
    """Name of each other file, and what it is."""


def read_dicom(
    path: Path, max_bytes: int, digest: Digest | None = None, choice: SeriesChoice = ONLY_SERIES
) -> tuple[NDArray[Any], Geometry]:
    """Voxels (1 or 3, i, j, k) and grid of the chosen series in a folder tree, an archive or a file.

    If a `digest` is given, voxels and grid are added to it. Raises UnsupportedInput, with a list of all series, if
    several are there and none is chosen; and for series that do not lie on one regular grid, with the cause.
    """
    with opened(path, max_bytes) as sources:
        found = stack_of(path, sources, choice)
        array = read_voxels(path, found, max_bytes)
    if digest:
        digest.add(array, f"{array.dtype}{array.shape}{found.geometry.affine.tolist()}")
    return array, found.geometry


def series_uid(path: Path, choice: SeriesChoice = ONLY_SERIES) -> str:
    """SeriesInstanceUID of the chosen series. Raises as `read_dicom`."""
    with opened(path) as sources:
        return stack_of(path, sources, choice).slices[0][0].series


@contextmanager
def opened(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[list[Source]]:
    """The files of a folder tree, of an archive, or the file itself; pydicom's log messages are silenced.

    Raises UnsupportedInput without pydicom, InputError if there is no file.
    """
    if find_spec("pydicom") is None:
        raise UnsupportedInput(f"{path}: reading DICOM needs pydicom; run pip install 'handful[dicom]'")
    with silenced(), open_sources(path, max_bytes) as sources:
        if not sources:
            raise InputError(f"{path}: no such file, or an empty folder; check the name")
        yield sources


def stack_of(path: Path, sources: Sequence[Source], choice: SeriesChoice) -> Stack:
    """The slices of the chosen series in the order of the third axis, and their grid; errors as `read_dicom`."""
    return stack(path, _chosen(path, _read_folder(path, sources), choice), choice.slice_tolerance)


def dicom_geometry(path: Path, choice: SeriesChoice = ONLY_SERIES) -> Geometry:
    """The grid, from the headers of all files."""
    with opened(path) as sources:
        return stack_of(path, sources, choice).geometry


def dicom_modality(path: Path, choice: SeriesChoice = ONLY_SERIES) -> str | None:
    """The modality (0008,0060) of the chosen series, by its first image; the others are not read."""
    with opened(path) as sources:
        first = _first(path, sources, choice)
    return first.modality if first else None


def _first(path: Path, sources: Sequence[Source], choice: SeriesChoice) -> Header | None:
    headers = (read_header(source, str(path)) for source in sources)
    images = (header for header in headers if isinstance(header, Header))
    return next((one for one in images if choice.series in (None, one.series, str(one.number))), None)


def dicom_has_series(path: Path, uid: str) -> bool:
    """Whether a series of this UID is there; reading ends at its first image."""
    try:
        with opened(path) as sources:
            return _first(path, sources, SeriesChoice(uid)) is not None
    except HandfulError:
        return False  # the case fails with its reason when it is read


def dicom_frame_of_reference(path: Path, choice: SeriesChoice = ONLY_SERIES) -> str:
    """The FrameOfReferenceUID of the chosen series, by its first image; "" if it states none."""
    with opened(path) as sources:
        first = _first(path, sources, choice)
    return first.frame_of_reference if first else ""


def dicom_notes(path: Path, choice: SeriesChoice = ONLY_SERIES) -> list[str]:
    """Files of the folder that are no part of the scan, and what padding became: one sentence each."""
    with opened(path) as sources:
        folder = _read_folder(path, sources)
        headers = _chosen(path, folder, choice)
    notes = [f"{path}: {name} is {what}; left out" for name, what in folder.left_out]
    others = [line for uid, line in _lines(folder) if uid != headers[0].series]
    if others:
        notes.append(f"{path}: other series are left out: {'; '.join(others)}")
    if any(header.padding for header in headers):
        notes.append(f"{path}: padded voxels (PixelPaddingValue) get the lowest value of the others")
    return notes


def dicom_patient(path: Path, choice: SeriesChoice = ONLY_SERIES) -> str | None:
    """A digest of the patient's ID in the first image of the chosen series; None if it has none or is unreadable."""
    try:
        with opened(path) as sources:
            first = _first(path, sources, choice)
    except HandfulError:
        return None  # the case fails with its reason when it is read
    return first.patient if first else None


def dicom_series_of(files: Sequence[Path]) -> list[Path]:
    """The files that are slices of one and the same series; empty if each file is a scan on its own."""
    series: dict[str, list[Path]] = {}
    for path in files:
        try:
            with opened(path) as sources:
                header = read_header(sources[0], str(path))
        except HandfulError:
            continue  # the case fails with its reason when it is read
        if isinstance(header, Header) and header.series and header.frames[0].position is not None:
            series.setdefault(header.series, []).append(path)
    return next((paths for paths in series.values() if len(paths) > 1), [])


def _read_folder(path: Path, sources: Sequence[Source]) -> _Folder:
    series: dict[str, list[Header]] = {}
    left_out: list[tuple[str, str]] = []
    for source in sources:
        found = read_header(source, str(path) if len(sources) == 1 else f"{path}: {source.name}")
        if isinstance(found, str):
            left_out.append((source.name, found))
        else:
            series.setdefault(found.series, []).append(found)
    if not series:
        listed = "; ".join(f"{name} is {what}" for name, what in left_out[:5])
        raise UnsupportedInput(
            f"{path}: no DICOM image in {counted(len(sources), 'file')} ({listed}); check the folder"
        )
    return _Folder(series, left_out)


def _chosen(path: Path, folder: _Folder, choice: SeriesChoice) -> Sequence[Header]:
    wanted = choice.series
    if wanted is None and len(folder.series) == 1:
        return next(iter(folder.series.values()))
    fitting = [uid for uid in folder.series if uid == wanted]
    fitting = fitting or [uid for uid, headers in folder.series.items() if str(headers[0].number) == wanted]
    if len(fitting) == 1:
        return folder.series[fitting[0]]
    listed = "".join(f"\n  {line}" for _, line in _lines(folder))
    problem = "" if wanted is None else f", {len(fitting) or 'none'} of them with number or UID {wanted!r}"
    raise UnsupportedInput(
        f"{path}: {len(folder.series)} series{problem}; choose one with --series NUMBER or UID, or put each into a "
        f"folder of its own in images/:{listed}"
    )


def _lines(folder: _Folder) -> Iterator[tuple[str, str]]:
    """UID, and number, description, modality, number of images and which of several patients, of each series."""
    patients = list(dict.fromkeys(headers[0].patient for headers in folder.series.values()))
    for uid, headers in sorted(folder.series.items(), key=lambda item: (item[1][0].number or 0, item[0])):
        first = headers[0]
        images = counted(sum(len(header.frames) for header in headers), "image")
        more = ", scout" if any(header.is_scout for header in headers) else ""
        more += f", patient {patients.index(first.patient) + 1} of {len(patients)}" if len(patients) > 1 else ""
        number = "no number" if first.number is None else f"number {first.number}"
        yield (
            uid,
            f"{number}: {first.description or 'no description'!r}, {first.modality}, {images}{more}, {uid}",
        )
