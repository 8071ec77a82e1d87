"""A model of volumes in a session: one click in one slice segments a label in all of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.sam_med3d import SamMed3d, SamMed3dShape, VolumePrediction
from handful.data.volume import LabelMap, Volume
from handful.errors import SettingsError
from handful.session.session import Session, SessionConfig
from phantoms import LABELS

BALL, EGG = LABELS.values
SIDE = 64


class AroundTheClicks(SamMed3d):
    """Takes a ball of 9 mm around each positive click for the object."""

    def encode(self, cube: Tensor) -> Tensor:
        return cube[None, None]

    def decode(
        self, embeddings: Tensor, clicks: Tensor, positive: Tensor, previous: Tensor | None = None
    ) -> VolumePrediction:
        cells = torch.stack(torch.meshgrid(*[torch.arange(SIDE / 4) * 4 + 1.5] * 3, indexing="ij"), dim=-1)
        distance = (cells[..., None, :] - clicks[0][positive[0]]).norm(dim=-1).amin(dim=-1)
        return VolumePrediction(6 - distance[None], torch.ones(1))


@pytest.fixture
def model() -> SamMed3d:
    shape = SamMed3dShape(
        side=SIDE, width=24, depth=1, heads=1, global_blocks=(0,), channels=48, decoder_mlp=8, iou_width=8
    )
    return AroundTheClicks(shape)


def test_a_click_segments_the_volume_in_one_step(scan: tuple[Volume, LabelMap], sam: Backbone, model: SamMed3d):
    with Session(scan[0], sam, LABELS, config=SessionConfig(background=False)) as session:
        height, width = session.size
        with pytest.raises(SettingsError, match="positive click"):
            session.prompt_volume(model, BALL)
        session.click(2, BALL, (width / 2, height / 2))
        session.accept(4)
        by_hand = session.classes(2)
        changed = session.prompt_volume(model, BALL)
        assert set(changed) <= {0, 1, 3, 5}
        assert {1, 3} <= set(changed)
        assert np.array_equal(session.classes(2), by_hand), "masks from prompts stay in front"
        assert not session.classes(4).any(), "it was accepted"
        rows, columns = np.nonzero(session.classes(3) == BALL)
        assert (rows.mean(), columns.mean()) == pytest.approx((height / 2, width / 2), abs=1.5)
        assert set(session.undo()) >= set(changed)
        assert not session.classes(3).any()
