"""Interactive multi-organ tuning: prompt encoder and mask decoder learn to answer the prompts that people really give.

After Wang, Liao, Jiang and Geng (ISBI 2025, DOI 10.1109/ISBI60581.2025.10981084): parallel heuristic prompt generation
(PHPG), which trains on diverse and imperfect prompts guided by errors, many organs at once, and class-balanced data
pruning (CBDP). Only the abstract is public: this is our reconstruction. The image encoder stays frozen, or learns by
low-rank updates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction, PromptEmbeddings
from handful.backbones.decoder import single_mask_parts, without_multimask
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import LabelError, SettingsError
from handful.jobs.digests import Digest
from handful.jobs.progress import Run
from handful.methods.base import CHUNK, Method, PromptableSegmenter, Segmenter, below
from handful.methods.encoded_support import fingerprint, integer, views_of
from handful.prompts.behaviours import Behaviours, behave, confusion_negatives, packed
from handful.prompts.heuristics import append_points, boxes, centre_points
from handful.prompts.prompts import PADDING, Prompts
from handful.prompts.simulation import CAREFUL, Reader, correct
from handful.tuning.loop import TrainConfig, train
from handful.tuning.lora import add_lora, merge_lora
from handful.tuning.pruning import Draw, Pruning, PruningReport, Sampler
from handful.tuning.trainable import freeze_all_but, load_trainable_state, trainable_state

FRAME = 256
"""Pixels along the square in which readers are simulated, at most."""
SMALLEST = 4
"""Pixels of that square that a region must have to be asked for in training."""
CELLS = 8
"""Cells along the maps by which slices are compared."""
OUTSIDE = -10.0
"""Logit of a label that is not asked for."""


@dataclass(frozen=True, kw_only=True)
class Interactive(Method):
    """Tunes a backbone to be asked and corrected, by simulated readers of the labelled slices."""

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    prompts: Literal["phpg", "centre"] = "phpg"
    """How readers ask in training. 'phpg': in every way of `behaviours`, corrections by any `reader`. 'centre': by a
    click in the middle, corrections in the middle of the largest error: what others are to be compared with."""
    behaviours: Behaviours = Behaviours()
    """Shares of the first prompts."""
    reader: Reader = Reader()
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
        tuned = TunedBackbone(backbone, self)
        seen = _look(self, support, slicer, tuned.fork if self.encoder_rank else backbone)
        report = None
        if self.train.iterations:
            scratch = run.scratch and run.scratch / fingerprint(self, seen.digest, backbone)
            run = dataclasses.replace(run, scratch=scratch)
            practice = _Practice(self, tuned, seen, run)
            train(tuned.trained, practice, dataclasses.replace(self.train, iterations=practice.sampler.steps), run)
            report = practice.sampler.report()
        return InteractiveSegmenter(support.labels, slicer, backbone, self, tuned, seen.table(), report)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> InteractiveSegmenter:
        tuned = TunedBackbone(backbone, self)
        load_trainable_state(tuned.trained, below("tuned", learned))
        return InteractiveSegmenter(labels, slicer, backbone, self, tuned, _Table(**below("table", learned)), None)


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
        tuned: TunedBackbone,
        table: _Table,
        report: PruningReport | None,
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method, self.tuned, self.table, self.pruning_report = method, tuned, table, report
        merge_lora(tuned.fork.image_encoder)

    @property
    def encoder(self) -> Backbone:
        """What has to encode the slices that `ask` is asked about: the backbone, or a tuned one if it learnt to see."""
        return self.tuned.fork if self.method.encoder_rank else self.backbone

    @torch.no_grad()
    def ask(self, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]) -> Answer:
        """The answer to prompts in slice pixels on slices of `size` (h, w) pixels, encoded by `encoder`.

        A region may have points, a box, or both; a box of zeros is none, and one who is asked nothing still answers.
        Masks of the prompts are logits of the answer before. Many labels are decoded a few at once.
        """
        fork, at_once = self.tuned.fork, self.method.regions
        some = [prompts.labels(slice(start, start + at_once)) for start in range(0, prompts.shape[1], at_once)]
        parts = [self.tuned(image, part, size) for part in some]
        errors = [self.tuned.errors(image, part) for part in parts]
        logits = fork.to_slice(torch.cat([part.logits for part in parts], dim=1), size)
        told = [error for error in errors if error is not None]
        error = fork.to_slice(torch.cat(told, dim=1), size).sigmoid() if told else None
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
        tuned = {f"tuned/{name}": value for name, value in trainable_state(self.tuned.trained).items()}
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


class TunedBackbone(nn.Module):
    """A fork of the backbone whose prompt encoder and mask decoder train, and what else the method asks to train.

    That is a head that predicts errors, and low-rank updates of an encoder whose own weights the fork still shares.
    """

    def __init__(self, backbone: Backbone, method: Interactive) -> None:
        super().__init__()
        own = [backbone.mask_decoder, backbone.prompt_encoder]
        self.fork = backbone.fork_sharing_weights(own) if method.encoder_rank else backbone.fork()
        decoder: Any = self.fork.mask_decoder
        self.trained = nn.ModuleDict({"mask_decoder": decoder, "prompt_encoder": self.fork.prompt_encoder})
        if method.error_head:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(method.train.seed)
                self.trained["error_head"] = ErrorHead(backbone.channels).to(backbone.device)
        if method.encoder_rank:
            generator = torch.Generator().manual_seed(method.train.seed)
            self.trained["encoder"] = nn.ModuleList(add_lora(self.fork.image_encoder, method.encoder_rank, generator))
        whole = [part for name, part in self.trained.items() if name != "mask_decoder"]
        freeze_all_but(self.trained, *single_mask_parts(decoder, iou=True), *whole)
        prompt_encoder: Any = self.fork.prompt_encoder
        prompt_encoder.shared_embedding.requires_grad_(False)  # the positional encoding is the image's, too
        without_multimask(decoder)

    def forward(self, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]) -> MaskPrediction:
        """Masks in the model's square for prompts in pixels of slices of `size`; labels share one decoder call."""
        return self.fork.decode_square(image, self._embed(packed(prompts), size))

    def errors(self, image: ImageEmbeddings, answer: MaskPrediction) -> Float[Tensor, "n k s s"] | None:
        """Logits that each pixel of an answer is wrong; None without the head."""
        if "error_head" not in self.trained:
            return None
        errors: Tensor = self.trained["error_head"](image.main.detach(), answer.logits.detach())
        return errors

    def _embed(self, prompts: Prompts, size: tuple[int, int]) -> PromptEmbeddings:
        """As the backbone embeds them, with padding for the corners where a region has no box among some that have."""
        assert prompts.boxes is not None
        assert prompts.points is not None
        assert prompts.point_labels is not None
        boxed = self.fork.embed(prompts, size)
        # a call without boxes brings one padding point of its own
        corners = boxed.sparse.shape[2] - prompts.points.shape[2] - 1
        points = F.pad(prompts.points, (0, 0, 0, corners))
        bare = self.fork.embed(Prompts(points, F.pad(prompts.point_labels, (0, corners), value=PADDING)), size)
        has_box = prompts.boxes.any(dim=2).to(boxed.sparse.device)
        return PromptEmbeddings(torch.where(has_box[..., None, None], boxed.sparse, bare.sparse), boxed.dense)


