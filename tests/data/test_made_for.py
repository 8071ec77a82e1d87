"""The kind of scans that a model was made for, and scans of other kinds."""

from dataclasses import replace

import numpy as np
import pytest

from handful.data.cases import Case
from handful.data.made_for import MadeFor
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Geometry, Volume
from handful.errors import UnsupportedInput
from phantoms import phantom, phantom_case, support_set


@pytest.fixture(scope="module")
def kind() -> MadeFor:
    support = support_set(2)
    return MadeFor.of(support, support.resolve(Slicer()))


def differences(kind: MadeFor, volume: Volume) -> tuple[str, ...]:
    return kind.differences(volume, Case("x", volume).modality_evidence(volume))


def scaled(volume: Volume, factor: float) -> Volume:
    affine = volume.geometry.affine.copy()
    affine[:3, :3] *= factor
    return replace(volume, geometry=Geometry(volume.geometry.shape, affine))


def test_the_kind_is_that_of_the_support(kind: MadeFor) -> None:
    assert (kind.modality, kind.is_ct, kind.channels, kind.plane, kind.unit) == ("MR", False, (1,), "axial", "mm")
    assert kind.pixel == pytest.approx((0.9, 1.1))
    assert kind.distance == pytest.approx((5.0, 5.0))
    assert 0 < kind.values[0] < kind.values[1] < 400


def test_a_scan_of_the_same_kind_has_no_differences(kind: MadeFor) -> None:
    assert differences(kind, phantom(7)[0]) == ()
    assert differences(kind, replace(phantom(7)[0], modality=None)) == ()


def test_another_modality_is_named_with_both_values(kind: MadeFor) -> None:
    (text,) = differences(kind, replace(phantom(7)[0], modality="CT"))
    assert text == "the model was fitted on MR, and this scan is CT"
    assert differences(kind, replace(phantom(7)[0], modality="T2")) == ()  # a sequence of MR, perhaps


@pytest.mark.parametrize("factor", [10.0, 1 / 20])
def test_another_size_of_voxels_is_named_with_both_values(kind: MadeFor, factor: float) -> None:
    pixels, distance = differences(kind, scaled(phantom(7)[0], factor))
    assert "0.9 to 1.1 mm" in pixels
    assert f"{0.9 * factor:.3g} to {1.1 * factor:.3g} mm" in pixels
    assert "5 mm apart" in distance
    assert f"{5 * factor:.3g} mm apart" in distance


def test_a_scan_that_is_coarse_in_another_plane_is_named(kind: MadeFor) -> None:
    volume = phantom(7)[0]
    affine = volume.geometry.affine.copy()
    affine[:3, :3] = affine[:3, :3] @ np.diag([5 / 1.1, 1 / 5, 1])
    assert any("axial" in text for text in differences(kind, replace(volume, geometry=Geometry((24, 6, 28), affine))))


def test_values_count_only_where_the_window_is_fixed(kind: MadeFor) -> None:
    bright = replace(phantom(7)[0], array=phantom(7)[0].array * 50 + 3000)
    assert differences(kind, bright) == ()
    support = support_set(1)
    fixed = MadeFor.of(support, support.resolve(Slicer(window=(0, 350))))
    (text,) = differences(fixed, bright)
    assert "values from" in text


@pytest.mark.parametrize("made_for", [1, 3])
def test_colour_and_grey_are_not_mixed(made_for: int) -> None:
    case = phantom_case(0)
    image = case.read_image()
    grey, colour = image, replace(image, array=np.repeat(image.array, 3, axis=0))
    support = SupportSet((replace(case, image=grey if made_for == 1 else colour),), support_set(1).labels)
    kind = MadeFor.of(support, support.resolve(Slicer()))
    kind.require_usable(grey if made_for == 1 else colour)
    with pytest.raises(
        UnsupportedInput, match=r"fitted on (grey|colour) scans, and this one is (grey|colour); convert"
    ):
        kind.require_usable(colour if made_for == 1 else grey)
