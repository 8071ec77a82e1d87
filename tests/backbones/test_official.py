"""Checkpoint files as the authors of SAM, MedSAM, SAM 2 and SAM 2.1 publish them give the models they are."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig, SamConfig, SamModel

import tiny_models
from backbones.authors_layout import authors_state, sam2_image_pairs, sam2_video_pairs, sam_pairs
from handful.backbones.base import Backbone, MemoryBackbone
from handful.backbones.official import from_official_state, load_official, read_state
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import CheckpointError, SettingsError
from handful.prompts.prompts import Prompts


def _sam_state() -> dict[str, Tensor]:
    return authors_state(tiny_models.tiny_sam().model, sam_pairs(layers=2))


def _video_state() -> dict[str, Tensor]:
    return authors_state(tiny_models.tiny_sam2_video().model, sam2_video_pairs(blocks=12, memory_layers=2))


def _saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def _same_answers(loaded: Backbone, original: Backbone) -> None:
    slices = torch.rand(2, 1, 50, 90, generator=torch.Generator().manual_seed(3))
    prompts = Prompts(points=torch.tensor([[[[20.0, 30.0]]]] * 2), point_labels=torch.ones(2, 1, 1, dtype=torch.long))
    answers = []
    for backbone in (loaded, original):
        image = backbone.encode_exact(slices)
        answers.append(backbone.decode(image, backbone.embed(prompts, (50, 90))))
        if isinstance(backbone, MemoryBackbone):
            mask = torch.zeros(1, 50, 90)
            mask[:, 10:30, 20:60] = 1.0
            seen = backbone.decode_recalled(backbone.recall(image[1], backbone.memorize(image[0], mask)))
            answers.append(seen.logits)
    half = len(answers) // 2
    for one, other in zip(answers[:half], answers[half:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_sam_in_the_authors_layout_predicts_as_in_transformers(tmp_path: Path) -> None:
    loaded = load_official(_saved(_sam_state(), tmp_path / "sam_vit_b.pth"))
    assert isinstance(loaded, SamBackbone)
    assert loaded.side == tiny_models.SIDE
    _same_answers(loaded, tiny_models.tiny_sam())


def test_sam_2_for_images_in_the_authors_layout_predicts_as_in_transformers(tmp_path: Path) -> None:
    state = authors_state(tiny_models.tiny_sam2().model, sam2_image_pairs(blocks=12))
    loaded = load_official(_saved({"model": state}, tmp_path / "image.pt"), image_size=tiny_models.SIDE)
    assert type(loaded) is Sam2Backbone
    _same_answers(loaded, tiny_models.tiny_sam2())


def test_sam_2_1_in_the_authors_layout_predicts_as_in_transformers(tmp_path: Path) -> None:
    loaded = load_official(_saved({"model": _video_state()}, tmp_path / "sam2.1.pt"), image_size=tiny_models.SIDE)
    assert isinstance(loaded, Sam2VideoBackbone)
    _same_answers(loaded, tiny_models.tiny_sam2_video())


def test_sam_2_0_is_recognised_by_what_it_lacks() -> None:
    config = tiny_models.sam2_video_config(memory_2_0=True)
    original = Sam2VideoBackbone(Sam2VideoModel(config), "SAM 2.0")
    state = authors_state(original.model, sam2_video_pairs(blocks=12, memory_layers=2))
    assert "no_obj_embed_spatial" not in state
    loaded = from_official_state(state, "sam2", image_size=tiny_models.SIDE)
    assert isinstance(loaded, Sam2VideoBackbone)
    assert not loaded.model.config.enable_temporal_pos_encoding_for_object_pointers
    assert not loaded.model.config.enable_occlusion_spatial_embedding
    _same_answers(loaded, original)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_medsam_training_checkpoint_gives_its_model(tmp_path: Path, prefix: str) -> None:
    state = {prefix + key: tensor for key, tensor in _sam_state().items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    path = _saved({"model": state, "optimizer": optimizer, "epoch": 7}, tmp_path / "medsam_model_best.pth")
    _same_answers(load_official(path), tiny_models.tiny_sam())


def test_safetensors_with_the_authors_names_are_read(tmp_path: Path) -> None:
    state = {key: tensor.contiguous() for key, tensor in _sam_state().items()}
    safetensors.torch.save_file(state, tmp_path / "sam.safetensors")
    _same_answers(load_official(tmp_path / "sam.safetensors"), tiny_models.tiny_sam())


def test_colours_kept_as_weights_are_left_aside() -> None:
    state = _sam_state() | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    _same_answers(from_official_state(state, "sam"), tiny_models.tiny_sam())


def test_half_precision_weights_become_single(tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in _sam_state().items()}
    loaded = load_official(_saved(half, tmp_path / "half.pth"))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_loaded_backbones_are_frozen_and_named_after_their_file(tmp_path: Path) -> None:
    path = _saved(_sam_state(), tmp_path / "sam.pth")
    loaded = load_official(path)
    assert loaded.name == str(path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_sams_314_keys_at_full_size_all_have_a_place() -> None:
    with torch.device("meta"):
        state = authors_state(SamModel(SamConfig()), sam_pairs(layers=12))
        assert len(state) == 314
        loaded = from_official_state(state, "sam_vit_b")
    assert (loaded.side, loaded.channels, loaded.feature_side) == (1024, 256, 64)
    assert loaded.model.config.vision_config.global_attn_indexes == [2, 5, 8, 11]  # type: ignore[union-attr]
    assert loaded.model.config.vision_config.window_size == 14  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("size", "stages", "width", "heads", "keys"),
    [
        ("tiny", [1, 2, 7, 2], 96, 1, 471),
        ("small", [1, 2, 11, 2], 96, 1, 519),
        ("base-plus", [2, 3, 16, 3], 112, 2, 615),
        ("large", [2, 6, 36, 4], 144, 2, 903),
    ],
)
def test_every_key_of_every_sam_2_1_has_a_place(
    size: str, stages: list[int], width: int, heads: int, keys: int
) -> None:
    widths = [width * 2**stage for stage in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=width,
        blocks_per_stage=stages,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
        global_attention_blocks=[stages[0] + stages[1] + 2],
    )
    vision = Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=widths[::-1])
    with torch.device("meta"):
        model = Sam2VideoModel(Sam2VideoConfig(vision_config=vision))
        state = authors_state(model, sam2_video_pairs(blocks=sum(stages), memory_layers=4))
        assert len(state) == keys
        loaded = from_official_state(state, size)
    assert (loaded.side, loaded.channels, loaded.feature_side) == (1024, 256, 64)


def test_a_missing_and_an_unknown_weight_are_both_named() -> None:
    state = _sam_state()
    state["image_encoder.blocks.0.attn.bias"] = state.pop("image_encoder.neck.3.bias")
    with pytest.raises(CheckpointError, match=r"1 missing: vision_encoder\.neck\.layer_norm2\.bias") as caught:
        from_official_state(state, "sam_med2d.pth")
    assert "1 unexpected: vision_encoder.layers.0.attn.bias" in str(caught.value)


def test_a_checkpoint_without_the_weights_that_show_its_size_is_refused() -> None:
    state = _sam_state()
    del state["prompt_encoder.no_mask_embed.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 'prompt_encoder\.no_mask_embed\.weight'"):
        from_official_state(state, "sam.pth")


@pytest.mark.parametrize(
    ("build", "key", "shape"),
    [
        (_sam_state, "image_encoder.pos_embed", (8, 48)),
        (_sam_state, "image_encoder.blocks.0.attn.rel_pos_h", (7, 0)),
        (_sam_state, "mask_decoder.mask_tokens.weight", (1, 4, 64)),
        (_video_state, "maskmem_tpos_enc", ()),
        (_video_state, "sam_prompt_encoder.point_embeddings.0.weight", (1, 3)),
    ],
)
def test_weights_of_shapes_that_no_model_has_are_refused(
    build: Callable[[], dict[str, Tensor]], key: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(CheckpointError, match=r"odd\.pt has the keys of sam2?, but weights of shapes"):
        from_official_state(build() | {key: torch.zeros(shape)}, "odd.pt", image_size=tiny_models.SIDE)


@pytest.mark.parametrize(
    ("build", "encoder"), [(_sam_state, "image_encoder.blocks."), (_video_state, "image_encoder.trunk.blocks.")]
)
def test_a_checkpoint_without_an_encoder_is_refused(build: Callable[[], dict[str, Tensor]], encoder: str) -> None:
    state = {key: tensor for key, tensor in build().items() if not key.startswith(encoder)}
    with pytest.raises(CheckpointError, match=r"odd\.pt has the keys of"):
        from_official_state(state, "odd.pt", image_size=tiny_models.SIDE)


def test_stages_of_no_known_sam_2_are_refused_with_what_was_found() -> None:
    state = {key: tensor for key, tensor in _video_state().items() if "blocks.11." not in key}
    with pytest.raises(CheckpointError, match=r"stages of \(1, 2, 7, 1\) blocks"):
        from_official_state(state, "odd.pt", image_size=tiny_models.SIDE)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("image_encoder.trunk.body.stem.weight", "EdgeTAM"),
        ("vision_encoder.pos_embed", "transformers' layout"),
        ("layer1.0.conv1.weight", r"keys such as layer1\.0\.conv1\.weight"),
    ],
)
def test_another_architecture_is_refused_by_what_it_is(tmp_path: Path, key: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        load_official(_saved({key: torch.zeros(1)}, tmp_path / "other.pth"))


def test_a_file_that_needs_code_unpickled_is_refused(tmp_path: Path) -> None:
    path = _saved({"model": _sam_state(), "args": argparse.Namespace(lr=1e-4)}, tmp_path / "with_args.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_official(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn archive"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken"):
        load_official(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_refused_whatever_pytorch_raises(tmp_path: Path, zipped: bool) -> None:
    whole, damaged = tmp_path / "whole.pth", tmp_path / "damaged.pth"
    state = {f"weight{number}": torch.arange(4.0) + number for number in range(4)}
    torch.save({"model": state}, whole, _use_new_zipfile_serialization=zipped)
    content, refused = whole.read_bytes(), set()
    for place in range(0, len(content), 4):
        damaged.write_bytes(content[:place] + b"\x00" + content[place + 1 :])
        try:
            read_state(damaged)
        except CheckpointError as error:  # any other error fails the test
            refused.add(type(error.__cause__))
    assert refused - {pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, UnicodeDecodeError}


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    path = _saved({"weight": torch.zeros(1)}, tmp_path / "whole.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        read_state(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="no state dict"):
        load_official(_saved(content, tmp_path / "other.pth"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*absent\.pth"):
        load_official(tmp_path / "absent.pth")


def test_an_image_size_that_the_windows_do_not_tile_is_refused() -> None:
    with pytest.raises(SettingsError, match="multiple of 32"):
        from_official_state(_video_state(), "sam2", image_size=1000)
