"""Class embeddings: mask-pooled features of labelled slices, each with its origin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from handful.backbones.base import Backbone
from handful.errors import SettingsError
from handful.methods.encoded_support import EncodedSupport
from handful.methods.learned import Learned


@dataclass(frozen=True, eq=False)
class Tokens:
    """t class embeddings of c channels, and the origin of each."""

    vectors: Float[Tensor, "t c"]
    classes: Int[Tensor, " t"]
    """Index of the label; for the background, the number of labels."""
    cases: Int[Tensor, " t"]
    """Index of the case in `names`."""
    slices: Int[Tensor, " t"]
    """Number of the slice in its case."""
    views: Int[Tensor, " t"]
    """0 for the unchanged slice, else the number of its augmented view."""
    names: tuple[str, ...]
    """Names of the cases."""

    def __getitem__(self, rows: Tensor) -> Tokens:
        return Tokens(
            self.vectors[rows], self.classes[rows], self.cases[rows], self.slices[rows], self.views[rows], self.names
        )

    def of_view(self, view: int) -> Tokens:
        """The embeddings from views of this number."""
        return self[self.views == view]

    def evenly(self, most: int) -> Float[Tensor, "k t c"]:
        """The same number of embeddings for each class, at most `most`.

        They are evenly spaced over all embeddings of the class, or repeated if it has fewer.
        """
        rows = [torch.nonzero(self.classes == c)[:, 0] for c in range(int(self.classes.max()) + 1)]
        length = min(most, max(len(r) for r in rows))
        chosen = [r[torch.linspace(0, len(r) - 1, length).round().long()] for r in rows]
        return self.vectors[torch.stack(chosen)]

    def farthest(
        self, label: int, case: int, index: int, view: int, leave_out: Literal["case", "slice"] = "case"
    ) -> Int[Tensor, " p"]:
        """Rows of a class that do not come from the given slice: of other cases, else slices, else views, else all.

        With `leave_out` "slice", other slices of the same case are allowed from the start.
        """
        other_case = self.cases != case
        other_slice = other_case | (self.slices != index)
        other_view = other_slice | (self.views != view)
        of_class = self.classes == label
        allowed = [other_slice, other_view] if leave_out == "slice" else [other_case, other_slice, other_view]
        for outside in allowed:
            if bool((of_class & outside).any()):
                return torch.nonzero(of_class & outside)[:, 0]
        return torch.nonzero(of_class)[:, 0]

    def joined(self, other: Tokens) -> Tokens:
        """The embeddings of both; equal names are the same case."""
        names = (*self.names, *[n for n in other.names if n not in self.names])
        cases = torch.tensor([names.index(n) for n in other.names], dtype=torch.long)[other.cases]
        return Tokens(
            torch.cat([self.vectors, other.vectors.to(self.vectors)]),
            torch.cat([self.classes, other.classes]),
            torch.cat([self.cases, cases]),
            torch.cat([self.slices, other.slices]),
            torch.cat([self.views, other.views]),
            names,
        )

    def pack(self) -> dict[str, Tensor]:
        """All contents as tensors; the names become the bytes of a JSON list."""
        names = torch.frombuffer(bytearray(json.dumps(self.names).encode()), dtype=torch.uint8)
        parts = {"classes": self.classes, "cases": self.cases, "slices": self.slices, "views": self.views}
        return {"vectors": self.vectors, "names": names, **parts}

    @classmethod
    def unpack(cls, packed: dict[str, Tensor], classes: int, channels: int) -> Tokens:
        """The inverse of `pack`. Raises SettingsError unless there are embeddings of all of so many classes."""
        taken = Learned(packed, c=channels)
        names = taken.names("names")
        found = cls(
            taken.floats("vectors", "t c"),
            taken.whole("classes", "t", high=classes - 1),
            taken.whole("cases", "t", high=len(names) - 1),
            taken.whole("slices", "t"),
            taken.whole("views", "t", high=0),
            names,
        )
        if (there := len(set(found.classes.tolist()))) != classes:
            raise SettingsError(f"class embeddings of {there} classes, but there are {classes}")
        return found


def class_embeddings(
    support: EncodedSupport, backbone: Backbone, classes: int, parts: int = 1, location: bool = False
) -> Tokens:
    """The mask-pooled features of the first `classes` classes in every row, at most `parts` per class and row.

    A class is left out of a row if it covers less than 1/256 of a cell in total. With `location`, the mean positional
    encoding of the region is added.
    """
    position = backbone.position_encoding()[0].cpu() if location else None
    vectors, labels, rows = [], [], []
    for row, large in enumerate(support.regions.sums[:, :classes] >= 1 / 256):
        features, regions = support.rows(torch.tensor([row])).main[0].cpu(), support.regions.row(row)
        for label in torch.nonzero(large)[:, 0].tolist():
            pooled = pool(features, regions[label], parts, position)
            vectors.append(pooled)
            labels += [label] * len(pooled)
            rows += [row] * len(pooled)
    where = torch.tensor(rows, dtype=torch.long)
    return Tokens(
        torch.cat(vectors) if vectors else torch.zeros(0, backbone.channels),
        torch.tensor(labels, dtype=torch.long),
        support.cases[where],
        support.slices[where],
        support.views[where],
        support.names,
    )


def pool(
    features: Float[Tensor, "c f f"],
    region: Float[Tensor, "f f"],
    parts: int = 1,
    position: Float[Tensor, "c f f"] | None = None,
) -> Float[Tensor, "p c"]:
    """Weighted means of the features over at most `parts` clusters of a region; `region` is the fraction of each cell.

    `position`, if given, is pooled in the same way and added. The clusters come from k-means on the features. Its first
    centre is the cell nearest to the mean, each further one the cell farthest from all centres, so the result is
    deterministic.
    """
    weight = region.flatten()
    cells = torch.nonzero(weight > 0)[:, 0]
    z, m = features.flatten(1).T[cells], weight[cells]
    member = _k_means(z, m, min(parts, len(cells)))
    share = F.one_hot(member).to(m) * m[:, None]
    share = (share / share.sum(0).clamp_min(1e-12)).T
    pooled = share @ z
    return pooled if position is None else pooled + share @ position.flatten(1).T[cells]


def _k_means(z: Float[Tensor, "p c"], weight: Float[Tensor, " p"], parts: int) -> Int[Tensor, " p"]:
    """The cluster of each cell, numbered without gaps."""
    mean = (weight[:, None] * z).sum(0) / weight.sum()
    centres = z[(z - mean).norm(dim=1).argmin()][None]
    while len(centres) < parts:
        centres = torch.cat([centres, z[torch.cdist(z, centres).amin(1).argmax()][None]])
    for _ in range(10):
        member: Tensor = torch.unique(torch.cdist(z, centres).argmin(1), return_inverse=True)[1]
        share = F.one_hot(member).to(weight) * weight[:, None]
        centres = (share.T @ z) / share.sum(0)[:, None]
    return member
