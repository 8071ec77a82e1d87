from pathlib import Path

import pytest
import torch
from torch import nn

from handful.tuning.early_stopping import EarlyStopping
from handful.tuning.loop import CHECKPOINT, TrainConfig, train


def walk(losses: dict[int, float], scratch: Path | None = None) -> tuple[nn.Linear, int, EarlyStopping, list[int]]:
    """A training whose only weight counts its steps, with the held-out loss of each checked step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    checked: list[int] = []

    def held_out() -> float:
        checked.append(round(model.weight.item()))
        return losses[checked[-1]]

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        with torch.no_grad():
            model.weight.fill_(step)
        return -model.weight.sum()

    stopping = EarlyStopping(model, held_out, every=2, patience=2, scratch=scratch)
    config = TrainConfig(iterations=20, learning_rate=1.0, weight_decay=0.0, warmup=0.0, schedule="constant")
    history = train(model, loss, config, stop=stopping)
    return model, len(history.losses), stopping, checked


def test_a_training_ends_when_it_gains_no_more_and_its_best_weights_come_back() -> None:
    model, steps, stopping, checked = walk({2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0})
    assert (steps, checked) == (8, [2, 4, 6, 8])
    stopping.restore_best()
    assert round(model.weight.item()) == 4


def test_what_was_checked_before_a_training_was_killed_is_not_checked_again(tmp_path: Path) -> None:
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0}
    walk(losses, tmp_path)
    model, steps, stopping, checked = walk(losses, tmp_path)
    assert (steps, checked) == (8, [])
    stopping.restore_best()
    assert round(model.weight.item()) == 4


@pytest.mark.parametrize("place", [20, -1])
def test_a_training_with_damaged_best_weights_starts_again(tmp_path: Path, place: int) -> None:
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0}
    walk(losses, tmp_path)
    content = bytearray((tmp_path / "best.safetensors").read_bytes())
    content[place] ^= 1
    (tmp_path / "best.safetensors").write_bytes(content)
    (tmp_path / CHECKPOINT).touch()
    with pytest.warns(UserWarning, match="damaged"):
        model, steps, stopping, checked = walk(losses, tmp_path)
    assert (steps, checked, (tmp_path / CHECKPOINT).exists()) == (8, [2, 4, 6, 8], False)
    stopping.restore_best()
    assert round(model.weight.item()) == 4
