"""The training of a head on a frozen encoder, and the segmenter with such a head.

Each view of each labelled slice is encoded once; only the head is trained, on the stored embeddings.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import LabelError, SettingsError
from handful.jobs.progress import Run
from handful.methods.auto_sam.heads import Head, against_background
from handful.methods.base import CHUNK, Method, Segmenter, Work, labelled_slices
from handful.methods.encoded_support import (
    EncodedSupport,
    encode_support,
    fingerprint,
    noisy,
    views_to_keep,
    with_pixels,
)
from handful.methods.learned import Learned
from handful.tuning.early_stopping import EarlyStopping
from handful.tuning.loop import TrainConfig, train
from handful.tuning.losses import dice_ce, fading, whole_batch, with_scribbles
from handful.tuning.sampling import BalancedSampler
from handful.tuning.seeds import seeded
from handful.tuning.trainable import load_trainable_state, trainable_state

CHECKS = 20
"""Number of times that a training evaluates the held-out slices, if any."""
PATIENCE = 5
"""Number of evaluations without improvement after which a training stops."""


@dataclass(frozen=True, kw_only=True)
class HeadTraining(Method):
    """Settings of the training of any head."""

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    views: int = 64
    """Augmented views stored per labelled slice, including the slice itself; 0 or 1 for no augmentation.

    For large support sets it is reduced (to no less than 4), so that the stored embeddings fit into 2 GiB.
    """
    batch: int = 4
    """Slices per training step; half of them are chosen to contain a random label."""
    dice: Literal["batch", "slice"] = "batch"
    """Dice loss over all slices of a batch together, or slice by slice; 'slice' favours empty masks of rare labels.

    The paper uses 'batch'.
    """
    rare_class_weight: float = 0.5
    """Weight of rare classes in the cross-entropy; 0 weights all pixels equally, as published.

    A pixel of a class that is r times rarer counts r ** rare_class_weight times as much. The exponent falls linearly to
    0 by the end of the training. With 0, small labels are learned late or never.
    """
    feature_noise: float = 0.1
    """Noise on the image embeddings in training, as a fraction of their standard deviation."""
    validate_from: int = 0
    """With at least this many patients, hold one out for early stopping; 0 trains on all, to the end.

    The weights with the lowest loss on the held-out patient are kept. Only a patient without whom every label is still
    present is held out.
    """
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(iterations=None, learning_rate=None, weight_decay=1e-4)
    )
    """Length and learning rate of the training; None takes values that suit the head and the backbone.

    The U-Net: 1,500 iterations at 2e-3. The heads of the paper: 1,500 at 2e-3 on handful-tiny, and the paper's 840 (120
    epochs of one patient) at 5e-4 on the original SAM weights. 'cnn' never takes more than 1e-3 by itself.
    """

    def __post_init__(self) -> None:
        for name, least in (("views", 0), ("batch", 1), ("validate_from", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.validate_from == 1:
            raise SettingsError("validate_from = 1 leaves no patient to train on; set 2 or more, or 0 for never")
        for name in ("feature_noise", "rare_class_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.validate_from and self.train.ema:
            raise SettingsError(
                f"validate_from = {self.validate_from} and train.ema = {self.train.ema} exclude each other, since both "
                "choose the final weights; set one of them to 0"
            )

    @abstractmethod
    def random_head(self, backbone: Backbone, classes: int, with_slices: bool) -> Head:
        """A new head with weights from the global random generator; see `new_head`."""

    def needs_slices(self, edge: int, backbone: Backbone) -> bool:
        """Whether the head takes the slices, too, if their longest edge has `edge` pixels."""
        return False

    def perturbed(self, image: ImageEmbeddings, head: Head, generator: torch.Generator) -> ImageEmbeddings:
        """The embeddings of a training step with random changes against overfitting."""
        return noisy(image, self.feature_noise, generator)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> AutoSamSegmenter:  # noqa: B008
        return self.resolved(backbone)._fit(support, backbone, run)

    def _fit(self, support: SupportSet, backbone: Backbone, run: Run) -> AutoSamSegmenter:
        slicer = self.resolved_slicer(support)
        head = self.head_for(support, slicer, backbone)
        encoded = self._encode(support, slicer, backbone, head.pixels)
        _require_every_label(encoded, support.labels)
        scratch = run.scratch and run.scratch / fingerprint(self, encoded.digest, backbone)
        training, held = _split(self, support, encoded)
        loss = _HeadLoss(self, head, encoded, training)
        run = dataclasses.replace(run, scratch=scratch)
        if len(held):
            _train_with_validation(loss, held, run)
        else:
            train(head, loss, self.train, run)
        return AutoSamSegmenter(support.labels, slicer, backbone, head)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> AutoSamSegmenter:
        head = self.new_head(backbone, 1 + len(labels), with_slices="pixels" in learned)
        fixed = head.fixed_state()
        load_trainable_state(head, {name: value for name, value in learned.items() if name not in fixed})
        taken = Learned(learned)
        for name, value in fixed.items():
            shape = " ".join(map(str, value.shape))
            value.copy_(taken.floats(name, shape) if value.is_floating_point() else taken.whole(name, shape))
            if not torch.equal(head.fixed_state()[name], value):  # a number that backbone and settings decide
                raise SettingsError(f"tensor {name!r} is {value.tolist()}, not {head.fixed_state()[name].tolist()}")
        return AutoSamSegmenter(labels, slicer, backbone, head)

    def head_for(self, support: SupportSet, slicer: Slicer, backbone: Backbone) -> Head:
        """A new, untrained head for the labels and the slices of a support set."""
        edge = max(max(slicer.grid(facts.geometry).size) for facts in support.facts)
        return self.new_head(backbone, 1 + len(support.labels), with_slices=self.needs_slices(edge, backbone))

    def new_head(self, backbone: Backbone, classes: int, *, with_slices: bool = False) -> Head:
        """A new, untrained head for `classes` classes including the background; its weights depend on the seed only.

        `with_slices`: the head takes the slices themselves in addition to their embeddings, see `needs_slices`.
        """
        with seeded(self.train.seed):
            return self.random_head(backbone, classes, with_slices).to(backbone.device)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        method, slicer = self.resolved(backbone), self.resolved_slicer(support)
        pixels = method.head_for(support, slicer, backbone).pixels
        encoded = labelled_slices(self, support) * self._views(support, slicer, backbone, pixels)
        return (Work.of(method, support, encoded=encoded, steps=method.train.steps),)

    def _views(self, support: SupportSet, slicer: Slicer, backbone: Backbone, pixels: int) -> int:
        side = pixels or backbone.mask_side
        return views_to_keep(self.views, support, slicer, backbone, side=side, pixels=pixels)

    def _encode(self, support: SupportSet, slicer: Slicer, backbone: Backbone, pixels: int) -> EncodedSupport:
        return encode_support(
            support.slices(slicer),
            backbone,
            views=self._views(support, slicer, backbone, pixels),
            seed=self.train.seed,
            side=pixels or backbone.mask_side,
            pixels=pixels,
        )


class AutoSamSegmenter(Segmenter):
    """A trained head, which predicts all classes of a slice in one pass, without prompts."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, head: Head) -> None:
        super().__init__(labels, slicer, backbone)
        self.head = head

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        image = with_pixels(self.backbone, slices, self.backbone.encode(slices), self.head.pixels)
        return self.backbone.to_image_frame(against_background(self.head(image)), image.size)

    def learned(self) -> dict[str, Tensor]:
        return trainable_state(self.head) | {name: value.clone() for name, value in self.head.fixed_state().items()}


