"""Cohorts in which some pictures are grey and others are in colour, as those of several microscopes."""

import dataclasses

import numpy as np
import pytest
import torch

from expert_tasks import BLOBS, picture_case
from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Volume
from handful.methods.base import Method
from handful.methods.know_sam.method import KnowSam
from handful.methods.self_training.method import SelfTraining
from handful.tuning.loop import TrainConfig

QUICK = TrainConfig(iterations=8, learning_rate=2e-3, ema=0.9)
METHODS = (
    SelfTraining(encoder="none", channels=4, batch=4, side=32, initial="none", train=QUICK),
    KnowSam(encoder="none", channels=4, batch=4, side=32, train=QUICK),
)


def grey(case: Case) -> Case:
    image = case.read_image()
    return dataclasses.replace(case, image=Volume(image.array[:1], image.geometry))


@pytest.mark.parametrize("method", METHODS, ids=["self-training", "know-sam"])
@pytest.mark.parametrize("labelled", ["grey", "colour", "both"])
def test_grey_and_colour_may_be_mixed(method: Method, labelled: str, sam: Backbone):
    colour, other = [picture_case(seed) for seed in range(4)], [grey(picture_case(seed)) for seed in range(4, 8)]
    known = {"grey": other[:2], "colour": colour[:2], "both": [colour[0], other[0]]}[labelled]
    support = SupportSet(tuple(known), BLOBS, unlabelled=UnlabelledScans.of((*colour[2:], *other[2:])))
    segmenter = method.fit(support, sam)
    assert all(value.isfinite().all() for value in segmenter.learned().values() if torch.is_floating_point(value))
    for case in (colour[3], other[3]):
        assert np.isin(segmenter.predict(case.read_image()).array, (0, 1)).all()
