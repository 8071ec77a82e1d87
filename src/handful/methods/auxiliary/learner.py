"""An auxiliary network that learns from corrected objects while the backbone stays frozen, after AuxOL.

Huang et al., *Improving Segment Anything on the Fly: Auxiliary Online Learning and Adaptive Fusion for Medical Image
Segmentation* (IEEE TMI 2025, arXiv 2406.00956). A reconstruction from a description.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from handful.jobs.atomic import write_atomically
from handful.jobs.files import open_file
from handful.methods.auxiliary.crops import cropped, three_channels, uncropped, window_around
from handful.methods.auxiliary.file import pack, unpack
from handful.methods.auxiliary.network import CERTAIN, corrected_logits
from handful.methods.auxiliary.training import WEIGHTS, AuxiliaryConfig, Example, Knowledge
from handful.methods.online import Attempt, CorrectedObject, OnlineLearner, PromptedObject


@dataclass(frozen=True, eq=False)
class Auxiliary(OnlineLearner):
    """One small U-Net per label. Its logits are fused with the backbone's by the weight that did best lately.

    A first mask and a corrected mask have weights of their own. A weight is 0 until `trusted_after` objects were
    corrected. The connected region around a click is never changed against the click.
    """

    config: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """Settings."""
    of_label: Mapping[str, Knowledge] = field(default_factory=dict)
    """What was learned, by name of the label."""

    @torch.no_grad()
    def predict(self, label: str, prompted: PromptedObject) -> tuple[Float[Tensor, "h w"], Attempt]:
        window = window_around(prompted, self.config.margin)
        logits = prompted.logits.float().cpu()
        backbone = cropped(logits[None], window, self.config.side)[0]
        knowledge = self.of_label.get(label)
        added = torch.zeros_like(backbone)
        if knowledge is not None:
            pixels = cropped(three_channels(prompted.pixels.cpu()), window, self.config.side)
            added = knowledge.network(pixels[None], backbone[None])[0]
        attempt = Attempt(window, backbone.half(), corrected_logits(backbone, added).half())
        weight = self.weight(label, prompted.is_first)
        if weight == 0:
            return prompted.logits, attempt
        fused = logits.clone()
        top, bottom, left, right = window
        part = logits[top:bottom, left:right].clamp(-CERTAIN, CERTAIN)
        fused[top:bottom, left:right] = torch.lerp(part, corrected_logits(part, uncropped(added, window)), weight)
        return _obeying_clicks(fused, logits, prompted.points).to(prompted.logits), attempt

    def weight(self, label: str, is_first: bool = True) -> float:
        """The share of the auxiliary logits in the masks of a label; 0: the backbone alone."""
        knowledge = self.of_label.get(label)
        dice = () if knowledge is None else knowledge.first if is_first else knowledge.later
        if len(dice) < self.config.trusted_after:
            return 0.0
        mean = torch.stack(list(dice)).mean(dim=0)
        return float(WEIGHTS[int((mean >= mean.max() - 1e-4).int().argmax())])

    def after(self, label: str, corrected: CorrectedObject) -> Auxiliary:
        examples = [self._example(corrected, attempt) for attempt in corrected.attempts]
        knowledge = self.of_label.get(label) or Knowledge(self.config)
        recent = self.config.recent
        first = [_dice_by_weight(corrected.attempts[0], examples[0].mask)]
        later = [_dice_by_weight(corrected.attempts[-1], examples[-1].mask)] if len(examples) > 1 else []
        noted = dataclasses.replace(
            knowledge,
            first=(*knowledge.first, *first)[-recent:],
            later=(*knowledge.later, *later)[-recent:],
        )
        return dataclasses.replace(self, of_label={**self.of_label, label: noted.trained(tuple(examples))})

    def packed(self) -> bytes:
        return pack(self.config, self.of_label)

    def unpacked(self, content: bytes) -> Auxiliary:
        return Auxiliary(*unpack(content, "the learner of a session"))

    def save(self, path: str | Path) -> None:
        """Write everything that was learned into a safetensors file, completely or not at all.

        The file contains crops of the last corrected objects and their masks, so handle it like the scans.
        """
        write_atomically(Path(path), self.packed())

    @classmethod
    def load(cls, path: str | Path) -> Auxiliary:
        """The learner in a file. Raises InputError if there is none, DamagedFile if it is no such file."""
        with open_file(Path(path)) as file:
            return cls(*unpack(file.read(), str(path)))

    def _example(self, corrected: CorrectedObject, attempt: Attempt) -> Example:
        side = self.config.side
        pixels = cropped(three_channels(corrected.pixels.cpu()), attempt.window, side)
        mask = cropped(corrected.mask.cpu().float()[None], attempt.window, side)[0] > 0.5
        return Example((pixels * 255).round().to(torch.uint8), attempt.backbone, mask)


def _dice_by_weight(attempt: Attempt, mask: Bool[Tensor, "s s"]) -> Float[Tensor, " w"]:
    """Dice of the fused mask for each of WEIGHTS."""
    backbone, learner = attempt.backbone.float().clamp(-CERTAIN, CERTAIN), attempt.learner.float()
    found = torch.lerp(backbone, learner, WEIGHTS[:, None, None]) > 0
    shared, total = (found & mask).sum(dim=(1, 2)), found.sum(dim=(1, 2)) + mask.sum()
    return (2 * shared + 1) / (total + 1)


def _obeying_clicks(
    fused: Float[Tensor, "h w"], backbone: Float[Tensor, "h w"], points: Sequence[tuple[float, float, bool]]
) -> Float[Tensor, "h w"]:
    """The fused logits; where they contradict a click that the backbone followed, the backbone's."""
    differ, _ = ndimage.label(((fused > 0) != (backbone > 0)).numpy())
    height, width = differ.shape
    wrong = set()
    for x, y, positive in points:
        row, column = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
        if differ[row, column] and bool(backbone[row, column] > 0) == positive:
            wrong.add(int(differ[row, column]))
    return torch.where(torch.from_numpy(np.isin(differ, sorted(wrong))), backbone, fused) if wrong else fused
