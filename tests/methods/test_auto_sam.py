import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.sam import SamBackbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE
from handful.errors import CheckpointError, LabelError, SettingsError
from handful.jobs.progress import Run
from handful.methods.auto_sam.heads import Head, VitHead
from handful.methods.auto_sam.method import AutoSam
from handful.methods.auto_sam.unet import AutoSamUNet
from handful.methods.encoded_support import with_pixels
from handful.tuning.loop import TrainConfig
from handful.tuning.trainable import count_trainable
from methods.variants import VARIANTS, Fits
from phantoms import LABELS, phantom, phantom_case, support_set

SHORT = TrainConfig(iterations=2)
FORMS = [
    {"head": "vit"},
    {"head": "vit", "shared_pass": False},
    {"head": "vit", "as_published": True},
    {"head": "cnn"},
    {"head": "cnn", "as_published": True},
    {"head": "unet"},
    {"head": "linear"},
    {"head": "linear", "relu_out": True},
]
everywhere = pytest.mark.parametrize("form", FORMS, ids=str)
on_both = pytest.mark.parametrize("model", ["sam", "sam2"])


def head_of(backbone: Backbone, classes: int = 3, **form) -> Head:
    return method_of(**form).new_head(backbone, classes)


def method_of(head: str, **form) -> AutoSam | AutoSamUNet:
    return AutoSamUNet(**form) if head == "unet" else AutoSam(head=head, **form)


def embeddings(backbone: Backbone, n: int = 2) -> ImageEmbeddings:
    with torch.no_grad():
        return backbone.encode(torch.rand(n, 1, 24, 28))


# The heads at their true size.


