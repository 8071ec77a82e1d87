"""An auxiliary network learns from corrected objects, is trusted only where it was better, and is kept exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from handful.errors import DamagedFile, InputError, SettingsError
from handful.methods.auxiliary.crops import window_around
from handful.methods.auxiliary.learner import Auxiliary
from handful.methods.auxiliary.network import structure_loss
from handful.methods.auxiliary.training import WEIGHTS, AuxiliaryConfig
from handful.methods.online import CorrectedObject, PromptedObject

SMALL = AuxiliaryConfig(
    side=32, channels=4, queue=4, steps=6, learning_rate=1e-2, recent=3, trusted_after=2, margin=0.6
)


def tumour(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A slice, the logits of a backbone that finds the bright core only, and the mask of core and rim."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    away = np.hypot(y - rng.uniform(16, 32), x - rng.uniform(16, 32))
    core, whole = away < 6, away < 9
    grey = 0.2 + 0.3 * whole + 0.4 * core + rng.normal(0, 0.02, away.shape)
    pixels = torch.from_numpy(grey.clip(0, 1)).float()[None]
    return pixels, torch.from_numpy(np.where(core, 6.0, -6.0)).float(), torch.from_numpy(whole)


def corrected(learner: Auxiliary, seed: int, mask: Tensor | None = None) -> Auxiliary:
    pixels, logits, whole = tumour(seed)
    _, attempt = learner.predict("tumour", PromptedObject(pixels, logits))
    return learner.after("tumour", CorrectedObject(pixels, [attempt], whole if mask is None else mask))


def dice_of(learner: Auxiliary, seed: int) -> float:
    pixels, logits, whole = tumour(seed)
    found = learner.predict("tumour", PromptedObject(pixels, logits))[0] > 0
    return float(2 * (found & whole).sum() / (found.sum() + whole.sum()))


@pytest.fixture(scope="module")
def trained() -> Auxiliary:
    """After eight objects."""
    learner = Auxiliary(SMALL)
    for seed in range(8):
        learner = corrected(learner, seed)
    return learner


def test_without_a_weight_the_mask_is_exactly_the_backbones():
    learner = corrected(Auxiliary(SMALL), 0)
    pixels, logits, _ = tumour(1)
    assert learner.weight("tumour") == 0
    assert learner.predict("tumour", PromptedObject(pixels, logits))[0] is logits
    assert learner.predict("another", PromptedObject(pixels, logits))[0] is logits


def test_what_the_backbone_misses_is_learned(trained: Auxiliary):
    assert trained.weight("tumour") > 0
    assert dice_of(Auxiliary(SMALL), 20) < 0.7
    assert dice_of(trained, 20) > 0.85


def test_the_weight_is_chosen_by_predictions_from_before_the_object_was_learned():
    learner = corrected(Auxiliary(SMALL), 0)
    (dice,) = learner.of_label["tumour"].first
    assert torch.equal(dice, dice[:1].expand(len(WEIGHTS)))  # nothing was known when it was predicted
    assert learner.of_label["tumour"].steps == SMALL.steps


def test_one_wrong_object_does_little_and_where_the_network_errs_the_backbone_is_left_alone(trained: Auxiliary):
    noise = torch.from_numpy(np.random.default_rng(0).random((48, 48)) < 0.5)
    assert dice_of(corrected(trained, 30, noise), 20) > 0.75
    learner = trained
    for seed in range(40, 40 + SMALL.recent):
        learner = corrected(learner, seed, tumour(seed)[1] > 0)  # the rim is not wanted any more
        learner = replace(
            learner,
            of_label={"tumour": replace(learner.of_label["tumour"], tensors=trained.of_label["tumour"].tensors)},
        )
    assert learner.weight("tumour") == 0


def test_a_click_is_never_overruled(trained: Auxiliary):
    pixels, logits, whole = tumour(20)
    y, x = torch.nonzero(whole & (logits < 0))[0].tolist()
    prompted = PromptedObject(pixels, logits, [(x, y, False)])
    free, bound = trained.predict("tumour", replace(prompted, points=()))[0], trained.predict("tumour", prompted)[0]
    assert free[y, x] > 0
    assert bound[y, x] == logits[y, x]


def test_later_prompts_have_a_weight_of_their_own(trained: Auxiliary):
    pixels, logits, whole = tumour(21)
    attempts = [trained.predict("tumour", PromptedObject(pixels, one))[1] for one in (logits, 6.0 * (2.0 * whole - 1))]
    learner = trained.after("tumour", CorrectedObject(pixels, attempts, whole))
    assert learner.weight("tumour") > 0
    assert learner.weight("tumour", is_first=False) == 0
    assert [len(examples) for examples in learner.of_label["tumour"].queue] == [1, 1, 1, 2]


def test_learning_leaves_the_earlier_learner_as_it_was(trained: Auxiliary):
    before = trained.packed()
    corrected(trained, 9)
    assert trained.packed() == before


def test_a_saved_learner_predicts_and_learns_the_same(trained: Auxiliary, tmp_path: Path):
    trained.save(tmp_path / "learned.safetensors")
    again = Auxiliary.load(tmp_path / "learned.safetensors")
    assert again.config == SMALL
    assert again.packed() == trained.packed()
    assert corrected(again, 11).packed() == corrected(trained, 11).packed()


def test_damaged_files_are_refused(trained: Auxiliary, tmp_path: Path):
    content = trained.packed()
    tensors = load(content)
    fewer = {name: tensor for name, tensor in tensors.items() if not name.endswith("final_conv.bias")}
    other = tensors | {"0/weight/net.final_conv.bias": torch.zeros(2)}
    for damaged in (b"", b"no file", content[:-9], save(fewer), save(other), save({"notes": torch.zeros(2)})):
        with pytest.raises(DamagedFile, match="auxiliary"):
            Auxiliary().unpacked(damaged)
    with pytest.raises(InputError, match="no such file"):
        Auxiliary.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [{"side": 100}, {"channels": 6}, {"queue": 0}, {"learning_rate": 0.0}, {"trusted_after": 9}, {"margin": -1}],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        AuxiliaryConfig(**wrong)


def test_a_crop_holds_mask_box_and_clicks_and_stays_in_the_slice():
    pixels, logits = torch.zeros(1, 60, 80), torch.full((60, 80), -1.0)
    assert window_around(PromptedObject(pixels, logits), 0.3) == (0, 60, 0, 80)
    logits[20:40, 30:60] = 1
    top, bottom, left, right = window_around(PromptedObject(pixels, logits, [(75, 30, True), (0, 0, False)]), 0.0)
    assert (top, left) == (20, 30)
    assert bottom >= 40
    assert right >= 76
    assert window_around(PromptedObject(pixels, logits, (), (0, 0, 79, 59)), 0.5) == (0, 60, 0, 80)


def test_errors_near_a_boundary_weigh_more():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:48, 16:48] = True
    right = torch.where(mask, 6.0, -6.0)
    near, far = right.clone(), right.clone()
    near[:, 30:34, 46:50] *= -1
    far[:, 30:34, 30:34] *= -1
    assert structure_loss(right, mask) < structure_loss(far, mask) < structure_loss(near, mask)
