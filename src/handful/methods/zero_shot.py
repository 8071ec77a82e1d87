"""Zero-shot: the backbone as it is, prompted for each label with a box or with points; nothing is trained.

The baseline of most papers on SAM in medicine. These papers take the prompts from the ground truth, as `oracle` does.
The segmenter that `fit` returns takes them from the most similar labelled slice, and needs no ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Held, Method, Work
from handful.methods.promptable import FrozenPromptable, Prompted, PromptKind, TransferredPrompts


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Method):
    """Prompts the frozen backbone with the boxes or points of the most similar labelled slice; trains nothing."""

    when = "a first impression of a backbone"
    minutes = "seconds"
    needs_whole_masks = True

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    prompt: PromptKind = "box"
    """The prompt of a label: one box round it, or one, three or five points inside it."""
    box_crop: bool = False
    """Crop the slice around each box and encode the crop, for small organs; costs one encoder pass per box."""
    multimask: bool | None = None
    """Take the candidate mask with the highest predicted IoU instead of the single mask; None: as suits the backbone.

    For SAM and SAM 2 that is the best candidate for a label with one point and nothing else, as their authors advise;
    for SAM-Med2D always, for MedSAM and handful-tiny never.
    """
    seed: int = 0
    """Seed of the random points."""

    def __post_init__(self) -> None:
        if self.box_crop and self.prompt != "box":
            raise SettingsError(f"box_crop needs boxes, but prompt is {self.prompt!r}; set prompt='box'")
        if self.box_crop and self.multimask:
            raise SettingsError("box_crop uses the single mask; leave multimask out or set it to False")

    def resolved(self, backbone: Backbone) -> ZeroShot:
        when = backbone.family.defaults.multimask
        if self.multimask is not None or when == "one-click":  # which depends on the prompts
            return self
        return replace(self, multimask=when == "always" and not self.box_crop)

    @property
    def trains(self) -> bool:
        return False

    def seeded(self, further: int) -> ZeroShot:
        if self.prompt in ("box", "points-1"):
            raise SettingsError(f"seeds is for results of chance, and prompt = {self.prompt!r} has none; leave it out")
        return super().seeded(further)

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> ZeroShotSegmenter:  # noqa: B008
        support = support.with_whole_masks()
        slicer = self.resolved_slicer(support)
        prompter = TransferredPrompts.of(support.slices(slicer), self.prompt, self.seed)
        return ZeroShotSegmenter(self.promptable(support.labels, backbone, slicer), prompter)

    @property
    def keeps_pictures(self) -> bool:
        return True

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        return (Work.of(self.resolved(backbone), support),)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> ZeroShotSegmenter:
        return ZeroShotSegmenter(
            self.promptable(labels, backbone, slicer), TransferredPrompts.unpack(learned, self.prompt, labels)
        )

    def promptable(self, labels: Labels, backbone: Backbone, slicer: Slicer | None = None) -> FrozenPromptable:
        """The same backbone for prompts from elsewhere, for example from `oracle`; without a support set."""
        return FrozenPromptable(labels, slicer or self.slicer, backbone, self.box_crop, self.multimask)


class ZeroShotSegmenter(Prompted):
    """A frozen backbone, prompted with the prompts of labelled slices."""

    prompter: TransferredPrompts

    def __init__(self, inner: FrozenPromptable, prompter: TransferredPrompts) -> None:
        super().__init__(inner, prompter)

    @property
    def holds(self) -> frozenset[Held]:
        return frozenset({"pictures"})  # the thumbnails

    def learned(self) -> dict[str, Tensor]:
        """Thumbnails of the labelled slices, and their prompts."""
        return self.prompter.pack()
