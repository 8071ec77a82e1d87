"""What sets families of weights apart: the pixels they were trained on, and the settings that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from handful.backbones.framing import PixelPolicy

Architecture = Literal["sam", "mobile-sam", "sam2"]


@dataclass(frozen=True, kw_only=True)
class BackboneDefaults:
    """Settings of methods that suit a backbone's weights; a method takes them where its user sets none."""

    decoder_rate: float = 3e-4
    """Peak learning rate for a pre-trained mask decoder. Those trained on millions of masks want 1e-4 to 5e-4."""
    head_rate: float = 5e-4
    """Peak learning rate of AutoSAM's published heads, as in its paper (Hu et al., arXiv 2306.13731)."""
    head_steps: int = 840
    """Training steps of the same heads: the paper's 120 epochs of one patient."""
    top_k: int = 3
    """Labelled slices that FATE retrieves for each slice, as in its authors' code."""
    window: int = 6
    """Neighbouring slices that FATE remembers, as in its authors' code and in SAM 2."""
    multimask: Literal["never", "one-click", "always"] = "one-click"
    """When the best of the candidate masks, by their predicted IoU, is taken instead of the single mask. 'one-click':
    where a label has one point and nothing else, which leaves open what is meant. This is what SAM's authors advise."""
    least_iou: float = 0.88
    """Smallest predicted IoU of a mask that "everything" keeps, as in the code of SAM's authors."""
    least_stability: float = 0.95
    """Smallest stability of a mask that "everything" keeps, as in the code of SAM's authors."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Weights that were trained in the same way."""

    architecture: Architecture
    pixels: PixelPolicy
    defaults: BackboneDefaults = BackboneDefaults()
    side: int | None = None
    """Pixels along the square input, where neither weights nor their configuration say it."""


PADDED = PixelPolicy(resize="pad")
"""SAM: the longest side becomes 1024 pixels; ImageNet's normalisation, then zeros."""
STRETCHED = PixelPolicy(resize="stretch")
"""SAM 2: stretched to the square; ImageNet's normalisation."""
UNIT_RANGE = PixelPolicy(
    resize="stretch", interpolation="bicubic", min_max=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
"""MedSAM: stretched to the square, each slice scaled to [0, 1], no further normalisation (MedSAM_Inference.py)."""

EMBEDDED = BackboneDefaults(
    decoder_rate=2e-3,
    head_rate=2e-3,
    head_steps=1500,
    top_k=5,
    window=1,
    multimask="never",
    least_iou=0.3,
    least_stability=0.6,
)
"""handful-tiny and handful-small: few parameters, trained on synthetic anatomy, with one mask per prompt.

Under the thresholds of SAM's authors, "everything" keeps no mask of a real image. Those here kept 27 to 41 masks of a
grid of 12 × 12 points, on one picture each of nuclei, breast, heart and lungs.
"""

FAMILIES: dict[str, Family] = {
    "sam": Family(architecture="sam", pixels=PADDED),
    "medsam": Family(
        architecture="sam",
        pixels=UNIT_RANGE,
        defaults=BackboneDefaults(multimask="never"),
    ),
    "sam-med2d": Family(
        architecture="sam",
        pixels=STRETCHED,
        defaults=BackboneDefaults(multimask="always"),
    ),
    "mobile-sam": Family(architecture="mobile-sam", pixels=PADDED),
    "sam2": Family(architecture="sam2", pixels=STRETCHED, side=1024),
    "medsam2": Family(architecture="sam2", pixels=STRETCHED, side=512),
    "handful-tiny": Family(architecture="sam2", pixels=STRETCHED, defaults=EMBEDDED),
    "handful-small": Family(architecture="sam2", pixels=STRETCHED, defaults=EMBEDDED),
}
"""By the name that stands before the colon of a backbone's name, as in 'medsam:/path/medsam_vit_b.pth'."""
