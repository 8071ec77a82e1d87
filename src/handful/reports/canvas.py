"""The parts of all pictures of slices: panels, outlines, text, title and legend."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handful.data.label_colours import label_colours
from handful.data.volume import Labels
from handful.reports.fonts import families

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

DPI = 150
BACKGROUND = "#101214"
INK = "#E8EAED"
DIM = "#8B9096"
"""Colour of secondary text."""
NOTE = 0.28
"""Height in inches of the note at the lower edge."""
LEGEND_LINE, LEGEND_ENTRY = 0.26, 2.3
"""Inches: height of a line of the legend, and width of an entry with a short name and its Dice."""
LEGEND_KEY, LEGEND_LETTER = 0.55, 0.083
"""Inches: width of the patch of an entry with its gaps, and of a letter."""
LEGEND_NAME = 40
"""Maximum number of letters of a name in the legend."""
PLANE, TITLE_LETTER = 0.9, 0.125
"""Inches: width of the plane in the upper right corner, and of a letter of the title."""
DASHES = (0, (3, 1.6))
"""Line style of reference outlines."""


@dataclass(frozen=True, eq=False)
class Panel:
    """A slice and the label map that is outlined in it."""

    image: NDArray[np.float32]
    """(h, w, c), values in [0, 1]."""
    label_values: NDArray[Any] | None
    """(h, w); None for no outlines."""
    pixel_aspect: float
    """Height of a pixel divided by its width, in mm."""


class Canvas:
    """A dark figure. All positions and lengths are in inches from the upper left corner."""

    def __init__(self, width: float, height: float, *, dpi: int = DPI, halo: bool = False) -> None:
        """`halo` gives text a rim in the colour of the background, so that it is readable on images."""
        from matplotlib.figure import Figure

        self.width, self.height, self.halo = width, height, halo
        self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor=BACKGROUND)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Empty axes at this position."""
        bottom = (self.height - top - height) / self.height
        return self.figure.add_axes((left / self.width, bottom, width / self.width, height / self.height))

    def panel(self, panel: Panel, labels: Labels | None, corner: tuple[float, float], side: float) -> None:
        """Draw a slice with outlined labels in a square with this side; `corner` is (left, top)."""
        left, top = corner
        bottom = (
            1 - (top + side) / self.height
        )  # not by `axes`: its result may differ in the last digit, which can move a panel by a pixel
        axes = self.figure.add_axes((left / self.width, bottom, side / self.width, side / self.height))
        draw_image(axes, panel.image, panel.pixel_aspect)
        if panel.label_values is not None and labels is not None:
            for value, _, colour in label_colours(labels):
                draw_contour(axes, panel.label_values == value, colour, linewidth=1.2)

    def write(
        self,
        left: float,
        middle: float,
        text: str,
        *,
        colour: str = DIM,
        size: float = 7.5,
        align: str = "left",
        weight: str = "normal",
    ) -> None:
        """Write text whose vertical centre is `middle` inches below the upper edge."""
        from matplotlib.patheffects import withStroke

        words = self.figure.text(
            left / self.width,
            1 - middle / self.height,
            text,
            color=colour,
            fontsize=size,
            fontweight=weight,
            va="center",
            ha=align,
            parse_math=False,
        )
        if self.halo:
            words.set_path_effects([withStroke(linewidth=2, foreground=BACKGROUND)])

    def title(self, title: str, plane: str | None) -> None:
        """Write the title in the upper left corner, and the plane of the slices in the upper right one.

        The middle of a title that is too long for the picture is left out.
        """
        margin, middle = 0.12 / self.width, 1 - 0.25 / self.height
        title = shortened(title, int((self.width - 0.24 - (PLANE if plane else 0)) / TITLE_LETTER))
        words = self.figure.text
        words(margin, middle, title, color=INK, fontsize=13, fontweight="bold", va="center", parse_math=False)
        if plane is not None:
            words(1 - margin, middle, plane, color=INK, fontsize=11, va="center", ha="right")

    def note(self, text: str) -> None:
        """Write a line of text in the middle of the lower edge."""
        self.write(self.width / 2, self.height - NOTE / 2, text, align="center")

    def legend(self, entries: Sequence[Artist], bottom: float = 0.02) -> None:
        """Draw the legend `bottom` inches above the lower edge, in as many lines as it needs."""
        self.figure.legend(
            handles=list(entries),
            loc="lower center",
            bbox_to_anchor=(0.5, bottom / self.height),
            ncols=math.ceil(len(entries) / legend_lines(entries, self.width)),
            frameon=False,
            labelcolor=INK,
            fontsize=10,
        )

    def png(self) -> bytes:
        """The picture as a PNG file."""
        return self._saved("png")

    def webp(self, quality: int) -> bytes:
        """The picture as a WebP file with lossy compression; quality from 0 to 100."""
        return self._saved("webp", pil_kwargs={"quality": quality})

    def _saved(self, kind: str, **options: Any) -> bytes:
        from matplotlib.text import Text

        for words in self.figure.findobj(Text):
            if isinstance(words, Text) and not words.get_text().isascii():
                words.set_fontfamily(families(words.get_text()))
        content = io.BytesIO()
        self.figure.savefig(content, format=kind, dpi=self.figure.dpi, facecolor=BACKGROUND, **options)
        return content.getvalue()


