"""Label maps stored in another order of voxels than their scan."""

from itertools import permutations, product

import numpy as np
import pytest

from handful.data.cases import Case
from handful.data.checks import check_case
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.data.voxel_order import in_order_of
from handful.errors import GeometryMismatch


def stored(label_map: LabelMap, axes: tuple[int, ...], flips: tuple[int, ...]) -> LabelMap:
    """The same voxels at the same places, with the axes in another order and direction."""
    array = label_map.array.transpose(axes)[tuple(slice(None, None, sign) for sign in flips)]
    place = np.zeros((4, 4))
    place[3, 3] = 1
    for new, (axis, sign) in enumerate(zip(axes, flips, strict=True)):
        place[axis, new] = sign
        place[axis, 3] = 0 if sign > 0 else label_map.array.shape[axis] - 1
    i, j, k = array.shape
    grid = Geometry((i, j, k), label_map.geometry.affine @ place)
    return LabelMap(np.ascontiguousarray(array), grid, label_map.labels)


@pytest.mark.parametrize("axes", permutations(range(3)))
def test_every_order_and_direction_is_turned_back(label_map: LabelMap, axes: tuple[int, ...]):
    for flips in product((1, -1), repeat=3):
        back = in_order_of(stored(label_map, axes, flips), label_map.geometry)
        np.testing.assert_array_equal(back.array, label_map.array)
        np.testing.assert_allclose(back.geometry.affine, label_map.geometry.affine, atol=1e-9)


def test_a_reference_in_another_order_is_read_with_a_warning(volume: Volume, label_map: LabelMap, labels: Labels):
    case = Case("a", volume, stored(label_map, (0, 1, 2), (-1, -1, 1)), labels)
    reference = case.read_reference()
    assert reference is not None
    np.testing.assert_array_equal(reference.array, label_map.array)
    assert [finding.message for finding in check_case(case) if finding.severity == "warning"] == [
        "the labels are stored in another order of voxels than the image, and are turned"
    ]


def test_labels_at_other_places_are_still_refused(volume: Volume, label_map: LabelMap, labels: Labels):
    affine = label_map.geometry.affine.copy()
    affine[:3, :2] *= -1  # the directions are turned, the origin is not
    with pytest.raises(GeometryMismatch):
        Case("a", volume, LabelMap(label_map.array, Geometry((9, 7, 5), affine), labels), labels).read_reference()
