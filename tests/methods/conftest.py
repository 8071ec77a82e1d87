"""Backbones small enough to fit every method in seconds."""

from functools import cache

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.methods.interactive.method import Interactive, InteractiveSegmenter
from handful.tuning.loop import TrainConfig
from methods.variants import BACKBONES, VARIANTS, Fit, Fits
from phantoms import support_set


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws its random slices anew from one seed."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sam() -> Backbone:
    return tiny_models.tiny_sam(side=64)


@pytest.fixture(scope="session")
def sam2() -> Backbone:
    return tiny_models.tiny_sam2(side=64)


@pytest.fixture(scope="session")
def large_sam() -> Backbone:
    """With four times as many pixels, for what cannot be learned from fewer."""
    return tiny_models.tiny_sam()


@pytest.fixture(scope="session")
def large_sam2() -> Backbone:
    return tiny_models.tiny_sam2()


@pytest.fixture(scope="session")
def handful_tiny() -> Backbone:
    """The one that was trained, for answers that must be good without any training of the method's own."""
    return load_backbone("handful-tiny")


@pytest.fixture(scope="session")
def fits() -> Fits:
    """Each variant of the contract, fitted when it is first asked for."""
    backbones = cache(lambda kind: BACKBONES[kind]())
    return cache(lambda name: Fit.of(VARIANTS[name], backbones(VARIANTS[name].backbone)))


@pytest.fixture(scope="session")
def tuned(sam: Backbone) -> InteractiveSegmenter:
    """`interactive` fitted on three phantoms, for the tests that only ask."""
    quick = TrainConfig(iterations=100, learning_rate=2e-3)
    return Interactive(rounds=1, error_head=True, train=quick).fit(support_set(3), sam)
