"""U-Net: nnU-Net's architecture trained from scratch on the labelled slices; the baseline a foundation model must beat.

After Isensee, Jaeger, Kohl, Petersen and Maier-Hein, "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation" (Nature Methods 2021), with MONAI's DynUNet as the network: stages down to 4 pixels,
instance norm, leaky ReLU, deep supervision, Dice over the batch with cross entropy. Its encoder may first be trained
by SimCLR (Chen, Kornblith, Norouzi and Hinton, ICML 2020) on slices that nobody labelled. Of the
backbone only the device and the input side are used: the net runs on that device, at no larger side.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.framing import from_square, into_square
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError, refuse_without_effect
from handful.jobs.digests import digest_of
from handful.jobs.progress import Run
from handful.methods.base import (
    Method,
    Segmenter,
    Work,
    below,
    mean_of_probabilities,
    without_constant,
)
from handful.methods.stacks import StackedSupport, blocks
from handful.methods.unet.choice import chosen_channels, chosen_side, may_mirror
from handful.methods.unet.network import LARGEST, SMALLEST, Encoder, Net, NetPlan, PlainNet, PretrainedNet, StackShape
from handful.methods.unet.scribbles import AcceptedMasks, ScribbleLoss, accepted_masks
from handful.methods.unet.simclr import contrastive_slices, pretrain_encoder
from handful.methods.unet.training import Augmentation, NetLoss, Views
from handful.tuning.loop import TrainConfig, train
from handful.tuning.trainable import load_trainable_state, trainable_state

STEPS = 1500
RATES: dict[Encoder, float] = {"none": 5e-3, "imagenet": 1e-3}
"""Peak learning rates."""
ELASTIC = 0.03


@dataclass(frozen=True, kw_only=True)
class UNet(Method):
    """A U-Net trained on the labelled slices alone. The backbone gives its device and its largest slice size only.

    What is None is chosen from the data (`handful.methods.unet.choice`).
    """

    when = "fewer than 10 unlabelled scans; the baseline to beat"
    minutes = "2 to 17 min"

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    dims: Literal[2, 3] = 2
    """2: slice by slice. 3: through stacks of neighbouring slices; wants volumes of many slices, and a GPU."""
    encoder: Encoder | None = None
    """The contracting path at the start: EfficientNet-Lite0 trained on ImageNet ("imagenet", where `dims` is 2), or
    random weights ("none"). None takes "imagenet" where it can be had."""
    encoder_rate: float = 0.2
    """Learning rate of an encoder that knows ImageNet, as a share of that of the rest."""
    side: int | None = None
    """Pixels along the square that slices are stretched onto, a multiple of 16. None takes 128, or more where a
    structure is too thin for that, at most the longest edge of a typical case's slices, 256, and the
    backbone's own side."""
    depth: int = 16
    """Slices of a stack, a multiple of 4, where `dims` is 3; shorter volumes repeat their outermost slices."""
    channels: int | None = None
    """Channels of the finest stage; they double with every stage, up to 16 times as many. None takes 16, and 24 for
    more than three labels; nnU-Net has 32."""
    deep_supervision: bool = True
    """Judge the three next coarser stages of the decoder as well, each with half the weight of the one before."""
    augmentation: Augmentation = "nnunet"
    """How training slices are changed: "nnunet" turns, scales, stretches, shifts, bends, relights, blurs and coarsens
    each with a probability; "always" turns, scales, shifts and relights all, further than one scanner differs."""
    elastic: float | None = None
    """Strongest bending of a training slice, as a share of its side. None takes 0.03, and 0 with augmentation
    "always"."""
    mirror: bool | None = None
    """Whether left and right change places in half of the training slices; the prediction is then the mean of a slice
    and its mirror image. None does so for pictures without "left" and "right" among the names of their labels."""
    batch: int = 8
    """Slices (or stacks) per training step; every other one holds a label chosen at random, the rest are any."""
    rare_class_weight: float = 0.0
    """How much more a pixel of a rare class counts than one of a common one in the cross entropy: the power of how many
    times rarer it is, at the start of the training; it falls to 0 towards its end. At 0, as in nnU-Net, all count
    alike; in short trainings 0.5 finds labels of few pixels sooner."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            iterations=None, learning_rate=None, ema=0.99, clip=5.0, precision="bfloat16"
        )
    )
    """Length and rate of the training. None takes 1,500 steps, and the rate 5e-3, or 1e-3 with ImageNet's encoder."""
    pretrain: Literal["none", "simclr"] = "none"
    """What an encoder of random weights learns before: nothing, or by SimCLR to distinguish slices, those of the
    unlabelled scans as well; only where `dims` is 2."""
    contrast_batch: int = 32
    """Slices that SimCLR compares at once; each is shown in two views."""
    contrast: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=1000, learning_rate=1e-3))
    """Length and rate of SimCLR."""

    def __post_init__(self) -> None:
        for name, least in (("depth", 4), ("channels", 1), ("batch", 1), ("contrast_batch", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{name} must be at least {least}, got {value}")
        if self.side is not None and (not SMALLEST <= self.side <= LARGEST or self.side % 16):
            raise SettingsError(f"side must be a multiple of 16 from {SMALLEST} to {LARGEST}, got {self.side}")
        if self.depth % 4:
            raise SettingsError(f"depth must be a multiple of 4, got {self.depth}")
        if self.dims == 2:
            refuse_without_effect(self, ("depth",), "it is for dims = 3")
        for name in ("elastic", "rare_class_weight", "encoder_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {value}")
        if self.dims == 3 and (self.pretrain == "simclr" or self.encoder == "imagenet"):
            what = "SimCLR trains" if self.pretrain == "simclr" else "ImageNet has trained"
            raise SettingsError(f"{what} the encoder of single slices; set dims=2 or pretrain=none and encoder=none")
        if self.pretrain == "simclr" and self.encoder == "imagenet":
            raise SettingsError("encoder=imagenet is trained already; set encoder=none for SimCLR, or pretrain=none")

    @property
    def uses_all_sequences(self) -> bool:
        return True

    @property
    def uses_unlabelled(self) -> bool:
        return self.pretrain == "simclr"

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> UNetSegmenter:  # noqa: B008
        slicer = self.resolved_slicer(support)
        simclr = self.pretrain == "simclr"
        rereads = simclr or self.side is None or support.scribbled
        with support.held() if rereads else nullcontext(support) as held:
            plan = self.plan(held, slicer, backbone)
            stacked = StackedSupport.of(held, slicer, plan.side, plan.depth)
            masks = accepted_masks(held, slicer, stacked, backbone)
            slices = contrastive_slices(held, slicer, plan.side) if simclr else torch.zeros(0)
        net = self.net(plan, len(support.labels)).to(backbone.device)
        config = self.training(plan)
        first, then = _phases(
            self, config, run, self.fingerprint(plan, stacked, *((slices, masks.classes) if masks else (slices,)))
        )
        if isinstance(net, PlainNet) and simclr:
            pretrain_encoder(net, slices, self.contrast_batch, self.contrast, first)
        loss = self.loss(net, stacked, len(support.labels), self.views(net.plan, alone=True), config.steps, masks)
        train(net, loss, config, then, rates={"encoder.": self.encoder_rate})
        net.drop_training_state()
        decisions = (self.described(plan, config), *((masks.described(backbone),) if masks else ()))
        return UNetSegmenter(support.labels, slicer, backbone, net, decisions)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        """As of each method; a step of SimCLR counts by its number of slices, which are shown in two views."""
        plan = self.plan(support, self.resolved_slicer(support), backbone)
        config = self.training(plan)
        settings: dict[str, Any] = {"side": plan.side, "encoder": plan.encoder, "mirror": plan.mirror, "train": config}
        if plan.encoder == "none":
            settings["channels"] = plan.channels
        contrast = 2 * self.contrast_batch * self.contrast.steps // self.batch if self.pretrain == "simclr" else 0
        method = dataclasses.replace(self, pretrain="none", **settings)
        strokes = sum(facts.labelled_slices(self.resolved_slicer(support)) for facts in support.scribbled)
        return (Work.of(method, support, encoded=strokes, steps=config.steps + contrast),)

    def needs_backbone(self, learned: Mapping[str, Tensor]) -> bool:
        return False

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> UNetSegmenter:
        plan = NetPlan.unpack(learned["plan"])
        require_sequences(plan, slicer)
        self._require_planned(plan)
        net = self.net(plan, len(labels), pretrained=False).to(backbone.device)
        load_trainable_state(net, below("net", learned))
        return UNetSegmenter(labels, slicer, backbone, net)

    def _require_planned(self, plan: NetPlan) -> None:
        """SettingsError unless the plan has the numbers that are set."""
        depth = self.depth if self.dims == 3 else 1
        for name, own in (("side", self.side), ("depth", depth), ("channels", self.channels), ("mirror", self.mirror)):
            if own not in (None, getattr(plan, name)):
                raise SettingsError(
                    f"tensor 'plan' has {name} = {getattr(plan, name)}, but by the settings it is {own}"
                )

    def plan(self, support: SupportSet, slicer: Slicer, backbone: Backbone) -> NetPlan:
        """The net's shape for the slices of a support; reads them where it chooses a side."""
        stacks = [StackShape.of(slicer.grid(facts.geometry)) for facts in support.facts]
        return NetPlan.of(
            stacks,
            self.side or chosen_side(support, slicer, backbone.side),
            self.depth if self.dims == 3 else 1,
            self.channels or chosen_channels(support.labels),
            self._encoder(),
            self.mirror if self.mirror is not None else may_mirror(support),
            sequences_of(slicer),
        )

    def net(self, plan: NetPlan, labels: int, pretrained: bool = True) -> Net:
        """The net before any training, on the CPU; one seed, one net. Without `pretrained` its weights are any."""
        if plan.encoder == "none":
            return PlainNet(plan, labels, self.deep_supervision, self.train.seed)
        return PretrainedNet(plan, labels, self.deep_supervision, self.train.seed, pretrained)

    def training(self, plan: NetPlan) -> TrainConfig:
        """How long and how fast a net of this plan learns."""
        return self.train.filled(STEPS, RATES[plan.encoder])

    def described(self, plan: NetPlan, config: TrainConfig) -> str:
        """One sentence on the net and its training."""
        encoder = "an encoder trained on ImageNet" if plan.encoder == "imagenet" else f"{plan.channels} channels"
        mirrored = ", left and right mirrored" if plan.mirror else ""
        return f"U-Net with {encoder} on {plan.side} × {plan.side} pixels, {config.steps} steps{mirrored}"

    def views(self, plan: NetPlan, alone: bool) -> Views:
        """How training slices are changed.

        `alone`: there are no unlabelled scans, whose windows show more than labelled crops do. The black around a moved
        slice is background then, as in nnU-Net. Without that, the net may label air that no crop showed.
        """
        bending = (ELASTIC if self.augmentation == "nnunet" else 0.0) if self.elastic is None else self.elastic
        return Views(augmentation=self.augmentation, elastic=bending, mirror=plan.mirror, black_is_background=alone)

    def loss(
        self, net: Net, stacked: StackedSupport, labels: int, views: Views, steps: int, masks: AcceptedMasks | None
    ) -> NetLoss:
        """The loss on labelled slices in a training of so many steps; `masks` are those of scribbled slices."""
        parts = net, stacked, labels, views, self.batch, self.rare_class_weight, steps
        return NetLoss(*parts) if masks is None else ScribbleLoss(*parts, masks.classes)

    def fingerprint(self, plan: NetPlan, stacked: StackedSupport, *further: Tensor | str) -> str:
        """Names the fit by all that decides its result, so that only its own half-done work is taken up again."""
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        return digest_of(f"{settings}:{plan}", stacked.digest(), *further)[:16]

    def _encoder(self) -> Encoder:
        if self.encoder is not None:
            return self.encoder
        return "none" if self.pretrain == "simclr" or self.dims == 3 else "imagenet"


class UNetSegmenter(Segmenter):
    """A trained net; one for stacks takes the slices it is given for neighbours, in their order."""

    def __init__(
        self,
        labels: Labels,
        slicer: Slicer,
        backbone: Backbone,
        net: Net,
        decisions: tuple[str, ...] = (),
        reliability: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.net = net
        self._decisions, self._reliability = decisions, dict(reliability)

    @property
    def decisions(self) -> tuple[str, ...]:
        return self._decisions

    @property
    def reliability(self) -> dict[str, float]:
        return self._reliability

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        if self.net.plan.depth == 1:
            return self._of_stacks(slices[:, :, None])[:, :, 0]
        parts = blocks(len(slices), self.net.plan.depth)
        return torch.cat([self._in_the_middle(slices[window], len(kept)) for kept, window in parts])

    def logits_with_context(
        self, stack: SliceView, wanted: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        if self.net.plan.depth == 1:
            return super().logits_with_context(stack, wanted)
        return self._block_by_block(stack, wanted)

    def learned(self) -> dict[str, Tensor]:
        return {f"net/{name}": value for name, value in trainable_state(self.net).items()} | {
            "plan": self.net.plan.pack()
        }

    def _block_by_block(self, stack: SliceView, wanted: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        for kept, window in blocks(len(stack), self.net.plan.depth):
            if set(kept).isdisjoint(wanted):
                continue
            slices = stack.take(window).to(self.backbone.device)
            start = self.net.plan.depth // 4
            logits = self._in_the_middle(slices, len(kept))
            yield kept, without_constant(logits, slices[start : start + len(kept)])

    def _in_the_middle(self, slices: Float[Tensor, "d c h w"], count: int) -> Float[Tensor, "n k h w"]:
        """Logits of `count` slices of a stack, from its first quarter on."""
        logits = self._of_stacks(rearrange(slices, "d c h w -> 1 c d h w"))
        start = self.net.plan.depth // 4
        return rearrange(logits[0, :, start : start + count], "k d h w -> d k h w")

    def _of_stacks(self, stacks: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        b, size = len(stacks), (stacks.shape[-2], stacks.shape[-1])
        square = into_square(rearrange(stacks, "b c d h w -> (b d) c h w"), self.net.plan.side)
        shown = rearrange(square, "(b d) c h w -> b c d h w", b=b)
        logits = self.net(shown)
        if self.net.plan.mirror:
            logits = mean_of_probabilities([logits, self.net(shown.flip(-1)).flip(-1)])
        back = from_square(rearrange(logits, "b k d h w -> (b d) k h w"), size)
        return rearrange(back, "(b d) k h w -> b k d h w", b=b)


def sequences_of(slicer: Slicer) -> int:
    """Number of sequences that the slices of a resolved slicer have; 0 for grey and colour."""
    return len(slicer.sequences) if len(slicer.sequences) > 1 else 0


def require_sequences(plan: NetPlan, slicer: Slicer) -> None:
    """Raise SettingsError unless a restored net takes as many sequences as the slices have."""
    if plan.sequences != sequences_of(slicer):
        raise SettingsError(
            f"tensor 'plan' is of a net for {plan.sequences} sequences, but the slices have {sequences_of(slicer)}"
        )


def _phases(method: UNet, config: TrainConfig, run: Run, fingerprint: str) -> tuple[Run, Run]:
    """The run of SimCLR and that of the training proper: folders of their own, and steps counted through both."""
    before = method.contrast.steps if method.pretrain == "simclr" else 0
    whole = before + config.steps
    scratch = run.scratch and run.scratch / fingerprint

    def first(step: int, total: int, note: str) -> None:
        run.report(step, whole, f"simclr {note}")

    def then(step: int, total: int, note: str) -> None:
        run.report(before + step, whole, note)

    return (
        dataclasses.replace(run, scratch=scratch and scratch / "simclr", report=first),
        dataclasses.replace(run, scratch=scratch and scratch / "unet", report=then),
    )
