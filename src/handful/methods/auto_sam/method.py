"""AutoSAM: heads without prompts on a frozen encoder, one map a class: SAM's mask decoder, a CNN, a U-Net, or less.

After Hu, Xu and Shi, "How to Efficiently Adapt Large Segmentation Model (SAM) to Medical Images" (arXiv 2306.13731).
The encoder sees each view of each support slice once; the head alone trains, on the kept embeddings. `faithful` builds
the heads as the authors' code does, with what that code does by accident; without it they are mended.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward, SamLayerNorm

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import decode_with_tokens, has_finer_levels, no_mask, score_tokens
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import LabelError, SettingsError
from handful.jobs.atomic import write_atomically
from handful.jobs.progress import Run
from handful.methods.base import CHUNK, Method, Segmenter
from handful.methods.encoded_support import Batches, Seen, fingerprint, look, noisy, with_pixels
from handful.tuning.loop import TrainConfig, train
from handful.tuning.losses import dice_ce, fading, whole_batch
from handful.tuning.trainable import load_trainable_state, trainable_state

CHECKS = 20
"""How often a training looks at the held-out slices, if any."""
PATIENCE = 5
"""Checks without a better one after which a training stops."""
PUBLISHED_MASK_TOKENS = 2
RATES = {"unet": 2e-3, "vit": 2e-3, "cnn": 1e-3, "linear": 2e-3}
"""Peak learning rates that suit the heads on handful-tiny."""
COARSEST = 4
"""Cells along the coarsest level of the head 'unet', at least."""


@dataclass(frozen=True, kw_only=True)
class AutoSam(Method):
    """A head without prompts learns all classes, the background among them; the encoder stays frozen."""

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
    spread: float = 0.5
    """For 'vit': how far apart the class tokens start, the standard deviation of noise round SAM's mask token, whose
    numbers are about 1. Classes that start as one, and share their hypernetwork, are slow to part."""
    faithful: bool = False
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
    balance: float = 0.5
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
        for name in ("feature_noise", "spread", "balance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.feature_dropout < 1:
            raise SettingsError(f"feature_dropout must be a share from 0 to less than 1, got {self.feature_dropout}")
        if self.faithful and self.head == "unet":
            raise SettingsError(
                "faithful is for the published heads, and 'unet' is ours; set head to vit, cnn or linear"
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
        head = self.new_head(backbone, 1 + len(support.labels), edge)
        seen = look(
            support, slicer, backbone, views=self.views, seed=self.train.seed, target="hard", pixels=head.pixels
        )
        _require_every_label(seen, support.labels)
        scratch = run.scratch and run.scratch / fingerprint(self, seen.digest, backbone)
        training, held = _split(self, support, seen)
        steps = _Steps(self, head, seen, training)
        run = dataclasses.replace(run, scratch=scratch)
        if len(held):
            _train_to_the_best(steps, held, run)
        else:
            train(head, steps, self.training(), run)
        return AutoSamSegmenter(support.labels, slicer, backbone, head)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> AutoSamSegmenter:
        head = self.new_head(backbone, 1 + len(labels), int(learned.get("pixels", 0)))
        drawn = head.drawn()
        load_trainable_state(head, {name: value for name, value in learned.items() if name not in drawn})
        for name, value in drawn.items():
            value.copy_(learned[name])
        return AutoSamSegmenter(labels, slicer, backbone, head)

    def training(self) -> TrainConfig:
        """`train` with the head's own rate where it has none."""
        rate = self.train.learning_rate
        return dataclasses.replace(self.train, learning_rate=RATES[self.head] if rate is None else rate)

    def new_head(self, backbone: Backbone, classes: int, edge: int = 0) -> Head:
        """The head before any training, for so many classes, the background counted; one seed, one head.

        `edge` is the longest edge of the slices in pixels, by which 'unet' decides whether to look at them.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            return self._drawn_head(backbone, classes, edge).to(backbone.device)

    def _drawn_head(self, backbone: Backbone, classes: int, edge: int) -> Head:
        finer = has_finer_levels(backbone.mask_decoder)
        if self.head == "cnn":
            return CnnHead(backbone.channels, classes, finer, faithful=self.faithful)
        if self.head == "unet":
            cells = backbone.feature_side
            return UNetHead(backbone.channels, classes, cells, finer, look=edge > (4 * cells if finer else cells))
        if self.head == "linear":
            return LinearHead(backbone.channels, classes, relu_out=self.relu_out or self.faithful)
        if self.faithful:
            return FaithfulVitHead(backbone, classes)
        return VitHead(backbone, classes, shared_pass=self.shared_pass, spread=self.spread)


class AutoSamSegmenter(Segmenter):
    """A trained head; it is asked nothing, and says all classes of a slice at once."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, head: Head) -> None:
        super().__init__(labels, slicer, backbone)
        self.head = head

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        image = with_pixels(self.backbone, slices, self.backbone.encode(slices), self.head.pixels)
        return self.backbone.to_slice(against_background(self.head(image)), image.size)

    def learned(self) -> dict[str, Tensor]:
        return trainable_state(self.head) | {name: value.clone() for name, value in self.head.drawn().items()}


