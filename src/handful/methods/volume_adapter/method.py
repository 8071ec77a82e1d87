"""Volume adapter: a frozen 2D encoder with adapters that exchange information between neighbouring slices.

After Chen et al., "MA-SAM" (arXiv 2309.08842), Gong et al., "3DSAM-adapter" (arXiv 2306.13465), Li et al., "AutoProSAM"
(arXiv 2308.14936), and the volumes of Wu et al., "Medical SAM Adapter" (arXiv 2304.12620). Reconstructed from their
descriptions; their code was not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError, refuse_without_effect
from handful.jobs.progress import Run
from handful.methods.base import UNPROMPTED, Method, PromptableSegmenter, Segmenter, Work, at_once, without_constant
from handful.methods.encoded_support import fingerprint
from handful.methods.stacks import windows
from handful.methods.volume_adapter.network import AdapterKind, HeadKind, NetworkShape, VolumeNetwork
from handful.methods.volume_adapter.training import StackedScan, StackLoss, digest
from handful.prompts.prompts import Prompts
from handful.tuning.loop import TrainConfig, train
from handful.tuning.lora import merge_lora
from handful.tuning.trainable import load_trainable_state, trainable_state

DEEPEST = 64
"""Most slices of a stack."""


@dataclass(frozen=True, kw_only=True)
class VolumeAdapter(Method):
    """Adapts the encoder to volumes: neighbouring slices are encoded as a stack. Needs no prompts, but takes them."""

    when = "comparison with MA-SAM, 3DSAM-adapter, AutoProSAM and Med-SA; on a GPU"
    minutes = "5 min"

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    head: HeadKind = "mask-decoder"
    """Prediction of masks: 'mask-decoder' (MA-SAM), 'multi-layer' (3DSAM-adapter) or 'prompt-generator' (AutoProSAM).

    'mask-decoder' is SAM's decoder with one learned token per class. 'multi-layer' adds the outputs of four depths of
    the encoder to the decoder's finest features. 'prompt-generator' also has a 3D U-Net on the deepest features, whose
    output takes the place of clicks.
    """
    adapter: AdapterKind = "convolution"
    """Adapters in each block: 'convolution' over the slices, with LoRA; or 'attention', as Med-SA has it for volumes.

    'convolution' has two depth adapters per block and low-rank updates of queries and values. 'attention' has a depth
    branch with the block's own attention, and the two adapters that `lora` has with variant=adapter.
    """
    depth: int = 5
    """Slices of a stack, from 1 (no context) to 64; in the training, an even number is one more."""
    rank: int = 4
    """Rank of the low-rank updates, for the adapter 'convolution'."""
    width: int = 32
    """Inner width of the adapters."""
    clicks: float = 0.5
    """Weight of the loss with one click per label; 0 trains without clicks, and the model then takes no prompts."""
    batch: int = 2
    """Stacks per training step, newly augmented each time; half of them are chosen to contain a random label."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=200, learning_rate=None))
    """Length and learning rate of the training; without a rate, the one that suits the backbone.

    That is 2e-3 for handful-tiny and 3e-4 for decoders trained on millions of masks, as SAM's.
    """

    def __post_init__(self) -> None:
        for name in ("rank", "width", "batch"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.depth <= DEEPEST:
            raise SettingsError(f"depth must be a number of slices from 1 to {DEEPEST}, got {self.depth}")
        if not 0 <= self.clicks <= 100:
            raise SettingsError(f"clicks must be a weight from 0 to 100, got {self.clicks}")
        if self.adapter == "attention":
            refuse_without_effect(self, ("rank",), "it is for the adapter 'convolution'; width is that of 'attention'")

    def resolved(self, backbone: Backbone) -> VolumeAdapter:
        train = self.train.filled(self.train.steps, backbone.family.defaults.decoder_rate)
        return dataclasses.replace(self, train=train)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> VolumeSegmenter:  # noqa: B008
        """As `Method.fit`; a cache of the backbone is not used, since the encoder is trained."""
        method = self.resolved(backbone)
        slicer = self.resolved_slicer(support)
        network = self._network(backbone, support.labels)
        scans = [StackedScan.of(scan, self.reach) for scan in support.scans(slicer)]
        scratch = run.scratch and run.scratch / fingerprint(method, digest(scans), backbone)
        train(
            network.trained,
            StackLoss(network, scans, self.batch, self.clicks),
            method.train,
            dataclasses.replace(run, scratch=scratch),
        )
        return VolumeSegmenter(support.labels, slicer, backbone, self, network)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        method = self.resolved(backbone)
        work = Work.of(method, support, steps=method.train.steps)
        return (dataclasses.replace(work, neighbours=self.reach),)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> VolumeSegmenter:
        network = self._network(backbone, labels)
        load_trainable_state(network.trained, learned)
        return VolumeSegmenter(labels, slicer, backbone, self, network)

    @property
    def reach(self) -> int:
        """Slices on either side of a slice in the middle of its stack."""
        return self.depth // 2

    def _network(self, backbone: Backbone, labels: Labels) -> VolumeNetwork:
        shape = NetworkShape(
            head=self.head,
            adapter=self.adapter,
            rank=self.rank,
            width=self.width,
            reach=self.reach,
            seed=self.train.seed,
        )
        return VolumeNetwork(backbone, len(labels) + 1, shape)


class VolumeSegmenter(Segmenter):
    """A backbone adapted to stacks; slices given together are neighbours, in their order."""

    def __init__(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, method: VolumeAdapter, network: VolumeNetwork
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method, self.network = method, network
        merge_lora(network.encoder.image_encoder)

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        parts = windows(len(slices), self.method.depth)
        return torch.cat(
            [
                logits
                for kept, window in parts
                for _, logits in self._answers(slices[window.start : window.stop], kept, window.start)
            ]
        )

    def logits_with_context(
        self, stack: SliceView, wanted: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        for kept, window in windows(len(stack), self.method.depth):
            if set(kept).isdisjoint(wanted):
                continue
            slices = stack.take(window).to(self.backbone.device)
            for numbers, logits in self._answers(slices, kept, window.start):
                own = slices[numbers.start - window.start : numbers.stop - window.start]
                yield numbers, without_constant(logits, own)

    def promptable(self) -> VolumePromptable | None:
        """The same model with prompts; None if it was trained without clicks."""
        return VolumePromptable(self) if self.method.clicks else None

    def learned(self) -> dict[str, Tensor]:
        """The adapters and updates of the encoder, the decoder, the class tokens, and the parts of the head."""
        return trainable_state(self.network.trained)

    def _answers(
        self, slices: Float[Tensor, "d c h w"], kept: range, first: int
    ) -> Iterator[tuple[range, Float[Tensor, "n k h w"]]]:
        """Numbers of slices of a stack and their logits, few enough for the memory; `first` is the stack's first."""
        encoder = self.network.encoder
        image = self.network.prompted(encoder.encode_exact(slices))
        count = at_once(len(self.labels), image.size)
        for start in range(kept.start, kept.stop, count):
            numbers = range(start, min(start + count, kept.stop))
            rows = slice(numbers.start - first, numbers.stop - first)
            yield numbers, encoder.to_image_frame(self.network(image[rows]), image.size)


class VolumePromptable(PromptableSegmenter):
    """The promptable form of a `VolumeSegmenter`; labels without a prompt are absent."""

    def __init__(self, segmenter: VolumeSegmenter) -> None:
        super().__init__(segmenter.labels, segmenter.slicer, segmenter.backbone)
        self.segmenter = segmenter

    @property
    def encoder(self) -> Backbone:
        return self.segmenter.network.encoder

    @torch.no_grad()
    def prompted_logits(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """As in the base class; the slices are neighbours, in their order."""
        return self.decode(self.encoder.encode(slices), prompts)

    @torch.no_grad()
    def decode(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        network = self.segmenter.network
        return network.encoder.to_image_frame(network.clicked(image, prompts), image.size)

    def logits_of(self, stack: SliceView, prompts: Prompts) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        """Numbers of the slices that have a prompt, and their logits; each is encoded with its neighbours."""
        for number in torch.nonzero(prompts.is_prompted().any(dim=1))[:, 0].tolist():
            slices, place = stack.around(number, self.encoder.reach)
            one = prompts.rows(torch.tensor([number])).to(self.backbone.device)
            image = self.encoder.encode(slices.to(self.backbone.device))[place]
            absent = ~one.is_prompted()[..., None, None]
            logits = self.decode(image, one).masked_fill(absent, UNPROMPTED)
            yield [number], without_constant(logits, stack.take([number]).to(self.backbone.device))

    def learned(self) -> dict[str, Tensor]:
        return self.segmenter.learned()
