"""Scans, label maps and cohorts on disk; cohorts may have one of several folder layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handful.data.cases import Case, Cohort
from handful.data.dicom.series import SeriesChoice, dicom_patient, dicom_series_of
from handful.data.dicom.sources import DICOM_SUFFIXES, has_dicom_start, is_dicom
from handful.data.formats import (
    SUFFIXES,
    is_label_map,
    is_scan,
    labels_in,
    read_label_map,
    read_volume,
    stem,
    write_label_map,
    write_volume,
)
from handful.data.volume import Labels
from handful.errors import HandfulError, InputError, UnsupportedInput

__all__ = [
    "SUFFIXES",
    "References",
    "find_references",
    "read_cohort",
    "read_label_map",
    "read_volume",
    "stem",
    "write_label_map",
    "write_volume",
]


def read_cohort(
    folder: str | Path, *, images_only: bool = False, series: str | None = None, slice_tolerance: float | None = None
) -> Cohort:
    """The cases in a folder, sorted by name.

    Supported layouts: `images/` and `labels/` with files of equal stem; nnU-Net's raw folders (`imagesTr/`, one
    channel); the Medical Segmentation Decathlon's `dataset.json`; a folder of images; a single image file. Hidden files
    are ignored. An image may be a folder, an archive (.zip) or a file of DICOM; a folder that holds nothing but DICOM
    is one case. A label map may be a DICOM segmentation (DICOM-SEG).

    `dataset.json` may state the label names, the modality, the value of unlabelled voxels ("ignore"), the patients
    ("patient": {case: id}), the DICOM series ("series": {case: number or UID}) and "slice_tolerance" in mm. DICOM cases
    with the same patient ID belong to one patient if no patients are stated. `series` and `slice_tolerance` are those
    of all cases, and go before dataset.json. Without label names, all references are read to find the label values;
    otherwise no voxels are read. `images_only` ignores references. Raises InputError if the folder has no supported
    layout.
    """
    folder = Path(folder)
    if folder.is_file():
        case = Case(stem(folder), folder, choice=SeriesChoice(series, slice_tolerance))
        return Cohort((case,), None, case.name)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such file or folder; check the name")
    facts = _read_facts(folder)
    pairs = _pairs(folder, facts)
    if not pairs:
        raise InputError(
            f"{folder}: no scans in a supported layout: images/ and labels/, nnU-Net raw (imagesTr/, labelsTr/), "
            f"MSD (dataset.json), DICOM files, or files ending in {', '.join(SUFFIXES)} directly in it"
        )
    patients = _patients(facts, pairs)
    choices = _choices(facts, pairs, SeriesChoice(series, slice_tolerance))
    cases = tuple(
        Case(name, image, label, facts.labels, patients.get(name), facts.modality, facts.ignore, choices[name])
        for name, image, label in sorted(pairs)
    )
    if images_only:
        cases = tuple(replace(case, reference=None) for case in cases)
    labels = facts.labels or _scan_labels(cases)
    return Cohort(tuple(_with_labels(case, labels) for case in cases), labels, facts.name)


def is_single_scan(path: Path) -> bool:
    """Whether a path is one scan: a file, or a folder of nothing but DICOM files."""
    if not path.is_dir():
        return path.is_file()
    try:
        cases = read_cohort(path, images_only=True).cases
    except HandfulError:
        return False
    return len(cases) == 1 and cases[0].image == path


def names_file(path: Path) -> bool:
    """Whether a path for output names a file of a known format, not a folder."""
    return not path.is_dir() and path.name.lower().endswith((*SUFFIXES, *DICOM_SUFFIXES))


@dataclass(frozen=True)
class _Facts:
    """The contents of dataset.json that handful uses."""

    file: Path
    name: str
    content: Mapping[str, Any]
    labels: Labels | None
    ignore: int | None
    modality: str | None


_Pair = tuple[str, Path, Path | None]
"""Name, image and label file of a case."""


@dataclass(frozen=True)
class References:
    """A folder of reference label maps, and the meaning of their values."""

    folder: Path
    labels: Labels | None = None
    """None if no dataset.json names them."""
    ignore: int | None = None
    """Value of unlabelled voxels."""
    problem: str | None = None
    """Why the label names are unknown although there is a dataset.json."""


def find_references(folder: Path) -> References:
    """The label maps of a cohort or in a folder of label maps, with the label names from its dataset.json.

    The scans need not be there. If dataset.json cannot be used, only the label names are missing; see `problem`.
    """
    inside = [folder / name for name in ("labels", "labelsTr") if (folder / name).is_dir()]
    maps = inside[0] if inside else folder
    if not (maps.parent / "dataset.json").is_file():
        return References(maps)
    try:
        cohort = read_cohort(maps.parent)
    except HandfulError as error:
        return References(maps, problem=str(error))
    return References(maps, cohort.labels, cohort.cases[0].ignore)


def _read_facts(folder: Path) -> _Facts:
    file = folder / "dataset.json"
    content: Any = {}
    if file.is_file():
        try:
            content = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must be a JSON object, is a {type(content).__name__}; correct it")
    labels, ignore = _read_labels(file, content)
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, dict):
        if len(channels) > 1:
            raise UnsupportedInput(
                f"{file}: {len(channels)} channels ({', '.join(map(str, channels.values()))}), but handful reads one; "
                "copy the images of one channel and their labels into images/ and labels/"
            )
        channels = next(iter(channels.values()), None)
    name = str(content.get("name") or folder.resolve().name)
    return _Facts(file, name, content, labels, ignore, None if channels is None else str(channels))


def _read_labels(file: Path, content: Mapping[str, Any]) -> tuple[Labels | None, int | None]:
    """Label names and the value of unlabelled voxels, from {"0": name} (MSD) or {name: value} (nnU-Net)."""
    ignore, stated = content.get("ignore"), content.get("labels")
    if not (ignore is None or type(ignore) is int) or not (stated is None or isinstance(stated, dict)):
        raise InputError(f'{file}: "labels" must be an object and "ignore" a whole number; correct it')
    if not stated:
        return None, ignore
    by_value = all(str(key).lstrip("-").isdigit() for key in stated)
    items = [(key, name) for key, name in stated.items()] if by_value else [(v, name) for name, v in stated.items()]
    if any(isinstance(value, list) for value, _ in items):
        raise UnsupportedInput(f"{file}: region-based labels are not supported; give each value its own name")
    if not all(type(value) is int or (by_value and isinstance(name, str)) for value, name in items):
        raise InputError(f'{file}: "labels" must be {{"0": "background", "1": name}} or {{name: value}}, is {stated}')
    names = {int(value): str(name) for value, name in items}
    if len(names) < len(items):
        raise InputError(f'{file}: the same value has several names in "labels": {stated}; correct it')
    for value in [value for value, name in names.items() if name == "ignore" and value != 0]:
        ignore = value
    names = {value: name for value, name in names.items() if value > 0 and value != ignore}
    return Labels.of(names) if names else None, ignore


def _pairs(folder: Path, facts: _Facts) -> list[_Pair]:
    if isinstance(facts.content.get("training"), list):
        return [_listed(folder, facts.file, entry) for entry in facts.content["training"] if not _is_hidden(entry)]
    if (folder / "imagesTr").is_dir():
        return _matched(folder / "imagesTr", folder / "labelsTr", channel=True)
    if (folder / "images").is_dir():
        return _matched(folder / "images", folder / "labels", channel=False)
    if images := _images(folder, flat=True):
        return [(name, image, None) for name, image in images.items()]
    return [(folder.resolve().name, folder, None)] if is_dicom(folder) else []


def _matched(images: Path, labels: Path, channel: bool) -> list[_Pair]:
    """Images and labels of equal stem. With `channel`, image names end in nnU-Net's channel number."""
    image_of = _without_channel(images) if channel else _images(images)
    label_of = _by_stem(labels, is_label_map) if labels.is_dir() else {}
    if orphans := sorted(str(label_of[name]) for name in label_of.keys() - image_of.keys()):
        raise InputError(
            f"labels without an image in {images}: {', '.join(orphans)}; add the image or remove the labels"
        )
    return [(name, image, label_of.get(name)) for name, image in image_of.items()]