@pytest.fixture(scope="module")
def vit_b() -> Backbone:
    """SAM ViT-B's decoder and feature width, behind an encoder of one narrow layer."""
    config = SamConfig(
        vision_config={"image_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
        prompt_encoder_config={"image_size": 64},
    )
    return SamBackbone(SamModel(config), "ViT-B's decoder")


def size_of(head: Head) -> int:
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize(
    ("head", "on_handful_tiny", "on_sam"),
    [
        ("unet", (1500, 2e-3), (1500, 2e-3)),
        ("vit", (1500, 2e-3), (840, 5e-4)),
        ("linear", (1500, 2e-3), (840, 5e-4)),
        ("cnn", (1500, 1e-3), (840, 5e-4)),
    ],
)
def test_a_head_learns_as_suits_it_and_the_backbone(
    head: str, on_handful_tiny: tuple[int, float], on_sam: tuple[int, float], handful_tiny: Backbone, sam: Backbone
):
    for backbone, (steps, rate) in ((handful_tiny, on_handful_tiny), (sam, on_sam)):
        train = method_of(head).resolved(backbone).train
        assert (train.iterations, train.learning_rate, train.weight_decay) == (steps, rate, 1e-4)
    chosen = replace(method_of(head), train=TrainConfig(iterations=9, learning_rate=3e-4))
    assert chosen.resolved(sam) == chosen


@pytest.mark.parametrize(
    ("form", "whole", "trainable"),
    [
        ({"head": "vit", "as_published": True}, 3_780_002, 3_646_880),
        ({"head": "vit"}, 3_506_048, 3_506_048),
        ({"head": "vit", "shared_pass": False}, 3_506_048, 3_506_048),
        ({"head": "cnn"}, 20_686_340, 20_686_340),
        ({"head": "linear"}, 75_140, 75_140),
        ({"head": "linear", "as_published": True}, 75_140, 75_140),
    ],
    ids=str,
)
def test_heads_have_the_published_number_of_parameters(form: dict, whole: int, trainable: int, vit_b: Backbone):
    head = head_of(vit_b, classes=4, **form)
    assert size_of(head) == whole
    assert count_trainable(head) == trainable


def test_the_published_vit_head_takes_sams_transformer_and_leaves_its_tokens(vit_b: Backbone):
    as_published, mended = head_of(vit_b, head="vit", as_published=True), head_of(vit_b, head="vit")
    decoder = dict(vit_b.mask_decoder.named_parameters())
    for head in (as_published, mended):
        for name, value in head.transformer.named_parameters(prefix="transformer"):
            assert torch.equal(value, decoder[name])
    assert torch.equal(mended.position, vit_b.position_encoding())
    assert as_published.position.shape == vit_b.position_encoding().shape
    assert not torch.allclose(as_published.position, vit_b.position_encoding())


# What looks at what.


@pytest.mark.parametrize(
    ("form", "images"),
    [({"head": "vit"}, 2), ({"head": "vit", "shared_pass": False}, 6), ({"head": "vit", "as_published": True}, 6)],
    ids=str,
)
@on_both
def test_all_classes_take_one_pass_and_only_the_others_copy_the_image(
    form: dict, images: int, model: str, request: pytest.FixtureRequest
):
    backbone = request.getfixturevalue(model)
    head, passes = head_of(backbone, classes=3, **form), []
    norm_of_image = head.transformer.layers[0].layer_norm4
    norm_of_image.register_forward_hook(lambda module, args, out: passes.append(out.shape[0] * out.shape[1]))
    head(embeddings(backbone, n=2))
    assert passes == [images]


def both_ways(backbone: Backbone, classes: int) -> tuple[VitHead, VitHead]:
    """One set of weights, asked in one pass and class by class."""
    shared, apart = (head_of(backbone, classes, head="vit", shared_pass=one) for one in (True, False))
    apart.load_state_dict(shared.state_dict())
    return shared, apart


@on_both
@torch.no_grad()
def test_one_class_alone_is_the_same_in_a_shared_pass_and_apart(model: str, request: pytest.FixtureRequest):
    backbone = request.getfixturevalue(model)
    shared, apart = both_ways(backbone, classes=1)
    image = embeddings(backbone)
    assert torch.allclose(shared(image), apart(image), atol=1e-5)


@torch.no_grad()
def test_a_shared_pass_is_as_many_passes_where_tokens_cannot_speak_to_each_other(sam: Backbone):
    shared, apart = both_ways(sam, classes=3)
    image = embeddings(sam)
    assert not torch.allclose(shared(image), apart(image), atol=1e-3)
    for head in (shared, apart):
        for layer in head.transformer.layers:
            for meeting in (layer.self_attn, layer.cross_attn_image_to_token):
                meeting.out_proj.weight.zero_()
    assert torch.allclose(shared(image), apart(image), atol=1e-5)


@torch.no_grad()
def test_classes_hear_each_other_in_a_shared_pass_only(sam: Backbone):
    shared, apart = both_ways(sam, classes=3)
    image = embeddings(sam)
    before = [head(image)[:, :2] for head in (shared, apart)]
    for head in (shared, apart):
        head.class_tokens[2] += 1
    after = [head(image)[:, :2] for head in (shared, apart)]
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    assert torch.allclose(before[1], after[1], atol=1e-6)


@pytest.mark.parametrize("form", [{"head": "vit"}, {"head": "vit", "shared_pass": False}], ids=str)
@torch.no_grad()
def test_the_order_of_classes_is_that_of_their_tokens_and_nothing_else(form: dict, sam: Backbone):
    head, image = head_of(sam, **form), embeddings(sam)
    before = head(image)
    head.class_tokens.copy_(head.class_tokens[[2, 0, 1]])
    assert torch.allclose(head(image), before[:, [2, 0, 1]], atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [{"head": "vit"}, {"head": "vit", "as_published": True}, {"head": "cnn"}, {"head": "linear"}, {"head": "unet"}],
    ids=str,
)
@torch.no_grad()
def test_every_head_uses_all_levels_of_sam2(form: dict, sam2: Backbone):
    head, image = head_of(sam2, **form), embeddings(sam2)
    before = head(image)
    for level in range(3):
        features = [f.flip(-1) if place == level else f for place, f in enumerate(image.features)]
        assert not torch.allclose(head(replace(image, features=tuple(features))), before, atol=1e-3)


@on_both
@torch.no_grad()
def test_the_unet_head_takes_slices_that_are_finer_than_the_embeddings(model: str, request: pytest.FixtureRequest):
    backbone = request.getfixturevalue(model)
    slices, levels = torch.rand(2, 1, 90, 100), [*backbone.encode(torch.rand(1, 1, 9, 9)).features]
    coarse = max(level.shape[-1] for level in levels)
    method = AutoSamUNet()
    assert [method.needs_slices(edge, backbone) for edge in (coarse, coarse + 1)] == [False, True]
    assert method.new_head(backbone, 3).pixels == 0
    head = method.new_head(backbone, 3, with_slices=True)
    image = with_pixels(backbone, slices, backbone.encode(slices), head.pixels)
    assert len(image.features) == len(levels) + 1
    before = head(image)
    assert before.shape[-1] == head.pixels > coarse
    for level in range(len(image.features)):
        features = [f.flip(-1) if place == level else f for place, f in enumerate(image.features)]
        assert not torch.allclose(head(replace(image, features=tuple(features))), before, atol=1e-3)


@torch.no_grad()
def test_the_cnn_passes_on_what_it_sees_where_the_published_one_lets_it_fade(sam: Backbone):
    image = embeddings(sam, n=2)

    def difference(as_published: bool) -> float:
        one, other = head_of(sam, head="cnn", as_published=as_published)(image)
        return float((one - other).std())

    assert difference(as_published=False) > 50 * difference(as_published=True)


@torch.no_grad()
def test_the_published_relu_lets_no_logit_be_negative(sam: Backbone):
    image = embeddings(sam)
    plain, cut = head_of(sam, head="linear")(image), head_of(sam, head="linear", relu_out=True)(image)
    assert plain.min() < 0
    assert torch.equal(cut, plain.clamp_min(0))
    assert torch.equal(head_of(sam, head="linear", as_published=True)(image), cut)


# What trains.


@pytest.mark.parametrize("name", [name for name, one in VARIANTS.items() if one.method.startswith("auto-sam")])
def test_gradients_reach_the_head_and_nothing_else(name: str, fits: Fits):
    segmenter = fits(name).segmenter
    segmenter.zero_grad()
    segmenter(torch.rand(1, 1, 24, 28)).square().sum().backward()
    reached = {name for name, p in segmenter.named_parameters() if p.grad is not None and p.grad.any()}
    segmenter.zero_grad()
    assert reached
    assert all(name.startswith("head.") for name in reached)


@pytest.mark.parametrize("views", [0, 1, 3])
def test_each_view_of_each_slice_is_encoded_once(views: int, sam: Backbone):
    seen: list[int] = []
    hook = sam.image_encoder.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(out[0])), with_kwargs=True
    )
    try:
        AutoSam(head="linear", views=views, batch=2, train=TrainConfig(iterations=5)).fit(support_set(2), sam)
    finally:
        hook.remove()
    slices = sum(len(part.index) for part in support_set(2).slices(Slicer().resolve([phantom(0)[0]])))
    assert sum(seen) == slices * max(1, views)


