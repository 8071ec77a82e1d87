import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import LabelError, SettingsError
from handful.methods.few_shot_prompts import method as few_shot
from handful.methods.few_shot_prompts.method import FewShotPrompts, FewShotSegmenter
from handful.methods.few_shot_prompts.tokens import pool
from handful.tuning.loop import TrainConfig
from phantoms import LABELS, phantom, phantom_case, support_set

SHORT = TrainConfig(iterations=2)
THREE = Labels((1, 2, 3), ("red", "green", "blue"))


def moving(iterations: int) -> TrainConfig:
    return TrainConfig(iterations=iterations, learning_rate=2e-3)


# The toy: every class has a feature vector of its own, planted where the slice shows the class.


def planted(backbone: Backbone) -> Backbone:
    """The backbone with features that say at every place which of three classes lies there."""
    codes = torch.randn(4, backbone.channels, generator=torch.Generator().manual_seed(5))
    codes[0] = 0

    class Planted(type(backbone)):  # type: ignore[misc]
        def _encode(self, slices: torch.Tensor) -> ImageEmbeddings:
            classes = (slices * 3).round().long()
            cover = torch.cat([(classes == c).float() for c in range(4)], dim=1)
            cells = self.to_model_frame(cover, self.feature_side)
            features = torch.einsum("nkhw,kc->nchw", cells, codes)
            noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(int(slices.sum())))
            image = super()._encode(slices)
            return replace(image, features=(*map(torch.zeros_like, image.features[:-1]), features + 0.2 * noise))

    toy = backbone.fork()
    toy.__class__ = Planted
    return toy


