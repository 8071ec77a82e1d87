"""One scan or label map in a file: verified when read, written completely or not at all, its format told by suffix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.itk import itk_geometry, read_itk, write_itk
from handful.data.nifti import nifti_geometry, nifti_notes, read_nifti, write_nifti
from handful.data.pictures import picture_geometry, read_label_picture, read_picture, write_picture
from handful.data.verified import MAX_BYTES
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume, require_finite
from handful.errors import InputError, LabelError, UnsupportedInput
from handful.jobs.atomic import replacing
from handful.jobs.digests import Digest


def read_volume(path: str | Path, *, max_bytes: int = MAX_BYTES, digest: Digest | None = None) -> Volume:
    """The image in a file; integer voxels keep their type, all others become 32-bit floats.

    The bytes of the file are added to `digest`, of NIfTI in the same pass in which they are read.

    Raises DamagedFile where the file is cut off, corrupt or larger than `max_bytes`, UnsupportedInput where it holds
    something else than one volume of finite grey values or one picture, or its axes are sheared.
    """
    path = Path(path)
    array, geometry = _format(path).read(path, max_bytes, digest)
    _require_orthogonal(path, geometry)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused
            array = array.astype(np.float32, copy=False)
        require_finite(array, str(path))
    return Volume(array, geometry)


def read_label_map(
    path: str | Path, labels: Labels | None = None, ignore: int | None = None, *, max_bytes: int = MAX_BYTES
) -> LabelMap:
    """The label map in a file, 16-bit (32-bit where a label needs it).

    Voxels of value `ignore` become IGNORE, and so do all slices that `<stem>.slices.json` beside the file does not
    list: {"axis": 0, 1 or 2 of the stored array, "labelled": [slice numbers]}. A slice without any label counts as
    labelled background: nothing is guessed. Without `labels`, each value found is a label called "label <value>".
    Raises LabelError for values that are not whole, negative or not among `labels`.
    """
    path = Path(path)
    array, geometry = _format(path).read_labels(path, max_bytes)
    if array.shape[0] != 1:
        raise UnsupportedInput(f"{path}: labels drawn in colour; save one channel that holds the label's number")
    _require_orthogonal(path, geometry)
    classes = _whole_numbers(array[0], path)
    if ignore is not None:
        classes[classes == ignore] = IGNORE
    _apply_sidecar(classes, path)
    if labels is None:
        found = sorted(int(value) for value in np.unique(classes) if value > 0)
        if not found:
            raise LabelError(f"{path}: no label in it and no label names given; name the labels in dataset.json")
        labels = Labels.of({value: f"label {value}" for value in found})
    require_known(classes, labels, str(path))
    return LabelMap(classes, geometry, labels)


def read_geometry(path: str | Path) -> Geometry:
    """The grid of a scan, from its header alone; the voxels are not verified."""
    path = Path(path)
    return _format(path).geometry(path)


def read_notes(path: str | Path) -> list[str]:
    """What is legal in a file's header, yet worth telling, a sentence each."""
    path = Path(path)
    return _format(path).notes(path)


def write_label_map(path: str | Path, label_map: LabelMap) -> None:
    """Writes a label map on its grid, in the smallest unsigned type that holds its values (signed, if some are IGNORE).

    The file is there completely or not at all, and equal label maps give equal bytes.
    """
    array = label_map.array
    smallest = np.result_type(np.min_scalar_type(int(array.max())), np.min_scalar_type(min(int(array.min()), 0)))
    _write(Path(path), array.astype(smallest)[None], label_map.geometry)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Writes an image on its grid with the voxels' own type; the file is there completely or not at all."""
    array = volume.array
    if array.dtype.kind == "b" or array.dtype == np.float16:  # types no medical format has
        array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
    _write(Path(path), array, volume.geometry)


def stem(path: str | Path) -> str:
    """The file's name without its suffix, be it a double one: 'liver_1' of 'liver_1.nii.gz'."""
    name = Path(path).name
    return name[: -len(suffix)] if (suffix := _suffix(name)) else Path(path).stem


def is_scan(path: Path) -> bool:
    """Whether a file's name says that it can be read here; hidden files are none."""
    return not path.name.startswith(".") and bool(_suffix(path.name)) and path.is_file()


