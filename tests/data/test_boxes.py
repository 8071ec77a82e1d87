"""Boxes in a CSV file."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from handful.data.boxes import Box, read_boxes
from handful.errors import HandfulError
from phantoms import LABELS, phantom_case

CASES = [replace(phantom_case(seed), name=f"lesion-{seed}", reference=None) for seed in (1, 2)]
HEADER = "case,label,x_min,y_min,x_max,y_max\n"
BALL = LABELS.values[LABELS.names.index("ball")]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "boxes.csv"
    path.write_text(text, "utf-8")
    return path


def test_boxes_are_read_by_name_and_by_value_in_any_order_of_columns(tmp_path: Path):
    text = f"\ufefflabel,case,y_min,x_min,y_max,x_max,note\nball,lesion-2,2,1,4,3,sure\n{BALL},lesion-2,0,0,5,5.5,\n"
    found = read_boxes(written(tmp_path, text), CASES, LABELS)
    assert found == {"lesion-2": [Box(BALL, 1, 2, 3, 4), Box(BALL, 0, 0, 5.5, 5)]}


@pytest.mark.parametrize(("there", "here"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_any_unicode_form(tmp_path: Path, there: str, here: str):
    case = replace(CASES[0], name=unicodedata.normalize(there, "läsion-1"))
    text = HEADER + f"{unicodedata.normalize(here, case.name)},ball,0,0,1,1\n"
    assert read_boxes(written(tmp_path, text), [case], LABELS) == {case.name: [Box(BALL, 0, 0, 1, 1)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,label\nlesion-1,ball\n", "lacks the columns x_min, y_min, x_max, y_max"),
        (HEADER, "has no boxes"),
        (HEADER + "lesion-3,ball,0,0,1,1\n", "line 2: there is no unlabelled case 'lesion-3'; did you mean 'lesion-"),
        (HEADER + "lesion-1,bal,0,0,1,1\n", "line 2: there is no label 'bal'; did you mean 'ball'"),
        (HEADER + "lesion-1,ball,0,,1,1\n", "line 2: y_min = ''; give a number"),
        (HEADER + "lesion-1,ball,0,nan,1,1\n", "line 2: y_min = 'nan'"),
        (HEADER + "lesion-1,ball,0,0,1\n", "line 2: y_max = None"),
        (HEADER + "lesion-1,ball,5,0,1,1\n", "line 2: the box ends before it starts"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(HandfulError, match=message):
        read_boxes(written(tmp_path, text), CASES, LABELS)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "boxes.csv"
    path.write_bytes(b"\xff\xfe\x00case")
    with pytest.raises(HandfulError, match="cannot be read as a CSV file"):
        read_boxes(path, CASES, LABELS)
    with pytest.raises(HandfulError, match="no such file"):
        read_boxes(tmp_path / "none.csv", CASES, LABELS)
