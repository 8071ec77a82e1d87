"""Few-shot embeddings as prompts: mask-pooled features of the support slices query a mask decoder tuned on them.

After Xie, Willems, Patil, Li and Kumar, "Few-shot adaptation of SAM to medical images" (WACV 2024, arXiv 2407.04651).
There is no public code: this is a reconstruction from the abstract. The image encoder stays frozen and sees each view
of each support slice once; the decoder trains on the kept embeddings, each slice asked with those of the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
from handful.errors import LabelError, SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, below, require_same_labels
from handful.methods.encoded_support import EncodedSupport, encode_support, fingerprint, noisy, views_to_keep
from handful.methods.few_shot_prompts.tokens import Tokens, class_embeddings
from handful.tuning.loop import TrainConfig, train
from handful.tuning.losses import dice_bce, dice_ce, dice_focal, fading, whole_batch
from handful.tuning.sampling import BalancedSampler, integer, noise_like
from handful.tuning.trainable import freeze_all_but, load_trainable_state, trainable_state


@dataclass(frozen=True, kw_only=True)
class FewShotPrompts(Method):
    """Class embeddings of the labelled slices ask the mask decoder for every label at once; only the decoder trains."""

    when = "2 to 10 labelled cases whose intensities vary, such as ultrasound or nuclei"
    minutes = "2 to 10 min"

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    variant: Literal["prompt", "query"] = "prompt"
    """'prompt': the embeddings join SAM's own tokens. 'query': they replace them, and each paints a mask itself."""
    location: bool = False
    """Add the mean positional encoding of the region to its embedding: helps where anatomy keeps its place."""
    parts: int = 1
    """Embeddings a region is split into at most, by k-means: for large or heterogeneous organs."""
    adapter: bool = False
    """Pass embeddings through a learned linear layer, the identity at the start, and a norm."""
    type_embedding: bool = False
    """Add the prompt encoder's embedding of a positive click."""
    background: bool = True
    """Ask for the background with embeddings of its own; softmax over all takes the place of a sigmoid a label."""
    views: int = 4
    """Augmented views kept of each support slice, the slice itself being the first; 0 and 1 keep the slice alone. Where
    the support has many slices they are fewer, so that all fit into 2 GiB."""
    leave_out: Literal["case", "slice"] = "case"
    """What of its own a slice is not asked with in training: the embeddings of its whole case, or of itself alone."""
    max_tokens: int = 32
    """Embeddings per label that are asked with at once, at most."""
    token_noise: float = 0.1
    """Noise on the asking embeddings in training, as a share of their standard deviation."""
    feature_noise: float = 0.1
    """Noise on the image embeddings in training, as a share of their standard deviation."""
    batch: int = 8
    """Slices a training step; every other one holds a label drawn at random, the rest are any."""
    loss: Literal["dice-bce", "dice-focal"] = "dice-bce"
    """Dice with cross entropy, or with SAM's focal loss; with `background` it is always Dice with softmax entropy."""
    dice: Literal["batch", "slice"] = "batch"
    """Whose Dice is trained on: that of all slices of a batch together, or of each slice by itself, which rewards a
    decoder for finding nothing where most slices hold few of the labels."""
    rare_class_weight: float = 0.5
    """With `background`, how much more a pixel of a rare class counts than one of a common one in the cross entropy:
    the power of how many times rarer it is, at the start of the training; it falls to 0 towards its end."""
    target: Literal["hard", "soft"] = "hard"
    """The truth at the decoder's resolution: inside or outside, or the share of each cell that is inside."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=700, learning_rate=2e-3))
    """Length and rate of the training; 0 iterations leave the decoder as it is. The rate suits handful-tiny; decoders
    that have seen millions of masks, as SAM's own have, want one of 1e-4 to 5e-4."""

    def __post_init__(self) -> None:
        for name, least in (("parts", 1), ("max_tokens", 1), ("batch", 1), ("views", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("token_noise", "feature_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be a share of 0 or more, got {getattr(self, name)}")
        if not 0 <= self.rare_class_weight < math.inf:
            raise SettingsError(f"rare_class_weight must be 0 or more, got {self.rare_class_weight}")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> FewShotSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
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
        return FewShotSegmenter(labels, slicer, backbone, self, decoder, Tokens.unpack(below("tokens", learned)))

    def _encode(self, support: SupportSet, slicer: Slicer, backbone: Backbone, views: int) -> EncodedSupport:
        return encode_support(
            support.slices(slicer),
            backbone,
            views=views_to_keep(views, support, slicer, backbone),
            seed=self.train.seed,
            side=backbone.mask_side,
            target=self.target,
        )

    def _tokens(self, encoded: EncodedSupport, backbone: Backbone) -> Tokens:
        """Embeddings of the classes that are asked for: all labels, and with `background` that, too."""
        classes = encoded.target.shape[1] + int(self.background)
        return class_embeddings(encoded, backbone, classes, self.parts, self.location)


class FewShotSegmenter(Segmenter):
    """A tuned decoder and the table of class embeddings it is asked with."""

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
        asked = self.tokens.evenly(self.method.max_tokens).to(image.main)
        return self.backbone.to_image_frame(self.decoder(image, asked.expand(len(image), -1, -1, -1)), image.size)

    def learned(self) -> dict[str, Tensor]:
        decoder = {f"decoder/{name}": value for name, value in trainable_state(self.decoder.trained).items()}
        return decoder | {f"tokens/{name}": value for name, value in self.tokens.pack().items()}

    def extend(self, support: SupportSet) -> FewShotSegmenter:
        """A segmenter that is also asked with embeddings of new labelled slices; nothing is trained again."""
        require_same_labels(support, self.labels)
        encoded = self.method._encode(support, self.slicer, self.backbone, views=1)
        tokens = self.tokens.joined(self.method._tokens(encoded, self.backbone))
        return FewShotSegmenter(self.labels, self.slicer, self.backbone, self.method, self.decoder, tokens)

    def sources(self) -> list[tuple[str, int, str]]:
        """For each embedding the case, the slice's index in it, and the label it was pooled from."""
        names = (*self.labels.names, "background")
        where = zip(self.tokens.cases.tolist(), self.tokens.slices.tolist(), self.tokens.classes.tolist(), strict=True)
        return [(self.tokens.names[case], index, names[label]) for case, index, label in where]


class TokenDecoder(nn.Module):
    """The reformulated mask decoder: a fork of the backbone's, asked with k sets of t class embeddings in one call."""

    def __init__(self, backbone: Backbone, method: FewShotPrompts) -> None:
        super().__init__()
        self.method = method
        self.fork = backbone.fork()
        self.trained = nn.ModuleDict({"mask_decoder": self.fork.mask_decoder})
        """What the loop may train; the parts that this variant does not use stay frozen."""
        if method.adapter:
            self.trained["adapter"] = _adapter(backbone.channels).to(backbone.device)
        decoder = self.fork.mask_decoder
        freeze_all_but(self.trained, *single_mask_parts(decoder, tokens=method.variant == "prompt"), *self._adapters())
        without_multimask(decoder)

    def forward(self, image: ImageEmbeddings, tokens: Float[Tensor, "n k t c"]) -> Float[Tensor, "n l s s"]:
        """Logits of each label in the model's square; the background, where asked for, comes last and is subtracted."""
        for adapter in self._adapters():
            tokens = adapter(tokens)
        if self.method.type_embedding:
            tokens = tokens + positive_click_token(self.fork.prompt_encoder)
        if self.method.variant == "prompt":
            logits = self.fork.decode_square(image, PromptEmbeddings(tokens)).logits
        else:
            logits = _query_masks(self.fork, image, tokens)
        return logits[:, :-1] - logits[:, -1:] if self.method.background else logits

    def _adapters(self) -> list[nn.Module]:
        return [self.trained["adapter"]] if self.method.adapter else []


def _require_every_class(tokens: Tokens, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not bool(((tokens.classes == index) & (tokens.views == 0)).any()):
            raise LabelError(f"{name!r} covers no usable area on any support slice; label a slice where it is larger")


class _Episodes:
    """The loss of one training step: slices of the support, prompted with the embeddings of the others."""

    def __init__(self, method: FewShotPrompts, decoder: TokenDecoder, encoded: EncodedSupport, tokens: Tokens) -> None:
        self.method, self.decoder, self.encoded, self.tokens = method, decoder, encoded, tokens
        self.classes = encoded.target.shape[1] + int(method.background)
        self.sampler = BalancedSampler(encoded.holds, method.batch)
        self.noise = method.token_noise * float(tokens.vectors.std())
        # as many at once as will be asked with later, less those of the slice itself
        fewer = int(tokens.of_view(0).classes.bincount().max()) - method.parts
        self.most = max(1, min(method.max_tokens, fewer))

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        rows = self.sampler.sample(generator)
        count = 1 + integer(self.most, generator)
        asked = torch.stack([self._draw_tokens(int(row), count, generator) for row in rows])
        image = noisy(self.encoded.rows(rows), self.method.feature_noise, generator)
        asked = asked + self.noise * noise_like(asked, generator)
        logits = self.decoder(image, asked.to(image.main))
        shown = logits, self.encoded.target[rows].to(logits), self.encoded.valid_mask[rows].to(logits.device)
        if self.method.dice == "batch":
            shown = whole_batch(*shown)
        if self.method.background:
            return dice_ce(*shown, fading(self.method.rare_class_weight, step, self.method.train.iterations))
        return (dice_bce if self.method.loss == "dice-bce" else dice_focal)(*shown)

    def _draw_tokens(self, row: int, count: int, generator: torch.Generator) -> Float[Tensor, "k t c"]:
        """`count` embeddings of each class, repeated only where the pool has fewer."""
        case, index, view = (int(of[row]) for of in (self.encoded.cases, self.encoded.slices, self.encoded.views))
        drawn = []
        for label in range(self.classes):
            outside = self.tokens.farthest(label, case, index, view, self.method.leave_out)
            order = torch.randperm(len(outside), generator=generator)
            drawn.append(outside[order[torch.arange(count) % len(outside)]])
        return self.tokens.vectors[torch.stack(drawn)]


def _query_masks(
    backbone: Backbone, image: ImageEmbeddings, tokens: Float[Tensor, "n k t c"]
) -> Float[Tensor, "n k s s"]:
    """Variant 'query': class embeddings take the place of SAM's IoU and mask tokens, and share one hypernetwork.

    Each of the t output tokens paints a mask and the masks are averaged; as a mask is linear in what the hypernetwork
    says, averaging that comes to the same.
    """
    decoder: Any = backbone.mask_decoder
    main = image.main + no_mask(backbone.prompt_encoder)
    if not image.recalled:
        main = main + backbone.no_memory()
    answers, fine = decode_with_tokens(decoder, main, backbone.position_encoding(), tokens, image.features[:-1])
    painter = decoder.output_hypernetworks_mlps[0](answers).mean(dim=2)
    return torch.einsum("nkc,nkchw->nkhw", painter, fine)


def _adapter(width: int) -> nn.Sequential:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.LayerNorm(width))
