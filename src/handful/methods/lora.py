"""LoRA: trains the image encoder, by low-rank updates or adapters, together with the mask decoder.

After Zhang and Liu, "SAMed" (arXiv 2304.13785), without prompts and with a softmax over all classes. The adapters are
those of Wu et al., "Medical SAM Adapter" (arXiv 2304.12620). SAMed has one mask token per class in a single decoder
pass. Here each class has a learned prompt token in addition to the decoder's own tokens, so that the decoders of SAM
and SAM 2 can be used unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import single_mask_parts, without_multimask
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.digests import digest_of
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, Work
from handful.methods.class_tokens import ClassTokens
from handful.methods.encoded_support import fingerprint, framed_labels
from handful.tuning.adapters import add_adapters
from handful.tuning.augment import augmented
from handful.tuning.loop import TrainConfig, train
from handful.tuning.lora import add_lora, merge_lora
from handful.tuning.losses import dice_ce, whole_batch, with_scribbles
from handful.tuning.sampling import BalancedSampler
from handful.tuning.trainable import freeze_all_but, load_trainable_state, trainable_state


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """Fine-tunes the encoder and the decoder; needs no prompts. Embeddings cannot be cached, since they change."""

    when = "comparison with SAMed and Med-SA; on a GPU"
    minutes = "2 min"

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    variant: Literal["lora", "adapter"] = "lora"
    """Trained part of the encoder: low-rank updates of queries and values ('lora'), or two adapters per block."""
    rank: int = 4
    """Rank of the updates, or inner width of the adapters."""
    batch: int = 4
    """Slices per training step, newly augmented each time; half of them are chosen to contain a random label."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=200, learning_rate=None))
    """Length and learning rate of the training; without a rate, the one that suits the backbone.

    That is 2e-3 for handful-tiny and 3e-4 for decoders trained on millions of masks, as SAM's.
    """

    def __post_init__(self) -> None:
        for name in ("rank", "batch"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")

    def resolved(self, backbone: Backbone) -> Lora:
        train = self.train.filled(self.train.steps, backbone.family.defaults.decoder_rate)
        return dataclasses.replace(self, train=train)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> LoraSegmenter:  # noqa: B008
        """As `Method.fit`; a cache of the backbone is not used, since the encoder is trained."""
        method = self.resolved(backbone)
        slicer = self.resolved_slicer(support)
        network = LoraNetwork(backbone, self, len(support.labels) + 1)
        labelled = list(support.slices(slicer))
        scratch = run.scratch and run.scratch / fingerprint(method, _digest(labelled), backbone)
        train(
            network.trained,
            _EncoderLoss(network, labelled, self.batch),
            method.train,
            dataclasses.replace(run, scratch=scratch),
        )
        return LoraSegmenter(support.labels, slicer, backbone, network)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        method = self.resolved(backbone)
        return (Work.of(method, support, steps=method.train.steps),)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> LoraSegmenter:
        network = LoraNetwork(backbone, self, len(labels) + 1)
        load_trainable_state(network.trained, learned)
        return LoraSegmenter(labels, slicer, backbone, network)


class LoraSegmenter(Segmenter):
    """A backbone whose encoder and decoder were fine-tuned for the labels."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, network: LoraNetwork) -> None:
        super().__init__(labels, slicer, backbone)
        self.network = network
        merge_lora(network.own.image_encoder)

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        own = self.network.own
        image = own.encode_exact(slices)
        return own.to_image_frame(self.network(image), image.size)

    def learned(self) -> dict[str, Tensor]:
        """The updates or adapters of the encoder, the decoder, and the class tokens."""
        return trainable_state(self.network.trained)


class LoraNetwork(nn.Module):
    """A copy of a backbone with trainable updates or adapters and decoder; all frozen weights are shared."""

    def __init__(self, backbone: Backbone, method: Lora, classes: int) -> None:
        super().__init__()
        self.own = backbone.fork_sharing_weights([backbone.mask_decoder])
        generator = torch.Generator().manual_seed(method.train.seed)
        add = add_lora if method.variant == "lora" else add_adapters
        decoder: Any = self.own.mask_decoder
        self.tokens = ClassTokens(classes, decoder, generator)
        parts = nn.ModuleList(add(self.own.image_encoder, method.rank, generator))
        self.trained = nn.ModuleDict({"encoder": parts, "mask_decoder": decoder, "tokens": self.tokens})
        """The modules to be trained; all others belong to the original backbone."""
        freeze_all_but(self.trained, *single_mask_parts(decoder, finer_levels=True), parts, self.tokens)
        without_multimask(decoder)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n l s s"]:
        """Logits of each label in the model frame, minus those of the background (the last class)."""
        logits = self.own.decode_square(image, self.tokens(len(image))).logits
        return logits[:, :-1] - logits[:, -1:]


class _EncoderLoss:
    """The loss of one training step: newly augmented slices of the support set go through the whole network."""

    def __init__(self, network: LoraNetwork, support: Sequence[LabelledSlices], batch: int) -> None:
        self.network, self.support = network, support
        self.rows = [(case, row) for case, labelled in enumerate(support) for row in range(len(labelled.slices))]
        self.sampler = BalancedSampler(torch.cat([labelled.present() for labelled in support]), batch)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        images, targets, valid_masks, scribbled = [], [], [], []
        for case, rows in self._by_case(self.sampler.sample(generator)).items():
            image, target, valid_mask = self._view(self.support[case], rows, generator)
            images.append(image)
            targets.append(target)
            valid_masks.append(valid_mask)
            scribbled.append(self.support[case].scribbled[rows])
        logits = self.network(ImageEmbeddings.cat(images))
        batch = logits, torch.cat(targets).to(logits), torch.cat(valid_masks).to(logits.device)
        return with_scribbles(lambda *whole: dice_ce(*whole_batch(*whole)), *batch, torch.cat(scribbled))

    def _by_case(self, chosen: Int[Tensor, " b"]) -> dict[int, list[int]]:
        """Rows grouped by case, since the slices of a case have the same size."""
        rows: dict[int, list[int]] = {}
        for number in chosen.tolist():
            case, row = self.rows[number]
            rows.setdefault(case, []).append(row)
        return rows

    def _view(
        self, labelled: LabelledSlices, rows: list[int], generator: torch.Generator
    ) -> tuple[ImageEmbeddings, Float[Tensor, "n k s s"], Bool[Tensor, "n s s"]]:
        """Embeddings with gradients, and target and valid mask in the frame of the mask logits."""
        own = self.network.own
        slices, masks, valid_mask = augmented(
            labelled.slices[rows], labelled.masks(rows), labelled.valid_mask[rows], generator
        )
        known = valid_mask[:, None].to(masks)
        target, valid = framed_labels(own, masks * known, known, own.mask_side, labelled.scribbled[rows])
        return own.encode_exact(slices.to(own.device)), (target >= 0.5).to(masks), valid


def _digest(support: Sequence[LabelledSlices]) -> str:
    """SHA-256 of pixels, labels and valid masks."""
    return digest_of(*(part for case in support for part in (case.slices, case.classes, case.valid_mask)))
