"""Several segmenters of different tasks as one: a router picks one of them, the expert, for each scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.data.made_for import MadeFor
from handful.data.slicing import SliceView
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError, UnsupportedInput
from handful.jobs.scratch import zeros, zeros_like
from handful.methods.base import UNPROMPTED, Held, PromptableSegmenter, Segmenter
from handful.methods.explained import Explained, Route, SliceConfidence, SupportPicture
from handful.methods.router import Router, features_of_slices
from handful.methods.wrappers.base import DelegatingSegmenter


class RelabelledSegmenter(DelegatingSegmenter):
    """A segmenter whose labels have other values; everything else is unchanged."""

    def __init__(self, inner: Segmenter, values: Mapping[int, int]) -> None:
        """`values`: {value of the segmenter: value in its place}, with a value of its own for every label."""
        super().__init__({"inner": inner})
        self.values = dict(values)
        names = inner.labels.as_dict()
        self.labels = Labels.of({new: names[old] for old, new in self.values.items()})
        own = {new: old for old, new in self.values.items()}
        self.order = [inner.labels.values.index(own[new]) for new in self.labels.values]
        """For each label, its index among those of the inner segmenter."""

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        return super().forward(slices)[:, self.order]

    def segment(self, stack: SliceView) -> LabelMap:
        return self._renamed(self.inner.segment(stack))

    def predict_explained(self, volume: Volume) -> Explained:
        explained = self.inner.predict_explained(volume)
        return explained._replace(label_map=self._renamed(explained.label_map))

    def add_probabilities(
        self, volume: Volume, into: Float[np.ndarray[Any, Any], "k i j l"], share: float = 1.0
    ) -> None:
        found = zeros_like(into, into.dtype)
        self.inner.add_probabilities(volume, found, share)
        for part, index in zip(into, self.order, strict=True):
            part += found[index]

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        own = {new: old for old, new in self.values.items()}
        before = LabelMap(_replaced(prediction.array, own), prediction.geometry, self.inner.labels)
        found = self.inner.confidence(volume, before, reasons)
        return {new: found[old] for new, old in sorted(own.items()) if old in found}

    def support_picture(self, case: str, number: int) -> SupportPicture:
        picture = self.inner.support_picture(case, number)
        return dataclasses.replace(picture, labels=_replaced(picture.labels, self.values))

    def promptable(self) -> PromptableSegmenter | None:
        """None: prompts are for the expert's own model."""
        return None

    def _renamed(self, label_map: LabelMap) -> LabelMap:
        return LabelMap(_replaced(label_map.array, self.values), label_map.geometry, self.labels)


class ExpertsSegmenter(Segmenter):
    """Experts by name, whose labels have the same values for the same names, and the router that picks one of them."""

    def __init__(
        self, experts: Mapping[str, Segmenter], kinds: Mapping[str, MadeFor | None], labels: Labels, router: Router
    ) -> None:
        """`kinds`: the kind of scans of each expert. `labels`: those of all experts together."""
        first = next(iter(experts.values()))
        super().__init__(labels, first.slicer, first.backbone)
        self.names, self.fitted = tuple(experts), nn.ModuleList(experts.values())
        self.kinds, self.router = dict(kinds), router

    @property
    def experts(self) -> dict[str, Segmenter]:
        return dict(zip(self.names, self.fitted, strict=True))  # type: ignore[arg-type]

    def route(self, volume: Volume) -> Route:
        scores = self.router.scores_of(volume, self.backbone)
        ranked = sorted(scores, key=lambda name: (-scores[name], name))
        refused: dict[str, str] = {}
        for name in ranked:
            if (reason := _refusal(self.kinds[name], volume)) is None:
                return Route(name, _margin(name, scores), scores, _passed_over(name, refused))
            refused[name] = reason
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UnsupportedInput(f"no expert segments this scan ({reasons})")

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of each slice by the expert that the router picks for this slice alone."""
        picked = self.router.scores(features_of_slices(slices, self.backbone)).argmax(dim=1)
        shape = (len(slices), len(self.labels), *slices.shape[-2:])
        logits = torch.full(shape, UNPROMPTED, device=slices.device)
        for number, name in enumerate(self.router.names):
            rows = torch.nonzero(picked == number)[:, 0].to(slices.device)
            if len(rows):
                expert = self.experts[name]
                columns = [self.labels.values.index(value) for value in expert.labels.values]
                logits[rows[:, None], torch.tensor(columns, device=rows.device)] = expert(slices[rows]).to(logits)
        return logits

    def segment(self, stack: SliceView) -> LabelMap:
        """The label map of the whole volume of the stack, cut as its expert cuts it."""
        return self.predict_explained(stack.volume).label_map

    def predict_explained(self, volume: Volume) -> Explained:
        explained = self._expert_for(volume).predict_explained(volume)
        label_map = explained.label_map
        return explained._replace(label_map=LabelMap(label_map.array, label_map.geometry, self.labels))

    def support_picture(self, case: str, number: int) -> SupportPicture:
        raise SettingsError("several experts may have labelled cases of the same name; take `experts[name]`")

    def add_probabilities(
        self, volume: Volume, into: Float[np.ndarray[Any, Any], "k i j l"], share: float = 1.0
    ) -> None:
        """The probabilities of the expert's labels; those of the other labels are 0."""
        expert = self._expert_for(volume)
        places = [self.labels.values.index(value) for value in expert.labels.values]
        found = zeros((len(places), *into.shape[1:]), into.dtype)
        expert.add_probabilities(volume, found, share)
        into[places] += found

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        expert = self._expert_for(volume)
        known = np.where(np.isin(prediction.array, expert.labels.values), prediction.array, 0)
        return expert.confidence(volume, LabelMap(known, prediction.geometry, expert.labels), reasons)

    def learned(self) -> dict[str, Tensor]:
        """The sums of the router; each expert has a model folder of its own."""
        return self.router.pack()

    @property
    def holds(self) -> frozenset[Held]:
        own: frozenset[Held] = frozenset({"sums"})
        return own.union(*(expert.holds for expert in self.experts.values()))

    def _expert_for(self, volume: Volume) -> Segmenter:
        return self.experts[self.route(volume).expert]


def _refusal(kind: MadeFor | None, volume: Volume) -> str | None:
    """Why scans of this kind are not segmented; None if they are."""
    try:
        if kind is not None:
            kind.require_usable(volume)
    except UnsupportedInput as error:
        return str(error)
    return None


def _margin(name: str, scores: Mapping[str, float]) -> float | None:
    others = [score for other, score in scores.items() if other != name]
    return scores[name] - max(others) if others else None


def _passed_over(name: str, refused: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"the router preferred the expert {other!r}, which cannot segment this scan ({reason}); {name!r} segmented it"
        for other, reason in refused.items()
    )


def _replaced(array: NDArray[Any], values: Mapping[int, int]) -> NDArray[Any]:
    """The array (i, j, k) with each value that has another one in its place; all others are kept."""
    kind = np.promote_types(array.dtype, np.int16 if max([0, *values.values()]) < 2**15 else np.int32)
    found = zeros_like(array, kind)
    for before, after in zip(np.moveaxis(array, -1, 0), np.moveaxis(found, -1, 0), strict=True):
        after[...] = before
        for old, new in values.items():
            after[before == old] = new
    return found
