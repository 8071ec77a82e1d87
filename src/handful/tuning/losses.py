"""The losses the papers use, thin over MONAI's, each blind to voxels that nobody has labelled.

`logits` and `target` are (n, k, h, w), one map a label, `target` in [0, 1] (an area fraction where it is soft);
`known` is (n, h, w), False where the truth is not known. All compute in float32 whatever the logits came in, and return
one number, lower is better.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

RAREST = 1e-4
"""Share of the pixels below which no class counts for more."""


def dice(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Soft Dice loss of each label's own sigmoid, smoothed by one pixel so that an absent label has a gradient too."""
    loss: Tensor = _overlap(sigmoid=True)(logits.float(), target, valid_mask[:, None])
    return loss


def bce(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Binary cross entropy, averaged over labels and known pixels."""
    return _known_mean(F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none"), valid_mask)


def focal(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Focal loss (gamma 2), averaged over labels and known pixels."""
    from monai.losses import FocalLoss

    return _known_mean(FocalLoss(reduction="none")(logits.float(), target), valid_mask)


def dice_bce(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Dice + BCE, equally weighted; stable on empty masks."""
    return dice(logits, target, valid_mask) + bce(logits, target, valid_mask)


def dice_focal(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Dice + 20 · focal, the weights SAM itself was trained with (Kirillov et al. 2023)."""
    return dice(logits, target, valid_mask) + 20 * focal(logits, target, valid_mask)


def dice_ce(
    logits: Float[Tensor, "n k h w"],
    target: Float[Tensor, "n k h w"],
    valid_mask: Bool[Tensor, "n h w"],
    rare_class_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Dice of the labels + cross entropy, both of one softmax over {background with logit 0, labels}.

    The entropy weighs a class by the power -`rare_class_weight` of its share of the known pixels: with 0 all pixels
    count alike.
    """
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).float()
    target = torch.cat([(1 - target.sum(dim=1, keepdim=True)).clamp_min(0), target], dim=1)
    overlap = _overlap(softmax=True, include_background=False)
    entropies = -(target * logits.log_softmax(dim=1))
    if rare_class_weight:
        entropies = entropies * _weights(target, valid_mask, rare_class_weight)
    entropy = entropies.sum(dim=1, keepdim=True)
    loss: Tensor = overlap(logits, target, valid_mask[:, None]) + _known_mean(entropy, valid_mask)
    return loss


def partial_ce(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, ""]:
    """Cross entropy of the labelled pixels alone, of one softmax over {background with logit 0, labels}.

    It is averaged over the pixels of each class, then over the classes that have any, so that a long stroke counts as
    much as a short one. After the partial cross entropy of Tang et al., "On regularized losses for weakly-supervised
    CNN segmentation" (ECCV 2018), with each class by itself as in SAM-CLNet (arXiv 2312.00312).
    """
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).float()
    target = torch.cat([(1 - target.sum(dim=1, keepdim=True)).clamp_min(0), target], dim=1) * valid_mask[:, None]
    of_class = target.sum(dim=(0, 2, 3))
    entropies = -(target * logits.log_softmax(dim=1)).sum(dim=(0, 2, 3)) / of_class.clamp_min(1e-6)
    return entropies.sum() / (of_class > 0).sum().clamp_min(1)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_scribbles(
    whole: Loss,
    logits: Float[Tensor, "n k h w"],
    target: Float[Tensor, "n k h w"],
    valid_mask: Bool[Tensor, "n h w"],
    scribbled: Bool[Tensor, " n"],
    partial: Loss = partial_ce,
) -> Float[Tensor, ""]:
    """The loss `whole` of slices with whole masks, and `partial` of scribbled ones, each by its number of slices.

    A Dice is not defined on scribbles: it needs the size of the label.
    """
    share = float(scribbled.float().mean())
    if share == 0:
        return whole(logits, target, valid_mask)
    rows = scribbled.to(logits.device)
    loss = share * partial(logits[rows], target[rows], valid_mask[rows])
    if share == 1:
        return loss
    return loss + (1 - share) * whole(logits[~rows], target[~rows], valid_mask[~rows])


def whole_batch(
    logits: Float[Tensor, "n k h w"], target: Float[Tensor, "n k h w"], valid_mask: Bool[Tensor, "n h w"]
) -> tuple[Float[Tensor, "1 k h m"], Float[Tensor, "1 k h m"], Bool[Tensor, "1 h m"]]:
    """All slices of a batch side by side, so that the Dice of a label is that of the batch.

    Taken slice by slice it rewards an answer that finds nothing, wherever most slices hold few of the labels.
    """
    return (
        rearrange(logits, "n k h w -> 1 k h (n w)"),
        rearrange(target, "n k h w -> 1 k h (n w)"),
        rearrange(valid_mask, "n h w -> 1 h (n w)"),
    )


def fading(rare_class_weight: float, step: int, iterations: int) -> float:
    """A rare_class_weight that is whole at the first step and falls to nothing: rare labels are found, and in the end
    no pixel counts for more than another."""
    return rare_class_weight * (1 - step / iterations)


def _weights(
    target: Float[Tensor, "n l h w"], valid_mask: Bool[Tensor, "n h w"], rare_class_weight: float
) -> Float[Tensor, "l 1 1"]:
    """Of classes, so that the mean weight of a pixel is 1."""
    share = (target * valid_mask[:, None]).sum(dim=(0, 2, 3)) / valid_mask.sum().clamp_min(1)
    weights = (share + RAREST) ** -rare_class_weight
    return (weights / (weights * share).sum().clamp_min(RAREST))[:, None, None]


def _overlap(**form: bool) -> nn.Module:
    """MONAI's soft Dice loss, imported only where something trains: that takes seconds, and predicting needs none."""
    from monai.losses import MaskedDiceLoss

    overlap: nn.Module = MaskedDiceLoss(smooth_nr=1, smooth_dr=1, soft_label=True, **form)
    return overlap


def _known_mean(values: Tensor, valid_mask: Tensor) -> Tensor:
    shown = valid_mask[:, None].to(values)
    return (values * shown).sum() / (shown.sum() * values.shape[1]).clamp_min(1)
