"""Every kind of backbone, tiny, with random weights."""

import pytest

import tiny_models
from handful.backbones.base import Backbone

BUILDERS = {
    "sam": tiny_models.tiny_sam,
    "medsam": tiny_models.tiny_medsam,
    "sam-med2d": tiny_models.tiny_sam_med2d,
    "mobile-sam": tiny_models.tiny_mobile_sam,
    "sam2": tiny_models.tiny_sam2,
    "sam2-video": tiny_models.tiny_sam2_video,
    "edgetam": tiny_models.tiny_edgetam,
    "handful-small": tiny_models.tiny_small,
}


@pytest.fixture(params=BUILDERS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return BUILDERS[request.param]()
