"""The training loop learns, stops where it should, and goes on after a kill as if nothing had happened."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import joined
from handful.errors import SettingsError, TrainingError
from handful.jobs.progress import Run
from handful.tuning.loop import TrainConfig, rate, train


def _problem() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 1))


def _loss(model: nn.Module):  # type: ignore[no-untyped-def]
    def loss(step: int, rng: Generator) -> Tensor:
        x = torch.randn(16, 4, generator=rng)
        return ((model(x)[:, 0] - x.sum(dim=1)) ** 2).mean()

    return loss


CONFIG = TrainConfig(iterations=40, learning_rate=3e-2, ema=0.9, seed=5)


def test_a_method_without_a_rate_of_its_own_needs_one():
    with pytest.raises(SettingsError, match="give a number such as 1e-3"):
        train(nn.Linear(1, 1), lambda step, generator: torch.zeros(()), TrainConfig(learning_rate=None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", -1),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("warmup", 5.0),
        ("clip", 0.0),
        ("ema", 1.0),
        ("ema", -0.1),
        ("seed", 2**63),
    ],
)
def test_a_number_out_of_range_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be .*, got {value}"):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


def test_training_lowers_the_loss() -> None:
    model = _problem()
    history = train(model, _loss(model), CONFIG)
    assert len(history.losses) == 40
    assert sum(history.losses[-5:]) < 0.5 * sum(history.losses[:5])


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    first, second, other = _problem(), _problem(), _problem()
    train(first, _loss(first), CONFIG)
    torch.manual_seed(999)
    train(second, _loss(second), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    train(other, _loss(other), replace(CONFIG, seed=6))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("killed_at", [1, 17, 39])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    undisturbed, killed, resumed = _problem(), _problem(), _problem()
    train(undisturbed, _loss(undisturbed), CONFIG)

    def kill(step: int, total: int, note: str) -> None:
        if step == killed_at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(killed, _loss(killed), CONFIG, Run(scratch=tmp_path, report=kill, save_every_s=0.0))
    steps: list[int] = []
    train(resumed, _loss(resumed), CONFIG, Run(scratch=tmp_path, report=lambda step, *_: steps.append(step)))
    assert steps[0] == killed_at + 1
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_training_that_is_stopped_goes_on_from_there(tmp_path: Path) -> None:
    undisturbed, stopped, resumed = _problem(), _problem(), _problem()
    train(undisturbed, _loss(undisturbed), CONFIG)
    run = Run(scratch=tmp_path, save_every_s=1e9)
    assert len(train(stopped, _loss(stopped), CONFIG, run, stop=lambda step: step == 17).losses) == 17
    steps: list[int] = []
    train(resumed, _loss(resumed), CONFIG, replace(run, report=lambda step, *_: steps.append(step)))
    assert steps[0] == 18
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True))


def test_training_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = _problem()
    torch.set_rng_state(before)
    train(model, _loss(model), CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path) -> None:
    model, plain = _problem(), _loss(_problem())

    def loss(step: int, rng: Generator) -> Tensor:
        value = _loss(model)(step, rng)
        return value * torch.nan if step in (3, 4, 20) else value

    def kill(step: int, total: int, note: str) -> None:
        assert "nan" not in note
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, loss, CONFIG, Run(scratch=tmp_path, report=kill, save_every_s=0.0))
    model = _problem()
    history = train(model, loss, CONFIG, Run(scratch=tmp_path))
    assert history.skipped == [3, 4, 20]
    before, after = plain(0, Generator().manual_seed(0)), _loss(model)(0, Generator().manual_seed(0))
    assert before.item() > after.item()


def test_a_training_without_finite_gradients_is_given_up() -> None:
    model = _problem()
    with pytest.raises(TrainingError, match=r"since step 5 of 40; set a learning_rate below 0.03"):
        train(model, lambda step, rng: _loss(model)(step, rng) * (torch.inf if step > 4 else 1), CONFIG)


def test_the_rate_climbs_and_falls() -> None:
    config = TrainConfig(iterations=100, warmup=0.1)
    assert rate(0, config) == pytest.approx(0.1)
    assert rate(9, config) == rate(10, config) == 1.0
    assert rate(99, config) < 0.01


def test_nothing_to_train_is_an_error() -> None:
    model = _problem().requires_grad_(False)
    with pytest.raises(SettingsError, match="nothing to train"):
        train(model, _loss(model), CONFIG)


def test_a_group_of_one_process_learns_what_the_process_learns_without_a_group(tmp_path: Path) -> None:
    alone = joined.train_to(3.0)
    torch.distributed.init_process_group("gloo", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1)
    try:
        grouped = joined.train_to(3.0)
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(alone.parameters(), grouped.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.process
def test_processes_that_share_a_step_take_the_step_of_the_mean_gradient(tmp_path: Path) -> None:
    shared = torch.load(joined.run(joined.learn, tmp_path), weights_only=True)

    torch.manual_seed(1)
    alone = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])

    def mean_loss(step: int, rng: Generator) -> Tensor:
        first = [((alone[0](torch.eye(3)) - wanted) ** 2).mean() for wanted in joined.SHARES]
        second = ((alone[1](torch.eye(3)) - joined.SHARES[1]) ** 2).mean()  # the other process does not use it
        return (sum(first) + second) / 2

    train(alone, mean_loss, TrainConfig(iterations=5, learning_rate=0.1, clip=1e9))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(shared[name], value)


@pytest.mark.process
def test_the_end_of_another_process_is_told(tmp_path: Path) -> None:
    told = joined.run(joined.learn_with_one_that_ends, tmp_path).read_text()
    assert "another of the processes that share the training has ended; run the same command again" in told


def test_parameters_may_learn_more_slowly_than_others() -> None:
    model, before = _problem(), dict(_problem().named_parameters())
    train(model, _loss(model), CONFIG, rates={"0.": 0.0})
    still = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert still == {"0.weight", "0.bias"}


def test_whether_to_stop_is_decided_in_float32_as_predictions_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handful.jobs.precision.has_bfloat16", lambda device: True)  # emulated where it is not
    model, coarse = _problem(), []
    inner = _loss(model)

    def loss(step: int, generator: Generator) -> Tensor:
        coarse.append(torch.is_autocast_enabled("cpu"))
        return inner(step, generator)

    def stop(step: int) -> bool:
        coarse.append(torch.is_autocast_enabled("cpu"))
        return False

    train(model, loss, replace(CONFIG, iterations=2, precision="bfloat16"), stop=stop)
    assert coarse == [False, True, False, True]


def test_a_teacher_is_the_moving_average_all_along(tmp_path: Path) -> None:
    def fit(run: Run) -> tuple[nn.Module, nn.Module, dict[int, Tensor]]:
        model, teacher, shown = _problem(), _problem().requires_grad_(False), {}
        inner = _loss(model)

        def loss(step: int, generator: Generator) -> Tensor:
            shown[step] = next(teacher.parameters()).clone()
            return inner(step, generator)

        train(model, loss, CONFIG, run, teacher=teacher)
        return model, teacher, shown

    def kill(step: int, total: int, note: str) -> None:
        if step == 17:
            raise KeyboardInterrupt

    model, teacher, shown = fit(Run())
    plain = _problem()
    train(plain, _loss(plain), CONFIG)
    for expected in (model, plain):
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), teacher.parameters(), strict=True))
    with pytest.raises(KeyboardInterrupt):
        fit(Run(tmp_path, kill, 0.0))
    _, _, later = fit(Run(tmp_path, save_every_s=0.0))
    assert 0 not in later
    assert all(torch.equal(value, shown[step]) for step, value in later.items())


def test_a_teacher_takes_a_moving_average() -> None:
    with pytest.raises(SettingsError, match="give a decay"):
        train(_problem(), _loss(_problem()), replace(CONFIG, ema=0.0), teacher=_problem())


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "another type", "no note", "renamed"])
def test_a_training_with_a_damaged_checkpoint_starts_again(tmp_path: Path, damage: str) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == 17:
            raise KeyboardInterrupt

    expected = _problem()
    train(expected, _loss(expected), CONFIG)
    model = _problem()
    with pytest.raises(KeyboardInterrupt):
        train(model, _loss(model), CONFIG, Run(tmp_path, kill, 0.0))
    path = tmp_path / "train.safetensors"
    content = path.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 4]) + content[-4:]
    damaged = {
        "a flipped bit": flipped,
        "truncated": content[: len(content) // 2],
        "another type": content.replace(b'"F32"', b'"I32"'),
        "no note": content.replace(b'"note"', b'"nota"'),
        "renamed": content.replace(b"weight/0.weight", b"weight/9.weight"),
    }[damage]
    assert damaged != content
    path.write_bytes(damaged)
    again = _problem()
    with pytest.warns(UserWarning, match="starts from the beginning"):
        train(again, _loss(again), CONFIG, Run(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), expected.parameters(), strict=True))
