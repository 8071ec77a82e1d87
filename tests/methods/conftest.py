"""Backbones small enough to fit every method in seconds."""

import pytest
import tiny_models

from handful.backbones.base import Backbone


@pytest.fixture(scope="session")
def sam() -> Backbone:
    return tiny_models.tiny_sam()


@pytest.fixture(scope="session")
def sam2() -> Backbone:
    return tiny_models.tiny_sam2()