def toy_case(seed: int) -> Case:
    """One 48 × 48 slice with a disc of each class, anywhere."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:48, :48]
    classes = np.zeros((48, 48), dtype=np.int16)
    for label in rng.permutation(3) + 1:
        (y, x), radius = rng.uniform(8, 40, 2), rng.uniform(6, 10)
        classes[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = label
    geometry = Geometry((48, 48, 1), np.diag([1.0, 1.0, 5.0, 1.0]))
    image = Volume((classes / 3).astype(np.float32)[None, :, :, None], geometry)
    return Case(name=f"toy-{seed}", image=image, reference=LabelMap(classes[..., None], geometry, THREE), labels=THREE)


def mean_iou(segmenter: FewShotSegmenter, seeds: range) -> float:
    scores = []
    for seed in seeds:
        case = toy_case(seed)
        found, truth = segmenter.predict(case.read_image()).array, case.read_reference().array
        scores += [((found == c) & (truth == c)).sum() / max(1, ((found == c) | (truth == c)).sum()) for c in (1, 2, 3)]
    return float(np.mean(scores))


@pytest.fixture(scope="module", params=["prompt", pytest.param("query", marks=pytest.mark.learning)])
def toy(request: pytest.FixtureRequest, large_sam: Backbone) -> FewShotSegmenter:
    method = FewShotPrompts(
        slicer=Slicer(window=(0.0, 1.0)),
        variant=request.param,
        background=False,
        views=1,
        batch=5,
        train=moving(150),
    )
    return method.fit(SupportSet(tuple(toy_case(seed) for seed in range(5)), THREE), planted(large_sam))


def asked_with(segmenter: FewShotSegmenter, vectors: torch.Tensor) -> FewShotSegmenter:
    tokens = replace(segmenter.tokens, vectors=vectors)
    parts = (segmenter.labels, segmenter.slicer, segmenter.backbone, segmenter.method, segmenter.decoder)
    return FewShotSegmenter(*parts, tokens)


def test_right_embeddings_find_their_class_on_unseen_slices(toy: FewShotSegmenter):
    assert mean_iou(toy, range(100, 110)) > 0.6


def test_embeddings_of_the_wrong_class_find_the_wrong_class(toy: FewShotSegmenter):
    tokens = toy.tokens
    other = {c: tokens.vectors[tokens.classes == (c + 1) % 3].mean(0) for c in range(3)}
    wrong = torch.stack([other[int(c)] for c in tokens.classes])
    assert mean_iou(asked_with(toy, wrong), range(100, 110)) < 0.15


def test_empty_embeddings_find_little(toy: FewShotSegmenter):
    right = mean_iou(toy, range(100, 110))
    assert mean_iou(asked_with(toy, torch.zeros_like(toy.tokens.vectors)), range(100, 110)) < right / 2


# What trains, and what the encoder is asked.


@pytest.mark.parametrize("model", ["sam", "sam2"])
def test_only_the_used_parts_of_the_decoder_train(model: str, request: pytest.FixtureRequest):
    backbone = request.getfixturevalue(model)
    decoder = dict(backbone.mask_decoder.named_parameters())
    method = FewShotPrompts(views=1, batch=2, train=SHORT)
    weights = {
        key.removeprefix("decoder/mask_decoder."): value
        for key, value in method.fit(support_set(1), backbone).learned().items()
        if key.startswith("decoder/")
    }
    unused = ("iou_prediction_head", "output_hypernetworks_mlps.1", "conv_s0", "conv_s1", "pred_obj_score_head")
    assert weights.keys() <= decoder.keys()
    assert not [key for key in weights if key.startswith(unused)]
    assert not torch.equal(weights["upscale_conv2.weight"], decoder["upscale_conv2.weight"])


def test_gradients_reach_the_decoder_and_nothing_else(sam: Backbone):
    segmenter = FewShotPrompts(views=1, batch=2, train=SHORT).fit(support_set(1), sam)
    segmenter.zero_grad()
    segmenter(torch.rand(1, 1, 24, 28)).sum().backward()
    reached = {name for name, p in segmenter.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("mask_decoder" in name for name in reached)
    assert all("mask_decoder" in name for name in reached)
    assert all(p.grad is None for p in sam.parameters())


@pytest.mark.parametrize("views", [0, 1, 3])
def test_each_view_of_each_slice_is_encoded_once(views: int, sam: Backbone):
    seen: list[int] = []
    hook = sam.image_encoder.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(out[0])), with_kwargs=True
    )
    try:
        FewShotPrompts(views=views, batch=2, train=moving(5)).fit(support_set(2), sam)
    finally:
        hook.remove()
    slices = sum(len(part.index) for part in support_set(2).slices(Slicer().resolve([phantom(0)[0]])))
    assert sum(seen) == slices * max(1, views)


def test_no_training_leaves_the_decoder_as_it_is(sam: Backbone):
    learned = FewShotPrompts(views=1, train=TrainConfig(iterations=0)).fit(support_set(1), sam).learned()
    decoder = dict(sam.mask_decoder.named_parameters())
    assert torch.equal(learned["decoder/mask_decoder.upscale_conv2.weight"], decoder["upscale_conv2.weight"])


def test_sam2_does_not_fall_back_on_its_untrained_masks(sam2: Backbone):
    segmenter = FewShotPrompts(views=1, batch=2, train=SHORT).fit(support_set(1), sam2)
    slices = torch.rand(2, 1, 24, 28)
    with torch.inference_mode():
        asked_to_infer = segmenter.eval()(slices)
        asked_to_train = segmenter.train()(slices)
    assert torch.equal(asked_to_infer, asked_to_train)


@pytest.mark.parametrize(
    "option",
    [
        {"location": True},
        {"parts": 3},
        {"adapter": True},
        {"type_embedding": True},
        {"background": True},
        {"loss": "dice-focal"},
        {"dice": "slice"},
        {"target": "soft"},
        {"leave_out": "slice"},
        {"max_tokens": 2},
    ],
    ids=str,
)
def test_every_option_changes_the_prediction_and_is_restored(option: dict, sam: Backbone):
    slices = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(0))
    method = FewShotPrompts(views=1, batch=3, background=False, train=SHORT)
    plain = method.fit(support_set(2), sam)
    changed_method = replace(method, **option)
    changed = changed_method.fit(support_set(2), sam)
    again = changed_method.restore(changed.labels, changed.slicer, sam, changed.learned())
    with torch.inference_mode():
        assert changed(slices).shape == (2, 2, 24, 28)
        assert not torch.allclose(changed(slices), plain(slices))
        assert torch.equal(changed(slices), again(slices))


def test_rare_class_weight_changes_the_training(sam: Backbone):
    even, balanced = (
        FewShotPrompts(views=1, batch=3, rare_class_weight=rare_class_weight, train=SHORT)
        .fit(support_set(2), sam)
        .learned()
        for rare_class_weight in (0.0, 0.5)
    )
    assert any(not torch.equal(even[name], balanced[name]) for name in even)


def test_a_negative_balance_is_refused():
    with pytest.raises(SettingsError, match="rare_class_weight must be 0 or more, got -1"):
        FewShotPrompts(rare_class_weight=-1)


def test_a_single_labelled_slice_is_enough(sam: Backbone):
    case = phantom_case(0)
    reference = case.read_reference()
    only = np.full_like(reference.array, IGNORE)
    only[:, 2] = reference.array[:, 2]
    support = SupportSet((replace(case, reference=replace(reference, array=only)),), LABELS)
    segmenter = FewShotPrompts(views=2, batch=2, train=SHORT).fit(support, sam)
    assert {(case, index) for case, index, _ in segmenter.sources()} == {
        ("phantom-0", 3)
    }  # the slices run to the feet, j to the head


# The embeddings and where they come from.


def test_every_embedding_names_its_case_slice_and_label(sam: Backbone):
    segmenter = FewShotPrompts(views=2, batch=2, background=False, train=SHORT).fit(support_set(2), sam)
    image, reference = phantom(1)
    slices = Slicer().view(image).of(reference.array)
    held = [(index, name) for case, index, name in segmenter.sources() if case == "phantom-1"]
    expected = [
        (index, name)
        for index in range(len(slices))
        for value, name in LABELS.as_dict().items()
        if (slices[index] == value).any()
    ]
    assert sorted(held) == sorted(expected)
    assert len(segmenter.sources()) == len(segmenter.tokens.vectors)


def test_new_slices_extend_a_segmenter_without_training(sam: Backbone):
    one = FewShotPrompts(views=2, batch=2, train=SHORT).fit(support_set(1), sam)
    more = one.extend(SupportSet((phantom_case(5),), LABELS))
    assert {case for case, _, _ in one.sources()} == {"phantom-0"}
    assert {case for case, _, _ in more.sources()} == {"phantom-0", "phantom-5"}
    decoder = {key: value for key, value in one.learned().items() if key.startswith("decoder/")}
    assert all(torch.equal(more.learned()[key], value) for key, value in decoder.items())
    slices = torch.rand(1, 1, 24, 28)
    assert not torch.equal(one(slices), more(slices))


def test_slices_with_other_labels_cannot_extend_a_segmenter(sam: Backbone):
    one = FewShotPrompts(views=1, batch=2, train=SHORT).fit(support_set(1), sam)
    with pytest.raises(LabelError, match="ball"):
        one.extend(SupportSet((toy_case(0),), THREE))


def test_pooling_weighs_cells_by_the_share_inside():
    features = torch.arange(8.0).reshape(2, 2, 2)
    region = torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    assert torch.allclose(pool(features, region), torch.tensor([[1 / 3, 4 + 1 / 3]]))


def test_a_region_of_two_textures_has_two_parts():
    features = torch.zeros(3, 4, 4)
    features[0, :, :2], features[1, :, 2:] = 1, 1
    parts = pool(features, torch.ones(4, 4), parts=2)
    assert sorted(parts.tolist()) == [[0, 1, 0], [1, 0, 0]]


def test_a_plain_region_has_one_part_whatever_the_setting():
    assert pool(torch.ones(3, 4, 4), torch.ones(4, 4), parts=5).tolist() == [[1, 1, 1]]


def test_location_adds_the_mean_position():
    position = torch.zeros(3, 4, 4)
    position[2] = 7
    assert pool(torch.ones(3, 4, 4), torch.ones(4, 4), position=position).tolist() == [[1, 1, 8]]


def test_a_slice_is_not_prompted_with_its_own_case_while_there_are_others(sam: Backbone):
    tokens = FewShotPrompts(views=1, train=TrainConfig(iterations=0)).fit(support_set(2), sam).tokens
    index = int(tokens.slices[0])
    others = tokens[tokens.farthest(0, 0, index, 0)]
    assert set(others.cases.tolist()) == {1}
    own_too = tokens[tokens.farthest(0, 0, index, 0, leave_out="slice")]
    assert 0 in own_too.cases
    assert (0, index) not in set(zip(own_too.cases.tolist(), own_too.slices.tolist(), strict=True))


def test_a_single_case_is_prompted_with_its_other_slices(sam: Backbone):
    tokens = FewShotPrompts(views=1, train=TrainConfig(iterations=0)).fit(support_set(1), sam).tokens
    index = int(tokens.slices[tokens.classes == 0][0])
    assert index not in tokens[tokens.farthest(0, 0, index, 0)].slices


def test_prompts_have_equally_many_embeddings_of_each_class(sam: Backbone):
    tokens = FewShotPrompts(views=1, train=TrainConfig(iterations=0)).fit(support_set(3), sam).tokens
    assert tokens.evenly(4).shape == (3, 4, sam.channels)  # two labels and the background
    most = int(tokens.classes.bincount().max())
    assert tokens.evenly(100).shape == (3, most, sam.channels)
    assert torch.equal(tokens.evenly(100)[0].unique(dim=0), tokens.vectors[tokens.classes == 0].unique(dim=0))


def test_a_2d_picture_in_colour_is_segmented(sam: Backbone):
    grey = toy_case(3)
    image = grey.read_image()
    colour = replace(grey, image=replace(image, array=np.repeat(image.array, 3, axis=0)))
    segmenter = FewShotPrompts(views=2, batch=2, train=SHORT).fit(SupportSet((colour,), THREE), sam)
    assert segmenter.predict(colour.read_image()).array.shape == (48, 48, 1)


def test_settings_cannot_be_changed_after_they_were_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FewShotPrompts().views = 3


def test_classes_are_decoded_a_few_at_a_time_with_the_same_result(sam: Backbone, monkeypatch: pytest.MonkeyPatch):
    segmenter = FewShotPrompts(views=1, batch=2, train=SHORT).fit(support_set(1), sam)
    found = {}
    for most in (16, 1):
        monkeypatch.setattr(few_shot, "AT_ONCE", most)
        segmenter.zero_grad()
        logits = segmenter(torch.rand(1, 1, 24, 28, generator=torch.Generator().manual_seed(0)))
        logits.square().mean().backward()
        gradients = [p.grad for p in segmenter.parameters() if p.grad is not None]
        with torch.inference_mode():
            again = segmenter(torch.rand(1, 1, 24, 28, generator=torch.Generator().manual_seed(0)))
        found[most] = [logits.detach(), again, *gradients]
    for together, apart in zip(found[16], found[1], strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)
