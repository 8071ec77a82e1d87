"""What each method counts as the work of its fit, and how its time is estimated from that. No test depends on speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.data.slicing import Slicer
from handful.data.unlabelled import UnlabelledScans
from handful.jobs.progress import Run
from handful.methods import cost
from handful.methods.auto.method import Auto
from handful.methods.base import Work
from handful.methods.catalog import METHODS, build_method
from handful.methods.cost import FitCost, Rates, estimate_fit, measure_rates, total_cost
from methods.variants import BACKBONES, VARIANTS, support
from phantoms import LABELS, geometry, phantom_case, support_set
from whole import build_whole

SLICES = 6
"""Of a phantom."""
NUMBERS = [len(Slicer(plane=plane).grid(geometry())) for plane in ("coronal", "sagittal")]
"""Slices of a phantom in these planes."""


@pytest.fixture(scope="module")
def video() -> Backbone:
    return tiny_models.tiny_sam2_video(side=64)


@contextmanager
def counted_encodings(backbone: Backbone) -> Iterator[list[int]]:
    counts: list[int] = []
    hook = backbone.image_encoder.register_forward_hook(
        lambda module, args, kwargs, out: counts.append(len((args or tuple(kwargs.values()))[0])), with_kwargs=True
    )
    try:
        yield counts
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "name",
    ["auto-sam", "auto-sam-unet", "fate", "few-shot-prompts", "interactive", "interactive, pruned", "zero-shot"],
)
def test_a_fit_encodes_as_many_slices_and_takes_as_many_steps_as_the_method_counts(name: str):
    backbone = BACKBONES[VARIANTS[name].backbone]()
    method, shown, notes = VARIANTS[name].build(), support(), []
    with counted_encodings(backbone) as encoded:
        method.fit(shown, backbone, Run(report=lambda step, total, note: notes.append(note)))
    (work,) = method.work(shown, backbone)
    assert work.encoded == sum(encoded)
    assert work.steps == sum(note.startswith("loss") for note in notes)


@pytest.mark.parametrize("name", [*sorted(set(METHODS) - {"auto"}), "interactive, pruned"])
def test_every_method_has_an_estimate(name: str, video: Backbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cost, "MORE_STEPS", 2)
    found = estimate_fit(VARIANTS[name].build(), support(), video)
    assert isinstance(found, FitCost)
    assert found.fit_s >= 0
    assert found.predict_s is not None
    assert found.predict_s > 0


def test_a_training_that_is_shorter_than_its_estimate_has_none(video: Backbone):
    assert estimate_fit(build_whole("few-shot-prompts", {"train.iterations": 9}), support_set(1), video) is None


def test_auto_cannot_say_its_work(video: Backbone):
    assert estimate_fit(Auto(), support_set(1), video) is None


def test_views_planes_seeds_and_members_multiply_the_work(video: Backbone):
    shown = support_set(2)
    plain = build_whole("few-shot-prompts", {"views": 3, "train.iterations": 7})
    assert [(work.encoded, work.steps) for work in plain.work(shown, video)] == [(2 * SLICES * 3, 7)]
    seeds = build_whole("few-shot-prompts", {"views": 1, "train.iterations": 7, "seeds": 3})
    assert [(work.encoded, work.steps) for work in seeds.work(shown, video)] == 3 * [(2 * SLICES, 7)]
    planes = build_whole("fate", {"planes": "coronal,sagittal"})
    assert [work.encoded for work in planes.work(shown, video)] == [2 * n for n in NUMBERS]
    ensemble = build_whole(
        "ensemble", {"auto_sam_unet.views": 2, "auto_sam_unet.train.iterations": 5, "unet.train.iterations": 9}
    )
    works = ensemble.work(shown, video)
    assert [(work.encoded, work.steps) for work in works] == [(2 * SLICES * 2, 5), (0, 9), (2 * SLICES, 0)]


def test_self_training_counts_its_first_labels_and_the_teacher(video: Backbone):
    settings = {"initial": "fate", "train.iterations": 100, "supervised": 0.2, "encoder": "none", "channels": 4}
    method = build_whole("self-training", settings)
    alone, shown = support_set(1), support_set(1)
    shown = replace(shown, unlabelled=UnlabelledScans.of((phantom_case(7), phantom_case(8))))
    assert [(work.steps, work.segmented) for work in method.work(alone, video)] == [(100, 0)]
    first, own = method.work(shown, video)
    assert (first.encoded, first.segmented) == (SLICES, 2 * SLICES)
    assert own.steps == 20 + 2 * 80


def test_a_crop_is_taken_before_the_work_is_counted(video: Backbone):
    cropped = build_method("unet", {"roi_margin": 1.2, "train.iterations": 3, "side": 32})
    whole = build_whole("unet", {"train.iterations": 3, "side": 32})
    (small,), (large,) = (method.work(support_set(2), video) for method in (cropped, whole))
    assert small.size < large.size


def test_the_total_is_the_sum_of_counts_times_rates(video: Backbone):
    (work,) = build_whole("few-shot-prompts", {"views": 2, "train.iterations": 5}).work(support_set(2), video)
    work = replace(work, segmented=10)
    grid = support_set(1).facts[0].geometry
    found = total_cost([(work, Rates(2.0, 3.0, 0.5)), (work, Rates(0.0, 1.0, 0.25))], [grid, grid], "cpu")
    assert found.fit_s == (24 * 2 + 5 * 3 + 10 * 0.5) + (5 + 10 * 0.25)
    assert found.predict_s == SLICES * 0.75
    assert str(found) == "about 76 s to fit on this CPU (48 slices to encode, 10 steps), then 4 s to predict one scan"


def test_one_step_is_enough_where_steps_are_slow(video: Backbone, monkeypatch: pytest.MonkeyPatch):
    (work,) = build_whole("unet", {"side": 32, "encoder": "none", "channels": 4}).work(support_set(1), video)
    monkeypatch.setattr(cost, "SLOW_S", 0.0)
    rates = measure_rates(work, video)
    assert rates.step > 0
    assert rates.segmented is None
    found = total_cost([(work, rates)], [support_set(1).facts[0].geometry], "cpu")
    assert "to predict" not in str(found)


def test_the_estimate_leaves_the_cache_and_the_weights_alone(video: Backbone, tmp_path: Path):
    before, keeping = video.digest(), cached(video, tmp_path)
    assert estimate_fit(build_whole("few-shot-prompts", {"train.iterations": 20}), support_set(1), keeping) is not None
    assert video.digest() == before
    assert keeping.misses == 0


def test_work_is_of_the_largest_slices():
    work = Work.of(build_whole("nearest-slice", {}), support())
    assert work.labels == len(LABELS)
    assert work.size == Slicer().grid(geometry()).size
