"""What methods share that train on a frozen encoder: the support as it saw it, and batches of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.jobs.digests import Digest, digest_of
from handful.methods.base import CHUNK
from handful.tuning.augment import augmented

MOST_BYTES = 2 * 2**30
"""Memory that the kept views of a support may take, if each slice is to have more than a FEW."""
FEW = 4


@dataclass(frozen=True, eq=False)
class Seen:
    """What the encoder saw of the support: v rows, each one view of one slice, truth in the model's square."""

    image: ImageEmbeddings
    """Half precision, to keep many; rows become float32 on use. `with_pixels` where `look` was asked for pixels."""
    regions: Float[Tensor, "v k f f"]
    """Share of each feature cell that a label covers; the background comes last."""
    target: Bool[Tensor, "v l s s"] | Float[Tensor, "v l s s"]
    """The truth, without the background, in the square of the mask logits, or of the pixels where these were asked for;
    a share of each cell where it is soft."""
    known: Bool[Tensor, "v s s"]
    cases: Int[Tensor, " v"]
    """Index into `names`, which is that of the case in the support set."""
    slices: Int[Tensor, " v"]
    """Index of the slice in its case."""
    views: Int[Tensor, " v"]
    """0 for the slice as it is, else the number of its augmented view."""
    names: tuple[str, ...]
    """Names of the cases."""
    digest: str
    """SHA-256 of the pixels, labels and known voxels that went in."""

    def rows(self, rows: Tensor) -> ImageEmbeddings:
        """The embeddings of some rows, in float32."""
        return self.image[rows].to(torch.float32)


def look(
    support: SupportSet,
    slicer: Slicer,
    backbone: Backbone,
    *,
    views: int,
    seed: int,
    target: Literal["hard", "soft"],
    pixels: int = 0,
) -> Seen:
    """Encodes every view of every labelled slice, once; the first view is the slice itself, the others are random.

    Of a support of many slices there are fewer views, so that what is kept fits into memory. With `pixels` the slices
    themselves are kept beside their embeddings, and the truth is as fine as they are.
    """
    count = kept_views(views, sum(facts.labelled_slices(slicer) for facts in support.facts), backbone, pixels)
    generator = torch.Generator().manual_seed(seed)
    digest = Digest()
    names: list[str] = []
    images: list[ImageEmbeddings] = []
    maps: list[tuple[Tensor, Tensor, Tensor]] = []
    origin: list[tuple[int, int, int]] = []
    for labelled in support.slices(slicer):
        names.append(labelled.case)
        digest.add(labelled.slices, labelled.masks, labelled.known)
        for view, rows, slices, masks, known in views_of(labelled, count, generator):
            image = with_pixels(backbone, slices, backbone.encode(slices.to(backbone.device)), pixels)
            images.append(image.to(torch.float16))
            maps.append(_in_square(backbone, masks, known, target, pixels or backbone.mask_side))
            origin += [(len(names) - 1, labelled.index[row], view) for row in rows]
    regions, truth, shown = (torch.cat(parts) for parts in zip(*maps, strict=True))
    cases, indices, numbers = torch.tensor(origin).unbind(1)
    return Seen(ImageEmbeddings.cat(images), regions, truth, shown, cases, indices, numbers, tuple(names), digest.hex())


def with_pixels(
    backbone: Backbone, slices: Float[Tensor, "n c h w"], image: ImageEmbeddings, pixels: int
) -> ImageEmbeddings:
    """The slices themselves, in the model's square of so many pixels and three channels, before their embeddings."""
    if not pixels:
        return image
    square = backbone.to_square(slices.to(image.main), pixels).expand(-1, 3, -1, -1)
    return dataclasses.replace(image, features=(square, *image.features))


def kept_views(wanted: int, slices: int, backbone: Backbone, pixels: int = 0) -> int:
    """Views of each of so many slices: as many as wanted, yet beyond FEW no more than MOST_BYTES hold; at least 1."""
    # in half precision; the levels come to 4 of these at most, the rest is room for the truth
    view = 7 * backbone.channels * backbone.feature_side**2 * 2 + 3 * pixels**2 * 2
    return max(1, min(wanted, max(FEW, MOST_BYTES // (view * max(1, slices)))))


class Batches:
    """Rows for the steps of a training: the first half of each batch hold a label drawn at random, the rest are any.

    So rare labels and empty slices both come.
    """

    def __init__(self, seen: Seen, size: int, among: Int[Tensor, " r"] | None = None) -> None:
        self.size = size
        self.rows = torch.arange(len(seen.image)) if among is None else among
        area = seen.target[self.rows].sum(dim=(2, 3))
        holding = [self.rows[area[:, label] > 0] for label in range(area.shape[1])]
        self.holding = [rows for rows in holding if len(rows)] or [self.rows]

    def draw(self, generator: torch.Generator) -> Int[Tensor, " b"]:
        rows = []
        for place in range(self.size):
            choice = self.rows
            if place < (self.size + 1) // 2:
                choice = self.holding[integer(len(self.holding), generator)]
            rows.append(int(choice[integer(len(choice), generator)]))
        return torch.tensor(rows)


def noisy(image: ImageEmbeddings, share: float, generator: torch.Generator) -> ImageEmbeddings:
    """The embeddings with noise on the main level, of `share` of its standard deviation."""
    main = image.main + share * image.main.std() * noise_like(image.main, generator)
    return dataclasses.replace(image, features=(*image.features[:-1], main))


def fingerprint(method: Any, digest: str, backbone: Backbone) -> str:
    """Names a fit by all that decides its result, so that only its own half-done work is taken up again.

    `digest` is of the pixels, labels and known voxels of the support."""
    settings = json.dumps(dataclasses.asdict(method), sort_keys=True)
    return digest_of(f"{settings}:{digest}:{backbone.digest()}")[:16]


def integer(below: int, generator: torch.Generator) -> int:
    """A random number from 0 to `below` - 1."""
    return int(torch.randint(below, (), generator=generator))


def noise_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of that shape, drawn on the CPU, where the generator lives."""
    return torch.randn(like.shape, generator=generator).to(like)


def views_of(
    labelled: LabelledSlices, count: int, generator: torch.Generator
) -> Iterator[tuple[int, range, Tensor, Tensor, Tensor]]:
    """(view, rows, slices, masks, known) in chunks that fit through the encoder."""
    for start in range(0, len(labelled.slices), CHUNK):
        rows = range(len(labelled.slices))[start : start + CHUNK]
        part = slice(start, start + CHUNK)
        slices, masks, known = labelled.slices[part], labelled.masks[part], labelled.known[part]
        yield 0, rows, slices, masks, known
        for view in range(1, count):
            yield view, rows, *augmented(slices, masks, known, generator)


def _in_square(
    backbone: Backbone, masks: Tensor, known: Tensor, target: Literal["hard", "soft"], side: int
) -> tuple[Float[Tensor, "n k f f"], Tensor, Bool[Tensor, "n s s"]]:
    """Area fractions a class at the features' resolution; truth and known cells on a square of that side."""
    shown = known[:, None].to(masks)
    labels = masks * shown
    truth = backbone.to_square(labels, side)
    classes = torch.cat([labels, shown - labels.sum(dim=1, keepdim=True)], dim=1)
    return (
        backbone.to_square(classes, backbone.feature_side),
        truth >= 0.5 if target == "hard" else truth,
        backbone.to_square(shown, side)[:, 0] >= 0.5,
    )
