"""Metrics beside DeepMind's surface-distance on random blobs: what is the same, and how far the rest lies apart.

Both measure distances between surfaces, but of two definitions: ours (MONAI's) are the voxels of a mask with a face
neighbour outside it, each counting once; theirs are the corners where voxels inside and outside meet, weighed by area.
So all that is not the surface itself must agree to 1e-6, and the surfaces must lie within half a voxel of each other.
"""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist
from surface_distance import metrics as deepmind

from handful.evaluation.metrics import SurfaceDistances, overlap, surface_distances

SAME = 1e-6
SEEDS = range(12)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two overlapping smooth masks of several pieces, some cut off by the border, and an anisotropic spacing."""
    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(14, 25, 3))
    first, other = (gaussian_filter(draw.normal(size=shape), 2.5) for _ in range(2))
    second = 0.8 * first + 0.5 * other
    return first > np.quantile(first, 0.75), second > np.quantile(second, 0.8), tuple(draw.uniform(0.5, 4, 3))


def weighed_alike(distances: SurfaceDistances) -> dict[str, np.ndarray]:
    """Our distances as DeepMind's functions take them, every surface voxel with the same area."""
    pred, ref = np.sort(distances.prediction_to_reference), np.sort(distances.reference_to_prediction)
    return {
        "distances_gt_to_pred": ref.astype(np.float64),
        "distances_pred_to_gt": pred.astype(np.float64),
        "surfel_areas_gt": np.ones(ref.size),
        "surfel_areas_pred": np.ones(pred.size),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_dice_is_deepminds(seed: int):
    prediction, reference, _ = blobs(seed)
    found = overlap(prediction, reference).dice
    assert 0.3 < found < 0.95
    assert found == pytest.approx(deepmind.compute_dice_coefficient(reference, prediction), abs=SAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_surface_dice_of_one_surface_definition_is_deepminds(seed: int):
    measured = surface_distances(*blobs(seed))
    theirs = weighed_alike(measured)
    for tolerance in (0.7, 1.3, 3.1):
        expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert measured.surface_dice(tolerance) == pytest.approx(expected, abs=SAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_assd_of_one_surface_definition_is_deepminds_two_averages_by_their_areas(seed: int):
    measured = surface_distances(*blobs(seed))
    of_reference, of_prediction = deepmind.compute_average_surface_distance(weighed_alike(measured))
    areas = measured.reference_to_prediction.size, measured.prediction_to_reference.size
    expected = (of_reference * areas[0] + of_prediction * areas[1]) / sum(areas)
    assert measured.assd == pytest.approx(expected, abs=SAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_hd95_of_one_surface_definition_is_deepminds(seed: int):
    """Of 20 k + 1 distances it is one of them; between two, NumPy interpolates and DeepMind takes the upper."""
    measured = surface_distances(*blobs(seed))
    draw = np.random.default_rng(seed)
    both = (measured.prediction_to_reference, measured.reference_to_prediction)
    fitting = [draw.permutation(one)[: (one.size - 1) // 20 * 20 + 1] for one in both]
    some = SurfaceDistances(*fitting)
    assert some.hausdorff95 == pytest.approx(deepmind.compute_robust_hausdorff(weighed_alike(some), 95), abs=SAME)
    assert measured.hausdorff95 <= deepmind.compute_robust_hausdorff(weighed_alike(measured), 95) + SAME


@pytest.mark.parametrize("seed", SEEDS)
def test_distances_on_blobs_are_those_of_our_definition_without_monai(seed: int):
    prediction, reference, spacing = blobs(seed)
    measured = surface_distances(prediction, reference, spacing)
    here, there = (np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in (prediction, reference))
    between = cdist(here, there)
    both = np.concatenate([between.min(axis=1), between.min(axis=0)])
    hausdorff = max(np.percentile(between.min(axis=1), 95), np.percentile(between.min(axis=0), 95))
    assert measured.hausdorff95 == pytest.approx(hausdorff, rel=SAME)
    assert measured.assd == pytest.approx(both.mean(), rel=SAME)
    assert measured.surface_dice(1.3) == pytest.approx((both <= 1.3).mean(), abs=SAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_squares_in_squares_have_deepminds_distances(seed: int):
    """A rim of one width all round: both have the same distances; the corners are less than one in twenty."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(1, 4, 2)
    width = float(draw.uniform(1, 3))
    spacing = tuple(width / steps)
    sides = draw.integers(150, 200, 2)
    inner, outer = np.zeros((2, *sides + 10), dtype=bool)
    outer[5 : 5 + sides[0], 5 : 5 + sides[1]] = True
    inner[5 + steps[0] : 5 + sides[0] - steps[0], 5 + steps[1] : 5 + sides[1] - steps[1]] = True
    measured = surface_distances(inner[..., None], outer[..., None], (*spacing, 100.0))
    theirs = deepmind.compute_surface_distances(outer, inner, spacing)
    assert measured.hausdorff95 == pytest.approx(width, rel=SAME)
    assert deepmind.compute_robust_hausdorff(theirs, 95) == pytest.approx(width, rel=SAME)
    assert measured.prediction_to_reference.mean() == pytest.approx(width, rel=SAME)
    assert deepmind.compute_average_surface_distance(theirs)[1] == pytest.approx(width, rel=SAME)
    for tolerance, share in ((0.99 * width, 0.0), (1.42 * width, 1.0)):
        assert measured.surface_dice(tolerance) == share
        assert deepmind.compute_surface_dice_at_tolerance(theirs, tolerance) == pytest.approx(share, abs=SAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_two_surface_definitions_are_within_a_voxels_diagonal_in_hausdorff_distance(seed: int):
    """Each surface voxel has a corner of theirs half a diagonal away, and the other way round."""
    prediction, reference, spacing = blobs(seed)
    measured = surface_distances(prediction, reference, spacing)
    farthest = max(measured.prediction_to_reference.max(), measured.reference_to_prediction.max())
    theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
    apart = abs(farthest - deepmind.compute_robust_hausdorff(theirs, 100))
    assert 0 < apart <= np.linalg.norm(spacing)


def test_on_random_blobs_ours_is_the_stricter_definition_and_by_how_much():
    """The figures of docs/explanation/scores.md: they differ by far more than 1e-6, so the two must not be mixed."""
    apart = []
    for seed in range(60):
        prediction, reference, spacing = blobs(seed)
        measured = surface_distances(prediction, reference, spacing)
        theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
        averages = deepmind.compute_average_surface_distance(theirs)
        areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        average = (averages[0] * areas[0] + averages[1] * areas[1]) / sum(areas)
        hausdorff = deepmind.compute_robust_hausdorff(theirs, 95)
        tolerance = float(np.mean(spacing))
        overlapping = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
        apart.append(
            (measured.hausdorff95 / hausdorff, measured.assd / average, measured.surface_dice(tolerance) - overlapping)
        )
    hd95, assd, surface_dice = np.median(apart, axis=0)
    assert hd95 == pytest.approx(1.08, abs=0.005)
    assert assd == pytest.approx(1.22, abs=0.005)
    assert surface_dice == pytest.approx(-0.05, abs=0.005)
