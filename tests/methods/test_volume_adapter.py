"""The volume adapter: it starts as the 2D model, uses neighbouring slices, and takes prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.decoder import without_multimask
from handful.data.cases import Case
from handful.data.scribbles import scribbled
from handful.data.slicing import Slicer
from handful.data.support import LabelledScan, SupportSet
from handful.data.volume import LabelMap, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.stacks import windows
from handful.methods.volume_adapter.encoder import tapped_blocks
from handful.methods.volume_adapter.method import VolumeAdapter, VolumeSegmenter
from handful.methods.volume_adapter.network import VolumeNetwork
from handful.methods.volume_adapter.training import StackedScan
from handful.prompts.prompts import Prompts
from handful.session.session import Session, SessionConfig
from handful.tuning.loop import TrainConfig
from methods.variants import Fits
from phantoms import LABELS, phantom, phantom_case, support_set

STACK = torch.rand(5, 1, 24, 28, generator=torch.Generator().manual_seed(0))
CLICK = Prompts(torch.full((5, 1, 1, 2), 12.0), torch.ones(5, 1, 1, dtype=torch.long))
HEADS = ("mask-decoder", "multi-layer", "prompt-generator")
TRAINED = ("volume-adapter", "volume-adapter, prompt generator")


def untrained(backbone: Backbone, **settings: object) -> VolumeSegmenter:
    method = VolumeAdapter(**settings)  # type: ignore[arg-type]
    return VolumeSegmenter(LABELS, Slicer(), backbone, method, method._network(backbone, LABELS))


def scans_of(case: Case) -> Iterator[LabelledScan]:
    support = SupportSet((case,), LABELS)
    return support.scans(support.resolve(Slicer()))


@pytest.mark.parametrize("adapter", ["convolution", "attention"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_the_initial_adapter_is_exactly_the_2d_model(head: str, adapter: str, sam: Backbone, sam2: Backbone) -> None:
    for backbone in (sam, sam2):
        network = untrained(backbone, head=head, adapter=adapter).network
        image, plain = network.encoder.encode_exact(STACK), backbone.encode_exact(STACK)
        assert torch.equal(network.prompted(image).main, plain.main)
        flat = backbone.fork()
        without_multimask(flat.mask_decoder)
        clicked = network.clicked(image, CLICK)
        assert torch.equal(clicked, flat.decode_square(plain, flat.embed(CLICK, plain.size)).logits)


@pytest.mark.parametrize("name", TRAINED)
def test_the_order_of_slices_matters_after_training(name: str, fits: Fits) -> None:
    encoder = fits(name).segmenter.network.encoder
    with torch.no_grad():
        plain, again = encoder.encode_exact(STACK).main, encoder.encode_exact(STACK).main
        swapped = encoder.encode_exact(STACK[[0, 3, 2, 1, 4]]).main
    assert torch.equal(plain, again)
    assert not torch.allclose(plain[2], swapped[2], atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_picture_of_one_slice_is_segmented(name: str, fits: Fits) -> None:
    image, _ = phantom(7)
    geometry = dataclasses.replace(image.geometry, shape=(24, 1, 28))
    one = dataclasses.replace(image, array=image.array[:, :, 2:3], geometry=geometry)
    assert fits(name).segmenter.predict(one).array.shape == (24, 1, 28)


def test_pictures_of_one_slice_are_learned_from(sam: Backbone) -> None:
    case = phantom_case(0)
    image, reference = case.read_image(), case.read_reference()
    assert isinstance(image, Volume)
    assert isinstance(reference, LabelMap)
    geometry = dataclasses.replace(image.geometry, shape=(24, 1, 28))
    picture = dataclasses.replace(
        case,
        image=dataclasses.replace(image, array=image.array[:, :, 2:3], geometry=geometry),
        reference=dataclasses.replace(reference, array=reference.array[:, 2:3], geometry=geometry),
    )
    method = VolumeAdapter(train=TrainConfig(iterations=1, learning_rate=1e-3))
    segmenter = method.fit(SupportSet((picture,), LABELS), sam)
    assert segmenter.predict(picture.read_image()).array.shape == (24, 1, 28)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_windows_cover_each_slice_once_with_context_and_never_exceed_the_depth(depth: int, count: int) -> None:
    found = list(windows(count, depth))
    assert [number for kept, _ in found for number in kept] == list(range(count))
    for kept, window in found:
        assert len(window) <= depth
        assert set(kept) <= set(window) <= set(range(count))
        if depth >= 3:
            assert kept.start == 0 or kept.start > window.start
            assert kept.stop == count or kept.stop < window.stop


def test_predict_never_encodes_more_slices_at_once_than_a_stack_has(fits: Fits) -> None:
    segmenter = fits("volume-adapter").segmenter
    sizes: list[int] = []
    hook = segmenter.network.encoder.image_encoder.register_forward_pre_hook(
        lambda module, arguments: sizes.append(len(arguments[0]))
    )
    segmenter.predict(phantom(7)[0])
    hook.remove()
    assert sizes == [2, 3, 3, 3, 3, 2]


def test_stacks_hold_labelled_slices_and_their_neighbours_alone() -> None:
    (scan,) = scans_of(phantom_case(0))
    labelled = scan.labelled()
    stacked = StackedScan.of(scan, 1)
    assert [len(rows) for rows in stacked.stacks] == [2, 3, 3, 3, 3, 2]
    assert torch.equal(stacked.slices, labelled.slices)
    assert torch.equal(stacked.classes, labelled.classes)


def test_scribbles_are_learned_from_without_clicks(sam: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    support = SupportSet((scribbled(phantom_case(0), 0, 1),), LABELS)
    monkeypatch.setattr(VolumeNetwork, "clicked", None)
    losses: list[str] = []
    run = Run(report=lambda step, total, note: losses.append(note))
    VolumeAdapter(train=TrainConfig(iterations=2, learning_rate=1e-3)).fit(support, sam, run)
    assert len(losses) == 2
    assert all(float(note.removeprefix("loss ")) > 0 for note in losses)


def test_all_slices_of_a_stack_are_moved_alike() -> None:
    (scan,) = scans_of(phantom_case(0))
    stacked = StackedScan.of(scan, 2)
    same = dataclasses.replace(stacked, classes=stacked.classes[2:3].expand_as(stacked.classes))
    _, masks, known = same.view(range(0, 5), torch.Generator().manual_seed(4))
    assert masks.any()
    assert all(torch.equal(masks[0], one) for one in masks)
    assert all(torch.equal(known[0], one) for one in known)


@pytest.mark.parametrize("name", TRAINED)
def test_one_click_is_answered_from_the_adapted_features_of_the_stack(name: str, fits: Fits) -> None:
    promptable = fits(name).segmenter.promptable()
    assert promptable is not None
    session = Session(phantom(7)[0], promptable, config=SessionConfig(background=False))
    session.click(2, "ball", (8, 8))
    assert 2 in session.prompted
    slices, place = session.slicer.view(session.volume).around(2, promptable.encoder.reach)
    expected = promptable.encoder.encode(slices)[place].main
    assert torch.equal(session._embeddings.image(2).main, expected)


def test_without_clicks_in_training_it_takes_no_prompts(fits: Fits) -> None:
    assert fits("volume-adapter, attention").segmenter.promptable() is None


def test_prompted_slices_of_a_scan_are_encoded_with_their_neighbours(fits: Fits) -> None:
    promptable = fits("volume-adapter").segmenter.promptable()
    assert promptable is not None
    image, _ = phantom(7)
    stack = promptable.slicer.view(image)
    labels = torch.full((len(stack), 2, 1), -1)
    labels[3, 0] = 1
    prompts = Prompts(torch.full((len(stack), 2, 1, 2), 9.0), labels)
    ((numbers, logits),) = promptable.logits_of(stack, prompts)
    slices, place = stack.around(3, 1)
    with torch.no_grad():
        expected = promptable.decode(promptable.encoder.encode(slices)[place], prompts.rows(torch.tensor([3])))
    assert numbers == [3]
    assert torch.equal(logits[:, 0], expected[:, 0])


def test_frozen_weights_are_shared_and_never_trained(sam: Backbone) -> None:
    theirs = {id(p) for p in sam.parameters()}
    network = untrained(sam, head="prompt-generator").network
    assert not any(id(p) in theirs for p in network.trained.parameters() if p.requires_grad)
    frozen = [p for p in network.encoder.image_encoder.parameters() if not p.requires_grad]
    assert all(id(p) in theirs for p in frozen)


def test_the_deepest_block_is_among_the_depths_of_the_multi_layer_head() -> None:
    for backbone, count in ((tiny_models.tiny_sam(side=64), 2), (tiny_models.tiny_sam2(side=64), 4)):
        blocks = tapped_blocks(backbone.image_encoder)
        assert len(blocks) == count
        assert blocks[-1].layer_norm2.normalized_shape[0] == (48 if count == 2 else 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth must be a number of slices from 1 to 64, got 0"),
        ({"depth": 65}, "got 65"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"clicks": -1.0}, "clicks must be a weight from 0 to 100, got -1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        VolumeAdapter(**settings)  # type: ignore[arg-type]


def test_a_fit_reports_its_work(sam: Backbone) -> None:
    (work,) = VolumeAdapter().work(support_set(1), sam)
    assert (work.encoded, work.steps, work.neighbours) == (0, 200, 2)
