"""Where scans and models meet: what a method is, and the segmenter that it leaves behind when it has been fitted.

The rest of the package knows segmenters and methods by what these classes offer. Each capability has a default, so a
new method states only what it can do, and nobody has to ask for its class.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import LabelError, SettingsError
from handful.jobs.progress import Run
from handful.methods.explained import Explained, SliceConfidence, SupportPicture
from handful.prompts.prompts import Prompts
from handful.tuning.loop import TrainConfig

_Method = TypeVar("_Method", bound="Method")
CHUNK = 8
"""Slices that go through a model at once: bounds memory, and more does not run faster on a CPU."""
NOT_ASKED = -1024.0
"""Logit of a label that has no prompt in a slice."""


class Segmenter(nn.Module, ABC):
    """What a method learned: ready to segment volumes it has never seen."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone) -> None:
        super().__init__()
        self.labels = labels
        self.slicer = slicer
        self.backbone = backbone

    @abstractmethod
    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of each label for slices in [0, 1]; background is logit 0."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """All that `Method.restore` needs beside the backbone, by name."""

    @torch.inference_mode()
    def predict(self, volume: Volume) -> LabelMap:
        """The label map of a volume, on its very grid; slices stream through, so their number costs no memory."""
        self.eval()
        return self.segment(self.slicer.view(volume))

    def segment(self, stack: SliceView) -> LabelMap:
        """The label map of a stack of slices; a method whose slices depend on each other has its own order."""
        return assemble_label_map(stack, self.labels, self._slice_by_slice(stack))

    def _slice_by_slice(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Tensor]]:
        for start in range(0, len(stack), CHUNK):
            numbers = range(len(stack))[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            yield numbers, to_classes(self.forward(slices)) * has_signal(slices)[:, None, None]

    # Capabilities: what some segmenters can do and others cannot.

    @property
    def decisions(self) -> tuple[str, ...]:
        """What the fit decided by itself, one sentence each; nothing for a segmenter that was loaded."""
        return ()

    def predict_explained(self, volume: Volume) -> Explained:
        """What `predict` returns, with the reasons for it where the segmenter has any."""
        return Explained(self.predict(volume))

    def support_picture(self, case: str, number: int) -> SupportPicture:
        """A labelled slice that `predict_explained` named as a reason; SettingsError where none are kept."""
        raise SettingsError(f"{type(self).__name__} keeps no pictures of its labelled slices")

    @torch.inference_mode()
    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """How sure the segmenter is of each label of its own prediction, in [0, 1] by label value.

        Here the margin of probability over the next best class, averaged over the label's voxels. `reasons` are those
        of `predict_explained`; without them the volume is segmented again where they are needed. Empty for a segmenter
        that cannot tell: one whose label map does not come from `forward` slice by slice returns {}.
        """
        self.eval()
        stack = self.slicer.view(volume)
        return _margins(self, stack, stack.of(prediction.array))

    def promptable(self) -> PromptableSegmenter | None:
        """The same model, to be prompted; None where it takes no prompts."""
        return None

    def extend(self, support: SupportSet) -> Segmenter:
        """A segmenter that has also learned from the labelled slices of `support`, without training.

        The segmenter itself stays as it was; `support` need not hold every label. LabelError where its labels are
        others, SettingsError where the method cannot do this.
        """
        raise SettingsError(
            f"{type(self).__name__} learned by training and cannot be refreshed from corrections; "
            "fit its method again with session.case(name) among the support, or take fate or few-shot-prompts"
        )

    @property
    def holds_pictures(self) -> bool:
        """Whether what was learned holds small pictures of the labelled slices, to be protected like the scans."""
        return False


class PromptableSegmenter(nn.Module, ABC):
    """Segments what prompts ask for; a label without a prompt in a slice is not there.

    It is no `Segmenter`: one that ignored its prompts in silence would lie.
    """

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone) -> None:
        super().__init__()
        self.labels = labels
        self.slicer = slicer
        self.backbone = backbone

    @abstractmethod
    def answer(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits of each label; those of labels without a prompt do not matter."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """All that was learned beside the backbone, by name."""

    @property
    def encoder(self) -> Backbone | None:
        """The backbone whose embeddings `answer_encoded` takes; None for one that must see the slices themselves."""
        return None

    def answer_encoded(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits at slice size for slices encoded by `encoder`, for as many labels as there are prompts.

        SettingsError where `encoder` is None.
        """
        raise SettingsError(f"{type(self).__name__} must see the slices themselves, not their embeddings")

    def forward(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits of each label for slices in [0, 1]; NOT_ASKED where a label has no prompt.

        Raises SettingsError where the prompts are not for these slices and labels.
        """
        wanted = prompts.is_prompted()
        if wanted.shape != (len(slices), len(self.labels)):
            raise SettingsError(
                f"prompts for (slices, labels) = {tuple(wanted.shape)}, but there are "
                f"{(len(slices), len(self.labels))}; give one row a slice and one prompt a label"
            )
        absent = ~wanted[..., None, None].to(slices.device)
        return self.answer(slices, prompts.to(slices.device)).masked_fill(absent, NOT_ASKED)

    @torch.inference_mode()
    def predict(self, volume: Volume, prompts: Prompts) -> LabelMap:
        """The label map of a volume, on its very grid; `prompts` has a row for each of its slices, as `slicer` cuts."""
        self.eval()
        return self.segment(self.slicer.view(volume), prompts)

    def segment(self, stack: SliceView, prompts: Prompts) -> LabelMap:
        """The label map of a stack; slices without a prompt cost nothing."""
        wanted = prompts.is_prompted()
        if len(wanted) != len(stack):
            raise SettingsError(f"prompts for {len(wanted)} slices, but there are {len(stack)}; give a row a slice")
        return assemble_label_map(stack, self.labels, self._answers(stack, prompts, wanted.any(dim=1)))

    def _answers(
        self, stack: SliceView, prompts: Prompts, wanted: Bool[Tensor, " n"]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        chosen = torch.nonzero(wanted)[:, 0].tolist()
        for start in range(0, len(chosen), CHUNK):
            numbers = chosen[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            logits = self(slices, prompts.rows(torch.tensor(numbers)))
            yield numbers, to_classes(logits) * has_signal(slices)[:, None, None]


class Method(ABC):
    """A way to learn from a support set: a frozen dataclass of settings, nothing learned."""

    slicer: Slicer
    """Plane and window, the same when fitting and when predicting."""
    when: ClassVar[str]
    """The situation in which to choose this method, in one phrase."""
    minutes: ClassVar[str]
    """Time to fit four or five labelled cases with handful-tiny on two CPU cores, as measured."""
    whole_slices: ClassVar[bool] = False
    """Whether it is always applied to whole slices, because people see and prompt these."""

    @abstractmethod
    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> Segmenter:  # noqa: B008
        """A segmenter for the support's labels; the backbone and the support stay as they were."""

    @abstractmethod
    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> Segmenter:
        """The segmenter that `fit` returned, from what it learned."""

    def with_slicer(self: _Method, slicer: Slicer) -> _Method:
        """The same method on slices that are cut otherwise."""
        return dataclasses.replace(self, slicer=slicer)  # type: ignore[type-var]

    def seeded(self: _Method, further: int) -> _Method:
        """The same method from a later seed; SettingsError where a fit draws nothing at random."""
        own: Any = self
        if hasattr(own, "seed"):
            changes: dict[str, Any] = {"seed": own.seed + further}
        else:
            trainings = {key: value for key, value in vars(own).items() if isinstance(value, TrainConfig)}
            changes = {key: dataclasses.replace(one, seed=one.seed + further) for key, one in trainings.items()}
        if not changes:
            raise SettingsError(
                f"seeds is for methods that train, and {type(self).__name__} gives the same from any seed; leave it out"
            )
        return dataclasses.replace(own, **changes)  # type: ignore[no-any-return]

    @property
    def trains(self) -> bool:
        """Whether a fit depends on a seed, as a training does."""
        try:
            self.seeded(0)
        except SettingsError:
            return False
        return True


def assemble_label_map(stack: SliceView, labels: Labels, classes: Iterable[tuple[Sequence[int], Tensor]]) -> LabelMap:
    """Assembles per-slice class numbers (n, h, w), in any order of slices, into a label map."""
    geometry = stack.volume.geometry
    out = np.zeros(geometry.shape, dtype=np.int16 if max(labels.values) < 2**15 else np.int32)
    target = stack.of(out)
    values = np.array([0, *labels.values], dtype=out.dtype)
    for numbers, winner in classes:
        target[list(numbers)] = values[winner.cpu().numpy()]
    return LabelMap(out, geometry, labels)


def has_signal(slices: Float[Tensor, "n c h w"]) -> Bool[Tensor, " n"]:
    """False for slices of one value throughout: there is nothing to be found."""
    return slices.amax(dim=(1, 2, 3)) > slices.amin(dim=(1, 2, 3))


def to_classes(logits: Float[Tensor, "n k h w"]) -> Tensor:
    """Class numbers (n, h, w): 0 where no label's logit is above 0, else 1 + the index of the largest."""
    best, index = logits.max(dim=1)
    return torch.where(best > 0, index + 1, 0)


def below(prefix: str, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `prefix/...`, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in learned.items() if name.startswith(f"{prefix}/")}


def require_same_labels(support: SupportSet, labels: Labels) -> None:
    """LabelError unless the support has the labels of the segmenter that is to learn from it."""
    if support.labels != labels:
        raise LabelError(
            f"the new slices are labelled with {support.labels.as_dict()}, "
            f"the segmenter with {labels.as_dict()}; label them alike"
        )


def _margins(segmenter: Segmenter, stack: SliceView, classes: NDArray[np.integer]) -> dict[int, float]:
    """Mean over a label's voxels of its probability less that of the next best class, at least 0."""
    values = segmenter.labels.values
    total, count = np.zeros(len(values)), np.zeros(len(values))
    numbers = np.flatnonzero(np.isin(classes, values).any(axis=(1, 2)))
    for start in range(0, len(numbers), CHUNK):
        chosen = numbers[start : start + CHUNK]
        logits: Tensor = segmenter(stack.take(chosen.tolist()).to(segmenter.backbone.device)).float()
        shares = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).softmax(dim=1)
        for index, value in enumerate(values):
            inside = torch.from_numpy(np.ascontiguousarray(classes[chosen] == value)).to(shares.device)
            others = torch.cat([shares[:, : index + 1], shares[:, index + 2 :]], dim=1).amax(dim=1)
            margin = (shares[:, index + 1] - others).clamp_min(0)
            total[index] += float(margin[inside].double().sum())
            count[index] += int(inside.sum())
    return {value: float(total[i] / count[i]) for i, value in enumerate(values) if count[i]}
