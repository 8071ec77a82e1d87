"""Export of a support set as a raw data set of nnU-Net v2, and import of nnU-Net's predictions.

In nnU-Net's format (see "dataset format" and "ignore label" in its documentation), label values are 1, 2, 3, ...
without a gap. Unlabelled voxels have the next value, called "ignore".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.cases import Case, Cohort, LeftOut
from handful.data.files import read_label_map, write_label_map, write_volume
from handful.data.inventory import list_folder, problem_of_name
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError, UnsupportedInput, reason_of
from handful.jobs.atomic import remove_leftovers_of, replacing_folder, write_json
from handful.jobs.digests import digest_of_file
from handful.jobs.files import checked_path
from handful.jobs.notes import NOTES

RECORD = "handful.json"
"""File with what the import needs to know; nnU-Net ignores it."""
ENDING = ".nii.gz"
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class NnunetDataset:
    """A raw data set that `export_nnunet` has written."""

    folder: Path
    training: tuple[str, ...]
    """Names of the cases in imagesTr."""
    tests: tuple[str, ...]
    """Names of the cases in imagesTs."""
    values: dict[int, int]
    """{value in the data set: value in the cohort}."""
    ignore: int | None
    """Value of unlabelled voxels in the data set; None if all voxels are labelled."""
    left_out: tuple[LeftOut, ...] = ()
    """Cases whose scans could not be read for imagesTs."""


def export_nnunet(
    support: SupportSet,
    out: Path,
    number: int = 501,
    name: str = "handful",
    cohort: Cohort | None = None,
    overwrite: bool = False,
) -> NnunetDataset:
    """Write the support set as training cases into `out`/Dataset501_handful, completely or not at all.

    `out` is the folder that nnU-Net calls nnUNet_raw. Voxels and grids are those of the scans; colours and sequences
    become channels. The cases of `cohort` whose patients are not in the support set go to imagesTs. Raises InputError
    if the folder exists, unless it is an earlier export and `overwrite` is set; SettingsError for an invalid number or
    name.
    """
    if not 1 <= number <= 999 or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SettingsError(
            f"Dataset {number} {name!r}: the number must be 1 to 999, the name letters, digits, _ and -"
        )
    folder = out / f"Dataset{number:03d}_{name}"
    if checked_path(folder).exists() and not (overwrite and (folder / RECORD).is_file()):
        remedy = "or add --overwrite to replace it" if (folder / RECORD).is_file() else "handful did not write it"
        raise InputError(f"{folder} exists; choose another number or name ({remedy})")
    remove_leftovers_of(folder)
    names = _label_names(support.labels)
    ignore = len(names) + 1 if any(_has_unlabelled(case) for case in support.cases) else None
    values = {place + 1: value for place, value in enumerate(support.labels.values)}
    tests = [] if cohort is None else _of_other_patients(cohort, support)
    everyone = {case.name for case in (*support.cases, *(cohort.cases if cohort else ()))}
    with replacing_folder(folder) as fresh:
        scans = [_write_image(case, fresh / "imagesTr") for case in support.cases]
        for case in support.cases:
            _write_labels(case, values, ignore, fresh / "labelsTr")
        left_out: list[LeftOut] = []
        for case in tests:
            try:
                scans.append(_write_image(case, fresh / "imagesTs"))
            except Exception as error:  # any error concerns this case only
                left_out.append(LeftOut(case.name, reason_of(error)))
        tests = [case for case in tests if case.name not in {one.file for one in left_out}]
        write_json(
            fresh / "dataset.json",
            {
                "channel_names": _channel_names(scans),
                "labels": {"background": 0, **names} | ({} if ignore is None else {"ignore": ignore}),
                "numTraining": len(support.cases),
                "file_ending": ENDING,
                "name": name,
            },
        )
        excluded = sorted(everyone - {case.name for case in tests})
        write_json(fresh / RECORD, {"values": values, "labels": support.labels.as_dict(), "not_to_be_scored": excluded})
    training = tuple(case.name for case in support.cases)
    return NnunetDataset(folder, training, tuple(case.name for case in tests), values, ignore, tuple(left_out))


def import_nnunet(predictions: Path, dataset: Path, out: Path) -> tuple[list[str], tuple[LeftOut, ...]]:
    """Write nnU-Net's predictions into the new folder `out` with the cohort's label values.

    Returns the names of the cases, and the files that cannot be read, with the reason.

    `dataset` is the folder that `export_nnunet` wrote. The names of nnU-Net's training cases are stored in `out`, so
    that `handful evaluate` excludes them. Values that are not in the data set are such a reason, too. If `out` has the
    same files already, it stays as it is. Raises InputError if it has others, and if no file can be read.
    """
    record = _read_record(dataset)
    if not checked_path(predictions).is_dir():
        raise InputError(f"{predictions}: no such folder; name the output folder of nnUNetv2_predict (its -o)")
    occupied = checked_path(out).exists() and (not out.is_dir() or any(out.iterdir()))
    if occupied and not (out / NOTES).is_dir():
        raise InputError(f"{out} exists and is not empty; name a new folder")
    remove_leftovers_of(out)
    found = list_folder(predictions, predictions)
    if not found.scans:
        raise InputError(f"{predictions}: contains no label map; name the output folder of nnUNetv2_predict (its -o)")
    values = {int(here): int(value) for here, value in record["values"].items()}
    labels = Labels.of({int(value): name for value, name in record["labels"].items()})
    nnunet_labels = Labels(tuple(values), labels.names)
    with replacing_folder(out) as fresh:
        for path in found.scans.values():
            try:
                prediction = read_label_map(path, nnunet_labels)
            except Exception as error:  # any error concerns this file only
                found.leave_out(path, reason_of(error))
                continue
            array = _mapped(prediction.array, values)
            write_label_map(fresh / path.name, LabelMap(array, prediction.geometry, labels))
        unread = {one.file for one in found.left_out}
        names = [name for name, path in found.scans.items() if path.name not in unread]
        if not names:
            raise InputError(f"{predictions}: {found.left_out[0].file}: {found.left_out[0].reason}")
        for case in record["not_to_be_scored"]:
            write_json(fresh / NOTES / f"{case}.json", {"output": None, "fitted_on": True})
        if occupied and _digests(fresh) != _digests(out):
            raise InputError(f"{out} exists and is not empty; name a new folder")
    return names, tuple(found.left_out)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its name relative to it."""
    return {str(path.relative_to(folder)): digest_of_file(path) for path in folder.rglob("*") if path.is_file()}


