"""Interactive multi-organ tuning: prompt encoder and mask decoder learn to answer the prompts that people really give.

After Wang, Liao, Jiang and Geng (ISBI 2025, DOI 10.1109/ISBI60581.2025.10981084): parallel heuristic prompt generation
(PHPG), which trains on diverse and imperfect prompts guided by errors, many organs at once, and class-balanced data
pruning (CBDP). Only the abstract is public: this is our reconstruction. The image encoder stays frozen, or learns by
low-rank updates.
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
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import CHUNK, Method, PromptableSegmenter, Segmenter, below
from handful.methods.encoded_support import EncodedSupport, encode_support, fingerprint
from handful.methods.interactive.network import InteractiveNetwork
from handful.methods.interactive.training import CorrectionLoss, Regions, SimulatedAnnotators
from handful.prompts.heuristics import boxes, centre_points
from handful.prompts.prompt_mix import PromptMix
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import CAREFUL, Annotator
from handful.tuning.loop import TrainConfig, train
from handful.tuning.lora import merge_lora
from handful.tuning.pruning import Pruning, PruningReport, Sampler
from handful.tuning.trainable import load_trainable_state, trainable_state

FRAME = 256
"""Pixels along the square in which annotators are simulated, at most."""
CELLS = 8
"""Cells along the maps by which slices are compared."""
OUTSIDE = -10.0
"""Logit of a label that is not asked for."""

_Places = tuple[Float[Tensor, "n k 4"], Float[Tensor, "n k 2"]]
"""Boxes and deepest points of the labels of n slices, as `_Table` has them."""


@dataclass(frozen=True, kw_only=True)
class Interactive(Method):
    """Tunes a backbone to be asked and corrected, by simulated annotators of the labelled slices."""

    when = "you correct results by clicks and boxes"
    minutes = "1 to 2 min"
    whole_slices = True

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    prompts: Literal["phpg", "centre"] = "phpg"
    """How annotators ask in training. 'phpg': in every way of `prompt_mix`, corrections by any `annotator`. 'centre':
    by a click in the middle, corrections in the middle of the largest error: what others are to be compared with."""
    prompt_mix: PromptMix = PromptMix()
    """Shares of the first prompts."""
    annotator: Annotator = Annotator()
    """Shares of where corrections are clicked."""
    rounds: int = 3
    """Corrections of a region in a step, at most; as many as that or fewer, drawn evenly from 1 on. 0: none at all."""
    mask_prompts: float = 0.5
    """Chance that a round of corrections is also given the answer before it as a mask prompt."""
    regions: int = 8
    """Regions of a slice asked for at once, at most; where it holds more, rare labels are drawn first."""
    batch: int = 4
    """Slices a training step."""
    views: int = 1
    """Augmented views kept of each support slice, the slice itself being the first."""
    encoder_rank: int = 0
    """Rank of updates of the image encoder's queries and values, as `Lora` learns them. 0: the encoder stays frozen and
    sees each slice once. Otherwise every step encodes its slices anew, and a cache round the backbone is passed by."""
    error_head: bool = False
    """Also learn to predict where answers are wrong: it weighs corrections in training and suggests clicks later."""
    pruning: Pruning = Pruning()
    """Which slices are left out of an epoch, if any."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=500, learning_rate=1e-4))
    """Length (before pruning) and rate of the training; 0 iterations leave the backbone as it is."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("regions", 1), ("batch", 1), ("views", 1), ("encoder_rank", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.mask_prompts <= 1:
            raise SettingsError(f"mask_prompts must be a chance in [0, 1], got {self.mask_prompts}")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> InteractiveSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
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
        return InteractiveSegmenter(labels, slicer, backbone, self, network, _Table(**below("table", learned)), None)

    def _network(self, backbone: Backbone) -> InteractiveNetwork:
        return InteractiveNetwork(backbone, self.encoder_rank, self.error_head, self.train.seed)

    def _train(self, network: InteractiveNetwork, encoded: EncodedSupport, run: Run) -> PruningReport:
        regions = Regions.of(encoded)
        journal = run.scratch and run.scratch / "losses.jsonl"
        sampler = Sampler(self.pruning, regions.held, self.train.iterations, self.batch, self.train.seed, journal)
        loss = CorrectionLoss(network, encoded, regions, self._annotators(), sampler)
        train(network.trained, loss, dataclasses.replace(self.train, iterations=sampler.steps), run)
        return sampler.report()

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
class Answer:
    """What a tuned backbone says to prompts."""

    logits: Float[Tensor, "n k h w"]
    iou: Float[Tensor, "n k"]
    """Predicted IoU, in [0, 1]."""
    error: Float[Tensor, "n k h w"] | None
    """Chance that a pixel of this answer is wrong; None without an error head."""


class InteractiveSegmenter(Segmenter):
    """A tuned backbone, to be asked by people and programs; where nobody asks, by what the nearest labelled slice has.

    `pruning_report` says what the training was shown; None after it was restored.
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
        """What has to encode the slices that `ask` is asked about: the backbone, or a tuned one if it learnt to see."""
        return self.network.fork if self.method.encoder_rank else self.backbone

    @torch.no_grad()
    def ask(self, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]) -> Answer:
        """The answer to prompts in slice pixels on slices of `size` (h, w) pixels, encoded by `encoder`.

        A region may have points, a box, or both; a box of zeros is none, and one who is asked nothing still answers.
        Masks of the prompts are logits of the answer before. Many labels are decoded a few at once.
        """
        fork, at_once = self.network.fork, self.method.regions
        some = [prompts.labels(slice(start, start + at_once)) for start in range(0, prompts.shape[1], at_once)]
        parts = [self.network(image, part, size) for part in some]
        errors = [self.network.errors(image, part) for part in parts]
        logits = fork.to_image_frame(torch.cat([part.logits for part in parts], dim=1), size)
        told = [error for error in errors if error is not None]
        error = fork.to_image_frame(torch.cat(told, dim=1), size).sigmoid() if told else None
        return Answer(logits, torch.cat([part.iou for part in parts], dim=1).clamp(0, 1), error)

    def promptable(self) -> InteractivePromptable:
        """The same, to be asked slice by slice like any promptable segmenter, for example by `oracle`."""
        return InteractivePromptable(self)

    def suggest(self, answer: Answer) -> Prompts:
        """The click on each label's answer that the error head takes for the most useful one.

        It lies where an error is most likely: negative where the answer shows the label, else positive. SettingsError
        without an error head.
        """
        if answer.error is None:
            raise SettingsError("this segmenter has no error head to suggest clicks; fit it with error_head=True")
        error = F.avg_pool2d(answer.error, 5, stride=1, padding=2)  # a region of errors rather than one pixel
        place = error.flatten(2).argmax(dim=2, keepdim=True)
        shown = answer.logits.flatten(2).gather(2, place) > 0
        width = error.shape[-1]
        return Prompts(torch.stack([place % width, place // width], dim=-1).float(), (~shown).long())

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits for prompts that the most similar support slice lends: the boxes of its masks, or their middles.

        A label that it does not hold is not asked for.
        """
        image = self.encoder.encode(slices)
        h, w = slices.shape[-2:]
        logits = slices.new_full((len(slices), len(self.labels), h, w), OUTSIDE)
        for row, nearest in enumerate(self.table.nearest(image).tolist()):
            lent = self.table.lent(nearest, (h, w), self.method.prompts == "centre")
            there = torch.nonzero(self.table.boxes[nearest].any(dim=1))[:, 0]
            if len(there):
                logits[row, there] = self.ask(image[row], lent.labels(there), (h, w)).logits[0]
        return logits

    def learned(self) -> dict[str, Tensor]:
        tuned = {f"tuned/{name}": value for name, value in trainable_state(self.network.trained).items()}
        return tuned | {f"table/{field.name}": getattr(self.table, field.name) for field in dataclasses.fields(_Table)}


class InteractivePromptable(PromptableSegmenter):
    """A tuned backbone that finds nothing without a prompt."""

    def __init__(self, segmenter: InteractiveSegmenter) -> None:
        super().__init__(segmenter.labels, segmenter.slicer, segmenter.backbone)
        self.segmenter = segmenter

    def answer(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        return self.answer_encoded(self.segmenter.encoder.encode(slices), prompts)

    @property
    def encoder(self) -> Backbone:
        return self.segmenter.encoder

    def answer_encoded(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        return self.segmenter.ask(image, prompts, image.size).logits

    def learned(self) -> dict[str, Tensor]:
        return self.segmenter.learned()


@dataclass(frozen=True, eq=False)
class _Table:
    """What labelled slices lend to unlabelled ones, a row a slice."""

    signatures: Float[Tensor, "v s"]
    boxes: Float[Tensor, "v k 4"]
    """Box of each label as shares of the slice's width and height, the pixels' outer edges; zeros where it is not."""
    centres: Float[Tensor, "v k 2"]
    """The deepest point of each label, likewise."""

    @classmethod
    @torch.no_grad()
    def of(cls, encoded: EncodedSupport, places: Sequence[_Places]) -> _Table:
        """Of the slices as they are, compared as the encoder sees them now."""
        plain = torch.nonzero(encoded.views == 0)[:, 0]
        signatures = [_signature(encoded.rows(rows)).cpu() for rows in torch.split(plain, CHUNK)]
        found, centres = (torch.cat(parts) for parts in zip(*places, strict=True))
        return cls(torch.cat(signatures), found, centres)

    def nearest(self, image: ImageEmbeddings) -> Int[Tensor, " n"]:
        """For each slice the row that looks most alike, place by place."""
        return (_signature(image) @ self.signatures.to(image.main.device).T).argmax(dim=1)

    def lent(self, row: int, size: tuple[int, int], centre: bool) -> Prompts:
        """Prompts of one row, in pixels of a slice of `size`."""
        h, w = size
        if not centre:
            edges = self.boxes[row : row + 1] * self.boxes.new_tensor([w, h, w, h])
            return Prompts(boxes=edges - self.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
        points = self.centres[row : row + 1, :, None] * self.centres.new_tensor([w, h]) - 0.5
        return Prompts(points, torch.ones(points.shape[:-1], dtype=torch.long))


def _noting_places(labelled: Iterable[LabelledSlices], places: list[_Places]) -> Iterator[LabelledSlices]:
    """The same slices; where each of their labels lies is added to `places` on the way, so that they are read once."""
    for one in labelled:
        places.append(_places(one.masks * one.valid_mask[:, None] > 0))
        yield one


def _places(masks: Bool[Tensor, "n k h w"]) -> tuple[Float[Tensor, "n k 4"], Float[Tensor, "n k 2"]]:
    """Boxes and deepest points as shares of the slice; zeros where a label is absent."""
    h, w = masks.shape[-2:]
    there = masks.flatten(2).any(dim=2)[..., None]
    corners = boxes(masks, 0.0, torch.Generator()) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    middle = centre_points(masks).points
    assert middle is not None
    return there * corners / torch.tensor([w, h, w, h]), there * (middle[:, :, 0] + 0.5) / torch.tensor([w, h])


def _signature(image: ImageEmbeddings) -> Float[Tensor, "n s"]:
    """What slices are compared by: of zero mean and unit length, so that their product is a correlation."""
    cells = F.adaptive_avg_pool2d(image.main, min(CELLS, image.main.shape[-1])).flatten(1)
    return F.normalize(cells - cells.mean(dim=1, keepdim=True), dim=1)
