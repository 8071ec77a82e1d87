"""Few-shot prompts: class embeddings, pooled from labelled slices, are the prompts of a fine-tuned mask decoder.

After Xie, Willems, Patil, Li and Kumar, "Few-shot adaptation of SAM to medical images" (WACV 2024, arXiv 2407.04651).
There is no public code: this is a reconstruction from the abstract. The image encoder stays frozen and encodes each
view of each labelled slice once. The decoder is trained on the stored embeddings; each slice is prompted with the class
embeddings of the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from handful.backbones.base import Backbone, ImageEmbeddings, PromptEmbeddings
from handful.backbones.decoder import (
    decode_with_tokens,
    no_mask,
    positive_click_token,
    single_mask_parts,
    without_multimask,
)
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import LabelError, SettingsError, refuse_without_effect
from handful.jobs.progress import Run
from handful.methods.base import Held, Method, Segmenter, Work, below, labelled_slices, require_same_labels
from handful.methods.encoded_support import EncodedSupport, encode_support, fingerprint, noisy, views_to_keep
from handful.methods.few_shot_prompts.tokens import Tokens, class_embeddings
from handful.tuning.loop import TrainConfig, train
from handful.tuning.losses import bce, dice_bce, dice_ce, dice_focal, fading, partial_ce, whole_batch, with_scribbles
from handful.tuning.sampling import BalancedSampler, integer, noise_like
from handful.tuning.trainable import freeze_all_but, load_trainable_state, trainable_state

AT_ONCE = 16
"""Most classes that are decoded together."""


@dataclass(frozen=True, kw_only=True)
class FewShotPrompts(Method):
    """Prompts a mask decoder with class embeddings of the labelled slices; only the decoder is trained."""

    when = "comparison with Xie et al.; labelled slices that are added later without a training"
    minutes = "2 to 10 min"

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    variant: Literal["prompt", "query"] = "prompt"
    """Role of the class embeddings: 'prompt' adds them to SAM's own tokens, 'query' puts them in place of these.

    With 'query', each embedding produces its own mask, and the masks of a class are averaged.
    """
    location: bool = False
    """Add the region's mean positional encoding to its embedding; for organs that keep their place in the slice."""
    parts: int = 1
    """Maximum number of embeddings per region, by k-means; increase for large or heterogeneous organs."""
    adapter: bool = False
    """Pass the embeddings through a trained linear layer (initially the identity) and a layer norm."""
    type_embedding: bool = False
    """Add the prompt encoder's embedding of a positive click to the class embeddings."""
    background: bool = True
    """Use embeddings for the background, too, with a softmax over all classes; without it, one sigmoid per label."""
    views: int = 4
    """Augmented views stored per labelled slice, including the slice itself; 0 or 1 for no augmentation.

    For large support sets it is reduced (to no less than 4), so that the stored embeddings fit into 2 GiB.
    """
    leave_out: Literal["case", "slice"] = "case"
    """Embeddings that a training slice is not prompted with: those of its whole case, or only those of itself."""
    max_tokens: int = 32
    """Maximum number of embeddings per label in a prompt; fewer need less time and memory."""
    token_noise: float = 0.1
    """Noise on the class embeddings in training, as a fraction of their standard deviation."""
    feature_noise: float = 0.1
    """Noise on the image embeddings in training, as a fraction of their standard deviation."""
    batch: int = 8
    """Slices per training step; half of them are chosen to contain a random label."""
    loss: Literal["dice-bce", "dice-focal"] = "dice-bce"
    """Loss without `background`: Dice with binary cross-entropy or with SAM's focal loss.

    With `background`, the loss is Dice with softmax cross-entropy.
    """
    dice: Literal["batch", "slice"] = "batch"
    """Dice loss over all slices of a batch together, or slice by slice; 'slice' favours empty masks of rare labels."""
    rare_class_weight: float = 0.5
    """Weight of rare classes in the cross-entropy with `background`; 0 weights all pixels equally.

    A pixel of a class that is r times rarer counts r ** rare_class_weight times as much. The exponent falls linearly to
    0 by the end of the training.
    """
    target: Literal["hard", "soft"] = "hard"
    """Target at the decoder's resolution: inside or outside, or the fraction of each cell that is inside."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=700, learning_rate=None))
    """Length and learning rate of the training; without a rate, the one that suits the backbone.

    That is 2e-3 for handful-tiny and 3e-4 for decoders trained on millions of masks, as SAM's. With 0 iterations the
    decoder is not trained.
    """

    def __post_init__(self) -> None:
        for name, least in (("parts", 1), ("max_tokens", 1), ("batch", 1), ("views", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("token_noise", "feature_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be a fraction of 0 or more, got {getattr(self, name)}")
        if not 0 <= self.rare_class_weight < math.inf:
            raise SettingsError(f"rare_class_weight must be 0 or more, got {self.rare_class_weight}")
        if self.background:
            refuse_without_effect(self, ("loss",), "it is for background = False")
        else:
            refuse_without_effect(self, ("rare_class_weight",), "it is for background = True")

    def resolved(self, backbone: Backbone) -> FewShotPrompts:
        train = self.train.filled(self.train.steps, backbone.family.defaults.decoder_rate)
        return dataclasses.replace(self, train=train)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> FewShotSegmenter:  # noqa: B008
        return self.resolved(backbone)._fit(support, backbone, run)

    def _fit(self, support: SupportSet, backbone: Backbone, run: Run) -> FewShotSegmenter:
        slicer = self.resolved_slicer(support)
        encoded = self._encode(support, slicer, backbone, self.views)
        tokens = self._tokens(encoded, backbone)
        names = [*support.labels.names, "background"] if self.background else support.labels.names
        _require_every_class(tokens, names)
        decoder = TokenDecoder(backbone, self)
        if self.train.iterations:
            scratch = run.scratch and run.scratch / fingerprint(self, encoded.digest, backbone)
            episodes = _Episodes(self, decoder, encoded, tokens)
            train(decoder.trained, episodes, self.train, dataclasses.replace(run, scratch=scratch))
        return FewShotSegmenter(support.labels, slicer, backbone, self, decoder, tokens.of_view(0))

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> FewShotSegmenter:
        decoder = TokenDecoder(backbone, self)
        load_trainable_state(decoder.trained, below("decoder", learned))
        classes = len(labels) + int(self.background)
        tokens = Tokens.unpack(below("tokens", learned), classes, backbone.channels)
        return FewShotSegmenter(labels, slicer, backbone, self, decoder, tokens)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        method, slicer = self.resolved(backbone), self.resolved_slicer(support)
        views = views_to_keep(self.views, support, slicer, backbone, side=backbone.mask_side)
        encoded = labelled_slices(self, support) * views
        return (Work.of(method, support, encoded=encoded, steps=method.train.steps),)

    def _encode(self, support: SupportSet, slicer: Slicer, backbone: Backbone, views: int) -> EncodedSupport:
        return encode_support(
            support.slices(slicer),
            backbone,
            views=views_to_keep(views, support, slicer, backbone, side=backbone.mask_side),
            seed=self.train.seed,
            side=backbone.mask_side,
            target=self.target,
        )

    def _tokens(self, encoded: EncodedSupport, backbone: Backbone) -> Tokens:
        """Embeddings of all labels, and of the background if it is modelled."""
        classes = encoded.target.shape[0] + int(self.background)
        return class_embeddings(encoded, backbone, classes, self.parts, self.location)


class FewShotSegmenter(Segmenter):
    """A fine-tuned decoder and the class embeddings that it is prompted with."""

    def __init__(
        self,
        labels: Labels,
        slicer: Slicer,
        backbone: Backbone,
        method: FewShotPrompts,
        decoder: TokenDecoder,
        tokens: Tokens,
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method = method
        self.decoder = decoder
        self.tokens = tokens

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        image = self.backbone.encode(slices)
        tokens = self.tokens.evenly(self.method.max_tokens).to(image.main)
        return self.backbone.to_image_frame(self.decoder(image, tokens.expand(len(image), -1, -1, -1)), image.size)

    def learned(self) -> dict[str, Tensor]:
        decoder = {f"decoder/{name}": value for name, value in trainable_state(self.decoder.trained).items()}
        return decoder | {f"tokens/{name}": value for name, value in self.tokens.pack().items()}

    @property
    def holds(self) -> frozenset[Held]:
        return frozenset({"embeddings", "names"})

    def extend(self, support: SupportSet) -> FewShotSegmenter:
        """A segmenter that is also prompted with the embeddings of new labelled slices; nothing is trained."""
        require_same_labels(support, self.labels)
        encoded = self.method._encode(support, self.slicer, self.backbone, views=1)
        tokens = self.tokens.joined(self.method._tokens(encoded, self.backbone))
        return FewShotSegmenter(self.labels, self.slicer, self.backbone, self.method, self.decoder, tokens)

    def sources(self) -> list[tuple[str, int, str]]:
        """The origin of each embedding: case, number of the slice in the case, and label."""
        names = (*self.labels.names, "background")
        where = zip(self.tokens.cases.tolist(), self.tokens.slices.tolist(), self.tokens.classes.tolist(), strict=True)
        return [(self.tokens.names[case], index, names[label]) for case, index, label in where]


class TokenDecoder(nn.Module):
    """A copy of the backbone's mask decoder, prompted with k sets of t class embeddings in one call."""

    def __init__(self, backbone: Backbone, method: FewShotPrompts) -> None:
        super().__init__()
        self.method = method
        self.fork = backbone.fork()
        self.trained = nn.ModuleDict({"mask_decoder": self.fork.mask_decoder})
        """The modules to be trained; parts that the variant does not use stay frozen."""
        if method.adapter:
            self.trained["adapter"] = _adapter(backbone.channels).to(backbone.device)
        decoder = self.fork.mask_decoder
        freeze_all_but(self.trained, *single_mask_parts(decoder, tokens=method.variant == "prompt"), *self._adapters())
        without_multimask(decoder)

    def forward(self, image: ImageEmbeddings, tokens: Float[Tensor, "n k t c"]) -> Float[Tensor, "n l s s"]:
        """Logits of each label in the model frame; those of the background (the last class) are subtracted."""
        for adapter in self._adapters():
            tokens = adapter(tokens)
        if self.method.type_embedding:
            tokens = tokens + positive_click_token(self.fork.prompt_encoder)
        if self.method.variant == "prompt":
            logits = self._prompted(image, tokens)
        else:
            logits = _query_masks(self.fork, image, tokens)
        return logits[:, :-1] - logits[:, -1:] if self.method.background else logits

    def _prompted(self, image: ImageEmbeddings, tokens: Float[Tensor, "n k t c"]) -> Float[Tensor, "n k s s"]:
        """Logits of each class by SAM's own tokens.

        Classes do not see each other, so many are decoded a few at a time, and once more for the gradients, which
        bounds the memory.
        """

        def decoded(some: Tensor) -> Tensor:
            logits: Tensor = self.fork.decode_square(image, PromptEmbeddings(some)).logits
            return logits

        lots = torch.split(tokens, AT_ONCE, dim=1)
        if len(lots) == 1:
            return decoded(tokens)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(decoded, lot, use_reentrant=False) for lot in lots], dim=1)
        return torch.cat([decoded(lot) for lot in lots], dim=1)

    def _adapters(self) -> list[nn.Module]:
        return [self.trained["adapter"]] if self.method.adapter else []