class ErrorHead(nn.Module):
    """A few convolutions from image features and an answer's logits to where that answer is wrong."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.mix = nn.Conv2d(width + 2, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 3, padding=1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, -2.0)  # most pixels are right

    def forward(self, features: Float[Tensor, "n c f f"], logits: Float[Tensor, "n k s s"]) -> Float[Tensor, "n k s s"]:
        n, k, s, _ = logits.shape
        looks = F.interpolate(self.reduce(features), (s, s), mode="bilinear", align_corners=False)
        inside = logits.flatten(0, 1)[:, None].sigmoid()
        doubt = 4 * inside * (1 - inside)
        joined = torch.cat([looks.repeat_interleave(k, dim=0), inside, doubt], dim=1)
        found: Tensor = self.out(F.gelu(self.mix(joined)))
        return found.reshape(n, k, s, s)


@dataclass(frozen=True, eq=False)
class _Table:
    """What labelled slices lend to unlabelled ones, a row a slice."""

    signatures: Float[Tensor, "v s"]
    boxes: Float[Tensor, "v k 4"]
    """Box of each label as shares of the slice's width and height, the pixels' outer edges; zeros where it is not."""
    centres: Float[Tensor, "v k 2"]
    """The deepest point of each label, likewise."""

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


@dataclass(frozen=True, eq=False)
class _Kept:
    """Slices as a frozen encoder saw them, once."""

    image: ImageEmbeddings
    """Half precision, to keep many; rows become float32 on use."""

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        return self.image[rows].to(torch.float32)


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Slices as an encoder sees them that learns: anew each time, with gradients."""

    encoder: Backbone
    slices: Sequence[Tensor]
    """Each (c, h, w); their sizes may differ."""

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        chosen = [self.slices[row][None].to(self.encoder.device) for row in rows.tolist()]
        return ImageEmbeddings.cat([self.encoder.encode_exact(one) for one in chosen])


