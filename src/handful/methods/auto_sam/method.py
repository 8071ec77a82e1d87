"""AutoSAM: a trained head on a frozen encoder predicts all classes without prompts.

After Hu, Xu and Shi, "How to Efficiently Adapt Large Segmentation Model (SAM) to Medical Images" (arXiv 2306.13731).
The heads are those of the paper. With `as_published`, they are built as in the authors' code, including its errors;
without it, these are fixed. `auto-sam-unet` has a head that is not from the paper.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from handful.backbones.base import Backbone
from handful.backbones.decoder import has_finer_levels
from handful.errors import SettingsError, refuse_without_effect
from handful.methods.auto_sam.heads import CnnHead, Head, LinearHead, PublishedVitHead, VitHead
from handful.methods.auto_sam.training import HeadTraining

MAX_CNN_RATE = 1e-3
"""Highest learning rate at which the CNN head trains: its ten layers have no norms."""


@dataclass(frozen=True, kw_only=True)
class AutoSam(HeadTraining):
    """Trains a head of the AutoSAM paper on the frozen encoder, which predicts all classes without prompts."""

    when = "AutoSAM as in its paper, with SAM's own weights"
    minutes = "2 to 6 min"

    views: int = 16
    """Augmented views stored per labelled slice, including the slice itself; 0 or 1 for no augmentation.

    For large support sets it is reduced (to no less than 4), so that the stored embeddings fit into 2 GiB.
    """
    head: Literal["vit", "cnn", "linear"] = "vit"
    """Trained head: 'vit' (SAM's mask decoder with one trained token per class), 'cnn' or 'linear'.

    'cnn' has ten convolutions and the most parameters. 'linear' is the upscaling of the decoder, with the fewest
    parameters; in spite of its name it contains three nonlinearities. Both start from random weights.
    """
    shared_pass: bool = True
    """For 'vit': decode all classes in one pass; off (as published), one pass per class, at a multiple of the cost."""
    token_init_std: float = 0.5
    """For 'vit': standard deviation of the initial class tokens around SAM's mask token.

    If all class tokens start nearly equal (0.02 is a usual choice), training separates them slowly, because all classes
    share one hypernetwork.
    """
    as_published: bool = False
    """Build the head exactly as in the authors' code, to reproduce the paper.

    'vit': one pass per class, two mask tokens and one IoU token per class, and random positional encoding. 'cnn':
    PyTorch's default initialisation. 'linear': `relu_out`.
    """
    relu_out: bool = False
    """For 'linear': end with the published ReLU, which can make the logits of a class stay 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.token_init_std < math.inf:
            raise SettingsError(f"token_init_std must be 0 or more, got {self.token_init_std}")
        if self.head != "linear":
            refuse_without_effect(self, ("relu_out",), f"it is for the head 'linear', and head is {self.head!r}")
        of_vit, head = ("shared_pass", "token_init_std"), "it is for the head 'vit'"
        if self.head != "vit":
            refuse_without_effect(self, of_vit, f"{head}, and head is {self.head!r}")
        if self.as_published:
            refuse_without_effect(self, of_vit, f"{head} that is not as_published")

    def resolved(self, backbone: Backbone) -> AutoSam:
        """With the steps and the rate of the paper's heads on this backbone.

        On the original SAM weights these are the paper's: 840 steps (120 epochs of one patient) at 5e-4. 'cnn' never
        takes more than 1e-3 by itself.
        """
        defaults = backbone.family.defaults
        rate = min(defaults.head_rate, MAX_CNN_RATE) if self.head == "cnn" else defaults.head_rate
        return dataclasses.replace(self, train=self.train.filled(defaults.head_steps, rate))

    def random_head(self, backbone: Backbone, classes: int, with_slices: bool) -> Head:
        enlarging = backbone.mask_side // backbone.feature_side
        if self.head == "cnn":
            finer = has_finer_levels(backbone.mask_decoder)
            return CnnHead(backbone.channels, classes, finer, enlarging=enlarging, as_published=self.as_published)
        if self.head == "linear":
            relu_out = self.relu_out or self.as_published
            return LinearHead(backbone.channels, classes, enlarging=enlarging, relu_out=relu_out)
        if self.as_published:
            return PublishedVitHead(backbone, classes)
        return VitHead(backbone, classes, shared_pass=self.shared_pass, token_init_std=self.token_init_std)
