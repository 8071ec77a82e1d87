"""Reading and writing of scans and label maps. The suffix determines the format.

Files are verified when they are read, and written completely or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.dicom.segments import LONGEST_NAME, read_segmentation, segment_names
from handful.data.dicom.series import ONLY_SERIES, SeriesChoice, dicom_geometry, dicom_modality, dicom_notes, read_dicom
from handful.data.dicom.sources import DICOM_SUFFIXES, has_dicom_start, is_dicom
from handful.data.itk import itk_geometry, itk_modality, read_itk, write_itk
from handful.data.label_values import MOST_VALUES, renumbered
from handful.data.nifti import nifti_geometry, nifti_notes, read_nifti, write_nifti
from handful.data.pictures import (
    picture_geometry,
    picture_notes,
    read_label_picture,
    read_picture,
    write_picture,
)
from handful.data.segments import SUFFIX as SEGMENTATION
from handful.data.segments import read_segments
from handful.data.verified import MAX_BYTES
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume, require_finite
from handful.errors import DamagedFile, HandfulError, InputError, LabelError, SettingsError, UnsupportedInput
from handful.jobs.atomic import replacing
from handful.jobs.digests import Digest
from handful.jobs.files import checked_path, open_file, text_of
from handful.jobs.plain_text import counted
from handful.jobs.scratch import converted


def read_volume(
    path: str | Path,
    *,
    max_bytes: int = MAX_BYTES,
    digest: Digest | None = None,
    series: str | None = None,
    slice_tolerance: float | None = None,
    sequences: tuple[str, ...] = (),
) -> Volume:
    """The image in a file, voxels (1 or 3, i, j, k). Integer voxels keep their type, all others become 32-bit floats.

    `sequences` are the names of the sequences along the fourth axis of a NIfTI or NRRD file, which become channels.

    `path` may also be a DICOM file, or a folder (of any depth) or .zip archive with the files of a DICOM series.
    `series` chooses one of several by number or UID. A slice may be `slice_tolerance` mm off its regular position,
    by default 1 % of the slice spacing.

    The modality is that of the DICOM tag, which some NRRD and MetaImage files keep.

    If a `digest` is given, the bytes of the file are added to it (for NIfTI while they are read, for other formats in a
    second pass).

    Raises DamagedFile if the file is truncated, corrupt or larger than `max_bytes`. Raises UnsupportedInput if it is
    not one volume or picture of finite values, or if its axes are not at right angles.
    """
    path = Path(path)
    with _explained(path):
        kind = _format(path, SeriesChoice(series, slice_tolerance))
        if sequences:
            array, geometry = _with_sequences(kind, path).read(path, max_bytes, digest, len(sequences))
        else:
            array, geometry = kind.read(path, max_bytes, digest)
        _require_orthogonal(path, geometry)
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused
                array = converted(array, np.float32)
            require_finite(array, str(path))
        return Volume(array, geometry, None if sequences else kind.modality(path), sequences)


def read_label_map(
    path: str | Path,
    labels: Labels | None = None,
    ignore: int | None = None,
    background: int = 0,
    *,
    max_bytes: int = MAX_BYTES,
    grid: Geometry | None = None,
) -> LabelMap:
    """The label map in a file, with 16-bit voxels (i, j, k), or 32-bit voxels if a label value needs them.

    A DICOM segmentation (DICOM-SEG) has frames in any order, and often only those with a label. `grid` is the grid of
    its scan; without it, the label map is cropped to the slices that the file has. Its segments become the `labels` of
    the same name, or keep their numbers if `labels` have no names. Other files have a grid of their own.

    Voxels of value `ignore` become IGNORE (unlabelled), those of value `background` become 0. If a file
    `<stem>.slices.json` lies in the same folder, all slices that it does not list become IGNORE, too. Its content is
    {"axis": 0, 1 or 2 of the stored array, "labelled": [slice numbers]}. Without it, a slice that contains no label
    counts as labelled background.

    Without `labels`, each value in the file is a label called "label <value>", or each segment by its name. The
    segments of 3D Slicer keep their values if no name is that of one of the `labels`. Segments called "ignore" and
    "background" have the values `ignore` and `background`.

    Raises LabelError for values that are not whole numbers, negative, or not among `labels`, and for segments that
    overlap or are no label.
    """
    path = Path(path)
    with _explained(path):
        classes, geometry, segments = _stored_classes(path, max_bytes, grid)
        if segments and labels is not None:
            classes = _with_values(classes, segments, labels, {"ignore": ignore, "background": background}, path)
        elif segments:
            labels = Labels.of(segments)
        if ignore is not None:
            classes[classes == ignore] = IGNORE
        classes[classes == background] = 0
        _apply_sidecar(classes, path)
    if labels is None:
        values = sorted(int(value) for value in np.unique(classes) if value > 0)
        if not values:
            raise LabelError(f"{path}: contains no label, and no label names are given; name them in dataset.json")
        labels = Labels.of({value: f"label {value}" for value in values})
    require_known(classes, labels, str(path))
    return LabelMap(classes, geometry, labels)


def labels_in(paths: Iterable[Path], ignore: int | None = None) -> tuple[Labels | None, HandfulError | None]:
    """The labels in all these label maps, and the first error of those that cannot be read.

    Values are called "label <value>". Segments of DICOM and of 3D Slicer keep their names: a name gets the number that
    it has in the first file, or the next free one. None if there is no label. Raises LabelError if the only label of
    some files is 1 and that of all others 255.
    """
    values: dict[tuple[int, ...], Path] = {}
    segments: dict[int, str] = {}
    failure: HandfulError | None = None
    for path in paths:
        try:
            if names := segment_names(path) if _is_dicom_file(path) else _slicer_segments(path):
                segments |= _added(names, segments) if segments else names
            else:
                label_map = read_label_map(path, None, ignore)
                values.setdefault(tuple(np.unique(label_map.array[label_map.array > 0]).tolist()), path)
        except HandfulError as error:
            failure = failure or error
    _require_one_kind_of_mask(values)
    named = {value: f"label {value}" for value in chain.from_iterable(values)} | segments
    return Labels.of(named) if named else None, failure


def _require_one_kind_of_mask(values: Mapping[tuple[int, ...], Path]) -> None:
    """Raise LabelError for masks whose inside is 1 in some files and 255 in the others, given an example of each kind.

    Programs write masks either way, so these are hardly two classes.
    """
    if set(values) - {()} == {(1,), (255,)}:
        raise LabelError(
            f"the only label is 1 in {values[(1,)]}, but 255 in {values[(255,)]}: one label or two? For one, save all "
            "label maps with the same value; for two, name both in dataset.json"
        )


def read_geometry(path: str | Path, choice: SeriesChoice = ONLY_SERIES, sequences: int = 1) -> Geometry:
    """The grid of a scan with so many sequences in the file, from its header; the voxels are not verified."""
    path = Path(path)
    with _explained(path):
        kind = _format(path, choice)
        return kind.geometry(path) if sequences == 1 else _with_sequences(kind, path).geometry(path, sequences)


def read_notes(path: str | Path, choice: SeriesChoice = ONLY_SERIES, sequences: int = 1) -> list[str]:
    """Unusual but valid properties of a file's header, one sentence each."""
    path = Path(path)
    with _explained(path):
        kind = _format(path, choice)
        return kind.notes(path) if sequences == 1 else _with_sequences(kind, path).notes(path, sequences)


