"""The folder that a service works on, checked before anything slow is loaded."""

from __future__ import annotations

from pathlib import Path

from handful.errors import InputError
from handful.jobs.files import checked_path


def require_cohort_folder(folder: Path) -> None:
    """Raise InputError unless a folder has `images/` or is empty."""
    if not checked_path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give a cohort folder, with its scans in images/")
    if not (folder / "images").is_dir() and any(one for one in folder.iterdir() if not one.name.startswith(".")):
        raise InputError(f"{folder}: no folder images/; move the scans into {folder / 'images'}")
