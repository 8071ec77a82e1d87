"""Backbones by name: those of the catalogue, and loading them, or any from the Hugging Face hub, a folder or a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, EdgeTamVideoModel, Sam2Model, Sam2VideoModel, SamModel
from transformers.utils import logging

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.edgetam import EdgeTamBackbone
from handful.backbones.official import SUFFIXES, load_official
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import CheckpointError, SettingsError
from handful.jobs.devices import choose_device

Model = TypeVar("Model", SamModel, Sam2Model, Sam2VideoModel, EdgeTamVideoModel)


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """A backbone of the catalogue."""

    description: str
    source: str | Path
    """Hub id, or the folder inside the package that holds its weights."""
    licence: str
    """Of the weights, as an SPDX identifier."""
    kind: Literal["sam", "sam2"]
    revision: str | None = None
    """Commit on the hub; None takes the newest."""

    @property
    def embedded(self) -> bool:
        """Whether the weights come with the package, so that nothing is downloaded."""
        return isinstance(self.source, Path)


def _sam(size: str, parameters: str) -> BackboneEntry:
    return BackboneEntry(
        description=f"Segment Anything, ViT-{size[0].upper()}, {parameters} parameters, 1024 pixels",
        source=f"facebook/sam-vit-{size}",
        licence="Apache-2.0",
        kind="sam",
    )


def _sam2(generation: str, size: str, parameters: str) -> BackboneEntry:
    return BackboneEntry(
        description=f"SAM {generation[3:]} with memory, Hiera {size}, {parameters} parameters, 1024 pixels",
        source=f"facebook/{generation}-hiera-{size}",
        licence="Apache-2.0",
        kind="sam2",
    )


BACKBONES: dict[str, BackboneEntry] = {
    "handful-tiny": BackboneEntry(
        description="a small SAM 2 with memory, pre-trained on synthetic anatomy alone, 256 pixels; comes with handful",
        source=Path(__file__).parent / "weights" / "handful-tiny",
        licence="Apache-2.0",
        kind="sam2",
    ),
    "sam-vit-base": _sam("base", "94 M"),
    "sam-vit-large": _sam("large", "312 M"),
    "sam-vit-huge": _sam("huge", "641 M"),
    "medsam": BackboneEntry(
        description="MedSAM: SAM ViT-B tuned on 1.5 million medical image-mask pairs, asked with boxes, 1024 pixels",
        source="wanglab/medsam-vit-base",
        licence="Apache-2.0",
        kind="sam",
        # The main branch holds a pickle only; this commit is the hub's own conversion of it to safetensors.
        revision="a0a0e4bf38278213a0df876d2378f5736731a15e",
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
        kind="sam2",
    ),
}


def load_backbone(name: str | Path) -> Backbone:
    """The frozen backbone, in float32, that `name` says: one of BACKBONES, a hub id, a folder, or an authors' file.

    A folder is one of transformers (config.json and safetensors), a file one of .pth, .pt or .safetensors with the
    authors' key names. The hub's cache and offline mode are honoured. Raises SettingsError for a name that is none of
    these, CheckpointError for one that cannot be downloaded or read.
    """
    entry = BACKBONES.get(str(name))
    if entry is not None:
        source, revision = entry.source, entry.revision
        folder = source if isinstance(source, Path) else _downloaded(source, revision)
        return _from_folder(folder, str(name))
    path = Path(name)
    if path.is_dir():
        return _from_folder(path, str(name))
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise SettingsError(f"backbone file {path} is none of {', '.join(SUFFIXES)}")
        return load_official(path)
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix not in SUFFIXES:
        return _from_folder(_downloaded(name, None), name)
    close = get_close_matches(str(name), BACKBONES, n=3, cutoff=0.5) or list(BACKBONES)
    raise SettingsError(
        f"unknown backbone {str(name)!r}; did you mean {', '.join(close)}? "
        "A hub id (organisation/name), a folder or a checkpoint file will do, too"
    )


def open_backbone(name: str | Path, device: str = "auto", cache: Path | None = None) -> Backbone:
    """The backbone that `name` says, as by `load_backbone`, on a device and with the embeddings kept in `cache`."""
    backbone = load_backbone(name).to(choose_device(device))
    return backbone if cache is None else cached(backbone, cache)


def _downloaded(hub_id: str, revision: str | None) -> Path:
    """The folder in the hub's cache, filled where it must be."""
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["config.json", "model*.safetensors", "model.safetensors.index.json"],
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"backbone {hub_id!r} cannot be downloaded ({_first_line(error)}); connect this machine, or copy the hub's "
            "cache (HF_HOME) or the model's folder from one that is connected and give its path"
        ) from error
    return Path(folder)


def _from_folder(folder: Path, name: str) -> Backbone:
    """A model that transformers saved; which class it takes is told by its config and by the weights themselves."""
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise CheckpointError(
            f"backbone {name!r}: {folder} must hold config.json and .safetensors weights, as transformers saves them"
        )
    try:
        with _quiet_transformers():
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind == "sam":
                return SamBackbone(_model(SamModel, folder, name), name)
            if kind == "edgetam_video":
                return EdgeTamBackbone(_model(EdgeTamVideoModel, folder, name), name)
            if kind not in ("sam2", "sam2_video"):
                raise CheckpointError(
                    f"backbone {name!r} is a {kind!r} model; handful knows sam, sam2, sam2_video and edgetam_video"
                )
            if _holds_memory(weights):
                return Sam2VideoBackbone(_model(Sam2VideoModel, folder, name), name)
            return Sam2Backbone(_model(Sam2Model, folder, name), name)
    except ImportError as error:
        raise CheckpointError(
            f"backbone {name!r} needs a package that is not installed; EdgeTAM's image encoder comes from timm, which "
            "needs torchvision: pip install handful[edgetam]"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"backbone {name!r} in {folder} cannot be read ({_first_line(error)})") from error


def _model(kind: type[Model], folder: Path, name: str) -> Model:
    """Every weight from the file: transformers would make up those that are missing."""
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    faults = [f"{what}: {', '.join(sorted(map(str, keys))[:5])}" for what, keys in found.items() if keys]
    if faults:
        raise CheckpointError(f"backbone {name!r} does not fit {kind.__name__} ({'; '.join(faults)})")
    return model


def _holds_memory(weights: list[Path]) -> bool:
    for path in weights:
        with safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
        if any(name.startswith("memory_attention.") for name in names):
            return True
    return False


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no load reports meanwhile: what is wrong is said by an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