def require_known(classes: NDArray[Any], labels: Labels, what: str) -> None:
    """Raises LabelError, with counts and slices, where a voxel holds neither 0, IGNORE nor a value of `labels`."""
    unknown = [int(v) for v in np.unique(classes) if v not in (0, IGNORE, *labels.values)]
    if unknown:
        found = "; ".join(_where(classes, value) for value in unknown[:5])
        more = f"; and {len(unknown) - 5} more values" if len(unknown) > 5 else ""
        raise LabelError(
            f"{what}: values that are no label: {found}{more}. Known are 0 and {labels.as_dict()}; "
            "name them among the labels or correct the file"
        )


@dataclass(frozen=True)
class _Format:
    """How files of one kind are read and written; arrays are (channels, i, j, k)."""

    read: Callable[[Path, int, Digest | None], tuple[NDArray[Any], Geometry]]
    read_labels: Callable[[Path, int], tuple[NDArray[Any], Geometry]]
    geometry: Callable[[Path], Geometry]
    write: Callable[[Path, NDArray[Any], Geometry], None]
    notes: Callable[[Path], list[str]] = lambda _: []


def _after_digest(
    read: Callable[[Path, int], tuple[NDArray[Any], Geometry]],
) -> Callable[[Path, int, Digest | None], tuple[NDArray[Any], Geometry]]:
    """A reader whose library opens the file itself, so that a digest takes a pass of its own before."""

    def digested(path: Path, max_bytes: int, digest: Digest | None) -> tuple[NDArray[Any], Geometry]:
        if digest:
            digest.add_file(path)
        return read(path, max_bytes)

    return digested


_NIFTI = _Format(read_nifti, read_nifti, nifti_geometry, write_nifti, nifti_notes)
_ITK = _Format(_after_digest(read_itk), read_itk, itk_geometry, write_itk)
_PICTURE = _Format(_after_digest(read_picture), read_label_picture, picture_geometry, write_picture)
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
"""What the names of readable files end in."""


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _format(path: Path) -> _Format:
    if not (suffix := _suffix(path.name)):
        raise UnsupportedInput(f"{path}: unknown kind of file; handful reads {', '.join(SUFFIXES)}")
    return _FORMATS[suffix]


def _require_orthogonal(path: Path, geometry: Geometry) -> None:
    """An oblique grid is fine; axes that are not at right angles make distances and slices lie."""
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
            f"{path}: {int(off.sum())} voxels are no whole label numbers, for example {values}; "
            "threshold the map, or resample it by nearest neighbour"
        )
    lowest, highest = int(whole.min()), int(whole.max())
    if lowest < IGNORE or highest >= 2**31:
        wrong = lowest if lowest < IGNORE else highest
        raise LabelError(
            f"{path}: label value {_where(whole, wrong)}; labels are whole numbers from 0 up, {IGNORE} is unlabelled"
        )
    return whole.astype(np.int16 if highest < 2**15 else np.int32)


def _where(classes: NDArray[Any], value: int) -> str:
    found = classes == value
    slices = np.flatnonzero(found.any(axis=(0, 1)))
    shown = ", ".join(str(index) for index in slices[:5]) + (", ..." if len(slices) > 5 else "")
    return f"{value} in {int(found.sum())} voxels, slices {shown} of the last axis"


def _apply_sidecar(classes: NDArray[Any], path: Path) -> None:
    sidecar = path.with_name(f"{stem(path)}.slices.json")
    if not sidecar.exists():
        return
    try:
        content = json.loads(sidecar.read_text("utf-8"))
        axis, labelled = content["axis"], content["labelled"]
        valid = set(content) == {"axis", "labelled"} and axis in (0, 1, 2) and isinstance(labelled, list)
        valid = valid and all(type(index) is int and 0 <= index < classes.shape[axis] for index in labelled)
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        form = '{"axis": 0, 1 or 2, "labelled": [slice numbers]}'
        raise InputError(f"{sidecar}: must be {form} on a {classes.shape} grid; correct it")
    unlabelled = np.ones(classes.shape[axis], dtype=bool)
    unlabelled[labelled] = False
    np.moveaxis(classes, axis, 0)[unlabelled] = IGNORE


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    kind = _format(path)
    if path.suffix.lower() in (".mhd", ".nhdr"):
        raise UnsupportedInput(f"{path}: two files cannot be replaced at once; write .mha or .nrrd")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    with replacing(path) as temporary:
        kind.write(temporary, array, geometry)
