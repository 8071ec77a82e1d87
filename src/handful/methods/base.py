"""Base classes: `Method` (settings, can be fitted), `Segmenter` (fitted), `PromptableSegmenter` (takes prompts).

The rest of the package uses methods and segmenters through these classes only. Every optional capability has a default,
so a new method implements only what it can do.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import LabelError, SettingsError
from handful.jobs.progress import Run
from handful.jobs.scratch import zeros
from handful.methods.explained import Explained, Route, SliceConfidence, SupportPicture
from handful.prompts.prompts import Prompts
from handful.tuning.loop import TrainConfig

_Method = TypeVar("_Method", bound="Method")
CHUNK = 8
"""Number of slices per forward pass; larger numbers need more memory and are not faster on a CPU."""
MAPS = 128
"""Most maps of labels per forward pass, if that is more than those of one slice."""
PIXELS = CHUNK * 512**2
"""Most pixels of slices per forward pass, if that is more than those of one slice."""
UNPROMPTED = -1024.0
"""Logit of a label that has no prompt in a slice."""


Held = Literal["pictures", "masks", "embeddings", "names", "sums"]
"""Small pictures of labelled slices, their masks, embeddings of their regions, names of the cases, and sums of
embeddings over all cases."""
SHOWING: frozenset[Held] = frozenset({"pictures", "masks"})
"""What must be protected like the scans and their labels."""


class Segmenter(nn.Module, ABC):
    """A fitted method, which can segment volumes."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone) -> None:
        super().__init__()
        self.labels = labels
        self.slicer = slicer
        self.backbone = backbone

    @abstractmethod
    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of the k labels for slices with values in [0, 1]; the background has logit 0."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """The tensors that `Method.restore` needs in addition to the backbone, by name."""

    @torch.inference_mode()
    def predict(self, volume: Volume) -> LabelMap:
        """The label map of a volume, on the grid of the volume. Memory does not grow with the number of slices."""
        self.eval()
        return self.segment(self.slicer.view(volume))

    def segment(self, stack: SliceView) -> LabelMap:
        """The label map of a stack of slices. Overridden where the prediction of a slice depends on other slices."""
        return assemble_label_map(stack, self.labels, classes_of(self.logits_of(stack)))

    def logits_of(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        """Numbers of slices and their logits; a slice that is not among them has no label."""
        return self.logits_with_context(stack, range(len(stack)))

    def logits_with_context(
        self, stack: SliceView, wanted: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        """As `logits_of`, at least of the slices with these numbers.

        Overridden where slices are segmented together with their neighbours.
        """
        count = at_once(len(self.labels), stack.size)
        for start in range(0, len(wanted), count):
            numbers = wanted[start : start + count]
            slices = stack.take(numbers).to(self.backbone.device)
            yield numbers, without_constant(self.forward(slices), slices)

    @torch.inference_mode()
    def add_probabilities(
        self, volume: Volume, into: Float[np.ndarray[Any, Any], "k i j l"], share: float = 1.0
    ) -> None:
        """Add the probability of each label, times `share`, to `into`, whose last axes are the grid of the volume.

        The probabilities of all labels and of the background sum to `share`. They are those before the removal of
        smaller pieces.
        """
        self.eval()
        stack = self.slicer.view(volume)
        targets = [stack.of(part) for part in into]
        for numbers, logits in self.logits_of(stack):
            shares = F.pad(logits.float().movedim(1, -1), (1, 0)).softmax(dim=-1)[..., 1:].movedim(-1, 0)
            for target, one in zip(targets, shares, strict=True):
                target[list(numbers)] += share * one.cpu().numpy()

    # Optional capabilities.

    @property
    def decisions(self) -> tuple[str, ...]:
        """Automatic decisions of the fit, one sentence each; empty for a loaded segmenter."""
        return ()

    @property
    def reliability(self) -> dict[str, float]:
        """Agreement of the predictions on each unlabelled case, from 0 to 1, by name; empty for a loaded segmenter."""
        return {}

    def predict_explained(self, volume: Volume) -> Explained:
        """The result of `predict`, with the labelled slices it is based on if the segmenter compares slices."""
        return Explained(self.predict(volume))

    def support_picture(self, case: str, number: int) -> SupportPicture:
        """A labelled slice that `predict_explained` refers to. Raises SettingsError if no pictures are stored."""
        raise SettingsError(f"{type(self).__name__} stores no pictures of its labelled slices")

    @torch.inference_mode()
    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """The confidence of each label in the segmenter's own prediction: {label value: confidence in [0, 1]}.

        By default it is the difference between the label's probability and that of the next best class, averaged over
        the label's voxels. `reasons` are those of `predict_explained`; if they are needed and not given, the volume is
        segmented again. Returns {} if the segmenter has no measure of confidence.
        """
        self.eval()
        stack = self.slicer.view(volume)
        return _margins(self, stack, stack.of(prediction.array))

    @property
    def experts(self) -> Mapping[str, Segmenter]:
        """The segmenters of several tasks by name, one of which segments each scan; empty for a single task."""
        return {}

    def route(self, volume: Volume) -> Route:
        """Which of the experts segments a scan. Raises UnsupportedInput if none can, SettingsError without experts."""
        raise SettingsError(f"{type(self).__name__} has no experts; use it as it is")

    def promptable(self) -> PromptableSegmenter | None:
        """The same model with prompts as input; None if it takes none."""
        return None

    def extend(self, support: SupportSet) -> Segmenter:
        """A new segmenter that also uses the labelled slices of `support`, without training; this one is unchanged.

        `support` need not contain every label. Raises LabelError if its labels differ from the segmenter's,
        SettingsError if the method needs training.
        """
        raise SettingsError(
            f"{type(self).__name__} cannot use corrections without training; fit the method again with "
            "session.case(name) in the support set, or use fate or few-shot-prompts"
        )

    @property
    def holds(self) -> frozenset[Held]:
        """What `learned` contains of the support set, besides weights that were learned from it."""
        return frozenset()


class PromptableSegmenter(nn.Module, ABC):
    """Segments slices from prompts; a label without a prompt in a slice is absent from its prediction.

    It is not a `Segmenter`, whose `predict` takes no prompts.
    """

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone) -> None:
        super().__init__()
        self.labels = labels
        self.slicer = slicer
        self.backbone = backbone

    @abstractmethod
    def prompted_logits(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits of each label for slices with values in [0, 1]; those of labels without a prompt are not used."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """The tensors that were learned in addition to the backbone, by name."""

    @property
    def encoder(self) -> Backbone | None:
        """The backbone whose embeddings `decode` takes; None if the segmenter needs the slices themselves."""
        return None

    def decode(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits at slice size for n slices encoded by `encoder`, for the k labels of the prompts.

        Raises SettingsError if `encoder` is None.
        """
        raise SettingsError(f"{type(self).__name__} needs the slices themselves, not their embeddings")

    def forward(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits of each label for slices with values in [0, 1]; UNPROMPTED for labels without a prompt.

        Raises SettingsError if the prompts are not for n slices and all labels.
        """
        prompted = prompts.is_prompted()
        if prompted.shape != (len(slices), len(self.labels)):
            raise SettingsError(
                f"prompts for (slices, labels) = {tuple(prompted.shape)}, but there are "
                f"{(len(slices), len(self.labels))}; give one row per slice and one prompt per label"
            )
        absent = ~prompted[..., None, None].to(slices.device)
        return self.prompted_logits(slices, prompts.to(slices.device)).masked_fill(absent, UNPROMPTED)

    @torch.inference_mode()
    def predict(self, volume: Volume, prompts: Prompts) -> LabelMap:
        """The label map of a volume, on the grid of the volume; `prompts` has one row for each slice of `slicer`."""
        self.eval()
        return self.segment(self.slicer.view(volume), prompts)

    def segment(self, stack: SliceView, prompts: Prompts) -> LabelMap:
        """The label map of a stack of slices; slices without a prompt are not encoded."""
        prompted = prompts.is_prompted()
        if len(prompted) != len(stack):
            raise SettingsError(
                f"prompts for {len(prompted)} slices, but there are {len(stack)}; give one row per slice"
            )
        return assemble_label_map(stack, self.labels, classes_of(self.logits_of(stack, prompts)))

    def logits_of(self, stack: SliceView, prompts: Prompts) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        """Numbers of the slices that have a prompt, and their logits."""
        chosen = torch.nonzero(prompts.is_prompted().any(dim=1))[:, 0].tolist()
        count = at_once(len(self.labels), stack.size)
        for start in range(0, len(chosen), count):
            numbers = chosen[start : start + count]
            slices = stack.take(numbers).to(self.backbone.device)
            logits = self(slices, prompts.rows(torch.tensor(numbers)))
            yield numbers, without_constant(logits, slices)


class Method(ABC):
    """A way to learn from a support set: a frozen dataclass of settings, without any learned weights.

    The first paragraph below each setting is its entry in the settings reference.
    """

    slicer: Slicer
    """Slice plane and intensity window, used for fitting and predicting."""
    when: ClassVar[str]
    """The situation in which to choose this method, in one phrase."""
    minutes: ClassVar[str]
    """Measured time to fit four or five labelled cases with handful-tiny on two CPU cores."""
    whole_slices: ClassVar[bool] = False
    """Whether the method is never cropped by default, because users prompt whole slices."""

    needs_whole_masks: ClassVar[bool] = False
    """Whether it copies or prompts with masks, so that scribbles are of no use to it."""

    @abstractmethod
    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> Segmenter:  # noqa: B008
        """A segmenter for the labels of the support set. The backbone and the support set are not changed."""

    def needs_backbone(self, learned: Mapping[str, Tensor]) -> bool:
        """Whether predictions use the backbone; `learned` is that of the segmenter."""
        return True

    @abstractmethod
    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> Segmenter:
        """The segmenter that `fit` returned, from its `learned` tensors."""

    def resolved(self: _Method, backbone: Backbone) -> _Method:
        """The same method with each setting of None that has a default for this backbone set to it.

        `fit` and `restore` call it; so does whoever wants to know the values.
        """
        return self

    @property
    def uses_all_sequences(self) -> bool:
        """Whether all sequences of a scan are used where none are chosen; else the first three."""
        return False

    def resolved_slicer(self, support: SupportSet) -> Slicer:
        """The slicer for a support set: each "auto" made concrete, and the sequences that are used named."""
        return support.resolve(self.slicer.with_all_sequences() if self.uses_all_sequences else self.slicer)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        """What a fit on this support set does, for an estimate of its time; several entries for several fits.

        By default, each labelled slice is encoded once.
        """
        return (Work.of(self.resolved(backbone), support, encoded=labelled_slices(self, support)),)

    def with_slicer(self: _Method, slicer: Slicer) -> _Method:
        """The same method with another slicer."""
        return dataclasses.replace(self, slicer=slicer)  # type: ignore[type-var]

    def seeded(self: _Method, further: int) -> _Method:
        """The same method with `further` added to its random seed. Raises SettingsError if it has no seed."""
        settings: Any = self
        if hasattr(settings, "seed"):
            changes: dict[str, Any] = {"seed": settings.seed + further}
        else:
            trainings = {key: value for key, value in vars(settings).items() if isinstance(value, TrainConfig)}
            changes = {
                key: dataclasses.replace(training, seed=training.seed + further) for key, training in trainings.items()
            }
        if not changes:
            raise SettingsError(
                f"seeds is for methods that train, but {type(self).__name__} does not depend on a seed; leave it out"
            )
        return dataclasses.replace(settings, **changes)  # type: ignore[no-any-return]

    @property
    def keeps_pictures(self) -> bool:
        """Whether its segmenters hold pictures or masks of labelled slices, or may do so."""
        return False

    @property
    def uses_unlabelled(self) -> bool:
        """Whether a fit learns from the unlabelled scans of a support too."""
        return False

    @property
    def uses_uncertain_labels(self) -> bool:
        """Whether a fit learns from uncertain labels of the unlabelled scans, such as masks made from boxes."""
        return False

    @property
    def trains(self) -> bool:
        """Whether a fit learns weights, from random numbers of its seed."""
        try:
            self.seeded(0)
        except SettingsError:
            return False
        return True


@dataclass(frozen=True)
class Work:
    """The work of one fit of a method that does not consist of others."""

    method: Method
    """With all settings that the support set or the backbone decides."""
    size: tuple[int, int]
    """Rows and columns of the largest slices."""
    labels: int
    """Number of labels."""
    encoded: int = 0
    """Slices that the frozen encoder encodes, each augmented view counted."""
    steps: int = 0
    """Training steps."""
    segmented: int = 0
    """Slices that are segmented during the fit."""
    retrieved: int = 1
    """Labelled slices that are used for each predicted slice."""
    neighbours: int = 0
    """Predicted slices that are used for each predicted slice."""
    sequences: tuple[str, ...] = ()
    """Names of the sequences of the scans; empty for grey and colour."""

    @classmethod
    def of(cls, method: Method, support: SupportSet, *, encoded: int = 0, steps: int = 0) -> Work:
        """The work of `method` on the slices of a support set."""
        slicer = method.resolved_slicer(support)
        sizes = [slicer.grid(facts.geometry).size for facts in support.facts]
        largest = max(size[0] for size in sizes), max(size[1] for size in sizes)
        return cls(method, largest, len(support.labels), encoded, steps, sequences=support.sequences)


def at_once(labels: int, size: tuple[int, int] = (512, 512)) -> int:
    """The number of slices whose maps of all labels are in memory together.

    It is CHUNK, or fewer for many labels or for slices of more than 512 x 512 pixels; `size` is their rows and columns.
    """
    return max(1, min(CHUNK, MAPS // labels, PIXELS // (size[0] * size[1])))


def labelled_slices(method: Method, support: SupportSet) -> int:
    """The number of labelled slices, as the method cuts them."""
    slicer = method.resolved_slicer(support)
    return sum(facts.labelled_slices(slicer) for facts in support.facts)


def assemble_label_map(stack: SliceView, labels: Labels, classes: Iterable[tuple[Sequence[int], Tensor]]) -> LabelMap:
    """Assemble class numbers per slice into a label map.

    `classes` yields slice numbers and their class numbers (n, h, w), in any order of slices: 0 for the background, i +
    1 for the label with index i.
    """
    geometry = stack.volume.geometry
    axis = stack.grid.axis
    shape = (geometry.shape[axis], *(length for place, length in enumerate(geometry.shape) if place != axis))
    # slice after slice in memory, so that each slice is written in one place
    out = np.moveaxis(zeros(shape, np.int16 if max(labels.values) < 2**15 else np.int32), 0, axis)
    target = stack.of(out)
    values = np.array([0, *labels.values], dtype=out.dtype)
    for numbers, class_numbers in classes:
        target[list(numbers)] = values[class_numbers.cpu().numpy()]
    return LabelMap(out, geometry, labels)


def has_signal(slices: Float[Tensor, "n c h w"]) -> Bool[Tensor, " n"]:
    """False for constant slices, which contain nothing to segment."""
    return slices.amax(dim=(1, 2, 3)) > slices.amin(dim=(1, 2, 3))


def without_constant(logits: Float[Tensor, "n k h w"], slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
    """The logits, with no label on constant slices."""
    if bool(has_signal(slices).all()):
        return logits  # without a copy
    return logits.masked_fill(~has_signal(slices)[:, None, None, None], UNPROMPTED)


def classes_of(
    logits: Iterable[tuple[Sequence[int], Float[Tensor, "n k h w"]]],
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Numbers of slices and their class numbers, for `assemble_label_map`."""
    return ((numbers, to_classes(one)) for numbers, one in logits)


def to_classes(logits: Float[Tensor, "n k h w"]) -> Tensor:
    """Class numbers (n, h, w): 0 if no label has a logit above 0, else 1 + the index of the largest logit."""
    best, index = logits.max(dim=1)
    return torch.where(best > 0, index + 1, 0)


def mean_of_probabilities(predictions: Sequence[Float[Tensor, "n k *s"]]) -> Float[Tensor, "n k *s"]:
    """Logits of the mean of several probabilities, each of one softmax with a background of logit 0."""
    shares = torch.stack([F.pad(logits.movedim(1, -1), (1, 0)).softmax(dim=-1) for logits in predictions]).mean(dim=0)
    logs = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
    return (logs[..., 1:] - logs[..., :1]).movedim(-1, 1)


def below(prefix: str, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix/`, with this prefix removed."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in learned.items() if name.startswith(f"{prefix}/")}


def require_same_labels(support: SupportSet, labels: Labels) -> None:
    """Raise LabelError unless the support set has exactly these labels."""
    if support.labels != labels:
        raise LabelError(
            f"the new slices have the labels {support.labels.as_dict()}, but the segmenter has {labels.as_dict()}; "
            "use the same labels"
        )


def _margins(segmenter: Segmenter, stack: SliceView, classes: NDArray[np.integer]) -> dict[int, float]:
    """Mean over a label's voxels of its probability minus that of the next best class, at least 0."""
    values = segmenter.labels.values
    total, count = np.zeros(len(values)), np.zeros(len(values))
    labelled = np.flatnonzero(np.isin(classes, values).any(axis=(1, 2))).tolist()
    for numbers, logits in segmenter.logits_with_context(stack, labelled):
        chosen = classes[list(numbers)]
        likely = F.pad(logits.float().movedim(1, -1), (1, 0)).softmax(dim=-1).movedim(-1, 1)
        (best, second), (winner, _) = (part.unbind(dim=1) for part in likely.topk(2, dim=1))
        for index in np.flatnonzero([(chosen == value).any() for value in values]).tolist():
            inside = torch.from_numpy(np.ascontiguousarray(chosen == values[index])).to(likely.device)
            others = torch.where(winner == index + 1, second, best)
            margin = (likely[:, index + 1] - others).clamp_min(0)
            total[index] += float(margin[inside].cpu().numpy().sum(dtype=np.float64))
            count[index] += int(inside.sum())
    return {value: float(total[i] / count[i]) for i, value in enumerate(values) if count[i]}
