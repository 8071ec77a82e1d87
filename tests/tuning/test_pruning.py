"""Pruning keeps what it promises of every class, weighs what it keeps without bias, and costs what its formula says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handful.errors import CheckpointError, SettingsError
from handful.tuning.pruning import Pruning, Sampler, balanced_draws

CBDP = Pruning(rule="cbdp")
RULES = ("none", "random", "infobatch", "cbdp")


def _holds(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    """Each class is rarer than the one before it."""
    chance = 0.8 * 0.6 ** torch.arange(classes)
    return torch.rand(n, classes, generator=torch.Generator().manual_seed(seed)) < chance


def _losses(rows: torch.Tensor, classes: int) -> torch.Tensor:
    """A loss of its own for every sample, between 0.2 and 2."""
    return (0.2 + 1.8 * ((rows * 0.618) % 1))[:, None].expand(-1, classes + 1).clone()


def _trained(sampler: Sampler, upto: int | None = None) -> list[list[int]]:
    """The rows of all steps, each sample telling its loss."""
    drawn = []
    for step in range(sampler.steps if upto is None else upto):
        draw = sampler.draw(step)
        sampler.observe(_losses(draw.rows, sampler.holds.shape[1] - 1))
        drawn.append(draw.rows.tolist())
    return drawn


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.75]))
def test_every_class_keeps_its_quota(n: int, classes: int, seed: int, share: float) -> None:
    holds = _holds(n, classes, seed)
    sampler = Sampler(Pruning(rule="cbdp", share=share, draws=5), holds, 10, 4, seed)
    sampler.draw(0)
    sampler.observe(torch.rand(4, classes + 1, generator=torch.Generator().manual_seed(seed)))
    kept = sampler.plan(3).rows
    assert len(kept) == len(set(kept.tolist()))
    everything = torch.from_numpy(sampler.holds)
    assert bool((everything[kept].sum(0) >= torch.ceil((1 - share) * everything.sum(0) - 1e-6)).all())


def test_balance_spares_a_rare_class_that_drawing_by_loss_alone_does_not() -> None:
    holds = torch.zeros(100, 2, dtype=torch.bool)
    holds[:96, 0], holds[96:, 1] = True, True
    easy = torch.where(torch.arange(100) >= 96, 0.1, 1.0)[:, None].expand(-1, 3)  # the rare class is easy, too

    def rare(balance: bool) -> float:
        setting = Pruning(rule="cbdp", balance=balance, sharpness=2.0)
        kept = balanced_draws(easy.double().numpy() ** 2 * _with_none(holds), _with_none(holds), setting, 300, _numpy())
        return float(kept[:, 96:].sum(axis=1).mean())

    assert rare(True) >= 2
    assert rare(False) < 1


def _with_none(holds: torch.Tensor) -> np.ndarray:
    return np.concatenate([holds.numpy(), ~holds.any(dim=1, keepdim=True).numpy()], axis=1)


def _pruning(rule: str, **settings: float) -> Pruning:
    return Pruning() if rule == "none" else Pruning(rule=rule, **settings)  # type: ignore[arg-type]


def _numpy() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("rule", RULES)
def test_the_weighted_mean_over_pruned_epochs_is_that_over_everything(rule: str) -> None:
    holds = _holds(60, 3)
    sampler = Sampler(_pruning(rule, sharpness=2.0), holds, 30, 4, 0)
    _trained(sampler)
    value = _losses(torch.arange(60), 1)[:, 0] ** 2
    plans = [sampler.plan(epoch) for epoch in range(100, 350)]
    weighted = torch.stack([(value[plan.rows] * plan.weights).mean() for plan in plans]).mean()
    assert float(weighted) == pytest.approx(float(value.mean()), rel=0.03)


def test_without_weights_hard_samples_count_too_much() -> None:
    sampler = Sampler(Pruning(rule="cbdp", sharpness=2.0, weights="none"), _holds(60, 3), 30, 4, 0)
    _trained(sampler)
    value = _losses(torch.arange(60), 1)[:, 0] ** 2
    plain = torch.stack([value[sampler.plan(epoch).rows].mean() for epoch in range(100)]).mean()
    assert float(plain) > 1.1 * float(value.mean())


def test_clipped_weights_stay_within_their_bounds() -> None:
    sampler = Sampler(Pruning(rule="cbdp", sharpness=2.0, weights="clip"), _holds(60, 3), 30, 4, 0)
    _trained(sampler)
    plan = sampler.plan(7)
    least = len(plan.rows) / 60
    assert bool((plan.weights >= least - 1e-6).all() and (plan.weights <= 2 * least + 1e-6).all())


@pytest.mark.parametrize(("warmup", "expected"), [(0, 0.5625), (1, 0.5875)])
def test_the_fraction_of_iterations_is_that_of_the_formula(warmup: int, expected: float) -> None:
    epochs, n, batch = 20, 32, 4
    setting = Pruning(rule="cbdp", warmup=warmup, draws=3)
    assert setting.fraction(epochs) == pytest.approx(expected)
    holds = torch.eye(2, dtype=torch.bool).repeat(n // 2, 1)  # no sample holds two: quotas never ask for more
    sampler = Sampler(setting, holds, epochs * n // batch, batch, 0)
    assert sampler.steps == round(expected * epochs * n / batch)
    _trained(sampler)
    assert sampler.report().fraction == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20)
@given(st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from([0.5, 0.75, 0.875]), st.integers(0, 2))
def test_random_pruning_costs_one_minus_p_times_pruned_epochs(share: float, until: float, warmup: int) -> None:
    epochs, n, batch = 16, 16, 4
    setting = Pruning(rule="random", share=share, until=until, warmup=warmup)
    sampler = Sampler(setting, torch.ones(n, 1, dtype=torch.bool), epochs * n // batch, batch, 0)
    for step in range(sampler.steps):
        sampler.draw(step)
    expected = 1 - share * (until * epochs - warmup) / epochs
    assert sampler.report().fraction == pytest.approx(expected, abs=0.02)


def test_overlapping_classes_raise_the_fraction_in_the_report() -> None:
    holds = _holds(30, 5, seed=2)
    sampler = Sampler(CBDP, holds, 150, 4, 0)
    _trained(sampler)
    report = sampler.report()
    assert report.steps == sampler.steps
    assert report.fraction >= CBDP.fraction(20) - 1e-6
    pruned = [record for record in report.epochs if record.pruned]
    quota = [math.ceil(int(count) / 2) for count in sampler.holds.sum(axis=0)]
    assert all(kept >= need for record in pruned for kept, need in zip(record.kept_per_class, quota, strict=True))
    assert all(record.kept >= 15 for record in pruned)


def test_the_last_phase_sees_everything_with_weight_one() -> None:
    sampler = Sampler(CBDP, _holds(24, 3), 120, 4, 0)
    _trained(sampler, sampler.annealed_from)
    last = [sampler.draw(step) for step in range(sampler.annealed_from, sampler.annealed_from + 6)]
    assert sorted(torch.cat([draw.rows for draw in last]).tolist()) == list(range(24))
    assert all((draw.weights == 1).all() for draw in last)


def test_no_pruning_shows_every_sample_once_an_epoch() -> None:
    sampler = Sampler(Pruning(), _holds(12, 2), 9, 4, 0)
    drawn = [row for rows in _trained(sampler) for row in rows]
    assert sampler.steps == 9
    assert all(sorted(drawn[start : start + 12]) == list(range(12)) for start in (0, 12, 24))
    assert sampler.report().fraction == 1


def test_infobatch_keeps_all_that_is_hard_and_half_of_what_is_easy() -> None:
    sampler = Sampler(Pruning(rule="infobatch", momentum=0.0), torch.ones(20, 1, dtype=torch.bool), 30, 4, 0)
    _trained(sampler, 5)
    value = _losses(torch.arange(20), 1)[:, 0]
    hard = torch.nonzero(value >= value.mean())[:, 0].tolist()
    plan = sampler.plan(1)
    assert set(hard) <= set(plan.rows.tolist())
    assert len(plan.rows) == len(hard) + math.ceil((20 - len(hard)) / 2)
    ratio = plan.weights.max() / plan.weights.min()
    assert 1.8 <= float(ratio) <= 2


def test_hard_samples_are_kept_more_often() -> None:
    sampler = Sampler(Pruning(rule="cbdp", sharpness=2.0), torch.ones(40, 1, dtype=torch.bool), 60, 4, 0)
    _trained(sampler)
    value = _losses(torch.arange(40), 1)[:, 0]
    kept = torch.stack([torch.bincount(sampler.plan(e).rows, minlength=40) for e in range(200)]).float().mean(0)
    order = value.argsort()
    assert kept[order[-10:]].mean() > 1.5 * kept[order[:10]].mean()


def test_losses_are_smoothed_and_nan_is_ignored() -> None:
    sampler = Sampler(CBDP, torch.ones(1, 2, dtype=torch.bool), 10, 1, 0)
    nan = math.nan
    for step, told in enumerate([[1.0, nan, nan], [3.0, 4.0, nan], [nan, nan, nan]]):
        sampler.draw(step)
        sampler.observe(torch.tensor([told]))
    assert sampler.losses[0, :2].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("rule", RULES)
def test_a_sampler_goes_on_where_a_killed_one_stopped(rule: str, tmp_path: Path) -> None:
    def sampler(journal: Path | None) -> Sampler:
        return Sampler(_pruning(rule, draws=20), _holds(20, 3), 60, 4, 1, journal)

    undisturbed = _trained(sampler(None))
    journal = tmp_path / "losses.jsonl"
    _trained(sampler(journal), 17)
    if journal.exists():
        with journal.open("a") as file:
            file.write("[[0.3, 0.")  # killed while writing
    again = sampler(journal)  # and the weights were last kept after step 13
    rest = []
    for step in range(13, again.steps):
        draw = again.draw(step)
        again.observe(_losses(draw.rows, 3))
        rest.append(draw.rows.tolist())
    assert rest == undisturbed[13:]


def test_a_missing_journal_is_reported(tmp_path: Path) -> None:
    sampler = Sampler(CBDP, _holds(20, 3), 60, 4, 1, tmp_path / "losses.jsonl")
    with pytest.raises(CheckpointError, match="start again"):
        sampler.draw(5)


def test_a_new_training_forgets_the_journal_of_an_old_one(tmp_path: Path) -> None:
    journal = tmp_path / "losses.jsonl"
    for _ in range(2):
        _trained(Sampler(CBDP, _holds(20, 3), 60, 4, 1, journal), 3)
    assert len(journal.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("share", 1.0), ("share", -0.1), ("until", 1.2), ("warmup", -1), ("draws", 0)]
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name):
        Pruning(**{name: value})  # type: ignore[arg-type]


def test_a_sampler_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="0 samples"):
        Sampler(CBDP, torch.zeros(0, 2, dtype=torch.bool), 10, 4, 0)
