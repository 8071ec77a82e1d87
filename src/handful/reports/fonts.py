"""Fonts for names with letters that matplotlib's own font lacks, such as Chinese ones."""

from __future__ import annotations

from functools import cache

OWN = "DejaVu Sans"
"""The font that comes with matplotlib."""
BOXES = "Last Resort"
"""Start of the name of a font that comes with matplotlib and has a box for each letter."""
ORNATE = ("Serif", "Mono", "Italic", "Oblique")
"""Parts of the names of fonts that are taken only if no other has a letter."""


def families(text: str) -> list[str]:
    """matplotlib's own font, followed by installed ones for the letters that it lacks.

    For a letter that no font has, matplotlib draws a box and warns.
    """
    missing = {ord(letter) for letter in text} - _own_letters()
    found = [OWN]
    for name, path in _installed() if missing else ():
        if missing & _letters(path):
            found.append(name)
            missing -= _letters(path)
        if not missing:
            break
    return found


@cache
def _own_letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont

    return _letters(findfont(OWN)) | {ord("\n")}


def _installed() -> list[tuple[str, str]]:
    """Name and file of all upright fonts of usual weight, plain ones first."""
    from matplotlib.font_manager import fontManager

    fonts = {
        (any(part in entry.name for part in ORNATE), entry.name, entry.fname)
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular") and not entry.name.startswith(BOXES)
    }
    return [(name, path) for _, name, path in sorted(fonts)]


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points of the letters of a font; none for files that cannot be read or scaled."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap() if font.scalable else ())
    except (OSError, RuntimeError):
        return frozenset()
