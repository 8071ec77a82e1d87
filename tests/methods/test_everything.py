"""The "everything" mode finds each object of a slice once, and no object where there is none."""

import pytest
import torch

import tiny_models
from handful.backbones.base import MaskPrediction
from handful.backbones.catalog import load_backbone
from handful.errors import SettingsError
from handful.methods.everything import AT_ONCE, EverythingConfig, _distinct, everything

CENTRES = ((24, 30), (70, 90), (100, 40))


def discs() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    return torch.stack([(y - row) ** 2 + (x - column) ** 2 < 14**2 for row, column in CENTRES])


def test_each_object_is_found_once():
    truth = discs()
    picture = (
        0.15 + 0.7 * truth.any(dim=0).float() + 0.02 * torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    )
    found = everything(
        picture.clamp(0, 1)[None, None], load_backbone("handful-tiny"), EverythingConfig(points=12)
    ).masks
    both = (found[:, None] & truth[None]).sum(dim=(2, 3))
    iou = both / (found[:, None] | truth[None]).sum(dim=(2, 3))
    assert (iou.amax(dim=0) > 0.8).all()
    assert ((iou > 0.8).sum(dim=0) == 1).all()


def test_poor_unstable_and_repeated_masks_are_left_out(monkeypatch: pytest.MonkeyPatch):
    backbone = load_backbone("handful-tiny")
    square = torch.full((64, 64), -9.0)
    square[10:30, 10:30] = 9.0
    moved = square.roll(1, dims=1)
    other = square.roll(30, dims=0)
    soft = other.roll(30, dims=1) / 12
    poor = square.roll(30, dims=1)
    logits = torch.stack([moved, square, soft, poor, other, torch.full((64, 64), -9.0)])[None]
    iou = torch.tensor([[0.8, 0.9, 0.95, 0.2, 0.85, 0.99]])
    answer = MaskPrediction(logits, iou, None, torch.zeros(1, 6, 128))
    monkeypatch.setattr(type(backbone), "decode_square", lambda *_, **__: answer)
    found = everything(torch.rand(1, 1, 64, 64), backbone, EverythingConfig(points=1))
    middles = [tuple(mask.nonzero().float().mean(dim=0).tolist()) for mask in found.masks]
    assert middles == [(19.5, 19.5), (49.5, 19.5)]
    assert [round(float(iou), 6) for iou in found.iou] == [0.9, 0.85]
    assert found.stability.tolist() == [1, 1]


def test_of_many_masks_each_is_compared_with_all_better_ones():
    """More masks than one block of comparisons holds."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(3 * AT_ONCE, 16, 16, dtype=torch.bool)
    for mask, (row, column) in zip(masks, torch.randint(0, 10, (len(masks), 2), generator=generator), strict=True):
        mask[row : row + 6, column : column + 6] = True
    kept: list[int] = []
    for row, mask in enumerate(masks):
        if all((mask & masks[other]).sum() / (mask | masks[other]).sum() <= 0.5 for other in kept):
            kept.append(row)
    assert _distinct(masks, 0.5) == kept


def test_thresholds_are_those_of_the_backbone_unless_given():
    assert EverythingConfig(least_stability=0.5).thresholds(load_backbone("handful-tiny")) == (0.3, 0.5)
    assert EverythingConfig().thresholds(tiny_models.tiny_sam()) == (0.88, 0.95)


@pytest.mark.parametrize("wrong", [{"points": 0}, {"points": 65}, {"least_iou": 1.5}, {"most_overlap": -0.1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        EverythingConfig(**wrong)  # type: ignore[arg-type]
