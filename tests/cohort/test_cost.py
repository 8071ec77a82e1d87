from pathlib import Path

import pytest

from handful.backbones.base import Backbone
from handful.data.cases import Case, Cohort
from handful.data.slicing import Slicer
from handful.methods.cost import duration, estimate, grids_of


def test_the_cost_counts_the_slices_of_readable_cases(cohort: Cohort, backbone: Backbone, tmp_path: Path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    cost = estimate(backbone, grids_of([*cohort.cases[:2], Case("broken", broken)], Slicer()))
    assert cost is not None
    assert (cost.cases, cost.slices, cost.device) == (2, 12, "cpu")
    assert str(cost).startswith("12 slices in 2 cases, about ")


def test_nothing_readable_costs_nothing(backbone: Backbone):
    assert estimate(backbone, []) is None


@pytest.mark.parametrize(("seconds", "said"), [(0.01, "1 s"), (89, "89 s"), (240, "4 min"), (5400, "1 h 30 min")])
def test_durations_are_written_in_everyday_units(seconds: float, said: str):
    assert duration(seconds) == said