@dataclass(frozen=True, eq=False)
class _Seen:
    """What there is of the support: v rows, each one view of one slice."""

    source: _Kept | _Fresh
    masks: Bool[Tensor, "v k f f"]
    """The truth in the square in which readers are simulated."""
    known: Bool[Tensor, "v f f"]
    plain: Int[Tensor, " s"]
    """Rows that show a slice as it is."""
    boxes: Float[Tensor, "s k 4"]
    centres: Float[Tensor, "s k 2"]
    """As `_Table` has them, of the plain rows."""
    digest: str
    """SHA-256 of the pixels, labels and known voxels that went in."""

    @torch.no_grad()
    def table(self) -> _Table:
        """What the labelled slices lend, compared as the encoder sees them now."""
        parts = [_signature(self.source.rows(rows)).cpu() for rows in torch.split(self.plain, CHUNK)]
        return _Table(torch.cat(parts), self.boxes, self.centres)


def _look(method: Interactive, support: SupportSet, slicer: Slicer, backbone: Backbone) -> _Seen:
    """Encodes every view of every labelled slice, once; where the encoder learns, it keeps them as they are."""
    generator = torch.Generator().manual_seed(method.train.seed)
    digest = Digest()
    frame = min(FRAME, backbone.side)
    images: list[ImageEmbeddings] = []
    pixels: list[Tensor] = []
    truth: list[tuple[Tensor, Tensor]] = []
    views: list[int] = []
    places: list[tuple[Tensor, Tensor]] = []
    for labelled in support.slices(slicer):
        digest.add(labelled.slices, labelled.masks, labelled.known)
        for view, _, slices, masks, known in views_of(labelled, method.views, generator):
            if method.encoder_rank:
                pixels += slices
            else:
                images.append(backbone.encode(slices.to(backbone.device)).to(torch.float16))
            shown = known[:, None].to(masks)
            inside = backbone.to_square(masks * shown, frame) >= 0.5
            truth.append((inside, backbone.to_square(shown, frame)[:, 0] >= 0.5))
            views += [view] * len(slices)
            if view == 0:
                places.append(_places(masks * shown > 0))
    source = _Fresh(backbone, pixels) if method.encoder_rank else _Kept(ImageEmbeddings.cat(images))
    masks, known = (torch.cat(parts) for parts in zip(*truth, strict=True))
    box, centre = (torch.cat(parts) for parts in zip(*places, strict=True))
    plain = torch.nonzero(torch.tensor(views) == 0)[:, 0]
    return _Seen(source, masks, known, plain, box, centre, digest.hex())


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


