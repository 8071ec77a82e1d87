"""Everything that was made, in one archive to take away."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from handful.cohort.choice import choose_support
from handful.data.nnunet import export_nnunet
from handful.errors import InputError
from handful.jobs.atomic import replacing
from handful.service.workspace import Workspace

Form = Literal["nifti", "nnunet", "report"]


def exported(workspace: Workspace, form: Form) -> Path:
    """An archive of the label maps of all cases, of a data set for nnU-Net, or of the report of the review.

    Raises InputError if there is nothing to export.
    """
    target = workspace.own / "exports" / f"handful-{form}.zip"
    target.parent.mkdir(exist_ok=True)
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
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
    if form == "nnunet":
        folder = workspace.own / "exports" / "nnunet"
        cohort = workspace.cohort()
        export_nnunet(choose_support(cohort), folder, cohort=cohort, overwrite=True)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                yield str(file.relative_to(folder)), file
        return
    for case in workspace.cohort().cases:
        label_map = workspace.result(case)
        if label_map is not None:
            yield f"labels/{label_map.name}", label_map
            sidecar = label_map.with_name(f"{case.name}.slices.json")
            if sidecar.is_file():
                yield f"labels/{sidecar.name}", sidecar
    if (workspace.folder / "dataset.json").is_file():
        yield "dataset.json", workspace.folder / "dataset.json"
