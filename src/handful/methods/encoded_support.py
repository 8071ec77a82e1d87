"""Embeddings of the labelled slices of a support set, for methods that train on them."""

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
from handful.backbones.framing import as_colours
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.jobs.digests import Digest, digest_of
from handful.methods.base import CHUNK
from handful.tuning.augment import augmented
from handful.tuning.sampling import noise_like

MOST_BYTES = 2 * 2**30
"""Maximum size in bytes of the embeddings of all views, if there are more than FEW views per slice."""
FEW = 4
"""Number of augmented views per slice that is always allowed."""


@dataclass(frozen=True, eq=False)
class EncodedSupport:
    """v rows, each one view of one labelled slice: its embeddings, and its labels in the model frame."""

    source: StoredEmbeddings | EncodedOnUse
    regions: Float[Tensor, "v k f f"]
    """Fraction of each feature cell that a class covers; the background is the last class."""
    target: Bool[Tensor, "v l s s"] | Float[Tensor, "v l s s"]
    """The labels without the background: inside or outside, or the fraction of each cell that is inside."""
    valid_mask: Bool[Tensor, "v s s"]
    """False where the slice is unlabelled or padded."""
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
        return self.target.sum(dim=(2, 3)) > 0


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
    maps: list[tuple[Tensor, Tensor, Tensor]] = []
    origin: list[tuple[int, int, int]] = []
    for case in labelled:
        names.append(case.case)
        digest.add(case.slices, case.classes, case.valid_mask)
        for view, rows, slices, masks, valid_mask in _views_of(case, views, generator):
            if learns:
                stored += slices
            else:
                # random views are of no use to any other fit, so they do not fill the user's cache
                encode = backbone.encode_uncached if view else backbone.encode
                image = with_pixels(backbone, slices, encode(slices.to(backbone.device)), pixels)
                images.append(image.to(torch.float16))
            maps.append(_in_model_frame(backbone, masks, valid_mask, target, side))
            origin += [(len(names) - 1, case.index[row], view) for row in rows]
    source = EncodedOnUse(backbone, stored) if learns else StoredEmbeddings(ImageEmbeddings.cat(images))
    regions, truth, valid = (torch.cat(parts) for parts in zip(*maps, strict=True))
    cases, indices, numbers = torch.tensor(origin).unbind(1)
    return EncodedSupport(source, regions, truth, valid, cases, indices, numbers, tuple(names), digest.hex())


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
    slices, labels = sum(facts.labelled_slices(slicer) for facts in support.facts), len(support.labels)
    embeddings = 2 * (backbone.embedding_size + 3 * pixels**2)  # in half precision
    targets = (labels + 1) * side**2 + 4 * (labels + 1) * backbone.feature_side**2  # one byte a cell, or a float
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
) -> Iterator[tuple[int, range, Tensor, Tensor, Tensor]]:
    """(view, rows, slices, masks, valid_mask) in chunks of at most CHUNK slices."""
    for start in range(0, len(labelled.slices), CHUNK):
        rows = range(len(labelled.slices))[start : start + CHUNK]
        part = slice(start, start + CHUNK)
        slices, masks, valid_mask = labelled.slices[part], labelled.masks(part), labelled.valid_mask[part]
        yield 0, rows, slices, masks, valid_mask
        for view in range(1, count):
            yield view, rows, *augmented(slices, masks, valid_mask, generator)


def _in_model_frame(
    backbone: Backbone, masks: Tensor, valid_mask: Tensor, target: Literal["hard", "soft"], side: int
) -> tuple[Float[Tensor, "n k f f"], Tensor, Bool[Tensor, "n s s"]]:
    """Area fractions per class at the resolution of the features; labels and valid mask in a frame of that side."""
    valid = valid_mask[:, None].to(masks)
    labels = masks * valid
    truth = backbone.to_model_frame(labels, side)
    classes = torch.cat([labels, valid - labels.sum(dim=1, keepdim=True)], dim=1)
    return (
        backbone.to_model_frame(classes, backbone.feature_side),
        truth >= 0.5 if target == "hard" else truth,
        backbone.to_model_frame(valid, side)[:, 0] >= 0.5,
    )
