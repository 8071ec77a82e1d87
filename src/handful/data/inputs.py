"""Protection of scans and hand-made label maps: no output replaces a file of the input."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from handful.data.cases import Case
from handful.data.formats import SUFFIXES
from handful.data.inventory import SIDECAR
from handful.errors import InputError
from handful.jobs.files import checked_path

_FOLDERS = {"images": "images", "labels": "images", "imagesTr": "imagesTr", "labelsTr": "imagesTr"}
"""Folders of a cohort, and the folder next to them that shows that they are."""


@dataclass(frozen=True)
class Inputs:
    """The files that a command reads."""

    files: frozenset[Path]
    """With all links resolved."""

    @classmethod
    def of(cls, cases: Iterable[Case], files: Collection[str | Path]) -> Inputs:
        """The images and references of the cases, and further files, such as `Cohort.files`."""
        parts = [part for case in cases for part in (*case.files, case.reference)]
        paths = [*map(Path, files), *(part for part in parts if isinstance(part, Path))]
        return cls(frozenset(map(_resolved, paths)))

    def among(self, outputs: Iterable[Path]) -> Inputs:
        """The part of the files that decides whether these outputs may be written."""
        paths = (output.resolve() for output in outputs)
        return Inputs(frozenset(part for path in paths for part in (path, *path.parents) if part in self.files))

    def require_not_among(self, output: Path) -> None:
        """Raise InputError if a file to be written is a file of the input, or in a folder of DICOM that is a scan."""
        path = checked_path(output).resolve()
        if path in self.files or (path.exists() and not self.files.isdisjoint(path.parents)):
            raise InputError(
                f"{output.name} in {output.parent} is a scan or a label map of the input, which is never replaced; "
                "name another folder for the output"
            )


def _resolved(path: Path) -> Path:
    """The path with all links resolved; as it is if it cannot be looked up, which is an error when it is read."""
    try:
        return checked_path(path).resolve()
    except InputError:
        return path


def is_in_cohort(path: Path) -> bool:
    """Whether a path is directly in a folder of scans or label maps of a cohort, such as labels/ next to images/."""
    folder = checked_path(path).resolve().parent
    return folder.name in _FOLDERS and (folder.parent / _FOLDERS[folder.name]).is_dir()


def require_no_input(output: Path) -> None:
    """Raise InputError if a table or report would replace a scan, a label map, dataset.json or a list of slices."""
    if checked_path(output).exists() and (
        output.name.lower().endswith((*SUFFIXES, SIDECAR)) or output.name == "dataset.json"
    ):
        raise InputError(f"{output} is no report but a file of a cohort, which is never replaced; name another file")
