"""The colours of labels, the same on the page, in pictures, in reports, in notebooks and in DICOM segmentations."""

from __future__ import annotations

from collections.abc import Iterator

from handful.data.volume import Labels

COLOURS = (
    "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#6600FF",
    "#77FFFF", "#AA0066", "#8877FF", "#00DD99", "#885522", "#DD11CC", "#FF4477", "#88FF99",
    "#00DDEE", "#995588", "#99BB66", "#FF77CC", "#8811BB", "#CC2244", "#FFAACC", "#4466EE",
)  # fmt: skip
"""Okabe and Ito's seven colours, which colour-blind people can distinguish, then 17 more.

Each of the 17 is as different as possible from those before it, for people with and without colour blindness (in OKLab,
with the simulation of Machado et al., IEEE TVCG 2009). None is grey, black or white, which images are. Blue comes
first, since tissue in colour pictures is red and yellow.
"""


def label_colours(labels: Labels) -> Iterator[tuple[int, str, str]]:
    """Value, name and colour (#RRGGBB) of each label, in the order of the values."""
    for index, (value, name) in enumerate(labels.as_dict().items()):
        yield value, name, colour_of(index)


def colour_of(index: int) -> str:
    """The colour (#RRGGBB) of the label at a place in the list of labels.

    The 25th label has a lighter shade of the first colour, the 49th a darker one, and so on.
    """
    turn, place = divmod(index, len(COLOURS))
    share, towards = turn / (turn + 2), 255 * (turn % 2)
    parts = (int(COLOURS[place][start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (towards - part)):02X}" for part in parts)
