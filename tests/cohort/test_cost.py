from pathlib import Path

import pytest

from handful.backbones.base import Backbone
from handful.data.cases import Case, Cohort
from handful.data.slice_grid import cropped_volume
from handful.data.slicing import Slicer
from handful.methods import cost as costs
from handful.methods.cost import duration, estimate, estimate_prediction, grids_of
from handful.methods.nearest_slice import NearestSlice
from phantoms import phantom, support_set


def test_the_cost_counts_the_slices_of_readable_cases(cohort: Cohort, backbone: Backbone, tmp_path: Path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    cost = estimate(backbone, grids_of([*cohort.cases[:2], Case("broken", broken)], Slicer()))
    assert cost is not None
    assert (cost.cases, cost.slices, cost.device) == (2, 12, "cpu")
    assert str(cost).startswith("12 slices in 2 cases, about ")


def test_slices_from_the_middle_of_a_scan_are_predicted_to_estimate_the_rest(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
):
    segmenter = NearestSlice().fit(support_set(1), backbone)
    scan, _ = phantom(7)
    predicted: list[int] = []
    predict = segmenter.predict
    monkeypatch.setattr(segmenter, "predict", lambda part: (predicted.append(part.array.size), predict(part))[1])
    slices = len(segmenter.slicer.grid(scan.geometry))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: 0.0)
    assert estimate_prediction(segmenter, scan, 40)
    assert predicted == [scan.array.size // slices]  # nothing to gain from a second try
    monkeypatch.setattr(costs.time, "perf_counter", iter(range(100)).__next__)  # each prediction takes one second
    many = estimate_prediction(segmenter, scan, 40)
    assert many is not None
    assert predicted[1:] == [scan.array.size // slices, scan.array.size // slices * min(slices, costs.MANY_PREDICTED)]
    assert many.seconds == pytest.approx(40 * slices / min(slices, costs.MANY_PREDICTED))
    assert str(many) == f"{40 * slices} slices in 40 cases, about {duration(many.seconds)} to segment on this CPU"
    assert estimate_prediction(segmenter, scan, -(-2 * costs.ONE_IN // slices))
    assert predicted[3:] == [scan.array.size // slices, 2 * scan.array.size // slices]  # one slice in ONE_IN
    assert estimate_prediction(segmenter, scan, costs.ONE_IN // slices)
    assert predicted[5:] == [scan.array.size // slices]


def test_so_few_slices_are_predicted_without_an_estimate(backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
    segmenter = NearestSlice().fit(support_set(1), backbone)
    scan, _ = phantom(7)
    picture = cropped_volume(scan, (slice(0, 24), slice(2, 3), slice(0, 28)))
    assert estimate_prediction(segmenter, picture, costs.WORTH_ESTIMATING)
    monkeypatch.setattr(segmenter, "predict", lambda part: pytest.fail("a slice was predicted"))
    assert estimate_prediction(segmenter, picture, costs.WORTH_ESTIMATING - 1) is None


def test_a_prediction_that_fails_has_no_estimate(backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
    segmenter = NearestSlice().fit(support_set(1), backbone)
    monkeypatch.setattr(segmenter, "predict", lambda part: part.missing)
    assert estimate_prediction(segmenter, phantom(7)[0], 3) is None


def test_nothing_readable_costs_nothing(backbone: Backbone):
    assert estimate(backbone, []) is None


@pytest.mark.parametrize(("seconds", "said"), [(0.01, "1 s"), (89, "89 s"), (240, "4 min"), (5400, "1 h 30 min")])
def test_durations_are_written_in_everyday_units(seconds: float, said: str):
    assert duration(seconds) == said