def write_label_map(path: str | Path, label_map: LabelMap) -> None:
    """Write a label map in the smallest integer type that holds its values (signed only if some are IGNORE).

    The file is written completely or not at all. Equal label maps give equal bytes.
    """
    array = label_map.array
    smallest = np.result_type(np.min_scalar_type(int(array.max())), np.min_scalar_type(min(int(array.min()), 0)))
    _write(Path(path), converted(array, smallest)[None], label_map.geometry)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write an image with its own voxel type. The file is written completely or not at all."""
    array = volume.array
    if array.dtype.kind == "b" or array.dtype == np.float16:  # types that the formats lack
        array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
    _write(Path(path), array, volume.geometry)


def stem(path: str | Path) -> str:
    """The file name without its suffix, which may be a double one: 'a' for 'a.nii.gz' and 'a.seg.nrrd'.

    Digits are no suffix: names of DICOM files are often UIDs, or end in a number ('IM.0001').
    """
    name = Path(path).name
    if name.lower().endswith(SEGMENTATION):
        return name[: -len(SEGMENTATION)]
    if suffix := _suffix(name):
        return name[: -len(suffix)]
    return name if Path(name).suffix[1:].isdigit() else Path(name).stem


def is_scan(path: Path) -> bool:
    """Whether a file has the suffix of a supported format and is not hidden."""
    return not path.name.startswith(".") and bool(_suffix(path.name)) and path.is_file()


def is_label_map(path: Path) -> bool:
    """Whether a file has the suffix of a supported format, or is a DICOM file, and is not hidden."""
    return is_scan(path) or (not path.name.startswith(".") and path.is_file() and _is_dicom_file(path))


def require_known(classes: NDArray[Any], labels: Labels, what: str) -> None:
    """Raise LabelError, with counts and slices, if a voxel is neither 0, IGNORE nor a value of `labels`.

    `what` names the label map in the message.
    """
    known = {0, IGNORE, *labels.values}
    unknown = [value for value in np.unique(classes).tolist() if value not in known]
    if unknown:
        places = "; ".join(_where(classes, value) for value in unknown[:5])
        more = f"; and {counted(len(unknown) - 5, 'more value')}" if len(unknown) > 5 else ""
        doubt = " (are these grey levels or instance ids?)" if len(unknown) > MOST_VALUES else ""
        raise LabelError(
            f"{what}: values that are not labels: {places}{more}{doubt}. The labels are 0 and {labels.as_dict()}; "
            "add the values to the labels (fit --labels learns some of them), or correct the file"
        )


@dataclass(frozen=True)
class _Format:
    """The functions that read and write files of one format; arrays are (channels, i, j, k)."""

    read: Callable[[Path, int, Digest | None], tuple[NDArray[Any], Geometry]]
    read_labels: Callable[[Path, int], tuple[NDArray[Any], Geometry]]
    geometry: Callable[[Path], Geometry]
    write: Callable[[Path, NDArray[Any], Geometry], None]
    notes: Callable[[Path], list[str]] = lambda _: []
    modality: Callable[[Path], str | None] = lambda _: None
    sequences: _WithSequences | None = None
    """How files with several sequences are read; None if the format has none."""


@dataclass(frozen=True)
class _WithSequences:
    """The functions that read files of one format with a given number of sequences."""

    read: Callable[[Path, int, Digest | None, int], tuple[NDArray[Any], Geometry]]
    geometry: Callable[[Path, int], Geometry]
    notes: Callable[[Path, int], list[str]] = lambda _, __: []


def _after_digest(
    read: Callable[[Path, int], tuple[NDArray[Any], Geometry]],
) -> Callable[[Path, int, Digest | None], tuple[NDArray[Any], Geometry]]:
    """Add a digest to a function whose library opens the file itself; the digest reads the file a second time."""

    def digested(path: Path, max_bytes: int, digest: Digest | None) -> tuple[NDArray[Any], Geometry]:
        if digest:
            digest.add_file(path)
        return read(path, max_bytes)

    return digested


def _itk_sequences(path: Path, max_bytes: int, digest: Digest | None, sequences: int) -> tuple[NDArray[Any], Geometry]:
    return _after_digest(partial(read_itk, sequences=sequences))(path, max_bytes, digest)


_NIFTI = _Format(
    read_nifti,
    read_nifti,
    nifti_geometry,
    write_nifti,
    nifti_notes,
    sequences=_WithSequences(read_nifti, nifti_geometry, nifti_notes),
)
_ITK = _Format(
    _after_digest(read_itk),
    read_itk,
    itk_geometry,
    write_itk,
    modality=itk_modality,
    sequences=_WithSequences(_itk_sequences, itk_geometry),
)
_PICTURE = _Format(_after_digest(read_picture), read_label_picture, picture_geometry, write_picture, picture_notes)
_FORMATS: Mapping[str, _Format] = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".nrrd": _ITK,
    ".nhdr": _ITK,
    ".mha": _ITK,
    ".mhd": _ITK,
    ".png": _PICTURE,
    ".jpg": _PICTURE,
    ".jpeg": _PICTURE,
    ".tif": _PICTURE,
    ".tiff": _PICTURE,
    ".bmp": _PICTURE,
}
SUFFIXES: tuple[str, ...] = tuple(_FORMATS)
"""Suffixes of the supported formats of images and label maps; DICOM is not among them."""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any exception of a library into an error with the name of the file."""
    checked_path(path)
    try:
        yield
    except HandfulError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: needs more memory than there is; close other programs, or crop the scan") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check that it is a file that you are allowed to read"
        ) from error
    except Exception as error:
        raise DamagedFile(
            f"{path}: cannot be read ({type(error).__name__}: {error}); copy the file again, or save it again"
        ) from error


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _format(path: Path, choice: SeriesChoice = ONLY_SERIES) -> _Format:
    if (suffix := _suffix(path.name)) and not path.is_dir():
        if choice != ONLY_SERIES:
            raise SettingsError(f"{path}: a series and a slice tolerance are for DICOM only; leave them out")
        return _FORMATS[suffix]
    if path.name.lower().endswith(DICOM_SUFFIXES) or is_dicom(path):
        return _dicom(choice)
    if path.is_dir():
        raise UnsupportedInput(f"{path}: a folder without DICOM files; give a scan, or a folder with one DICOM series")
    open_file(path).close()  # a missing file is named as such
    raise UnsupportedInput(f"{path}: unknown file format; handful reads DICOM and {', '.join(SUFFIXES)}")


