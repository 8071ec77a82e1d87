"""Text of the page is readable in light and dark: contrast as WCAG 2 defines it, from the style sheet's colours."""

import re

import pytest

from handful.service.app import STATIC

STYLE = (STATIC / "style.css").read_text("utf-8")
PAIRS = [
    *(("--ink", ground) for ground in ("--back", "--card")),
    *(("--soft", ground) for ground in ("--back", "--card")),
    *(("--bad", ground) for ground in ("--back", "--card")),
    *(("--good", ground) for ground in ("--back", "--card")),
    *(("--warn", ground) for ground in ("--back", "--card")),
    *(("--accent", ground) for ground in ("--back", "--card")),
    ("--on-accent", "--accent"),
    ("--back", "--ink"),
    ("--on-bad", "--bad"),
    ("#fff", "#0f6b6e"),
    ("#c3ced4", "#000"),
]
"""Text and what it stands on."""


def colours(name: str) -> tuple[str, str]:
    """The colour in light and in dark."""
    if name.startswith("#"):
        return name, name
    found = re.search(rf"{name}: light-dark\((#\w+), (#\w+)\);", STYLE)
    assert found, name
    return found[1], found[2]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * one for one in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_is_readable(text: str, ground: str):
    for mode, one, other in zip(("light", "dark"), colours(text), colours(ground), strict=True):
        assert contrast(one, other) >= 4.5, f"{text} on {ground} in {mode}: {contrast(one, other):.2f}"


def test_edges_of_buttons_and_fields_are_visible():
    for ground in ("--back", "--card"):
        for one, other in zip(colours("--edge"), colours(ground), strict=True):
            assert contrast(one, other) >= 3


def test_every_colour_of_text_is_checked():
    used = set(re.findall(r"(?<![-\w])color: (?:var\()?(--[\w-]+|#\w+)", STYLE))
    assert used <= {text for text, _ in PAIRS}
