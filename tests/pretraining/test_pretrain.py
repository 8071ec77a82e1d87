"""The recipe runs, resumes exactly, and leaves a folder that transformers loads by itself."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Sam2VideoModel

from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.pretraining.pretrain import PretrainConfig, make_batch, pretrain
from handful.pretraining.skills import practise
from handful.tuning.loop import TrainConfig
from handful.tuning.run import Run

SHORT = TrainConfig(iterations=25, ema=0.5)
SMALL = PretrainConfig(side=64, episodes=1, subjects=3, targets=2, matching=5, train=SHORT)


def test_a_batch_groups_slices_by_episode() -> None:
    batch = make_batch(PretrainConfig(side=64, episodes=2, subjects=3, targets=2), torch.Generator().manual_seed(0))
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.masks.shape == (6, 2, 64, 64)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.slow
def test_pretraining_writes_a_folder_that_transformers_loads_and_another_side_goes_on_from(tmp_path: Path) -> None:
    pretrain(SMALL, tmp_path / "a")
    model = Sam2VideoModel.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert model.config.image_size == 64
    code = model.shared_image_embedding.positional_embedding
    assert torch.equal(code, model.prompt_encoder.shared_embedding.positional_embedding)
    assert (tmp_path / "a" / "curves.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 25
    assert 0 <= rows[0]["memory_dice"] <= 1

    larger = PretrainConfig(
        side=128, episodes=1, subjects=2, targets=1, start=tmp_path / "a", train=TrainConfig(iterations=1)
    )
    pretrain(larger, tmp_path / "b")
    assert Sam2VideoModel.from_pretrained(tmp_path / "b").config.image_size == 128


@pytest.mark.slow
def test_a_killed_pretraining_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    short = TrainConfig(iterations=4, ema=0.5)
    config = PretrainConfig(side=64, episodes=1, subjects=2, targets=1, matching=2, train=short)

    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    pretrain(config, tmp_path / "whole")
    scratch = tmp_path / "killed" / "partial"
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "killed", Run(scratch, kill, save_every_s=0.0))
    pretrain(config, tmp_path / "killed", Run(scratch))
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == resumed
    assert not scratch.exists()


def test_every_skill_reaches_the_encoder_and_a_practised_step_lowers_the_loss() -> None:
    from handful.pretraining.architecture import tiny_config

    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_config(side=64, width=16, channels=64))
    backbone = Sam2VideoBackbone(model, "test")
    model.requires_grad_(True)
    batch = make_batch(SMALL, torch.Generator().manual_seed(0))
    skills = practise(backbone, batch, torch.Generator().manual_seed(0))
    assert {"memory", "tokens", "correction"} < set(skills)
    first = next(model.vision_encoder.parameters())
    for skill in skills.values():
        (gradient,) = torch.autograd.grad(skill.loss, first, retain_graph=True)
        assert gradient.abs().sum() > 0
