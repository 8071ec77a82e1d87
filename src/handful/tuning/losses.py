"""The losses the papers use, thin over MONAI's, each blind to voxels that nobody has labelled.

`logits` and `target` are (n, k, h, w), one map a label, `target` in [0, 1] (an area fraction where it is soft);
`known` is (n, h, w), False where the truth is not known. All compute in float32 whatever the logits came in, and return
one number, lower is better.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.losses import FocalLoss, MaskedDiceLoss
from torch import Tensor


def dice(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], known: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Soft Dice loss of each label's own sigmoid, smoothed by one pixel so that an absent label has a gradient too."""
    overlap = MaskedDiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, soft_label=True)
    loss: Tensor = overlap(logits.float(), target, known[:, None])
    return loss


def bce(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], known: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Binary cross entropy, averaged over labels and known pixels."""
    return _known_mean(F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none"), known)


def focal(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], known: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Focal loss (gamma 2), averaged over labels and known pixels."""
    return _known_mean(FocalLoss(reduction="none")(logits.float(), target), known)


def dice_bce(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], known: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Dice + BCE, equally weighted; stable on empty masks."""
    return dice(logits, target, known) + bce(logits, target, known)


def dice_focal(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], known: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Dice + 20 · focal, the weights SAM itself was trained with (Kirillov et al. 2023)."""
    return dice(logits, target, known) + 20 * focal(logits, target, known)


def dice_ce(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], known: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Dice of the labels + cross entropy, both of one softmax over {background with logit 0, labels}."""
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).float()
    target = torch.cat([(1 - target.sum(dim=1, keepdim=True)).clamp_min(0), target], dim=1)
    overlap = MaskedDiceLoss(softmax=True, include_background=False, smooth_nr=1, smooth_dr=1, soft_label=True)
    entropy = -(target * logits.log_softmax(dim=1)).sum(dim=1, keepdim=True)
    loss: Tensor = overlap(logits, target, known[:, None]) + _known_mean(entropy, known)
    return loss


def _known_mean(values: Tensor, known: Tensor) -> Tensor:
    shown = known[:, None].to(values)
    return (values * shown).sum() / (shown.sum() * values.shape[1]).clamp_min(1)
