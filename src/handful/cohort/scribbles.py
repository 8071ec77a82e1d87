"""A cohort of simulated scribbles, written as a folder that `fit` reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from handful.cohort.case_jobs import label_map_name
from handful.data.cases import HEADERS, Case
from handful.data.files import write_label_map, write_volume
from handful.data.formats import stem
from handful.data.scribbles import WIDTH, scribbled
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers_of, replacing_folder, write_json
from handful.jobs.files import checked_path
from handful.jobs.progress import Report, silent

UNLABELLED = 255
"""Value of unlabelled voxels in the files; where labels have values as large, the next one after these."""
NOTE = "scribbles.json"


@dataclass(frozen=True)
class WrittenScribbles:
    """What was written."""

    cases: tuple[str, ...]
    labelled: float
    """Share of the voxels that a stroke covers."""
    ignore: int
    """Value of all others in the files."""
    failures: tuple[Failure, ...]


def write_scribbles(
    cases: Sequence[Case],
    labels: Labels,
    out: Path,
    seed: int = 0,
    width: int = WIDTH,
    overwrite: bool = False,
    report: Report = silent,
    name: str = "cohort",
) -> WrittenScribbles:
    """Write scans and simulated scribbles of these cases into `out`, completely or not at all.

    A case that cannot be read or has no reference is listed as a failure. `name` is that of the cohort.
    Raises InputError if `out` exists, unless it is an earlier export and `overwrite` is set, or if no case is left.
    """
    _require_new(out, overwrite)
    remove_leftovers_of(out)
    ignore = max(UNLABELLED, max(labels.values) + 1)
    written: dict[str, tuple[int, int]] = {}
    failures: list[Failure] = []
    with replacing_folder(out) as fresh:
        for part in ("images", "labels"):
            (fresh / part).mkdir()
        for number, case in enumerate(cases, start=1):
            try:
                written[case.name] = _write_case(case, ignore, fresh, seed, width)
            except Exception as error:  # any error concerns this case only
                failures.append(Failure.of(case, error))
            report(number, len(cases), case.name)
        if not written:
            raise InputError(f"no case has a reference to make scribbles from: {failures[0].reason}")
        strokes, voxels = (sum(counts) for counts in zip(*written.values(), strict=True))
        chosen = [case for case in cases if case.name in written]
        write_json(fresh / "dataset.json", _described(chosen, labels, ignore, name))
        write_json(fresh / NOTE, {"simulated": True, "seed": seed, "width": width, "labelled": strokes / voxels})
    return WrittenScribbles(tuple(written), strokes / voxels, ignore, tuple(failures))


def _require_new(out: Path, overwrite: bool) -> None:
    if checked_path(out).exists() and not (overwrite and (out / NOTE).is_file()):
        remedy = "or add --overwrite to replace it" if (out / NOTE).is_file() else "handful did not write it"
        raise InputError(f"{out} exists; name a new folder ({remedy})")


def _write_case(case: Case, ignore: int, folder: Path, seed: int, width: int) -> tuple[int, int]:
    """The scan, and its strokes: the labelled voxels, and all."""
    strokes = scribbled(case, seed, width).reference
    assert isinstance(strokes, LabelMap)
    array = np.where(strokes.array == IGNORE, ignore, strokes.array)
    name = label_map_name(case)
    _write_scan(case, folder / "images")
    write_label_map(folder / "labels" / name, replace(strokes, array=array))
    return int(np.count_nonzero(strokes.array != IGNORE)), strokes.array.size


def _write_scan(case: Case, folder: Path) -> None:
    """The files of a scan under the name of its case; NIfTI if they are DICOM, or it is in memory or in two files."""
    if case.files and not case.is_dicom and not any(file.suffix.lower() in HEADERS for file in case.files):
        for name, file in zip(_names(case, len(case.files)), case.files, strict=True):
            shutil.copyfile(file, folder / f"{name}{file.name[len(stem(file)) :]}")
        return
    volume = case.read_image()
    parts = volume.array[:, None] if volume.sequences else volume.array[None]
    for name, array in zip(_names(case, len(parts)), parts, strict=True):
        write_volume(folder / f"{name}.nii.gz", Volume(array, volume.geometry))


def _names(case: Case, count: int) -> list[str]:
    """The names of the files of a scan, with numbers if there are several."""
    return [case.name] if count == 1 else [f"{case.name}_{number:04d}" for number in range(count)]


def _described(cases: Sequence[Case], labels: Labels, ignore: int, name: str) -> dict[str, Any]:
    """The content of dataset.json."""
    patients = {case.name: case.patient for case in cases if case.patient is not None}
    names = cases[0].read_image().sequences
    found: dict[str, Any] = {
        "name": f"{name}, simulated scribbles",
        "labels": {"0": "background", **{str(value): name for value, name in labels.as_dict().items()}},
        "ignore": ignore,
    }
    if patients:
        found["patient"] = patients
    if names:
        found["channel_names"] = {str(place): name for place, name in enumerate(names)}
    elif cases[0].modality:
        found["modality"] = cases[0].modality
    return found
