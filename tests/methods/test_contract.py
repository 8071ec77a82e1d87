"""What every method promises, in every form that it has: each is fitted once, for all questions that only ask."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from handful.backbones.base import ImageEmbeddings
from handful.backbones.cached import cached
from handful.checkpoint.model import load, save
from handful.data.support import SupportSet
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Segmenter
from handful.methods.catalog import METHODS, build_method, method_settings
from methods.variants import VARIANTS, Fits, narrower, support
from phantoms import LABELS, phantom, phantom_case, support_set


def variants(question: str = "", *, random: bool = False, among: Iterable[str] = VARIANTS) -> pytest.MarkDecorator:
    """The names of all variants to which a question applies, those of one variant for one worker."""
    possible = {name: VARIANTS[name] for name in among}
    asked = [name for name, one in possible.items() if question not in one.exempt and not (random and one.seed is None)]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in asked])


everywhere = pytest.mark.parametrize("name", sorted(METHODS))
SLICES = torch.rand(3, 1, 24, 28, generator=torch.Generator().manual_seed(0))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def answers_alike(one: Segmenter, other: Segmenter) -> bool:
    image, _ = phantom(7)
    with torch.inference_mode():
        same = torch.equal(one(SLICES), other(SLICES))
    return same and np.array_equal(one.predict(image).array, other.predict(image).array)


@torch.inference_mode()
def answers_nearly_alike(one: Segmenter, other: Segmenter) -> bool:
    found, expected = one(SLICES), other(SLICES)
    return bool((found - expected).abs().max() < 0.05 * expected.std())


def test_every_method_of_the_catalogue_is_among_the_variants():
    assert {variant.method for variant in VARIANTS.values()} == set(METHODS)


# What comes out.


@variants()
def test_the_prediction_lies_on_the_grid_of_the_image(name: str, fits: Fits):
    image, _ = phantom(7)
    found = fits(name).segmenter.predict(image)
    assert found.geometry.shape == image.geometry.shape
    assert np.array_equal(found.geometry.affine, image.geometry.affine)
    assert found.labels == LABELS
    assert set(np.unique(found.array)) <= {0, *LABELS.values}


@variants()
def test_forward_gives_one_map_a_label_at_slice_size(name: str, fits: Fits):
    assert fits(name).segmenter(torch.rand(3, 1, 21, 34)).shape == (3, 2, 21, 34)


@variants("alone")
def test_slices_are_segmented_one_by_one(name: str, fits: Fits, monkeypatch: pytest.MonkeyPatch):
    segmenter = fits(name).segmenter  # before inference mode, in which nothing can be fitted
    # batching moves sums by 1e-7, which may tip an embedding kept in half precision over to its neighbour; so keep all
    monkeypatch.setattr(ImageEmbeddings, "to", lambda image, kind: image)
    with torch.inference_mode():
        together = segmenter(SLICES)
        apart = torch.cat([segmenter(one) for one in SLICES.split(1)])
    assert torch.allclose(together, apart, atol=2e-3)


# What a fit leaves alone.


@variants()
def test_fitting_leaves_the_backbone_and_the_scans_as_they_were(name: str, fits: Fits):
    fit = fits(name)
    assert fit.backbone.digest() == fit.before.weights
    assert [p.requires_grad for p in fit.backbone.parameters()] == fit.before.trainable
    assert all(p.grad is None for p in fit.backbone.parameters())
    for case, pixels, labels in zip(fit.support.cases, fit.before.pixels, fit.before.labels, strict=True):
        assert np.array_equal(case.read_image().array, pixels)
        assert np.array_equal(case.read_reference().array, labels)


# What decides the result, and what does not.


@variants(among=METHODS)
def test_one_seed_gives_one_result(name: str, fits: Fits):
    fit = fits(name)
    torch.rand(3)  # the state of the global generator has no say
    assert equal(fit.method.fit(support(), fit.backbone).learned(), fit.learned)


@variants(random=True, among=METHODS)
def test_another_seed_gives_another_result(name: str, fits: Fits):
    fit = fits(name)
    other = VARIANTS[name].reseeded(7).fit(support(), fit.backbone).learned()
    assert not equal(other, fit.learned)


@variants("unlabelled")
def test_unlabelled_slices_change_nothing(name: str, fits: Fits):
    fit = fits(name)
    strange = support(unlabelled=lambda pixels: pixels.max() - pixels[:, ::-1])
    assert equal(fit.method.fit(strange, fit.backbone).learned(), fit.learned)


@variants()
def test_a_cache_round_the_backbone_changes_nothing(name: str, fits: Fits, tmp_path: Path):
    fit, exempt = fits(name), VARIANTS[name].exempt
    keeping = cached(fit.backbone, tmp_path)
    for _ in ("filled", "read") if name in METHODS else ("filled",):
        again = fit.method.fit(support(), keeping)
        assert "exactly" in exempt or equal(again.learned(), fit.learned)
    assert (answers_nearly_alike if "exactly" in exempt else answers_alike)(again, fit.segmenter)
    assert (keeping.misses > 0) == ("cached" not in exempt)


@variants("falls", random=True, among=[name for name in VARIANTS if name not in METHODS])
def test_the_loss_falls(name: str, fits: Fits):
    """Of the forms that test_learning leaves to make test-all; reported is the mean of the last twenty steps."""
    losses: dict[str, list[float]] = {}

    def note(step: int, total: int, words: str) -> None:
        if match := re.fullmatch(r"(.*)loss ([\d.]+)", words):
            losses.setdefault(match[1], []).append(float(match[2]))

    method = VARIANTS[name].longer(25)
    method.fit(support_set(2), fits(name).backbone, Run(report=note))
    assert any(len(means) >= 10 for means in losses.values())
    for whose, means in losses.items():
        assert len(means) < 10 or means[-1] < 0.97 * means[4], whose


# Half-done and done work.


class KilledError(Exception):
    pass


class Killed:
    """Counts reports, and ends the job at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.reports = at, 0

    def __call__(self, step: int, total: int, note: str) -> None:
        self.reports += 1
        if self.reports == self.at:
            raise KilledError


