"""The first labels of the unlabelled scans, made by another method that is fitted on the labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.label_values import renumbered
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels
from handful.errors import SettingsError, did_you_mean
from handful.jobs.atomic import write_atomically
from handful.jobs.progress import Run
from handful.methods.auto_sam.method import AutoSam
from handful.methods.auto_sam.unet import AutoSamUNet
from handful.methods.base import Method
from handful.methods.fate.method import Fate
from handful.methods.few_shot_prompts.method import FewShotPrompts
from handful.methods.lora import Lora
from handful.methods.nearest_slice import NearestSlice
from handful.methods.self_training.pool import Pool, scans_of
from handful.methods.settings import read_settings
from handful.methods.stacks import UNKNOWN, classes_in_square
from handful.methods.unet.method import UNet
from handful.methods.wrappers.ensemble import Ensemble

NONE = "none"
INITIAL: dict[str, type[Method]] = {
    "auto-sam": AutoSam,
    "auto-sam-unet": AutoSamUNet,
    "ensemble": Ensemble,
    "fate": Fate,
    "few-shot-prompts": FewShotPrompts,
    "lora": Lora,
    "nearest-slice": NearestSlice,
    "unet": UNet,
}
"""Methods that segment by themselves, without prompts."""


def initial_method(name: str, settings: Mapping[str, Any]) -> Method | None:
    """The method of that name with these settings; None for "none"."""
    if name == NONE:
        if settings:
            raise SettingsError(f"initial is none, so it has no settings, got {dict(settings)}; leave them out")
        return None
    if name not in INITIAL:
        hint = did_you_mean(name, INITIAL)
        raise SettingsError(f"initial = {name!r}: {hint}choose of {', '.join([NONE, *sorted(INITIAL)])}")
    method: Method = read_settings(INITIAL[name], settings, f"initial method {name}")
    return method


def initial_labels(
    method: Method, support: SupportSet, pool: Pool, slicer: Slicer, backbone: Backbone, run: Run
) -> Int[Tensor, "v s s"]:
    """Class numbers that the method gives the slices of the pool; made once, and kept in `run.scratch`."""
    found: dict[int, Tensor] = {}
    files = [run.scratch and run.scratch / f"labels-{place}.safetensors" for place in pool.places]
    missing = [case for case, file in enumerate(files) if file is None or not file.exists()]
    if missing:
        segmenter = method.with_slicer(slicer).fit(support, backbone, run)
        for place, (name, volume) in enumerate(scans_of(support)):
            case = pool.places.index(place) if place in pool.places else None
            if case not in missing:
                continue
            found[case] = _classes(pool, case, slicer.view(volume), segmenter.predict(volume), support.labels)
            if (file := files[case]) is not None:
                write_atomically(file, save({"classes": found[case]}))
            run.report(len(found), len(missing), f"{name} labelled")
    for case, file in enumerate(files):
        if case not in found and file is not None:
            found[case] = load_file(file)["classes"]
    return torch.cat([found[case] for case in range(len(files))])


def labels_at_hand(support: SupportSet, pool: Pool, slicer: Slicer) -> Int[Tensor, "v s s"]:
    """Class numbers that the uncertain labels of the unlabelled scans give the slices of the pool, or UNKNOWN."""
    found: dict[int, Tensor] = {}
    for place, (_, volume, label_map) in enumerate(support.unlabelled.with_labels()):
        if place in pool.places:
            case = pool.places.index(place)
            found[case] = _classes(pool, case, slicer.view(volume), label_map, support.labels)
    return torch.cat([found[case] for case in range(len(pool.places))])


def _classes(pool: Pool, case: int, view: SliceView, label_map: LabelMap, labels: Labels) -> Int[Tensor, "n s s"]:
    """Class numbers of the slices of one case of the pool: UNKNOWN where a voxel is IGNORE, 0 for other labels."""
    values = view.of(label_map.array)[pool.number[pool.case == case].numpy()]
    numbers = renumbered(values, {value: number for number, value in enumerate(labels.values, start=1)})
    classes = torch.from_numpy(np.where(values == IGNORE, UNKNOWN, numbers))
    return classes_in_square(classes, len(labels), pool.slices.shape[-1])
