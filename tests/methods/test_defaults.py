"""Settings that nobody sets are those that suit the backbone's weights, and can be looked up."""

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.decoder import without_multimask
from handful.methods.catalog import METHODS, build_method, settings_from_backbone
from handful.methods.zero_shot import ZeroShot
from handful.prompts.prompts import Prompts
from phantoms import LABELS

ON_HANDFUL_TINY = {
    "auto-sam": {"train.iterations": 1500, "train.learning_rate": 2e-3},
    "auto-sam-unet": {"train.iterations": 1500, "train.learning_rate": 2e-3},
    "ensemble": {
        "auto_sam_unet.train.iterations": 1500,
        "auto_sam_unet.train.learning_rate": 2e-3,
        "fate.top_k": 5,
        "fate.window": 1,
    },
    "fate": {"top_k": 5, "window": 1},
    "few-shot-prompts": {"train.learning_rate": 2e-3},
    "know-sam": {"sam_rate": 2e-3},
    "lora": {"train.learning_rate": 2e-3},
    "volume-adapter": {"train.learning_rate": 2e-3},
    "zero-shot": {"multimask": False},
}
ON_SAM_2 = {
    "auto-sam": {"train.iterations": 840, "train.learning_rate": 5e-4},
    "auto-sam-unet": ON_HANDFUL_TINY["auto-sam-unet"],  # its head is no part of the backbone
    "ensemble": ON_HANDFUL_TINY["ensemble"] | {"fate.top_k": 3, "fate.window": 6},
    "fate": {"top_k": 3, "window": 6},
    "few-shot-prompts": {"train.learning_rate": 3e-4},
    "know-sam": {"sam_rate": 3e-4},
    "lora": {"train.learning_rate": 3e-4},
    "volume-adapter": {"train.learning_rate": 3e-4},
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_method_takes_what_suits_the_backbone(name: str, handful_tiny: Backbone) -> None:
    sam2 = tiny_models.tiny_sam2_video()
    for backbone, expected in ((handful_tiny, ON_HANDFUL_TINY), (sam2, ON_SAM_2)):
        assert settings_from_backbone(build_method(name, {}), backbone) == expected.get(name, {})


def test_what_a_user_sets_stays() -> None:
    method = build_method("few-shot-prompts", {"train.learning_rate": 1e-3, "roi_margin": 1.3})
    assert settings_from_backbone(method, tiny_models.tiny_sam()) == {}
    assert method.resolved(tiny_models.tiny_sam()) == method


def test_a_wrapped_method_takes_them_too() -> None:
    method = build_method("fate", {"roi_margin": 1.3, "planes": "axial,coronal"})
    assert settings_from_backbone(method, tiny_models.tiny_sam2_video()) == {"top_k": 3, "window": 6}


SLICES = torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(0))
CLICK_AND_BOX = Prompts(
    points=torch.tensor([[[[20.0, 10.0]], [[40.0, 30.0]]]]),
    point_labels=torch.ones(1, 2, 1, dtype=torch.long),
    boxes=torch.tensor([[[0.0] * 4, [30.0, 20.0, 50.0, 38.0]]]),
)


def _answers(backbone: Backbone, multimask: bool | None) -> torch.Tensor:
    promptable = ZeroShot(multimask=multimask).promptable(LABELS, backbone)
    logits: torch.Tensor = promptable(SLICES, CLICK_AND_BOX)
    return logits


@pytest.mark.parametrize("build", [tiny_models.tiny_sam, tiny_models.tiny_sam2_video, tiny_models.tiny_mobile_sam])
def test_a_lone_click_gets_the_best_of_the_candidates_a_box_the_single_mask(build: object) -> None:
    backbone = build()  # type: ignore[operator]
    without_multimask(backbone.mask_decoder)  # SAM 2 turns to the candidates by itself where the single mask is unsure
    own, single, best = (_answers(backbone, multimask) for multimask in (None, False, True))
    torch.testing.assert_close(own[:, 0], best[:, 0])
    torch.testing.assert_close(own[:, 1], single[:, 1])
    assert not torch.allclose(single[:, 0], best[:, 0])


def test_medsam_never_chooses_among_candidates_and_sam_med2d_always() -> None:
    for build, multimask in ((tiny_models.tiny_medsam, False), (tiny_models.tiny_sam_med2d, True)):
        torch.testing.assert_close(_answers(build(), None), _answers(build(), multimask))


def test_one_click_is_one_positive_point_without_box_or_mask() -> None:
    labels = torch.tensor([[[1, -1], [1, 0], [0, -1], [1, 1], [-1, -1]]])
    points = Prompts(points=torch.zeros(1, 5, 2, 2), point_labels=labels)
    assert points.is_one_click().tolist() == [[True, False, False, False, False]]
    masked = Prompts(points.points, labels, None, torch.ones(1, 5, 8, 8))
    assert not masked.is_one_click().any()
    assert not Prompts(boxes=torch.ones(1, 2, 4)).is_one_click().any()
