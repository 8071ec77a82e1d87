"""The model of a session, prompted for one label on one slice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.volume import Labels
from handful.methods.base import PromptableSegmenter
from handful.prompts.prompts import Prompts
from handful.session.embeddings import SliceEmbeddings

NOT_THERE = -20.0
"""Logit of a mask prompt for an absent label."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A promptable segmenter, prompted for one label on one slice; it uses stored embeddings if it can."""

    promptable: PromptableSegmenter

    @property
    def labels(self) -> Labels:
        return self.promptable.labels

    @property
    def slicer(self) -> Slicer:
        return self.promptable.slicer

    @property
    def backbone(self) -> Backbone:
        """The backbone that encodes the slices of the session."""
        return self.promptable.encoder or self.promptable.backbone

    @torch.no_grad()
    def logits(self, embeddings: SliceEmbeddings, number: int, label: int, prompts: Prompts) -> Float[Tensor, "h w"]:
        """Logits of the label with index `label` on slice `number`; `prompts` are for one slice and one label."""
        if self.promptable.encoder is not None:
            return self.promptable.decode(embeddings.image(number), prompts.to(self.backbone.device))[0, 0]
        among = prompts.among(label, len(self.labels), absent=NOT_THERE)
        logits: Tensor = self.promptable(embeddings.pixels(number), among)
        return logits[0, label]
