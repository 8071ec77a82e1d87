"""What is fitted finds the labels of a phantom that it has never seen: every method, and the forms of some."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from handful.backbones.base import Backbone
from handful.data.volume import LabelMap
from handful.methods.base import Segmenter
from handful.methods.catalog import METHODS
from phantoms import phantom, support_set
from scores import mean_dice
from whole import build_whole

UNET = {"encoder": "none", "channels": 4, "batch": 4, "side": 32, "train.iterations": 80, "train.learning_rate": 2e-2}
STACKS = UNET | {"dims": 3, "depth": 4, "batch": 1, "train.iterations": 160, "train.learning_rate": 1e-2}


@dataclass(frozen=True)
class Lesson:
    """A method with settings, and what it learns on."""

    method: str
    settings: dict[str, object]
    backbone: str = "sam"


def vit(**settings: object) -> dict[str, object]:
    return {"head": "vit", "views": 2, "train.iterations": 100, "train.learning_rate": 2e-3} | settings


QUICK: dict[str, Lesson | str] = {
    "auto": Lesson("auto", {f"unet.{key}": value for key, value in UNET.items()}),
    "auto-sam": Lesson("auto-sam", vit(**{"train.iterations": 200}), "large_sam"),
    "auto-sam-unet": Lesson("auto-sam-unet", {"views": 2, "train.iterations": 60, "train.learning_rate": 1e-2}),
    "ensemble": Lesson(
        "ensemble",
        {"auto_sam_unet.views": 1, "auto_sam_unet.train.iterations": 15, "auto_sam_unet.train.learning_rate": 5e-3}
        | {f"unet.{key}": value for key, value in UNET.items()},
        "handful_tiny",
    ),
    "fate": Lesson("fate", {}, "handful_tiny"),
    "few-shot-prompts": Lesson(
        "few-shot-prompts", {"views": 2, "batch": 4, "train.iterations": 100, "train.learning_rate": 3e-3}
    ),
    "interactive": "tuned",
    "know-sam": Lesson("know-sam", UNET | {"distillation": 0.0}),  # this SAM knows nothing to pass on
    "lora": Lesson("lora", {"batch": 2, "train.iterations": 16}, "handful_tiny"),
    "nearest-slice": Lesson("nearest-slice", {}),
    "self-training": Lesson("self-training", UNET),
    "unet": Lesson("unet", UNET),
    "volume-adapter": Lesson("volume-adapter", {"batch": 1, "depth": 3, "train.iterations": 16}, "handful_tiny"),
    "zero-shot": Lesson("zero-shot", {}, "handful_tiny"),
}
"""One a method, or the fixture in which it is learned."""

LONG = {
    "auto-sam, vit": Lesson("auto-sam", vit(**{"train.iterations": 180}), "large_sam"),
    "auto-sam, vit, a pass a class": Lesson("auto-sam", vit(shared_pass=False), "large_sam"),
    "auto-sam, vit as published": Lesson("auto-sam", vit(as_published=True), "large_sam"),
    "auto-sam, vit on SAM 2": Lesson("auto-sam", vit(**{"train.iterations": 180}), "large_sam2"),
    "auto-sam, cnn": Lesson("auto-sam", vit(head="cnn", **{"train.iterations": 60}), "large_sam"),
    "auto-sam, cnn on SAM 2": Lesson("auto-sam", vit(head="cnn", **{"train.iterations": 40}), "large_sam2"),
    "auto-sam-unet on SAM 2": Lesson(
        "auto-sam-unet", {"views": 2, "train.iterations": 60, "train.learning_rate": 1e-2}, "large_sam2"
    ),
    "auto-sam, linear": Lesson("auto-sam", vit(head="linear", **{"train.iterations": 120}), "handful_tiny"),
    "lora": Lesson("lora", {"train.iterations": 160, "train.learning_rate": 1e-2}),
    "lora, adapter": Lesson("lora", {"variant": "adapter", "train.iterations": 160, "train.learning_rate": 1e-2}),
    "unet, stacks": Lesson("unet", STACKS),
    "volume-adapter, prompt generator": Lesson(
        "volume-adapter", {"head": "prompt-generator", "batch": 1, "train.iterations": 40}, "handful_tiny"
    ),
    "volume-adapter, attention": Lesson(
        "volume-adapter", {"adapter": "attention", "batch": 1, "train.iterations": 40}, "handful_tiny"
    ),
}


def learned(lesson: Lesson | str, request: pytest.FixtureRequest) -> float:
    """The mean Dice of a method on an unseen phantom."""
    segmenter: Segmenter
    if isinstance(lesson, str):
        segmenter = request.getfixturevalue(lesson)
    else:
        backbone: Backbone = request.getfixturevalue(lesson.backbone)
        segmenter = build_whole(lesson.method, lesson.settings).fit(support_set(3), backbone)
    image, truth = phantom(7)
    return mean_dice(segmenter.predict(image), truth)


def test_there_is_a_lesson_for_every_method():
    assert QUICK.keys() == METHODS.keys()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in sorted(QUICK)])
def test_every_method_finds_the_labels_of_an_unseen_phantom(name: str, request: pytest.FixtureRequest):
    truth = phantom(7)[1]
    everything_ball = LabelMap(np.full_like(truth.array, 1), truth.geometry, truth.labels)
    assert learned(QUICK[name], request) > max(0.5, 2 * mean_dice(everything_ball, truth))


@pytest.mark.learning
@pytest.mark.parametrize("name", sorted(LONG))
def test_so_do_its_forms_if_they_learn_longer(name: str, request: pytest.FixtureRequest):
    assert learned(LONG[name], request) > 0.6
