"""The preview of pre-training."""

from pathlib import Path

import numpy as np
from PIL import Image

from handful.reports.episodes_picture import draw_episodes
from handful.synthesis.worlds import WIDE_WORLD


def test_the_picture_of_episodes_is_not_blank(tmp_path: Path):
    draw_episodes(WIDE_WORLD, (2, 3, 2, 64), 0, tmp_path / "episodes.png")
    assert np.asarray(Image.open(tmp_path / "episodes.png").convert("L")).std() > 10
