"""Methods take handful-small as any other backbone, though its masks are finer; two of them say why they cannot."""

import numpy as np
import pytest

import tiny_models
from handful.backbones.base import Backbone
from handful.errors import SettingsError
from handful.methods.catalog import build_method
from methods.variants import NET, SIDE, STEPS, auto_sam, believing, few_shot, interactive, support
from phantoms import LABELS, phantom

FITS = {
    "fate": ("fate", {}),
    "few-shot-prompts": ("few-shot-prompts", few_shot()),
    "auto-sam, vit": ("auto-sam", auto_sam(head="vit")),
    "auto-sam, cnn": ("auto-sam", auto_sam(head="cnn")),
    "auto-sam, linear": ("auto-sam", auto_sam(head="linear")),
    "auto-sam-unet": ("auto-sam-unet", auto_sam()),
    "interactive": ("interactive", interactive()),
    "nearest-slice": ("nearest-slice", {"similarity": "embedding"}),
    "zero-shot": ("zero-shot", {}),
}


@pytest.fixture(scope="module")
def small() -> Backbone:
    return believing(tiny_models.tiny_small(side=SIDE))


@pytest.mark.parametrize("name", FITS)
def test_a_method_segments_with_it(name: str, small: Backbone):
    method, settings = FITS[name]
    plain = {"slicer.window": "0,350", "roi_margin": "none", "largest_piece": "none"}
    image, _ = phantom(7)
    found = build_method(method, {**plain, **settings}).fit(support(), small).predict(image)
    assert found.geometry.shape == image.geometry.shape
    assert set(np.unique(found.array)) <= {0, *LABELS.values}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lora", STEPS | {"rank": 2}, "no attention"),
        ("know-sam", NET, "no transformer block"),
        ("volume-adapter", STEPS, "no transformer block"),
    ],
)
def test_methods_that_tune_attention_layers_say_that_it_has_none(
    method: str, settings: dict[str, object], message: str, small: Backbone
):
    with pytest.raises(SettingsError, match=message):
        build_method(method, settings).fit(support(), small)