def _require_every_label(encoded: EncodedSupport, labels: Labels) -> None:
    usable = encoded.holds[encoded.views == 0].any(dim=0)
    for name, is_usable in zip(labels.names, usable.tolist(), strict=True):
        if not is_usable:
            raise LabelError(
                f"{name!r} is smaller than a pixel of the model's output on every labelled slice; label a slice where "
                "it is larger, or use a backbone with a larger input"
            )


def _split(
    method: HeadTraining, support: SupportSet, encoded: EncodedSupport
) -> tuple[Int[Tensor, " t"], Int[Tensor, " h"]]:
    """Rows to train on, and the unaugmented rows of the held-out patient (none if no patient is held out)."""
    patients = [case.patient_key for case in support.cases]
    names = sorted(set(patients))
    everything = torch.arange(len(encoded.cases))
    if method.validate_from and len(names) >= method.validate_from:
        generator = torch.Generator().manual_seed(method.train.seed)
        for choice in torch.randperm(len(names), generator=generator).tolist():
            of_patient = torch.tensor([patient == names[choice] for patient in patients])[encoded.cases]
            training = everything[~of_patient]
            held_out = everything[of_patient & (encoded.views == 0)]
            if len(held_out) and bool(encoded.holds[training].any(dim=0).all()):
                return training, held_out
    return everything, everything[:0]


class _HeadLoss:
    """The loss of one training step, on random rows of those to train on."""

    def __init__(self, method: HeadTraining, head: Head, encoded: EncodedSupport, training: Int[Tensor, " t"]) -> None:
        self.method, self.head, self.encoded = method, head, encoded
        self.sampler = BalancedSampler(encoded.holds, method.batch, training)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        rows = self.sampler.sample(generator)
        image = self.method.perturbed(self.encoded.rows(rows), self.head, generator)
        return self.loss(rows, image, fading(self.method.rare_class_weight, step, self.method.train.steps))

    def loss(self, rows: Tensor, image: ImageEmbeddings, rare_class_weight: float = 0.0) -> Tensor:
        logits = against_background(self.head(image))
        batch = logits, self.encoded.target[rows].to(logits), self.encoded.valid_mask[rows].to(logits.device)

        def whole(logits: Tensor, target: Tensor, valid_mask: Tensor) -> Tensor:
            part = logits, target, valid_mask
            return dice_ce(*(whole_batch(*part) if self.method.dice == "batch" else part), rare_class_weight)

        return with_scribbles(whole, *batch, self.encoded.scribbled[rows])

    @torch.no_grad()
    def held_out_loss(self, rows: Tensor) -> float:
        parts = torch.split(rows, CHUNK)
        return sum(len(part) * float(self.loss(part, self.encoded.rows(part))) for part in parts) / len(rows)


def _train_with_validation(loss: _HeadLoss, held_out: Int[Tensor, " h"], run: Run) -> None:
    """Train with early stopping, and keep the weights with the lowest loss on the held-out rows."""
    config = loss.method.train
    every = max(1, config.steps // CHECKS)
    stopping = EarlyStopping(loss.head, lambda: loss.held_out_loss(held_out), every, PATIENCE, run.scratch)
    history = train(loss.head, loss, config, run, stopping)
    if len(history.losses) == config.steps:
        stopping.check(config.steps)
    stopping.restore_best()
