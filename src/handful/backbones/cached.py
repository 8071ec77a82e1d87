"""A backbone with a cache: the embeddings of each slice are kept on disk and never computed again.

Embeddings are kept in half precision. `Backbone.encode` rounds to it in any case, so that the answer depends neither on
the cache nor on what it holds.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from handful.backbones.base import (
    Backbone,
    ImageEmbeddings,
    MaskPrediction,
    Memory,
    MemoryBackbone,
    PromptEmbeddings,
)
from handful.errors import InputError, SettingsError
from handful.jobs import precision
from handful.jobs.atomic import remove_leftovers, write_atomically, write_json
from handful.jobs.digests import digest_of, digest_of_json, digest_of_tensors
from handful.jobs.json_file import read_json
from handful.prompts.prompts import Prompts

FORMAT = 2
"""Version of the entries; it is part of their names, so that others are never read."""
GIB = 2**30
LIMIT = "limit.json"
"""File in a cache folder with the size that its entries may have; without it they may have USUAL_LIMIT bytes."""
USUAL_LIMIT = 20 * GIB
STALE = 3600.0
"""Seconds after which a temporary file is taken for the rest of a killed process."""


def cached(backbone: Backbone, folder: str | Path, max_bytes: int | None = None) -> CachedBackbone:
    """The backbone with a cache in `folder`, shared with any other process; a MemoryBackbone stays one.

    Embeddings have at most `max_bytes` together (None: `size_limit` of the folder). If more are stored, the least
    recently used are removed. A full or unwritable disk costs a warning, never the answer.

    Raises SettingsError where the image encoder trains.
    """
    kind = CachedMemoryBackbone if isinstance(backbone, MemoryBackbone) else CachedBackbone
    return kind(backbone, Path(folder), max_bytes)


def size_limit(folder: Path) -> int:
    """Bytes that the embeddings in a cache folder may have together, for every process that does not set its own."""
    try:
        limit = read_json(folder / LIMIT)[0]["max_bytes"]
    except (OSError, InputError, ValueError, KeyError, TypeError):  # no such file, or a damaged one
        return USUAL_LIMIT
    return limit if isinstance(limit, int) and limit > 0 else USUAL_LIMIT


def set_size_limit(folder: Path, gib: float) -> None:
    """Store the limit of a cache folder. SettingsError unless it is positive and finite."""
    if not 0 < gib < math.inf or not int(gib * GIB):
        raise SettingsError(f"the size of the cache is {gib} GiB; give a positive number")
    write_json(folder / LIMIT, {"max_bytes": int(gib * GIB)})


class CachedBackbone(Backbone):
    """The same backbone, which encodes each slice once. Forks share the cache; their decoders can be trained.

    Its weights bear the same names as those of `inner`, so the two are interchangeable.
    """

    def __init__(self, backbone: Backbone, folder: Path, max_bytes: int | None = None) -> None:
        super().__init__()
        _refuse_training(backbone)
        self._inner = (backbone,)  # in a tuple it is no child: its children are this module's own, under their names
        for name, child in backbone.named_children():
            self.add_module(name, child)
        self.name, self.side, self.mask_side = backbone.name, backbone.side, backbone.mask_side
        self.feature_side, self.channels = backbone.feature_side, backbone.channels
        self.family, self.usual_input = backbone.family, backbone.usual_input
        self.most_at_once = backbone.most_at_once
        self.cache = EmbeddingCache(folder, max_bytes)
        self._weights: tuple[object, str] = (None, "")
        self._together = False
        self.eval()

    @property
    def inner(self) -> Backbone:
        """The backbone that is cached."""
        return self._inner[0]

    @property
    def embedding_size(self) -> int:
        return self.inner.embedding_size

    @property
    def plain(self) -> Backbone:
        return self.inner

    @contextlib.contextmanager
    def without_cache(self) -> Iterator[None]:
        before, self.cache.paused = self.cache.paused, True
        try:
            yield
        finally:
            self.cache.paused = before

    def encode_together(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """As `encode`, but if one slice is missing, all are encoded in one call, as if none had been stored.

        The number of slices in a call can change the last bit of an embedding. So a job that was stopped between two
        slices of a call stores the same bits when it is repeated.
        """
        self._together = True
        try:
            return self.encode(slices)
        finally:
            self._together = False

    @property
    def image_encoder(self) -> nn.Module:  # type: ignore[override]
        return self.inner.image_encoder

    @property
    def prompt_encoder(self) -> nn.Module:  # type: ignore[override]
        return self.inner.prompt_encoder

    @property
    def mask_decoder(self) -> nn.Module:  # type: ignore[override]
        return self.inner.mask_decoder

    @property
    def hits(self) -> int:
        """Number of slices read from disk, by this backbone and its forks."""
        return self.cache.hits

    @property
    def misses(self) -> int:
        """Number of slices that the image encoder computed."""
        return self.cache.misses

    def _embedded(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """One entry per slice, whatever the number of its channels: the mean of several is rounded only once."""
        return self._encode(slices)

    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """The missing slices are encoded in one call, without gradients; with `encode_together` all slices are."""
        if self.cache.paused:
            return self.inner.encode(slices)
        _refuse_training(self.inner)
        keys = self.keys(slices)
        rows = [self.cache.get(key) for key in keys]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            encoded = list(range(len(rows))) if self._together else missing
            fresh = self.inner.encode(slices[encoded]).to(torch.float16).to("cpu")
            for i in missing:
                row = tuple(level[encoded.index(i)] for level in fresh.features)
                self.cache.put(keys[i], row)
                rows[i] = row
        levels = zip(*[row for row in rows if row is not None], strict=True)
        features = tuple(torch.stack(level).to(slices.device, torch.float32) for level in levels)
        return ImageEmbeddings(features, (slices.shape[-2], slices.shape[-1]))

    def embed(self, prompts: Prompts, size: tuple[int, int]) -> PromptEmbeddings:
        return self.inner.embed(prompts, size)

    def decode_square(
        self, image: ImageEmbeddings, prompt: PromptEmbeddings, multimask: bool = False
    ) -> MaskPrediction:
        return self.inner.decode_square(image, prompt, multimask)

    def to_model_frame(self, masks: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
        return self.inner.to_model_frame(masks, side)

    def to_image_frame(self, logits: Float[Tensor, "n k s s"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        return self.inner.to_image_frame(logits, size)

    def position_encoding(self) -> Float[Tensor, "1 c f f"]:
        return self.inner.position_encoding()

    def no_memory(self) -> Float[Tensor, "1 c 1 1"]:
        return self.inner.no_memory()

    def encoding_parts(self) -> tuple[nn.Module, ...]:
        return self.inner.encoding_parts()

    def keys(self, slices: Float[Tensor, "n c h w"]) -> list[str]:
        """The name of the entry of each slice, a digest of everything that decides its embedding.

        That is the slice, the encoder's weights, the kind of model, how slices become its input, the precision that it
        computes in on this device, and the format.
        """
        made_by = (
            f"{FORMAT}:{type(self.inner).__name__}:{digest_of_json(self._way_of_encoding())}:"
            f"{self._encoder_digest()}:{tuple(slices.shape[1:])}:"
        )
        pixels = slices.detach().to("cpu", torch.float32).contiguous().numpy()
        return [digest_of(made_by, one) for one in pixels]

    def _way_of_encoding(self) -> dict[str, object]:
        """How slices become the input, and the precision, if it is not float32 on this device.

        A CPU without bfloat16 computes in float32 what is requested in bfloat16.
        """
        way = self.input_description()
        if way.pop("precision", "float32") == "bfloat16" and precision.has_bfloat16(self.device.type):
            way["computed_in"] = "bfloat16"
        return way

    def _encoder_digest(self) -> str:
        """Computed again only if a weight was written to; PyTorch counts this for each tensor."""
        tensors = [
            (f"{part}.{name}", tensor)
            for part, module in enumerate(self.encoding_parts())
            for name, tensor in module.state_dict().items()
        ]
        state = [(name, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for name, tensor in tensors]
        if state != self._weights[0]:
            self._weights = (state, digest_of_tensors(tensors))
        return self._weights[1]


class CachedMemoryBackbone(CachedBackbone, MemoryBackbone):
    """A cached backbone with a memory; the memories themselves are not cached."""

    @property
    def inner(self) -> MemoryBackbone:
        inner = super().inner
        assert isinstance(inner, MemoryBackbone)
        return inner

    def memorize(self, image: ImageEmbeddings, masks: Float[Tensor, "o h w"]) -> Memory:
        return self.inner.memorize(image, masks)

    def remember(
        self,
        image: ImageEmbeddings,
        prediction: MaskPrediction,
        distance: int,
        absent_below: Float[Tensor, " o"] | float = 0.0,
    ) -> Memory:
        return self.inner.remember(image, prediction, distance, absent_below)

    def recall(self, image: ImageEmbeddings, memory: Memory) -> ImageEmbeddings:
        return self.inner.recall(image, memory)

    def decode_recalled(self, image: ImageEmbeddings) -> MaskPrediction:
        return self.inner.decode_recalled(image)


class EmbeddingCache:
    """Tensors by name in a folder, one safetensors file each; the least recently used are removed when it is full."""

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        if max_bytes is not None and max_bytes <= 0:
            raise SettingsError(f"max_bytes must be positive, got {max_bytes}; leave the cache out to have none")
        self.folder, self._own_limit = folder, max_bytes
        self.max_bytes = size_limit(folder) if max_bytes is None else max_bytes
        self.hits, self.misses = 0, 0
        self.paused = False
        """Whether its backbones compute as if there were no cache."""
        self._writable = True
        self.problem: OSError | None = None
        """Why embeddings are no longer stored; None while they are."""
        self._unweighed = math.inf  # bytes written since the folder was last weighed

    def __deepcopy__(self, memo: dict[int, object]) -> EmbeddingCache:
        """All forks of a backbone share one cache."""
        return self

    def get(self, key: str) -> tuple[Tensor, ...] | None:
        """The tensors stored under this key; None if there are none, or damaged ones, which are removed."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                expected = (file.metadata() or {}).get("sha256")
                tensors = tuple(file.get_tensor(f"level{i}") for i in range(len(file.keys())))
            if _checksum(key, tensors) != expected:
                raise SafetensorError("its checksum is wrong")
        except FileNotFoundError:
            tensors = None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            tensors = None
            warnings.warn(f"cached embedding {path} is damaged ({error}); it is encoded again", stacklevel=3)
            with contextlib.suppress(OSError):  # then it is overwritten, or warned of again
                path.unlink(missing_ok=True)
        if tensors is None:
            self.misses += 1
            return None
        self.hits += 1
        with contextlib.suppress(OSError):  # a folder one may only read keeps no record of use
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Write an entry completely or not at all; after a failure, warn and write nothing more."""
        if not self._writable:
            return
        levels = {f"level{i}": tensor.contiguous() for i, tensor in enumerate(tensors)}
        content = save(levels, {"sha256": _checksum(key, tensors)})
        try:
            write_atomically(self._path(key), content, sync=False)  # a damaged entry is noticed
            self._unweighed += len(content)
            if self._unweighed > self.max_bytes / 16:
                self._shrink()
                self._unweighed = 0
        except OSError as error:
            self._writable, self.problem = False, error
            warnings.warn(f"embeddings are no longer cached in {self.folder}: {error}", stacklevel=3)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _shrink(self) -> None:
        """Remove the least recently used entries until the rest fits; another process may do the same."""
        self.max_bytes = self._own_limit or size_limit(self.folder)  # another process may have changed it
        remove_leftovers(self.folder, min_age_s=STALE)
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("[!.]*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        surplus = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if surplus <= 0:
                return
            surplus -= size
            path.unlink(missing_ok=True)


def _checksum(key: str, tensors: Sequence[Tensor]) -> str:
    """The digest of an entry: its key, and types, shapes and elements of its tensors."""
    return digest_of_tensors((f"{key}/level{i}", tensor) for i, tensor in enumerate(tensors))


def _refuse_training(backbone: Backbone) -> None:
    if any(parameter.requires_grad for parameter in backbone.image_encoder.parameters()):
        raise SettingsError(
            f"the image encoder of {backbone.name!r} trains, so its embeddings cannot be cached; "
            "freeze it or use the backbone without a cache"
        )
