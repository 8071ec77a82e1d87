"""EdgeTAM's true memory path over a small Hiera, for its own encoder needs timm; FATE's walk on it."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EdgeTamVideoModel, EdgeTamVisionConfig, EdgeTamVisionModel
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.utils import is_timm_available

import tiny_models
from backbones.authors_pointer import pointers_of_the_single_mask
from handful.backbones.base import Memory, MemoryBackbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.backbones.edgetam import EdgeTamBackbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import CheckpointError
from handful.methods.fate.method import Fate, FateSegmenter, SliceConfidence
from phantoms import LABELS, phantom, support_set

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SHOWN, HIDDEN = 3.0, -30.0
"""Biases of the object score that make a random model believe in every object, or in none."""


def believing(score_bias: float = SHOWN, **settings: object) -> EdgeTamBackbone:
    backbone = tiny_models.tiny_edgetam(**settings)  # type: ignore[arg-type]
    with torch.no_grad():
        backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(score_bias)
    return backbone


def scene(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sixteen slices of noise, and on the first of them the masks of two objects, one of them near the border."""
    truth = torch.zeros(2, side, side)
    truth[0, side // 6 : side // 2, side // 3 : 3 * side // 4] = 1.0
    truth[1, side // 2 :, : side // 3] = 1.0
    return torch.rand(16, 1, side, side, generator=torch.Generator().manual_seed(1)), truth


@pytest.mark.parametrize("score_bias", [SHOWN, HIDDEN], ids=["objects seen", "objects out of sight"])
@pytest.mark.parametrize(
    ("side", "windows", "memory_2_1"),
    [(256, 16, False), (128, 4, False), (128, 4, True)],
    ids=["512 tokens", "32 tokens", "32 tokens, memory of SAM 2.1"],
)
@torch.inference_mode()
def test_support_then_two_tracked_slices_equal_the_session(
    side: int, windows: int, memory_2_1: bool, score_bias: float
) -> None:
    backbone = believing(score_bias, side=side, windows=windows, memory_2_1=memory_2_1)
    slices, truth = scene(side)  # pointers age relative to the length of the video, at most 16 slices
    image = backbone.encode_exact(slices[:3])
    support = backbone.memorize(image[[0, 0]], truth)
    first = backbone.decode_recalled(backbone.recall(image[[1, 1]], support))
    neighbour = backbone.remember(image[[1, 1]], first, distance=1)
    # the session counts time for the pointer of the support, too: it lies two slices back
    known = Memory.cat([replace(support, pointer_distance=(2,)), neighbour])
    second = backbone.decode_recalled(backbone.recall(image[[2, 2]], known))
    for seen, (logits, score) in zip((first, second), tracked_by_session(backbone.model, slices, truth), strict=True):
        torch.testing.assert_close(seen.object_score, score, atol=1e-5, rtol=1e-5)
        assert ((score > 0) == (score_bias > 0)).all()
        if score_bias > 0:
            torch.testing.assert_close(seen.logits, logits, atol=1e-5, rtol=1e-5)


def tracked_by_session(
    model: EdgeTamVideoModel, slices: torch.Tensor, truth: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Slice 0 with its true masks, then slices 1 and 2 tracked: mask logits and object scores."""
    side = truth.shape[-1]
    video = (slices.expand(-1, 3, -1, -1) - MEAN[:, None, None]) / STD[:, None, None]
    session = EdgeTamVideoInferenceSession(video=video, video_height=side, video_width=side, dtype=torch.float32)
    for row in range(2):
        session.add_mask_inputs(session.obj_id_to_idx(row), 0, truth[row][None, None])
        session.obj_with_new_inputs.append(row)
    with pointers_of_the_single_mask(model):
        answers = [model(session, frame_idx=frame) for frame in range(3)][1:]
    return [(answer.pred_masks, answer.object_score_logits) for answer in answers]


@torch.inference_mode()
def test_a_slice_is_remembered_as_512_tokens_of_which_half_have_a_place() -> None:
    backbone = believing(side=512, windows=16)  # 32 cells a side: windows of 2 x 2 cells
    slices, truth = scene(512)
    image = backbone.encode(slices[:1])
    support = backbone.memorize(image[[0, 0]], truth)
    prediction = backbone.decode_recalled(backbone.recall(image[[0, 0]], support))
    for memory in (support, backbone.remember(image[[0, 0]], prediction, distance=1)):
        assert memory.spatial.shape == memory.spatial_position.shape == (2, 1, 512, 64)
        assert not memory.spatial_position[:, :, :256].any()
        assert len(memory.spatial_position[0, 0, 256:].unique(dim=0)) == 256


@torch.inference_mode()
def test_the_tokens_of_a_memory_are_as_many_as_the_model_says() -> None:
    backbone = tiny_models.tiny_edgetam(windows=2)
    slices, truth = scene(backbone.side)
    assert backbone.memorize(backbone.encode(slices[:1])[[0, 0]], truth).spatial.shape == (2, 1, 8, 64)


@torch.inference_mode()
def test_objects_remembered_together_are_each_as_if_alone() -> None:
    backbone = believing()
    slices, truth = scene(backbone.side)
    image = backbone.encode(slices[:2])
    supports = [backbone.memorize(image[[0] * len(rows)], truth[rows]) for rows in ([0, 1], [1, 0], [0], [1])]
    seen = [backbone.decode_recalled(backbone.recall(image[[1] * len(s)], s)) for s in supports]
    left = [backbone.remember(image[[1] * len(p.logits)], p, distance=1) for p in seen]
    both, turned, *alone = [torch.cat([s.spatial, n.spatial], dim=1) for s, n in zip(supports, left, strict=True)]
    assert (both[0] - both[1]).abs().max() > 0.1
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.flip(0), turned, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen[0].logits.flip(0), seen[1].logits, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_order_of_the_supports_does_not_matter_with_pointers_and_without() -> None:
    backbone = believing()
    slices, truth = scene(backbone.side)
    image = backbone.encode(slices[:4])
    parts = [backbone.memorize(image[[row, row]], truth.roll(8 * row, dims=1)) for row in range(3)]
    answers = []
    for order in (parts, parts[::-1]):
        known = Memory.cat(order)
        for memory in (known, replace(known, pointers=known.pointers[:, :0], pointer_distance=())):
            answers.append(backbone.decode_recalled(backbone.recall(image[[3, 3]], memory)).logits)
    torch.testing.assert_close(answers[0], answers[2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers[1], answers[3], atol=1e-5, rtol=1e-4)
    assert (answers[0] - answers[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_behind_a_cache_it_remembers_the_same(tmp_path: Path) -> None:
    backbone = believing()
    slices, truth = scene(backbone.side)
    kept = cached(backbone, tmp_path)
    assert isinstance(kept, MemoryBackbone)
    image, again = (kept.encode(slices[:2]) for _ in range(2))
    assert torch.equal(kept.memorize(again, truth).spatial, backbone.memorize(image, truth).spatial)


def test_a_folder_that_transformers_saved_is_loaded_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = tiny_models.tiny_edgetam()
    original.model.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load_backbone(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert type(loaded) is EdgeTamBackbone
    assert loaded.digest() == original.digest()
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    slices, truth = scene(loaded.side)
    answers = [b.memorize(b.encode(slices[:2]), truth).spatial for b in (loaded, original)]
    assert torch.equal(*answers)


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
@pytest.mark.parametrize(
    "labels", [{}, {"label_names": ["cat"], "num_classes": 1}], ids=["config unread", "model unbuilt"]
)
def test_where_timm_is_missing_the_extra_that_brings_it_is_named(tmp_path: Path, labels: dict[str, object]) -> None:
    tiny_models.tiny_edgetam().model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    encoder = {"model_type": "timm_wrapper", "architecture": "repvit_m1", "model_args": {"features_only": True}}
    config["vision_config"] = {"model_type": "edgetam_vision_model", "backbone_config": encoder | labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"timm, which needs torchvision: pip install handful\[edgetam\]"):
        load_backbone(tmp_path)


class Trunk(nn.Module):
    """Four convolutions in RepViT's place: maps at strides 4 to 32 with their channels first, as timm gives them."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, stride, stride) for a, b, stride in zip(widths[:-1], widths[1:], (4, 2, 2, 2), strict=True)
        )

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        maps = []
        for stage in self.stages:
            pixels = stage(pixels)
            maps.append(pixels)
        return SimpleNamespace(last_hidden_state=maps, hidden_states=None)


@torch.inference_mode()
def test_with_edgetams_own_neck_a_tracked_slice_equals_the_session() -> None:
    model = believing().model
    hiera = model.config.vision_config
    config = EdgeTamVisionConfig(
        backbone_config=hiera.backbone_config,
        backbone_channel_list=hiera.backbone_channel_list,
        backbone_feature_sizes=hiera.backbone_feature_sizes,
        fpn_hidden_size=hiera.fpn_hidden_size,
    )
    torch.manual_seed(0)
    model.vision_encoder = EdgeTamVisionModel(config)
    model.vision_encoder.backbone = Trunk()
    backbone = EdgeTamBackbone(model, "own-neck")
    slices, truth = scene(backbone.side)
    image = backbone.encode_exact(slices[:2])
    seen = backbone.decode_recalled(backbone.recall(image[[1, 1]], backbone.memorize(image[[0, 0]], truth)))
    logits, _ = tracked_by_session(model, slices, truth)[0]
    torch.testing.assert_close(seen.logits, logits, atol=1e-5, rtol=1e-5)


def answered(backbone: EdgeTamBackbone, support: SupportSet, volume: Volume, method: Fate) -> SliceConfidence:
    """What FATE is sure of: unlike a label map of random weights it feels every change of a mask or a memory."""
    segmenter: FateSegmenter = method.fit(support, backbone)
    found, confidence = segmenter.predict_explained(volume)
    assert found.array.shape == volume.geometry.shape
    assert (confidence.object_score > 0).any()
    return confidence


def fate(**settings: object) -> Fate:
    plain = Slicer(plane="axial", window=(0.0, 400.0))  # by fixed numbers, so that no slice changes another
    return Fate(slicer=plain, top_k=2, **settings)  # type: ignore[arg-type]


def test_fate_is_the_same_up_and_down_when_both_walks_are_fused() -> None:
    backbone = believing(side=64)
    volume, _ = phantom(7)
    array = volume.array.copy()
    slices = fate().slicer.view(Volume(array, volume.geometry)).of(array[0])
    slices[:] = slices[::-1].copy()
    mirrored = dataclasses.replace(volume, array=array)
    fused = fate(window=2, fuse=True)
    up, down = (answered(backbone, support_set(2), v, fused).object_score for v in (volume, mirrored))
    torch.testing.assert_close(up, down.flip(0), atol=1e-5, rtol=0, equal_nan=True)
    walked = answered(backbone, support_set(2), volume, fate(window=2)).object_score
    assert (walked - up).nan_to_num().abs().max() > 1e-4


def test_fate_predicts_each_label_the_same_whatever_their_order() -> None:
    backbone = believing(side=64)
    volume, _ = phantom(7)
    support = support_set(2)
    swapped = Labels(LABELS.values, LABELS.names[::-1])
    turned = []
    for case in support.cases:
        assert isinstance(case.reference, LabelMap)
        array = np.select([case.reference.array == 1, case.reference.array == 3], [3, 1], 0).astype(np.int16)
        reference = dataclasses.replace(case.reference, array=array, labels=swapped)
        turned.append(dataclasses.replace(case, reference=reference, labels=swapped))
    plain = answered(backbone, support, volume, fate(window=2))
    other = answered(backbone, SupportSet(tuple(turned), swapped), volume, fate(window=2))
    torch.testing.assert_close(plain.object_score, other.object_score.flip(1), atol=1e-5, rtol=0, equal_nan=True)
    torch.testing.assert_close(plain.iou, other.iou.flip(1), atol=1e-5, rtol=0, equal_nan=True)
    assert plain.retrieved == other.retrieved
    assert (plain.object_score[:, 0] - plain.object_score[:, 1]).nan_to_num().abs().max() > 1e-3
