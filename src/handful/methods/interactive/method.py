"""Interactive: fine-tunes prompt encoder and mask decoder for realistic prompts and corrections of many organs.

After Wang, Liao, Jiang and Geng (ISBI 2025, DOI 10.1109/ISBI60581.2025.10981084): parallel heuristic prompt generation
(PHPG), which trains on diverse and imperfect prompts guided by errors, for many organs at once, and class-balanced data
pruning (CBDP). Only the abstract is public: this is our reconstruction. The image encoder stays frozen, or is trained
by low-rank updates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError, refuse_without_effect
from handful.jobs.progress import Run
from handful.methods.base import (
    CHUNK,
    Held,
    Method,
    PromptableSegmenter,
    Segmenter,
    Work,
    at_once,
    below,
    labelled_slices,
)
from handful.methods.encoded_support import EncodedSupport, encode_support, fingerprint
from handful.methods.interactive.network import InteractiveNetwork
from handful.methods.interactive.training import CorrectionLoss, Regions, SimulatedAnnotators
from handful.methods.learned import Learned
from handful.prompts.heuristics import boxes, centre_points
from handful.prompts.prompt_mix import PromptMix
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import CAREFUL, Annotator
from handful.tuning.loop import TrainConfig, train
from handful.tuning.lora import merge_lora
from handful.tuning.pruning import Pruning, PruningReport, Sampler
from handful.tuning.trainable import load_trainable_state, trainable_state

FRAME = 256
"""Maximum width and height in pixels of the frame in which annotators are simulated."""
CELLS = 8
"""Width and height in cells to which feature maps are pooled before slices are compared."""
OUTSIDE = -10.0
"""Logit of a label that the most similar labelled slice does not contain."""

_Places = tuple[Float[Tensor, "n k 4"], Float[Tensor, "n k 2"]]
"""Boxes and centre points of the labels of n slices, as in `_Table`."""


@dataclass(frozen=True, kw_only=True)
class Interactive(Method):
    """Fine-tunes a backbone for prompts and corrections, with annotators simulated on the labelled slices."""

    when = "you correct results by clicks and boxes"
    minutes = "1 to 2 min"
    needs_whole_masks = True
    whole_slices = True

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    prompts: Literal["phpg", "centre"] = "phpg"
    """Simulated prompts in training: 'phpg' for varied ones, 'centre' for centre clicks only (a baseline).

    'phpg' takes first prompts from `prompt_mix` and corrections from `annotator`. 'centre' clicks in the middle of the
    region, and corrects in the middle of the largest error.
    """
    prompt_mix: PromptMix = PromptMix()
    """Relative frequencies of the kinds of first prompts in training."""
    annotator: Annotator = Annotator()
    """Relative frequencies of the positions of correction clicks in training."""
    rounds: int = 3
    """Maximum number of corrections per region in a training step; 0 for none.

    The actual number is random, from 1 to this maximum.
    """
    mask_prompts: float = 0.5
    """Probability that a correction also gets the previous mask as a prompt."""
    regions: int = 8
    """Maximum number of regions per slice in one step; if a slice has more, rare labels are preferred."""
    batch: int = 4
    """Slices per training step."""
    views: int = 1
    """Augmented views stored per labelled slice, including the slice itself; 1 for no augmentation."""
    encoder_rank: int = 0
    """Rank of low-rank updates of the image encoder (as in `lora`); 0 keeps the encoder frozen, which is faster.

    With updates, every step encodes its slices again, and a cache of embeddings is not used.
    """
    error_head: bool = False
    """Also train a head that predicts errors; it guides corrections in training and can suggest clicks later."""
    pruning: Pruning = Pruning()
    """Rule that leaves slices out of an epoch, to save training time."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=500, learning_rate=1e-4))
    """Length (before pruning) and learning rate of the training; 0 iterations leave the backbone untrained."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("regions", 1), ("batch", 1), ("views", 1), ("encoder_rank", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.mask_prompts <= 1:
            raise SettingsError(f"mask_prompts must be a probability in [0, 1], got {self.mask_prompts}")
        if self.prompts == "centre":
            refuse_without_effect(self, ("prompt_mix", "annotator"), "prompts = 'centre' always clicks in the middle")
        if self.rounds == 0:
            refuse_without_effect(self, ("annotator", "mask_prompts"), "with rounds = 0 nothing is corrected")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> InteractiveSegmenter:  # noqa: B008
        support = support.with_whole_masks()
        slicer = self.resolved_slicer(support)
        network = self._network(backbone)
        places: list[_Places] = []
        encoded = encode_support(
            _noting_places(support.slices(slicer), places),
            network.fork if self.encoder_rank else backbone,
            views=self.views,
            seed=self.train.seed,
            side=min(FRAME, backbone.side),
            learns=self.encoder_rank > 0,
        )
        report = None
        if self.train.iterations:
            scratch = run.scratch and run.scratch / fingerprint(self, encoded.digest, backbone)
            report = self._train(network, encoded, dataclasses.replace(run, scratch=scratch))
        return InteractiveSegmenter(support.labels, slicer, backbone, self, network, _Table.of(encoded, places), report)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> InteractiveSegmenter:
        network = self._network(backbone)
        load_trainable_state(network.trained, below("tuned", learned))
        taken = Learned(below("table", learned), k=len(labels))
        table = _Table(
            taken.floats("signatures", f"v {backbone.channels * min(CELLS, backbone.feature_side) ** 2}"),
            taken.floats("boxes", "v k 4", low=0, high=1),
            taken.floats("centres", "v k 2", low=0, high=1),
        )
        return InteractiveSegmenter(labels, slicer, backbone, self, network, table, None)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        samples = labelled_slices(self, support) * self.views
        steps = self.pruning.steps(self.train.steps, self.batch, samples)
        return (Work.of(self, support, encoded=0 if self.encoder_rank else samples, steps=steps),)

    def _network(self, backbone: Backbone) -> InteractiveNetwork:
        return InteractiveNetwork(backbone, self.encoder_rank, self.error_head, self.train.seed)

    def _train(self, network: InteractiveNetwork, encoded: EncodedSupport, run: Run) -> PruningReport:
        regions = Regions.of(encoded)
        journal = run.scratch and run.scratch / "losses.jsonl"
        sampler = Sampler(self.pruning, regions.held, self.train.steps, self.batch, self.train.seed, journal)
        loss = CorrectionLoss(network, encoded, regions, self._annotators(), sampler)
        train(network.trained, loss, dataclasses.replace(self.train, iterations=sampler.steps), run)
        return sampler.report(sampler.steps)

    def _annotators(self) -> SimulatedAnnotators:
        varied = self.prompts == "phpg"
        return SimulatedAnnotators(
            prompt_mix=self.prompt_mix if varied else PromptMix.only("centre"),
            annotator=self.annotator if varied else CAREFUL,
            rounds=self.rounds,
            mask_prompts=self.mask_prompts,
            at_once=self.regions,
        )


@dataclass(frozen=True, eq=False)
class PromptedMasks:
    """The prediction of a fine-tuned backbone for prompts."""

    logits: Float[Tensor, "n k h w"]
    iou: Float[Tensor, "n k"]
    """Predicted IoU of each mask, in [0, 1]."""
    error: Float[Tensor, "n k h w"] | None
    """Probability that a pixel of the mask is wrong; None without an error head."""


class InteractiveSegmenter(Segmenter):
    """A fine-tuned backbone. Without a user, it is prompted as the most similar labelled slice suggests.

    `pruning_report` states which slices were used in training; it is None after the segmenter was loaded.
    """

    def __init__(
        self,
        labels: Labels,
        slicer: Slicer,
        backbone: Backbone,
        method: Interactive,
        network: InteractiveNetwork,
        table: _Table,
        report: PruningReport | None,
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method, self.network, self.table, self.pruning_report = method, network, table, report
        merge_lora(network.fork.image_encoder)

    @property
    def encoder(self) -> Backbone:
        """The backbone that has to encode slices for `segment_prompted`: the original one unless it was trained."""
        return self.network.fork if self.method.encoder_rank else self.backbone

    @torch.no_grad()
    def segment_prompted(self, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]) -> PromptedMasks:
        """Masks for prompts in slice pixels, on slices of `size` (h, w) pixels encoded by `encoder`.

        A region may have points, a box, or both; a box of zeros counts as none. A region without any prompt gets a
        mask, too. `prompts.masks` are logits of the previous masks. If there are many labels, they are decoded in
        several calls.
        """
        fork, at_once = self.network.fork, self.method.regions
        chunks = [prompts.labels(slice(start, start + at_once)) for start in range(0, prompts.shape[1], at_once)]
        parts = [self.network(image, chunk, size) for chunk in chunks]
        errors = [self.network.errors(image, part) for part in parts]
        logits = fork.to_image_frame(torch.cat([part.logits for part in parts], dim=1), size)
        predicted = [error for error in errors if error is not None]
        error = fork.to_image_frame(torch.cat(predicted, dim=1), size).sigmoid() if predicted else None
        return PromptedMasks(logits, torch.cat([part.iou for part in parts], dim=1).clamp(0, 1), error)

    def promptable(self) -> InteractivePromptable:
        return InteractivePromptable(self)

    def suggest(self, masks: PromptedMasks) -> Prompts:
        """The click on the mask of each label that the error head considers most useful.

        It lies where an error is most likely: negative inside the mask, positive outside. Raises SettingsError without
        an error head.
        """
        if masks.error is None:
            raise SettingsError("this segmenter has no error head to suggest clicks; fit it with error_head=True")
        error = F.avg_pool2d(masks.error, 5, stride=1, padding=2)  # prefers a region of errors to a single pixel
        place = error.flatten(2).argmax(dim=2, keepdim=True)
        inside = masks.logits.flatten(2).gather(2, place) > 0
        width = error.shape[-1]
        return Prompts(torch.stack([place % width, place // width], dim=-1).float(), (~inside).long())

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits for the prompts of the most similar labelled slice: the boxes or centres of its labels.

        Labels that this slice does not contain are absent.
        """
        image = self.encoder.encode(slices)
        h, w = slices.shape[-2:]
        logits = slices.new_full((len(slices), len(self.labels), h, w), OUTSIDE)
        for row, nearest in enumerate(self.table.nearest(image).tolist()):
            prompts = self.table.prompts(nearest, (h, w), self.method.prompts == "centre")
            present = torch.nonzero(self.table.boxes[nearest].any(dim=1))[:, 0]
            if len(present):
                logits[row, present] = self.segment_prompted(image[row], prompts.labels(present), (h, w)).logits[0]
        return logits

    @property
    def holds(self) -> frozenset[Held]:
        return frozenset({"embeddings"})  # the features that slices are compared by

    def learned(self) -> dict[str, Tensor]:
        tuned = {f"tuned/{name}": value for name, value in trainable_state(self.network.trained).items()}
        return tuned | {f"table/{field.name}": getattr(self.table, field.name) for field in dataclasses.fields(_Table)}