def _require_every_class(tokens: Tokens, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not bool(((tokens.classes == index) & (tokens.views == 0)).any()):
            raise LabelError(f"{name!r} is too small on every labelled slice; label a slice where it is larger")


class _Episodes:
    """The loss of one training step: slices of the support set, prompted with the class embeddings of other slices."""

    def __init__(self, method: FewShotPrompts, decoder: TokenDecoder, encoded: EncodedSupport, tokens: Tokens) -> None:
        self.method, self.decoder, self.encoded, self.tokens = method, decoder, encoded, tokens
        self.classes = encoded.target.shape[0] + int(method.background)
        self.sampler = BalancedSampler(encoded.holds, method.batch)
        self.noise = method.token_noise * float(tokens.vectors.std())
        # at most as many as in a prediction, without those of the slice itself
        others = int(tokens.of_view(0).classes.bincount().max()) - method.parts
        self.most = max(1, min(method.max_tokens, others))

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        rows = self.sampler.sample(generator)
        count = 1 + integer(self.most, generator)
        tokens = torch.stack([self._random_tokens(int(row), count, generator) for row in rows])
        image = noisy(self.encoded.rows(rows), self.method.feature_noise, generator)
        tokens = tokens + self.noise * noise_like(tokens, generator)
        logits = self.decoder(image, tokens.to(image.main))
        batch = logits, self.encoded.target[rows].to(logits), self.encoded.valid_mask[rows].to(logits.device)
        of_strokes = partial_ce if self.method.background else bce
        return with_scribbles(partial(self._whole, step), *batch, self.encoded.scribbled[rows], of_strokes)

    def _whole(self, step: int, logits: Tensor, target: Tensor, valid_mask: Tensor) -> Tensor:
        """The loss of slices with whole masks."""
        batch = logits, target, valid_mask
        if self.method.dice == "batch":
            batch = whole_batch(*batch)
        if self.method.background:
            return dice_ce(*batch, fading(self.method.rare_class_weight, step, self.method.train.steps))
        return (dice_bce if self.method.loss == "dice-bce" else dice_focal)(*batch)

    def _random_tokens(self, row: int, count: int, generator: torch.Generator) -> Float[Tensor, "k t c"]:
        """`count` random embeddings of each class, repeated only if there are fewer."""
        case, index, view = (int(of[row]) for of in (self.encoded.cases, self.encoded.slices, self.encoded.views))
        chosen = []
        for label in range(self.classes):
            allowed = self.tokens.farthest(label, case, index, view, self.method.leave_out)
            order = torch.randperm(len(allowed), generator=generator)
            chosen.append(allowed[order[torch.arange(count) % len(allowed)]])
        return self.tokens.vectors[torch.stack(chosen)]


def _query_masks(
    backbone: Backbone, image: ImageEmbeddings, tokens: Float[Tensor, "n k t c"]
) -> Float[Tensor, "n k s s"]:
    """Variant 'query': class embeddings take the place of SAM's IoU and mask tokens, and share one hypernetwork.

    A class has t tokens, whose masks are averaged. A mask is linear in the output of the hypernetwork, so that output
    is averaged instead.
    """
    decoder: Any = backbone.mask_decoder
    main = image.main + no_mask(backbone.prompt_encoder)
    if not image.recalled:
        main = main + backbone.no_memory()
    output, pixels = decode_with_tokens(decoder, main, backbone.position_encoding(), tokens, image.features[:-1])
    weights = decoder.output_hypernetworks_mlps[0](output).mean(dim=2, keepdim=True)
    return pixels.masks(weights)[:, :, 0]


def _adapter(width: int) -> nn.Sequential:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.LayerNorm(width))
