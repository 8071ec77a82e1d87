"""What every method of the catalogue promises."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.checkpoint import load, save
from handful.data.support import SupportSet
from handful.data.volume import LabelMap
from handful.errors import SettingsError
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import METHODS, build_method, method_settings
from phantoms import LABELS, phantom, phantom_case, support_set

QUICK = {
    "auto-sam": {"views": 2, "train.iterations": 80, "train.learning_rate": 1e-2},
    "ensemble": {
        "auto_sam.views": 2,
        "auto_sam.train.iterations": 30,
        "unet.channels": 8,
        "unet.side": 32,
        "unet.batch": 4,
        "unet.train.iterations": 80,
    },
    "few-shot-prompts": {
        "views": 2,
        "batch": 4,
        "train.iterations": 120,
        "train.learning_rate": 2e-3,
    },
    "interactive": {"rounds": 1, "error_head": True, "train.iterations": 100, "train.learning_rate": 2e-3},
    "lora": {"batch": 2, "train.iterations": 20},
    "unet": {"channels": 8, "batch": 4, "side": 32, "train.iterations": 150, "train.learning_rate": 5e-3},
}
"""Settings that fit a method to the phantoms in seconds; a method not named here is quick as it is."""

TRAINED = {"ensemble", "fate", "lora", "zero-shot"}
"""Methods that lean on what the backbone knows already: only one that was trained can serve them."""

everywhere = pytest.mark.parametrize("name", sorted(METHODS))
Fitted = Callable[[str], Segmenter]


def quick(name: str) -> Method:
    return build_method(name, QUICK.get(name, {}))


def briefly(name: str) -> Method:
    """The same, trained for two steps, for tests in which the answer need not be good."""
    settings = method_settings(METHODS[name]())
    trained = ["", *[f"{key}." for key, value in settings.items() if isinstance(value, dict)]]
    few = {f"{where}train.iterations": 2 for where in trained if "train" in settings.get(where[:-1], settings)}
    return build_method(name, QUICK.get(name, {}) | few)


@pytest.fixture(scope="module")
def fitted(sam: Backbone, handful_tiny: Backbone, request: pytest.FixtureRequest) -> Fitted:
    """Each method fitted once on three phantoms, for the tests that only look at the result."""
    done: dict[str, Segmenter] = {}

    def fit(name: str) -> Segmenter:
        if name == "interactive":
            done[name] = request.getfixturevalue("tuned")
            assert done[name].method == quick(name)
        elif name not in done:
            done[name] = quick(name).fit(support_set(3), handful_tiny if name in TRAINED else sam)
        return done[name]

    return fit


@pytest.fixture
def backbone(name: str, sam: Backbone, handful_tiny: Backbone) -> Backbone:
    """What the method of that name is fitted on."""
    return handful_tiny if name in TRAINED else sam


def mean_dice(found: LabelMap, truth: LabelMap) -> float:
    scores = []
    for value in truth.labels.values:
        a, b = found.array == value, truth.array == value
        scores.append(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return float(np.mean(scores))


@everywhere
def test_a_fitted_method_finds_the_labels_of_an_unseen_phantom(name: str, fitted: Fitted):
    image, truth = phantom(7)
    everything_ball = LabelMap(np.full_like(truth.array, 1), truth.geometry, truth.labels)
    assert mean_dice(fitted(name).predict(image), truth) > max(0.5, 2 * mean_dice(everything_ball, truth))


@everywhere
def test_the_answer_lies_on_the_very_grid_of_the_image(name: str, fitted: Fitted):
    image, _ = phantom(7)
    found = fitted(name).predict(image)
    assert found.geometry.shape == image.geometry.shape
    assert np.array_equal(found.geometry.affine, image.geometry.affine)
    assert found.labels == LABELS
    assert set(np.unique(found.array)) <= {0, *LABELS.values}


@everywhere
def test_forward_gives_one_map_a_label_at_slice_size(name: str, fitted: Fitted):
    assert fitted(name)(torch.rand(3, 1, 21, 34)).shape == (3, 2, 21, 34)


@everywhere
def test_slices_are_answered_one_by_one(name: str, fitted: Fitted, monkeypatch: pytest.MonkeyPatch):
    segmenter = fitted(name)  # before inference mode, in which nothing can be fitted
    # batching moves sums by 1e-7, which may tip an embedding kept in half precision over to its neighbour; so keep all
    monkeypatch.setattr(ImageEmbeddings, "to", lambda image, kind: image)
    slices = torch.rand(3, 1, 24, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = segmenter(slices)
        apart = torch.cat([segmenter(one) for one in slices.split(1)])
    assert torch.allclose(together, apart, atol=2e-3)


@everywhere
def test_one_seed_gives_one_result(name: str, backbone: Backbone):
    first, again = (briefly(name).fit(support_set(2), backbone).learned() for _ in range(2))
    assert again.keys() == first.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)


@everywhere
def test_fitting_leaves_the_backbone_as_it_was(name: str, backbone: Backbone):
    before, asks = backbone.digest(), [p.requires_grad for p in backbone.parameters()]
    briefly(name).fit(support_set(1), backbone)
    assert backbone.digest() == before
    assert [p.requires_grad for p in backbone.parameters()] == asks
    assert all(p.grad is None for p in backbone.parameters())


@everywhere
def test_fitting_leaves_the_scans_as_they_were(name: str, backbone: Backbone):
    support = support_set(1)
    image, reference = support.cases[0].read_image(), support.cases[0].read_reference()
    pixels, labels = image.array.copy(), reference.array.copy()
    briefly(name).fit(support, backbone)
    assert np.array_equal(image.array, pixels)
    assert np.array_equal(reference.array, labels)


@everywhere
def test_a_saved_segmenter_answers_exactly_as_before(name: str, backbone: Backbone, fitted: Fitted, tmp_path):
    segmenter = fitted(name)
    save(segmenter, tmp_path / "kept", method_name=name, method=quick(name), provenance={})
    slices = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(1))
    again = load(tmp_path / "kept", backbone)
    with torch.inference_mode():
        assert torch.equal(again(slices), segmenter(slices))
    image, _ = phantom(7)
    assert np.array_equal(again.predict(image).array, segmenter.predict(image).array)


@everywhere
def test_slices_of_several_sizes_make_one_support(name: str, backbone: Backbone):
    small, large = phantom_case(0), phantom_case(1)
    image, reference = large.read_image(), large.read_reference()
    shape = (image.geometry.shape[0] - 4, *image.geometry.shape[1:])
    geometry = dataclasses.replace(image.geometry, shape=shape)
    cut = dataclasses.replace(
        large,
        image=dataclasses.replace(image, array=image.array[:, :-4], geometry=geometry),
        reference=dataclasses.replace(reference, array=reference.array[:-4], geometry=geometry),
    )
    found = briefly(name).fit(SupportSet((small, cut), LABELS), backbone).predict(phantom(7)[0])
    assert found.array.shape == phantom(7)[0].geometry.shape


@everywhere
def test_settings_come_back_from_json(name: str):
    method = quick(name)
    assert build_method(name, json.loads(json.dumps(method_settings(method)))) == method


@everywhere
def test_an_unknown_setting_is_refused_by_name(name: str):
    with pytest.raises(SettingsError, match=r"colour.*settings are .*slicer"):
        build_method(name, {"colour": "blue"})


@everywhere
def test_a_plane_that_is_none_is_refused_with_what_was_said(name: str):
    with pytest.raises(SettingsError, match=r"slicer\.plane = 'oblique'"):
        build_method(name, {"slicer.plane": "oblique"})