def _by_stem(folder: Path, wanted: Callable[[Path], bool] = is_scan) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not wanted(path):
            continue
        if (other := files.setdefault(stem(path), path)) != path:
            raise InputError(f"two files for one case: {other} and {path}; remove one of them")
    return files


def _images(folder: Path, flat: bool = False) -> dict[str, Path]:
    """The scans in a folder by name, DICOM among them; a slice of a DICOM series is not taken for a scan.

    A `flat` folder that holds nothing but DICOM files and folders is one scan itself, so there are none in it.
    """
    images = _by_stem(folder)
    dicom = [path for path in sorted(folder.iterdir()) if path not in images.values() and _is_dicom_case(path)]
    files = [path for path in dicom if path.is_file() and path.suffix.lower() != ".zip"]
    if flat:
        archives = [path for path in dicom if path.suffix.lower() == ".zip" and path.is_file()]
        if files and (images or archives):
            raise InputError(
                f"{folder}: {len(files)} DICOM files, such as {files[0].name}, next to other scans; put the files of "
                "each series into a folder of their own"
            )
        dicom = dicom if images or archives else []
    elif slices := dicom_series_of(files):
        raise InputError(
            f"{folder}: {', '.join(path.name for path in slices[:3])} are slices of one DICOM series; put the files of "
            "each series into a folder of their own in it"
        )
    for path in dicom:
        name = path.name if path.is_dir() else stem(path)
        if (other := images.setdefault(name, path)) != path:
            raise InputError(f"two images for one case: {other} and {path}; remove one of them")
    return images