def _with_sequences(kind: _Format, path: Path) -> _WithSequences:
    if kind.sequences is None:
        raise UnsupportedInput(f"{path}: this format has no axis of sequences; save each sequence as its own .nii.gz")
    return kind.sequences


def _dicom(choice: SeriesChoice) -> _Format:
    return _Format(
        partial(read_dicom, choice=choice),
        _refuse_labels,
        partial(dicom_geometry, choice=choice),
        _refuse_to_write,
        partial(dicom_notes, choice=choice),
        partial(dicom_modality, choice=choice),
    )


def _is_dicom_file(path: Path) -> bool:
    if _suffix(path.name) or path.is_dir():
        return False
    return path.name.lower().endswith((".dcm", ".ima")) or has_dicom_start(path)


def _slicer_segments(path: Path) -> dict[int, str]:
    return read_segments(path) if path.name.lower().endswith(".nrrd") else {}


def _stored_classes(
    path: Path, max_bytes: int, grid: Geometry | None
) -> tuple[NDArray[Any], Geometry, Mapping[int, str]]:
    """The numbers in the file (i, j, k), their grid, and the names of its segments, if it has any."""
    if _is_dicom_file(path):
        return read_segmentation(path, max_bytes, grid)
    segments = _slicer_segments(path)  # overlapping ones are refused by their cause
    array, geometry = _format(path).read_labels(path, max_bytes)
    if array.shape[0] != 1:
        raise UnsupportedInput(f"{path}: labels are colours; save one channel of label numbers")
    _require_orthogonal(path, geometry)
    classes = _whole_numbers(array[0], path)
    if segments:
        require_known(classes, Labels.of(segments), str(path))
    return classes, geometry, segments


