"""Backbones small enough to fit every method in seconds."""

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.methods.interactive.method import Interactive, InteractiveSegmenter
from handful.tuning.loop import TrainConfig
from phantoms import support_set


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws its random slices anew from one seed."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sam() -> Backbone:
    return tiny_models.tiny_sam()


@pytest.fixture(scope="session")
def sam2() -> Backbone:
    return tiny_models.tiny_sam2()


@pytest.fixture(scope="session")
def handful_tiny() -> Backbone:
    """The one that was trained, for answers that must be good without any training of the method's own."""
    return load_backbone("handful-tiny")


@pytest.fixture(scope="session")
def tuned(sam: Backbone) -> InteractiveSegmenter:
    """`interactive` fitted on three phantoms, for the tests that only ask."""
    quick = TrainConfig(iterations=100, learning_rate=2e-3)
    return Interactive(rounds=1, error_head=True, train=quick).fit(support_set(3), sam)
