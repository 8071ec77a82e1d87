"""Who answers a reader: whatever she opened the session with, asked for one label on one slice in one way."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.methods.base import Segmenter
from handful.methods.interactive.method import InteractivePromptable, InteractiveSegmenter
from handful.methods.promptable import PromptableSegmenter, Prompted
from handful.methods.zero_shot import FrozenPromptable
from handful.prompts.prompts import PADDING, Prompts
from handful.session.embeddings import Sights

NOT_THERE = -20.0
"""Logit by which a mask prompt says that a label is nowhere."""

Source = Backbone | PromptableSegmenter | Segmenter
"""What a session can be opened with."""


@dataclass(frozen=True, eq=False)
class Respondent(ABC):
    """Answers prompts for one label on one slice."""

    labels: Labels
    slicer: Slicer
    backbone: Backbone

    @abstractmethod
    def answer(self, sights: Sights, number: int, label: int, prompts: Prompts) -> Float[Tensor, "h w"]:
        """Logits of the label of this index on slice `number`; `prompts` are for one slice and one label."""


def respondent(source: Source, labels: Labels | None, slicer: Slicer | None) -> Respondent:
    """Who answers for `source`; a segmenter that takes no prompts leaves the answers to its backbone.

    Raises SettingsError where a backbone comes without labels, or a segmenter with others than its own.
    """
    if isinstance(source, Backbone):
        if labels is None:
            raise SettingsError("a backbone knows no labels; say which ones the reader draws: labels=Labels.of({...})")
        return _OfBackbone(labels, slicer or Slicer(), source, multimask=False)
    if slicer is not None or (labels is not None and labels != source.labels):
        raise SettingsError("a segmenter has labels and a slicer of its own; leave labels and slicer out")
    if isinstance(source, Prompted):
        return respondent(source.promptable, labels, slicer)
    own = (source.labels, source.slicer, source.backbone)
    if isinstance(source, InteractivePromptable):
        source = source.segmenter
    if isinstance(source, InteractiveSegmenter):
        return _OfInteractive(source.labels, source.slicer, source.encoder, segmenter=source)
    if isinstance(source, FrozenPromptable) and not source.zoom:
        return _OfBackbone(*own, multimask=source.multimask)
    if isinstance(source, PromptableSegmenter):
        return _OfPromptable(*own, promptable=source)
    return _OfBackbone(*own, multimask=False)


@dataclass(frozen=True, eq=False)
class _OfBackbone(Respondent):
    """A backbone as it is, asked on kept embeddings."""

    multimask: bool

    @torch.no_grad()
    def answer(self, sights: Sights, number: int, label: int, prompts: Prompts) -> Float[Tensor, "h w"]:
        image = sights.image(number)
        prompt = self.backbone.embed(prompts.to(self.backbone.device), image.size)
        said = self.backbone.decode_square(image, prompt, self.multimask)
        return self.backbone.to_slice(said.logits, image.size)[0, 0]


@dataclass(frozen=True, eq=False)
class _OfInteractive(Respondent):
    """A backbone that was tuned to be asked, on kept embeddings."""

    segmenter: InteractiveSegmenter

    def answer(self, sights: Sights, number: int, label: int, prompts: Prompts) -> Float[Tensor, "h w"]:
        image = sights.image(number)
        return self.segmenter.ask(image, prompts.to(self.backbone.device), image.size).logits[0, 0]


@dataclass(frozen=True, eq=False)
class _OfPromptable(Respondent):
    """Any other: it is shown the slice itself, so whether it encodes anew is its own affair."""

    promptable: PromptableSegmenter

    @torch.no_grad()
    def answer(self, sights: Sights, number: int, label: int, prompts: Prompts) -> Float[Tensor, "h w"]:
        logits: Tensor = self.promptable(sights.pixels(number), _among(prompts, label, len(self.labels)))
        return logits[0, label]


def _among(prompts: Prompts, label: int, count: int) -> Prompts:
    """Prompts for one label as prompts for `count` labels, of which the others are not asked for."""

    def spread(part: Tensor | None, silence: float) -> Tensor | None:
        if part is None:
            return None
        full = part.new_full((1, count, *part.shape[2:]), silence)
        full[:, label] = part[:, 0]
        return full

    return dataclasses.replace(
        prompts,
        points=spread(prompts.points, 0),
        point_labels=spread(prompts.point_labels, PADDING),
        boxes=spread(prompts.boxes, 0),
        masks=spread(prompts.masks, NOT_THERE),
    )
