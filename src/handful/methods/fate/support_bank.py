"""The labelled slices as FATE stores them: a memory per slice and label, and the search for the most similar slices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings, Memory, MemoryBackbone
from handful.data.support import LabelledSlices
from handful.errors import SettingsError
from handful.methods.base import CHUNK, at_once
from handful.methods.learned import Learned

CELLS = 16
"""Cells along the feature maps that 'cosine' compares: coarse enough to tolerate a small shift."""
TOKENS = 2**16
"""Largest number of memory tokens in one call: bounds the memory that attention takes."""
PICTURE = 96
"""Rows and columns of the thumbnails of labelled slices."""

Similarity = Literal["cosine", "pooled", "l1"]


@dataclass(frozen=True)
class Retrieval:
    """How labelled slices are retrieved for a slice; see the settings of the same names in `Fate`."""

    similarity: Similarity
    top_k: int
    diverse: bool
    slice_position_tolerance: float
    foreground_only: bool


class SupportBank(nn.Module):
    """What is stored of s labelled slices, in half precision: features for retrieval, and a memory per label.

    Buffers: `signature0`, ... (s, c, p); `spatial` (r, t, 64) and `pointers` (r, c), one row per memory; `position`
    (t, 64), the same for all memories; `rows` (s, k + 1), the memory of each slice and label, in the last column that
    of an empty mask, -1 if there is none; for each slice the number of its case (`cases`), its `index` in the case and
    its relative `place`; `thumbnails` (s, c, 96, 96), one grey or three colour channels, and `classes` (s, 96, 96), 0
    or 1 + the label's index, for display; `names` of the cases, the bytes of a JSON list.
    """

    spatial: Tensor
    position: Tensor
    pointers: Tensor
    rows: Tensor
    cases: Tensor
    index: Tensor
    place: Tensor
    thumbnails: Tensor
    classes: Tensor
    names: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self._rows: list[list[int]] = self.rows.tolist()
        self._sources = list(zip(self.cases.tolist(), self.index.tolist(), strict=True))
        self._names: list[str] = json.loads(bytes(self.names.tolist()))
        self._numbers = {self.source(support): support for support in range(len(self._sources))}

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], labels: int, backbone: Backbone, similarity: Similarity
    ) -> SupportBank:
        """The bank with these buffers, from a file. Raises SettingsError if they do not fit together."""
        side, channels = backbone.feature_side, backbone.channels
        taken = Learned(tensors, k=labels, columns=labels + 1, c=channels)
        cells = {"cosine": min(CELLS, side) ** 2, "pooled": 1, "l1": side**2}[similarity]
        levels = sum(name.startswith("signature") for name in tensors)
        bank = {f"signature{level}": taken.floats(f"signature{level}", "s * *") for level in range(levels - 1)}
        bank[f"signature{levels - 1}"] = taken.floats(f"signature{levels - 1}", f"s c {cells}")
        if levels > 1 and similarity != "l1":
            raise SettingsError(f"features of {levels} levels, but similarity is {similarity}")
        bank["spatial"], bank["position"] = taken.floats("spatial", "r t m"), taken.floats("position", "t m")
        bank["pointers"] = taken.floats("pointers", "r c")
        bank["rows"] = taken.whole("rows", "s columns", low=-1, high=len(bank["spatial"]) - 1)
        bank["cases"] = taken.whole("cases", "s", high=len(taken.names("names")) - 1)
        bank["index"], bank["place"] = taken.whole("index", "s"), taken.floats("place", "s", low=0, high=1)
        bank["thumbnails"] = taken.whole("thumbnails", f"s colours {PICTURE} {PICTURE}", high=255)
        bank["classes"] = taken.whole("classes", f"s {PICTURE} {PICTURE}", high=labels)
        if taken.sizes["colours"] not in (1, 3):
            raise SettingsError(f"pictures with {taken.sizes['colours']} channels, instead of 1 or 3")
        return cls(bank | {"names": tensors["names"]})

    @classmethod
    def joined(cls, parts: Sequence[SupportBank]) -> SupportBank:
        """The slices of all parts; cases with the same name in several parts stay separate."""
        tensors = {
            name: torch.cat([part.get_buffer(name) for part in parts])
            for name, _ in parts[0].named_buffers()
            if name != "thumbnails"
        }
        before = np.cumsum([0, *[len(part.spatial) for part in parts]])
        rows = [torch.where(part.rows < 0, -1, part.rows + int(b)) for part, b in zip(parts, before, strict=False)]
        earlier = np.cumsum([0, *[len(part._names) for part in parts]])
        cases = [part.cases + int(e) for part, e in zip(parts, earlier, strict=False)]
        names = [name for part in parts for name in part._names]
        channels = max(part.thumbnails.shape[1] for part in parts)  # grey and coloured slices together
        thumbnails = [part.thumbnails.expand(-1, channels, -1, -1) for part in parts]
        own = {"rows": torch.cat(rows), "cases": torch.cat(cases), "names": _bytes(names)}
        return cls(tensors | own | {"position": parts[0].position, "thumbnails": torch.cat(thumbnails)})

    @property
    def signatures(self) -> list[Tensor]:
        """The features that are compared: one level or several."""
        names = sorted(name for name, _ in self.named_buffers() if name.startswith("signature"))  # files have any order
        return [self.get_buffer(name) for name in names]

    @property
    def tokens(self) -> int:
        """Tokens of one memory."""
        return int(self.spatial.shape[1])

    def source(self, support: int) -> tuple[str, int]:
        """Case of a labelled slice, and its number in the case."""
        case, number = self._sources[support]
        return self._names[case], number

    def picture(self, case: str, number: int) -> tuple[UInt8[Tensor, "c s s"], Integer[Tensor, "s s"]]:
        """Thumbnail and classes of a labelled slice, by its case and number."""
        support = self._numbers[case, number]
        return self.thumbnails[support], self.classes[support]

    def labels_in_all_pictures(self) -> Bool[Tensor, " k"]:
        """Which labels all pictures contain; none if the slices are those of stacks, which may end anywhere."""
        held: Tensor = (self.rows[:, :-1] >= 0).all(dim=0)
        pictures = (self.index == 0).all() & (self.place == 0.5).all()
        return held & pictures

    def memories_with(self, supports: Sequence[int], label: int) -> tuple[int, ...]:
        """Memories of those labelled slices that contain the label."""
        return tuple(row for row in (self._rows[s][label] for s in supports) if row >= 0)

    def memories_of_absence(self, supports: Sequence[int], label: int) -> tuple[int, ...]:
        """Memories of an empty mask of those that do not."""
        return tuple(self._rows[s][-1] for s in supports if self._rows[s][label] < 0)

    def memory(self, rows: Sequence[tuple[int, ...]]) -> Memory:
        """Equally many memories for each object."""
        chosen = torch.tensor(rows, device=self.spatial.device)
        supports = chosen.shape[1]
        spatial = self.spatial[chosen].float()
        return Memory(
            spatial,
            self.position.expand_as(spatial),
            self.pointers[chosen].float(),
            (0,) * supports,
            (1,) * supports,
        )

    def similarities(self, image: ImageEmbeddings, similarity: Similarity) -> Float[Tensor, "n s"]:
        """Similarity of each of n slices to each of the s labelled slices."""
        query = _signature(image, similarity)
        few = zip(*[torch.split(level, CHUNK) for level in self.signatures], strict=True)
        # in full precision, a few at a time
        return torch.cat(
            [_similarities(query, [level.to(query[0]) for level in levels], similarity) for levels in few], dim=1
        )

    def best(
        self, scores: Float[Tensor, "n s"], places: Float[Tensor, " n"] | None, retrieval: Retrieval
    ) -> list[tuple[int, ...]]:
        """For each slice, the labelled slices with the highest scores among those allowed, the highest first."""
        if retrieval.foreground_only:
            held = (self.rows[:, :-1] >= 0).any(dim=1)
            scores = scores.masked_fill(~held, -torch.inf)
        if places is not None and retrieval.slice_position_tolerance < 1:
            near = (places[:, None] - self.place).abs() <= retrieval.slice_position_tolerance
            near &= scores > -torch.inf
            scores = scores.masked_fill(~near & near.any(dim=1, keepdim=True), -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        eligible = (scores > -torch.inf).sum(dim=1).tolist()
        return [self._first(row[:n], retrieval) for row, n in zip(order.tolist(), eligible, strict=True)]

    def _first(self, order: list[int], retrieval: Retrieval) -> tuple[int, ...]:
        if retrieval.diverse:
            taken: Counter[int] = Counter()
            turn = {}
            for support in order:
                case, _ = self._sources[support]
                turn[support] = taken[case]
                taken[case] += 1
            order = sorted(order, key=turn.__getitem__)
        return tuple(order[: retrieval.top_k])


def _signature(image: ImageEmbeddings, similarity: Similarity) -> list[Float[Tensor, "n _ _"]]:
    """What slices are compared by: unit vectors at p places, or all feature levels as they are."""
    if similarity == "l1":
        return [level.flatten(2) for level in image.features]
    cells = 1 if similarity == "pooled" else min(CELLS, image.main.shape[-1])
    return [F.normalize(F.adaptive_avg_pool2d(image.main, cells).flatten(2), dim=1)]


def _similarities(query: Sequence[Tensor], known: Sequence[Tensor], similarity: Similarity) -> Tensor:
    levels = [(a.flatten(1), b.flatten(1), a.shape[2]) for a, b in zip(query, known, strict=True)]
    if similarity == "l1":
        return -torch.stack([torch.cdist(a, b, p=1) / places for a, b, places in levels]).mean(dim=0)
    [(a, b, places)] = levels
    return a @ b.T / places


@torch.no_grad()
def bank_of(
    labelled: LabelledSlices,
    shown: slice,
    backbone: MemoryBackbone,
    similarity: Similarity,
    allow_empty: bool,
) -> SupportBank:
    """The bank of the labelled slices of one case; `shown` are the channels of its pictures.

    Unlabelled pixels count as outside. With `allow_empty`, each slice also has a memory of an empty mask.
    """
    rows = _table(labelled.present(), allow_empty)
    wanted = torch.nonzero(rows >= 0)
    signatures: list[list[Tensor]] = []
    memories: list[Memory | None] = []
    count = at_once(labelled.labels)
    for start in range(0, len(rows), count):
        masks = F.pad(labelled.masks(slice(start, start + count)), (0, 0, 0, 0, 0, 1))  # with an empty one
        image = backbone.encode(labelled.slices[start : start + count].to(backbone.device))
        signatures.append(_signature(image, similarity))
        slices, labels = wanted[(wanted[:, 0] >= start) & (wanted[:, 0] < start + count)].T
        memories.append(memorized(backbone, image, slices - start, masks[slices - start, labels]))
        if len(wanted) == 0:  # a memory that no row of the table refers to
            memories.append(memorized(backbone, image, torch.tensor([0]), masks[:1, -1]))
    memory = joined(memories)
    assert memory is not None
    # means over whole slices need little space, and differ by less than half precision resolves
    dtype = torch.float32 if similarity == "pooled" else torch.float16
    kept = {f"signature{i}": torch.cat(level).to(dtype) for i, level in enumerate(zip(*signatures, strict=True))}
    return SupportBank(
        {**kept, **_pictures(labelled, shown)}
        | {
            "spatial": memory.spatial[:, 0].half(),
            "position": memory.spatial_position[0, 0].clone(),
            "pointers": memory.pointers[:, 0].half(),
            "rows": rows,
            "cases": torch.zeros(len(rows), dtype=torch.long),
            "index": torch.tensor(labelled.index),
            "place": (torch.tensor(labelled.index) + 0.5) / labelled.count,
            "names": _bytes([labelled.case]),
        }
    )


def _pictures(labelled: LabelledSlices, shown: slice) -> dict[str, Tensor]:
    """Thumbnails for display: each slice in the middle of a small square, and its classes.

    A structure smaller than a pixel of the square is drawn as the pixels that it covers most.
    """
    _, row, column = labelled.grid.spacing
    height, width = labelled.slices.shape[2] * (row / column), labelled.slices.shape[3]
    size = [max(1, round(PICTURE * side / max(height, width))) for side in (height, width)]
    above, before = ((PICTURE - side) // 2 for side in size)
    rim = (before, PICTURE - size[1] - before, above, PICTURE - size[0] - above)

    image = labelled.slices[:, shown]
    count = at_once(labelled.labels)
    starts = range(0, len(image), count)
    classes = torch.cat([_small_classes(labelled.masks(slice(start, start + count)), size) for start in starts])
    return {
        "thumbnails": F.pad((F.interpolate(image, size, mode="area") * 255).round().to(torch.uint8), rim),
        "classes": F.pad(classes.to(torch.uint8 if labelled.labels < 256 else torch.int16), rim),
    }


def _small_classes(masks: Float[Tensor, "n k h w"], size: Sequence[int]) -> Int[Tensor, "n y x"]:
    """The class of each pixel of small pictures of these masks."""
    cover = F.interpolate(masks, tuple(size), mode="area")
    kept = cover * (cover > cover.amax(dim=(2, 3), keepdim=True) / 2)
    most, index = kept.max(dim=1)
    return torch.where(most > 0, index + 1, 0)


def _table(present: Bool[Tensor, "n k"], allow_empty: bool) -> Int[Tensor, "n k+1"]:
    """The number of the memory of each slice and label, or -1; in the last column that of an empty mask."""
    has_memory = torch.cat([present, torch.full((len(present), 1), allow_empty)], dim=1)
    rows = torch.full(has_memory.shape, -1)
    rows[has_memory] = torch.arange(int(has_memory.sum()))
    return rows


def memorized(
    backbone: MemoryBackbone, image: ImageEmbeddings, rows: Int[Tensor, " o"], masks: Float[Tensor, "o h w"]
) -> Memory | None:
    """A memory of each mask on its slice of `image`; None without any.

    A structure smaller than a pixel of the model's frame becomes the pixels that it covers most.
    """
    if len(rows) == 0:
        return None
    parts = []
    for lot in torch.split(torch.arange(len(rows)), max(1, TOKENS // backbone.feature_side**2)):
        inside = backbone.to_model_frame(masks[lot, None].to(backbone.device), backbone.side)[:, 0]
        mask = inside > inside.amax(dim=(1, 2), keepdim=True) / 2
        parts.append(backbone.memorize(image[rows[lot].to(backbone.device)], mask.float()))
    return joined(parts)


def joined(parts: Sequence[Memory | None]) -> Memory | None:
    """The objects of all parts, each with equally many memories; None if there are no objects."""
    some = [part for part in parts if part is not None]
    if not some:
        return None
    return replace(
        some[0],
        spatial=torch.cat([p.spatial for p in some]),
        spatial_position=torch.cat([p.spatial_position for p in some]),
        pointers=torch.cat([p.pointers for p in some]),
    )


def _bytes(names: Sequence[str]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