def evenly(labelled: NDArray[np.bool_], most: int) -> list[int]:
    """At most `most` evenly spaced slice numbers, from the first labelled slice to the last (else from all slices).

    `labelled` is (n, h, w).
    """
    with_labels = np.flatnonzero(labelled.any(axis=(1, 2)))
    first, last = (int(with_labels[0]), int(with_labels[-1])) if with_labels.size else (0, len(labelled) - 1)
    return sorted({round(index) for index in np.linspace(first, last, min(most, last - first + 1))})


def draw_image(axes: Axes, image: NDArray[Any], pixel_aspect: float) -> None:
    """Draw a grey or coloured slice (h, w, c) with values in [0, 1], without ticks or frame."""
    height, width = image.shape[:2]
    axes.imshow(
        image if image.shape[2] == 3 else image[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect=pixel_aspect,
        interpolation="bilinear",
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()


def draw_contour(axes: Axes, mask: NDArray[np.bool_], colour: str, alpha: float = 0.0, linewidth: float = 1.5) -> None:
    """Draw the outline of a mask (h, w) on the axes of its image, and fill it with opacity `alpha`."""
    from matplotlib.patheffects import withStroke

    if mask.any():
        x, y, height = _surface(mask)
        if alpha > 0:
            axes.contourf(x, y, height, levels=[0.5, 1.5], colors=[colour], alpha=alpha, antialiased=True)
        line = axes.contour(x, y, height, levels=[0.5], colors=[colour], linewidths=linewidth)
        line.set_path_effects([withStroke(linewidth=linewidth + 1, foreground=(0, 0, 0, 0.5))])


def draw_reference(axes: Axes, mask: NDArray[np.bool_], linewidth: float = 0.9, rim: bool = True) -> None:
    """Draw the outline of a reference mask, white and dashed; a dark `rim` makes it visible on bright tissue."""
    from matplotlib.patheffects import withStroke

    if mask.any():
        x, y, height = _surface(mask)
        line = axes.contour(x, y, height, levels=[0.5], colors=["white"], linewidths=linewidth, linestyles=[DASHES])
        if rim:
            line.set_path_effects([withStroke(linewidth=1.7, foreground=(0, 0, 0, 0.55))])


def _surface(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Columns, rows and values of the mask with a rim of zeros, which closes contours at the edge of the image."""
    height, width = mask.shape
    return np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1).astype(np.float32)


def legend_of(labels: Labels) -> list[Artist]:
    """One legend entry per label."""
    return [label_entry(legend_name(name), colour) for _, name, colour in label_colours(labels)]


def label_entry(text: str, colour: str) -> Artist:
    """A legend entry: a patch of a label's colour with a text."""
    from matplotlib.patches import Patch

    return Patch(facecolor=(colour, 0.5), edgecolor=colour, label=text)


def reference_entry() -> Artist:
    """The legend entry of the reference: a dashed line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color="white", linewidth=1.2, linestyle=DASHES, label="reference")


def legend_lines(entries: Sequence[Artist], width: float) -> int:
    """Number of lines of a legend in a figure of this width in inches."""
    longest = max((_letters(str(entry.get_label())) for entry in entries), default=0)
    columns = int(width / max(LEGEND_ENTRY, LEGEND_KEY + LEGEND_LETTER * longest))
    return math.ceil(len(entries) / max(1, columns))


def legend_name(name: str) -> str:
    """A name without its middle if it is long, and with escaped dollar signs, which would become mathematics."""
    return shortened(name, LEGEND_NAME).replace("$", r"\$")


def shortened(text: str, most: int) -> str:
    """The text with its middle replaced by an ellipsis, if it is wider than `most` letters.

    Letters of double width, such as Chinese ones, count twice.
    """
    if _letters(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{_start(text, most - 1 - half)}…{_start(text[::-1], half)[::-1]}"


def _start(text: str, most: int) -> str:
    """The start of the text that is not wider than `most` letters."""
    end = next((end for end in range(len(text) + 1) if _letters(text[:end]) > most), len(text) + 1) - 1
    return text[:end]


def _letters(text: str) -> int:
    """The width of the text in usual letters."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
