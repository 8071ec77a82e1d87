"""Which parameters of a model train: freeze the rest, count them, keep and give back their state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from handful.errors import CheckpointError
from handful.jobs.plain_text import some


def freeze_all_but(model: nn.Module, *modules: nn.Module) -> None:
    """Only the parameters of `modules` need gradients afterwards; those of the rest of `model` do not."""
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


def count_trainable(model: nn.Module) -> int:
    """Number of parameters (single numbers, not tensors) that need gradients."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters that need gradients, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes `state` into the parameters that need gradients; names and shapes must agree exactly."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, unexpected = sorted(named.keys() - state.keys()), sorted(state.keys() - named.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"learned weights do not fit the model: missing {some(missing)}, unexpected {some(unexpected)}; "
            "restore with the settings and the backbone they were learned with"
        )
    for name, parameter in named.items():
        if state[name].shape != parameter.shape:
            raise CheckpointError(
                f"learned weight {name!r} has shape {tuple(state[name].shape)}, "
                f"the model's has {tuple(parameter.shape)}; "
                "restore with the backbone it was learned with"
            )
        parameter.copy_(state[name])
