"""Something to try handful on: a phantom cohort on disk, and a look at what pre-training sees."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from handful.atomic import write_atomically
from handful.data.files import write_label_map, write_volume
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.pretraining.pretrain import PretrainConfig, make_batch
from handful.synthesis.episodes import phantom_cohort


def write_phantom_cohort(folder: Path, cases: int = 8, seed: int = 0) -> Path:
    """Writes `images/`, `labels/` and `dataset.json` of synthetic scans, all labelled; returns `folder`."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names: dict[int, str] = {}
    for phantom in phantom_cohort(cases, seed):
        names = phantom.names
        geometry = Geometry(phantom.image.shape, phantom.affine)
        write_volume(folder / "images" / f"{phantom.name}.nii.gz", Volume(phantom.image[None], geometry))
        label_map = LabelMap(phantom.labels, geometry, Labels.of(names))
        write_label_map(folder / "labels" / f"{phantom.name}.nii.gz", label_map)
    labels = {"0": "background"} | {str(value): name for value, name in names.items()}
    content = {"name": "phantoms", "description": "synthetic scans of nobody", "labels": labels}
    write_atomically(folder / "dataset.json", (json.dumps(content, indent=2) + "\n").encode())
    return folder


def draw_episodes(config: PretrainConfig, picture: Path) -> None:
    """A PNG of one batch that pre-training would learn from: a row an episode, its targets drawn round in colour."""
    from matplotlib.figure import Figure

    batch = make_batch(config, torch.Generator().manual_seed(config.train.seed))
    figure = Figure(figsize=(2 * config.subjects, 2 * config.episodes), layout="constrained")
    panels = figure.subplots(config.episodes, config.subjects, squeeze=False)
    for panel, image, masks in zip(panels.flat, batch.images, batch.masks, strict=True):
        panel.imshow(image.permute(1, 2, 0).numpy())
        for number, mask in enumerate(masks):
            if mask.any() and not mask.all():
                panel.contour(mask.float().numpy(), levels=[0.5], colors=[f"C{number}"], linewidths=1)
        panel.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(picture, content.getvalue())
