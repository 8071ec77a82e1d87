"""The preview of pre-training."""

from pathlib import Path

import numpy as np
from PIL import Image

from handful.pretraining.pretrain import PretrainConfig
from handful.reports.episodes_picture import draw_episodes


def test_the_picture_of_episodes_is_not_blank(tmp_path: Path):
    draw_episodes(PretrainConfig(side=64, episodes=1, subjects=2, targets=2), tmp_path / "episodes.png")
    assert np.asarray(Image.open(tmp_path / "episodes.png").convert("L")).std() > 10