class _Practice:
    """The loss of one training step: simulated readers ask for the regions of a few slices and correct the answers."""

    def __init__(self, method: Interactive, tuned: TunedBackbone, seen: _Seen, run: Run) -> None:
        self.method, self.tuned, self.seen = method, tuned, seen
        self.parameters = [p for p in tuned.trained.parameters() if p.requires_grad]
        self.careless = method.prompts == "phpg"
        self.behaviours = method.behaviours if self.careless else Behaviours.only("centre")
        self.reader = method.reader if self.careless else CAREFUL
        held = seen.masks.sum(dim=(2, 3)) >= SMALLEST
        self.rows = torch.nonzero(held.any(dim=1))[:, 0]
        if not len(self.rows):
            raise LabelError(
                f"no labelled region covers {SMALLEST} pixels of a square of {seen.masks.shape[-1]}; "
                "label slices where the organs are larger"
            )
        self.held = held[self.rows]
        journal = run.scratch and run.scratch / "losses.jsonl"
        self.sampler = Sampler(
            method.pruning, self.held, method.train.iterations, method.batch, method.train.seed, journal
        )

    def __call__(self, step: int, generator: Generator) -> Tensor:
        draw = self.sampler.draw(step)
        labels = self._choose(draw.rows, generator)
        image = self.seen.source.rows(self.rows[draw.rows])
        scene = self._scene(draw, labels, _detached(image))
        prompts = behave(scene.truth, self.behaviours, generator)
        corrections = 0 if self.method.rounds == 0 else 1 + integer(self.method.rounds, generator)
        total = _Descent([*self.parameters, *_learning(scene.image)])
        for number in range(corrections + 1):
            answer = self.tuned(scene.image, prompts, scene.size)
            losses = scene.losses(answer)
            error = self.tuned.errors(scene.image, answer)
            value = scene.mean(losses)
            if error is not None:
                value = value + 0.1 * scene.mean(scene.error_losses(error, answer))
            total.add(value / (corrections + 1))
            if number < corrections:
                prompts = self._corrected(prompts, answer, error, scene, generator)
        self.sampler.observe(_by_label(losses, labels, self.held.shape[1]))
        return total.value([*self.parameters, *_learning(image)])

    def _choose(self, rows: Int[Tensor, " b"], generator: Generator) -> Int[Tensor, "b r"]:
        """The labels asked for on each slice, rare ones drawn first; -1 where a slice has fewer than another."""
        held = self.held[rows]
        rarity = held / self.held.sum(dim=0).clamp_min(1)
        keys = torch.where(held, rarity.log() + _gumbel(held.shape, generator), -torch.inf)
        order = keys.argsort(dim=1, descending=True)[:, : min(self.method.regions, int(held.sum(dim=1).max()))]
        return torch.where(held.gather(1, order), order, -1)

    def _scene(self, draw: Draw, labels: Int[Tensor, "b r"], image: ImageEmbeddings) -> _Scene:
        rows = self.rows[draw.rows]
        place = labels.clamp_min(0)[..., None, None].expand(-1, -1, *self.seen.masks.shape[-2:])
        truth = self.seen.masks[rows].gather(1, place) & (labels >= 0)[..., None, None]
        return _Scene(image, truth, self.seen.known[rows], draw.weights, self.tuned.fork.mask_side)

    def _corrected(
        self, prompts: Prompts, answer: MaskPrediction, error: Tensor | None, scene: _Scene, generator: Generator
    ) -> Prompts:
        """The prompts and one correction more a region, now and then with the answer itself as a mask prompt."""
        logits = scene.framed(answer.logits.detach())
        shown, known = (logits > 0).cpu(), scene.known[:, None]
        weight = None if error is None else scene.framed(error.detach().sigmoid()).cpu()
        click = correct(shown & known, scene.truth & known, self.reader, generator, weight)
        prompts = append_points(prompts, click)
        if self.careless and self.behaviours.confusion:
            chance = self.behaviours.confusion
            prompts = append_points(prompts, confusion_negatives(scene.truth, shown & known, chance, generator))
        given = float(torch.rand((), generator=generator)) < self.method.mask_prompts
        return packed(dataclasses.replace(prompts, masks=logits if given else None))


