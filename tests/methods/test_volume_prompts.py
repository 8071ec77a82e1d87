"""Clicks in 3D: the model gets the same cube however the scan is stored, and masks lie on the scan."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.authors_layout import random_state, sam_med3d
from handful.backbones.sam_med3d import SamMed3d, VolumePrediction, sam_med3d_of
from handful.data.cases import Case
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, SettingsError, UnsupportedInput
from handful.methods.volume_prompts import (
    ClickedObject,
    VolumeClick,
    _Cube,
    _normalised,
    segment_object,
    volume_oracle,
)

SHAPE, SPACING = (40, 36, 20), (1.2, 1.5, 3.0)
CENTRE = (22, 15, 9)
"""Of the ball, in voxels."""


class BrightObjects(SamMed3d):
    """Takes what is brighter than the mean of the cube for the object, whatever the clicks."""

    def encode(self, cube: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool3d(cube[None, None], 4)

    def decode(
        self, embeddings: Tensor, clicks: Tensor, positive: Tensor, previous: Tensor | None = None
    ) -> VolumePrediction:
        return VolumePrediction(embeddings[:, 0] - 1.0, torch.ones(1))


@pytest.fixture(scope="module")
def model() -> SamMed3d:
    small = sam_med3d(side=32, width=48, depth=2, heads=2, global_blocks=(1,), channels=48)
    return sam_med3d_of(random_state(small), "random")


@pytest.fixture(scope="module")
def bright(model: SamMed3d) -> SamMed3d:
    return BrightObjects(model.shape)


def ball(radius: float = 13.0) -> tuple[Volume, LabelMap]:
    """A bright ball of this radius in mm, stored with axes to the right, front and head."""
    grid = np.indices(SHAPE).T * SPACING - np.multiply(CENTRE, SPACING)
    inside = (np.linalg.norm(grid, axis=-1) < radius).T
    geometry = Geometry(SHAPE, np.diag([*SPACING, 1.0]))
    noise = np.random.default_rng(0).normal(0, 2, SHAPE)
    volume = Volume((10 + 90 * inside + noise).clip(0).astype(np.float32)[None], geometry)
    return volume, LabelMap(inside.astype(np.int16), geometry, Labels((1,), ("ball",)))


def restored(volume: Volume, order: tuple[int, int, int], flips: tuple[int, ...]) -> Volume:
    """The same scan, stored with its axes in another order and some of them reversed."""
    array, affine = volume.array[0].transpose(order), volume.geometry.affine.copy()
    affine[:3, :3] = affine[:3, list(order)]
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return Volume(np.ascontiguousarray(array)[None], Geometry(array.shape, affine))


def stored_voxel(voxel: tuple[int, ...], shape: tuple[int, ...], order: tuple[int, ...], flips: tuple[int, ...]):
    moved = [voxel[axis] for axis in order]
    return tuple(float(shape[place] - 1 - at if place in flips else at) for place, at in enumerate(moved))


@pytest.mark.parametrize(("order", "flips"), [((0, 1, 2), (0, 1)), ((2, 0, 1), ()), ((1, 2, 0), (0, 2))])
def test_the_cube_is_that_of_the_patient_however_the_scan_is_stored(
    order: tuple[int, int, int], flips: tuple[int, ...]
):
    volume, _ = ball()
    other = restored(volume, order, flips)
    voxel = stored_voxel(CENTRE, other.geometry.shape, order, flips)
    plain = _Cube(volume.geometry, 32, tuple(map(float, CENTRE)))
    moved = _Cube(other.geometry, 32, voxel)  # type: ignore[arg-type]
    np.testing.assert_allclose(moved.cut(other), plain.cut(volume), atol=1e-4)
    assert moved.place_of(voxel) == pytest.approx([16, 16, 16])  # type: ignore[arg-type]
    logits = plain.cut(volume) - 50
    assert np.array_equal(
        restored(Volume(plain.mask_of(logits)[None].astype(np.uint8), volume.geometry), order, flips).array[0] > 0,
        moved.mask_of(logits),
    )


def test_a_mask_lies_on_the_object_and_only_in_the_cube():
    volume, reference = ball()
    cube = _Cube(volume.geometry, 32, (22.0, 15.0, 9.0))
    found = cube.mask_of(cube.cut(volume) - 55)
    truth = reference.array > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
    everywhere = cube.mask_of(np.ones((32, 32, 32), np.float32))
    assert everywhere[22, 15, 9]
    assert not everywhere[:1].any(), "26.4 mm from the middle of a cube of 48 mm"
    assert not cube.holds((0.0, 15.0, 9.0))


def test_values_of_a_ct_are_hounsfield_units_and_limited():
    volume, _ = ball()
    shifted = Volume(((volume.array - 50) * 100).astype(np.int16), volume.geometry, modality="CT")
    cube = _Cube(volume.geometry, 32, (22.0, 15.0, 9.0)).cut(shifted)
    assert (cube.min(), cube.max()) == (-1000, 1000)


def test_values_above_zero_have_mean_zero_and_deviation_one():
    cube = np.zeros((4, 4, 4), np.float32)
    cube[0] = np.arange(16).reshape(4, 4) + 1
    found = _normalised(cube)
    assert found[0].mean() == pytest.approx(0, abs=1e-6)
    assert found[0].std(ddof=1) == pytest.approx(1)
    assert found[1, 0, 0] == pytest.approx(-8.5 / np.arange(16).std(ddof=1))
    assert not _normalised(np.full((2, 2, 2), 7.0, np.float32)).any(), "a constant cube"


def test_each_step_gets_all_clicks_and_the_mask_before(model: SamMed3d, monkeypatch: pytest.MonkeyPatch):
    given: list[tuple[int, Tensor | None]] = []
    decode = model.decode

    def noted(embeddings: Tensor, clicks: Tensor, positive: Tensor, previous: Tensor | None) -> VolumePrediction:
        given.append((clicks.shape[1], previous))
        return decode(embeddings, clicks, positive, previous)

    monkeypatch.setattr(model, "decode", noted)
    volume, _ = ball()
    clicked = ClickedObject(model, volume, (22.0, 15.0, 9.0))
    first = clicked.add(VolumeClick((22.0, 15.0, 9.0)))
    second = clicked.add(VolumeClick((30.0, 15.0, 9.0), positive=False))
    assert first.shape == second.shape == SHAPE
    assert [count for count, _ in given] == [1, 2]
    assert given[0][1] is None
    assert given[1][1] is not None
    together = segment_object(model, volume, [VolumeClick((22.0, 15.0, 9.0)), VolumeClick((30.0, 15.0, 9.0), False)])
    assert together.shape == SHAPE


def test_simulated_clicks_segment_the_labels_of_a_case(bright: SamMed3d):
    volume, reference = ball()
    case = Case("a", volume, reference, labels=reference.labels)
    found = volume_oracle(bright, reference.labels, clicks=3)(case)
    truth = reference.array > 0
    assert 2 * ((found.array > 0) & truth).sum() / ((found.array > 0).sum() + truth.sum()) > 0.8
    assert set(np.unique(found.array)) == {0, 1}


def test_what_the_model_cannot_take_is_refused(model: SamMed3d):
    volume, reference = ball()
    with pytest.raises(SettingsError, match="at least one positive click"):
        segment_object(model, volume, [VolumeClick((1.0, 1.0, 1.0), positive=False)])
    with pytest.raises(InputError, match="outside the scan"):
        segment_object(model, volume, [VolumeClick((50.0, 1.0, 1.0))])
    with pytest.raises(InputError, match="cube of 48 mm"):
        segment_object(model, volume, [VolumeClick((1.0, 1.0, 1.0)), VolumeClick((39.0, 1.0, 1.0))])
    with pytest.raises(UnsupportedInput, match="3 channels"):
        segment_object(model, Volume(np.repeat(volume.array, 3, 0), volume.geometry), [VolumeClick((1.0, 1.0, 1.0))])
    picture = Volume(volume.array, replace(volume.geometry, unit="pixel"))
    with pytest.raises(UnsupportedInput, match="a size in mm"):
        segment_object(model, picture, [VolumeClick((1.0, 1.0, 1.0))])
    with pytest.raises(SettingsError, match="at least 1"):
        volume_oracle(model, reference.labels, clicks=0)
