"""handful-small: its true architecture with random weights, its files, and what the methods make of its finer masks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from handful.backbones.base import MemoryBackbone
from handful.backbones.catalog import load_backbone
from handful.backbones.small import SmallBackbone, SmallShape, load_small, save_small, small_model
from handful.errors import CheckpointError, SettingsError
from handful.methods.auto_sam.heads import CnnHead, LinearHead, UNetHead
from handful.prompts.prompts import Prompts

SHAPE = SmallShape(channels=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    save_small(tiny_models.tiny_small().model, SHAPE, path)
    return path


def test_its_weights_fit_into_fifteen_megabytes_at_half_precision():
    numbers = sum(tensor.numel() for tensor in small_model(SmallShape()).state_dict().values())
    assert 4.9e6 < numbers < 5.1e6
    assert 2 * numbers < 15e6


def test_masks_have_one_cell_per_two_pixels_and_the_main_features_one_per_sixteen():
    backbone = SmallBackbone(small_model(SmallShape()), "small")
    assert (backbone.side, backbone.mask_side, backbone.feature_side) == (256, 128, 16)
    image = backbone.encode(torch.rand(1, 3, 70, 45))
    assert [tuple(level.shape[1:]) for level in image.features] == [(16, 128, 128), (32, 32, 32), (128, 16, 16)]
    assert backbone.embedding_size == sum(level[0].numel() for level in image.features)


def test_colour_is_not_grey():
    backbone = tiny_models.tiny_small()
    colour = torch.rand(1, 3, 64, 64)
    grey = colour.mean(dim=1, keepdim=True)
    assert (backbone.encode(colour).main - backbone.encode(grey).main).abs().max() > 0.01


@pytest.mark.parametrize("side", [128, 256, 512])
def test_one_folder_serves_inputs_of_several_sides(folder: Path, side: int):
    backbone = load_backbone(f"{folder}@{side}")
    assert isinstance(backbone, MemoryBackbone)
    assert (backbone.side, backbone.mask_side) == (side, side // 2)
    image = backbone.encode(torch.rand(1, 1, 40, 80))
    masks = torch.zeros(1, 40, 80)
    masks[:, 10:20, 10:30] = 1
    found = backbone.decode_recalled(backbone.recall(image, backbone.memorize(image, masks)))
    assert found.logits.shape == (1, 1, side // 2, side // 2)
    assert found.logits.isfinite().all()


def test_a_folder_gives_back_the_weights_rounded_to_half_precision(folder: Path):
    saved, loaded = tiny_models.tiny_small(), load_backbone(folder)
    assert loaded.family.defaults.multimask == "never"
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor.half().float(), loaded.state_dict()[name]), name
    assert load_backbone(folder).digest() == loaded.digest()
    assert load_backbone(f"{folder}@192").digest() != loaded.digest()


def test_a_prompt_mask_keeps_details_of_four_pixels():
    backbone = tiny_models.tiny_small()
    line = torch.full((1, 1, backbone.side, backbone.side), -6.0)
    line[..., 60:64, :] = 6.0
    moved = line.roll(4, dims=2)
    first, second = (
        backbone.embed(Prompts(masks=mask), (backbone.side, backbone.side)).dense for mask in (line, moved)
    )
    assert first is not None
    assert second is not None
    assert first.shape[-1] == backbone.feature_side
    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("with_slices", [False, True])
def test_heads_that_are_trained_on_it_answer_at_the_side_of_its_masks(with_slices: bool):
    backbone = tiny_models.tiny_small()
    image = backbone.encode(torch.rand(2, 1, 64, 64))
    side = (backbone.mask_side, backbone.mask_side)
    assert CnnHead(64, 3, True, enlarging=8)(image).shape == (2, 3, *side)
    assert LinearHead(64, 3, enlarging=8)(image).shape == (2, 3, *side)
    head = UNetHead(64, 3, backbone.feature_side, True, enlarging=8, with_slices=with_slices)
    if with_slices:
        pixels = backbone.to_model_frame(torch.rand(2, 3, 64, 64), head.pixels)
        image = type(image)((pixels, *image.features), image.size)
    assert head(image).shape[:2] == (2, 3)
    assert head(image).shape[-1] == (head.pixels if with_slices else backbone.mask_side)


def test_its_own_weights_segment_a_box_and_recall_a_labelled_slice():
    backbone = load_backbone("handful-small")
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    discs = [((rows - y) ** 2 + (columns - x) ** 2 < 500) for y, x in ((50, 60), (70, 66))]
    slices = torch.stack([0.2 + 0.6 * disc.float() for disc in discs])[:, None]
    image = backbone.encode(slices)
    box = torch.tensor([[[37.0, 27.0, 83.0, 73.0]]])
    none = torch.zeros(1, 1, 0, 2), torch.zeros(1, 1, 0, dtype=torch.long)
    logits = backbone.decode(image[[0]], backbone.embed(Prompts(*none, box), image.size))
    recalled = backbone.recall(image[[1]], backbone.memorize(image[[0]], torch.where(discs[0], 10.0, -10.0)[None]))
    found = [logits[0, 0] > 0, backbone.to_image_frame(backbone.decode_recalled(recalled).logits, image.size)[0, 0] > 0]
    for mask, disc in zip(found, discs, strict=True):
        assert 2 * int((mask & disc).sum()) > 0.7 * int(mask.sum() + disc.sum())


def _copy(folder: Path, target: Path, **changes: object) -> Path:
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 65}, "multiple of 64"),
        ({"channels": 2**20}, "multiple of 64"),
        ({"channels": "64"}, "whole numbers"),
        ({"trunk": 7}, "trunk must be"),
        ({"side": 100}, "multiple of 32"),
        ({"more": 1}, "keys must be"),
        ({"channels": 128}, "do not fit"),
    ],
)
def test_an_impossible_config_is_an_error_that_says_why(
    folder: Path, tmp_path: Path, changes: dict[str, object], message: str
):
    with pytest.raises(CheckpointError, match=message):
        load_backbone(_copy(folder, tmp_path / "wrong", **changes))


def test_missing_weights_are_an_error(folder: Path, tmp_path: Path):
    broken = _copy(folder, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state.pop("no_memory_embedding")
    save_file(state, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match="no_memory_embedding"):
        load_small(broken, "broken")


def test_it_is_no_sam_of_the_first_generation(folder: Path):
    with pytest.raises(SettingsError, match="cannot be a 'medsam'"):
        load_backbone(f"medsam:{folder}")
