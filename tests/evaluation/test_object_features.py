"""Size, complexity and contrast of shapes for which they can be worked out by hand, and scores by their thirds."""

import math

import numpy as np
import pytest

from evaluation.studies import result, study
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, Volume
from handful.evaluation.object_features import boundary_complexity, contrast, object_features
from handful.evaluation.results import Result
from handful.evaluation.thirds import thirds
from handful.reports.paper_tables import latex, markdown

Y, X = np.mgrid[:96, :96]
DISC = (Y - 48) ** 2 + (X - 48) ** 2 < 30**2


def test_a_disc_has_complexity_one_wherever_it_is_and_however_large():
    assert boundary_complexity(DISC) == pytest.approx(1, abs=0.03)
    assert boundary_complexity(DISC[::2, ::2]) == pytest.approx(1, abs=0.05)
    assert boundary_complexity(DISC[48:]) > 1.1, "half a disc, cut off by the edge of the image"


def test_long_indented_and_divided_objects_are_complex():
    square = np.zeros((96, 96), bool)
    square[20:60, 20:60] = True
    assert boundary_complexity(square) == pytest.approx(2 / math.sqrt(math.pi), rel=0.06)
    comb = square.copy()
    comb[20:55, 24:60:8] = False
    assert boundary_complexity(comb) > 2 * boundary_complexity(square)
    assert boundary_complexity(DISC | np.roll(DISC, 61, axis=1)) > boundary_complexity(DISC)


def test_contrast_is_the_difference_to_the_ring_around_and_not_to_the_rest():
    image = np.where(DISC, 0.7, 0.4).astype(np.float32)
    image[:10] = 1.0
    assert contrast(image, DISC) == pytest.approx(0.3, abs=1e-6)
    assert contrast(1 - image, DISC) == pytest.approx(0.3, abs=1e-6)
    assert contrast(image, np.ones_like(DISC)) == 0


def test_a_volume_counts_the_slices_in_which_the_object_is():
    array, mask = np.zeros((96, 96, 4), np.float32), np.zeros((96, 96, 4), bool)
    mask[..., 1:3] = DISC[..., None]
    array[mask] = 0.5
    array[0, 0] = 1.0
    volume = Volume(array[None], Geometry(array.shape, np.diag([1.0, 1.0, 5.0, 1.0])))
    found = object_features(Slicer(window=(0.0, 1.0)).view(volume), mask)
    assert found.size_share == pytest.approx(DISC.mean())
    assert found.complexity == pytest.approx(boundary_complexity(DISC))
    assert found.contrast == pytest.approx(0.5)
    assert math.isnan(object_features(Slicer(window=(0.0, 1.0)).view(volume), np.zeros_like(mask)).contrast)


def row(case: int, size: float, dice: float, data_set: str = "hearts") -> Result:
    return result(case=f"c{case}", data_set=data_set, dice=dice, size_share=size)


def test_thirds_are_taken_within_each_data_set():
    hearts = [row(case, size=0.01 * case, dice=0.1 * case) for case in range(9)]
    livers = [row(case, size=0.5 + 0.01 * case, dice=0.5, data_set="livers") for case in range(6)]
    few = [row(case, size=0.9, dice=0.0, data_set="too few") for case in range(3)]
    unknown = [row(20, size=math.nan, dice=0.0)]
    found = thirds([*livers, *hearts[::-1], *few, *unknown], "size_share")
    assert found is not None
    assert found.means == pytest.approx(((0.1 + 0.5) / 2, (0.4 + 0.5) / 2, (0.7 + 0.5) / 2))
    assert found.correlation == pytest.approx(1), "where all scores are equal there is none"
    assert (found.data_sets, found.objects) == (2, 15)
    assert thirds(few, "size_share") is None
    assert thirds(hearts, "contrast") is None


def test_tables_for_papers_have_the_thirds_of_described_objects():
    rows = [row(case, size=0.01 * case, dice=0.1 * case) for case in range(9)]
    assert "rank correlation" not in markdown(study([result()]))
    text = markdown(study(rows))
    assert "size of the object, mean over 1 data sets" in text
    assert "| 0.100 | 0.400 | 0.700 | +1.00 |" in text
    assert "complexity" not in text, "it is unknown"
    assert "highest third" in latex(study(rows))
