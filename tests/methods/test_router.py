"""The router of experts: sums that are a ridge regression on everything at once."""

from itertools import permutations

import numpy as np
import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.data.volume import Geometry, Volume
from handful.errors import SettingsError
from handful.methods.router import RIDGE, SLICES, Router, features_of_volume
from phantoms import phantom

FEATURES = 7
GENERATOR = np.random.default_rng(0)
TASKS = {
    name: torch.from_numpy(GENERATOR.normal(shift, 1 + shift, (count, FEATURES)))
    for name, count, shift in (("heart", 20, 0.0), ("liver", 5, 1.0), ("lung", 11, 2.0))
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_models.tiny_sam(side=64)


def router_of(names: tuple[str, ...]) -> Router:
    first, *others = (Router.of(name, TASKS[name]) for name in names)
    for other in others:
        first = first.joined(other)
    return first


def test_sums_of_one_task_after_another_are_a_ridge_regression_on_all_at_once():
    names = tuple(TASKS)
    rows, targets, shares = [], [], []
    for number, features in enumerate(TASKS.values()):
        rows.append(np.hstack([features.numpy(), np.ones((len(features), 1))]))
        targets.append(np.eye(len(names))[[number] * len(features)])
        shares.append(np.full(len(features), 1 / len(features)))
    x, y, share = np.vstack(rows), np.vstack(targets), np.concatenate(shares)
    mean = (share[:, None] * x).sum(axis=0) / len(names)
    variance = np.maximum((share[:, None] * (x - mean) ** 2).sum(axis=0), len(names) * 1e-9)
    # the penalty as further rows, whose targets are 0
    stacked = np.vstack([np.sqrt(share)[:, None] * x, np.diag(np.sqrt(RIDGE * variance))])
    aims = np.vstack([np.sqrt(share)[:, None] * y, np.zeros((x.shape[1], len(names)))])
    expected = np.linalg.lstsq(stacked, aims, rcond=None)[0]
    np.testing.assert_allclose(router_of(names).weights.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_the_order_of_the_tasks_changes_nothing():
    first = router_of(tuple(TASKS))
    for names in permutations(TASKS):
        other = router_of(names)
        columns = [other.names.index(name) for name in first.names]
        torch.testing.assert_close(other.weights[:, columns], first.weights, rtol=1e-10, atol=1e-12)


def test_a_task_with_more_slices_has_no_more_weight():
    once, often = Router.of("liver", TASKS["liver"]), Router.of("liver", TASKS["liver"].repeat(9, 1))
    heart = Router.of("heart", TASKS["heart"])
    torch.testing.assert_close(heart.joined(once).weights, heart.joined(often).weights)


def test_the_scores_of_a_slice_sum_to_one():
    scores = router_of(tuple(TASKS)).scores(TASKS["lung"])
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(scores), dtype=torch.float64), atol=1e-4, rtol=0)
    assert scores.mean(dim=0).argmax() == 2


def test_sums_come_back_from_tensors():
    router = router_of(("heart", "lung"))
    again = Router.unpack(router.names, router.pack())
    assert torch.equal(again.weights, router.weights)
    with pytest.raises(SettingsError, match="means"):
        Router.unpack(("heart",), router.pack())


def test_experts_of_one_name_or_of_other_features_are_not_joined():
    heart = Router.of("heart", TASKS["heart"])
    with pytest.raises(SettingsError, match="already an expert 'heart'"):
        heart.joined(Router.of("heart", TASKS["lung"]))
    with pytest.raises(SettingsError, match="6 features"):
        heart.joined(Router.of("liver", TASKS["liver"][:, :5]))


def test_features_are_of_some_slices_that_show_something(backbone: Backbone):
    volume, _ = phantom(0)
    blank = volume.array.copy()
    blank[:, :, 0] = 0  # slices lie along j
    features = features_of_volume(Volume(blank, volume.geometry), backbone)
    assert features.shape == (5, 2 * backbone.channels)
    assert features.dtype == torch.float64
    assert features.isfinite().all()
    long = Volume(
        np.random.default_rng(0).random((1, 8, 8, 40), np.float32), Geometry((8, 8, 40), np.diag([1, 1, 3, 1.0]))
    )
    assert len(features_of_volume(long, backbone)) == SLICES
    empty = Volume(np.zeros_like(volume.array), volume.geometry)
    assert len(features_of_volume(empty, backbone)) == 6
