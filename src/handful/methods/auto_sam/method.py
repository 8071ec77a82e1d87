"""AutoSAM: heads without prompts on a frozen encoder, one map a class: SAM's mask decoder, a CNN, a U-Net, or less.

After Hu, Xu and Shi, "How to Efficiently Adapt Large Segmentation Model (SAM) to Medical Images" (arXiv 2306.13731).
The encoder sees each view of each support slice once; the head alone trains, on the kept embeddings. `faithful` builds
the heads as the authors' code does, with what that code does by accident; without it they are mended.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import has_finer_levels
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import LabelError, SettingsError
from handful.jobs.progress import Run
from handful.methods.auto_sam.heads import (
    CnnHead,
    FaithfulVitHead,
    Head,
    LinearHead,
    UNetHead,
    VitHead,
    against_background,
)
from handful.methods.base import CHUNK, Method, Segmenter
from handful.methods.encoded_support import (
    EncodedSupport,
    encode_support,
    fingerprint,
    noisy,
    views_to_keep,
    with_pixels,
)
from handful.tuning.early_stopping import EarlyStopping
from handful.tuning.loop import TrainConfig, train
from handful.tuning.losses import dice_ce, fading, whole_batch
from handful.tuning.sampling import BalancedSampler
from handful.tuning.trainable import load_trainable_state, trainable_state

CHECKS = 20
"""How often a training looks at the held-out slices, if any."""
PATIENCE = 5
"""Checks without a better one after which a training stops."""
RATES = {"unet": 2e-3, "vit": 2e-3, "cnn": 1e-3, "linear": 2e-3}
"""Peak learning rates that suit the heads on handful-tiny."""


@dataclass(frozen=True, kw_only=True)
class AutoSam(Method):
    """A head without prompts learns all classes, the background among them; the encoder stays frozen."""

    when = "2 to 10 labelled cases; each image is segmented in one pass"
    minutes = "3 to 18 min"

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    head: Literal["unet", "vit", "cnn", "linear"] = "unet"
    """'unet': ours, a U-Net over all levels of the embeddings, and over the slices themselves where these are finer.
    'vit', 'cnn' and 'linear' are the paper's: the mask decoder, asked with a learned token a class; ten convolutions,
    the most parameters; the decoder's upscaling alone, the least, which in spite of its name bends three times. All but
    'vit' start from random weights."""
    shared_pass: bool = True
    """For 'vit': the tokens of all classes meet each other and one image, in one pass. Without it each class has the
    image to itself, as published, at as many times the cost as there are classes."""
    token_init_std: float = 0.5
    """For 'vit': how far apart the class tokens start, the standard deviation of noise round SAM's mask token, whose
    numbers are about 1. Classes that start as one, and share their hypernetwork, are slow to part."""
    as_published: bool = False
    """Build the head as the authors' code does. 'vit': an image a class, two mask tokens and an IoU token a class and
    the image's position code drawn at random; 'cnn': the weights' start; 'linear': `relu_out`."""
    relu_out: bool = False
    """For 'linear': end in the published ReLU, by which classes can die."""
    views: int = 64
    """Augmented views kept of each support slice, the slice itself being the first; 0 and 1 keep the slice alone. Where
    the support has many slices they are fewer, so that all fit into 2 GiB."""
    batch: int = 4
    """Slices a training step; every other one holds a label drawn at random, the rest are any."""
    dice: Literal["batch", "slice"] = "batch"
    """Whose Dice is trained on: that of all slices of a batch together, as published, or of each slice by itself, which
    rewards a head for finding nothing where most slices hold few of the labels."""
    rare_class_weight: float = 0.5
    """How much more a pixel of a rare class counts than one of a common one in the cross entropy: the power of how many
    times rarer it is, at the start of the training; it falls to 0 towards its end. At 0 all count alike, as published,
    and labels of few pixels are found late, or never."""
    feature_noise: float = 0.1
    """Noise on the image embeddings in training, as a share of their standard deviation."""
    feature_dropout: float = 0.5
    """For 'unet', where it sees the slices themselves: share of the embeddings' channels that are kept from it in a
    training step, so that it learns to use both."""
    validate_from: int = 0
    """Where the support has at least so many patients, hold one of them out, keep the weights that did best on it, and
    stop when it no longer gains; 0 trains on all, to the end. It is one without whom every label is still shown."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(iterations=1500, learning_rate=None, weight_decay=1e-4)
    )
    """Length and rate of the training. Left out, the rate is 2e-3, and 1e-3 for 'cnn', whose ten layers have no norms:
    they suit handful-tiny. For SAM's own weights take the paper's 5e-4, and 840 steps, its 120 epochs of a patient."""

    def __post_init__(self) -> None:
        for name, least in (("views", 0), ("batch", 1), ("validate_from", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.validate_from == 1:
            raise SettingsError("validate_from = 1 leaves nobody to train on; take 2 or more, or 0 for never")
        for name in ("feature_noise", "token_init_std", "rare_class_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.feature_dropout < 1:
            raise SettingsError(f"feature_dropout must be a share from 0 to less than 1, got {self.feature_dropout}")
        if self.as_published and self.head == "unet":
            raise SettingsError(
                "as_published is for the published heads, and 'unet' is ours; set head to vit, cnn or linear"
            )
        if self.relu_out and self.head != "linear":
            raise SettingsError(f"relu_out is for the head 'linear', and this one is {self.head!r}; leave it out")
        if self.validate_from and self.train.ema:
            raise SettingsError(
                f"validate_from = {self.validate_from} and train.ema = {self.train.ema} both choose the weights; "
                "set one of them to 0"
            )

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> AutoSamSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
        edge = max(max(slicer.grid(facts.geometry).size) for facts in support.facts) if self.head == "unet" else 0
        head = self.new_head(backbone, 1 + len(support.labels), with_slices=finer_than_embeddings(edge, backbone))
        encoded = self._encode(support, slicer, backbone, head.pixels)
        _require_every_label(encoded, support.labels)
        scratch = run.scratch and run.scratch / fingerprint(self, encoded.digest, backbone)
        training, held = _split(self, support, encoded)
        loss = _HeadLoss(self, head, encoded, training)
        run = dataclasses.replace(run, scratch=scratch)
        if len(held):
            _train_to_the_best(loss, held, run)
        else:
            train(head, loss, self.training(), run)
        return AutoSamSegmenter(support.labels, slicer, backbone, head)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> AutoSamSegmenter:
        head = self.new_head(backbone, 1 + len(labels), with_slices="pixels" in learned)
        fixed = head.fixed_state()
        load_trainable_state(head, {name: value for name, value in learned.items() if name not in fixed})
        for name, value in fixed.items():
            value.copy_(learned[name])
        return AutoSamSegmenter(labels, slicer, backbone, head)

    def training(self) -> TrainConfig:
        """`train` with the head's own rate where it has none."""
        rate = self.train.learning_rate
        return dataclasses.replace(self.train, learning_rate=RATES[self.head] if rate is None else rate)

    def new_head(self, backbone: Backbone, classes: int, *, with_slices: bool = False) -> Head:
        """The head before any training, for so many classes, the background counted; one seed, one head.

        `with_slices` lets 'unet' have the slices themselves as well as their embeddings.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            return self._random_head(backbone, classes, with_slices).to(backbone.device)

    def _random_head(self, backbone: Backbone, classes: int, with_slices: bool) -> Head:
        finer = has_finer_levels(backbone.mask_decoder)
        if self.head == "cnn":
            return CnnHead(backbone.channels, classes, finer, as_published=self.as_published)
        if self.head == "unet":
            return UNetHead(backbone.channels, classes, backbone.feature_side, finer, with_slices=with_slices)
        if self.head == "linear":
            return LinearHead(backbone.channels, classes, relu_out=self.relu_out or self.as_published)
        if self.as_published:
            return FaithfulVitHead(backbone, classes)
        return VitHead(backbone, classes, shared_pass=self.shared_pass, token_init_std=self.token_init_std)

    def _encode(self, support: SupportSet, slicer: Slicer, backbone: Backbone, pixels: int) -> EncodedSupport:
        return encode_support(
            support.slices(slicer),
            backbone,
            views=views_to_keep(self.views, support, slicer, backbone, pixels),
            seed=self.train.seed,
            side=pixels or backbone.mask_side,
            pixels=pixels,
        )


class AutoSamSegmenter(Segmenter):
    """A trained head; it predicts all classes of a slice in one pass, without prompts."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, head: Head) -> None:
        super().__init__(labels, slicer, backbone)
        self.head = head

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        image = with_pixels(self.backbone, slices, self.backbone.encode(slices), self.head.pixels)
        return self.backbone.to_image_frame(against_background(self.head(image)), image.size)

    def learned(self) -> dict[str, Tensor]:
        return trainable_state(self.head) | {name: value.clone() for name, value in self.head.fixed_state().items()}


def finer_than_embeddings(edge: int, backbone: Backbone) -> bool:
    """Whether slices with a longest edge of so many pixels show more than the finest level of the embeddings."""
    cells = backbone.feature_side
    return edge > (4 * cells if has_finer_levels(backbone.mask_decoder) else cells)


def _require_every_label(encoded: EncodedSupport, labels: Labels) -> None:
    shown = encoded.holds[encoded.views == 0].any(dim=0)
    for name, found in zip(labels.names, shown.tolist(), strict=True):
        if not found:
            raise LabelError(
                f"{name!r} covers no cell of the model's square by half on any support slice; "
                "label a slice where it is larger, or take a backbone with a larger square"
            )


def _split(
    method: AutoSam, support: SupportSet, encoded: EncodedSupport
) -> tuple[Int[Tensor, " t"], Int[Tensor, " h"]]:
    """Rows to train on, and those of the held-out patient, unaugmented; none where nobody is held out."""
    patients = [case.patient or case.name for case in support.cases]
    names = sorted(set(patients))
    everything = torch.arange(len(encoded.cases))
    if method.validate_from and len(names) >= method.validate_from:
        generator = torch.Generator().manual_seed(method.train.seed)
        for choice in torch.randperm(len(names), generator=generator).tolist():
            own = torch.tensor([who == names[choice] for who in patients])[encoded.cases]
            left = everything[~own]
            held = everything[own & (encoded.views == 0)]
            if len(held) and bool(encoded.holds[left].any(dim=0).all()):
                return left, held
    return everything, everything[:0]


class _HeadLoss:
    """The loss of one training step, on rows chosen from those to train on."""

    def __init__(self, method: AutoSam, head: Head, encoded: EncodedSupport, training: Int[Tensor, " t"]) -> None:
        self.method, self.head, self.encoded = method, head, encoded
        self.sampler = BalancedSampler(encoded.holds, method.batch, training)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        rows = self.sampler.sample(generator)
        image = noisy(self.encoded.rows(rows), self.method.feature_noise, generator)
        if self.head.pixels:
            image = _with_fewer_channels(image, self.method.feature_dropout, generator)
        return self.loss(rows, image, fading(self.method.rare_class_weight, step, self.method.train.iterations))

    def loss(self, rows: Tensor, image: ImageEmbeddings, rare_class_weight: float = 0.0) -> Tensor:
        logits = against_background(self.head(image))
        shown = logits, self.encoded.target[rows].to(logits), self.encoded.valid_mask[rows].to(logits.device)
        return dice_ce(*(whole_batch(*shown) if self.method.dice == "batch" else shown), rare_class_weight)

    @torch.no_grad()
    def held_out_loss(self, rows: Tensor) -> float:
        parts = torch.split(rows, CHUNK)
        return sum(len(part) * float(self.loss(part, self.encoded.rows(part))) for part in parts) / len(rows)


def _with_fewer_channels(image: ImageEmbeddings, share: float, generator: torch.Generator) -> ImageEmbeddings:
    """Some channels of the embeddings cleared, others in each slice; the slice itself, which comes first, is whole."""
    slices, *levels = image.features
    kept = [(torch.rand(*level.shape[:2], 1, 1, generator=generator) >= share).to(level) for level in levels]
    return dataclasses.replace(
        image, features=(slices, *[level * few for level, few in zip(levels, kept, strict=True)])
    )


def _train_to_the_best(loss: _HeadLoss, held: Int[Tensor, " h"], run: Run) -> None:
    """Trains, and leaves the head with the weights that did best on the held-out rows."""
    config = loss.method.training()
    every = max(1, config.iterations // CHECKS)
    stopping = EarlyStopping(loss.head, lambda: loss.held_out_loss(held), every, PATIENCE, run.scratch)
    history = train(loss.head, loss, config, run, stopping)
    if len(history.losses) == config.iterations:
        stopping.check(config.iterations)
    stopping.restore_best()
