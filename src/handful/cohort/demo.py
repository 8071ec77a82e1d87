"""A synthetic cohort on disk, for the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from handful.data.files import write_label_map, write_volume
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError
from handful.jobs.atomic import write_json
from handful.jobs.files import checked_path
from handful.synthesis.episodes import phantom_cohort

MARK = "demo.json"
"""File in a folder of the demo, whose contents the next demo may replace."""


def claim_folder(out: Path, parts: Sequence[str]) -> None:
    """Mark `out` as a folder of the demo, before anything is written.

    Raises InputError if it contains one of `parts` that no demo has written.
    """
    occupied = [part for part in parts if (checked_path(out) / part).exists()]
    if occupied and not (out / MARK).is_file():
        raise InputError(f"{out} contains {', '.join(occupied)}, which no demo has written; name a new folder with -o")
    write_json(out / MARK, {"parts": list(parts)})


def write_phantom_cohort(folder: Path, cases: int = 8, seed: int = 0) -> Path:
    """Write `images/`, `labels/` and `dataset.json` of synthetic scans, all labelled; returns `folder`."""
    for part in ("images", "labels"):
        (checked_path(folder) / part).mkdir(parents=True, exist_ok=True)
    names: dict[int, str] = {}
    for phantom in phantom_cohort(cases, seed):
        names = phantom.names
        geometry = Geometry(phantom.image.shape, phantom.affine)
        write_volume(folder / "images" / f"{phantom.name}.nii.gz", Volume(phantom.image[None], geometry))
        label_map = LabelMap(phantom.labels, geometry, Labels.of(names))
        write_label_map(folder / "labels" / f"{phantom.name}.nii.gz", label_map)
    labels = {"0": "background"} | {str(value): name for value, name in names.items()}
    content = {"name": "phantoms", "description": "synthetic scans, no patient data", "labels": labels}
    write_json(folder / "dataset.json", content)
    return folder
