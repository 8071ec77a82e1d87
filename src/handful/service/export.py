"""Everything that was made, in one archive to take away."""

from __future__ import annotations

import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from handful.checkpoint.model import SavedModel, open_model
from handful.data.cases import Case
from handful.data.dicom.segmentation import Maker, SegmentationStyle, write_segmentation
from handful.data.files import read_label_map, write_label_map
from handful.data.nnunet import export_nnunet
from handful.data.volume import IGNORE
from handful.errors import HandfulError, InputError
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import replacing, write_atomically
from handful.service.annotation import as_in_files
from handful.service.workspace import Workspace

Form = Literal["nifti", "nnunet", "dicom-seg", "report"]
_ONE_AT_A_TIME = threading.Lock()
"""Exports share folders, which each of them empties first."""


def exported(workspace: Workspace, form: Form) -> Path:
    """An archive of the label maps of all cases, of a data set for nnU-Net, or of the report of the review.

    "dicom-seg" has one DICOM segmentation per case that is a DICOM series. There and in "nnunet", `left_out.txt` has
    the reason for each case that is left out. Raises InputError if there is nothing to export.
    """
    target = workspace.own / "exports" / f"handful-{form}.zip"
    target.parent.mkdir(exist_ok=True)
    with _ONE_AT_A_TIME, replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        count = 0
        for name, file in _files(workspace, form):
            archive.write(file, name)
            count += 1
        if not count:
            raise InputError("there is nothing to export yet; label or segment some cases first")
    return target


def _files(workspace: Workspace, form: Form) -> Iterator[tuple[str, Path]]:
    if form == "report":
        for file in sorted(workspace.review.rglob("*")):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(workspace.review).parts):
                yield f"report/{file.relative_to(workspace.review)}", file
        return
    if form == "dicom-seg":
        yield from _dicom_segmentations(workspace)
        return
    if form == "nnunet":
        yield from _nnunet(workspace)
        return
    yield from _label_maps(workspace)


def _nnunet(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """A data set for nnU-Net, and the reasons why cases are left out."""
    folder, failures = workspace.own / "exports" / "nnunet", list[Failure]()
    written = export_nnunet(workspace.support(failures), folder, cohort=workspace.cohort(), overwrite=True)
    for file in sorted(written.folder.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), file
    left_out = [f"{one.case}: {one.reason}" for one in failures]
    left_out += [f"{one.file}: {one.reason}" for one in written.left_out]
    if left_out:
        yield "left_out.txt", _listed(left_out, workspace.own / "exports" / "left_out.txt")


def _listed(left_out: list[str], file: Path) -> Path:
    """The file with these lines."""
    write_atomically(file, "\n".join([*left_out, ""]).encode())
    return file


def _label_maps(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """The label map of each case with its list of labelled slices, all with the values that dataset.json states."""
    folder = _emptied(workspace.own / "exports" / "labels")
    for case in workspace.cohort().cases:
        file = workspace.result(case)
        if file is None:
            continue
        yield f"labels/{file.name}", _with_background(workspace, case, file, folder)
        sidecar = file.with_name(f"{case.name}.slices.json")
        if sidecar.is_file():
            yield f"labels/{sidecar.name}", sidecar
    if (workspace.folder / "dataset.json").is_file():
        yield "dataset.json", workspace.folder / "dataset.json"


def _with_background(workspace: Workspace, case: Case, file: Path, folder: Path) -> Path:
    """The result of a case; a segmentation has background 0, and is written again if the cohort has another one."""
    label_map = None if case.reference is not None or case.background == 0 else workspace.read_result(case)
    if label_map is None:
        return file
    write_label_map(folder / file.name, as_in_files(label_map, case))
    return folder / file.name


def _emptied(folder: Path) -> Path:
    """The folder, without anything in it."""
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def _dicom_segmentations(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """A DICOM segmentation of each series with a result, and the reasons why others have none."""
    folder = _emptied(workspace.own / "exports" / "dicom-seg")
    model = open_model(workspace.model) if workspace.has_model else None
    left_out = []
    for case in workspace.cohort().cases:
        try:
            _write_segmentation(workspace, case, model, folder / f"{case.name}.dcm")
            yield f"segmentations/{case.name}.dcm", folder / f"{case.name}.dcm"
        except HandfulError as error:
            left_out.append(f"{case.name}: {error}")
    if left_out and any(folder.iterdir()):
        yield "segmentations/left_out.txt", _listed(left_out, folder / "left_out.txt")
    elif left_out:
        raise InputError(f"no case can be exported as DICOM; {left_out[0]}")


def _write_segmentation(workspace: Workspace, case: Case, model: SavedModel | None, out: Path) -> None:
    """Raises InputError for a case that is no DICOM series, or without labels of all its slices."""
    result, labels = workspace.result(case), workspace.labels()
    if not isinstance(case.image, Path) or not case.is_dicom:
        raise InputError("its scan is not DICOM; export label maps instead")
    if result is None or labels is None:
        raise InputError("it is neither labelled nor segmented")
    by_hand = case.reference is not None
    label_map = case.read_reference() if by_hand else read_label_map(result, labels)
    assert label_map is not None
    if (label_map.array == IGNORE).any():
        raise InputError("only some of its slices are labelled, which DICOM cannot state; label the others")
    maker = Maker() if by_hand else _maker(workspace.model_of(case, result), model)
    write_segmentation(out, label_map, case.image, case.choice, SegmentationStyle(maker=maker))


def _maker(made_by: str | None, model: SavedModel | None) -> Maker:
    """What made a segmentation, by the SHA-256 of its model; the method is known of the present model only."""
    if model is not None and model.sha256 == made_by:
        return Maker(model.record.method, model.sha256)
    return Maker("", made_by or "")