def _with_values(
    classes: NDArray[Any], names: Mapping[int, str], labels: Labels, stated: Mapping[str, int | None], path: Path
) -> NDArray[Any]:
    """The values of the labels in place of the numbers of segments of the same name.

    Segments called "ignore" and "background" get the values `stated` for these. Numbers stay as they are if the labels
    have no names, and in files of 3D Slicer if no name is known.
    """
    if labels.names == tuple(f"label {value}" for value in labels.values):
        return classes
    value_of = {_plain(name): value for value, name in labels.as_dict().items()}
    known = value_of.keys() | stated.keys()
    if not _is_dicom_file(path) and known.isdisjoint(map(_plain, names.values())):
        return classes
    if _is_dicom_file(path):
        value_of = _cut(labels) | value_of
    value_of |= {name: value for name, value in stated.items() if value}
    numbers: dict[int, int] = {0: 0}
    for number, name in names.items():
        if _plain(name) in value_of:
            numbers[number] = value_of[_plain(name)]
        elif (classes == number).any():
            raise LabelError(
                f"{path}: segment {number} is {name!r}, which is no label; the labels are {labels.as_dict()}. Rename "
                'the segment, leave it out, or add it to "labels" in dataset.json'
            )
    return renumbered(classes, numbers)


def _cut(labels: Labels) -> dict[str, int]:
    """The values of the labels by as much of their names as DICOM stores, where that is the beginning of one only."""
    short = [_plain(name[:LONGEST_NAME]) for name in labels.names]
    return {name: value for name, value in zip(short, labels.values, strict=True) if short.count(name) == 1}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _added(more: Mapping[int, str], segments: Mapping[int, str]) -> dict[int, str]:
    """Those segments whose names are not known yet, with free numbers."""
    known = {_plain(name) for name in segments.values()}
    added: dict[int, str] = {}
    for number, name in more.items():
        if _plain(name) not in known:
            taken = segments.keys() | added.keys()
            added[number if number not in taken else max(taken) + 1] = name
    return added