@dataclass(frozen=True, eq=False)
class _Scene:
    """The slices of a step and the regions asked for on each; regions that pad a row are empty."""

    image: ImageEmbeddings
    truth: Bool[Tensor, "b r f f"]
    known: Bool[Tensor, "b f f"]
    weights: Float[Tensor, " b"]
    mask_side: int

    @property
    def size(self) -> tuple[int, int]:
        """Prompts are in pixels of the square itself, so that slices of all sizes go together."""
        return (self.truth.shape[-2], self.truth.shape[-1])

    @property
    def there(self) -> Bool[Tensor, "b r"]:
        return self.truth.flatten(2).any(dim=2)

    def framed(self, maps: Float[Tensor, "b r s s"]) -> Float[Tensor, "b r f f"]:
        """Maps of the decoder in the square in which readers look at them."""
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)

    def losses(self, answer: MaskPrediction) -> Float[Tensor, "b r"]:
        """20 focal + Dice + squared error of the predicted IoU, of every region; targets are area fractions."""
        target, known = self._target(answer.logits)
        logits = answer.logits
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        inside = logits.sigmoid()
        doubt = inside * (1 - target) + (1 - inside) * target
        focal = (entropy * doubt**2 * known).sum(dim=(2, 3)) / known.sum(dim=(2, 3)).clamp_min(1)
        shared, total = (inside * target * known).sum(dim=(2, 3)), ((inside + target) * known).sum(dim=(2, 3))
        dice = 1 - (2 * shared + 1) / (total + 1)
        return 20 * focal + dice + (answer.iou - self._iou(logits.detach())) ** 2

    def error_losses(self, error: Float[Tensor, "b r s s"], answer: MaskPrediction) -> Float[Tensor, "b r"]:
        """Cross-entropy between where an answer was predicted to be wrong and where it is."""
        target, known = self._target(error)
        wrong = ((answer.logits.detach() > 0).to(target) - target).abs()
        entropy = F.binary_cross_entropy_with_logits(error, wrong, reduction="none")
        return (entropy * known).sum(dim=(2, 3)) / known.sum(dim=(2, 3)).clamp_min(1)

    def mean(self, losses: Float[Tensor, "b r"]) -> Float[Tensor, ""]:
        """Over the regions of each slice, then over the slices by weight."""
        there = self.there.to(losses)
        per_slice = (losses * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
        return (per_slice * self.weights.to(losses)).mean()

    def _target(self, like: Tensor) -> tuple[Float[Tensor, "b r s s"], Float[Tensor, "b 1 s s"]]:
        side = (self.mask_side, self.mask_side)
        known = (F.adaptive_avg_pool2d(self.known[:, None].float(), side) >= 0.5).to(like)
        return F.adaptive_avg_pool2d(self.truth.float(), side).to(like), known

    def _iou(self, logits: Float[Tensor, "b r s s"]) -> Float[Tensor, "b r"]:
        known = self.known[:, None].to(logits.device)
        shown, truth = (self.framed(logits) > 0) & known, self.truth.to(logits.device) & known
        shared, either = (shown & truth).sum(dim=(2, 3)).float(), (shown | truth).sum(dim=(2, 3)).float()
        return shared / either.clamp_min(1)


class _Descent:
    """Adds up the gradients of losses one by one, so that no two of them have to be in memory at once."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.gradients: list[Tensor | None] = [None] * len(inputs)
        self.loss = 0.0

    def add(self, value: Tensor) -> None:
        new = torch.autograd.grad(value, self.inputs, allow_unused=True)
        self.gradients = [
            old if more is None else more if old is None else old + more
            for old, more in zip(self.gradients, new, strict=True)
        ]
        self.loss += float(value.detach())

    def value(self, inputs: Sequence[Tensor]) -> Tensor:
        """A number as large as all losses together, whose gradient is theirs, passed on to where `inputs` came from."""
        terms = [
            (one * gradient).sum() for one, gradient in zip(inputs, self.gradients, strict=True) if gradient is not None
        ]
        carrier = torch.stack(terms).sum()
        return carrier - carrier.detach() + self.loss


def _detached(image: ImageEmbeddings) -> ImageEmbeddings:
    """The same without the way back into the encoder, so that the rounds share one; they still ask for gradients."""
    features = tuple(level.detach().requires_grad_(level.requires_grad) for level in image.features)
    return dataclasses.replace(image, features=features)


def _learning(image: ImageEmbeddings) -> list[Tensor]:
    """The levels that ask for gradients."""
    return [level for level in image.features if level.requires_grad]


def _by_label(losses: Float[Tensor, "b r"], labels: Int[Tensor, "b r"], count: int) -> Float[Tensor, "b d"]:
    """Losses a column a label and one for slices without any, as a sampler takes them; nan where nothing was asked."""
    table = torch.full((len(labels), count + 2), torch.nan)  # the last column takes what pads
    table.scatter_(1, torch.where(labels >= 0, labels, count + 1), losses.detach().cpu().float())
    return table[:, :-1]


def _gumbel(shape: torch.Size, generator: Generator) -> Tensor:
    return -torch.log(-torch.log(torch.rand(shape, generator=generator).clamp(1e-9, 1 - 1e-6)))
