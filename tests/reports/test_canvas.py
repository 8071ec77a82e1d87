"""The parts of pictures that have values of their own."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from handful.data.label_colours import COLOURS
from handful.data.volume import Labels
from handful.reports.canvas import Canvas, Panel, evenly, label_entry, legend_lines, legend_name, shortened
from handful.reports.fonts import families
from look import near, pixels


def test_slices_are_spread_over_the_labelled_ones_and_over_all_where_none_is():
    labelled = np.zeros((10, 2, 2), dtype=bool)
    assert evenly(labelled, 3) == [0, 4, 9]
    labelled[[2, 5, 6]] = True
    assert evenly(labelled, 3) == [2, 4, 6]
    assert evenly(labelled, 99) == [2, 3, 4, 5, 6]


def test_a_long_name_keeps_its_two_ends():
    assert shortened("patient-0001-left", 9) == "pati…left"
    assert shortened("patient", 7) == "patient"


def test_letters_of_double_width_count_twice():
    assert shortened("左心室心内膜", 12) == "左心室心内膜"
    assert shortened("左心室心内膜", 9) == "左心…内膜"
    entries = [label_entry("左心室心内膜左心室心内膜左心室心内膜", "red")] * 2
    assert legend_lines(entries, 7.0) == 2


@pytest.fixture
def font_with(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Makes and installs a font whose only letter is a filled square; gives its name."""
    made: list[str] = []

    def make(letter: str) -> str:
        name = f"Squares {ord(letter)}"
        builder = FontBuilder(1000)
        builder.setupGlyphOrder([".notdef", "square"])
        builder.setupCharacterMap({ord(letter): "square"})
        pen = TTGlyphPen(None)
        for corner in ((0, 0), (0, 800), (800, 800), (800, 0)):
            (pen.lineTo if pen.points else pen.moveTo)(corner)
        pen.closePath()
        builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
        builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": name, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / f"{name}.ttf")
        fontManager.addfont(tmp_path / f"{name}.ttf")
        made.append(name)
        return name

    yield make
    fontManager.ttflist[:] = [entry for entry in fontManager.ttflist if entry.name not in made]


def test_letters_that_the_usual_font_lacks_are_drawn_with_an_installed_one(
    font_with: Callable[[str], str], tmp_path: Path
):
    letter = "\U00012000"  # cuneiform, of which nothing else is installed
    name = font_with(letter)
    assert families(f"scan {letter}") == ["DejaVu Sans", name]
    assert families("scan ä") == ["DejaVu Sans"]
    canvas = Canvas(4, 2)
    canvas.title(letter, None)
    canvas.legend([label_entry(letter, "red")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a letter without a font
        content = canvas.png()
    (tmp_path / "title.png").write_bytes(content)
    picture = pixels(tmp_path / "title.png")
    title = picture[: picture.shape[0] // 4]
    assert (title.min(axis=-1) > 200).sum() > 200


def test_a_legend_has_as_many_lines_as_its_entries_need():
    entries = [label_entry("liver  Dice 0.93", "red")] * 7
    assert [legend_lines(entries[:count], 7.0) for count in (0, 1, 3, 4, 7)] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("name", ["liver", "portal_vein_and_splenic_vein", "a very long name of a label " * 4])
@pytest.mark.parametrize("width", [5.0, 12.0])
def test_all_names_are_in_the_picture(name: str, width: float):
    canvas = Canvas(width, 4)
    canvas.title(f"case of {name}", None)
    canvas.legend([label_entry(f"{legend_name(name)}  Dice 0.93", "red")] * 6)
    canvas.png()
    for shown in (*canvas.figure.legends, *canvas.figure.texts):
        assert 0 <= shown.get_window_extent().x0 < shown.get_window_extent().x1 <= width * canvas.figure.dpi


def test_a_panel_fills_its_square_and_nothing_else(tmp_path):
    canvas = Canvas(4, 3, dpi=50)
    canvas.panel(Panel(np.full((8, 8, 1), 1.0, np.float32), None, 1.0), None, (1, 0.5), 2)
    (tmp_path / "a.png").write_bytes(canvas.png())
    picture = pixels(tmp_path / "a.png")
    assert picture.shape == (150, 200, 3)
    assert near(picture[25:125, 50:150], "#FFFFFF") == near(picture, "#FFFFFF") == 100 * 100


def test_a_panel_outlines_its_labels_in_their_colours(tmp_path):
    values = np.zeros((8, 8), dtype=np.int16)
    values[2:6, 2:6] = 3
    canvas = Canvas(2, 2)
    canvas.panel(Panel(np.zeros((8, 8, 1), np.float32), values, 1.0), Labels((1, 3), ("a", "b")), (0, 0), 2)
    (tmp_path / "a.png").write_bytes(canvas.png())
    assert near(pixels(tmp_path / "a.png"), COLOURS[1]) > 100
    assert near(pixels(tmp_path / "a.png"), COLOURS[0]) == 0


def test_the_same_picture_as_webp(tmp_path):
    (tmp_path / "a.webp").write_bytes(Canvas(2, 1, dpi=50).webp(quality=78))
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.format, image.size) == ("WEBP", (100, 50))
