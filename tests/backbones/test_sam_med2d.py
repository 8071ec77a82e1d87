"""SAM-Med2D's file gives SAM with adapters in its encoder, on 256 pixels."""

from pathlib import Path

import torch
from torch import Tensor, nn

import tiny_models
from backbones.authors_layout import authors_state, random_state, sam_med2d_adapter, sam_pairs
from handful.backbones.catalog import load_backbone
from handful.backbones.official import from_official_state

WIDTH = 48


def _state() -> dict[str, Tensor]:
    adapters = {name: shape for block in (0, 1) for name, shape in sam_med2d_adapter(WIDTH, block).items()}
    return authors_state(tiny_models.tiny_sam().model, sam_pairs(layers=2)) | random_state(adapters)


def _authors_adapter(state: dict[str, Tensor], block: int, tokens: Tensor) -> Tensor:
    """Adapter_Layer.forward of SAM-Med2D, written out with its own weights."""
    name = f"image_encoder.blocks.{block}.Adapter"
    maps = tokens.permute(0, 3, 1, 2)
    pooled = maps.mean(dim=(2, 3)) @ state[f"{name}.channel.0.weight"].T
    weights = torch.sigmoid(torch.relu(pooled) @ state[f"{name}.channel.2.weight"].T)
    spatial = torch.relu(
        nn.functional.conv2d(maps * weights[..., None, None], state[f"{name}.spatial.0.weight"], stride=2, padding=1)
    )
    spatial = torch.relu(
        nn.functional.conv_transpose2d(spatial, state[f"{name}.spatial.2.weight"], stride=2, padding=1)
    )
    summed = (maps + spatial).permute(0, 2, 3, 1)
    return nn.functional.layer_norm(summed, (WIDTH,), state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])


def test_each_adapter_is_added_parallel_to_its_mlp() -> None:
    state = _state()
    adapted = from_official_state(state, "sam-med2d_b.pth")
    plain = tiny_models.tiny_sam()
    tokens = torch.rand(1, 8, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    for block in (0, 1):
        theirs = plain.model.vision_encoder.layers[block].mlp(tokens) + _authors_adapter(state, block, tokens)
        ours = adapted.model.vision_encoder.layers[block].mlp(tokens)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_file_with_adapters_takes_the_pixels_of_its_authors_by_default() -> None:
    adapted = from_official_state(_state(), "sam-med2d_b.pth")
    assert adapted.family.pixels.resize == "stretch"
    assert not adapted.family.pixels.min_max
    assert adapted.family.defaults.multimask == "always"


def test_the_published_layout_with_an_optimiser_in_it_loads_and_the_optimiser_is_dropped(tmp_path: Path) -> None:
    """train.py saves {'model': ..., 'optimizer': the optimiser itself}; nothing of torch.optim is made of it."""
    state = _state()
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([weight], lr=1e-4)
    weight.sum().backward()
    optimiser.step()
    torch.save({"model": state, "optimizer": optimiser}, tmp_path / "sam-med2d_b.pth")
    loaded = load_backbone(f"sam-med2d:{tmp_path / 'sam-med2d_b.pth'}")
    assert loaded.digest() == from_official_state(state, "sam-med2d").digest()
    assert loaded.name == f"sam-med2d:{tmp_path / 'sam-med2d_b.pth'}"


def test_weights_without_adapters_can_be_sam_med2d_too(tmp_path: Path) -> None:
    """FT-SAM of the same authors: SAM tuned at 256 pixels."""
    torch.save(authors_state(tiny_models.tiny_sam().model, sam_pairs(layers=2)), tmp_path / "ft-sam_b.pth")
    loaded = load_backbone(f"sam-med2d:{tmp_path / 'ft-sam_b.pth'}")
    assert loaded.family.pixels.resize == "stretch"
    assert load_backbone(tmp_path / "ft-sam_b.pth").family.pixels.resize == "pad"
