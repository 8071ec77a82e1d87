"""Boxes as labels: the backbone turns the boxes of unlabelled pictures into masks, from which self-training learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from handful.backbones.base import Backbone
from handful.data.boxes import Box, read_boxes
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import InputError
from handful.jobs.progress import Report, silent
from handful.methods.base import PromptableSegmenter
from handful.methods.promptable import FrozenPromptable
from handful.prompts.prompts import Prompts


def with_boxes(
    support: SupportSet, boxes: Path, slicer: Slicer, backbone: Backbone, report: Report = silent
) -> SupportSet:
    """The support set with masks for those of its unlabelled pictures that have boxes; the others are left out.

    The masks are made by the backbone, in a crop around each box. Raises InputError for a box outside its picture and
    for a volume, and as `read_boxes` does.
    """
    cases = support.unlabelled.cases
    found = read_boxes(boxes, cases, support.labels)
    segmenter = FrozenPromptable(support.labels, support.resolve(slicer), backbone, box_crop=True)
    masks: dict[str, LabelMap] = {}
    for number, case in enumerate(cases, start=1):
        if case.name in found:
            masks[case.name] = _masks(case.name, case.read_image(), found[case.name], segmenter)
        report(number, len(cases), f"{case.name}: boxes to masks")
    boxed = tuple(case for case in cases if case.name in found)
    return SupportSet(
        support.cases, support.labels, known_facts=support.known_facts, unlabelled=UnlabelledScans(boxed, labels=masks)
    )


def _masks(case: str, volume: Volume, boxes: Sequence[Box], segmenter: PromptableSegmenter) -> LabelMap:
    """The masks of all boxes of a picture; where masks overlap, the later box counts."""
    view = segmenter.slicer.view(volume)
    height, width = view.size
    if len(view) != 1:
        raise InputError(f"case {case!r} has {len(view)} slices, but boxes are for pictures; label some slices instead")
    merged = np.zeros(volume.geometry.shape, dtype=np.int32)
    for box in boxes:
        if box.x_min < 0 or box.y_min < 0 or box.x_max > width - 1 or box.y_max > height - 1:
            corners = f"{box.x_min:g},{box.y_min:g} to {box.x_max:g},{box.y_max:g}"
            raise InputError(f"case {case!r}: the box {corners} leaves the picture of {width} × {height} pixels")
        found = segmenter.predict(volume, _prompt(box, segmenter.labels)).array
        merged[found == box.label] = box.label
    return LabelMap(merged, volume.geometry, segmenter.labels)


def _prompt(box: Box, labels: Labels) -> Prompts:
    prompt = torch.zeros(1, len(labels), 4)
    prompt[0, labels.values.index(box.label)] = torch.tensor([box.x_min, box.y_min, box.x_max, box.y_max])
    return Prompts(boxes=prompt)
