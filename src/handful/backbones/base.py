"""The interface of all foundation models: encode slices, embed prompts, decode masks; some have a memory.

Frames. Outside a backbone there is the slice: n × c × h × w, values in [0, 1], prompts in slice pixels. Inside there is
the model's square input, made by the `PixelPolicy` of its family. `to_model_frame` and `to_image_frame` are the only
bridge between the two.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.families import Family
from handful.backbones.framing import PixelPolicy
from handful.errors import SettingsError
from handful.jobs.digests import digest_of, digest_of_json, digest_of_tensors
from handful.jobs.precision import Precision, computing_in
from handful.prompts.prompts import Prompts

ENCODED_PIXELS = 2**20
"""Pixels of the encoder's square, of all slices that are encoded at once: 16 slices at 256 pixels, one at 1,024. More
would take gigabytes and, on a CPU, no less time."""
MOST_AT_ONCE = 3
"""Channels that an image encoder takes at once, as if they were colours."""


@dataclass(frozen=True, eq=False)
class ImageEmbeddings:
    """Output of the image encoder for n slices: feature levels (n, c, h, w), finest first, the main one last."""

    features: tuple[Tensor, ...]
    size: tuple[int, int]
    """Height and width in pixels of the slices they came from."""
    recalled: bool = False
    """Whether the main level was combined with a memory."""

    def __len__(self) -> int:
        return int(self.features[0].shape[0])

    @property
    def main(self) -> Float[Tensor, "n c h w"]:
        return self.features[-1]

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> ImageEmbeddings:
        """The chosen slices, in the given order; an int keeps the leading axis."""
        index = [rows] if isinstance(rows, int) else rows
        return replace(self, features=tuple(level[index] for level in self.features))

    def repeat_interleave(self, times: int) -> ImageEmbeddings:
        """Each slice `times` times in a row: one row per object."""
        return replace(self, features=tuple(f.repeat_interleave(times, dim=0) for f in self.features))

    def to(self, target: torch.device | torch.dtype | str) -> ImageEmbeddings:
        return replace(self, features=tuple(f.to(target) for f in self.features))

    @staticmethod
    def cat(parts: Sequence[ImageEmbeddings]) -> ImageEmbeddings:
        """All slices of all parts. `size` is (0, 0) if sizes differ; then only `decode_square` can be used."""
        sizes = {p.size for p in parts}
        size = sizes.pop() if len(sizes) == 1 else (0, 0)
        levels = zip(*[p.features for p in parts], strict=True)
        return replace(parts[0], features=tuple(torch.cat(level) for level in levels), size=size)


@dataclass(frozen=True, eq=False)
class PromptEmbeddings:
    """Input of the mask decoder: prompt tokens per label, and a dense map (None: the 'no mask' embedding)."""

    sparse: Float[Tensor, "n k t c"]
    dense: Float[Tensor, "n k c h w"] | None = None


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """Output of the mask decoder, in the model's square."""

    logits: Float[Tensor, "n k s s"]
    iou: Float[Tensor, "n k"]
    """Predicted IoU of each mask; that of SAM, unlike that of SAM 2, may be outside of [0, 1]."""
    object_score: Float[Tensor, "n k"] | None
    """Logit that the object is in the slice at all; None if the model has no such head."""
    tokens: Float[Tensor, "n k c"]
    """The mask token that produced each mask; SAM 2 computes its object pointers from them."""


@dataclass(frozen=True, eq=False)
class Memory:
    """Memory of o objects, one row each: m spatial memories and p pointers per row.

    Rows with unequal numbers of memories cannot share one Memory.
    """

    spatial: Float[Tensor, "o m t 64"]
    spatial_position: Float[Tensor, "o m t 64"]
    pointers: Float[Tensor, "o p c"]
    distance: tuple[int, ...]
    """For each of the m memories: 0 for a labelled support slice, else the distance in slices to the query (1 to 6)."""
    pointer_distance: tuple[int, ...]
    """The same for each of the p pointers; supports count as 1."""

    def __len__(self) -> int:
        return int(self.spatial.shape[0])

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Memory:
        return Memory(
            self.spatial[rows], self.spatial_position[rows], self.pointers[rows], self.distance, self.pointer_distance
        )

    @staticmethod
    def cat(parts: Sequence[Memory]) -> Memory:
        """The same objects with the memories of all parts."""
        return Memory(
            torch.cat([p.spatial for p in parts], dim=1),
            torch.cat([p.spatial_position for p in parts], dim=1),
            torch.cat([p.pointers for p in parts], dim=1),
            tuple(d for p in parts for d in p.distance),
            tuple(d for p in parts for d in p.pointer_distance),
        )


