"""A session with a learner needs fewer prompts over time; undo, saving and restoring include what was learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.methods.auxiliary.learner import Auxiliary
from handful.methods.auxiliary.training import AuxiliaryConfig
from handful.methods.base import PromptableSegmenter
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import CAREFUL
from handful.session.session import Session, SessionConfig
from handful.session.simulated_annotator import annotate_scan

TUMOUR = Labels((1,), ("tumour",))
QUIET = SessionConfig(background=False)
SMALL = AuxiliaryConfig(
    side=32, channels=4, queue=4, steps=6, learning_rate=1e-2, recent=3, trusted_after=2, margin=0.6
)
SIDE, COUNT = 48, 9


class CoreOnly(PromptableSegmenter):
    """Finds the bright core of a tumour, as on the scans that it was made for; a click adds or removes a small disc."""

    def prompted_logits(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        found = slices[:, :1] > 0.7 if prompts.masks is None else prompts.masks > 0
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        assert prompts.points is not None
        assert prompts.point_labels is not None
        for (at_x, at_y), positive in zip(
            prompts.points[0, 0].tolist(), prompts.point_labels[0, 0].tolist(), strict=True
        ):
            disc = (x - at_x) ** 2 + (y - at_y) ** 2 <= 4
            found = found & ~disc | (disc & bool(positive))
        return torch.where(found, 6.0, -6.0)

    def learned(self) -> dict[str, Tensor]:
        return {}


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, LabelMap]:
    """One tumour with a grey rim on each slice."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    away = np.stack([np.hypot(x - rng.uniform(16, 32), y - rng.uniform(16, 32)) for _ in range(COUNT)], axis=-1)
    grey = 0.2 + 0.3 * (away < 9) + 0.4 * (away < 6) + rng.normal(0, 0.02, away.shape)
    geometry = Geometry((SIDE, SIDE, COUNT), np.eye(4))
    return Volume(grey.astype(np.float32)[None], geometry), LabelMap((away < 9).astype(np.int16), geometry, TUMOUR)


@pytest.fixture
def model(sam: Backbone) -> CoreOnly:
    return CoreOnly(TUMOUR, Slicer(plane="axial", window=(0.0, 1.0)), sam)


def opened(scan: tuple[Volume, LabelMap], model: CoreOnly, learner: Auxiliary | None) -> Session:
    return Session(scan[0], model, config=QUIET, learner=learner)


def correct(session: Session, scan: tuple[Volume, LabelMap], number: int) -> np.ndarray:
    """Click on the middle, paint the tumour, accept. Returns the mask after the click."""
    truth = session.grid.of(scan[1].array)[number] == 1
    y, x = np.argwhere(truth).mean(axis=0).tolist()
    mask = session.click(number, "tumour", (x, y)).mask
    session.paint(number, "tumour", np.ascontiguousarray(truth))
    session.accept(number)
    return mask


def test_prompts_to_a_dice_fall(scan: tuple[Volume, LabelMap], model: CoreOnly):
    needed = []
    for learner in (None, Auxiliary(SMALL)):
        with opened(scan, model, learner) as session:
            result = annotate_scan(session, scan[1], clicks=3, annotator=CAREFUL, stop_at=0.85)
            needed.append([int((row < 0.85).sum()) + 1 for row in result.dice])
    frozen, learning = needed
    assert learning[: SMALL.trusted_after] == frozen[: SMALL.trusted_after]
    assert sum(learning[-4:]) < sum(frozen[-4:]) - 4


def test_until_it_is_trusted_masks_are_exactly_the_backbones(scan: tuple[Volume, LabelMap], model: CoreOnly):
    with opened(scan, model, Auxiliary(SMALL)) as learning, opened(scan, model, None) as frozen:
        for number in range(SMALL.trusted_after):
            assert np.array_equal(correct(learning, scan, number), correct(frozen, scan, number))
        for number in range(SMALL.trusted_after, 6):
            correct(learning, scan, number)
        assert not np.array_equal(correct(learning, scan, 6), correct(frozen, scan, 6))


def test_undo_and_redo_include_what_was_learned(scan: tuple[Volume, LabelMap], model: CoreOnly):
    with opened(scan, model, Auxiliary(SMALL)) as session:
        correct(session, scan, 0)
        before = session.learner
        mask = correct(session, scan, 1)
        after = session.learner
        assert before is not after
        session.undo()
        assert session.learner is before
        session.redo()
        assert session.learner is after
        for _ in range(3):
            session.undo()
        assert session.learner is before
        assert np.array_equal(correct(session, scan, 1), mask)
        assert after is not None
        assert session.learner is not None
        assert session.learner.packed() == after.packed()


def test_an_object_is_learned_once(scan: tuple[Volume, LabelMap], model: CoreOnly):
    with opened(scan, model, Auxiliary(SMALL)) as session:
        correct(session, scan, 0)
        learner = session.learner
        session.reopen(0)
        session.accept(0)
        session.accept(3)  # nothing was prompted there
        assert session.learner is learner


def test_a_saved_session_restores_the_learner_and_its_predictions(
    scan: tuple[Volume, LabelMap], model: CoreOnly, tmp_path: Path
):
    with opened(scan, model, Auxiliary(SMALL)) as session:
        for number in range(3):
            correct(session, scan, number)
        session.click(4, "tumour", (24, 24))
        session.save_state(tmp_path / "state.npz")
    with opened(scan, model, Auxiliary()) as again:
        again.restore(tmp_path / "state.npz")
        assert again.learner is not None
        assert session.learner is not None
        assert again.learner.packed() == session.learner.packed()
        for one in (session, again):
            one.accept(4)
        assert again.learner.packed() == session.learner.packed()
        again.undo()
        again.undo()
        assert again.learner.packed() == Auxiliary().packed()
    with opened(scan, model, None) as without:
        without.restore(tmp_path / "state.npz")
        assert without.learner is None


def test_each_step_on_disk_includes_the_learner(scan: tuple[Volume, LabelMap], model: CoreOnly, tmp_path: Path):
    with opened(scan, model, Auxiliary(SMALL)) as session:
        session.keep_in(tmp_path)
        correct(session, scan, 0)
        first = session.learner
        correct(session, scan, 1)
        session.click(2, "tumour", (24, 24))
        assert len(list(tmp_path.glob("learner-*"))) == 1
        assert kept(scan, model, tmp_path) == packed(session)
        session.undo()
        session.undo()
        assert session.learner is first
        assert kept(scan, model, tmp_path) == packed(session)
        (tmp_path / "learner-00009999.safetensors").write_bytes(b"of a step that was killed")
        assert kept(scan, model, tmp_path) == packed(session)


def packed(session: Session) -> bytes:
    assert session.learner is not None
    return session.learner.packed()


def kept(scan: tuple[Volume, LabelMap], model: CoreOnly, folder: Path) -> bytes:
    """The learner of a new session with the steps in a folder, as after a kill."""
    with opened(scan, model, Auxiliary()) as again:
        again.keep_in(folder)
        return packed(again)
