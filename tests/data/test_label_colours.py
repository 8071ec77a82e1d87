"""Colours of labels can be distinguished, with and without colour blindness, and from grey images."""

from itertools import combinations

import numpy as np
import pytest

from handful.data.label_colours import COLOURS, colour_of, label_colours
from handful.data.volume import Labels

TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def oklab(colour: str, blindness: np.ndarray | None = None) -> np.ndarray:
    """Lightness, a and b (Ottosson 2020), as people see it with a colour blindness (Machado et al. 2009)."""
    parts = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(parts > 0.04045, ((parts + 0.055) / 1.055) ** 2.4, parts / 12.92)
    shown = linear if blindness is None else np.clip(blindness @ linear, 0, 1)
    return np.asarray(TO_LAB @ np.cbrt(TO_LMS @ shown))


def nearest(colours: list[str], blindness: np.ndarray | None = None) -> float:
    """The smallest difference of two of the colours; 0.02 is just noticeable."""
    places = [oklab(colour, blindness) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(places, 2))


def test_twenty_four_labels_differ_for_everybody():
    assert nearest(list(COLOURS)) > 0.1
    assert nearest(list(COLOURS), PROTANOPIA) > 0.055
    assert nearest(list(COLOURS), DEUTERANOPIA) > 0.055


def test_colours_are_not_those_of_grey_images():
    for colour in COLOURS:
        lightness, a, b = oklab(colour)
        assert np.hypot(a, b) > 0.08, colour
        assert lightness > 0.45, colour


def test_117_labels_have_117_colours():
    colours = [colour_of(index) for index in range(117)]
    assert len(set(colours)) == 117
    assert nearest(colours) > 0.01


def test_colours_follow_the_order_of_the_labels():
    labels = Labels((1, 7, 300), ("a", "b", "c"))
    assert list(label_colours(labels)) == [(1, "a", COLOURS[0]), (7, "b", COLOURS[1]), (300, "c", COLOURS[2])]


@pytest.mark.parametrize(("index", "expected"), [(0, "#56B4E9"), (24, "#8ECDF0"), (48, "#2B5A74")])
def test_later_turns_are_lighter_and_darker(index: int, expected: str):
    assert colour_of(index) == expected