class Backbone(nn.Module, ABC):
    """Slices in as values in [0, 1], prompts in slice pixels, logits at slice size.

    Slices are grey, or have three colours, or two or three sequences, which are taken as if they were colours. Of more
    than `most_at_once` channels each is encoded on its own, and the embeddings are averaged. The model's square, its
    padding and its normalisation stay inside.
    """

    name: str
    """What `load_backbone` was given: a catalogue name, a hub id or a path, with family and size where named."""
    family: Family
    """How its pixels are prepared, and the settings that suit its weights."""
    image_encoder: nn.Module
    prompt_encoder: nn.Module
    mask_decoder: nn.Module
    side: int
    """Pixels along the model's square input."""
    usual_input: tuple[PixelPolicy, int]
    """Pixels and side of these weights if no family and no size are named."""
    mask_side: int
    """Pixels along the square of its mask logits."""
    feature_side: int
    """Cells along the main feature level."""
    most_at_once: int = MOST_AT_ONCE
    """Channels of a slice up to which they are encoded together; 1 where each is always encoded on its own."""
    precision: Precision = "float32"
    """What `encode` computes in, where this backbone computes. All else is in float32: weights, training, decoding."""
    channels: int
    """Width of the main feature level, of prompt tokens and of the mask decoder."""
    reach: int = 0
    """Slices on either side of a slice that its embeddings depend on; they are encoded in one call, in their order."""

    @abstractmethod
    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """Embeddings of n slices, with gradients if parameters of the encoder require them."""

    @final
    @torch.no_grad()
    def encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """Embeddings of n slices, rounded to half precision as a cache stores them, so that a cache changes no result.

        They carry no gradients.
        """
        with computing_in(self.precision, self.device.type):
            parts = [part.to(torch.float16).to(torch.float32) for part in self._in_parts(slices)]
        return ImageEmbeddings.cat(parts)

    def _in_parts(self, slices: Float[Tensor, "n c h w"]) -> Iterator[ImageEmbeddings]:
        """The embeddings of a few slices at a time, whose number bounds the memory; with `reach`, of all at once."""
        count = len(slices) if self.reach else ENCODED_PIXELS // self.side**2
        return (self._embedded(part) for part in torch.split(slices, max(1, count)))

    @final
    @torch.no_grad()
    def encode_uncached(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """As `encode`, but neither read from a cache nor stored in one: for slices that are used in one fit only."""
        return self.plain.encode(slices)

    @final
    def encode_exact(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """Embeddings of n slices for an encoder that is trained: not rounded, not cached, and with gradients.

        All slices are encoded at once where gradients are recorded, else a few at a time.
        """
        if torch.is_grad_enabled():
            return self.plain._embedded(slices)
        return ImageEmbeddings.cat(list(self.plain._in_parts(slices)))

    def _embedded(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """Embeddings of slices with any number of channels."""
        if slices.shape[1] <= self.most_at_once:
            return self._encode(slices)
        parts = [self._encode(one) for one in torch.split(slices, 1, dim=1)]
        levels = zip(*[part.features for part in parts], strict=True)
        return replace(parts[0], features=tuple(torch.stack(level).mean(dim=0) for level in levels))

    @property
    def embedding_size(self) -> int:
        """Numbers in the embeddings of one slice, all feature levels together."""
        return self.channels * self.feature_side**2

    @property
    def plain(self) -> Backbone:
        """The backbone that computes: this one, or the one that is cached."""
        return self

    def without_cache(self) -> AbstractContextManager[None]:
        """Within it, no embedding is read from a cache or stored in one, by this backbone and its forks."""
        return nullcontext()

    @abstractmethod
    def embed(self, prompts: Prompts, size: tuple[int, int]) -> PromptEmbeddings:
        """Prompt tokens and dense maps for slices of `size` (h, w) pixels.

        The centre of a slice pixel becomes the centre of the same place in the model's square, for points and for the
        corners of boxes; see `points_in_square` for the half pixel by which the authors of SAM differ.
        """

    @abstractmethod
    def decode_square(
        self, image: ImageEmbeddings, prompt: PromptEmbeddings, multimask: bool = False
    ) -> MaskPrediction:
        """Masks of all k labels in one decoder call, in the model's square.

        `multimask` takes, per label, the candidate with the best predicted IoU instead of the single-mask token.
        """

    @abstractmethod
    def to_model_frame(self, masks: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
        """Masks of slices, mapped to the model's square, as area fractions on a grid of `side` × `side` cells."""

    @abstractmethod
    def to_image_frame(self, logits: Float[Tensor, "n k s s"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        """Maps of the model's square, interpolated to slices of `size` (h, w); padding is dropped."""

    @abstractmethod
    def position_encoding(self) -> Float[Tensor, "1 c f f"]:
        """The dense positional encoding that the mask decoder adds to the main features."""

    def no_memory(self) -> Float[Tensor, "1 c 1 1"]:
        """The embedding added to the main features of a slice that is decoded without memories; zeros for SAM."""
        return torch.zeros(1, self.channels, 1, 1, device=self.device)

    def decode(self, image: ImageEmbeddings, prompt: PromptEmbeddings) -> Float[Tensor, "n k h w"]:
        """Mask logits at slice size."""
        if image.size == (0, 0):
            raise SettingsError(
                "these embeddings are of slices of several sizes; use decode_square, or one size at a time"
            )
        return self.to_image_frame(self.decode_square(image, prompt).logits, image.size)

    def encoding_parts(self) -> tuple[nn.Module, ...]:
        """All modules that `encode` uses: their weights determine the embeddings."""
        return (self.image_encoder,)

    def fork(self) -> Backbone:
        """A backbone that shares this one's image encoder and has its own copy of the rest, which can be trained."""
        return copy.deepcopy(self, memo={id(self.image_encoder): self.image_encoder})

    def fork_sharing_weights(self, own: Iterable[nn.Module]) -> Backbone:
        """A copy without a cache, with its own modules, so that parts can be added to its image encoder.

        Their weights are the very same tensors, but for those of `own`, which are copied. SettingsError where a shared
        weight trains.
        """
        copied = {id(weight) for part in own for weight in part.parameters()}
        shared = {id(weight): weight for weight in self.plain.parameters() if id(weight) not in copied}
        if any(weight.requires_grad for weight in shared.values()):
            raise SettingsError(f"backbone {self.name!r} trains; freeze it by requires_grad_(False), its copy is tuned")
        return copy.deepcopy(self.plain, memo=dict(shared))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def digest(self) -> str:
        """SHA-256 of all weights, and of how slices become the input if that is not the usual way of the weights.

        Two backbones with one digest give the same answers.
        """
        weights = digest_of_tensors(sorted(self.state_dict().items()))
        if (self.family.pixels, self.side) == self.usual_input and not self._unusual():
            return weights
        return digest_of(weights, digest_of_json(self.input_description()))

    @final
    def input_description(self) -> dict[str, object]:
        """The side of the square input, the pixel policy, and what is unusual in encoding, as plain JSON content."""
        pixels = self.family.pixels
        usual = {"side": self.side, **asdict(pixels), "mean": list(pixels.mean), "std": list(pixels.std)}
        return {**usual, **self._unusual()}

    def _unusual(self) -> dict[str, object]:
        """Whether channels are averaged, and the precision if it is not float32."""
        averaged: dict[str, object] = {} if self.most_at_once == MOST_AT_ONCE else {"channels": "average"}
        precision = self.plain.precision
        return averaged if precision == "float32" else {**averaged, "precision": precision}


class MemoryBackbone(Backbone):
    """A backbone that stores masks of slices in a memory and uses it for new slices (SAM 2 video)."""

    @abstractmethod
    def memorize(self, image: ImageEmbeddings, masks: Float[Tensor, "o h w"]) -> Memory:
        """Memory of labelled slices (o rows, one mask each, above 0 inside): one spatial memory and pointer per row."""

    @abstractmethod
    def remember(
        self,
        image: ImageEmbeddings,
        prediction: MaskPrediction,
        distance: int,
        absent_below: Float[Tensor, " o"] | float = 0.0,
    ) -> Memory:
        """Memory of predictions: slices (o rows, encoded, not recalled), `distance` slices away from the query.

        An object whose score (a logit) is not above `absent_below` is remembered as absent; 0 is SAM 2's own threshold.
        """

    @abstractmethod
    def recall(self, image: ImageEmbeddings, memory: Memory) -> ImageEmbeddings:
        """The slices (o rows, one per object), each combined with the memory of its object."""

    @abstractmethod
    def decode_recalled(self, image: ImageEmbeddings) -> MaskPrediction:
        """Masks of recalled slices, decoded without a prompt; k is 1, the object of each row."""
