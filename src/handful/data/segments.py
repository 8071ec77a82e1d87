"""The segments of 3D Slicer's .seg.nrrd files: names of label values, and the layers they are in."""

from __future__ import annotations

import re
from pathlib import Path

from handful.errors import UnsupportedInput
from handful.jobs.files import open_file

SUFFIX = ".seg.nrrd"
_MAX_HEADER = 2**22
"""Bytes of a header that are read: a segment takes about 600."""
_FIELD = re.compile(rb"^Segment(\d+)_(Name|LabelValue|Layer):=([^\r\n]*)", re.MULTILINE)


def read_segments(path: Path) -> dict[int, str]:
    """{label value: name} of the segments in the header of an .nrrd file; empty if it has none.

    Raises UnsupportedInput for segments in several layers: they overlap, and a label map has one label per voxel.
    """
    with open_file(path) as file:
        header = re.split(rb"\r?\n\r?\n", file.read(_MAX_HEADER), maxsplit=1)[0]
    segments: dict[int, dict[str, str]] = {}
    for number, key, text in _FIELD.findall(header):
        segments.setdefault(int(number), {})[key.decode()] = text.decode("utf-8", "replace").strip()
    if len(layers := {one.get("Layer", "0") for one in segments.values()}) > 1:
        raise UnsupportedInput(
            f"{path}: overlapping segments of 3D Slicer in {len(layers)} layers, but a voxel has one label; in 3D "
            "Slicer, export the segmentation as a label map (module Segmentations, Export to files), and use that file"
        )
    valued = (one for one in segments.values() if re.fullmatch(r"[0-9]{1,9}", one.get("LabelValue", "")))
    return {int(one["LabelValue"]): one.get("Name") or f"label {one['LabelValue']}" for one in valued}