@variants("killed", random=True)
def test_a_fit_that_is_killed_twice_goes_on_to_the_very_same_weights(name: str, fits: Fits, tmp_path: Path):
    fit = fits(name)
    first, second = 1 + fit.reports // 3, 1 + 2 * fit.reports // 3

    def go_on(killed: Killed) -> Segmenter:
        return fit.method.fit(support(), fit.backbone, Run(scratch=tmp_path, report=killed, save_every_s=0.0))

    with pytest.raises(KilledError):
        go_on(Killed(at=first))
    with pytest.raises(KilledError):
        go_on(Killed(at=1 + second - first))
    last = Killed()
    assert equal(go_on(last).learned(), fit.learned)
    assert last.reports == 1 + fit.reports - second, "no step is done twice"


@variants(random=True, among=[name for name in METHODS if name != "ensemble"])
@pytest.mark.parametrize("other", ["settings", "cases"])
def test_half_done_work_of_another_fit_is_not_taken_up(name: str, other: str, fits: Fits, tmp_path: Path):
    fit = fits(name)
    run = Run(scratch=tmp_path, report=Killed(at=fit.reports // 2), save_every_s=0.0)
    with pytest.raises(KilledError):
        fit.method.fit(support(), fit.backbone, run)
    method = VARIANTS[name].reseeded(7) if other == "settings" else fit.method
    cases = SupportSet((narrower(phantom_case(1)),), LABELS) if other == "cases" else support()
    undisturbed, killed = (method.fit(cases, fit.backbone, one) for one in (Run(), Run(scratch=tmp_path)))
    assert equal(killed.learned(), undisturbed.learned())


@variants()
def test_a_saved_segmenter_predicts_exactly_as_before(name: str, fits: Fits, tmp_path: Path):
    fit, variant = fits(name), VARIANTS[name]
    save(fit.segmenter, tmp_path / "kept", method_name=variant.method, method=fit.method, provenance={})
    assert answers_alike(load(tmp_path / "kept", fit.backbone), fit.segmenter)


@variants(random=True)
def test_random_values_are_restored_and_not_sampled_again(name: str, fits: Fits):
    fit = fits(name)
    learned = {key: value.clone() for key, value in fit.learned.items()}
    restored = VARIANTS[name].reseeded(9).restore(LABELS, fit.segmenter.slicer, fit.backbone, learned)
    assert equal(restored.learned(), fit.learned)
    assert answers_alike(restored, fit.segmenter)


# Settings.


@variants()
def test_settings_come_back_from_json(name: str):
    method = VARIANTS[name].build()
    assert build_method(VARIANTS[name].method, json.loads(json.dumps(method_settings(method)))) == method


@everywhere
def test_an_unknown_setting_is_refused_by_name(name: str):
    with pytest.raises(SettingsError, match=r"colour.*settings are .*slicer"):
        build_method(name, {"colour": "blue"})


@everywhere
def test_an_unknown_plane_is_refused_with_its_value(name: str):
    with pytest.raises(SettingsError, match=r"slicer\.plane = 'oblique'"):
        build_method(name, {"slicer.plane": "oblique"})


@variants()
def test_probabilities_agree_with_the_label_map(name: str, fits: Fits):
    """Where no pieces are removed and nothing is voted, the most probable class is that of the label map."""
    segmenter, image = fits(name).segmenter, phantom(7)[0]
    into = np.zeros((len(LABELS), *image.geometry.shape), np.float32)
    segmenter.add_probabilities(image, into)
    assert into.min() >= 0
    assert into.sum(axis=0).max() <= 1 + 1e-5
    if not any(word in name for word in ("planes", "seeds", "ensemble", "auto", "largest")):
        classes = np.concatenate([1 - into.sum(axis=0, keepdims=True), into]).argmax(axis=0)
        found = np.array([0, *LABELS.values])[classes]
        assert (found != segmenter.predict(image).array).mean() < 0.002  # equal probabilities
