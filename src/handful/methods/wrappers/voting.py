"""Majority vote of several segmenters: each segments the whole scan, and each voxel gets the most frequent label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handful.data.slicing import SliceView
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.evaluation.metrics import overlap
from handful.methods.base import Segmenter, mean_of_probabilities
from handful.methods.explained import SliceConfidence
from handful.methods.wrappers.base import WrapperSegmenter


class VotingSegmenter(WrapperSegmenter):
    """Several segmenters with the same labels that vote."""

    @property
    def voters(self) -> Sequence[Segmenter]:
        """The segmenters; the first decides where votes are equal."""
        return list(self.members.values())

    def votes(self, volume: Volume) -> Iterator[LabelMap]:
        """The label map of each segmenter, computed one after the other."""
        return (voter.predict(volume) for voter in self.voters)

    def segment(self, stack: SliceView) -> LabelMap:
        return majority(list(self.votes(stack.volume)))

    def add_probabilities(
        self, volume: Volume, into: Float[np.ndarray[Any, Any], "k i j l"], share: float = 1.0
    ) -> None:
        """The mean of the voters' probabilities."""
        for voter in self.voters:
            voter.add_probabilities(volume, into, share / len(self.voters))

    @torch.inference_mode()
    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """{label value: mean Dice between the voters' label maps and the prediction}."""
        self.eval()
        present = [value for value in self.labels.values if (prediction.array == value).any()]
        masks = [prediction.array == value for value in present]
        valid_mask = prediction.array != IGNORE
        dice = [
            [overlap(vote.array == value, mask, valid_mask).dice for value, mask in zip(present, masks, strict=True)]
            for vote in self.votes(volume)
        ]
        return dict(zip(present, np.mean(dice, axis=0).tolist(), strict=True))


def majority(maps: Sequence[LabelMap]) -> LabelMap:
    """The most frequent label of each voxel, counting background as a label; if votes are equal, that of the first map.

    The maps must have the same grid. With two maps, the first decides everywhere.
    """
    votes = [label_map.array for label_map in maps]
    winner, most = votes[0].copy(), np.ones(votes[0].shape, dtype=np.uint8)
    for place, vote in enumerate(votes):
        agreed = np.zeros(vote.shape, dtype=np.uint8)
        for other in votes[place:]:
            agreed += vote == other
        better = agreed > most
        winner[better], most[better] = vote[better], agreed[better]
    return LabelMap(winner, maps[0].geometry, maps[0].labels)


def mean_logits(voters: Sequence[Segmenter], slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
    """The mean of the voters' softmax probabilities, as logits relative to the background."""
    return mean_of_probabilities([voter(slices) for voter in voters])