class Head(nn.Module, ABC):
    """Maps of all classes from image embeddings; holds no part of the encoder."""

    pixels: int = 0
    """Side of the square in which it wants the slice itself before the embeddings, and answers; 0 where it does not."""

    @abstractmethod
    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        """Logits of k classes in the model's square, the background first."""

    def drawn(self) -> dict[str, Tensor]:
        """What never trains, yet decides the answer: drawn at random, or by the support."""
        return {}


class _DecoderHead(Head):
    """Copies of the backbone's mask decoder, all of which train: transformer, upscaling and the first hypernetworks."""

    mark: Tensor
    """Added to the image at every place (1, c, 1, 1)."""
    position: Tensor
    """The image's position code (1, c, f, f)."""

    def __init__(self, backbone: Backbone, painters: int) -> None:
        super().__init__()
        decoder: Any = backbone.fork().mask_decoder
        self.transformer = decoder.transformer
        self.upscale_conv1, self.upscale_conv2 = decoder.upscale_conv1, decoder.upscale_conv2
        self.upscale_layer_norm, self.activation = decoder.upscale_layer_norm, decoder.activation
        self.painters = decoder.output_hypernetworks_mlps[:painters]
        self.requires_grad_(True)

    @abstractmethod
    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        """Sets of tokens, each of which meets the image by itself, and which tokens of a set paint a class."""

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        tokens, painting = self.tokens()
        asked = tokens.expand(len(image), -1, -1, -1)
        answers, fine = decode_with_tokens(self, image.main + self.mark, self.position, asked, image.features[:-1])
        masks = torch.einsum("nsmd,nsdhw->nsmhw", self.painters[0](answers[:, :, painting]), fine)
        return rearrange(masks, "n s m h w -> n (s m) h w")


class VitHead(_DecoderHead):
    """SAM's mask decoder without prompts: a learned token a class beside the IoU token, which stays SAM's own.

    The class tokens start round SAM's token for a single mask; position code and 'no mask' embedding are SAM's.
    """

    def __init__(self, backbone: Backbone, classes: int, *, shared_pass: bool = True, spread: float = 0.5) -> None:
        super().__init__(backbone, painters=1)
        self.shared_pass = shared_pass
        decoder: Any = backbone.mask_decoder
        first = decoder.mask_tokens.weight[:1].detach()
        noise = torch.randn(classes, backbone.channels).to(first)
        self.class_tokens = nn.Parameter(first + spread * noise)
        self.register_buffer("kept_tokens", score_tokens(decoder).detach().clone(), persistent=False)
        mark = no_mask(backbone.prompt_encoder) + backbone.no_memory()
        self.register_buffer("mark", mark.detach().clone(), persistent=False)
        self.register_buffer("position", backbone.position_encoding().clone(), persistent=False)

    kept_tokens: Tensor

    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        first = len(self.kept_tokens)
        if self.shared_pass:
            return torch.cat([self.kept_tokens, self.class_tokens])[None], slice(first, None)
        kept = repeat(self.kept_tokens, "t c -> k t c", k=len(self.class_tokens))
        return torch.cat([kept, self.class_tokens[:, None]], dim=1), slice(first, None)


