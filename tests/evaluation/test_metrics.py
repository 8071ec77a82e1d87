"""Metrics against values worked out by hand, a brute-force oracle, and MONAI."""

import itertools

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from handful.evaluation.metrics import SurfaceDistances, overlap, surface_distances


def box(shape: tuple[int, ...], *extent: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[extent] = True
    return mask


@pytest.fixture
def shifted_cubes() -> tuple[np.ndarray, np.ndarray]:
    """Two 3-voxel cubes, the second one voxel further along k."""
    shape, near = (7, 7, 7), slice(1, 4)
    return box(shape, near, near, slice(1, 4)), box(shape, near, near, slice(2, 5))


def test_overlap_of_two_shifted_cubes_is_two_thirds(shifted_cubes):
    counts = overlap(*shifted_cubes)
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (18, 9, 9, 343 - 36)
    assert (counts.n_pred, counts.n_ref) == (27, 27)
    assert counts.dice == pytest.approx(2 / 3)
    assert counts.iou == pytest.approx(1 / 2)


def test_unknown_voxels_are_not_counted(shifted_cubes):
    valid_mask = box((7, 7, 7), slice(None), slice(None), slice(0, 3))
    counts = overlap(*shifted_cubes, valid_mask)
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (9, 9, 0, 147 - 18)


def test_distances_of_two_shifted_cubes_follow_the_spacing(shifted_cubes):
    """26 surface voxels: nine lie a 3 mm step away, one only has its 1 mm neighbour, sixteen coincide."""
    distances = surface_distances(*shifted_cubes, (1.0, 2.0, 3.0))
    assert sorted(distances.prediction_to_reference) == pytest.approx([0] * 16 + [1] + [3] * 9)
    assert distances.hausdorff95 == pytest.approx(3)
    assert distances.assd == pytest.approx(28 / 26)
    assert distances.surface_dice(0.5) == pytest.approx(16 / 26)
    assert distances.surface_dice(1.0) == pytest.approx(17 / 26)
    assert distances.surface_dice(3.0) == 1


def test_hausdorff_is_the_larger_direction():
    distances = SurfaceDistances(np.arange(101.0), np.zeros(101))
    assert distances.hausdorff95 == pytest.approx(95)
    assert SurfaceDistances(np.zeros(101), np.arange(101.0)).hausdorff95 == pytest.approx(95)


def test_a_distance_of_exactly_the_tolerance_is_within_it():
    """1.1 is larger as float32 than as float64."""
    one, other = box((4, 4, 4), 1, 1, 1), box((4, 4, 4), 1, 1, 2)
    assert surface_distances(one, other, (1.0, 1.0, 1.1)).surface_dice(1.1) == 1


def test_one_slice_is_measured_in_its_plane():
    """In 3D every voxel of a slice would be surface; in 2D the squares' inner voxels are none."""
    shape = (8, 1, 9)
    prediction, reference = (
        box(shape, slice(1, 6), slice(None), slice(1, 6)),
        box(shape, slice(1, 6), slice(None), slice(2, 7)),
    )
    distances = surface_distances(prediction, reference, (0.5, 100.0, 2.0))
    assert distances.prediction_to_reference.size == 16
    assert distances.hausdorff95 == pytest.approx(2)
    assert distances.assd == pytest.approx((5 * 2 + 0.5 + 1 + 0.5) / 16)  # the far side looks up and down for its row


def test_two_empty_masks_agree_and_have_no_distance():
    nothing = np.zeros((4, 4, 4), dtype=bool)
    distances = surface_distances(nothing, nothing, (1, 1, 1))
    assert overlap(nothing, nothing).dice == overlap(nothing, nothing).iou == distances.surface_dice(1) == 1
    assert np.isnan(distances.hausdorff95)
    assert np.isnan(distances.assd)


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_mask_lies_an_image_diagonal_away(missed):
    nothing, organ = np.zeros((3, 4, 6), dtype=bool), box((3, 4, 6), slice(1, 3), slice(1, 3), slice(1, 3))
    pair = (nothing, organ) if missed else (organ, nothing)
    distances = surface_distances(*pair, (1.0, 1.0, 2.0))
    assert distances.hausdorff95 == distances.assd == pytest.approx(13)
    assert distances.surface_dice(1000) == 0
    assert overlap(*pair).dice == overlap(*pair).iou == 0


def test_the_diagonal_of_one_slice_leaves_out_its_thickness():
    nothing, organ = np.zeros((3, 4, 1), dtype=bool), box((3, 4, 1), 1, 1, 0)
    assert surface_distances(nothing, organ, (1.0, 1.0, 100.0)).hausdorff95 == pytest.approx(5)


def random_masks(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two masks of a few random boxes each, often touching the border, and an odd spacing."""
    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(3, 9, 3)) if seed % 3 else (1, *draw.integers(4, 12, 2))
    masks = np.zeros((2, *shape), dtype=bool)
    for mask, _ in itertools.product(masks, range(3)):
        low = [draw.integers(0, n) for n in shape]
        mask[tuple(slice(a, a + draw.integers(1, 6)) for a in low)] = True
    return masks[0], masks[1], tuple(draw.uniform(0.5, 4, 3))


def brute_force_surface(mask: np.ndarray) -> np.ndarray:
    """Indices of voxels of which a face neighbour is outside the mask or the image, one by one."""
    steps = [step for step in itertools.product((-1, 0, 1), repeat=mask.ndim) if np.abs(step).sum() == 1]
    inside = {tuple(index) for index in np.argwhere(mask).tolist()}
    return np.array([v for v in sorted(inside) if any(tuple(np.add(v, s).tolist()) not in inside for s in steps)])


def brute_force_distances(mask: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    steps = brute_force_surface(mask)[:, None] - brute_force_surface(other)[None]
    return np.sqrt(((steps * np.array(spacing)) ** 2).sum(-1)).min(axis=1)


@pytest.mark.parametrize("seed", range(24))
def test_every_surface_metric_equals_brute_force(seed):
    prediction, reference, spacing = random_masks(seed)
    measured = surface_distances(prediction, reference, spacing)
    if prediction.shape[0] == 1:
        prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
    there = brute_force_distances(prediction, reference, spacing)
    back = brute_force_distances(reference, prediction, spacing)
    both = np.concatenate([there, back])
    assert sorted(measured.prediction_to_reference) == pytest.approx(sorted(there), rel=1e-5)
    assert sorted(measured.reference_to_prediction) == pytest.approx(sorted(back), rel=1e-5)
    assert measured.hausdorff95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert measured.assd == pytest.approx(both.mean(), rel=1e-5)
    assert measured.surface_dice(1.3) == pytest.approx((both <= 1.3).mean())


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_distances_are_those_of_monai(seed):
    prediction, reference, spacing = random_masks(seed)
    measured = surface_distances(prediction, reference, spacing)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    hausdorff = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=list(spacing))
    average = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=list(spacing))
    assert measured.hausdorff95 == pytest.approx(float(hausdorff), rel=1e-5)
    assert measured.assd == pytest.approx(float(average), rel=1e-5)
