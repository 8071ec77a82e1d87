"""The labelled slices of a support as an image encoder sees them, for the methods that train on its embeddings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
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
from handful.tuning.sampling import noise_like

MOST_BYTES = 2 * 2**30
"""Memory that the kept views of a support may take, if each slice is to have more than a FEW."""
FEW = 4


@dataclass(frozen=True, eq=False)
class EncodedSupport:
    """v rows, each one view of one labelled slice: its embeddings, and its labels in the model's square."""

    source: StoredEmbeddings | EncodedOnUse
    regions: Float[Tensor, "v k f f"]
    """Share of each feature cell that a label covers; the background comes last."""
    target: Bool[Tensor, "v l s s"] | Float[Tensor, "v l s s"]
    """The labels without the background; where it is soft, the share of each cell that is inside."""
    valid_mask: Bool[Tensor, "v s s"]
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

    def __len__(self) -> int:
        return len(self.views)

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        """The embeddings of some rows, in float32."""
        return self.source.rows(rows)

    @property
    def holds(self) -> Bool[Tensor, "v l"]:
        """Which label is in which row."""
        return self.target.sum(dim=(2, 3)) > 0


@dataclass(frozen=True, eq=False)
class StoredEmbeddings:
    """Embeddings of a frozen encoder, computed once; `with_pixels` where pixels were asked for."""

    image: ImageEmbeddings
    """Half precision, to keep many; rows become float32 on use."""

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        return self.image[rows].to(torch.float32)


@dataclass(frozen=True, eq=False)
class EncodedOnUse:
    """Slices for an encoder that learns: encoded each time they are used, with gradients."""

    encoder: Backbone
    slices: Sequence[Tensor]
    """Each (c, h, w); their sizes may differ."""

    def rows(self, rows: Int[Tensor, " b"]) -> ImageEmbeddings:
        chosen = [self.slices[row][None].to(self.encoder.device) for row in rows.tolist()]
        return ImageEmbeddings.cat([self.encoder.encode_exact(one) for one in chosen])


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
    """Encodes every view of every labelled slice, once; the first view is the slice itself, the others are random.

    `side` is that of the square of the labels. With `pixels` the slices themselves are kept before their embeddings,
    in a square of so many pixels. Where the encoder `learns`, the slices are kept in place of embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    digest = Digest()
    names: list[str] = []
    images: list[ImageEmbeddings] = []
    kept: list[Tensor] = []
    maps: list[tuple[Tensor, Tensor, Tensor]] = []
    origin: list[tuple[int, int, int]] = []
    for one in labelled:
        names.append(one.case)
        digest.add(one.slices, one.masks, one.valid_mask)
        for view, rows, slices, masks, valid_mask in _views_of(one, views, generator):
            if learns:
                kept += slices
            else:
                image = with_pixels(backbone, slices, backbone.encode(slices.to(backbone.device)), pixels)
                images.append(image.to(torch.float16))
            maps.append(_in_square(backbone, masks, valid_mask, target, side))
            origin += [(len(names) - 1, one.index[row], view) for row in rows]
    source = EncodedOnUse(backbone, kept) if learns else StoredEmbeddings(ImageEmbeddings.cat(images))
    regions, truth, shown = (torch.cat(parts) for parts in zip(*maps, strict=True))
    cases, indices, numbers = torch.tensor(origin).unbind(1)
    return EncodedSupport(source, regions, truth, shown, cases, indices, numbers, tuple(names), digest.hex())


def with_pixels(
    backbone: Backbone, slices: Float[Tensor, "n c h w"], image: ImageEmbeddings, pixels: int
) -> ImageEmbeddings:
    """The slices themselves, in the model's square of so many pixels and three channels, before their embeddings."""
    if not pixels:
        return image
    square = backbone.to_model_frame(slices.to(image.main), pixels).expand(-1, 3, -1, -1)
    return dataclasses.replace(image, features=(square, *image.features))


def views_to_keep(wanted: int, support: SupportSet, slicer: Slicer, backbone: Backbone, pixels: int = 0) -> int:
    """Views of each labelled slice: as many as wanted, yet beyond FEW no more than MOST_BYTES hold; at least 1."""
    slices = sum(facts.labelled_slices(slicer) for facts in support.facts)
    # in half precision; the levels come to 4 of these at most, the rest is room for the truth
    view = 7 * backbone.channels * backbone.feature_side**2 * 2 + 3 * pixels**2 * 2
    return max(1, min(wanted, max(FEW, MOST_BYTES // (view * max(1, slices)))))


def noisy(image: ImageEmbeddings, share: float, generator: torch.Generator) -> ImageEmbeddings:
    """The embeddings with noise on the main level, of `share` of its standard deviation."""
    main = image.main + share * image.main.std() * noise_like(image.main, generator)
    return dataclasses.replace(image, features=(*image.features[:-1], main))


def fingerprint(method: Any, digest: str, backbone: Backbone) -> str:
    """Names a fit by all that decides its result, so that only its own half-done work is taken up again.

    `digest` is of the pixels, labels and known voxels of the support."""
    settings = json.dumps(dataclasses.asdict(method), sort_keys=True)
    return digest_of(f"{settings}:{digest}:{backbone.digest()}")[:16]


def _views_of(
    labelled: LabelledSlices, count: int, generator: torch.Generator
) -> Iterator[tuple[int, range, Tensor, Tensor, Tensor]]:
    """(view, rows, slices, masks, valid_mask) in chunks that fit through the encoder."""
    for start in range(0, len(labelled.slices), CHUNK):
        rows = range(len(labelled.slices))[start : start + CHUNK]
        part = slice(start, start + CHUNK)
        slices, masks, valid_mask = labelled.slices[part], labelled.masks[part], labelled.valid_mask[part]
        yield 0, rows, slices, masks, valid_mask
        for view in range(1, count):
            yield view, rows, *augmented(slices, masks, valid_mask, generator)


def _in_square(
    backbone: Backbone, masks: Tensor, valid_mask: Tensor, target: Literal["hard", "soft"], side: int
) -> tuple[Float[Tensor, "n k f f"], Tensor, Bool[Tensor, "n s s"]]:
    """Area fractions per class at the features' resolution; labels and known cells on a square of that side."""
    shown = valid_mask[:, None].to(masks)
    labels = masks * shown
    truth = backbone.to_model_frame(labels, side)
    classes = torch.cat([labels, shown - labels.sum(dim=1, keepdim=True)], dim=1)
    return (
        backbone.to_model_frame(classes, backbone.feature_side),
        truth >= 0.5 if target == "hard" else truth,
        backbone.to_model_frame(shown, side)[:, 0] >= 0.5,
    )
