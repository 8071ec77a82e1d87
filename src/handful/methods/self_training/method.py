"""Self-training: a U-Net learns from the labelled few, then from its own labels of the whole cohort as well.

First labels come from any method that is fitted on the labelled slices; a teacher, the moving average of the U-Net,
takes over as it comes to agree with them. What makes it work is old by now: pseudo-labels of a mean teacher (Tarvainen
and Valpola, NeurIPS 2017) for strongly changed views (Sohn et al., "FixMatch", NeurIPS 2020), copy-paste between
labelled and unlabelled slices (Bai et al., CVPR 2023), and two predictions weighted by how far they agree (Ma et al.,
"SynFoC", CVPR 2025). Built from the papers' descriptions. A gate stops it where predictions do not agree, since
learning from noise does harm. A prediction costs one U-Net, and no backbone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Work
from handful.methods.self_training.gate import Gate
from handful.methods.self_training.initial import initial_labels, initial_method, labels_at_hand
from handful.methods.self_training.polarity import with_negatives
from handful.methods.self_training.pool import Pool, labels_in_one_piece
from handful.methods.self_training.training import Mixture, SelfTrainingLoss
from handful.methods.stacks import StackedSupport
from handful.methods.unet.method import UNet, UNetSegmenter
from handful.methods.unet.network import NetPlan
from handful.methods.unet.scribbles import accepted_masks
from handful.tuning.loop import TrainConfig, train

STEPS = 4000
"""Of a training, where nobody sets them."""
WITH_FIRST_LABELS, BY_ITSELF = 0.4, 0.6
"""Agreement below which a case is left out, where nobody sets it: with first labels, and without."""


@dataclass(frozen=True, kw_only=True)
class SelfTraining(UNet):
    """Trains a U-Net on the labelled slices, and on the unlabelled scans of the cohort with labels of its own."""

    when = "few labelled cases and at least 10 unlabelled scans"
    minutes = "up to hours"

    initial: str = "ensemble"
    """Method that makes the first labels of the unlabelled scans: ensemble, auto-sam, auto-sam-unet, fate,
    few-shot-prompts, lora, nearest-slice, unet, or none, with which the U-Net's own come first."""
    initial_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that method."""
    supervised: float = 0.2
    """Share of the training that uses labelled slices only."""
    unlabelled_weight: float = 0.5
    """Weight of the unlabelled part of a mixed slice in the loss; that of the labelled part is 1."""
    strength: float = 1.3
    """How much more the brightness of unlabelled slices is changed for the U-Net than that of labelled ones; the
    teacher gets them unchanged."""
    confidence: float = 0.9
    """Probability (0 to 1) that the teacher's label of a pixel must have to be learned from. Pixels with a first label
    are learned from in any case."""
    gate: float | None = None
    """Agreement of U-Net, teacher and first labels (0 to 1) below which an unlabelled case is left out; where the
    median of all cases is lower, nothing more is learned from unlabelled scans. None takes 0.4, or 0.6 without first
    labels, where the teacher is compared with itself."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            iterations=None, learning_rate=None, ema=0.99, clip=5.0, precision="bfloat16"
        )
    )
    """Length and rate of the training. None takes 4,000 steps, and the rate 5e-3, or 1e-3 with ImageNet's encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dims != 2 or self.pretrain != "none" or self.augmentation != "nnunet":
            raise SettingsError("self-training is for dims=2, pretrain=none and augmentation=nnunet; set them so")
        if not self.train.ema:
            raise SettingsError("the teacher is a moving average of the weights; set train.ema above 0, such as 0.99")
        most = {"supervised": 0.9, "confidence": 1.0, "gate": 1.0, "unlabelled_weight": 10.0, "strength": 3.0}
        for name, highest in most.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value <= highest:
                raise SettingsError(f"{name} must be from 0 to {highest:g}, got {value}")
        self.first_method()

    @property
    def uses_unlabelled(self) -> bool:
        return True

    @property
    def uses_uncertain_labels(self) -> bool:
        return True

    def first_method(self) -> Method | None:
        """The method that makes the first labels; None where the U-Net's own come first."""
        return initial_method(self.initial, self.initial_settings)

    def training(self, plan: NetPlan) -> TrainConfig:
        config = super().training(plan)
        return dataclasses.replace(config, iterations=STEPS) if self.train.iterations is None else config

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> UNetSegmenter:  # noqa: B008
        slicer = self.resolved_slicer(support)
        with support.held() as held:
            plan = self.plan(held, slicer, backbone)
            stacked, pool = StackedSupport.of(held, slicer, plan.side, 1), Pool.of(held, slicer, plan.side)
            masks = accepted_masks(held, slicer, stacked, backbone)
            made_by = "" if self.initial == "none" else backbone.digest()
            further = f"{pool.digest()} {held.unlabelled.labels_digest} {made_by}"
            name = self.fingerprint(plan, stacked, further, *((masks.classes,) if masks else ()))
            run = dataclasses.replace(run, scratch=run.scratch and run.scratch / name)
            initial = self._initial_labels(held, pool, slicer, backbone, run.part("first labels"))
        net = self.net(plan, len(support.labels)).to(backbone.device)
        config, teacher = self.training(plan), copy.deepcopy(net).requires_grad_(False)
        views, negatives = with_negatives(self.views(plan, alone=not len(pool)), held, stacked, pool)
        supervised = self.loss(net, stacked, len(support.labels), views, config.steps, masks)
        gate = self._gate(pool, initial, config.steps, run)
        one_piece = labels_in_one_piece(stacked, len(support.labels))
        mixture = self.mixture(config.steps)
        loss = gate and SelfTrainingLoss(supervised, teacher, pool, mixture, gate, one_piece, initial)
        train(net, loss or supervised, config, run, rates={"encoder.": self.encoder_rate}, teacher=teacher)
        net.drop_training_state()
        learned = (
            gate.summary() if gate else ("there are no scans without labels, so it learned from labelled ones only",)
        )
        strokes = (masks.described(backbone),) if masks else ()
        decisions = (self.described(plan, config), *negatives, *strokes, *learned)
        return UNetSegmenter(support.labels, slicer, backbone, net, decisions, gate.of_cases() if gate else {})

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        """That of the initial method, which also segments the unlabelled scans, and that of the U-Net.

        A step with unlabelled slices counts as two, since the teacher segments these first. Unlabelled scans are taken
        to have as many slices as the labelled ones.
        """
        slicer, count = self.resolved_slicer(support), len(support.unlabelled)
        slices = count * sum(len(slicer.grid(facts.geometry)) for facts in support.facts) // len(support.facts)
        first = self.first_method() if count else None
        first = None if first and support.scribbled and first.needs_whole_masks else first
        before = first.with_slicer(slicer).work(support, backbone) if first else ()
        (own,) = super().work(support, backbone)
        assert isinstance(own.method, SelfTraining)
        own = dataclasses.replace(own, method=dataclasses.replace(own.method, initial="none", initial_settings={}))
        mixed = own.steps - self.mixture(own.steps).first if count else 0
        labelling = [dataclasses.replace(work, segmented=work.segmented + slices) for work in before]
        return (*labelling, dataclasses.replace(own, steps=own.steps + mixed))

    def mixture(self, steps: int) -> Mixture:
        """How labelled and unlabelled slices come together in a training of so many steps."""
        first = round(self.supervised * steps)
        return Mixture(
            first=first,
            full=first + steps // 10,
            weight=self.unlabelled_weight,
            strength=self.strength,
            confidence=self.confidence,
        )

    def _gate(self, pool: Pool, initial: Int[Tensor, "v s s"] | None, steps: int, run: Run) -> Gate | None:
        """None where there is nothing without labels."""
        if not len(pool):
            return None
        threshold = self.gate if self.gate is not None else WITH_FIRST_LABELS if initial is not None else BY_ITSELF
        return Gate(pool, threshold, self.mixture(steps).first, steps, initial, run.scratch)

    def _initial_labels(
        self, support: SupportSet, pool: Pool, slicer: Slicer, backbone: Backbone, run: Run
    ) -> Int[Tensor, "v s s"] | None:
        if not len(pool):
            return None
        if support.unlabelled.labels:
            return labels_at_hand(support, pool, slicer)
        method = self.first_method()
        if method is None or (support.scribbled and method.needs_whole_masks):
            return None
        seeded = method.seeded(self.train.seed) if method.trains else method
        return initial_labels(seeded, support, pool, slicer, backbone, run)