def test_a_head_of_another_form_is_not_restored(sam: Backbone):
    segmenter = AutoSam(head="vit", views=1, batch=2, train=SHORT).fit(support_set(1), sam)
    with pytest.raises(CheckpointError, match="class_tokens"):
        AutoSam(head="vit", as_published=True).restore(segmenter.labels, segmenter.slicer, sam, segmenter.learned())


def test_the_background_is_a_class_whose_logit_is_subtracted(sam: Backbone):
    segmenter = AutoSam(head="linear", views=1, batch=2, train=SHORT).fit(support_set(1), sam)
    slices = torch.rand(1, 1, 24, 28)
    with torch.inference_mode():
        image = sam.encode(slices).to(torch.float16).to(torch.float32)
        all_classes = sam.to_image_frame(segmenter.head(image), (24, 28))
        labels = segmenter(slices)
    assert all_classes.shape[1] == 1 + labels.shape[1]
    beside = torch.cat([torch.zeros_like(labels[:, :1]), labels], dim=1)
    assert torch.allclose(beside.softmax(1), all_classes.softmax(1), atol=1e-4)


# A held-out patient.

WINDOW = Slicer(window=(0.0, 350.0))


@pytest.mark.parametrize("dice", ["batch", "slice"])
def test_rare_class_weight_and_dice_change_the_training(dice: str, sam: Backbone):
    fitted = [
        AutoSam(
            slicer=WINDOW, head="linear", views=1, batch=2, dice=dice, rare_class_weight=rare_class_weight, train=SHORT
        )
        .fit(support_set(1), sam)
        .learned()
        for rare_class_weight in (0.0, 0.5)
    ]
    other = AutoSam(slicer=WINDOW, head="linear", views=1, batch=2, rare_class_weight=0.5, train=SHORT)
    fitted.append(replace(other, dice="slice" if dice == "batch" else "batch").fit(support_set(1), sam).learned())
    for one, another in itertools.combinations(fitted, 2):
        assert any(not torch.equal(one[name], another[name]) for name in one)


