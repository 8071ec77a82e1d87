"""The study of rings, on one synthetic heart; and every study can be started."""

import importlib
from pathlib import Path

import pytest
import torch

import reproduction.studies
from reproduction.studies import rings

STUDIES = sorted(path.stem for path in Path(reproduction.studies.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_finds_what_it_imports(name: str):
    importlib.import_module(f"reproduction.studies.{name}")


def test_a_heart_has_a_wall_and_a_chamber_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rings, "CHESTS", 1)
    slices, masks = rings.hearts()
    assert (slices.shape, masks.shape) == ((1, 1, rings.SIDE, rings.SIDE), (1, 2, rings.SIDE, rings.SIDE))
    assert int(masks.sum(dim=(2, 3)).min()) >= rings.LEAST
    assert not masks.all(dim=1).any()
    filled = masks.any(dim=1, keepdim=True).expand_as(masks)
    assert rings.dice(masks, masks) == [1.0, 1.0]
    assert 0 < rings.dice(filled, masks)[0] < 1
    assert torch.equal(rings.hearts()[1], masks)