class FaithfulVitHead(_DecoderHead):
    """The ViT head as published: each class has the image, an untrained IoU token and two mask tokens to itself.

    All tokens and the position code are drawn at random and the 'no mask' embedding is left out, as in the authors'
    code, where they slip through the loading of SAM's weights. Of the two masks only the first is used, so only it is
    painted; the IoU head, which nobody asks, counts among the parameters.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone, painters=PUBLISHED_MASK_TOKENS)
        channels, self.cells = backbone.channels, backbone.feature_side
        self.mask_tokens = nn.Parameter(torch.randn(classes, PUBLISHED_MASK_TOKENS, channels))
        self.iou_tokens = nn.Parameter(torch.randn(classes, 1, channels), requires_grad=False)
        self.iou_prediction_head = SamFeedForward(channels, channels, PUBLISHED_MASK_TOKENS, 3).requires_grad_(False)
        self.register_buffer("mark", torch.zeros(1, channels, 1, 1), persistent=False)
        self.register_buffer("frequencies", torch.randn(2, channels // 2))

    frequencies: Tensor

    @property
    def position(self) -> Float[Tensor, "1 c f f"]:  # type: ignore[override]
        """SAM's random Fourier code of the cells' centres, from random numbers of its own."""
        centres = (torch.arange(self.cells).to(self.frequencies) + 0.5) / self.cells
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        angles = 2 * math.pi * (2 * torch.stack([columns, rows], dim=-1) - 1) @ self.frequencies
        return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "h w c -> 1 c h w")

    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        return torch.cat([self.iou_tokens, self.mask_tokens], dim=1), slice(1, 2)

    def drawn(self) -> dict[str, Tensor]:
        return {"iou_tokens": self.iou_tokens.detach(), "frequencies": self.frequencies}


class CnnHead(Head):
    """Convolutions at the main level, then two doublings; widths are multiples of the backbone's.

    SAM 2's finer levels come in after each doubling, through a 1 × 1 convolution: the paper knows SAM alone. There are
    no norms, and with PyTorch's own start, which `faithful` keeps, each layer passes on less than half of what it saw;
    else the weights start as He et al. (2015) draw them, so that the tenth layer still sees the image.
    """

    def __init__(self, channels: int, classes: int, finer: bool = False, *, faithful: bool = False) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.deep = nn.Sequential(
            *_convolutions(1, channels, 4 * channels, 4 * channels),
            *_convolutions(3, 4 * channels, 4 * channels, 2 * channels),
            *_convolutions(3, 2 * channels, 2 * channels, channels),
            *_convolutions(3, channels, channels, channels),
            nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2),
        )
        self.fine = nn.Sequential(
            *_convolutions(3, half, half, half), nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2)
        )
        self.out = nn.Sequential(nn.Conv2d(quarter, quarter, 3, padding=1), nn.Conv2d(quarter, classes, 1))
        self.finer = nn.ModuleList()
        if finer:
            self.finer.extend([nn.Conv2d(channels // 8, quarter, 1), nn.Conv2d(quarter, half, 1)])
        bent = [] if faithful else [layer for layer in (*self.deep, *self.fine) if isinstance(layer, nn.Conv2d)]
        for layer in bent:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        skips = [narrow(level) for narrow, level in zip(self.finer, image.features[:-1], strict=True)]
        fine_skip, half_skip = skips or (0, 0)  # SAM has none
        logits: Tensor = self.out(self.fine(self.deep(image.main) + half_skip) + fine_skip)
        return logits


class LinearHead(Head):
    """The mask decoder's upscaling with random weights, SAM 2's finer levels added as there, and two 1 × 1 layers."""

    def __init__(self, channels: int, classes: int, *, relu_out: bool = False) -> None:
        super().__init__()
        quarter, eighth = channels // 4, channels // 8
        self.upscale_conv1 = nn.ConvTranspose2d(channels, quarter, kernel_size=2, stride=2)
        self.upscale_layer_norm = SamLayerNorm(quarter, data_format="channels_first")
        self.upscale_conv2 = nn.ConvTranspose2d(quarter, eighth, kernel_size=2, stride=2)
        self.activation = nn.GELU()
        last: list[nn.Module] = [nn.ReLU()] if relu_out else []
        self.out = nn.Sequential(nn.Conv2d(eighth, eighth, 1), nn.ReLU(), nn.Conv2d(eighth, classes, 1), *last)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        fine_skip, half_skip = image.features[:-1] or (0, 0)  # SAM has none
        half = self.activation(self.upscale_layer_norm(self.upscale_conv1(image.main) + half_skip))
        logits: Tensor = self.out(self.activation(self.upscale_conv2(half) + fine_skip))
        return logits


class UNetHead(Head):
    """A U-Net over the embeddings: each level joins where the net is as coarse; ours, not the paper's.

    Instance norm on what comes in and after every convolution takes out of the features what sets one scanner apart
    from another; up to two further levels below the main one see the whole slice. With `look` the slices themselves
    join too, on twice the grid of SAM 2's finest level (of SAM's only one, on four times its grid),
    for structures that are thin in their scans.
    """

    def __init__(self, channels: int, classes: int, cells: int, finer: bool = False, *, look: bool = False) -> None:
        super().__init__()
        self.joins = [channels // 8, channels // 4, channels] if finer else [channels]
        self.joins += [0] * sum(cells // 2**halved >= COARSEST for halved in (1, 2))
        narrowest = channels // 8
        self.enlarged = 1 if finer else 4
        if look:
            self.joins = [3, *self.joins] if finer else [3, 0, *self.joins]
            self.pixels, self.enlarged = cells * (8 if finer else 4), 1
            narrowest = max(8, channels // 32)
        widths = [narrowest * 2 ** min(level, 3 + look) for level in range(len(self.joins))]
        self.down = nn.ModuleList(
            _normed(inside + join, own) for inside, join, own in zip([0, *widths], self.joins, widths, strict=False)
        )
        self.up = nn.ModuleList(_normed(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        levels = iter(image.features)
        seen: list[Tensor] = []
        for block, join in zip(self.down, self.joins, strict=True):
            parts = [F.avg_pool2d(seen[-1], 2)] if seen else []
            parts += [F.instance_norm(next(levels))] if join else []
            seen.append(block(torch.cat(parts, dim=1)))
        found = seen.pop()
        for block in reversed(self.up):
            fine = seen.pop()
            coarse = F.interpolate(found, (fine.shape[-2], fine.shape[-1]), mode="bilinear", align_corners=False)
            found = block(torch.cat([fine, coarse], dim=1))
        logits: Tensor = self.out(found)
        if self.enlarged == 1:
            return logits
        return F.interpolate(logits, scale_factor=self.enlarged, mode="bilinear", align_corners=False)

    def drawn(self) -> dict[str, Tensor]:
        return {"pixels": torch.tensor(self.pixels)} if self.pixels else {}


def _normed(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in (inside, outside):
        layers += [nn.Conv2d(wide, outside, 3, padding=1), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def against_background(logits: Float[Tensor, "n k s s"]) -> Float[Tensor, "n l s s"]:
    """Logits of the labels where the background, which comes first and falls away, has logit 0: the same softmax."""
    return logits[:, 1:] - logits[:, :1]


def _convolutions(size: int, inside: int, between: int, outside: int) -> list[nn.Module]:
    first = nn.Conv2d(inside, between, size, padding=size // 2)
    return [first, nn.ReLU(), nn.Conv2d(between, outside, size, padding=size // 2), nn.ReLU()]


def _require_every_label(seen: Seen, labels: Labels) -> None:
    shown = seen.target[seen.views == 0].sum(dim=(0, 2, 3)) > 0
    for name, found in zip(labels.names, shown.tolist(), strict=True):
        if not found:
            raise LabelError(
                f"{name!r} covers no cell of the model's square by half on any support slice; "
                "label a slice where it is larger, or take a backbone with a larger square"
            )


def _split(method: AutoSam, support: SupportSet, seen: Seen) -> tuple[Int[Tensor, " t"], Int[Tensor, " h"]]:
    """Rows to train on, and those of the held-out patient, unaugmented; none where nobody is held out."""
    patients = [case.patient or case.name for case in support.cases]
    names = sorted(set(patients))
    everything = torch.arange(len(seen.cases))
    if method.validate_from and len(names) >= method.validate_from:
        generator = torch.Generator().manual_seed(method.train.seed)
        for choice in torch.randperm(len(names), generator=generator).tolist():
            own = torch.tensor([who == names[choice] for who in patients])[seen.cases]
            left = everything[~own]
            held = everything[own & (seen.views == 0)]
            if len(held) and bool((seen.target[left].sum(dim=(0, 2, 3)) > 0).all()):
                return left, held
    return everything, everything[:0]


class _Steps:
    """The loss of one training step, on rows drawn from those to train on."""

    def __init__(self, method: AutoSam, head: Head, seen: Seen, training: Int[Tensor, " t"]) -> None:
        self.method, self.head, self.seen = method, head, seen
        self.batches = Batches(seen, method.batch, training)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        rows = self.batches.draw(generator)
        image = noisy(self.seen.rows(rows), self.method.feature_noise, generator)
        if self.head.pixels:
            image = _with_fewer_channels(image, self.method.feature_dropout, generator)
        return self.loss(rows, image, fading(self.method.balance, step, self.method.train.iterations))

    def loss(self, rows: Tensor, image: ImageEmbeddings, balance: float = 0.0) -> Tensor:
        logits = against_background(self.head(image))
        shown = logits, self.seen.target[rows].to(logits), self.seen.known[rows].to(logits.device)
        return dice_ce(*(whole_batch(*shown) if self.method.dice == "batch" else shown), balance)

    @torch.no_grad()
    def held_out_loss(self, rows: Tensor) -> float:
        parts = torch.split(rows, CHUNK)
        return sum(len(part) * float(self.loss(part, self.seen.rows(part))) for part in parts) / len(rows)


def _with_fewer_channels(image: ImageEmbeddings, share: float, generator: torch.Generator) -> ImageEmbeddings:
    """Some channels of the embeddings cleared, others in each slice; the slice itself, which comes first, is whole."""
    slices, *levels = image.features
    kept = [(torch.rand(*level.shape[:2], 1, 1, generator=generator) >= share).to(level) for level in levels]
    return dataclasses.replace(
        image, features=(slices, *[level * few for level, few in zip(levels, kept, strict=True)])
    )


def _train_to_the_best(steps: _Steps, held: Int[Tensor, " h"], run: Run) -> None:
    """Trains, and leaves the head with the weights that did best on the held-out rows."""
    config = steps.method.training()
    every = max(1, config.iterations // CHECKS)
    kept = _Best(steps.head, lambda: steps.held_out_loss(held), run.scratch)

    def watched(step: int, generator: torch.Generator) -> Tensor:
        if step and step % every == 0:
            kept.check(step)
            if step - kept.when(step) >= PATIENCE * every:
                raise _EnoughError
        return steps(step, generator)

    try:
        train(steps.head, watched, config, run)
        kept.check(config.iterations)
    except _EnoughError:  # the loop knows no other way to end before its time
        pass
    load_trainable_state(steps.head, kept.weights)


class _EnoughError(Exception):
    """The held-out slices gain no more."""


class _Best:
    """Held-out losses by step and the best weights so far, kept in a file so that a killed training chooses alike.

    A training taken up again runs through the same weights, so a step that was checked before it was killed is not
    checked again, and best weights from steps still to come are those that it will reach.
    """

    def __init__(self, head: Head, loss: Callable[[], float], scratch: Path | None) -> None:
        self.head, self.loss = head, loss
        self.losses: dict[int, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.path = scratch and scratch / "best.safetensors"
        if self.path and self.path.exists():
            with safe_open(self.path, framework="pt") as file:
                self.losses = {int(step): loss for step, loss in json.loads(file.metadata()["losses"]).items()}
                self.weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def check(self, step: int) -> None:
        if step in self.losses:
            return
        loss = self.loss()
        if not self.weights or loss < min(self.losses.values()):
            self.weights = trainable_state(self.head)
        self.losses[step] = loss
        if self.path:
            tensors = {name: value.cpu().contiguous() for name, value in self.weights.items()}
            write_atomically(self.path, save(tensors, metadata={"losses": json.dumps(self.losses)}))

    def when(self, step: int) -> int:
        """The step with the lowest loss up to this one."""
        return min((loss, s) for s, loss in self.losses.items() if s <= step)[1]
