"""Driven without a session, SAM 2's memory gives what transformers' own video session gives."""

from dataclasses import replace

import pytest
import torch
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

import tiny_models
from backbones.authors_pointer import pointers_of_the_single_mask
from handful.backbones import memory_attention
from handful.backbones.base import Memory
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.pretraining.architecture import tiny_config


def _model(sam21: bool = True) -> Sam2VideoModel:
    torch.manual_seed(0)
    config = tiny_config(side=64, width=16, channels=128)
    config.enable_temporal_pos_encoding_for_object_pointers = sam21
    config.enable_occlusion_spatial_embedding = sam21
    config.multimask_output_for_tracking = config.multimask_output_in_sam = sam21
    model = Sam2VideoModel(config).eval()
    with torch.no_grad():
        model.mask_decoder.mask_tokens.weight.normal_()  # so that masks, and pointers, of different tokens differ
        model.memory_temporal_positional_encoding.normal_()
        model.no_object_pointer.normal_()
        model.no_memory_embedding.normal_()
        if sam21:
            model.occlusion_spatial_embedding_parameter.normal_()
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(0.5)
    return model


@pytest.mark.parametrize("sam21", [True, False], ids=["SAM 2.1", "SAM 2.0"])
def test_support_then_two_tracked_slices_equal_the_session(sam21: bool) -> None:
    model = _model(sam21)
    backbone = Sam2VideoBackbone(model, "test")
    slices = torch.rand(16, 1, 64, 64)  # pointers age relative to the length of the video, at most 16 slices
    truth = torch.zeros(2, 64, 64)
    truth[0, 10:40, 20:50] = 1.0
    truth[1, 30:60, 5:25] = 1.0

    with torch.inference_mode():
        expected = _tracked_by_session(model, slices, truth)
        image = backbone.encode_exact(slices[:3])
        support = _rounded(backbone.memorize(image[[0, 0]], truth))
        first = backbone.decode_recalled(backbone.recall(image[[1, 1]], support))
        neighbour = _rounded(backbone.remember(image[[1, 1]], first, distance=1))
        # the session counts time for the pointer of the support, too: it lies two slices back
        support = replace(support, pointer_distance=(2,))
        second = backbone.decode_recalled(backbone.recall(image[[2, 2]], Memory.cat([support, neighbour])))
    torch.testing.assert_close(first.logits[:, 0], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second.logits[:, 0], expected[1], atol=1e-5, rtol=1e-4)


def _tracked_by_session(model: Sam2VideoModel, slices: torch.Tensor, truth: torch.Tensor) -> list[torch.Tensor]:
    """Slice 0 with its true masks, then slices 1 and 2 tracked."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    video = (slices.expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None]
    session = Sam2VideoInferenceSession(video=video, video_height=64, video_width=64, dtype=torch.float32)
    for row in range(2):
        session.add_mask_inputs(session.obj_id_to_idx(row), 0, truth[row][None, None])
        session.obj_with_new_inputs.append(row)
    with pointers_of_the_single_mask(model):
        return [model(session, frame_idx=frame).pred_masks[:, 0] for frame in range(3)][1:]


def _rounded(memory: Memory) -> Memory:
    """A session keeps its spatial memories in bfloat16."""
    return replace(memory, spatial=memory.spatial.bfloat16().float())


@torch.inference_mode()
def test_a_labelled_frame_has_the_pointer_of_the_single_mask_token():
    """SAM2Base._use_mask_as_output: `_forward_sam_heads` with multimask_output=False, whatever the other tokens say."""
    backbone = tiny_models.tiny_sam2_video()
    image = backbone.encode_exact(torch.rand(1, 1, 50, 60, generator=torch.Generator().manual_seed(0)))
    mask = torch.zeros(1, 50, 60)
    mask[:, 10:30, 20:50] = 1.0
    truth = torch.nn.functional.interpolate(
        mask[:, None], (backbone.side, backbone.side), mode="bilinear", antialias=True
    )
    prompt = backbone.model.mask_downsample((truth > 0.5).float())
    single, several = (
        backbone.model._single_frame_forward(
            input_masks=prompt, image_embeddings=list(image.features), multimask_output=multimask
        ).object_pointer[0, 0]
        for multimask in (False, True)
    )
    pointer = backbone.memorize(image, mask).pointers[0, 0]
    torch.testing.assert_close(pointer, single, atol=1e-5, rtol=1e-5)
    assert (several - single).abs().max() > 1e-3


@torch.inference_mode()
def test_what_is_called_present_is_remembered_as_present():
    backbone = tiny_models.tiny_sam2_video()
    slices = torch.rand(2, 1, 50, 60, generator=torch.Generator().manual_seed(0))
    image = backbone.encode_exact(slices)
    mask = torch.zeros(1, 50, 60)
    mask[:, 10:30, 20:50] = 1.0
    prediction = backbone.decode_recalled(backbone.recall(image[1], backbone.memorize(image[0], mask)))
    doubtful = replace(prediction, object_score=torch.full_like(prediction.object_score, -1.0))
    nothing = replace(doubtful, logits=torch.full_like(prediction.logits, -1024.0))
    absent, blank, present, sure = (
        backbone.remember(image[1], one, 1, below)
        for one, below in (
            (doubtful, 0.0),
            (nothing, 0.0),
            (doubtful, torch.tensor([-2.0])),
            (replace(doubtful, object_score=-doubtful.object_score), 0.0),
        )
    )
    assert torch.equal(absent.spatial, blank.spatial)
    assert torch.equal(present.spatial, sure.spatial)
    assert torch.equal(present.pointers, sure.pointers)
    assert (present.spatial - absent.spatial).abs().max() > 0.1 * absent.spatial.std()
    assert not torch.equal(present.pointers, absent.pointers)


def test_position_codes_that_are_kept_are_those_of_transformers():
    neck = tiny_models.tiny_sam2_video().model.vision_encoder.neck
    for side in (8, 4, 8):
        shape = torch.Size((2, neck.position_encoding.sine.num_position_features * 2, side, side))
        asked = (shape, torch.device("cpu"), torch.float32)
        assert torch.equal(neck.position_encoding(*asked), neck.position_encoding.sine(*asked))


@pytest.mark.parametrize("weights", [2**22, 200], ids=["all rows at once", "a few rows at a time"])
def test_predictions_recall_as_transformers_memory_attention_does(
    weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_attention, "WEIGHTS", weights)
    backbone = Sam2VideoBackbone(_model(), "test")
    seeded = torch.Generator().manual_seed(0)
    image = backbone.encode(torch.rand(1, 1, 64, 64, generator=seeded))[[0, 0]]
    shape = (2, 3, backbone.feature_side**2, 64)
    spatial, position = (torch.randn(shape, generator=seeded) for _ in range(2))
    pointers = torch.randn(2, 2, 128, generator=seeded)
    for held in (2, 0):  # without pointers, too
        memory = Memory(spatial, position, pointers[:, :held], (0, 0, 1), (1, 1)[:held])
        assert not memory_attention.computes_faster(backbone.model.memory_attention, image.main)
        expected = backbone.recall(image, memory).main
        with torch.inference_mode():
            assert memory_attention.computes_faster(backbone.model.memory_attention, image.main)
            found = backbone.recall(image, memory).main
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
