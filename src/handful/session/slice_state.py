"""What a session knows of each slice, as values that are never changed, only replaced: so that undo is exact and cheap.

A state takes a few kilobytes: class numbers are kept deflated, masks as bits, logits in the model's square in half
precision.
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
from handful.prompts.prompts import Prompts

CERTAIN = 6.0
"""Logit, with either sign, of a mask that somebody drew, when it goes in as a prompt."""

Classes = UInt16[np.ndarray, "h w"]
"""0 for background, else 1 + the index of the label."""


@dataclass(frozen=True, eq=False)
class PromptedMask:
    """All that an annotator said of one label on one slice, and the answer to it."""

    points: tuple[tuple[float, float, bool], ...]
    """x, y in slice pixels, and whether that is inside."""
    box: tuple[float, float, float, float] | None
    """x0, y0, x1, y1; the corner pixels belong to it."""
    logits: Float[Tensor, "s s"]
    """The answer in the model's square, in half precision on the CPU: the mask prompt of the next question."""
    bits: bytes
    """The answer's mask, 8 pixels a byte."""

    def mask(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Where the answer shows the label."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=size[0] * size[1])
        return bits.reshape(size).astype(bool)

    def lifted(self, backbone: Backbone, size: tuple[int, int]) -> Float[Tensor, "h w"]:
        """The answer's logits at slice size."""
        square = self.logits.to(backbone.device, torch.float32)
        return backbone.to_image_frame(square[None, None], size)[0, 0]


@dataclass(frozen=True, eq=False)
class SliceState:
    """What is known of one slice."""

    size: tuple[int, int]
    below: bytes
    """Class numbers that were proposed or propagated, on which the annotator's own answers lie."""
    top: bytes
    """Class numbers with the answers: the segmentation."""
    prompted: Mapping[int, PromptedMask] = field(default_factory=dict)
    """By label index."""
    accepted: bool = False

    @classmethod
    def empty(cls, size: tuple[int, int]) -> SliceState:
        nothing = deflated(np.zeros(size, np.uint16))
        return cls(size, nothing, nothing)

    def classes(self) -> Classes:
        """The segmentation."""
        return _inflated(self.top, self.size)

    def proposed(self) -> Classes:
        """The segmentation without the annotator's answers."""
        return _inflated(self.below, self.size)

    def with_proposal(self, classes: Classes, backbone: Backbone) -> SliceState:
        """The same answers on another proposal."""
        return self._composed(classes, self.prompted, backbone)

    def with_answer(self, label: int, prompted: PromptedMask, backbone: Backbone) -> SliceState:
        """The same with another answer for one label."""
        return self._composed(self.proposed(), {**self.prompted, label: prompted}, backbone)

    def _composed(self, below: Classes, prompted: Mapping[int, PromptedMask], backbone: Backbone) -> SliceState:
        top = _composed(below, prompted, self.size, backbone)
        return dataclasses.replace(self, below=deflated(below), top=deflated(top), prompted=prompted)


def answered(
    points: tuple[tuple[float, float, bool], ...],
    box: tuple[float, float, float, float] | None,
    logits: Float[Tensor, "h w"],
    backbone: Backbone,
) -> PromptedMask:
    """The prompts and their answer at slice size."""
    logits = logits.to(backbone.device)
    lowest = logits.min().clamp(max=0)  # what the square has beside the slice belongs to no object
    square = backbone.to_model_frame((logits - lowest)[None, None], backbone.mask_side)[0, 0] + lowest
    return PromptedMask(points, box, square.to("cpu", torch.float16), np.packbits((logits > 0).cpu().numpy()).tobytes())


def as_prompts(
    points: tuple[tuple[float, float, bool], ...],
    box: tuple[float, float, float, float] | None,
    logits: Float[Tensor, "h w"] | None,
) -> Prompts:
    """For one slice and one label; there must be something in it."""
    xy = torch.tensor([[[[x, y] for x, y, _ in points]]], dtype=torch.float32) if points else None
    inside = torch.tensor([[[int(positive) for _, _, positive in points]]]) if points else None
    corners = torch.tensor([[box]], dtype=torch.float32) if box else None
    return Prompts(xy, inside, corners, None if logits is None else logits[None, None])


def mask_logits(mask: NDArray[np.bool_]) -> Float[Tensor, "h w"]:
    """A mask that somebody drew, as logits."""
    return torch.where(torch.from_numpy(np.ascontiguousarray(mask)), CERTAIN, -CERTAIN)


def _composed(
    below: Classes, prompted: Mapping[int, PromptedMask], size: tuple[int, int], backbone: Backbone
) -> Classes:
    """Answers on the proposal; where several claim a pixel the one of the largest logit has it.

    A label with an answer is nowhere but in that answer, whatever was proposed.
    """
    top = np.where(np.isin(below, [label + 1 for label in prompted]), 0, below).astype(np.uint16)
    masks = {label: prompted[label].mask(size) for label in sorted(prompted)}
    contested = np.sum([*masks.values(), np.zeros(size, bool)], axis=0) > 1
    best = np.full(size, -np.inf, np.float32)
    for label, mask in masks.items():
        top[mask & ~contested] = label + 1
        if (mask & contested).any():
            logits = prompted[label].lifted(backbone, size).cpu().numpy()
            wins = mask & contested & (logits > best)
            top[wins], best[wins] = label + 1, logits[wins]
    return top


def deflated(classes: Classes) -> bytes:
    """Class numbers as a state keeps them."""
    return zlib.compress(np.ascontiguousarray(classes).tobytes(), 1)


def _inflated(content: bytes, size: tuple[int, int]) -> Classes:
    return np.frombuffer(zlib.decompress(content), np.uint16).reshape(size)
