"""Segmenters that vote: each gives a whole scan its labels, and a voxel gets the label that most of them agree on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from handful.data.slicing import SliceView
from handful.data.volume import LabelMap, Volume
from handful.data.vote import majority
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
