"""Segmenters that vote: each gives a whole scan its labels, and a voxel gets the label that most of them agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handful.data.slicing import SliceView
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.evaluation.metrics import overlap
from handful.methods.base import Segmenter
from handful.methods.explained import SliceConfidence
from handful.methods.wrappers.base import WrapperSegmenter


class VotingSegmenter(WrapperSegmenter):
    """Several segmenters of the same labels, made one."""

    @property
    def voters(self) -> Sequence[Segmenter]:
        """The one that decides where votes are equal comes first."""
        return list(self.members.values())

    def votes(self, volume: Volume) -> Iterator[LabelMap]:
        """What each makes of a scan, one after the other."""
        return (one.predict(volume) for one in self.voters)

    def segment(self, stack: SliceView) -> LabelMap:
        return majority(list(self.votes(stack.volume)))

    @torch.inference_mode()
    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """Mean Dice of each voter's label map with the prediction."""
        self.eval()
        held = [value for value in self.labels.values if (prediction.array == value).any()]
        masks = [prediction.array == value for value in held]
        valid_mask = prediction.array != IGNORE
        dice = [
            [overlap(vote.array == value, mask, valid_mask).dice for value, mask in zip(held, masks, strict=True)]
            for vote in self.votes(volume)
        ]
        return dict(zip(held, np.mean(dice, axis=0).tolist(), strict=True))


def majority(maps: Sequence[LabelMap]) -> LabelMap:
    """The label that most maps give a voxel, background counted as one; of equals, the one that is named first.

    The maps lie on one grid. With two of them the first decides everywhere.
    """
    votes = [one.array for one in maps]
    winner, most = votes[0].copy(), np.ones(votes[0].shape, dtype=np.uint8)
    for place, vote in enumerate(votes):
        agreed = np.zeros(vote.shape, dtype=np.uint8)
        for other in votes[place:]:
            agreed += vote == other
        better = agreed > most
        winner[better], most[better] = vote[better], agreed[better]
    return LabelMap(winner, maps[0].geometry, maps[0].labels)


def mean_answer(voters: Sequence[Segmenter], slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
    """Logits of the mean of what several segmenters hold for likely, each by itself."""
    likely = torch.stack([_with_background(one(slices)).softmax(dim=1) for one in voters]).mean(dim=0)
    logs = likely.clamp_min(torch.finfo(likely.dtype).tiny).log()
    return logs[:, 1:] - logs[:, :1]


def _with_background(logits: Float[Tensor, "n k h w"]) -> Float[Tensor, "n l h w"]:
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
