"""A closer look: any method, shown a window round the labelled region instead of whole slices.

A model that sees a whole slice in a fixed square has few cells left for small organs. So the support is cut to windows
of one size round what is labelled, the method learns from these, and in a new scan the window is put where the most
similar support slices have their labels: first where, then what, as cascades for CT do it (Roth et al., "Hierarchical
3D fully convolutional networks for multi-organ segmentation", 2017). The window is one for all slices of a scan, and no
slice is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.slice_grid import Block, SliceGrid
from handful.data.slicing import Slicer, SliceView
from handful.data.support import LabelledScan, LabelledSlices, SupportFacts, SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Segmenter, below
from handful.methods.explained import SliceConfidence
from handful.methods.promptable import TransferredPrompts
from handful.methods.wrappers.base import MethodWrapper, WrapperSegmenter

OUTLIERS = 0.02
"""Share of the labelled pixels that may lie outside on either side when the region of a new scan is looked for."""


@dataclass(frozen=True)
class RoiCrop(MethodWrapper):
    """A method that is shown a window round the labelled region."""

    key = "roi_margin"
    kind = float
    example = "a number such as 1.3"

    context: float
    """Side of the window over the longest side of the labelled region, the largest one of the support; 1.3 or so."""

    def __post_init__(self) -> None:
        if not 1 <= self.context < np.inf:
            raise SettingsError(
                f"roi_margin must be 1 or more, got {self.context}: how much larger the window is than what is labelled"
            )

    @property
    def value(self) -> float:
        return self.context

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> RoiCropSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
        regions = [_labelled_region(facts, slicer) for facts in support.facts]
        windows = Windows.of(regions, self.context)
        cut: list[Case] = []
        where = TransferredPrompts.of(
            _cutting(support.scans(slicer), [windows.round_about(region) for region in regions], cut), "box", seed=0
        )
        inner = self.method.with_slicer(slicer).fit(SupportSet(tuple(cut), support.labels), backbone, run)
        return RoiCropSegmenter(inner, where, windows)

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> RoiCropSegmenter:
        inner = self.method.restore(labels, slicer, backbone, below("inner", learned))
        where = TransferredPrompts.unpack(below("where", learned))
        return RoiCropSegmenter(inner, where, Windows(*learned["windows"].tolist()))


@dataclass(frozen=True)
class Region:
    """Where something is in all slices of a grid: rows and columns, and how large these are."""

    grid: SliceGrid
    top: float
    left: float
    bottom: float
    right: float

    @property
    def sides(self) -> tuple[float, float]:
        return self.bottom - self.top, self.right - self.left

    @property
    def middle(self) -> tuple[float, float]:
        return (self.top + self.bottom) / 2, (self.left + self.right) / 2


@dataclass(frozen=True)
class Windows:
    """How large windows are, and where they are put if nothing tells."""

    world: float
    """Side in mm, for scans that know them."""
    share: float
    """Side as a share of the longer side of the slice, for pictures."""
    down: float
    across: float
    """Usual middle of the labelled region, as shares of the slice's height and width."""

    @classmethod
    def of(cls, regions: Sequence[Region], context: float) -> Windows:
        world, share, middles = [], [], []
        for region in regions:
            _, row, column = region.grid.spacing
            world.append(max(region.sides[0] * row, region.sides[1] * column))
            share.append(max(region.sides) / max(region.grid.size))
            middles.append(np.divide(region.middle, region.grid.size))
        down, across = np.mean(middles, axis=0).tolist()
        return cls(context * max(world), context * max(share), down, across)

    def round_about(self, region: Region) -> Region:
        """A window of the usual size in the region's middle, of whole pixels and within the slice."""
        return self._at(region.grid, region.middle)

    def usual(self, grid: SliceGrid) -> Region:
        """A window where the support had its labels."""
        return self._at(grid, (self.down * grid.size[0], self.across * grid.size[1]))

    def _at(self, grid: SliceGrid, middle: tuple[float, float]) -> Region:
        _, *pixel = grid.spacing
        in_mm = grid.geometry.unit == "mm"
        edges = []
        for place, edge, length in zip(middle, pixel, grid.size, strict=True):
            side = min(length, max(1, round(self.world / edge if in_mm else self.share * max(grid.size))))
            start = min(max(0, round(place - side / 2)), length - side)
            edges.append((start, start + side))
        (top, bottom), (left, right) = edges
        return Region(grid, top, left, bottom, right)