def _is_dicom_case(path: Path) -> bool:
    if path.name.startswith(".") or is_scan(path):
        return False
    return is_dicom(path) if path.is_dir() else path.name.lower().endswith(DICOM_SUFFIXES) or has_dicom_start(path)


def _without_channel(images: Path) -> dict[str, Path]:
    files = {}
    for name, path in _by_stem(images).items():
        case, underscore, channel = name.rpartition("_")
        if not (underscore and len(channel) == 4 and channel.isdigit()):
            raise InputError(f"{path}: nnU-Net image names end in a channel such as _0000; rename it")
        if channel != "0000":
            raise UnsupportedInput(
                f"{path}: a second channel, but handful reads one; copy the images of one channel and their labels "
                "into images/ and labels/"
            )
        files[case] = path
    return files


def _is_hidden(entry: Any) -> bool:
    return isinstance(entry, dict) and Path(str(entry.get("image"))).name.startswith(".")


def _listed(folder: Path, file: Path, entry: Any) -> _Pair:
    """A case as MSD lists it: paths of image and label, relative to the folder."""
    if not (isinstance(entry, dict) and isinstance(entry.get("image"), str)):
        raise InputError(f'{file}: "training" must hold {{"image": path, "label": path}}, got {entry!r}; correct it')
    paths = [Path(entry[part]) for part in ("image", "label") if isinstance(entry.get(part), str)]
    if outside := [path for path in paths if path.is_absolute() or ".." in path.parts]:
        raise InputError(f"{file}: {outside[0]} is outside the folder; list files inside it")
    image, label = folder / paths[0], folder / paths[1] if len(paths) > 1 else None
    if not image.exists():  # nnU-Net v1 lists images without their channel number
        with_channel = image.with_name(image.name.replace(stem(image), f"{stem(image)}_0000", 1))
        image = with_channel if with_channel.exists() else image
    for path in (image, label):
        if path is not None and not path.exists():
            raise InputError(f"{path}: listed in {file.name}, but missing; add the file or remove the entry")
    return stem(paths[0]), image, label


def _patients(facts: _Facts, pairs: list[_Pair]) -> dict[str, str]:
    """The patient of each case by dataset.json; without it, cases of equal DICOM patient ID bear the first one's name.

    So neither an ID nor a digest of it reaches a record.
    """
    stated = _by_case(facts, "patient")
    missing = sorted({name for name, _, _ in pairs} - stated.keys())
    if stated and missing:
        raise InputError(
            f'{facts.file}: no "patient" for {", ".join(missing[:5])}; add them, so that no patient is in both '
            "the labelled and the test cases"
        )
    if stated:
        return {case: str(patient) for case, patient in stated.items()}
    identities = {name: dicom_patient(image) for name, image, _ in sorted(pairs) if _is_dicom_case(image)}
    first: dict[str, str] = {}
    return {name: first.setdefault(identity, name) for name, identity in identities.items() if identity}


def _choices(facts: _Facts, pairs: list[_Pair], chosen: SeriesChoice) -> dict[str, SeriesChoice]:
    """Series and tolerance of each case: those chosen for all, else those of dataset.json."""
    tolerance = chosen.slice_tolerance
    if tolerance is None:
        tolerance = facts.content.get("slice_tolerance")
    if tolerance is not None and not (type(tolerance) in (int, float) and 0 <= tolerance < float("inf")):
        raise InputError(f"slice tolerance {tolerance!r} is not a length in mm; give a number from 0")
    stated = {case: str(series) for case, series in _by_case(facts, "series").items()}
    return {
        name: SeriesChoice(chosen.series or stated.get(name), tolerance) if _is_dicom_case(image) else SeriesChoice()
        for name, image, _ in pairs
    }


def _by_case(facts: _Facts, entry: str) -> dict[str, Any]:
    stated = facts.content.get(entry, {})
    if not isinstance(stated, dict):
        raise InputError(f'{facts.file}: "{entry}" must be {{case: value}}; correct it')
    return stated


def _scan_labels(cases: tuple[Case, ...]) -> Labels | None:
    """The values in the references, for cohorts without label names. A file that cannot be read fails later."""
    references = [case for case in cases if isinstance(case.reference, Path)]
    ignore = references[0].ignore if references else None
    labels, failure = labels_in([case.reference for case in references if isinstance(case.reference, Path)], ignore)
    if failure and labels is None:
        raise failure
    return labels


def _with_labels(case: Case, labels: Labels | None) -> Case:
    return replace(case, labels=labels)
