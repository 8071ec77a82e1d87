"""The largest piece of each label: small false positives far from an organ are removed from a prediction.

nnU-Net removes all but the largest component where this helps in its cross-validation (Isensee et al., Nature Methods
2021). Here the references decide: a label of which every reference has at least 97 % of the voxels in one connected
piece is one piece in predictions, too. Other labels, such as nuclei or lesions, keep all their pieces. Of two labels
that touch in every reference, such as the ventricles and the myocardium, the pieces that touch are preferred, since a
false positive far from the organ may be larger than the organ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.pieces import NEXT_TO, ONE_PIECE, keep_largest_pieces
from handful.data.slice_grid import SliceGrid
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportFacts, SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Segmenter, below
from handful.methods.explained import Explained
from handful.methods.learned import Learned
from handful.methods.wrappers.base import DelegatingSegmenter, MethodWrapper


@dataclass(frozen=True)
class LargestPiece(MethodWrapper):
    """Keep only the largest connected piece of each label that is in one piece in all references (auto), or none."""

    key = "largest_piece"
    default = "auto"
    kind = Literal["auto"]
    example = "auto"

    rule: Literal["auto"] = "auto"
    """'auto' decides from the support set, label by label."""

    @property
    def value(self) -> str:
        return self.rule

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> LargestPieceSegmenter:  # noqa: B008
        fitted = self.method.fit(support, backbone, run)
        return LargestPieceSegmenter(fitted, OnePiece.of(support, fitted.slicer))

    def restore(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]
    ) -> LargestPieceSegmenter:
        inner = self.method.restore(labels, slicer, backbone, below("inner", learned))
        volumes, slices = (
            tuple(Learned(learned).whole(name, "n?").tolist()) for name in ("whole_volumes", "single_slices")
        )
        if not {*volumes, *slices} <= set(labels.values):
            raise SettingsError(f"labels of one piece {(*volumes, *slices)} are not among {labels.values}")
        pairs: list[list[int]] = Learned(learned).whole("touching", "m 2").tolist() if "touching" in learned else []
        touching = frozenset((value, other) for value, other in pairs)
        if not all({value, other} <= {*volumes, *slices} for value, other in touching):
            raise SettingsError(f"touching labels {pairs} are not among those of one piece {(*volumes, *slices)}")
        return LargestPieceSegmenter(inner, OnePiece(volumes, slices, touching=touching))


@dataclass(frozen=True)
class OnePiece:
    """The labels that are one piece in the references of a support set, by their values."""

    whole_volumes: tuple[int, ...]
    """One piece in each completely labelled volume; the largest piece of a volume is kept."""
    single_slices: tuple[int, ...]
    """One piece in each labelled slice, if there are only single slices; the largest piece of each slice is kept."""
    several: dict[int, float] = field(default_factory=dict, compare=False)
    """The other labels, with the lowest fraction of voxels in the largest piece."""
    touching: frozenset[tuple[int, int]] = frozenset()
    """(value, other): labels of one piece that touch another one wherever both are shown; such pieces are preferred."""

    @classmethod
    def of(cls, support: SupportSet, slicer: Slicer) -> OnePiece:
        """The decision for a support set, whose slices `slicer` cuts."""
        whole: list[int] = []
        single: list[int] = []
        several: dict[int, float] = {}
        for value in support.labels.values:
            shown = _deciding(support, slicer, {value})
            if not shown:
                continue
            lowest = min(facts.in_largest_piece[value] for facts in shown)
            if lowest < ONE_PIECE:
                several[value] = lowest
            else:
                (whole if _is_whole(shown[0], slicer) else single).append(value)
        together = [(value, other) for kind in (whole, single) for value in kind for other in kind if value != other]
        touching = frozenset(pair for pair in together if _touch(pair, support, slicer))
        return cls(tuple(whole), tuple(single), several, touching)

    def keep(self, grid: SliceGrid, label_map: LabelMap) -> LabelMap:
        """The label map without the smaller pieces of these labels; it is changed in place. `grid` are its slices."""
        classes = grid.of(label_map.array)
        touching = {
            value: [other for one, other in sorted(self.touching) if one == value] for value, _ in self.touching
        }
        keep_largest_pieces(classes, self.whole_volumes, touching)
        keep_largest_pieces(classes, self.single_slices, touching, per_slice=True)
        return label_map

    def decisions(self, labels: Labels) -> tuple[str, ...]:
        """Which labels are reduced to their largest piece, and which are not."""
        names = labels.as_dict()

        def listed(values: Sequence[int]) -> str:
            return ", ".join(names[value] for value in values)

        lines = []
        if self.whole_volumes:
            lines.append(f"keep only the largest piece of: {listed(self.whole_volumes)}")
        if self.single_slices:
            lines.append(f"keep only the largest piece on each slice of: {listed(self.single_slices)}")
        if self.touching:
            pairs = sorted({(min(pair), max(pair)) for pair in self.touching})
            touching = ", ".join(f"{names[one]} and {names[other]}" for one, other in pairs)
            lines.append(f"prefer pieces that touch, as in all labelled cases: {touching}")
        if self.several:
            shares = ", ".join(f"{names[value]} ({share:.0%} in the largest)" for value, share in self.several.items())
            lines.append(f"keep all pieces of: {shares}")
        return tuple(lines)


def _deciding(support: SupportSet, slicer: Slicer, values: set[int]) -> list[SupportFacts]:
    """The completely labelled volumes that show all of these labels; without any, all other cases that do."""
    shown = [facts for facts in support.facts if values <= set(facts.in_largest_piece)]
    return [facts for facts in shown if _is_whole(facts, slicer)] or shown


def _is_whole(facts: SupportFacts, slicer: Slicer) -> bool:
    """Whether the case is a completely labelled volume."""
    return facts.complete and len(slicer.grid(facts.geometry)) > 1


def _touch(pair: tuple[int, int], support: SupportSet, slicer: Slicer) -> bool:
    """Whether the first label touches the second one in all volumes (or slices) that show both."""
    shown = _deciding(support, slicer, set(pair))
    return bool(shown) and all(facts.around.get(pair, 0.0) >= NEXT_TO for facts in shown)


class LargestPieceSegmenter(DelegatingSegmenter):
    """A segmenter whose predictions have one piece of each label that is one piece in the references."""

    def __init__(self, inner: Segmenter, one_piece: OnePiece) -> None:
        super().__init__({"inner": inner})
        self.one_piece = one_piece

    @property
    def decisions(self) -> tuple[str, ...]:
        return (*self.inner.decisions, *self.one_piece.decisions(self.labels))

    def learned(self) -> dict[str, Tensor]:
        values = {"whole_volumes": self.one_piece.whole_volumes, "single_slices": self.one_piece.single_slices}
        whole = {name: torch.tensor(part, dtype=torch.long) for name, part in values.items()}
        if self.one_piece.touching:
            whole["touching"] = torch.tensor(sorted(self.one_piece.touching), dtype=torch.long)
        return super().learned() | whole

    def segment(self, stack: SliceView) -> LabelMap:
        return self.one_piece.keep(stack.grid, self.inner.segment(stack))

    def predict_explained(self, volume: Volume) -> Explained:
        explained = self.inner.predict_explained(volume)
        return explained._replace(label_map=self.one_piece.keep(self.slicer.grid(volume.geometry), explained.label_map))

    def extend(self, support: SupportSet) -> LargestPieceSegmenter:
        return LargestPieceSegmenter(self.inner.extend(support), self.one_piece)
