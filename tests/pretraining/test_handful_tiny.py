"""The weights in the package match their card: small, loadable by transformers alone, and able to segment."""

from pathlib import Path

import pytest
import torch
from transformers import Sam2VideoModel

import handful
from handful.backbones.base import MemoryBackbone
from handful.backbones.catalog import load_backbone
from handful.pretraining.pretrain import PretrainConfig, make_batch
from handful.pretraining.tasks import train_step

FOLDER = Path(handful.__file__).parent / "backbones" / "weights" / "handful-tiny"


def test_transformers_loads_the_folder_by_itself_and_it_is_small() -> None:
    model = Sam2VideoModel.from_pretrained(FOLDER, dtype=torch.float32)
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert (FOLDER / "model.safetensors").stat().st_size < 20e6
    assert "license: apache-2.0" in (FOLDER / "README.md").read_text(encoding="utf-8")


def mean_dice(config: PretrainConfig, seeds: range) -> dict[str, float]:
    """Return the mean Dice of each task over one episode per seed."""
    backbone = load_backbone("handful-tiny")
    assert isinstance(backbone, MemoryBackbone)
    dice: dict[str, list[float]] = {}
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            tasks = train_step(backbone, make_batch(config, rng), rng)
        for name, task in tasks.items():
            dice.setdefault(name, []).append(task.dice)
    return {name: sum(values) / len(values) for name, values in dice.items()}


def test_it_segments_structures_of_a_new_anatomy() -> None:
    mean = mean_dice(PretrainConfig(side=256, subjects=2, slices=2, targets=2, crowd=0.0), range(90_000, 90_001))
    for name, least in {"memory": 0.6, "neighbour": 0.6, "tokens": 0.5, "box": 0.6, "mask": 0.7, "points": 0.5}.items():
        assert mean[name] > least, name


@pytest.mark.learning
def test_it_segments_structures_of_several_new_anatomies() -> None:
    mean = mean_dice(PretrainConfig(side=256), range(90_000, 90_006))
    # empty or constant masks score below 0.2
    for name, least in {"memory": 0.4, "neighbour": 0.4, "tokens": 0.3, "box": 0.5, "mask": 0.6, "points": 0.3}.items():
        assert mean[name] > least, name
    assert mean["correction"] > mean["points"]
