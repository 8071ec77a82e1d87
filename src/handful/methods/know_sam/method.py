"""KnowSAM: two networks and a SAM teach each other on labelled and unlabelled slices.

After Huang et al., "Learnable prompting SAM-induced knowledge distillation for semi-supervised medical image
segmentation" (IEEE TMI 2025, arXiv 2412.13742). A reconstruction from the paper, which differs from the authors' code
on purpose: agreement and distillation compare all classes at once, and agreement reaches both networks. A second U-Net
of random weights takes the place of the V-Net, and augmentation, optimiser and rates are those of `unet`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.framing import from_square, into_square
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.digests import digest_of
from handful.jobs.plain_text import counted
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, Work, below, mean_of_probabilities
from handful.methods.know_sam.networks import KnowSamNetworks, SamBranch
from handful.methods.know_sam.training import KnowSamLoss, Weights
from handful.methods.self_training.polarity import with_negatives
from handful.methods.self_training.pool import Pool
from handful.methods.stacks import StackedSupport
from handful.methods.unet.method import RATES, UNet, require_sequences
from handful.methods.unet.network import Encoder, NetPlan
from handful.tuning.loop import TrainConfig, train
from handful.tuning.trainable import load_trainable_state, trainable_state

STEPS = 3000
"""Of a training, where nobody sets them."""
Answer = Literal["fusion", "sam"]


@dataclass(frozen=True, kw_only=True)
class KnowSam(Method):
    """Trains two U-Nets, a network that fuses them, and a SAM, on labelled slices and on unlabelled scans."""

    when = "comparison with KnowSAM; few labelled cases and at least 10 unlabelled scans"
    minutes = "up to hours"

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    answer: Answer = "fusion"
    """Prediction of a slice: that of the fused U-Nets, without any backbone, or that of the SAM which they prompt."""
    encoder: Encoder | None = None
    """Encoder of the first U-Net at the start: trained on ImageNet ("imagenet"), or random weights ("none"). None takes
    "imagenet" if it is available. The second U-Net starts from random weights."""
    encoder_rate: float = 0.2
    """Learning rate of an encoder trained on ImageNet, as a share of that of the rest."""
    side: int | None = None
    """Pixels along the square that slices are stretched onto, a multiple of 16. None chooses as `unet` does."""
    channels: int | None = None
    """Channels of the finest stage of the U-Nets. None takes 16, and 24 for more than three labels."""
    elastic: float | None = None
    """Strongest bending of a training slice, as a share of its side. None takes 0.03."""
    mirror: bool | None = None
    """Whether half of the training slices are mirrored. None does so for pictures whose labels have no side."""
    batch: int = 8
    """Slices per training step, half of them labelled and half unlabelled."""
    distillation: float = 1.0
    """Weight of the distillation of the SAM's predictions into the two U-Nets."""
    temperature: float = 10.0
    """Temperature of the distillation; higher ones soften the predictions more."""
    certainty: float = 0.9
    """Weight of the entropy of the U-Nets' predictions, which is to be low."""
    mixing: float = 0.24
    """Share of the training after which labelled and unlabelled slices are mixed."""
    strength: float = 1.3
    """How much more the brightness of unlabelled slices is changed than that of labelled ones."""
    adapter: float = 0.25
    """Inner width of the adapters in the SAM's encoder, as a share of the width of its main features."""
    sam_rate: float | None = None
    """Peak learning rate of the SAM's parts. None takes the one that suits the backbone."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            iterations=None, learning_rate=None, ema=0.99, clip=5.0, precision="bfloat16"
        )
    )
    """Length and rate of the training. None takes 3,000 steps, and the rate 5e-3, or 1e-3 with ImageNet's encoder."""

    def __post_init__(self) -> None:
        self._unet()
        if self.batch < 2:
            raise SettingsError(f"batch must be at least 2, half labelled and half not, got {self.batch}")
        for name, most in (("distillation", 100.0), ("certainty", 100.0), ("mixing", 1.0), ("strength", 3.0)):
            if not 0 <= getattr(self, name) <= most:
                raise SettingsError(f"{name} must be from 0 to {most:g}, got {getattr(self, name)}")
        for name in ("temperature", "adapter", "sam_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be above 0, got {value}")

    @property
    def uses_all_sequences(self) -> bool:
        return True

    @property
    def uses_unlabelled(self) -> bool:
        return True

    def needs_backbone(self, learned: Mapping[str, Tensor]) -> bool:
        return self.answer == "sam"

    def resolved(self, backbone: Backbone) -> KnowSam:
        rate = backbone.family.defaults.decoder_rate if self.sam_rate is None else self.sam_rate
        return dataclasses.replace(self, sam_rate=rate)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> KnowSamSegmenter:  # noqa: B008
        slicer, labels, unet = self.resolved_slicer(support), len(support.labels), self._unet()
        with support.held() as held:
            plan = unet.plan(held, slicer, backbone)
            stacked, pool = StackedSupport.of(held, slicer, plan.side, 1), Pool.of(held, slicer, plan.side)
        method, config = self.resolved(backbone), self._training(plan)
        settings = json.dumps(dataclasses.asdict(method), sort_keys=True, default=str)
        name = digest_of(f"{settings}:{plan}", stacked.digest(), pool.digest(), backbone.digest())[:16]
        networks = self._networks(plan, labels, backbone, with_sam=True)
        weights = Weights(
            distillation=self.distillation,
            temperature=self.temperature,
            certainty=self.certainty,
            strength=self.strength,
            mixing_from=round(self.mixing * config.steps),
            steps=config.steps,
        )
        views, negatives = with_negatives(unet.views(plan, alone=not len(pool)), held, stacked, pool)
        loss = KnowSamLoss(networks, stacked, pool, labels, views, self.batch, weights)
        scratch = run.scratch and run.scratch / name
        train(networks, loss, config, dataclasses.replace(run, scratch=scratch), rates=method._rates(plan, config))
        networks.drop_training_state(keep_sam=self.answer == "sam")
        of_scans = (
            counted(len(pool.names), "unlabelled scan") if len(pool) else "no unlabelled scans, since there are none"
        )
        decisions = (f"two of: {unet.described(plan, config)}", *negatives, f"learned from {of_scans}")
        return KnowSamSegmenter(support.labels, slicer, backbone, networks, decisions)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        """That of the training. With unlabelled slices a step takes twice as many, and mixed ones once more."""
        plan = self._unet().plan(support, self.resolved_slicer(support), backbone)
        config = self._training(plan)
        steps = config.steps
        if support.unlabelled or not all(facts.complete for facts in support.facts):
            steps = round((3 - self.mixing) * steps)
        method = dataclasses.replace(self.resolved(backbone), side=plan.side, mirror=plan.mirror, train=config)
        return (Work.of(method, support, steps=steps),)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> KnowSamSegmenter:
        plan = NetPlan.unpack(learned["plan"])
        require_sequences(plan, slicer)
        networks = self._networks(plan, len(labels), backbone, with_sam=self.answer == "sam", pretrained=False)
        load_trainable_state(networks, below("networks", learned))
        return KnowSamSegmenter(labels, slicer, backbone, networks)

    def _unet(self) -> UNet:
        """The first U-Net, with the settings that the two share."""
        return UNet(
            slicer=self.slicer,
            encoder=self.encoder,
            encoder_rate=self.encoder_rate,
            side=self.side,
            channels=self.channels,
            deep_supervision=False,
            elastic=self.elastic,
            mirror=self.mirror,
            batch=self.batch,
            train=self.train,
        )

    def _training(self, plan: NetPlan) -> TrainConfig:
        return self.train.filled(STEPS, RATES[plan.encoder])

    def _networks(
        self, plan: NetPlan, labels: int, backbone: Backbone, with_sam: bool, pretrained: bool = True
    ) -> KnowSamNetworks:
        seed, sam = self.train.seed, None
        if with_sam:
            sam = SamBranch(backbone, labels, max(1, round(self.adapter * backbone.channels)), seed)
        networks = KnowSamNetworks(self._unet().net(plan, labels, pretrained), labels, seed, sam)
        return networks.to(backbone.device)

    def _rates(self, plan: NetPlan, config: TrainConfig) -> dict[str, float]:
        """Learning rates of the parts, as shares of that of the rest."""
        assert config.learning_rate is not None
        assert self.sam_rate is not None
        plain = RATES["none"] / RATES[plan.encoder]
        return {
            "first.encoder.": self.encoder_rate,
            "second.": plain,
            "fusion.": plain,
            "sam.": self.sam_rate / config.learning_rate,
        }


class KnowSamSegmenter(Segmenter):
    """The two U-Nets and their fusion, and the SAM where it is to answer."""

    def __init__(
        self,
        labels: Labels,
        slicer: Slicer,
        backbone: Backbone,
        networks: KnowSamNetworks,
        decisions: tuple[str, ...] = (),
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.networks = networks
        self._decisions = decisions

    @property
    def decisions(self) -> tuple[str, ...]:
        return self._decisions

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        plan, size = self.networks.plan, (slices.shape[-2], slices.shape[-1])
        square = into_square(slices, plan.side)
        logits = self._of_square(square)
        if plan.mirror:
            logits = mean_of_probabilities([logits, self._of_square(square.flip(-1)).flip(-1)])
        return from_square(logits, size)

    def learned(self) -> dict[str, Tensor]:
        state = trainable_state(self.networks)
        return {f"networks/{name}": value for name, value in state.items()} | {"plan": self.networks.plan.pack()}

    def _of_square(self, square: Float[Tensor, "n c s s"]) -> Float[Tensor, "n k s s"]:
        fused: Tensor = self.networks(square)[2]
        if self.networks.sam is None:
            return fused
        answered: Tensor = self.networks.sam(square, fused)
        return answered
