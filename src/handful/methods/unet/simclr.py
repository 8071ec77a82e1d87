"""SimCLR: the U-Net's encoder learns from slices that nobody labelled, by contrast."""

from __future__ import annotations

import math
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import has_signal
from handful.methods.stacks import evenly, slices_in_square, with_equal_channels
from handful.methods.unet.network import PlainNet
from handful.tuning.augment import coarsened
from handful.tuning.loop import History, TrainConfig, train
from handful.tuning.seeds import seeded

MOST_SLICES = 4096
"""Slices held in memory; of larger cohorts evenly spaced ones."""


def contrastive_slices(support: SupportSet, slicer: Slicer, side: int) -> Float[Tensor, "v c s s"]:
    """Slices with any signal of all scans, labelled or not; evenly spaced where there are more than can be held."""
    most = max(1, MOST_SLICES // (len(support.cases) + len(support.unlabelled)))
    found = []
    labelled = (slicer.view(case.read_image()) for case in support.cases)
    for view in chain(labelled, (view for _, view in support.unlabelled_views(slicer))):
        slices = slices_in_square(view, evenly(len(view), most), side)
        found.append(slices[has_signal(slices)])
    return with_equal_channels(found)


def pretrain_encoder(
    net: PlainNet,
    slices: Float[Tensor, "v c s s"],
    batch: int,
    config: TrainConfig,
    run: Run | None = None,
    temperature: float = 0.5,
) -> History:
    """Trains the contracting path of a net for single slices by SimCLR, in place; the rest of it stays as it was.

    Two views of each slice, made independently of one another, shall lie nearer to each other than to those of all
    other slices of the batch. The projection head is dropped afterwards. It sees the means of the four quarters, not
    one mean as in the paper: instance norm has taken that out of every channel, and there was nothing to learn from.
    """
    from monai.losses import ContrastiveLoss  # seconds, not needed by other methods

    if len(slices) < 2:
        raise SettingsError(
            f"SimCLR needs at least two slices with any signal, got {len(slices)}; give unlabelled scans"
        )
    device, width = next(net.parameters()).device, int(net.unet.filters[-1])
    with seeded(config.seed):
        head = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 128)).to(device)
    model = nn.ModuleDict({"encoder": net.contracting_path(), "head": head})
    contrastive = ContrastiveLoss(temperature=temperature)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randperm(len(slices), generator=generator)[:batch]
        views = torch.cat([_random_view(slices[rows].float(), generator) for _ in range(2)])
        features = F.adaptive_avg_pool2d(model["encoder"](net.standardised(views.to(device))), 2)
        one, other = model["head"](features.flatten(1)).chunk(2)
        value: Tensor = contrastive(one, other)
        return value

    return train(model, loss, config, run)


def _random_view(slices: Float[Tensor, "n c s s"], generator: torch.Generator) -> Float[Tensor, "n c t t"]:
    """A piece of each slice on half as many pixels: 40 to 100 % of its edges, turned by ±15°, gamma .4 to 2.5, noise.

    Never flipped: left and right shall stay apart.
    """
    n, _, side, _ = slices.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    tall, wide = uniform(0.4, 1.0), uniform(0.4, 1.0)
    angle, down, across = uniform(-math.pi / 12, math.pi / 12), uniform(-1, 1) * (1 - tall), uniform(-1, 1) * (1 - wide)
    sine, cosine = angle.sin(), angle.cos()
    rows = torch.stack([cosine * wide, -sine * tall, across, sine * wide, cosine * tall, down], dim=1)
    grid = F.affine_grid(rows.view(n, 2, 3), [n, 1, side // 2, side // 2], align_corners=False)
    views = F.grid_sample(slices, grid, align_corners=False).clamp_min(0)
    gamma = torch.exp(uniform(math.log(0.4), math.log(2.5)))[:, None, None, None]
    noise = uniform(0, 0.1)[:, None, None, None] * torch.randn(views.shape, generator=generator)
    return coarsened(views.pow(gamma) + noise, 0.5, generator)