def test_a_negative_balance_is_refused():
    with pytest.raises(SettingsError, match="rare_class_weight must be 0 or more, got -1"):
        AutoSam(rare_class_weight=-1)


def spoiling(patients: int) -> AutoSam:
    """Trains a step between two checks, at a rate that does harm soon; no step depends on how many there are."""
    config = TrainConfig(iterations=20, learning_rate=1.0, warmup=0.0, schedule="constant")
    return AutoSam(
        slicer=WINDOW, head="linear", views=1, batch=2, rare_class_weight=0, validate_from=patients, train=config
    )


def test_a_training_stops_when_the_held_out_patient_gains_no_more_and_keeps_the_best_weights(sam: Backbone):
    done: list[int] = []
    kept = spoiling(3).fit(support_set(3), sam, Run(report=lambda step, total, note: done.append(step))).learned()
    best = done[-1] - 5  # five checks without a better one
    assert 1 <= best < 15
    without = [SupportSet(tuple(two), LABELS) for two in itertools.combinations(support_set(3).cases, 2)]
    config = replace(spoiling(0).train, iterations=best)
    trained = [replace(spoiling(0), train=config).fit(support, sam).learned() for support in without]
    same = [all(torch.equal(kept[key], other[key]) for key in kept) for other in trained]
    assert sum(same) == 1


def test_with_too_few_patients_or_none_to_spare_all_are_trained_on(sam: Backbone):
    plain = spoiling(0).fit(support_set(2), sam).learned()
    too_few = spoiling(3).fit(support_set(2), sam).learned()
    one_patient = [replace(case, patient="the same") for case in support_set(2).cases]
    one = spoiling(2).fit(SupportSet(tuple(one_patient), LABELS), sam).learned()
    assert all(torch.equal(plain[key], too_few[key]) and torch.equal(plain[key], one[key]) for key in plain)


# What is refused.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 0}, "batch"),
        ({"views": -1}, "views"),
        ({"feature_noise": -0.1}, "feature_noise"),
        ({"token_init_std": float("nan")}, "token_init_std"),
        ({"relu_out": True}, "linear"),
        ({"validate_from": 1}, "no patient to train on"),
        ({"validate_from": 5, "train": TrainConfig(ema=0.9)}, "ema"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict, said: str):
    with pytest.raises(SettingsError, match=said):
        AutoSam(**settings)


def test_a_label_too_small_for_the_models_square_is_named(sam: Backbone):
    case = phantom_case(0)
    reference = case.read_reference()
    array = np.where(reference.array == 3, 0, reference.array)
    array[:, 0] = IGNORE
    array[12, 2, 14] = 3  # one pixel
    small = SupportSet((replace(case, reference=replace(reference, array=array)),), LABELS)
    coarse = sam.fork()
    coarse.mask_side = coarse.feature_side
    with pytest.raises(LabelError, match="egg"):
        AutoSam(head="vit", views=1, train=SHORT).fit(small, coarse)
