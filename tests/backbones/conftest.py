"""The four kinds of backbone, tiny, with random weights."""

import pytest

import tiny_models
from handful.backbones.base import Backbone

BUILDERS = {
    "sam": tiny_models.tiny_sam,
    "sam2": tiny_models.tiny_sam2,
    "sam2-video": tiny_models.tiny_sam2_video,
    "edgetam": tiny_models.tiny_edgetam,
}


@pytest.fixture(params=BUILDERS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return BUILDERS[request.param]()
