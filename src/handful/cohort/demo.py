"""A synthetic cohort on disk, for the demo."""

from __future__ import annotations

from pathlib import Path

from handful.data.files import write_label_map, write_volume
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.jobs.atomic import write_json
from handful.jobs.files import checked_path
from handful.synthesis.episodes import phantom_cohort


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
