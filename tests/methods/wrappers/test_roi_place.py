"""Where the labelled region lies in a slice."""

import dataclasses

import numpy as np
import pytest
import torch

from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.data.volume import Geometry
from handful.errors import SettingsError
from handful.methods.wrappers.roi_place import Locator, Moments, features_of, moments_of
from handful.methods.wrappers.roi_window import Region, Windows
from phantoms import LABELS, phantom_case


def labelled(*seeds: int) -> list[LabelledSlices]:
    support = SupportSet(tuple(phantom_case(seed) for seed in seeds), LABELS)
    return [scan.labelled() for scan in support.scans(support.resolve(Slicer()))]


def test_the_sums_of_cases_that_were_added_later_are_those_of_all_at_once():
    first, second, third = labelled(0, 1, 2)
    at_once, later = Locator.of([first, second, third]), Locator.of([first]).joined(Locator.of([second, third]))
    assert later.moments.cases == 3
    assert torch.allclose(at_once.moments.mean, later.moments.mean)
    assert torch.allclose(at_once.moments.covariance, later.moments.covariance)


def test_the_sums_are_those_of_weighted_cells():
    [one] = labelled(0)
    rows = [3, 4]
    features = features_of(one.slices[rows])
    moments = Moments.of(features, one, rows)
    cells = features.double().permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.allclose(moments.mean[:-1], cells.mean(dim=0))
    assert torch.allclose(moments.covariance[:-1, :-1], torch.from_numpy(np.cov(cells.T.numpy(), bias=True)))
    assert 0 < float(moments.mean[-1]) < 1


def test_cells_that_nobody_labelled_teach_nothing():
    [one] = labelled(0)
    rows = list(range(len(one.slices)))
    known = one.valid_mask.clone()
    known[:, : known.shape[1] // 2] = False
    half = dataclasses.replace(one, valid_mask=known)
    other = dataclasses.replace(half, classes=torch.where(known, one.classes, 1))
    features = features_of(one.slices)
    expected, found = Moments.of(features, half, rows), Moments.of(features, other, rows)
    assert torch.equal(expected.covariance, found.covariance)
    assert not torch.allclose(expected.mean, Moments.of(features, one, rows).mean)


def test_the_tensors_of_a_file_give_the_same_map():
    locator = Locator.of(labelled(0, 1))
    again = Locator.unpack(locator.pack())
    [new] = labelled(5)
    features = features_of(new.slices)
    assert again.moments.cases == 2
    assert torch.equal(locator.mass(features), again.mass(features))
    assert locator.mass(features).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cases", torch.tensor(0)),
        ("mean", torch.full((497,), torch.nan)),
        ("mean", torch.zeros(12)),
        ("covariance", torch.zeros(497, 12)),
        ("covariance", torch.full((497, 497), -3e38)),
    ],
)
def test_tensors_that_no_locator_has_are_refused(name: str, value: torch.Tensor):
    packed = moments_to_tensors() | {name: value}
    with pytest.raises(SettingsError):
        Locator.unpack(packed)


def moments_to_tensors() -> dict[str, torch.Tensor]:
    [one] = labelled(0)
    return Locator(moments_of(one)).pack()


def test_the_window_holds_the_larger_of_two_regions_in_its_middle():
    grid = Slicer(plane="axial").grid(Geometry((200, 200, 3), np.diag([-1.0, -1.0, 5.0, 1.0])))
    windows = Windows.of([Region(grid, 90, 90, 110, 110)], 2.0)
    mass = np.zeros((100, 100))
    mass[10:14, 60:68] = 1
    mass[80:84, 10:16] = 1
    window = windows.around_mass(grid, mass)
    assert window.sides == (40, 40)
    assert np.allclose(window.middle, (24, 128), atol=2)


def test_of_two_equal_regions_one_is_taken_and_not_the_place_between():
    grid = Slicer(plane="axial").grid(Geometry((200, 200, 3), np.diag([-1.0, -1.0, 5.0, 1.0])))
    windows = Windows.of([Region(grid, 90, 90, 110, 110)], 1.4)
    mass = np.zeros((100, 100))
    mass[20:24, 20:24] = mass[70:74, 70:74] = 1
    window = windows.around_mass(grid, mass)
    assert min(np.abs(np.subtract(window.middle, place)).max() for place in ((44, 44), (144, 144))) < 3


def test_without_any_response_the_window_has_its_default_position():
    grid = Slicer(plane="axial").grid(Geometry((200, 200, 3), np.diag([-1.0, -1.0, 5.0, 1.0])))
    windows = Windows.of([Region(grid, 30, 90, 50, 110)], 2.0)
    assert windows.around_mass(grid, np.zeros((50, 50))).middle == (40, 100)
