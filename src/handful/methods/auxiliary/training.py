"""What an auxiliary network has learned for one label, and its training on the last corrected objects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor

from handful.errors import SettingsError
from handful.methods.auxiliary.network import AuxiliaryNet, corrected_logits, structure_loss

WEIGHTS = torch.linspace(0, 1, 21)
"""Weights of the auxiliary logits that are tried; the backbone's have the rest."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps per weight."""


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """Settings of an auxiliary network."""

    side: int = 64
    """Side of the crops in pixels; a multiple of 16."""
    margin: float = 0.3
    """How far a crop reaches beyond the backbone's mask or the box on each side, as a fraction of its size."""
    channels: int = 8
    """Channels of the finest level of the U-Net; a multiple of 4."""
    queue: int = 8
    """Number of the last corrected objects that the network learns from."""
    steps: int = 4
    """Training steps after each corrected object."""
    learning_rate: float = 2e-3
    """Learning rate of AdamW."""
    weight_decay: float = 5e-4
    """Weight decay of AdamW."""
    recent: int = 5
    """Number of the last corrected objects by which the weight of the auxiliary logits is chosen."""
    trusted_after: int = 5
    """Number of corrected objects before which the backbone's masks are not changed."""
    seed: int = 0
    """Random seed of the initial weights and of the training."""

    def __post_init__(self) -> None:
        for name in ("queue", "steps", "recent", "trusted_after"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.side % 16 or not 32 <= self.side <= 1024:
            raise SettingsError(f"side must be a multiple of 16 from 32 to 1024, got {self.side}")
        if self.channels % 4 or not 4 <= self.channels <= 64:
            raise SettingsError(f"channels must be a multiple of 4 from 4 to 64, got {self.channels}")
        if not 0 <= self.margin <= 10:
            raise SettingsError(f"margin must be a number from 0 to 10, got {self.margin}")
        if not (0 < self.learning_rate < 1 and 0 <= self.weight_decay < 1):
            raise SettingsError(
                "learning_rate must be above 0 and weight_decay at least 0, both below 1; got "
                f"{self.learning_rate} and {self.weight_decay}"
            )
        if self.trusted_after > self.recent:
            raise SettingsError(
                f"trusted_after must be at most recent ({self.recent}), since no more are kept; got "
                f"{self.trusted_after}"
            )


@dataclass(frozen=True, eq=False)
class Example:
    """A crop around a corrected object."""

    pixels: UInt8[Tensor, "3 s s"]
    """The slice."""
    backbone: Float[Tensor, "s s"]
    """The backbone's logits after a prompt, in half precision."""
    mask: Bool[Tensor, "s s"]
    """The accepted mask."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """The network of one label, its optimiser, and the last corrected objects; immutable."""

    config: AuxiliaryConfig
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """'KIND/NAME' for each weight, where KIND is 'weight' or one of MOMENTS; empty before any training."""
    steps: int = 0
    """Number of training steps so far."""
    queue: tuple[tuple[Example, ...], ...] = ()
    """The last corrected objects, each with one or two examples."""
    first: tuple[Float[Tensor, " w"], ...] = ()
    """Dice of the first masks of the last objects with each weight of the auxiliary logits."""
    later: tuple[Float[Tensor, " w"], ...] = ()
    """The same for the last masks of objects with more than one prompt."""

    @cached_property
    def network(self) -> AuxiliaryNet:
        """The network with these weights."""
        if not self.tensors:
            return AuxiliaryNet(self.config.channels, self.config.seed).eval()
        with torch.device("meta"):
            network = AuxiliaryNet(self.config.channels, self.config.seed)
        weights = {name: self.tensors[f"weight/{name}"] for name in network.state_dict()}
        network.load_state_dict(weights, assign=True)
        return network.eval()

    def trained(self, examples: tuple[Example, ...]) -> Knowledge:
        """What the network knows after more steps, each on all objects of the queue, the one of `examples` included."""
        config = self.config
        queue = (*self.queue, examples)[-config.queue :]
        network = copy.deepcopy(self.network).train()
        optimizer = self._optimizer(network)
        for step in range(self.steps, self.steps + config.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(network, queue, Generator().manual_seed(config.seed * 1_000_003 + step))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        weights = {f"weight/{name}": tensor.detach() for name, tensor in network.named_parameters()}
        moments = {
            f"{kind}/{name}": optimizer.state[tensor][kind]
            for name, tensor in network.named_parameters()
            for kind in MOMENTS
        }
        return dataclasses.replace(self, tensors=weights | moments, steps=self.steps + config.steps, queue=queue)

    def _optimizer(self, network: AuxiliaryNet) -> torch.optim.AdamW:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
        if self.tensors:
            for name, parameter in network.named_parameters():
                kept = {kind: self.tensors[f"{kind}/{name}"].clone() for kind in MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(self.steps)), **kept}
        return optimizer


def _loss(network: AuxiliaryNet, queue: tuple[tuple[Example, ...], ...], generator: Generator) -> Tensor:
    """The loss on one example of each object, mirrored at random."""
    chosen = [examples[int(torch.randint(len(examples), (), generator=generator))] for examples in queue]
    pixels = torch.stack([one.pixels for one in chosen]).float() / 255
    backbone = torch.stack([one.backbone for one in chosen]).float()
    masks = torch.stack([one.mask for one in chosen])
    flips = [axis for axis in (-1, -2) if bool(torch.rand((), generator=generator) < 0.5)]
    pixels, backbone, masks = pixels.flip(flips), backbone.flip(flips), masks.flip(flips)
    return structure_loss(corrected_logits(backbone, network(pixels, backbone)), masks)
