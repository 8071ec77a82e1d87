"""What every backbone promises, whatever model is inside."""

import pytest
import torch
from transformers import SamModel

import tiny_models
from handful.backbones.base import Backbone, ImageEmbeddings, MemoryBackbone, PromptEmbeddings
from handful.backbones.cached import cached
from handful.backbones.sam import SamBackbone
from handful.errors import SettingsError
from handful.prompts.prompts import PADDING, Prompts

SIZES = [(45, 70), (131, 90), (128, 128), (1, 33)]


def _points(n: int, k: int, count: int, size: tuple[int, int], seed: int = 0) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, k, count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    return Prompts(points=xy, point_labels=torch.randint(0, 2, (n, k, count), generator=generator))


def _slices(n: int, size: tuple[int, int], channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_slices_of_any_size_go_in_and_logits_of_that_size_come_out(backbone: Backbone, size: tuple[int, int]) -> None:
    image = backbone.encode(_slices(2, size))
    logits = backbone.decode(image, backbone.embed(_points(2, 3, 2, size), size))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_the_attributes_are_the_shapes_of_features_and_masks(backbone: Backbone) -> None:
    image = backbone.encode(_slices(1, (45, 70)))
    seen = backbone.decode_square(image, backbone.embed(_points(1, 2, 1, (45, 70)), (45, 70)))
    assert image.main.shape == (1, backbone.channels, backbone.feature_side, backbone.feature_side)
    assert seen.logits.shape == (1, 2, backbone.mask_side, backbone.mask_side)
    assert seen.tokens.shape == (1, 2, backbone.channels)
    assert backbone.position_encoding().shape == (1, backbone.channels, backbone.feature_side, backbone.feature_side)


def test_grey_is_the_same_as_three_equal_channels(backbone: Backbone) -> None:
    grey = _slices(1, (60, 50))
    torch.testing.assert_close(backbone.encode(grey).main, backbone.encode(grey.repeat(1, 3, 1, 1)).main)


@pytest.mark.parametrize("exact", [False, True])
def test_a_large_square_is_encoded_for_few_slices_at_once(
    exact: bool, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices, encode = _slices(5, (60, 50)), backbone.encode_exact if exact else backbone.encode
    whole = encode(slices)
    counts = []
    handle = backbone.image_encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    monkeypatch.setattr("handful.backbones.base.ENCODED_PIXELS", 2 * backbone.side**2 + 1)
    with torch.no_grad():
        parts = encode(slices)
    handle.remove()
    assert counts == [2, 2, 1]
    assert parts.size == whole.size
    for level, other in zip(parts.features, whole.features, strict=True):
        torch.testing.assert_close(level, other, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("size", [(45, 70), (131, 90), (300, 200)])
def test_a_mask_comes_back_from_the_square_where_it_was(backbone: Backbone, size: tuple[int, int]) -> None:
    h, w = size
    mask = torch.zeros(1, 1, h, w)
    mask[..., h // 4 : h // 2, w // 3 : 2 * w // 3] = 1.0
    back = backbone.to_image_frame(backbone.to_model_frame(mask, backbone.side), size)
    both, either = ((back > 0.5) & (mask > 0.5)).sum(), ((back > 0.5) | (mask > 0.5)).sum()
    assert back.shape == mask.shape
    assert both / either > 0.95


def test_masks_in_the_square_are_area_fractions(backbone: Backbone) -> None:
    mask = torch.zeros(1, 1, 60, 120)
    mask[..., 10:31, 20:71] = 1.0
    coarse = backbone.to_model_frame(mask, backbone.feature_side)
    whole = backbone.to_model_frame(torch.ones_like(mask), backbone.feature_side)
    assert coarse.amin() >= 0
    assert coarse.amax() <= 1 + 1e-6
    torch.testing.assert_close(coarse.sum() / whole.sum(), mask.mean(), atol=5e-3, rtol=0)


def test_padding_of_the_square_is_outside_every_mask() -> None:
    sam = tiny_models.tiny_sam()
    whole = sam.to_model_frame(torch.ones(1, 1, 40, 80), 16)
    torch.testing.assert_close(whole[..., :8, :], torch.ones(1, 1, 8, 16))
    assert whole[..., 8:, :].sum() == 0


def test_sam_pads_with_noughts_after_taking_the_mean_out() -> None:
    sam = tiny_models.tiny_sam()
    seen = []
    handle = sam.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sam.encode(torch.full((1, 1, 40, 80), 0.485))
    handle.remove()
    pixels = seen[0]
    assert pixels.shape == (1, 3, sam.side, sam.side)
    assert pixels[..., sam.side // 2 :, :].abs().max() == 0
    torch.testing.assert_close(pixels[0, 1, 0, 0], torch.tensor((0.485 - 0.456) / 0.224))


@pytest.mark.parametrize(("size", "content"), [((40, 80), (64, 128)), ((100, 50), (128, 64))])
def test_a_point_in_slice_pixels_gets_the_token_of_its_place_in_sams_square(
    size: tuple[int, int], content: tuple[int, int]
) -> None:
    sam = tiny_models.tiny_sam()
    x, y = 10.0, 7.0  # the centre of that pixel; half a pixel from its corner
    mapped = torch.tensor([[[[(x + 0.5) * content[1] / size[1] - 0.5, (y + 0.5) * content[0] / size[0] - 0.5]]]])
    expected, _ = sam.model.prompt_encoder(mapped, torch.tensor([[[1]]]), None, None)
    prompt = Prompts(points=torch.tensor([[[[x, y]]]]), point_labels=torch.tensor([[[1]]]))
    torch.testing.assert_close(sam.embed(prompt, size).sparse, expected)


@pytest.mark.parametrize("build", [tiny_models.tiny_sam2, tiny_models.tiny_sam2_video])
def test_a_point_in_slice_pixels_is_stretched_with_the_slice_in_sam_2(build: object) -> None:
    sam2 = build()  # type: ignore[operator]
    mapped = torch.tensor([[[[10.5 * 128 / 80 - 0.5, 7.5 * 128 / 40 - 0.5]]]])
    expected, _ = sam2.model.prompt_encoder(mapped, torch.tensor([[[1]]]), None, None)
    prompt = Prompts(points=torch.tensor([[[[10.0, 7.0]]]]), point_labels=torch.tensor([[[1]]]))
    torch.testing.assert_close(sam2.embed(prompt, (40, 80)).sparse, expected)


def test_a_box_is_its_two_corners_moved_like_points(backbone: Backbone) -> None:
    size = (40, 80)
    box = torch.tensor([[[10.0, 7.0, 30.0, 20.0]]])
    padded = backbone.family.pixels.resize == "pad"
    scale = torch.tensor([128 / 80, (64 if padded else 128) / 40]).repeat(2)
    expected, _ = backbone.prompt_encoder(None, None, (box + 0.5) * scale - 0.5, None)
    torch.testing.assert_close(backbone.embed(Prompts(boxes=box), size).sparse, expected)


def test_an_unused_slot_is_sams_own_not_a_point(backbone: Backbone) -> None:
    unused = Prompts(points=torch.rand(1, 1, 1, 2), point_labels=torch.full((1, 1, 1), PADDING))
    token = backbone.embed(unused, (40, 80)).sparse[0, 0, 0]
    torch.testing.assert_close(token, backbone.prompt_encoder.not_a_point_embed.weight[0])


def test_a_label_without_a_box_beside_one_with_a_box_has_unused_slots_in_place_of_corners(backbone: Backbone) -> None:
    size, clicks = (40, 80), _points(1, 2, 3, (40, 80))
    box = torch.tensor([[[0.0] * 4, [10.0, 7.0, 30.0, 20.0]]])
    both = backbone.embed(Prompts(clicks.points, clicks.point_labels, box), size).sparse
    of_points = backbone.embed(clicks, size).sparse[:, :, :3]
    torch.testing.assert_close(both[:, :, :3], of_points)
    corners = backbone.embed(Prompts(boxes=box[:, 1:]), size).sparse
    torch.testing.assert_close(both[:, 1:, 3:], corners)
    unused = backbone.prompt_encoder.not_a_point_embed.weight.expand(corners.shape[2], -1)
    torch.testing.assert_close(both[0, 0, 3:], unused)


def test_empty_prompts_are_refused(backbone: Backbone) -> None:
    with pytest.raises(SettingsError, match="empty prompts"):
        backbone.embed(Prompts(), (40, 80))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("with_masks", [False, True])
def test_all_labels_in_one_call_equal_one_by_one(backbone: Backbone, multimask: bool, with_masks: bool) -> None:
    size = (45, 70)
    image = backbone.encode(_slices(2, size))
    points = _points(2, 3, 2, size)
    masks = 5 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2)) if with_masks else None
    together = backbone.decode_square(
        image, backbone.embed(Prompts(points.points, points.point_labels, None, masks), size), multimask
    )
    for label in range(3):
        pick = slice(label, label + 1)
        alone = backbone.decode_square(
            image,
            backbone.embed(
                Prompts(
                    points.points[:, pick],
                    points.point_labels[:, pick],
                    None,
                    None if masks is None else masks[:, pick],
                ),
                size,
            ),
            multimask,
        )
        torch.testing.assert_close(together.logits[:, pick], alone.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.tokens[:, pick], alone.tokens, atol=1e-5, rtol=1e-4)


def test_a_mask_prompt_is_read_and_its_padding_is_outside(backbone: Backbone) -> None:
    size = (40, 80)
    inside = torch.full((1, 1, *size), 10.0)
    nothing = backbone.embed(Prompts(masks=-inside), size).dense
    everything = backbone.embed(Prompts(masks=torch.cat([inside[..., :40], -inside[..., 40:]], dim=-1)), size).dense
    assert nothing is not None
    assert everything is not None
    assert (nothing - everything).abs().max() > 0.01
    # nothing, padding and all, looks the same everywhere but at the border of the convolutions, which there is none of
    torch.testing.assert_close(nothing, nothing[..., :1, :1].expand_as(nothing), atol=1e-5, rtol=1e-4)


def test_a_mask_alone_needs_no_points(backbone: Backbone) -> None:
    size = (40, 80)
    prompt = backbone.embed(Prompts(masks=torch.randn(2, 2, *size)), size)
    assert prompt.sparse.shape == (2, 2, 0, backbone.channels)
    assert backbone.decode(backbone.encode(_slices(2, size)), prompt).shape == (2, 2, *size)


def test_sams_prediction_is_that_of_transformers_decoder() -> None:
    sam = tiny_models.tiny_sam()
    image = sam.encode(_slices(2, (45, 70)))
    prompt = sam.embed(_points(2, 3, 2, (45, 70)), (45, 70))
    for multimask in (False, True):
        masks, iou = sam.mask_decoder(
            image_embeddings=image.main,
            image_positional_embeddings=sam.position_encoding().expand(2, -1, -1, -1),
            sparse_prompt_embeddings=prompt.sparse,
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight[:, :, None, None],
            multimask_output=multimask,
        )
        seen = sam.decode_square(image, prompt, multimask)
        best = iou.argmax(dim=2)
        expected = torch.stack([masks[n, range(3), best[n]] for n in range(2)])
        torch.testing.assert_close(seen.logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.iou, iou.amax(dim=2))


def test_sams_decoder_norms_as_it_was_trained_to_whatever_the_config_says() -> None:
    trained = tiny_models.tiny_sam()
    other = SamModel(tiny_models.sam_config(decoder_eps=1e-6))
    other.load_state_dict(trained.model.state_dict())
    size = (45, 70)
    prompt, image = trained.embed(_points(1, 1, 1, size), size), trained.encode(_slices(1, size))
    assert torch.equal(SamBackbone(other, "other").decode(image, prompt), trained.decode(image, prompt))


def test_sam_2_without_prior_masks_predicts_as_transformers_whole_model() -> None:
    sam2 = tiny_models.tiny_sam2()
    slices = _slices(1, (128, 128), channels=3)
    prompts = _points(1, 2, 2, (128, 128))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = sam2.model(
        pixel_values=(slices - mean[:, None, None]) / std[:, None, None],
        input_points=prompts.points,
        input_labels=prompts.point_labels.int(),
        multimask_output=False,
    )
    seen = sam2.decode_square(sam2.encode_exact(slices), sam2.embed(prompts, (128, 128)))
    torch.testing.assert_close(seen.logits, expected.pred_masks[:, :, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.object_score, expected.object_score_logits[..., 0], atol=1e-5, rtol=1e-4)


def test_every_parameter_is_frozen(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.position_encoding().requires_grad


def test_sams_random_projection_never_becomes_trainable() -> None:
    sam = tiny_models.tiny_sam()
    sam.requires_grad_(True)
    assert not any("positional_embedding" in name for name, p in sam.named_parameters())
    assert any("positional_embedding" in name for name in sam.state_dict())


def test_gradients_reach_the_tokens_but_not_the_encoder(backbone: Backbone) -> None:
    image = backbone.encode(_slices(1, (45, 70)))
    tokens = torch.randn(1, 2, 3, backbone.channels, requires_grad=True)
    backbone.decode(image, PromptEmbeddings(tokens)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0
    assert not image.main.requires_grad


def test_gradients_reach_a_trainable_encoder(backbone: Backbone) -> None:
    backbone.image_encoder.requires_grad_(True)
    backbone.encode_exact(_slices(1, (45, 70))).main.sum().backward()
    assert all(p.grad is not None for p in list(backbone.image_encoder.parameters())[:1])


def test_a_fork_shares_the_encoder_and_owns_its_decoder(backbone: Backbone) -> None:
    size = (45, 70)
    image, prompt = backbone.encode(_slices(1, size)), backbone.embed(_points(1, 1, 1, size), size)
    before = backbone.decode(image, prompt)
    fork = backbone.fork()
    assert fork.image_encoder is backbone.image_encoder
    with torch.no_grad():
        for parameter in fork.mask_decoder.parameters():
            parameter.add_(0.1)
    assert not torch.equal(fork.decode(image, prompt), before)
    torch.testing.assert_close(backbone.decode(image, prompt), before)


def test_a_cache_changes_nothing(backbone: Backbone, tmp_path: object) -> None:
    size = (45, 70)
    slices, prompts = _slices(2, size), _points(2, 2, 2, size)
    kept = cached(backbone, tmp_path)  # type: ignore[arg-type]
    plain = backbone.decode(backbone.encode(slices), backbone.embed(prompts, size))
    for _ in range(2):
        again = kept.decode(kept.encode(slices), kept.embed(prompts, size))
        assert torch.equal(again, plain)
    assert isinstance(kept, MemoryBackbone) == isinstance(backbone, MemoryBackbone)
    assert kept.digest() == backbone.digest()


def test_embeddings_of_slices_of_several_sizes_decode_only_in_the_square(backbone: Backbone) -> None:
    mixed = ImageEmbeddings.cat([backbone.encode(_slices(1, size)) for size in ((45, 70), (90, 60))])
    prompt = PromptEmbeddings(torch.randn(2, 1, 1, backbone.channels))
    assert backbone.decode_square(mixed, prompt).logits.shape[0] == 2
    with pytest.raises(SettingsError, match="several sizes"):
        backbone.decode(mixed, prompt)
