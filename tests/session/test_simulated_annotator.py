"""A simulated annotator in a session corrects, is counted, and leaves what she accepted."""

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.data.volume import LabelMap, Volume
from handful.errors import GeometryMismatch, SettingsError
from handful.session.session import Session
from handful.session.simulated_annotator import AnnotationResult, annotate_scan
from phantoms import LABELS

Scan = tuple[Volume, LabelMap]


def test_clicks_help_and_are_counted(session: Session, scan: Scan, truth: np.ndarray):
    result = annotate_scan(session, scan[1], clicks=4)
    held = [(n, v) for n in range(len(session)) for v in LABELS.values if (truth[n] == v).any()]
    assert list(result.regions) == held
    assert result.dice.shape == (len(held), 4)
    assert float(result.dice[:, -1].mean()) > float(result.dice[:, 0].mean())
    assert len(result.seconds) <= 4 * len(held)
    assert session.accepted == tuple(sorted({n for n, _ in held}))
    assert result.volume_dice[1] > 0.6


def test_few_slices_read_serve_the_whole_scan(session: Session, scan: Scan):
    result = annotate_scan(session, scan[1], clicks=4, slices=2)
    assert len({number for number, _ in result.regions}) == len(session.accepted) == 2
    assert all(session.classes(number).any() for number in range(1, 5))
    assert result.volume_dice[3] > 0.4


def test_one_seed_gives_one_annotation(scan: Scan, handful_tiny: Backbone):
    first, second = (
        annotate_scan(Session(scan[0], handful_tiny, LABELS), scan[1], clicks=3, slices=1, seed=4).dice
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_noc_counts_the_first_click_that_reaches_the_level():
    dice = torch.tensor([[0.2, 0.86, 0.9], [0.9, 0.9, 0.9], [0.1, 0.1, 0.2]])
    result = AnnotationResult(LABELS, ((0, 1), (0, 3), (1, 3)), dice, (), {})
    assert result.clicks_to(0.85) == 2.0
    assert result.clicks_to(0.9, label=1) == 3.0
    assert result.of(3).shape == (2, 3)


def test_a_reference_on_another_grid_is_refused(session: Session, scan: Scan):
    other = LabelMap(scan[1].array[:-1], type(scan[1].geometry)((23, 6, 28), scan[1].geometry.affine), LABELS)
    with pytest.raises(GeometryMismatch, match="reference"):
        annotate_scan(session, other)
    with pytest.raises(SettingsError, match="clicks"):
        annotate_scan(session, scan[1], clicks=0)
