"""Embeddings of the labelled slices of a support set, for methods that train on them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.framing import as_colours
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.jobs.digests import Digest, digest_of
from handful.methods.base import CHUNK
from handful.methods.stacks import least_of_stroke
from handful.tuning.augment import moved_and_relit
from handful.tuning.sampling import noise_like

MOST_BYTES = 2 * 2**30
"""Maximum size in bytes of the embeddings of all views, if there are more than FEW views per slice."""
FEW = 4
"""Number of augmented views per slice that is always allowed."""


@dataclass(frozen=True, eq=False)
class EncodedSupport:
    """v rows, each one view of one labelled slice: its embeddings, and its labels in the model frame."""

    source: StoredEmbeddings | EncodedOnUse
    regions: SparseMaps
    """Fraction of each feature cell (v, k, f, f) that a class covers; the background is the last class."""
    target: SparseMaps
    """The labels without the background (v, l, s, s): inside or outside, or the fraction of each cell inside."""
    valid_mask: Bool[Tensor, "v s s"]
    """False where the slice is unlabelled or padded."""
    scribbled: Bool[Tensor, " v"]
    """Which rows are of slices with scribbles, not whole masks."""
    cases: Int[Tensor, " v"]
    """Index of the case in `names` and in the support set."""
    slices: Int[Tensor, " v"]
    """Index of the slice in its case."""
    views: Int[Tensor, " v"]
    """0 for the unchanged slice, else the number of its augmented view."""
    names: tuple[str, ...]
    """Names of the cases."""
    digest: str
    """SHA-256 of pixels, labels and valid masks of the support set."""

    def __len__(self) -> int:
        return len(self.views)

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        """The embeddings of these rows, in float32."""
        return self.source.rows(rows)

    @property
    def holds(self) -> Bool[Tensor, "v l"]:
        """Whether each row contains each label."""
        return self.target.sums > 0


class SparseMaps:
    """Maps (v, k, s, s) of which only the cells that are not 0 are held, so that memory does not grow with k."""

    def __init__(self) -> None:
        self._places: list[Int[Tensor, " _"]] = []
        self._values: list[Tensor] = []
        self._sums: list[Tensor] = []
        self.shape = (0, 0, 0)
        """Of the maps (k, s, s) of one row."""

    def add(self, maps: Tensor) -> None:
        """Append a row (k, s, s), of the same shape and type as the others."""
        flat = maps.flatten()
        places = torch.nonzero(flat)[:, 0]
        self._places.append(places.to(torch.int32))
        self._values.append(flat[places] if maps.dtype != torch.bool else flat[:0])
        self._sums.append(maps.sum(dim=(1, 2)))
        self.shape = (maps.shape[0], maps.shape[1], maps.shape[2])

    def __getitem__(self, rows: Int[Tensor, " b"]) -> Tensor:
        """The maps (b, k, s, s) of some rows."""
        return torch.stack([self.row(row) for row in rows.tolist()])

    @property
    def sums(self) -> Tensor:
        """The sum of each map (v, k)."""
        return torch.stack(self._sums)

    @property
    def nbytes(self) -> int:
        """Bytes of all cells that are held."""
        return sum(part.nbytes for part in (*self._places, *self._values))

    def row(self, row: int) -> Tensor:
        """The maps (k, s, s) of one row."""
        maps = torch.zeros(math.prod(self.shape), dtype=self._values[row].dtype)
        maps[self._places[row].long()] = True if maps.dtype == torch.bool else self._values[row]
        return maps.view(self.shape)


@dataclass(frozen=True, eq=False)
class StoredEmbeddings:
    """Embeddings of a frozen encoder, computed once."""

    image: ImageEmbeddings
    """In half precision, to save memory."""

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        return self.image[rows].to(torch.float32)


@dataclass(frozen=True, eq=False)
class EncodedOnUse:
    """Slices for an encoder that is trained: they are encoded at every use, with gradients."""

    encoder: Backbone
    slices: Sequence[Tensor]
    """Each (c, h, w); their sizes may differ."""

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        chosen = [self.slices[row][None].to(self.encoder.device) for row in rows.tolist()]
        return ImageEmbeddings.cat([self.encoder.encode_exact(image) for image in chosen])


def encode_support(
    labelled: Iterable[LabelledSlices],
    backbone: Backbone,
    *,
    views: int,
    seed: int,
    side: int,
    target: Literal["hard", "soft"] = "hard",
    pixels: int = 0,
    learns: bool = False,
) -> EncodedSupport:
    """Encode `views` views of every labelled slice once: the slice itself, and random augmentations of it.

    `side` is the width and height of the target maps. If `pixels` is not 0, the slices themselves are stored before
    their embeddings, as in `with_pixels`. If the encoder `learns`, slices are stored instead of embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    digest = Digest()
    names: list[str] = []
    images: list[ImageEmbeddings] = []
    stored: list[Tensor] = []
    regions, truth = SparseMaps(), SparseMaps()
    valid: list[Tensor] = []
    scribbled: list[Tensor] = []
    origin: list[tuple[int, int, int]] = []
    for case in labelled:
        names.append(case.case)
        digest.add(case.slices, case.classes, case.valid_mask)
        for view, rows, slices, valid_mask, grid in _views_of(case, views, generator):
            if learns:
                stored += slices
            else:
                # random views are of no use to any other fit, so they do not fill the user's cache
                encode = backbone.encode_uncached if view else backbone.encode
                image = with_pixels(backbone, slices, encode(slices.to(backbone.device)), pixels)
                images.append(image.to(torch.float16))
            scribbled.append(case.scribbled[list(rows)])
            for number, row in enumerate(rows):  # one at a time: the masks of all labels take memory
                masks, known = case.masks([row]), valid_mask[number : number + 1]
                if grid is not None:
                    masks = F.grid_sample(masks, grid[number : number + 1], align_corners=False)
                shares, inside, seen = _in_model_frame(backbone, masks, known, target, side, bool(case.scribbled[row]))
                regions.add(shares)
                truth.add(inside)
                valid.append(seen)
            origin += [(len(names) - 1, case.index[row], view) for row in rows]
    source = EncodedOnUse(backbone, stored) if learns else StoredEmbeddings(ImageEmbeddings.cat(images))
    cases, indices, numbers = torch.tensor(origin).unbind(1)
    return EncodedSupport(
        source,
        regions,
        truth,
        torch.stack(valid),
        torch.cat(scribbled),
        cases,
        indices,
        numbers,
        tuple(names),
        digest.hex(),
    )