def _label_names(labels: Labels) -> dict[str, int]:
    """{name: value in the data set}, as in nnU-Net's dataset.json."""
    names = {name: place + 1 for place, name in enumerate(labels.names)}
    taken = sorted({"background", "ignore"} & names.keys())
    if taken or len(names) < len(labels):
        raise LabelError(
            f"labels {labels.as_dict()}: for nnU-Net, each label needs its own name other than 'background' and "
            "'ignore'; rename them in dataset.json"
        )
    return names


def _has_unlabelled(case: Case) -> bool:
    reference = case.read_reference()
    return reference is not None and bool((reference.array == IGNORE).any())


def _of_other_patients(cohort: Cohort, support: SupportSet) -> list[Case]:
    names = {case.name for case in support.cases}
    patients = {case.patient for case in support.cases if case.patient is not None}
    return [case for case in cohort.cases if case.name not in names and case.patient not in patients]


@dataclass(frozen=True)
class _Scan:
    """A scan that was written."""

    case: str
    channels: int
    modality: str | None
    sequences: tuple[str, ...]


def _write_image(case: Case, folder: Path) -> _Scan:
    """Write each channel into its own file."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = case.read_image()
    for channel, array in enumerate(volume.array):
        write_volume(folder / f"{case.name}_{channel:04d}{ENDING}", Volume(array[None], volume.geometry))
    return _Scan(case.name, len(volume.array), volume.modality, volume.sequences)


def _write_labels(case: Case, values: dict[int, int], ignore: int | None, folder: Path) -> None:
    """Write the reference with the data set's values; labels that the support set leaves out become background."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = case.read_reference()
    assert reference is not None, "a support set has references"
    array = _mapped(reference.array, {value: here for here, value in values.items()})
    if ignore is not None:
        array[reference.array == IGNORE] = ignore
    write_label_map(folder / f"{case.name}{ENDING}", replace(reference, array=array))


def _mapped(array: NDArray[Any], values: dict[int, int]) -> NDArray[Any]:
    """The array with its values replaced as in `values`; 0 for all other values."""
    out = np.zeros(array.shape, dtype=np.int32)
    for before, after in values.items():
        out[array == before] = after
    return out


def _channel_names(scans: Sequence[_Scan]) -> dict[str, str]:
    """Channel names: nnU-Net normalises "CT" by the grey values of all labels, other channels scan by scan."""
    first = scans[0]
    if other := [scan for scan in scans if scan.sequences != first.sequences]:
        here, there = (", ".join(scan.sequences) or "one channel" for scan in (other[0], first))
        raise UnsupportedInput(
            f"case {other[0].case!r} has {here}, {first.case!r} has {there}; nnU-Net needs the same sequences in every "
            "case; put scans with other sequences into a cohort of their own"
        )
    if first.sequences:
        return {str(number): name for number, name in enumerate(first.sequences)}
    if odd := [scan for scan in scans if scan.channels != first.channels]:
        raise UnsupportedInput(
            f"case {odd[0].case!r} has {odd[0].channels} channel(s), {first.case!r} has {first.channels}; "
            "nnU-Net needs the same channels in every case; put grey and colour scans into separate cohorts"
        )
    if first.channels == len(COLOURS):
        return {str(number): colour for number, colour in enumerate(COLOURS)}
    modalities = {scan.modality or "grey" for scan in scans}
    if all(modality.upper().startswith("CT") for modality in modalities):
        return {"0": "CT"}
    return {"0": modalities.pop() if len(modalities) == 1 else "grey"}


def _read_record(dataset: Path) -> dict[str, Any]:
    path = dataset / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
        valid = _is_record(record)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; name a data set from 'handful export nnunet'") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise InputError(f"{path} was changed after it was written; export again with --overwrite")
    checked: dict[str, Any] = record
    return checked


def _is_record(record: Any) -> bool:
    """Whether this is as `export_nnunet` wrote it; its names become those of files. May raise what JSON can cause."""
    values, labels, names = record["values"], record["labels"], record["not_to_be_scored"]
    return (
        all(int(here) > 0 and type(value) is int for here, value in values.items())
        and all(int(value) in values.values() and isinstance(name, str) for value, name in labels.items())
        and all(isinstance(name, str) and problem_of_name(name) is None for name in names)
    )
