"""The U-Net baseline: what it learns, what it leaves alone, and where a killed fit goes on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.backbones.efficientnet import imagenet_encoder
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.methods.unet.choice import chosen_channels, chosen_side, may_mirror, thickness
from handful.methods.unet.method import UNet, UNetSegmenter
from handful.methods.unet.network import InstanceNorm, NetPlan, PlainNet, standardised
from handful.methods.unet.simclr import pretrain_encoder
from handful.methods.unet.training import Augmentation, Views, coarser_target, exits_loss
from handful.tuning.loop import TrainConfig
from phantoms import LABELS, phantom, phantom_case, support_set

SHORT = TrainConfig(iterations=2)
SMALL = UNet(encoder="none", channels=4, batch=2, side=32, train=SHORT)
STACKS = replace(SMALL, dims=3, depth=4)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def only_slices(case: Case, *labelled: int) -> Case:
    """The case with labels on some slices (counted along j); nobody has looked at the rest."""
    reference = case.read_reference()
    array = np.full_like(reference.array, IGNORE)
    array[:, list(labelled)] = reference.array[:, list(labelled)]
    return replace(case, reference=replace(reference, array=array))


@pytest.fixture(scope="module")
def small(sam: Backbone) -> UNetSegmenter:
    return SMALL.fit(support_set(1), sam)


# What it learns from.


@pytest.mark.parametrize(
    "option",
    [
        {"deep_supervision": False},
        {"augmentation": "always"},
        {"augmentation": "always", "elastic": 0.05},
        {"mirror": True},
        {"encoder": "imagenet"},
        {"batch": 3},
        {"side": 48},
        {"channels": 5},
        {"rare_class_weight": 0.5},
    ],
    ids=str,
)
def test_every_option_changes_the_prediction(option: dict[str, object], small: UNetSegmenter, sam: Backbone):
    slices = torch.rand(2, 1, 24, 28)
    changed = replace(SMALL, **option).fit(support_set(1), sam)
    with torch.inference_mode():
        assert changed(slices).shape == (2, 2, 24, 28)
        assert not torch.allclose(changed(slices), small(slices))


def test_the_backbone_is_never_used(sam: Backbone):
    def refuse(*_: object) -> None:
        raise AssertionError("the backbone was asked")

    hooks = [module.register_forward_pre_hook(refuse) for module in sam.modules()]
    try:
        SMALL.fit(support_set(1), sam).predict(phantom(7)[0])
    finally:
        for hook in hooks:
            hook.remove()


def test_a_fitted_net_holds_on_to_no_step_of_its_training(small: UNetSegmenter):
    assert all(kept.grad_fn is None for kept in small.net.unet.heads)


def test_unlabelled_parts_of_a_slice_do_not_pull_towards_the_background(sam: Backbone):
    case = phantom_case(0)
    reference = case.read_reference()
    array = np.where(reference.array == 3, reference.array, IGNORE)
    array[reference.array == 1] = 1
    support = SupportSet((replace(case, reference=replace(reference, array=array)),), LABELS)
    method = replace(SMALL, train=TrainConfig(iterations=40, learning_rate=5e-3))
    found = method.fit(support, sam).predict(case.read_image()).array
    assert (found > 0).mean() > 0.99  # background was shown nowhere; shown as such, it soon is found in some places


@pytest.mark.parametrize("augmentation", ["nnunet", "always"])
def test_the_black_around_a_moved_slice_is_background_if_the_slice_is_labelled_everywhere(augmentation: Augmentation):
    classes = torch.zeros(4, 1, 32, 32, dtype=torch.int16)
    classes[:2, :, 10:20, 10:20] = 1
    classes[3, :, 0, 0] = -1
    views = Views(augmentation=augmentation, elastic=0, mirror=False)

    def known(one: Views) -> torch.Tensor:
        return one.of(torch.full((4, 1, 1, 32, 32), 0.5), classes, 1, torch.Generator().manual_seed(0))[2]

    before, after = known(views), known(replace(views, black_is_background=True))
    assert not before[:3].all()
    assert after[:3].all()
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("augmentation", ["nnunet", "always"])
def test_half_of_the_views_are_mirrored_if_so_set(augmentation: Augmentation):
    classes = torch.zeros(64, 1, 32, 32, dtype=torch.int16)
    classes[:, :, 8:24, :8] = 1
    slices = torch.zeros(64, 1, 1, 32, 32)

    def on_the_left(mirror: bool) -> int:
        views = Views(augmentation=augmentation, elastic=0, mirror=mirror)
        masks = views.of(slices, classes, 1, torch.Generator().manual_seed(0))[1][:, 0, 0]
        return int((masks[..., :16].sum(dim=(1, 2)) > masks[..., 16:].sum(dim=(1, 2))).sum())

    assert on_the_left(mirror=False) == 64
    assert 20 < on_the_left(mirror=True) < 44


def test_stacks_learn_from_a_single_labelled_slice(sam: Backbone):
    support = SupportSet((only_slices(phantom_case(0), 2),), LABELS)
    method = replace(STACKS, train=TrainConfig(iterations=40, learning_rate=1e-2))
    segmenter = method.fit(support, sam)
    image, truth = phantom(0)
    found = segmenter.predict(image).array[:, 2]
    assert (found == truth.array[:, 2]).mean() > 0.9


# The shape of the net.


def test_the_side_is_at_most_the_slices_own_and_the_backbones(large_sam: Backbone):
    image, reference = phantom(0)
    slicer = Slicer().resolve([image])

    def side_of(times: int) -> int:
        geometry = replace(image.geometry, shape=(24 * times, 6, 28 * times))
        large = replace(image, array=image.array.repeat(times, 1).repeat(times, 3), geometry=geometry)
        labels = replace(reference, array=reference.array.repeat(times, 0).repeat(times, 2), geometry=geometry)
        support = SupportSet((Case("large", large, labels, LABELS),), LABELS)
        return UNet().plan(support, slicer, large_sam).side

    assert (side_of(1), side_of(3), side_of(5)) == (64, 96, large_sam.side)


def test_one_large_case_does_not_make_the_slices_of_all_large(large_sam: Backbone):
    image, reference = phantom(0)
    geometry = replace(image.geometry, shape=(72, 6, 84))
    large = replace(image, array=image.array.repeat(3, 1).repeat(3, 3), geometry=geometry)
    labels = replace(reference, array=reference.array.repeat(3, 0).repeat(3, 2), geometry=geometry)
    cases = (*support_set(2).cases, Case("large", large, labels, LABELS))
    support = SupportSet(cases, LABELS)
    assert UNet().plan(support, support.resolve(Slicer()), large_sam).side == 64


def only_strips(width: int) -> SupportSet:
    """A slice of 512 pixels with a square and a strip of that width."""
    classes = np.zeros((512, 1, 512), dtype=np.int16)
    classes[100:200, :, 100:200] = 1
    classes[300:500, :, 300 : 300 + width] = 3
    geometry = Geometry((512, 1, 512), np.diag([1.0, 10.0, 1.0, 1.0]))
    image = Volume(np.zeros((1, *geometry.shape), dtype=np.float32), geometry)
    return SupportSet((Case("strip", image, LabelMap(classes, geometry, LABELS), LABELS),), LABELS)


@pytest.mark.parametrize(("width", "side"), [(60, 128), (16, 192), (4, 256)])
def test_thin_structures_need_more_pixels(width: int, side: int):
    support = only_strips(width)
    assert chosen_side(support, support.resolve(Slicer()), most=1024) == side


def test_the_width_of_a_strip_and_of_a_disc():
    rows, columns = np.mgrid[:64, :64]
    strip = np.zeros((1, 64, 64), dtype=int)
    strip[0, 10:60, 20:26] = 1
    disc = ((rows - 32) ** 2 + (columns - 32) ** 2 <= 20**2)[None].astype(int)
    labels = Labels.of({1: "one"})
    assert thickness(strip, labels) == pytest.approx(6, rel=0.15)
    assert thickness(disc, labels) == pytest.approx(0.4 * 40, rel=0.05)
    assert thickness(np.zeros((1, 4, 4), dtype=int), labels) == math.inf


def pictures(*names: str) -> SupportSet:
    array = np.zeros((32, 1, 32), dtype=np.int16)
    array[8:20, :, 8:20] = 1
    geometry = Geometry(array.shape, np.diag([1.0, 1.0, 1.0, 1.0]), unit="pixel")
    labels = Labels.of({1: names[0]})
    image = Volume(np.zeros((1, *array.shape), dtype=np.float32), geometry)
    return SupportSet((Case("one", image, LabelMap(array, geometry, labels), labels),), labels)


@pytest.mark.parametrize(
    ("name", "mirrored"), [("polyp", True), ("left lung", False), ("Kidney_R", False), ("lateral ventricle", True)]
)
def test_pictures_are_mirrored_unless_a_label_has_a_side(name: str, mirrored: bool):
    assert may_mirror(pictures(name)) == mirrored
    assert not may_mirror(support_set(1)), "scans are never mirrored"


@pytest.mark.parametrize(
    ("settings", "encoder"), [({}, "imagenet"), ({"dims": 3}, "none"), ({"pretrain": "simclr"}, "none")], ids=str
)
def test_the_encoder_knows_imagenet_where_it_can(settings: dict[str, object], encoder: str, sam: Backbone):
    slicer = Slicer().resolve([phantom(0)[0]])
    assert replace(UNet(side=32), **settings).plan(support_set(1), slicer, sam).encoder == encoder


def test_many_labels_get_a_wider_net():
    few, many = Labels.of({1: "a", 2: "b"}), Labels.of({n: f"label {n}" for n in range(1, 6)})
    assert chosen_channels(few) < chosen_channels(many)


def test_a_mirrored_slice_has_the_mirrored_mask(sam: Backbone):
    slices = torch.rand(2, 1, 32, 32)
    segmenter = replace(SMALL, mirror=True).fit(support_set(1), sam)
    with torch.inference_mode():
        assert torch.allclose(segmenter(slices.flip(-1)), segmenter(slices).flip(-1), atol=1e-5)


def test_an_encoder_that_knows_imagenet_keeps_most_of_it(sam: Backbone):
    method = replace(SMALL, encoder="imagenet", encoder_rate=0.0)
    segmenter = method.fit(support_set(1), sam)
    known = dict(imagenet_encoder().named_parameters())
    assert all(torch.equal(value, known[name]) for name, value in segmenter.net.encoder.named_parameters())
    assert segmenter(torch.rand(1, 3, 24, 28)).shape == (1, 2, 24, 28)


def test_thick_slices_are_joined_only_where_pixels_are_as_coarse(sam: Backbone):
    slicer = Slicer().resolve([phantom(0)[0]])
    plan = replace(STACKS, side=64, depth=16).plan(support_set(1), slicer, sam)
    # slices 5 mm apart, pixels of 0.43 mm: less than two of them only from the fourth stage on
    assert plan.kernels == (1, 1, 1, 3, 3)
    assert plan.strides == (1, 1, 1, 1, 2)
    assert NetPlan.unpack(plan.pack()) == plan


@pytest.mark.parametrize(("encoder", "sides"), [("none", (32, 16, 8)), ("imagenet", (32, 16, 8, 4))])
def test_coarse_exits_count_while_training_and_not_after(encoder: str, sides: tuple[int, ...], sam: Backbone):
    method = replace(SMALL, encoder=encoder)
    net = method.net(method.plan(support_set(1), Slicer().resolve([phantom(0)[0]]), sam), 2)
    stacks = torch.rand(1, 1, 1, 32, 32)
    assert [logits.shape for logits in net.train().exits(stacks)] == [(1, 2, 1, side, side) for side in sides]
    (alone,) = net.eval().exits(stacks)
    assert torch.equal(alone, net(stacks))


def test_a_coarse_exit_learns_shares_of_its_pixels_where_all_of_a_pixel_is_known():
    masks, known = torch.zeros(1, 1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2, 1:3], known[..., 3, 3] = 1, False
    shares, shown = coarser_target(masks, known, (1, 2, 2))
    assert shares[0, 0, 0].tolist() == [[0.5, 0.5], [0, 0]]
    assert shown[0, 0].tolist() == [[True, True], [True, False]]
    right, wrong = torch.tensor([[0.0, 0.0], [-20, -20]]), torch.tensor([[20.0, 20], [-20, 20]])
    fine = 40 * masks - 20
    losses = [exits_loss([fine, coarse[None, None, None]], masks, known) for coarse in (right, wrong)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_instance_norm_is_that_of_torch_in_every_layout(layout: torch.memory_format):
    maps = torch.randn(3, 4, 6, 5).contiguous(memory_format=layout).requires_grad_()
    own, other = InstanceNorm(4, affine=True), torch.nn.InstanceNorm2d(4, affine=True)
    for norm in (own, other):
        torch.nn.init.constant_(norm.weight, 1.5)
        torch.nn.init.constant_(norm.bias, 0.2)
    found, expected = own(maps), other(maps)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.is_contiguous(memory_format=layout)
    slopes = [torch.autograd.grad(result.pow(3).sum(), maps)[0] for result in (found, expected)]
    assert torch.allclose(*slopes, atol=1e-4)


def test_slices_reach_the_net_with_zero_mean_and_unit_deviation():
    shown = standardised(torch.rand(2, 1, 8, 8) * 0.1 + 0.4)
    assert shown.shape == (2, 3, 8, 8)
    assert torch.allclose(shown.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(shown.square().mean(dim=(1, 2, 3)), torch.ones(2), atol=1e-4)
    assert not standardised(torch.full((1, 3, 8, 8), 0.5)).any()


def test_a_colour_picture_and_a_grey_one_make_one_support(sam: Backbone):
    grey = phantom_case(0)
    image = grey.read_image()
    colour = replace(phantom_case(1), image=replace(image, array=np.repeat(image.array, 3, axis=0)))
    segmenter = SMALL.fit(SupportSet((grey, colour), LABELS), sam)
    assert segmenter(torch.rand(1, 3, 24, 28)).shape == (1, 2, 24, 28)


@pytest.mark.parametrize("slices", [1, 3, 4, 9])
def test_stacks_segment_every_slice_of_a_volume_of_any_length(slices: int, sam: Backbone):
    segmenter = STACKS.fit(support_set(1), sam)
    image, _ = phantom(7)
    array = np.resize(image.array, (1, 24, slices, 28))
    volume = Volume(array, replace(image.geometry, shape=array.shape[1:]))
    found = segmenter.predict(volume)
    assert found.array.shape == volume.geometry.shape
    shown = segmenter.slicer.view(volume)
    with torch.inference_mode():
        logits = segmenter(shown.cut(0, slices))
    assert np.array_equal(shown.of(found.array) > 0, (logits > 0).any(dim=1).numpy())


def test_a_slice_in_a_stack_is_segmented_with_its_neighbours(sam: Backbone):
    segmenter = replace(STACKS, side=64).fit(support_set(1), sam)
    slices = torch.rand(4, 1, 24, 28)
    other = slices.clone()
    other[2] = torch.rand(1, 24, 28)
    with torch.inference_mode():
        assert not torch.equal(segmenter(slices)[1], segmenter(other)[1])


# SimCLR.


@pytest.fixture
def slices() -> torch.Tensor:
    volumes = (phantom(seed)[0] for seed in range(4))
    cut = torch.cat([Slicer().cut(volume) for volume in volumes])
    return torch.nn.functional.interpolate(cut, (32, 32)).half()


def fresh(sam: Backbone) -> PlainNet:
    return SMALL.net(SMALL.plan(support_set(1), Slicer().resolve([phantom(0)[0]]), sam), 2)


def test_simclr_learns_to_distinguish_slices_and_trains_the_encoder_alone(slices: torch.Tensor, sam: Backbone):
    net, untouched = fresh(sam), dict(fresh(sam).named_parameters())
    config = TrainConfig(iterations=80, learning_rate=3e-3)
    losses = pretrain_encoder(net, slices, 12, config).losses
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1
    changed = {name for name, value in net.named_parameters() if not torch.equal(value, untouched[name])}
    encoder = {name for name in untouched if name.startswith(("unet.input_block", "unet.downsamples", "unet.bottle"))}
    assert changed == encoder


def test_simclr_wants_two_slices_at_least(slices: torch.Tensor, sam: Backbone):
    with pytest.raises(SettingsError, match="needs at least two slices with any signal, got 1"):
        pretrain_encoder(fresh(sam), slices[:1], 4, SHORT)


def test_simclr_changes_what_is_learned(small: UNetSegmenter, sam: Backbone):
    before = replace(SMALL, pretrain="simclr", contrast_batch=4, contrast=SHORT).fit(support_set(1), sam)
    assert before.learned().keys() == small.learned().keys()
    assert not equal(before.learned(), small.learned())


def test_simclr_learns_from_the_images_of_unlabelled_scans_and_never_from_their_labels(sam: Backbone):
    method = replace(SMALL, pretrain="simclr", contrast_batch=4, contrast=SHORT)
    assert method.uses_unlabelled
    assert not SMALL.uses_unlabelled
    further = (phantom_case(5), phantom_case(6))
    without_labels = tuple(replace(case, reference=None) for case in further)
    alone = support_set(1)
    learned = [
        method.fit(replace(alone, unlabelled=UnlabelledScans.of(cases)), sam).learned()
        for cases in (further, without_labels, ())
    ]
    assert equal(learned[0], learned[1])
    assert not equal(learned[0], learned[2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"side": 40}, "side must be a multiple of 16"),
        ({"depth": 6}, "depth must be a multiple of 4"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"elastic": -0.1}, "elastic must be 0 or more, got -0.1"),
        ({"rare_class_weight": -1}, "rare_class_weight must be 0 or more, got -1"),
        ({"dims": 3, "pretrain": "simclr"}, "set dims=2"),
        ({"dims": 3, "encoder": "imagenet"}, "set dims=2"),
        ({"pretrain": "simclr", "encoder": "imagenet"}, "trained already"),
        ({"encoder_rate": -1}, "encoder_rate must be 0 or more"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], said: str):
    with pytest.raises(SettingsError, match=said):
        UNet(**settings)


def test_stacks_of_pictures_are_refused(sam: Backbone):
    image, reference = phantom(0)
    geometry = replace(image.geometry, shape=(24, 1, 28))
    flat = Case(
        "flat",
        replace(image, array=image.array[:, :, 2:3], geometry=geometry),
        LabelMap(reference.array[:, 2:3], geometry, LABELS),
        LABELS,
    )
    with pytest.raises(SettingsError, match="set dims=2"):
        STACKS.fit(SupportSet((flat,), LABELS), sam)
