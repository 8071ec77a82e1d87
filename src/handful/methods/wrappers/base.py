"""Base classes of methods that consist of other methods, and of their segmenters."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.jobs.progress import Run
from handful.methods.base import Held, Method, PromptableSegmenter, Segmenter, Work, below
from handful.methods.explained import Explained, SliceConfidence, SupportPicture

_Wrapper = TypeVar("_Wrapper", bound="MethodWrapper")


class Wrapper(Method):
    """A method that consists of other methods, its members, each with a name."""

    def fit_members(
        self, members: Mapping[str, Method], support: SupportSet, backbone: Backbone, run: Run
    ) -> dict[str, Segmenter]:
        """Fit all members on the support set, one after the other; its files are read once for all of them."""
        with support.held() as held:
            return {name: method.fit(held, backbone, run.part(name)) for name, method in members.items()}

    def restore_members(
        self,
        members: Mapping[str, Method],
        labels: Labels,
        slicer: Slicer,
        backbone: Backbone,
        learned: Mapping[str, Tensor],
    ) -> dict[str, Segmenter]:
        """The segmenters of the members, from the result of `WrapperSegmenter.learned`."""
        return {
            name: member.restore(labels, slicer, backbone, below(name, learned)) for name, member in members.items()
        }


@dataclass(frozen=True)
class MethodWrapper(Wrapper):
    """A wrapper of any one method, enabled by a setting that all methods have.

    The first paragraph of a subclass is the entry of that setting in the settings reference.
    """

    key: ClassVar[str]
    """Name of the setting."""
    kind: ClassVar[Any]
    """Type of its value."""
    example: ClassVar[str]
    """Example of a value, for error messages."""
    default: ClassVar[Any] = None
    """The value if the setting is left out; None leaves the method unchanged."""

    method: Method

    @classmethod
    def default_for(cls, kind: type[Method]) -> Any:
        """The value for a class of methods if the setting is left out."""
        return cls.default

    @property
    def slicer(self) -> Slicer:  # type: ignore[override]
        return self.method.slicer

    def with_slicer(self: _Wrapper, slicer: Slicer) -> _Wrapper:
        return dataclasses.replace(self, method=self.method.with_slicer(slicer))

    def seeded(self: _Wrapper, further: int) -> _Wrapper:
        return dataclasses.replace(self, method=self.method.seeded(further))

    @property
    def trains(self) -> bool:
        return self.method.trains

    def resolved(self: _Wrapper, backbone: Backbone) -> _Wrapper:
        return dataclasses.replace(self, method=self.method.resolved(backbone))

    @property
    def first_member(self) -> str:
        """Name of the first segmenter among what is saved."""
        return "inner"

    def needs_backbone(self, learned: Mapping[str, Tensor]) -> bool:
        return self.method.needs_backbone(below(self.first_member, learned))

    @property
    def keeps_pictures(self) -> bool:
        return self.method.keeps_pictures

    @property
    def uses_unlabelled(self) -> bool:
        return self.method.uses_unlabelled

    @property
    def uses_uncertain_labels(self) -> bool:
        return self.method.uses_uncertain_labels

    @property
    def uses_all_sequences(self) -> bool:
        return self.method.uses_all_sequences

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        return self.method.work(support, backbone)

    @property
    @abstractmethod
    def value(self) -> Any:
        """The value of the setting as a JSON value."""


class WrapperSegmenter(Segmenter):
    """A segmenter that consists of others with the same labels; slicer and backbone are those of the first."""

    def __init__(self, fitted: Mapping[str, Segmenter]) -> None:
        first = next(iter(fitted.values()))
        super().__init__(first.labels, first.slicer, first.backbone)
        self.fitted = nn.ModuleDict(dict(fitted))

    @property
    def members(self) -> dict[str, Segmenter]:
        """The segmenters by name, in their order."""
        return dict(self.fitted.items())  # type: ignore[arg-type]

    def learned(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value for name, member in self.members.items() for key, value in member.learned().items()
        }

    @property
    def decisions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line for member in self.members.values() for line in member.decisions))

    @property
    def reliability(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for member in self.members.values():
            found |= {case: min(value, found.get(case, value)) for case, value in member.reliability.items()}
        return found

    @property
    def holds(self) -> frozenset[Held]:
        return frozenset().union(*(member.holds for member in self.members.values()))


class DelegatingSegmenter(WrapperSegmenter):
    """A segmenter around one other, with all that the other is capable of."""

    @property
    def inner(self) -> Segmenter:
        """The other segmenter."""
        return next(iter(self.members.values()))

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        logits: Tensor = self.inner(slices)
        return logits

    def segment(self, stack: SliceView) -> LabelMap:
        return self.inner.segment(stack)

    def add_probabilities(
        self, volume: Volume, into: Float[np.ndarray[Any, Any], "k i j l"], share: float = 1.0
    ) -> None:
        self.inner.add_probabilities(volume, into, share)

    def predict_explained(self, volume: Volume) -> Explained:
        return self.inner.predict_explained(volume)

    def support_picture(self, case: str, number: int) -> SupportPicture:
        return self.inner.support_picture(case, number)

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        return self.inner.confidence(volume, prediction, reasons)

    def promptable(self) -> PromptableSegmenter | None:
        return self.inner.promptable()
