"""nnU-Net v2 through files: a support set as its raw data set, and its predictions back as handful's label maps.

The format is nnU-Net's own (its documentation, "dataset format" and "ignore label"): label values run 1, 2, 3, ...
without a gap, and what nobody has labelled bears the value after the last one, called "ignore".
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

from handful.data.cases import Case, Cohort
from handful.data.files import read_label_map, stem, write_label_map, write_volume
from handful.data.formats import is_scan
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError, UnsupportedInput
from handful.jobs.atomic import replacing_folder, write_json
from handful.jobs.notes import NOTES

RECORD = "handful.json"
"""What handful keeps in the data set to read predictions back; nnU-Net passes it over."""
ENDING = ".nii.gz"
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class NnunetDataset:
    """A raw data set that was written."""

    folder: Path
    training: tuple[str, ...]
    """Names of the cases in imagesTr."""
    tests: tuple[str, ...]
    """Names of the cases in imagesTs."""
    values: dict[int, int]
    """The value of each label here, by its value in the data set."""
    ignore: int | None
    """Value of unlabelled voxels in the data set; None where all are labelled."""


def export_nnunet(
    support: SupportSet,
    out: Path,
    number: int = 501,
    name: str = "handful",
    cohort: Cohort | None = None,
    overwrite: bool = False,
) -> NnunetDataset:
    """Writes `out`/Dataset501_handful with the support as its training cases, whole or not at all.

    Voxels and grids are the scans' own; colour becomes three channels. The cases of `cohort` whose patients are not in
    the support go to imagesTs. `out` is what nnU-Net calls nnUNet_raw. Raises InputError where the folder exists,
    unless it is an earlier export and may be replaced.
    """
    if not 1 <= number <= 999 or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SettingsError(
            f"Dataset {number} {name!r}: the number must be 1 to 999, the name letters, digits, _ and -"
        )
    folder = out / f"Dataset{number:03d}_{name}"
    if folder.exists() and not (overwrite and (folder / RECORD).is_file()):
        mend = "say --overwrite to replace it" if (folder / RECORD).is_file() else "handful did not make it"
        raise InputError(f"{folder} exists; take another number or name ({mend})")
    names = _label_names(support.labels)
    ignore = len(names) + 1 if any(_has_unlabelled(case) for case in support.cases) else None
    values = {place + 1: value for place, value in enumerate(support.labels.values)}
    tests = [] if cohort is None else _of_other_patients(cohort, support)
    everyone = {case.name for case in (*support.cases, *(cohort.cases if cohort else ()))}
    with replacing_folder(folder) as fresh:
        scans = [_write_image(case, fresh / "imagesTr") for case in support.cases]
        for case in support.cases:
            _write_labels(case, values, ignore, fresh / "labelsTr")
        scans += [_write_image(case, fresh / "imagesTs") for case in tests]
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
        seen = sorted(everyone - {case.name for case in tests})
        write_json(fresh / RECORD, {"values": values, "labels": support.labels.as_dict(), "not_to_be_scored": seen})
    return NnunetDataset(
        folder, tuple(case.name for case in support.cases), tuple(case.name for case in tests), values, ignore
    )


def import_nnunet(predictions: Path, dataset: Path, out: Path) -> list[str]:
    """Writes nnU-Net's predictions into the new folder `out` with the labels' own values; the names of the cases.

    `dataset` is the folder that `export_nnunet` made. The cases nnU-Net had been trained on are noted in `out`, so that
    evaluation leaves them out. Raises LabelError, by file, for values that nnU-Net was not taught.
    """
    record = _read_record(dataset)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder; name the one nnUNetv2_predict wrote (its -o)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; name a new folder")
    files = [path for path in sorted(predictions.iterdir()) if is_scan(path)]
    if not files:
        raise InputError(f"{predictions}: no label map in it; name the folder nnUNetv2_predict wrote (its -o)")
    values = {int(here): int(value) for here, value in record["values"].items()}
    labels = Labels.of({int(value): name for value, name in record["labels"].items()})
    taught = Labels(tuple(values), labels.names)
    with replacing_folder(out) as fresh:
        for path in files:
            said = read_label_map(path, taught)
            write_label_map(fresh / path.name, LabelMap(_mapped(said.array, values), said.geometry, labels))
        for case in record["not_to_be_scored"]:
            write_json(fresh / NOTES / f"{case}.json", {"output": None, "fitted_on": True})
    return [stem(path) for path in files]


def _label_names(labels: Labels) -> dict[str, int]:
    """{name: value in the data set}, as nnU-Net wants it."""
    names = {name: place + 1 for place, name in enumerate(labels.names)}
    taken = sorted({"background", "ignore"} & names.keys())
    if taken or len(names) < len(labels):
        raise LabelError(
            f"labels {labels.as_dict()}: nnU-Net wants a name of its own for each, and 'background' and 'ignore' "
            "for itself; rename them in dataset.json"
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
    """What was written of a scan."""

    case: str
    channels: int
    modality: str | None


def _write_image(case: Case, folder: Path) -> _Scan:
    """Writes each channel into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = case.read_image()
    for channel, array in enumerate(volume.array):
        write_volume(folder / f"{case.name}_{channel:04d}{ENDING}", Volume(array[None], volume.geometry))
    return _Scan(case.name, len(volume.array), volume.modality)


def _write_labels(case: Case, values: dict[int, int], ignore: int | None, folder: Path) -> None:
    """Writes the reference with the data set's values; labels that the support does not ask for are background."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = case.read_reference()
    assert reference is not None, "a support set has references"
    array = _mapped(reference.array, {value: here for here, value in values.items()})
    if ignore is not None:
        array[reference.array == IGNORE] = ignore
    write_label_map(folder / f"{case.name}{ENDING}", replace(reference, array=array))


def _mapped(array: NDArray[Any], values: dict[int, int]) -> NDArray[Any]:
    """The values that stand for those in the array; 0 for all others."""
    out = np.zeros(array.shape, dtype=np.int32)
    for before, after in values.items():
        out[array == before] = after
    return out


def _channel_names(scans: Sequence[_Scan]) -> dict[str, str]:
    """nnU-Net scales a channel called CT by the labels' grey values, and any other by each scan's own."""
    first = scans[0]
    if odd := [scan for scan in scans if scan.channels != first.channels]:
        raise UnsupportedInput(
            f"case {odd[0].case!r} has {odd[0].channels} channel(s), {first.case!r} has {first.channels}; "
            "nnU-Net wants the same ones of every case: keep grey and colour scans in cohorts of their own"
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
        whole = all(isinstance(record[key], kind) for key, kind in _RECORD_KINDS.items())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; name the data set that 'handful export nnunet' wrote") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is not as handful wrote it; export again with --overwrite")
    found: dict[str, Any] = record
    return found


_RECORD_KINDS = {"values": dict, "labels": dict, "not_to_be_scored": list}
