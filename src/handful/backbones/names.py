"""The catalogue of backbones, and how a backbone is named; nothing is loaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from handful.backbones.families import FAMILIES
from handful.errors import SettingsError
from handful.jobs.files import checked_path

SUFFIXES = (".pth", ".pt", ".safetensors")
"""Of checkpoint files in their authors' format."""
STEP = 32
"""Sides are multiples of this many pixels: Hiera's coarsest level has one cell per 32 pixels."""


def require_side(side: int) -> None:
    """SettingsError unless models can take a square of this side."""
    if side < STEP or side % STEP:
        raise SettingsError(f"an image size must be a multiple of {STEP} pixels, got {side}; take 512 or 1024, say")


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """A backbone of the catalogue."""

    description: str
    source: str | Path
    """Hub id, or the folder inside the package that holds its weights."""
    licence: str
    """Licence of the weights, as an SPDX identifier."""
    family: str
    """One of FAMILIES."""
    revision: str | None = None
    """Commit on the hub; None takes the newest."""
    file: str | None = None
    """Name of the authors' checkpoint on the hub; None where the hub has a folder of transformers."""
    sha256: str | None = None
    """SHA-256 of that file."""

    @property
    def embedded(self) -> bool:
        """Whether the weights come with the package, so that nothing is downloaded."""
        return isinstance(self.source, Path)

    @property
    def has_memory(self) -> bool:
        """Whether it has a memory of masks on other slices, as SAM 2."""
        return FAMILIES[self.family].architecture == "sam2"


def _sam(size: str, parameters: str) -> BackboneEntry:
    return BackboneEntry(
        description=f"Segment Anything, ViT-{size[0].upper()}, {parameters} parameters, 1024 pixels",
        source=f"facebook/sam-vit-{size}",
        licence="Apache-2.0",
        family="sam",
    )


def _sam2(generation: str, size: str, parameters: str) -> BackboneEntry:
    return BackboneEntry(
        description=f"SAM {generation[3:]} with memory, Hiera {size}, {parameters} parameters, 1024 pixels",
        source=f"facebook/{generation}-hiera-{size}",
        licence="Apache-2.0",
        family="sam2",
    )


BACKBONES: dict[str, BackboneEntry] = {
    "handful-tiny": BackboneEntry(
        description="a small SAM 2 with memory, pre-trained on synthetic anatomy alone, 256 pixels; comes with handful",
        source=Path(__file__).parent / "weights" / "handful-tiny",
        licence="Apache-2.0",
        family="handful-tiny",
    ),
    "handful-small": BackboneEntry(
        description="SAM 2's decoder and memory on EfficientNet-Lite, partly trained, 256 pixels; comes with handful",
        source=Path(__file__).parent / "weights" / "handful-small",
        licence="Apache-2.0",
        family="handful-small",
    ),
    "sam-vit-base": _sam("base", "94 M"),
    "sam-vit-large": _sam("large", "312 M"),
    "sam-vit-huge": _sam("huge", "641 M"),
    "medsam": BackboneEntry(
        description="MedSAM: SAM ViT-B tuned on 1.5 million medical image-mask pairs, prompted with boxes, 1024 pixels",
        source="wanglab/medsam-vit-base",
        licence="Apache-2.0",
        family="medsam",
        # The main branch holds a pickle only; this commit is the hub's own conversion of it to safetensors.
        revision="a0a0e4bf38278213a0df876d2378f5736731a15e",
    ),
    "mobile-sam": BackboneEntry(
        description="MobileSAM: SAM with a small image encoder, TinyViT, 10 M parameters, 1024 pixels; for laptops",
        source="dhkim2810/MobileSAM",
        licence="Apache-2.0",
        family="mobile-sam",
        file="mobile_sam.pt",
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "sam2.1-hiera-tiny": _sam2("sam2.1", "tiny", "39 M"),
    "sam2.1-hiera-small": _sam2("sam2.1", "small", "46 M"),
    "sam2.1-hiera-base-plus": _sam2("sam2.1", "base-plus", "81 M"),
    "sam2.1-hiera-large": _sam2("sam2.1", "large", "224 M"),
    "sam2-hiera-tiny": _sam2("sam2", "tiny", "39 M"),
    "sam2-hiera-small": _sam2("sam2", "small", "46 M"),
    "sam2-hiera-base-plus": _sam2("sam2", "base-plus", "81 M"),
    "sam2-hiera-large": _sam2("sam2", "large", "224 M"),
    "edgetam": BackboneEntry(
        description="EdgeTAM, a small SAM 2 with memory, RepViT, 14 M parameters, 1024 pixels; handful[edgetam]",
        source="yonigozlan/EdgeTAM-hf",
        licence="Apache-2.0",
        family="sam2",
    ),
}


@dataclass(frozen=True)
class BackboneName:
    """A backbone's name in its parts: [family:]source[@image size][+average][+fast]."""

    source: str
    family: str | None = None
    image_size: int | None = None
    average: bool = False
    """Whether each channel of a slice is encoded on its own, and the embeddings are averaged."""
    fast: bool = False
    """Whether slices are encoded in bfloat16, on devices that compute in it."""

    @classmethod
    def of(cls, name: str | Path) -> BackboneName:
        """SettingsError for an image size that no model can take."""
        text = str(name)
        if text in BACKBONES or checked_path(text).exists():
            return cls(text)
        found = re.fullmatch(rf"(?:({'|'.join(FAMILIES)}):)?(.+?)(?:@(\d+))?(\+average)?(\+fast)?", text, re.DOTALL)
        if found is None:
            return cls(text)
        family, source, size, average, fast = found.groups()
        if size is not None:
            require_side(int(size))
        return cls(source, family, None if size is None else int(size), average is not None, fast is not None)

    def __str__(self) -> str:
        family = f"{self.family}:" if self.family else ""
        size = f"@{self.image_size}" if self.image_size else ""
        options = f"{'+average' if self.average else ''}{'+fast' if self.fast else ''}"
        return f"{family}{self.source}{size}{options}"

    @property
    def absolute(self) -> str:
        """The name with an absolute path, if it is a path."""
        path = Path(self.source)
        return str(replace(self, source=str(path.resolve()))) if self._is_path else str(self)

    @property
    def without_folders(self) -> str:
        """The name without the folders of a path, which may name a person."""
        return str(replace(self, source=Path(self.source).resolve().name)) if self._is_path else str(self)

    @property
    def _is_path(self) -> bool:
        return self.entry is None and (Path(self.source).exists() or Path(self.source).is_absolute())

    @property
    def entry(self) -> BackboneEntry | None:
        """The catalogue's entry of the source, by its name or hub id; None where there is none."""
        by_hub_id = {entry.source: entry for entry in BACKBONES.values()}
        return BACKBONES.get(self.source) or by_hub_id.get(self.source)