def _refuse_labels(path: Path, max_bytes: int) -> tuple[NDArray[Any], Geometry]:
    raise UnsupportedInput(
        f"{path}: labels are read from a DICOM-SEG file, not from a folder or archive; name the file"
    )


def _refuse_to_write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    raise UnsupportedInput(
        f"{path}: images are not written as DICOM, and label maps only for DICOM scans; write .nii.gz"
    )


def _require_orthogonal(path: Path, geometry: Geometry) -> None:
    """Raise UnsupportedInput if the axes are not at right angles, since distances would be wrong. Oblique is fine."""
    axes = geometry.affine[:3, :3] / geometry.spacing
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > 1e-3:
        angle = float(np.degrees(np.arcsin(min(shear, 1.0))))
        raise UnsupportedInput(
            f"{path}: sheared grid, two axes are {angle:.2f} degrees off the right angle; "
            "resample it onto a grid with right angles"
        )


def _whole_numbers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Voxels as 16- or 32-bit integers, writable; rounded where they are within 1e-3 of a whole number."""
    require_finite(array, str(path))
    whole = np.rint(array) if array.dtype.kind == "f" else array
    if array.dtype.kind == "f" and (off := np.abs(array - whole) > 1e-3).any():
        values = ", ".join(f"{value:.6g}" for value in np.unique(array[off])[:5])
        raise LabelError(
            f"{path}: values that are not whole numbers in {counted(int(off.sum()), 'voxel')}, for example {values}; "
            "threshold the map, or resample it with nearest-neighbour interpolation"
        )
    lowest, highest = int(whole.min()), int(whole.max())
    if lowest < IGNORE or highest >= 2**31:
        wrong = lowest if lowest < IGNORE else highest
        raise LabelError(
            f"{path}: label value {_where(whole, wrong)}; labels are whole numbers from 0, and {IGNORE} is unlabelled"
        )
    return whole.astype(np.int16 if highest < 2**15 else np.int32)


def _where(classes: NDArray[Any], value: int) -> str:
    equal = classes == value
    slices = np.flatnonzero(equal.any(axis=(0, 1)))
    listed = ", ".join(str(index) for index in slices[:5]) + (", ..." if len(slices) > 5 else "")
    return f"{value} in {counted(int(equal.sum()), 'voxel')}, slices {listed} of the last axis"


def _apply_sidecar(classes: NDArray[Any], path: Path) -> None:
    sidecar = path.with_name(f"{stem(path)}.slices.json")
    if not sidecar.exists():
        return
    try:
        content = json.loads(text_of(sidecar))
        axis, labelled = content["axis"], content["labelled"]
        valid = set(content) == {"axis", "labelled"} and type(axis) is int and axis in (0, 1, 2)
        valid = valid and isinstance(labelled, list)
        valid = valid and all(type(index) is int and 0 <= index < classes.shape[axis] for index in labelled)
    except (InputError, ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        form = '{"axis": 0, 1 or 2, "labelled": [slice numbers]}'
        raise InputError(f"{sidecar}: must be {form} for a {classes.shape} grid; correct it")
    unlabelled = np.ones(classes.shape[axis], dtype=bool)
    unlabelled[labelled] = False
    np.moveaxis(classes, axis, 0)[unlabelled] = IGNORE


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    kind = _format(checked_path(path))
    if path.suffix.lower() in (".mhd", ".nhdr"):
        raise UnsupportedInput(f"{path}: a format of two files cannot be written safely; write .mha or .nrrd")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    with replacing(path) as temporary:
        kind.write(temporary, array, geometry)
