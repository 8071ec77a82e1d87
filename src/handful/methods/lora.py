"""LoRA: the image encoder itself learns, by low-rank updates or adapters, together with the mask decoder.

After Zhang and Liu, "SAMed" (arXiv 2304.13785): no prompt but one learned token a class, all classes by softmax. The
adapters are those of Wu et al., "Medical SAM Adapter" (arXiv 2304.12620). SAMed has one mask token a class in a single
decoder pass; here each class asks with a token of its own beside the decoder's, so that SAM and SAM 2 serve unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings, PromptEmbeddings
from handful.backbones.decoder import single_mask_parts, without_multimask
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.digests import digest_of
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter
from handful.methods.encoded_support import fingerprint
from handful.tuning.adapters import add_adapters
from handful.tuning.augment import augmented
from handful.tuning.loop import TrainConfig, train
from handful.tuning.lora import add_lora, merge_lora
from handful.tuning.losses import dice_ce, whole_batch
from handful.tuning.sampling import BalancedSampler
from handful.tuning.trainable import freeze_all_but, load_trainable_state, trainable_state


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """Tunes encoder and decoder for the labels; asked without prompts, and without a cache, for embeddings change."""

    when = "comparison with SAMed and Med-SA; on a GPU"
    minutes = "2 min"

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    variant: Literal["lora", "adapter"] = "lora"
    """What learns in the encoder: updates of the attentions' queries and values, or two adapters in every block."""
    rank: int = 4
    """Rank of the updates, or inner width of the adapters."""
    batch: int = 4
    """Slices a training step, in new views each time; every other one holds a label drawn at random."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=200, learning_rate=2e-3))
    """Length and rate of the training. The rate suits handful-tiny; decoders that have seen millions of masks, as SAM's
    own have, want one of 1e-4 to 5e-4."""

    def __post_init__(self) -> None:
        for name in ("rank", "batch"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> LoraSegmenter:  # noqa: B008
        """As `Method.fit`; a cache round the backbone is passed by, as the encoder that learns is a new one."""
        slicer = support.resolve(self.slicer)
        network = LoraNetwork(backbone, self, len(support.labels) + 1)
        shown = list(support.slices(slicer))
        scratch = run.scratch and run.scratch / fingerprint(self, _digest(shown), backbone)
        train(
            network.trained,
            _EncoderLoss(network, shown, self.batch),
            self.train,
            dataclasses.replace(run, scratch=scratch),
        )
        return LoraSegmenter(support.labels, slicer, backbone, network)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> LoraSegmenter:
        network = LoraNetwork(backbone, self, len(labels) + 1)
        load_trainable_state(network.trained, learned)
        return LoraSegmenter(labels, slicer, backbone, network)


class LoraSegmenter(Segmenter):
    """A backbone whose encoder and decoder were tuned for the labels."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, network: LoraNetwork) -> None:
        super().__init__(labels, slicer, backbone)
        self.network = network
        merge_lora(network.own.image_encoder)

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        own = self.network.own
        image = own.encode_exact(slices)
        return own.to_image_frame(self.network(image), image.size)

    def learned(self) -> dict[str, Tensor]:
        """The encoder's small parts, the decoder and the class tokens."""
        return trainable_state(self.network.trained)


class LoraNetwork(nn.Module):
    """A copy of a backbone that shares all its frozen weights: new are the encoder's small parts and the decoder."""

    def __init__(self, backbone: Backbone, method: Lora, classes: int) -> None:
        super().__init__()
        self.own = backbone.fork_sharing_weights([backbone.mask_decoder])
        generator = torch.Generator().manual_seed(method.train.seed)
        add = add_lora if method.variant == "lora" else add_adapters
        decoder: Any = self.own.mask_decoder
        scale = float(decoder.mask_tokens.weight.std())  # new tokens as large as those the decoder knows
        self.tokens = ClassTokens(classes, backbone.channels, scale, generator).to(backbone.device)
        parts = nn.ModuleList(add(self.own.image_encoder, method.rank, generator))
        self.trained = nn.ModuleDict({"encoder": parts, "mask_decoder": decoder, "tokens": self.tokens})
        """What the loop trains; everything else in here belongs to the backbone that was given."""
        freeze_all_but(self.trained, *single_mask_parts(decoder, finer_levels=True), parts, self.tokens)
        without_multimask(decoder)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n l s s"]:
        """Logits of each label in the model's square, less those of the background, which is the last class."""
        logits = self.own.decode_square(image, self.tokens(len(image))).logits
        return logits[:, :-1] - logits[:, -1:]


class ClassTokens(nn.Module):
    """One learned prompt token a class, in place of what a person would say."""

    def __init__(self, classes: int, channels: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(classes, channels, generator=generator))

    def forward(self, slices: int) -> PromptEmbeddings:
        """The same prompt for each of so many slices."""
        return PromptEmbeddings(self.weight[None, :, None].expand(slices, -1, -1, -1))


class _EncoderLoss:
    """The loss of one training step: slices of the support, each in a view of its own, through the whole network."""

    def __init__(self, network: LoraNetwork, shown: Sequence[LabelledSlices], batch: int) -> None:
        self.network, self.shown = network, shown
        self.places = [(case, row) for case, labelled in enumerate(shown) for row in range(len(labelled.slices))]
        self.sampler = BalancedSampler(torch.cat([labelled.masks.flatten(2).any(dim=2) for labelled in shown]), batch)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        images, targets, knowns = [], [], []
        for case, rows in self._by_case(self.sampler.sample(generator)).items():
            image, target, valid_mask = self._view(self.shown[case], rows, generator)
            images.append(image)
            targets.append(target)
            knowns.append(valid_mask)
        logits = self.network(ImageEmbeddings.cat(images))
        return dice_ce(*whole_batch(logits, torch.cat(targets).to(logits), torch.cat(knowns).to(logits.device)))

    def _by_case(self, chosen: Int[Tensor, " b"]) -> dict[int, list[int]]:
        """Rows by case, for slices of one case are of one size."""
        rows: dict[int, list[int]] = {}
        for number in chosen.tolist():
            case, row = self.places[number]
            rows.setdefault(case, []).append(row)
        return rows

    def _view(
        self, labelled: LabelledSlices, rows: list[int], generator: torch.Generator
    ) -> tuple[ImageEmbeddings, Float[Tensor, "n k s s"], Bool[Tensor, "n s s"]]:
        """Embeddings with gradients, and the truth in the square of the mask logits."""
        own = self.network.own
        slices, masks, valid_mask = augmented(
            labelled.slices[rows], labelled.masks[rows], labelled.valid_mask[rows], generator
        )
        target = own.to_model_frame(masks * valid_mask[:, None], own.mask_side) >= 0.5
        shown = own.to_model_frame(valid_mask[:, None].to(masks), own.mask_side)[:, 0] >= 0.5
        return own.encode_exact(slices.to(own.device)), target.to(masks), shown


def _digest(shown: Sequence[LabelledSlices]) -> str:
    """SHA-256 of the pixels, labels and known voxels."""
    return digest_of(*(part for one in shown for part in (one.slices, one.masks, one.valid_mask)))
