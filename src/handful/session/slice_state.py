"""The state of each slice in a session. States are immutable and replaced as a whole, so that undo is exact.

A state takes a few kilobytes: class numbers are compressed, masks are bits, and logits are in half precision in the
model frame.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt16
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones.base import Backbone
from handful.methods.online import Attempt
from handful.prompts.prompts import Prompts

CERTAIN = 6.0
"""Magnitude of the logits of a binary mask that is used as a mask prompt."""

Classes = UInt16[np.ndarray, "h w"]
"""0 for background, else 1 + the index of the label."""


@dataclass(frozen=True, eq=False)
class PromptedMask:
    """All prompts for one label on one slice, and the resulting mask."""

    points: tuple[tuple[float, float, bool], ...]
    """x and y in slice pixels, and whether the click is positive."""
    box: tuple[float, float, float, float] | None
    """x0, y0, x1, y1 in slice pixels; the corner pixels belong to the box."""
    logits: Float[Tensor, "s s"]
    """Logits of the mask in the model frame, in half precision on the CPU; the mask prompt of the next prompt."""
    bits: bytes
    """The mask at slice size, 8 pixels per byte."""
    attempts: tuple[Attempt, ...] = ()
    """Predictions after the first and the last prompt, for a learner; none if the session has none."""

    def mask(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """The mask at slice size (h, w)."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=size[0] * size[1])
        return bits.reshape(size).astype(bool)

    def at_slice_size(self, backbone: Backbone, size: tuple[int, int]) -> Float[Tensor, "h w"]:
        """The logits at slice size (h, w)."""
        square = self.logits.to(backbone.device, torch.float32)
        return backbone.to_image_frame(square[None, None], size)[0, 0]


@dataclass(frozen=True, eq=False)
class SliceState:
    """The state of one slice."""

    size: tuple[int, int]
    """Height and width in pixels."""
    below: bytes
    """Proposed or propagated class numbers, compressed; masks from prompts are in front of them."""
    top: bytes
    """Class numbers with the masks from prompts, compressed: the segmentation."""
    prompted: Mapping[int, PromptedMask] = field(default_factory=dict)
    """Masks from prompts, by label index."""
    accepted: bool = False

    @classmethod
    def empty(cls, size: tuple[int, int]) -> SliceState:
        """A slice without any label."""
        nothing = compressed_classes(np.zeros(size, np.uint16))
        return cls(size, nothing, nothing)

    def classes(self) -> Classes:
        """The segmentation."""
        return _decompressed_classes(self.top, self.size)

    def proposed(self) -> Classes:
        """The segmentation without the masks from prompts."""
        return _decompressed_classes(self.below, self.size)

    def with_proposal(self, classes: Classes, backbone: Backbone) -> SliceState:
        """The state with another proposal and the same masks from prompts."""
        return self._composed(classes, self.prompted, backbone)

    def with_mask(self, label: int, prompted: PromptedMask, backbone: Backbone) -> SliceState:
        """The state with another mask from prompts for one label."""
        return self._composed(self.proposed(), {**self.prompted, label: prompted}, backbone)

    def accept(self) -> SliceState:
        """The accepted state; its predictions are not learned from again."""
        prompted = {label: dataclasses.replace(mask, attempts=()) for label, mask in self.prompted.items()}
        return dataclasses.replace(self, accepted=True, prompted=prompted)

    def _composed(self, below: Classes, prompted: Mapping[int, PromptedMask], backbone: Backbone) -> SliceState:
        top = _composed(below, prompted, self.size, backbone)
        return dataclasses.replace(
            self, below=compressed_classes(below), top=compressed_classes(top), prompted=prompted
        )


def prompted_mask(
    points: tuple[tuple[float, float, bool], ...],
    box: tuple[float, float, float, float] | None,
    logits: Float[Tensor, "h w"],
    backbone: Backbone,
    attempts: tuple[Attempt, ...] = (),
) -> PromptedMask:
    """The prompts and the logits of their mask, which are given at slice size."""
    logits = logits.to(backbone.device)
    lowest = logits.min().clamp(max=0)  # padding of the model frame is outside of every label
    framed = backbone.to_model_frame((logits - lowest)[None, None], backbone.mask_side)[0, 0] + lowest
    bits = np.packbits((logits > 0).cpu().numpy()).tobytes()
    return PromptedMask(points, box, framed.to("cpu", torch.float16), bits, attempts)


def as_prompts(
    points: tuple[tuple[float, float, bool], ...],
    box: tuple[float, float, float, float] | None,
    logits: Float[Tensor, "h w"] | None,
) -> Prompts:
    """Prompts for one slice and one label; at least one of the arguments must not be empty."""
    xy = torch.tensor([[[[x, y] for x, y, _ in points]]], dtype=torch.float32) if points else None
    inside = torch.tensor([[[int(positive) for _, _, positive in points]]]) if points else None
    corners = torch.tensor([[box]], dtype=torch.float32) if box else None
    return Prompts(xy, inside, corners, None if logits is None else logits[None, None])


def mask_logits(mask: NDArray[np.bool_]) -> Float[Tensor, "h w"]:
    """A binary mask as logits."""
    return torch.where(torch.from_numpy(np.ascontiguousarray(mask)), CERTAIN, -CERTAIN)


def _composed(
    below: Classes, prompted: Mapping[int, PromptedMask], size: tuple[int, int], backbone: Backbone
) -> Classes:
    """The masks from prompts in front of the proposal. Where masks overlap, the one with the largest logit wins.

    A label with a mask from prompts is absent outside of this mask, whatever was proposed.
    """
    top = np.where(np.isin(below, [label + 1 for label in prompted]), 0, below).astype(np.uint16)
    masks = {label: prompted[label].mask(size) for label in sorted(prompted)}
    contested = np.sum([*masks.values(), np.zeros(size, bool)], axis=0) > 1
    best = np.full(size, -np.inf, np.float32)
    for label, mask in masks.items():
        top[mask & ~contested] = label + 1
        if (mask & contested).any():
            logits = prompted[label].at_slice_size(backbone, size).cpu().numpy()
            wins = mask & contested & (logits > best)
            top[wins], best[wins] = label + 1, logits[wins]
    return top


def compressed_classes(classes: Classes) -> bytes:
    """Class numbers, compressed for a state."""
    return zlib.compress(np.ascontiguousarray(classes).tobytes(), 1)


def _decompressed_classes(content: bytes, size: tuple[int, int]) -> Classes:
    return np.frombuffer(zlib.decompress(content), np.uint16).reshape(size)