class InteractivePromptable(PromptableSegmenter):
    """The promptable form of an `InteractiveSegmenter`; labels without a prompt are absent."""

    def __init__(self, segmenter: InteractiveSegmenter) -> None:
        super().__init__(segmenter.labels, segmenter.slicer, segmenter.backbone)
        self.segmenter = segmenter

    def prompted_logits(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        return self.decode(self.segmenter.encoder.encode(slices), prompts)

    @property
    def encoder(self) -> Backbone:
        return self.segmenter.encoder

    def decode(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        return self.segmenter.segment_prompted(image, prompts, image.size).logits

    def learned(self) -> dict[str, Tensor]:
        return self.segmenter.learned()


@dataclass(frozen=True, eq=False)
class _Table:
    """Prompts of the labelled slices, and the signatures to find the most similar slice; one row per slice."""

    signatures: Float[Tensor, "v s"]
    boxes: Float[Tensor, "v k 4"]
    """Box of each label (x0, y0, x1, y1) as fractions of width and height, at outer pixel edges; zeros if absent."""
    centres: Float[Tensor, "v k 2"]
    """The point of each label farthest from its edge (x, y), as fractions of width and height."""

    @classmethod
    @torch.no_grad()
    def of(cls, encoded: EncodedSupport, places: Sequence[_Places]) -> _Table:
        """The table of the unaugmented slices, with signatures of the current encoder."""
        plain = torch.nonzero(encoded.views == 0)[:, 0]
        signatures = [_signature(encoded.rows(rows)).cpu() for rows in torch.split(plain, CHUNK)]
        all_boxes, centres = (torch.cat(parts) for parts in zip(*places, strict=True))
        return cls(torch.cat(signatures), all_boxes, centres)

    def nearest(self, image: ImageEmbeddings) -> Int[Tensor, " n"]:
        """The row of the most similar labelled slice, for each slice."""
        return (_signature(image) @ self.signatures.to(image.main.device).T).argmax(dim=1)

    def prompts(self, row: int, size: tuple[int, int], centre: bool) -> Prompts:
        """The boxes (or centre points) of one row, in pixels of a slice of `size` (h, w)."""
        h, w = size
        if not centre:
            edges = self.boxes[row : row + 1] * self.boxes.new_tensor([w, h, w, h])
            return Prompts(boxes=edges - self.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        points = self.centres[row : row + 1, :, None] * self.centres.new_tensor([w, h]) - 0.5
        return Prompts(points, torch.ones(points.shape[:-1], dtype=torch.long))


def _noting_places(labelled: Iterable[LabelledSlices], places: list[_Places]) -> Iterator[LabelledSlices]:
    """The same slices. The boxes and centres of their labels are appended to `places`, so that slices are read once."""
    for case in labelled:
        count = at_once(case.labels)
        parts = [_places(case.masks(slice(at, at + count)) > 0) for at in range(0, len(case.classes), count)]
        corners, middles = zip(*parts, strict=True)
        places.append((torch.cat(corners), torch.cat(middles)))
        yield case


def _places(masks: Bool[Tensor, "n k h w"]) -> tuple[Float[Tensor, "n k 4"], Float[Tensor, "n k 2"]]:
    """Boxes and centre points as fractions of the slice, as in `_Table`; zeros for absent labels."""
    h, w = masks.shape[-2:]
    present = masks.flatten(2).any(dim=2)[..., None]
    corners = boxes(masks, 0.0, torch.Generator()) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    middle = centre_points(masks).points
    assert middle is not None
    return present * corners / torch.tensor([w, h, w, h]), present * (middle[:, :, 0] + 0.5) / torch.tensor([w, h])


def _signature(image: ImageEmbeddings) -> Float[Tensor, "n s"]:
    """Features to compare slices by, with zero mean and unit length, so that their product is a correlation."""
    cells = F.adaptive_avg_pool2d(image.main, min(CELLS, image.main.shape[-1])).flatten(1)
    return F.normalize(cells - cells.mean(dim=1, keepdim=True), dim=1)
