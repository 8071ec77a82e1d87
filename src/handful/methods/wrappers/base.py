"""What all methods share that are made of other methods, and the segmenters that are made of other segmenters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, below

_Wrapper = TypeVar("_Wrapper", bound="MethodWrapper")


class Wrapper(Method):
    """A method made of other methods, its members, each under a name."""

    def fit_members(
        self, members: Mapping[str, Method], support: SupportSet, backbone: Backbone, run: Run
    ) -> dict[str, Segmenter]:
        """All members fitted on one support, one after the other; its files are read once for all of them."""
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
        """The members' segmenters, from what `WrapperSegmenter.learned` kept of them."""
        return {name: one.restore(labels, slicer, backbone, below(name, learned)) for name, one in members.items()}


@dataclass(frozen=True)
class MethodWrapper(Wrapper):
    """A wrapper round any one method, which a setting that all methods have asks for."""

    key: ClassVar[str]
    """Name of that setting."""
    kind: ClassVar[Any]
    """Type of its value."""
    example: ClassVar[str]
    """What to give, in words for an error message."""
    default: ClassVar[Any] = None
    """The value where the setting is left out; None where the method is then left as it is."""

    method: Method

    @property
    def slicer(self) -> Slicer:  # type: ignore[override]
        return self.method.slicer

    def with_slicer(self: _Wrapper, slicer: Slicer) -> _Wrapper:
        return dataclasses.replace(self, method=self.method.with_slicer(slicer))

    def seeded(self: _Wrapper, further: int) -> _Wrapper:
        return dataclasses.replace(self, method=self.method.seeded(further))

    @property
    def value(self) -> Any:
        """The value of the setting, as JSON has it."""
        raise NotImplementedError


class WrapperSegmenter(Segmenter):
    """A segmenter made of others of the same labels; the first gives slicer and backbone."""

    def __init__(self, fitted: Mapping[str, Segmenter]) -> None:
        first = next(iter(fitted.values()))
        super().__init__(first.labels, first.slicer, first.backbone)
        self.fitted = nn.ModuleDict(dict(fitted))

    @property
    def members(self) -> dict[str, Segmenter]:
        """The segmenters by name, in the order in which they were given."""
        return dict(self.fitted.items())  # type: ignore[arg-type]

    def learned(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": value for name, one in self.members.items() for key, value in one.learned().items()}

    @property
    def decisions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line for one in self.members.values() for line in one.decisions))

    @property
    def holds_pictures(self) -> bool:
        return any(one.holds_pictures for one in self.members.values())
