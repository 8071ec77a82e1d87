"""The calibration of the signals, on false positive ones."""

import numpy as np
import pytest

from handful.curation.calibration import Calibration, Compared, calibrate
from handful.curation.signals import Signals
from handful.data.volume import Labels


def signals(confidence: float, consistency: float, reverse: float) -> Signals:
    return Signals(confidence=confidence, consistency=consistency, reverse=reverse)


def learnt(slope: float, noise: float = 0.0) -> Calibration:
    """From 40 cases whose Dice follows the reverse signal alone."""
    rng = np.random.default_rng(0)
    seen = []
    for case in range(40):
        x, y, z = rng.uniform(0.2, 0.9, 3).tolist()
        dice = 0.1 + slope * z + float(rng.normal(0, noise))
        seen.append(Compared(f"case-{case}", 1, signals(x, y, z), dice))
    found = calibrate(seen, Labels((1,), ("ball",)))
    assert found is not None
    return found


def test_the_signal_that_the_dice_follows_gets_the_weight():
    found = learnt(slope=0.8)
    assert found.weights["reverse"] > 0.7
    assert max(found.weights["confidence"], found.weights["consistency"]) < 0.1
    assert found.dice(1, signals(0.5, 0.5, 0.75)) == pytest.approx(0.7, abs=0.05)
    assert found.error < 0.05


def test_a_better_signal_never_lowers_the_predicted_dice():
    found = learnt(slope=-0.1)
    assert min(found.weights.values()) >= 0
    assert found.dice(1, signals(0.5, 0.5, 0.9)) >= found.dice(1, signals(0.5, 0.5, 0.1))


def test_the_error_on_cases_left_out_grows_with_what_signals_do_not_explain():
    assert learnt(slope=0.8, noise=0.15).error > 0.08


def test_few_cases_move_the_weights_little():
    dice = {0.5: 0.4, 0.6: 0.8, 0.7: 0.9}
    seen = [Compared(f"case-{reverse}", 1, signals(0.6, 0.6, reverse), dice[reverse]) for reverse in dice]
    found = calibrate(seen, Labels((1,), ("ball",)))
    assert found is not None
    assert 1 / 3 < found.weights["reverse"] < 1  # the three alone would say 2.5


def test_a_signal_that_a_case_lacks_counts_as_usual():
    found = learnt(slope=0.8)
    usual = signals(found.usual["confidence"], found.usual["consistency"], found.usual["reverse"])
    assert found.dice(1, signals(np.nan, np.nan, np.nan)) == found.dice(1, usual) == pytest.approx(found.offsets[1])


def test_labels_of_another_usual_dice_have_offsets_of_their_own():
    seen = [Compared(f"case-{i}", 1 + i % 2, signals(0.5, 0.5, 0.5), 0.4 + 0.4 * (i % 2)) for i in range(20)]
    found = calibrate(seen, Labels((1, 2), ("ball", "egg")))
    assert found is not None
    assert found.offsets[2] - found.offsets[1] > 0.3