def with_pixels(
    backbone: Backbone, slices: Float[Tensor, "n c h w"], image: ImageEmbeddings, pixels: int
) -> ImageEmbeddings:
    """The embeddings, preceded by the slices themselves in a model frame of pixels x pixels with three channels.

    Without change if `pixels` is 0.
    """
    if not pixels:
        return image
    square = as_colours(backbone.to_model_frame(slices.to(image.main), pixels))
    return dataclasses.replace(image, features=(square, *image.features))


def views_to_keep(
    wanted: int, support: SupportSet, slicer: Slicer, backbone: Backbone, *, side: int, pixels: int = 0
) -> int:
    """The number of views per labelled slice: `wanted`, but at most what MOST_BYTES hold, or FEW if that is more.

    `side` is that of the target maps, `pixels` that of stored slices, as in `encode_support`.
    """
    slices, classes = sum(facts.labelled_slices(slicer) for facts in support.facts), len(support.labels) + 1
    embeddings = 2 * (backbone.embedding_size + 3 * pixels**2)  # in half precision
    # of each cell, the place among the labels, and shares of the few classes that touch it
    targets = min(classes, 4) * side**2 + 4 * min(classes, 8) * backbone.feature_side**2
    return max(1, min(wanted, max(FEW, MOST_BYTES // ((embeddings + targets) * max(1, slices)))))


def noisy(image: ImageEmbeddings, share: float, generator: torch.Generator) -> ImageEmbeddings:
    """The embeddings with Gaussian noise on the main level; `share` is relative to its standard deviation."""
    main = image.main + share * image.main.std() * noise_like(image.main, generator)
    return dataclasses.replace(image, features=(*image.features[:-1], main))


def fingerprint(method: Any, digest: str, backbone: Backbone) -> str:
    """A digest of everything that the result of a fit depends on, so that a fit resumes only its own unfinished work.

    `digest` is that of the pixels, labels and valid masks of the support set.
    """
    settings = json.dumps(dataclasses.asdict(method), sort_keys=True)
    return digest_of(f"{settings}:{digest}:{backbone.digest()}")[:16]


def _views_of(
    labelled: LabelledSlices, count: int, generator: torch.Generator
) -> Iterator[tuple[int, range, Tensor, Tensor, Tensor | None]]:
    """(view, rows, slices, valid_mask, grid) in chunks of at most CHUNK slices; the grid moves the masks of a view."""
    for start in range(0, len(labelled.slices), CHUNK):
        rows = range(len(labelled.slices))[start : start + CHUNK]
        part = slice(start, start + CHUNK)
        slices, valid_mask = labelled.slices[part], labelled.valid_mask[part]
        yield 0, rows, slices, valid_mask, None
        for view in range(1, count):
            yield view, rows, *moved_and_relit(slices, valid_mask, generator)


def _in_model_frame(
    backbone: Backbone,
    masks: Float[Tensor, "1 k h w"],
    valid_mask: Bool[Tensor, "1 h w"],
    target: Literal["hard", "soft"],
    side: int,
    scribbled: bool,
) -> tuple[Float[Tensor, "c f f"], Tensor, Bool[Tensor, "s s"]]:
    """Area fractions per class at the resolution of the features; labels and valid mask in a frame of that side."""
    valid = valid_mask[:, None].to(masks)
    labels = masks.mul_(valid)
    truth, known = framed_labels(backbone, labels, valid, side, torch.tensor([scribbled]))
    background = backbone.to_model_frame(valid - labels.sum(dim=1, keepdim=True), backbone.feature_side)
    return (
        torch.cat([backbone.to_model_frame(labels, backbone.feature_side), background], dim=1)[0],
        truth[0] >= 0.5 if target == "hard" else truth[0],
        known[0],
    )


def framed_labels(
    backbone: Backbone,
    masks: Float[Tensor, "n k h w"],
    valid: Float[Tensor, "n 1 h w"],
    side: int,
    scribbled: Bool[Tensor, " n"],
) -> tuple[Float[Tensor, "n k s s"], Bool[Tensor, "n s s"]]:
    """Area fractions of labels in the model frame of that side, and which of its cells count as labelled.

    `masks` are 0 outside of `valid`. A cell is labelled if half of it is. A stroke is thinner than a cell may be: there
    it is labelled from half of what a stroke of one pixel covers, and the fractions are those of its labelled part.
    """
    truth, known = backbone.to_model_frame(masks, side), backbone.to_model_frame(valid, side)
    if not scribbled.any():
        return truth, known[:, 0] >= 0.5
    rows = scribbled[:, None, None, None]
    least = torch.where(rows, least_of_stroke((valid.shape[-2], valid.shape[-1]), side), 0.5)
    return torch.where(rows, truth / known.clamp_min(1e-6), truth), (known >= least)[:, 0]
