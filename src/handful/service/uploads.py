"""Scans that somebody drops onto the page: checked, then moved into `images/`."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from handful.data.dicom.sources import DICOM_SUFFIXES
from handful.data.files import SUFFIXES, read_volume, stem
from handful.errors import InputError
from handful.jobs.atomic import replacing
from handful.service.workspace import Workspace, id_of

SINGLE = tuple(suffix for suffix in SUFFIXES if suffix not in (".mhd", ".nhdr"))
"""Formats of one file."""


def store_scan(workspace: Workspace, name: str, content: BinaryIO) -> str:
    """Keep a scan as a case of the cohort; returns its id. It is read first, so that nothing else gets there.

    Raises InputError for a name that is none or is there already, and the errors of `read_volume`; also for a file that
    is no case by itself, such as the first of two sequences, which is kept.
    """
    file = workspace.folder / "images" / safe_name(name)
    if any(stem(other) == stem(file) for other in file.parent.iterdir()):
        raise InputError(f"a case {stem(file)!r} is there already; rename the file")
    with replacing(file) as temporary:
        with temporary.open("wb") as target:
            shutil.copyfileobj(content, target, 2**20)
        read_volume(temporary)
    cohort = workspace.cohort()
    for case in cohort.cases:
        if file in case.files:
            return id_of(case)
    reason = next((one.reason for one in cohort.left_out if PurePath(one.file).name == file.name), "it is not read")
    raise InputError(f"{file.name} was added, but is no case yet: {reason}")


def safe_name(name: str) -> str:
    """The last part of a path of any system, without what file systems and terminals make something else of."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    plain = unicodedata.normalize("NFC", last).strip()
    if not plain or plain.startswith(".") or not all(char.isprintable() and char not in '<>:"/\\|?*' for char in plain):
        raise InputError('a scan needs a plain file name, without < > : " / \\ | ? * and not hidden; rename the file')
    if len(plain.encode()) > 200:
        raise InputError("the file name is longer than 200 bytes; rename the file")
    if plain.lower().endswith(DICOM_SUFFIXES):
        raise InputError(f"{plain!r} cannot be added here; put the folder or archive of a DICOM series into images/")
    if not plain.lower().endswith(SINGLE):
        raise InputError(f"{plain!r} is of no known format; add files ending in {', '.join(SINGLE)}")
    return plain
