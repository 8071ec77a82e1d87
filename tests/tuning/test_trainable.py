import pytest
import torch
from torch import nn

from handful.errors import CheckpointError
from handful.tuning.trainable import count_trainable, freeze_all_but, load_trainable_state, trainable_state


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_only_the_named_modules_require_gradients():
    model = two_layers()
    freeze_all_but(model, model[1])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["1.weight", "1.bias"]
    assert count_trainable(model) == 4 * 2 + 2


def test_freezing_again_forgets_the_earlier_choice():
    model = two_layers()
    freeze_all_but(model, model[1])
    freeze_all_but(model, model[0])
    assert count_trainable(model) == 3 * 4 + 4


def test_the_state_of_what_trains_comes_back_exactly():
    model, other = two_layers(), two_layers()
    freeze_all_but(model, model[1])
    freeze_all_but(other, other[1])
    before = other[0].weight.clone()
    load_trainable_state(other, trainable_state(model))
    assert torch.equal(other[1].weight, model[1].weight)
    assert torch.equal(other[0].weight, before)


def test_the_state_is_a_copy():
    model = two_layers()
    state = trainable_state(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(state["0.weight"], model[0].weight)


def test_a_missing_or_unexpected_weight_is_refused_by_name():
    model = two_layers()
    state = trainable_state(model)
    state["2.weight"] = state.pop("1.bias")
    with pytest.raises(CheckpointError, match=r"missing 1\.bias, unexpected 2\.weight"):
        load_trainable_state(model, state)


def test_a_weight_of_another_shape_is_refused_with_both_shapes():
    model = two_layers()
    state = trainable_state(model) | {"1.bias": torch.zeros(5)}
    with pytest.raises(CheckpointError, match=r"1\.bias.*\(5,\).*\(2,\)"):
        load_trainable_state(model, state)