class RoiCropSegmenter(WrapperSegmenter):
    """A segmenter for windows, and what tells where to put them."""

    def __init__(self, inner: Segmenter, where: TransferredPrompts, windows: Windows) -> None:
        super().__init__({"inner": inner})
        self.where = where
        self.windows = windows

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits for slices that are windows already."""
        logits: Tensor = self.inner(slices)
        return logits

    def learned(self) -> dict[str, Tensor]:
        where = {f"where/{name}": tensor for name, tensor in self.where.pack().items()}
        windows = torch.tensor(dataclasses.astuple(self.windows), dtype=torch.float64)
        return super().learned() | where | {"windows": windows}

    def segment(self, stack: SliceView) -> LabelMap:
        window = self.window(stack)
        cut = _voxels(window)
        found = self.inner.predict(_cropped(stack.volume, cut))
        whole = np.zeros(stack.volume.geometry.shape, dtype=found.array.dtype)
        whole[cut] = found.array
        return LabelMap(whole, stack.volume.geometry, self.labels)

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """Unknown: the logits are those of windows."""
        return {}

    @property
    def holds_pictures(self) -> bool:
        return True  # thumbnails of the whole slices

    @property
    def inner(self) -> Segmenter:
        """The segmenter of windows."""
        return self.members["inner"]

    def window(self, stack: SliceView) -> Region:
        """Where in the slices of a scan the method looks."""
        boxes = self.where(stack).boxes
        assert boxes is not None
        asked = (boxes != 0).any(dim=2)
        if not asked.any():
            return self.windows.usual(stack.grid)
        left, top, right, bottom = boxes[asked].numpy().T
        rows, columns = _without_outliers(top, bottom), _without_outliers(left, right)
        return self.windows.round_about(Region(stack.grid, rows[0], columns[0], rows[1], columns[1]))


def _without_outliers(low: NDArray[np.floating], high: NDArray[np.floating]) -> tuple[float, float]:
    """From where to where boxes reach, a few of them apart."""
    return float(np.quantile(low, OUTLIERS)), float(np.quantile(high, 1 - OUTLIERS)) + 1


def _labelled_region(facts: SupportFacts, slicer: Slicer) -> Region:
    """The extent of all labels of a case; the whole slice where there are none."""
    grid = slicer.grid(facts.geometry)
    if facts.extent is None:
        return Region(grid, 0, 0, *grid.size)
    rows, columns = grid.window(facts.extent)
    return Region(grid, rows[0], columns[0], rows[1], columns[1])


def _cutting(scans: Iterator[LabelledScan], windows: Sequence[Region], cut: list[Case]) -> Iterator[LabelledSlices]:
    """The labelled slices of each scan; the scan itself, cut to its window, is appended to `cut` on the way."""
    for scan, window in zip(scans, windows, strict=True):
        yield scan.labelled()
        cut.append(_cut(scan, _voxels(window)))


def _cut(scan: LabelledScan, block: Block) -> Case:
    """The same case, of which nothing outside the block is left."""
    image = _cropped(scan.view.volume, block)
    labels = dataclasses.replace(scan.reference, array=scan.reference.array[block], geometry=image.geometry)
    return dataclasses.replace(scan.facts.case, image=image, reference=labels)


def _voxels(window: Region) -> Block:
    """The window in all slices, as ranges of voxels i, j, k."""
    rows, columns = (int(window.top), int(window.bottom)), (int(window.left), int(window.right))
    return window.grid.block(rows, columns)


def _cropped(volume: Volume, cut: Block) -> Volume:
    """The voxels of a block, where they lay in the world."""
    array = np.ascontiguousarray(volume.array[(slice(None), *cut)])
    affine = volume.geometry.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in cut]
    i, j, k = array.shape[1:]
    return dataclasses.replace(
        volume, array=array, geometry=dataclasses.replace(volume.geometry, shape=(i, j, k), affine=affine)
    )
