"""MobileSAM's file gives SAM's decoder behind a TinyViT that computes what the authors' computes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny_models
from backbones.authors_layout import authors_state, mobile_sam_encoder, random_state, sam_pairs
from handful.backbones.catalog import load_backbone
from handful.backbones.official import from_official_state
from handful.backbones.official_names import from_mobile_sam
from handful.backbones.official_sizes import tiny_vit_shape
from handful.backbones.tiny_vit import TinyVit
from handful.errors import CheckpointError, SettingsError
from handful.tuning.lora import add_lora

SMALL = ((8, 16, 24, 320), (1, 1, 2, 1), (2, 3, 10), (7, 14, 7))
"""The authors' code takes a stride of 1 before a stage of width 320, and only there."""
PUBLISHED = ((64, 128, 160, 320), (2, 2, 6, 2), (4, 5, 10), (7, 14, 7))


def _decoder_state() -> dict[str, Tensor]:
    """SAM's prompt encoder and mask decoder under the authors' names, 64 channels wide."""
    state = authors_state(tiny_models.tiny_sam().model, sam_pairs(layers=2))
    return {key: tensor for key, tensor in state.items() if not key.startswith("image_encoder.")}


def _state() -> dict[str, Tensor]:
    return random_state(mobile_sam_encoder(*SMALL, channels=64)) | _decoder_state()


def test_the_encoder_computes_what_the_authors_does() -> None:
    """Recorded from tiny_vit_sam.py of ChaoningZhang/MobileSAM at commit 34bbbfd, its side of 64 cells replaced."""
    state = random_state(mobile_sam_encoder(*SMALL))
    encoder = TinyVit(tiny_vit_shape({key: tuple(tensor.shape) for key, tensor in state.items()})).eval()
    own = {
        key.removeprefix("vision_encoder."): tensor
        for key, tensor in from_mobile_sam(state | _decoder_state()).items()
        if key.startswith("vision_encoder.")
    }
    encoder.load_state_dict(own)
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    pixels = torch.stack([torch.sin(columns / 9), torch.cos(rows / 13), torch.sin((rows + columns) / 17)])[None]
    with torch.no_grad():
        found = encoder(pixels).last_hidden_state
    assert found.shape == (1, 256, 16, 16)
    assert float(found.mean()) == pytest.approx(0.0025417, abs=1e-5)
    assert float(found.std()) == pytest.approx(1.0112690, abs=1e-5)
    for channel, expected in (
        (0, [-0.19207, 0.38784, 0.29443, -0.11588]),
        (100, [0.74065, 0.59238, 0.41466, -0.16329]),
        (255, [-1.14365, -0.37396, -0.44876, 0.22891]),
    ):
        assert found[0, channel, 0, ::5].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[0, ::64, 3, 11].tolist() == pytest.approx([0.93677, 1.02670, -0.76506, 0.10708], abs=1e-4)
    assert found[0, ::64, 15, 0].tolist() == pytest.approx([0.91624, 0.82029, -0.64077, -0.14305], abs=1e-4)


def test_all_439_keys_of_the_published_file_have_a_place() -> None:
    with torch.device("meta"):
        shapes = mobile_sam_encoder(*PUBLISHED)
        decoder = {
            key: tensor
            for key, tensor in authors_state(_full_size_sam(), sam_pairs(layers=0)).items()
            if not key.startswith("image_encoder.")
        }
        state = {key: torch.empty(shape) for key, shape in shapes.items()} | decoder
        assert len(state) == 439
        loaded = from_official_state(state, "mobile_sam.pt")
    assert (loaded.side, loaded.feature_side, loaded.channels) == (1024, 64, 256)
    # the authors' model has 10,130,092 parameters, of which 321,640 are the classifier's, 4,064,560 SAM's
    assert sum(parameter.numel() for parameter in loaded.image_encoder.parameters()) == 10_130_092 - 321_640 - 4_064_560


def _full_size_sam() -> torch.nn.Module:
    from transformers import SamConfig, SamModel

    config = SamConfig()
    config.vision_config.num_hidden_layers = 0
    return SamModel(config)


def test_the_file_loads_by_its_path_at_any_size(tmp_path: Path) -> None:
    path = tmp_path / "mobile_sam.pt"
    torch.save(_state(), path)
    backbone = load_backbone(f"{path}@128")
    assert (backbone.side, backbone.feature_side) == (128, 8)
    assert backbone.family.pixels.resize == "pad"
    assert backbone.encode(torch.rand(1, 1, 50, 70)).main.shape == (1, 64, 8, 8)
    assert backbone.digest() != load_backbone(f"mobile-sam:{path}@256").digest()
    with pytest.raises(SettingsError, match="cannot be read as 'medsam'; its keys are those of mobile-sam"):
        load_backbone(f"medsam:{path}")


def test_a_file_that_lacks_a_weight_is_refused() -> None:
    state = _state()
    del state["image_encoder.layers.1.blocks.0.local_conv.bn.running_mean"]
    with pytest.raises(CheckpointError, match=r"1 missing: .*local_conv\.bn\.running_mean"):
        from_official_state(state, "mobile_sam.pt")


def test_low_rank_updates_reach_queries_and_values_alone() -> None:
    encoder = tiny_models.tiny_mobile_sam().image_encoder
    attention = encoder.layers[1].blocks[0].attn  # type: ignore[union-attr,index]
    plain = attention.qkv
    add_lora(encoder, 2, torch.Generator().manual_seed(0))
    for part in (attention.qkv.query, attention.qkv.value):
        torch.nn.init.ones_(part.up)
    tokens = torch.rand(3, plain.in_features)
    query, key, value = (attention.qkv(tokens) - plain(tokens)).chunk(3, dim=-1)
    assert query.abs().min() > 0
    assert value.abs().min() > 0
    assert not key.any()


def test_the_published_file_is_known_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mobile_sam.pt"
    torch.save(_state(), path)
    monkeypatch.setattr("handful.backbones.catalog.hf_hub_download", lambda *_, **__: str(path))
    with pytest.raises(CheckpointError, match="damaged or another file: its SHA-256"):
        load_backbone("mobile-sam")
