"""Several label maps of one scan, made one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from handful.data.volume import LabelMap


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
