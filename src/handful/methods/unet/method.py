"""U-Net: nnU-Net's architecture trained from scratch on the labelled slices; the baseline a foundation model must beat.

After Isensee, Jaeger, Kohl, Petersen and Maier-Hein, "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation" (Nature Methods 2021), with MONAI's DynUNet as the network: stages down to 4 pixels,
instance norm, leaky ReLU, deep supervision, Dice over the batch with cross entropy. Its encoder may first be trained
by SimCLR (Chen, Kornblith, Norouzi and Hinton, ICML 2020) on slices that nobody labelled. The backbone is never asked:
the net works on its device and looks at no more pixels than it would.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.framing import from_square, into_square
from handful.data.files import read_cohort
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels
from handful.errors import SettingsError
from handful.jobs.digests import digest_of
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, assemble_label_map, below, has_signal, to_classes
from handful.methods.stacks import UNKNOWN, StackedSupport, blocks
from handful.methods.unet.network import Net, NetPlan, StackShape
from handful.methods.unet.simclr import pretrain_encoder, unlabelled_slices
from handful.tuning.augment import augmented
from handful.tuning.loop import TrainConfig, train
from handful.tuning.losses import dice_ce, fading
from handful.tuning.sampling import BalancedSampler
from handful.tuning.trainable import load_trainable_state, trainable_state


@dataclass(frozen=True, kw_only=True)
class UNet(Method):
    """A U-Net trained on the labelled slices alone; of the backbone it takes the device and the largest side."""

    when = "5 or more labelled cases; the baseline to beat"
    minutes = "2 to 15 min"

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    dims: Literal[2, 3] = 2
    """2: slice by slice. 3: through stacks of neighbouring slices; wants volumes of many slices, and a GPU."""
    side: int | None = None
    """Pixels along the square that slices are stretched onto, a multiple of 16; None takes the longest edge of the
    support's slices, as further pixels would hold nothing new, and at most the backbone's own side."""
    depth: int = 16
    """Slices of a stack, a multiple of 4, where `dims` is 3; shorter volumes repeat their outermost slices."""
    channels: int = 16
    """Channels of the finest stage; they double with every stage, up to 16 times as many. nnU-Net has 32."""
    deep_supervision: bool = True
    """Judge the three next coarser stages of the decoder as well, each with half the weight of the one before."""
    elastic: float = 0.0
    """Strongest bending of a training slice, as a share of its side; 0, as in nnU-Net, leaves it straight."""
    batch: int = 8
    """Slices (or stacks) a training step; every other one holds a label drawn at random, the rest are any."""
    rare_class_weight: float = 0.0
    """How much more a pixel of a rare class counts than one of a common one in the cross entropy: the power of how many
    times rarer it is, at the start of the training; it falls to 0 towards its end. At 0, as in nnU-Net, all count
    alike; in short trainings 0.5 finds labels of few pixels sooner."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=1000, learning_rate=5e-3))
    """Length and rate of the training."""
    pretrain: Literal["none", "simclr"] = "none"
    """What the encoder learns before: nothing, or by SimCLR to tell slices apart; only where `dims` is 2."""
    unlabelled: Path | None = None
    """Folder of a cohort whose images, never its labels, are used by SimCLR; None takes all slices of the support."""
    contrast_batch: int = 32
    """Slices that SimCLR tells apart at once; each is seen in two views."""
    contrast: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=1000, learning_rate=1e-3))
    """Length and rate of SimCLR."""

    def __post_init__(self) -> None:
        for name, least in (("depth", 4), ("channels", 1), ("batch", 1), ("contrast_batch", 2)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.side is not None and (self.side < 32 or self.side % 16):
            raise SettingsError(f"side must be a multiple of 16 from 32 on, got {self.side}")
        if self.depth % 4:
            raise SettingsError(f"depth must be a multiple of 4, got {self.depth}")
        for name in ("elastic", "rare_class_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.pretrain == "simclr" and self.dims == 3:
            raise SettingsError("SimCLR trains the encoder of single slices; set dims=2 or pretrain=none")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> UNetSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
        plan = self.plan(support, slicer, backbone)
        simclr = self.pretrain == "simclr"
        with support.held() if simclr else nullcontext(support) as held:
            stacked = StackedSupport.of(held, slicer, plan.side, plan.depth)
            slices = self._unlabelled(held, slicer, plan.side) if simclr else torch.zeros(0)
        net = self.net(plan, len(support.labels)).to(backbone.device)
        first, then = _phases(self, run, _fingerprint(self, plan, stacked, slices))
        if simclr:
            pretrain_encoder(net, slices, self.contrast_batch, self.contrast, first)
        train(net, _NetLoss(self, net, stacked, len(support.labels)), self.train, then)
        net.let_go()
        return UNetSegmenter(support.labels, slicer, backbone, net)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> UNetSegmenter:
        net = self.net(NetPlan.unpack(learned["plan"]), len(labels)).to(backbone.device)
        load_trainable_state(net, below("net", learned))
        return UNetSegmenter(labels, slicer, backbone, net)

    def plan(self, support: SupportSet, slicer: Slicer, backbone: Backbone) -> NetPlan:
        """The net's shape for the slices of a support."""
        stacks = [StackShape.of(slicer.grid(facts.geometry)) for facts in support.facts]
        return NetPlan.of(stacks, self.depth if self.dims == 3 else 1, self.side, backbone.side)

    def net(self, plan: NetPlan, labels: int) -> Net:
        """The net before any training, on the CPU; one seed, one net."""
        return Net(plan, labels, self.channels, self.deep_supervision, self.train.seed)

    def _unlabelled(self, support: SupportSet, slicer: Slicer, side: int) -> Float[Tensor, "v c s s"]:
        """What SimCLR learns from."""
        # the only place where a method reads files
        cases = support.cases if self.unlabelled is None else read_cohort(self.unlabelled).cases
        return unlabelled_slices(cases, slicer, side)


class UNetSegmenter(Segmenter):
    """A trained net; one for stacks takes the slices it is given for neighbours, in their order."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, net: Net) -> None:
        super().__init__(labels, slicer, backbone)
        self.net = net

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        if self.net.plan.depth == 1:
            return self._of_stacks(slices[:, :, None])[:, :, 0]
        parts = blocks(len(slices), self.net.plan.depth)
        return torch.cat([self._in_the_middle(slices[window], len(kept)) for kept, window in parts])

    def segment(self, stack: SliceView) -> LabelMap:
        if self.net.plan.depth == 1:
            return super().segment(stack)
        return assemble_label_map(stack, self.labels, self._block_by_block(stack))

    def learned(self) -> dict[str, Tensor]:
        return {f"net/{name}": value for name, value in trainable_state(self.net).items()} | {
            "plan": self.net.plan.pack()
        }

    def _block_by_block(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Tensor]]:
        for kept, window in blocks(len(stack), self.net.plan.depth):
            slices = stack.take(window).to(self.backbone.device)
            start = self.net.plan.depth // 4
            shown = has_signal(slices[start : start + len(kept)])
            yield kept, to_classes(self._in_the_middle(slices, len(kept))) * shown[:, None, None]

    def _in_the_middle(self, slices: Float[Tensor, "d c h w"], count: int) -> Float[Tensor, "n k h w"]:
        """Logits of `count` slices of a stack, from its first quarter on."""
        logits = self._of_stacks(rearrange(slices, "d c h w -> 1 c d h w"))
        start = self.net.plan.depth // 4
        return rearrange(logits[0, :, start : start + count], "k d h w -> d k h w")

    def _of_stacks(self, stacks: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        b, size = len(stacks), (stacks.shape[-2], stacks.shape[-1])
        square = into_square(rearrange(stacks, "b c d h w -> (b d) c h w"), self.net.plan.side)
        logits = self.net(rearrange(square, "(b d) c h w -> b c d h w", b=b))[:, 0]
        back = from_square(rearrange(logits, "b k d h w -> (b d) k h w"), size)
        return rearrange(back, "(b d) k h w -> b k d h w", b=b)


class _NetLoss:
    """The loss of one training step: slices of the support, each time moved, bent and relit in another way."""

    def __init__(self, method: UNet, net: Net, stacked: StackedSupport, labels: int) -> None:
        self.method, self.plan, self.net, self.stacked, self.labels = method, net.plan, net, stacked, labels
        self.sampler = BalancedSampler(stacked.holds(labels), method.batch, stacked.labelled)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        self.net.train()
        stacks, classes = self.stacked.around(self.sampler.sample(generator), self.plan.depth)
        slices, masks, valid_mask = self._varied(stacks, classes, generator)
        device = next(self.net.parameters()).device
        exits = self.net(slices.to(device)).unbind(1)
        target = rearrange(masks, "b k d h w -> 1 k (b d h) w").to(device)
        shown = rearrange(valid_mask, "b d h w -> 1 (b d h) w").to(device)
        # the Dice of the whole batch, as nnU-Net has it for slices: many hold but a sliver of a label, or none
        rare_class_weight = fading(self.method.rare_class_weight, step, self.method.train.steps)
        losses = [
            dice_ce(rearrange(said, "b k d h w -> 1 k (b d h) w"), target, shown, rare_class_weight) for said in exits
        ]
        weights = torch.tensor([0.5**place for place in range(len(losses))], device=device)
        return (torch.stack(losses) * weights).sum() / weights.sum()

    def _varied(
        self, stacks: Float[Tensor, "b c d s s"], classes: Int[Tensor, "b d s s"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b c d s s"], Float[Tensor, "b k d s s"], Tensor]:
        """Another view of stacks, all slices of one moved alike; with their labels and what is known of them."""
        values = torch.arange(1, self.labels + 1)[:, None, None, None]
        masks = (classes[:, None] == values).float()
        maps = torch.cat([masks, (classes != UNKNOWN).float()[:, None]], dim=1)
        everywhere = torch.ones(len(stacks), *stacks.shape[-2:], dtype=torch.bool)
        seen, maps, _ = augmented(stacks.flatten(1, 2), maps.flatten(1, 2), everywhere, generator)
        if self.method.elastic:
            seen, maps = _bent(seen, maps, self.method.elastic, generator)
        maps = rearrange(maps, "b (m d) h w -> b m d h w", d=self.plan.depth)
        # a pixel is known where nothing unknown was mixed into it; outside of the slice all is unknown
        return (
            rearrange(seen, "b (c d) h w -> b c d h w", d=self.plan.depth),
            maps[:, :-1],
            maps[:, -1] >= 0.999,
        )


def _bent(
    slices: Float[Tensor, "n c h w"], maps: Float[Tensor, "n m h w"], strongest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both moved by a smooth random field: shifts at 6 × 6 knots, of a deviation of up to `strongest` sides."""
    n, _, h, w = slices.shape
    strength = 2 * strongest * torch.rand(n, 1, 1, 1, generator=generator)  # grid_sample's frame is 2 wide
    knots = strength * torch.randn(n, 2, 6, 6, generator=generator)
    shifts = F.interpolate(knots, (h, w), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), [n, 1, h, w], align_corners=False) + shifts
    return F.grid_sample(slices, grid, align_corners=False), F.grid_sample(maps, grid, align_corners=False)


def _phases(method: UNet, run: Run, fingerprint: str) -> tuple[Run, Run]:
    """The run of SimCLR and that of the training proper: folders of their own, and steps counted through both."""
    before = method.contrast.steps if method.pretrain == "simclr" else 0
    whole = before + method.train.steps
    scratch = run.scratch and run.scratch / fingerprint

    def first(step: int, total: int, note: str) -> None:
        run.report(step, whole, f"simclr {note}")

    def then(step: int, total: int, note: str) -> None:
        run.report(before + step, whole, note)

    return (
        dataclasses.replace(run, scratch=scratch and scratch / "simclr", report=first),
        dataclasses.replace(run, scratch=scratch and scratch / "unet", report=then),
    )


def _fingerprint(method: UNet, plan: NetPlan, stacked: StackedSupport, unlabelled: Tensor) -> str:
    """Names the fit by all that decides its result, so that only its own half-done work is taken up again."""
    settings = json.dumps(dataclasses.asdict(method), sort_keys=True, default=str)
    return digest_of(f"{settings}:{plan}:{stacked.digest()}", unlabelled)[:16]
