"""The parts of pictures that have values of their own."""

import numpy as np
import pytest
from PIL import Image

from handful.data.label_colours import COLOURS
from handful.data.volume import Labels
from handful.reports.canvas import Canvas, Panel, evenly, label_entry, legend_lines, legend_name, shortened
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
