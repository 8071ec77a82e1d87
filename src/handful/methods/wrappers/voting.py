"""Segmenters that vote: each gives a whole scan its labels, and a voxel gets the label that most of them agree on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handful.data.slicing import SliceView
from handful.data.volume import LabelMap, Volume
from handful.methods.base import Segmenter


class VotingSegmenter(Segmenter):
    """Several segmenters of the same labels, made one."""

    @property
    @abstractmethod
    def voters(self) -> Sequence[Segmenter]:
        """The one that decides where votes are equal comes first."""

    def votes(self, volume: Volume) -> Iterator[LabelMap]:
        """What each makes of a scan, one after the other."""
        return (one.predict(volume) for one in self.voters)

    def segment(self, stack: SliceView) -> LabelMap:
        return majority(list(self.votes(stack.volume)))


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
