"""The backbone that was trained, a tiny one without a memory, and a phantom with its truth."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.data.slicing import Slicer
from handful.data.volume import LabelMap, Volume
from handful.session.session import Session, SessionConfig
from phantoms import LABELS, phantom

QUIET = SessionConfig(background=False)


@pytest.fixture(scope="session")
def handful_tiny() -> Backbone:
    return load_backbone("handful-tiny")


@pytest.fixture(scope="session")
def sam() -> Backbone:
    return tiny_models.tiny_sam()


@pytest.fixture(scope="session")
def scan() -> tuple[Volume, LabelMap]:
    return phantom(7)


@pytest.fixture(scope="session")
def truth(scan: tuple[Volume, LabelMap]) -> np.ndarray:
    """Label values of the six slices."""
    volume, reference = scan
    return Slicer().view(volume).of(reference.array)


@pytest.fixture
def session(scan: tuple[Volume, LabelMap], handful_tiny: Backbone) -> Session:
    """On handful-tiny, without anything in the background."""
    return Session(scan[0], handful_tiny, LABELS, config=QUIET)


@pytest.fixture
def encoded(handful_tiny: Backbone) -> Iterator[list[torch.Tensor]]:
    """What went into handful-tiny's image encoder, one entry a slice."""
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.extend(arguments[0].detach().clone())

    handle = handful_tiny.image_encoder.register_forward_pre_hook(note)
    yield seen
    handle.remove()
