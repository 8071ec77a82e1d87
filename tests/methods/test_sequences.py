"""Methods on scans with several sequences: all of them are learned from, or as many as an encoder takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.backbones.framing import as_colours
from handful.data.slicing import Slicer
from handful.data.unlabelled import UnlabelledScans
from handful.evaluation.metrics import overlap
from handful.methods.base import Method
from handful.methods.cost import measure_rates
from handful.methods.fate.method import Fate
from handful.methods.know_sam.method import KnowSam
from handful.methods.nearest_slice import NearestSlice
from handful.methods.self_training.method import SelfTraining
from handful.methods.unet.method import UNet
from handful.methods.unet.network import NetPlan
from handful.methods.wrappers.roi_crop import RoiCrop
from handful.tuning.loop import TrainConfig
from phantoms import phantom_case, sequence_case, sequence_phantom, sequence_support
from small_cohort import write_backbone

SHORT = TrainConfig(iterations=2)


@pytest.fixture(scope="module")
def video() -> Backbone:
    return tiny_models.tiny_sam2_video(side=64)


FOUR = ("A", "B", "C", "D")
SMALL = UNet(encoder="none", channels=4, batch=2, side=32, train=SHORT)


@pytest.mark.learning
def test_a_unet_finds_what_only_the_last_sequence_shows(sam: Backbone) -> None:
    train = TrainConfig(iterations=50, learning_rate=1e-2)
    method = UNet(encoder="none", channels=8, batch=4, side=32, elastic=0.0, train=train)
    segmenter = method.fit(sequence_support(2), sam)
    image, reference = sequence_phantom(7)
    turned = image.array.copy()
    turned[1] = turned[1, ::-1]  # the first sequence stays as it is
    found = segmenter.predict(replace(image, array=turned)).array == 3
    assert overlap(found, reference.array[::-1] == 3).dice > 0.6
    assert overlap(found, reference.array == 3).dice < 0.4


@pytest.mark.parametrize(
    ("encoder", "names"),
    [("none", ("T1", "FLAIR")), ("none", ("T1", "T2", "FLAIR")), ("none", FOUR), ("imagenet", FOUR)],
)
def test_nets_take_all_sequences_and_are_restored(sam: Backbone, encoder: str, names: tuple[str, ...]) -> None:
    method = replace(SMALL, encoder=encoder)
    fitted = method.fit(sequence_support(1, names), sam)
    assert fitted.net.plan.sequences == len(names)
    assert fitted.slicer.sequences == names
    again = method.restore(fitted.labels, fitted.slicer, sam, fitted.learned())
    image, _ = sequence_phantom(3, names)
    assert (again.predict(image).array == fitted.predict(image).array).all()
    slices = fitted.slicer.cut(image)
    fitted.eval()
    changed = slices.clone()
    changed[:, -1] = changed[:, -1].flip(-1)
    assert not torch.allclose(fitted(slices), fitted(changed))


def test_stacks_and_simclr_take_all_sequences(sam: Backbone) -> None:
    support = sequence_support(1)
    stacks = replace(SMALL, dims=3, depth=4).fit(support, sam)
    assert stacks.predict(sequence_phantom(2)[0]).array.shape == support.facts[0].geometry.shape
    contrast = replace(SMALL, pretrain="simclr", contrast=SHORT, contrast_batch=2).fit(support, sam)
    assert contrast.net.plan.sequences == 2


def test_the_plan_of_grey_slices_is_packed_as_before() -> None:
    plan = NetPlan(32, 1, 4, "none", False, (1, 1), (1, 1))
    assert plan.pack().tolist() == [32, 1, 4, 0, 0, 1, 1, 1, 1]
    assert NetPlan.unpack(replace(plan, sequences=4).pack()) == replace(plan, sequences=4)
    assert NetPlan.unpack(plan.pack()) == plan


@pytest.mark.parametrize(
    "method",
    [
        SelfTraining(
            initial="none", encoder="none", channels=4, batch=2, side=32, train=TrainConfig(iterations=4, ema=0.9)
        ),
        KnowSam(encoder="none", channels=4, batch=2, side=32, train=SHORT),
    ],
    ids=["self-training", "know-sam"],
)
def test_methods_that_use_unlabelled_scans_take_all_sequences(sam: Backbone, method: Method) -> None:
    unlabelled = UnlabelledScans.of(tuple(sequence_case(seed, FOUR) for seed in (4, 5)))
    support = replace(sequence_support(1, FOUR), unlabelled=unlabelled)
    segmenter = method.fit(support, sam)
    assert segmenter.slicer.sequences == FOUR
    assert segmenter.predict(sequence_phantom(3, FOUR)[0]).array.shape == support.facts[0].geometry.shape


def test_a_crop_keeps_all_sequences_for_a_unet_and_three_for_others(sam: Backbone) -> None:
    support = sequence_support(1, FOUR)
    assert RoiCrop(SMALL, 1.5).resolved_slicer(support).sequences == FOUR
    assert RoiCrop(NearestSlice(), 1.5).resolved_slicer(support).sequences == FOUR[:3]


def test_up_to_three_sequences_are_encoded_at_once_and_more_are_averaged(sam: Backbone) -> None:
    slices = torch.rand(2, 4, 20, 24)
    two = slices[:, :2]
    assert torch.equal(as_colours(two)[:, :2], two)
    assert torch.allclose(as_colours(two)[:, 2], two.mean(dim=1))
    assert torch.allclose(sam.encode_exact(two).main, sam.encode_exact(as_colours(two)).main, atol=1e-3)
    alone = torch.stack([sam.encode_exact(slices[:, [channel]]).main for channel in range(4)]).mean(dim=0)
    assert torch.allclose(sam.encode_exact(slices).main, alone, atol=1e-5)


def test_a_backbone_may_always_encode_each_sequence_on_its_own(tmp_path: Path) -> None:
    write_backbone(tmp_path / "sam")
    plain, average = (load_backbone(f"{tmp_path / 'sam'}{suffix}") for suffix in ("", "+average"))
    two = torch.rand(1, 2, 20, 24)
    alone = [plain.encode_exact(two[:, [channel]]).main for channel in range(2)]
    assert torch.allclose(average.encode_exact(two).main, (alone[0] + alone[1]) / 2, atol=1e-5)
    assert torch.equal(average.encode(two[:, :1]).main, plain.encode(two[:, :1]).main)
    keeping = cached(average, tmp_path / "cache")
    assert torch.equal(keeping.encode(two).main, average.encode(two).main)
    assert keeping.fork().most_at_once == 1
    assert average.digest() != plain.digest()
    assert average.name.endswith("+average")


@pytest.mark.parametrize("names", [("T1", "FLAIR"), FOUR])
@pytest.mark.parametrize("method", [NearestSlice(), Fate(top_k=2)], ids=["nearest-slice", "fate"])
def test_backbones_segment_sequences(sam: Backbone, video: Backbone, method: Method, names: tuple[str, ...]) -> None:
    backbone = video if isinstance(method, Fate) else sam
    method = method.with_slicer(Slicer(sequences=("all",)))
    segmenter = method.fit(sequence_support(1, names), backbone)
    found = segmenter.predict_explained(sequence_phantom(3, names)[0])
    assert found.label_map.geometry.shape == sequence_phantom(3)[0].geometry.shape
    if isinstance(method, Fate):  # its pictures show the first sequence in grey
        picture = segmenter.support_picture("phantom-0", 2).image
        assert (picture[..., :1] == picture).all()
        assert picture.any()


@pytest.mark.learning
def test_fate_finds_what_only_the_last_sequence_shows(handful_tiny: Backbone) -> None:
    segmenter = Fate(top_k=2).fit(sequence_support(2), handful_tiny)
    image, reference = sequence_phantom(7)
    turned = image.array.copy()
    turned[1] = turned[1, ::-1]
    found = segmenter.predict(replace(image, array=turned)).array == 1
    assert overlap(found, reference.array[::-1] == 1).dice > 0.6
    assert overlap(found, reference.array == 1).dice < 0.4


def test_the_cost_of_a_fit_is_that_of_all_sequences(sam: Backbone) -> None:
    support = sequence_support(1, FOUR)
    (work,) = SMALL.work(support, sam)
    assert work.sequences == FOUR
    assert measure_rates(work, sam).step > 0
    assert SMALL.work(replace(support, cases=(phantom_case(0),), known_facts=None), sam)[0].sequences == ()
