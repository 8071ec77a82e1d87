"""Unlabelled pictures that are dark on light where the labelled ones are light on dark, or the other way round.

Stained sections among fluorescence images are an example. A U-Net that was trained on one kind finds nothing in the
other, and its own labels of it are noise. So it is trained on negatives of some slices as well.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Float
from torch import Tensor

from handful.data.support import SupportSet
from handful.methods.self_training.pool import Pool
from handful.methods.stacks import StackedSupport
from handful.methods.unet.choice import are_pictures
from handful.methods.unet.training import Views

GAP = 0.4
"""Difference in median brightness, from 0 to 1, above which two pictures are of different kinds."""
LEAST_SHARE = 0.05
"""Share of the unlabelled pictures from which on the other kind counts."""
NEGATIVES = 0.3
"""Share of the training slices that become negatives if the other kind counts."""


def of_other_polarity(labelled: Float[Tensor, "v c s s"], unlabelled: Float[Tensor, "u d s s"]) -> int:
    """Number of unlabelled pictures whose brightness is across the middle from that of all labelled ones, and far off.

    All values are from 0 to 1; some pictures may be grey and others in colour. 0 if there are too few of these pictures
    to be learned from.
    """
    own, other = _brightness(labelled), _brightness(unlabelled)
    if own.max() < 0.5:
        count = int(((other > 0.5) & (other > own.max() + GAP)).sum())
    elif own.min() > 0.5:
        count = int(((other < 0.5) & (other < own.min() - GAP)).sum())
    else:
        count = 0
    return count if count >= max(2, LEAST_SHARE * len(other)) else 0


def with_negatives(
    views: Views, support: SupportSet, stacked: StackedSupport, pool: Pool
) -> tuple[Views, tuple[str, ...]]:
    """The views of a training, with negatives if unlabelled pictures are of the other kind, and a note if so."""
    count = of_other_polarity(stacked.slices, pool.slices) if are_pictures(support) and len(pool) else 0
    if not count:
        return views, ()
    note = (
        f"{count} of {len(pool)} unlabelled pictures are light where the labelled ones are dark and dark where these "
        "are light, so some training slices are shown as negatives; for better masks, label one of these pictures: "
        "handful suggest lists pictures unlike the labelled ones"
    )
    return dataclasses.replace(views, inverted=NEGATIVES), (note,)


def _brightness(slices: Float[Tensor, "v c s s"]) -> Float[Tensor, " v"]:
    """The median value of each slice, which is that of its background in most pictures."""
    return slices.float().mean(dim=1).flatten(1).median(dim=1).values
