"""The crop to the labelled region: any method, applied to a window around the labels instead of whole slices.

A model with a fixed input size resolves small organs poorly. Therefore all support cases are cropped to windows of one
size around their labels, and the method is fitted on these. In a new scan, the window is placed where slices look like
labelled regions (module `roi_place`). This is a coarse-to-fine cascade (Roth et al., "Hierarchical 3D fully
convolutional networks for multi-organ segmentation", 2017). All slices of a scan have the same window, and no slice is
left out.

A window in the wrong place cuts an organ off. Therefore `roi_margin = "auto"` decides from the support set whether to
crop and how wide, by leaving each case out in turn (module `roi_margin`), and every prediction is checked at the rim of
its window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.pieces import keep_main_pieces
from handful.data.slice_grid import Block, cropped_label_map, cropped_volume
from handful.data.slicing import Slicer, SliceView
from handful.data.support import LabelledScan, LabelledSlices, SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.jobs.scratch import zeros_like
from handful.methods.base import Held, Method, PromptableSegmenter, Segmenter, Work, below
from handful.methods.explained import Explained, SliceConfidence, SupportPicture
from handful.methods.learned import Learned
from handful.methods.wrappers.base import MethodWrapper, WrapperSegmenter
from handful.methods.wrappers.roi_margin import Decision, decide_margin, region_is_large
from handful.methods.wrappers.roi_place import Locator
from handful.methods.wrappers.roi_window import Region, Windows, labelled_regions, region_of, share_on_rim

RIM = 0.01
"""Maximum fraction of the predicted voxels on the rim of the window; with more, an organ may extend beyond it."""
TRIES = 3
"""Maximum number of windows that are tried for a scan."""
WIDENED = 0.25
"""Fraction of its sides by which the next window is larger on each side that the prediction reaches."""
MAIN = 0.25
"""Size of a piece, relative to the largest one of its label, below which it does not count."""
KEPT = 0.9
"""Fraction of the predicted voxels that a wider window must find again, or its prediction is not used."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RoiCrop(MethodWrapper):
    """Crop scans to the labelled region, enlarged by this factor (1.4, say), or none; auto decides from the support."""

    key = "roi_margin"
    default = "auto"
    kind = float | Literal["auto"]
    example = "auto, or a number such as 1.4"

    margin: float | Literal["auto"] = "auto"
    """Side of the window divided by the longest side of the labelled region (the largest in the support set)."""

    def __post_init__(self) -> None:
        if self.margin != "auto" and not 1 <= self.margin < np.inf:
            raise SettingsError(
                f"roi_margin must be 1 or more, got {self.margin}; it is the size of the window relative to the "
                "labelled region"
            )

    @classmethod
    def default_for(cls, kind: type[Method]) -> Any:
        return None if kind.whole_slices else cls.default

    @property
    def value(self) -> float | str:
        return self.margin

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> RoiCropSegmenter:  # noqa: B008
        slicer = self.resolved_slicer(support)
        if self.margin != "auto":
            return self._fit_cropped(support, slicer, self.margin, backbone, run)
        if (decision := region_is_large(support, slicer)) is not None:
            return self._fit_whole(support, slicer, backbone, run, decision)
        with support.held() as held:
            decision = decide_margin(held, slicer)
            if decision.margin is None:
                return self._fit_whole(held, slicer, backbone, run, decision)
            return self._fit_cropped(held, slicer, decision.margin, backbone, run, decision)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        """As of the method, on the slices that it would be fitted on; a new window in a prediction is not counted."""
        slicer = self.resolved_slicer(support)
        method = self.method.with_slicer(slicer)
        if self.margin != "auto":
            return method.work(self._cropped(support, slicer, self.margin)[0], backbone)
        decision = region_is_large(support, slicer) or decide_margin(support, slicer)
        if decision.margin is None:
            return method.work(support, backbone)
        return method.work(self._cropped(support, slicer, decision.margin, decision.locator)[0], backbone)

    def _fit_whole(
        self, support: SupportSet, slicer: Slicer, backbone: Backbone, run: Run, decision: Decision
    ) -> RoiCropSegmenter:
        return RoiCropSegmenter(self.method.with_slicer(slicer).fit(support, backbone, run), None, decision)

    def _fit_cropped(
        self,
        support: SupportSet,
        slicer: Slicer,
        margin: float,
        backbone: Backbone,
        run: Run,
        decision: Decision | None = None,
    ) -> RoiCropSegmenter:
        cases, cropper = self._cropped(support, slicer, margin, decision.locator if decision else None)
        inner = self.method.with_slicer(slicer).fit(cases, backbone, run)
        return RoiCropSegmenter(inner, cropper, decision)

    def _cropped(
        self, support: SupportSet, slicer: Slicer, margin: float, locator: Locator | None = None
    ) -> tuple[SupportSet, Cropper]:
        """The cropped scans, and what crops further ones."""
        windows = Windows.of(labelled_regions(support.facts, slicer), margin)
        cropped: list[Case] = []
        regions = [windows.of_case(facts, slicer) for facts in support.facts]
        scans = _crop_each(support.scans(slicer), regions, cropped)
        locator = locator or Locator.of(scans)
        for _ in scans:
            pass  # all are cropped, also where the locator was known
        cropper = Cropper(locator, windows)
        unlabelled = support.unlabelled.cropped(lambda scan: cropper.window(slicer.view(scan)).block)
        return SupportSet(tuple(cropped), support.labels, unlabelled=unlabelled), cropper

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> RoiCropSegmenter:
        inner = self.method.restore(labels, slicer, backbone, below("inner", learned))
        if "windows" not in learned:
            return RoiCropSegmenter(inner, None)
        if "where/thumbnails" in learned:
            raise SettingsError("an earlier version of handful placed the crop in another way; fit again")
        numbers = Learned(learned).floats("windows", "5", low=0, single=False).tolist()
        return RoiCropSegmenter(inner, Cropper(Locator.unpack(below("where", learned)), Windows.unpack(numbers)))


