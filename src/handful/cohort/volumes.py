"""The size of each label in each case: volumes.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handful.data.volume import Geometry, LabelMap, Labels
from handful.jobs.atomic import write_atomically
from handful.jobs.plain_text import spreadsheet_text
from handful.jobs.scratch import counts

COLUMNS = ("case", "label", "name", "voxels", "size", "unit")


@dataclass(frozen=True)
class LabelSizes:
    """The size of each label of a label map."""

    voxels: dict[int, int]
    """Number of voxels of each label, 0 for an absent one."""
    voxel: float
    """Size of a voxel in `unit`."""
    unit: str
    """"ml", or "mm2" for a single slice; "voxel" or "pixel" if the spacing is unknown."""

    @classmethod
    def of(cls, label_map: LabelMap) -> LabelSizes:
        """Volumes of a label map of several slices, areas of one of a single slice."""
        found = counts(label_map.array)
        voxels = {value: found.get(value, 0) for value in label_map.labels.values}
        return cls(voxels, *_voxel(label_map.geometry))

    def of_label(self, value: int) -> float:
        """Size of a label in `unit`, rounded to six digits."""
        return float(f"{self.voxels.get(value, 0) * self.voxel:.6g}")

    @property
    def is_empty(self) -> bool:
        """Whether no voxel has a label."""
        return not any(self.voxels.values())


def missing_labels(sizes: Mapping[str, LabelSizes], labels: Labels) -> dict[str, tuple[str, ...]]:
    """Names of the cases that lack a label which most others have, by name of the label.

    Cases without any label do not count, nor do labels that are missing in half of the cases or more: lesions, say.
    """
    found = {case: size.voxels for case, size in sizes.items() if not size.is_empty}
    missing: dict[str, tuple[str, ...]] = {}
    for value, name in labels.as_dict().items():
        voxels = {case: count[value] for case, count in found.items() if value in count}
        without = tuple(case for case, count in voxels.items() if not count)
        if without and 2 * len(without) < len(voxels):
            missing[name] = without
    return missing


def write_volumes(path: Path, sizes: Iterable[tuple[str, LabelSizes]], labels: Labels) -> None:
    """Write one line per case and label; a label that is absent has the size 0.

    Labels that were not looked for, those of other experts, have no line.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for case, size in sizes:
        rows = (_row(case, value, name, size) for value, name in labels.as_dict().items() if value in size.voxels)
        table.writerows([spreadsheet_text(entry) for entry in row] for row in rows)
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _row(case: str, value: int, name: str, sizes: LabelSizes) -> tuple[object, ...]:
    return case, value, name, sizes.voxels.get(value, 0), sizes.of_label(value), sizes.unit


def _voxel(geometry: Geometry) -> tuple[float, str]:
    """Size and unit of a voxel."""
    flat = [axis for axis, count in enumerate(geometry.shape) if count == 1]
    if geometry.unit == "pixel":
        return 1.0, "pixel" if flat else "voxel"
    edges = geometry.affine[:3, :3]
    if len(flat) == 1:
        first, second = (edges[:, axis] for axis in range(3) if axis not in flat)
        return float(np.linalg.norm(np.cross(first, second))), "mm2"
    return float(abs(np.linalg.det(edges))) / 1000, "ml"
