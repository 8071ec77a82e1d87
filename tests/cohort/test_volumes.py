from pathlib import Path

import numpy as np
import pytest

from handful.cohort.volumes import LabelSizes, missing_labels, write_volumes
from handful.data.volume import Geometry, LabelMap, Labels

LABELS = Labels((1, 3), ("liver", "spleen"))
EDGES = np.diag([2.0, 3.0, 5.0, 1.0])


def sizes(shape: tuple[int, int, int], unit: str = "mm") -> LabelSizes:
    array = np.zeros(shape, np.int16)
    array.flat[:10] = 1
    return LabelSizes.of(LabelMap(array, Geometry(shape, EDGES, unit), LABELS))


@pytest.mark.parametrize(
    ("shape", "unit", "expected"),
    [
        ((4, 5, 6), "mm", "case,1,liver,10,0.3,ml\ncase,3,spleen,0,0.0,ml\n"),
        ((4, 5, 1), "mm", "case,1,liver,10,60.0,mm2\ncase,3,spleen,0,0.0,mm2\n"),
        ((4, 1, 6), "mm", "case,1,liver,10,100.0,mm2\ncase,3,spleen,0,0.0,mm2\n"),
        ((4, 5, 1), "pixel", "case,1,liver,10,10.0,pixel\ncase,3,spleen,0,0.0,pixel\n"),
        ((4, 5, 6), "pixel", "case,1,liver,10,10.0,voxel\ncase,3,spleen,0,0.0,voxel\n"),
    ],
)
def test_the_unit_is_that_of_the_scan(shape: tuple[int, int, int], unit: str, expected: str, tmp_path: Path) -> None:
    write_volumes(tmp_path / "volumes.csv", [("case", sizes(shape, unit))], LABELS)
    assert (tmp_path / "volumes.csv").read_text() == "case,label,name,voxels,size,unit\n" + expected


def test_an_empty_label_map_is_empty() -> None:
    empty = LabelMap(np.zeros((2, 2, 2), np.int16), Geometry((2, 2, 2), EDGES), LABELS)
    assert LabelSizes.of(empty).is_empty
    assert not sizes((4, 5, 6)).is_empty


@pytest.mark.parametrize(
    ("liver", "spleen", "expected"),
    [
        ([9, 9, 9], [9, 9, 9], {}),
        ([9, 9, 9], [9, 0, 9], {"spleen": ("case-1",)}),
        ([9, 9, 9, 9], [0, 0, 9, 9], {}),  # as common as it is rare
        ([9, 9, 0], [9, 9, 0], {}),  # nothing was found at all
        ([9, 9, 9, None, None], [9, 0, 9, 9, 9], {"spleen": ("case-1",)}),
        ([9, 0, 9, 9, None], [9, 9, 9, 0, 0], {"liver": ("case-1",), "spleen": ("case-3",)}),
    ],
)
def test_a_label_that_most_others_have_is_missing(
    liver: list[int | None], spleen: list[int], expected: dict[str, tuple[str, ...]]
) -> None:
    """None: the expert of the scan does not know the label."""
    cases = {
        f"case-{number}": LabelSizes({1: one, 3: other} if one is not None else {3: other}, 1.0, "ml")
        for number, (one, other) in enumerate(zip(liver, spleen, strict=True))
    }
    assert missing_labels(cases, LABELS) == expected


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path: Path) -> None:
    labels = Labels((1, 3), ("=1+1", "spleen"))
    write_volumes(tmp_path / "volumes.csv", [("@SUM(A1)", sizes((4, 5, 6)))], labels)
    assert "'@SUM(A1),1,'=1+1,10,0.3,ml" in (tmp_path / "volumes.csv").read_text()