@dataclass(frozen=True, eq=False)
class Cropper:
    """Places the window of a scan."""

    locator: Locator
    windows: Windows

    def window(self, stack: SliceView) -> Region:
        """The window of a scan, placed where its slices look like labelled regions."""
        return self.windows.around_mass(stack.grid, self.locator(stack))

    def learned(self) -> dict[str, Tensor]:
        """All contents as tensors, by name."""
        where = {f"where/{name}": tensor for name, tensor in self.locator.pack().items()}
        return where | {"windows": torch.tensor(dataclasses.astuple(self.windows), dtype=torch.float64)}


class RoiCropSegmenter(WrapperSegmenter):
    """A segmenter of windows, and the cropper that places them; without a cropper, it segments whole slices."""

    def __init__(self, inner: Segmenter, cropper: Cropper | None, decision: Decision | None = None) -> None:
        super().__init__({"inner": inner})
        self.cropper = cropper
        self.decision = decision

    @property
    def inner(self) -> Segmenter:
        """The segmenter of windows."""
        return self.members["inner"]

    @property
    def decisions(self) -> tuple[str, ...]:
        own = (self.decision.reason,) if self.decision else ()
        return (*own, *self.inner.decisions)

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits for slices that are already cropped."""
        logits: Tensor = self.inner(slices)
        return logits

    def learned(self) -> dict[str, Tensor]:
        return super().learned() | (self.cropper.learned() if self.cropper else {})

    def segment(self, stack: SliceView) -> LabelMap:
        if self.cropper is None:
            return self.inner.segment(stack)
        return self._checked(stack, self.inner.predict, lambda prediction: prediction)[0]

    def add_probabilities(
        self, volume: Volume, into: Float[np.ndarray[Any, Any], "k i j l"], share: float = 1.0
    ) -> None:
        """Outside the window, the probability of each label is 0."""
        block: Block = (slice(None), slice(None), slice(None))
        if self.cropper is not None:
            checked = self._checked(self.slicer.view(volume), self.inner.predict, lambda prediction: prediction)
            block = checked[2].block
        self.inner.add_probabilities(cropped_volume(volume, block), into[(slice(None), *block)], share)

    def predict_explained(self, volume: Volume) -> Explained:
        if self.cropper is None:
            return self.inner.predict_explained(volume)
        label_map, explained, _ = self._checked(
            self.slicer.view(volume), self.inner.predict_explained, lambda prediction: prediction.label_map
        )
        return Explained(label_map, explained.reasons)

    def support_picture(self, case: str, number: int) -> SupportPicture:
        return self.inner.support_picture(case, number)

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        if self.cropper is None:
            return self.inner.confidence(volume, prediction, reasons)
        stack = self.slicer.view(volume)
        window, predicted = self.cropper.window(stack), region_of(stack, prediction)
        if predicted is not None and not window.holds(predicted):
            window = window.joined(predicted)
        block = window.block
        within = cropped_volume(volume, block)
        own = LabelMap(np.ascontiguousarray(prediction.array[block]), within.geometry, prediction.labels)
        return self.inner.confidence(within, own, reasons)

    def extend(self, support: SupportSet) -> RoiCropSegmenter:
        if self.cropper is None:
            return RoiCropSegmenter(self.inner.extend(support), None, self.decision)
        windows, slicer = self.cropper.windows, self.slicer
        regions = [windows.of_case(facts, slicer) for facts in support.facts]
        cropped: list[Case] = []
        further = Locator.of(_crop_each(support.scans(slicer), regions, cropped))
        inner = self.inner.extend(dataclasses.replace(support, cases=tuple(cropped), known_facts=None))
        return RoiCropSegmenter(inner, Cropper(self.cropper.locator.joined(further), windows), self.decision)

    @property
    def holds(self) -> frozenset[Held]:
        own: frozenset[Held] = frozenset({"sums"} if self.cropper else ())
        return super().holds | own

    def promptable(self) -> PromptableSegmenter | None:
        """That of a method that was fitted on whole slices, as those are that users prompt; else None."""
        return None if self.cropper else self.inner.promptable()

    def window(self, stack: SliceView) -> Region:
        """The first window that is tried in a scan; without a cropper, the whole slices."""
        return self.cropper.window(stack) if self.cropper else Region(stack.grid, 0, 0, *stack.size)

    def _checked(
        self, stack: SliceView, predict: Callable[[Volume], _Result], map_of: Callable[[_Result], LabelMap]
    ) -> tuple[LabelMap, _Result, Region]:
        """The prediction in the window of a scan, and that window; if it reaches the rim, a wider one with less on it.

        Small pieces do not count, and a wider window never leaves out what a narrower one showed, so that false
        positives at the rim cannot lead away from the organ.
        """
        assert self.cropper is not None
        window = self.cropper.window(stack)
        best: tuple[float, int, LabelMap, _Result, Region] | None = None
        for _ in range(TRIES):
            result = predict(cropped_volume(stack.volume, window.block))
            label_map = _in_whole(map_of(result), window.block, stack.volume)
            main = _main_pieces(label_map)
            found, touching = int(np.count_nonzero(main.array)), share_on_rim(stack, main, window)
            if best is not None and found < KEPT * best[1]:
                break
            if best is None or touching < best[0]:
                best = touching, found, label_map, result, window
            predicted = region_of(stack, main)
            if touching <= RIM or predicted is None:
                break
            window = window.widened(predicted, WIDENED)
        assert best is not None
        return best[2], best[3], best[4]


def _main_pieces(label_map: LabelMap) -> LabelMap:
    """The label map without small pieces."""
    array = zeros_like(label_map.array, label_map.array.dtype)
    array[...] = label_map.array
    keep_main_pieces(array, label_map.labels.values, MAIN)
    return dataclasses.replace(label_map, array=array)


def _crop_each(
    scans: Iterator[LabelledScan], windows: Sequence[Region], cropped: list[Case]
) -> Iterator[LabelledSlices]:
    """The labelled slices of each scan. The cropped case is appended to `cropped`, so that each scan is read once."""
    for scan, window in zip(scans, windows, strict=True):
        yield scan.labelled()
        image = cropped_volume(scan.view.volume, window.block)
        reference = dataclasses.replace(cropped_label_map(scan.reference, window.block), geometry=image.geometry)
        cropped.append(dataclasses.replace(scan.facts.case, image=image, reference=reference))


def _in_whole(prediction: LabelMap, block: Block, volume: Volume) -> LabelMap:
    """The label map of a window on the grid of the whole scan."""
    whole = zeros_like(volume.array[0], prediction.array.dtype)
    whole[block] = prediction.array
    return LabelMap(whole, volume.geometry, prediction.labels)
