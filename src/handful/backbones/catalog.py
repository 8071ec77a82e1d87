"""Loading of backbones: those of the catalogue, and others from the Hugging Face hub, a folder or a file.

The modules of a model are imported when it is loaded, those of other models are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from transformers.utils import logging

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.families import FAMILIES, Architecture, Family
from handful.backbones.folder_config import CONFIGS, HANDFUL_SMALL, FolderConfig, model_type, read_folder_config
from handful.backbones.names import BACKBONES, SUFFIXES, BackboneEntry, BackboneName
from handful.backbones.resizing import resize_sam, resized_sam2
from handful.errors import CheckpointError, HandfulError, SettingsError, first_line
from handful.jobs.devices import choose_device
from handful.jobs.digests import digest_of_file
from handful.jobs.files import checked_path

MEDSAM = {"sam": "medsam", "sam2": "medsam2", "mobile-sam": None}
"""Families that keys show, and the families of a MedSAM with the same keys; None: there is none with its pixels."""

if TYPE_CHECKING:
    from transformers import EdgeTamVideoModel, Sam2Model, Sam2VideoModel, SamModel

    Model = TypeVar("Model", SamModel, Sam2Model, Sam2VideoModel, EdgeTamVideoModel)


def load_backbone(name: str | Path, *, download: bool = True) -> Backbone:
    """The frozen backbone, in float32, of that name: a name of BACKBONES, a hub id, a folder, or an authors' file.

    A folder is one of transformers (config.json and safetensors), a file one of .pth, .pt or .safetensors with the
    authors' key names. 'FAMILY:' before it, one of FAMILIES, says which pixels it was trained on, where the weights do
    not show that: 'medsam:/path/medsam_vit_b.pth'. '@SIZE' after it is the side of the square input in pixels:
    'sam2.1-hiera-tiny@512'. '+average' at the end is for scans with several sequences: each is encoded on its own, and
    the embeddings are averaged. '+fast' at the end encodes in bfloat16 on devices that compute in it. The hub's cache
    and offline mode are honoured; without `download`, weights that are not in that cache are an error. No code of a
    folder is run. Raises SettingsError for an unknown name, a family that cannot be in these weights or a wrong size,
    CheckpointError for weights that cannot be had or read.
    """
    wanted = BackboneName.of(name)
    backbone = _loaded(name, wanted, download)
    if wanted.average:
        backbone.most_at_once = 1
    if wanted.fast:
        backbone.precision = "bfloat16"
    return backbone


def _loaded(name: str | Path, wanted: BackboneName, download: bool) -> Backbone:
    path, entry = Path(wanted.source), wanted.entry
    if entry is not None:
        wanted = replace(wanted, family=wanted.family or entry.family)
        if entry.file is not None:
            return _from_file(_downloaded_file(entry, download), str(name), wanted)
        source = entry.source
        folder = source if isinstance(source, Path) else _downloaded(source, entry.revision, download)
        return _from_folder(folder, str(name), wanted)
    if checked_path(path).is_dir():
        return _from_folder(path, str(name), wanted)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise SettingsError(f"backbone file {path} is none of {', '.join(SUFFIXES)}")
        return _from_file(path, str(name), wanted)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", wanted.source) and path.suffix not in SUFFIXES and not isinstance(name, Path):
        return _from_folder(_downloaded(wanted.source, None, download), str(name), wanted)
    close = get_close_matches(wanted.source, BACKBONES, n=3, cutoff=0.5) or list(BACKBONES)
    raise SettingsError(
        f"unknown backbone {str(name)!r}; did you mean {', '.join(close)}? "
        "A hub id (organisation/name), a folder or a checkpoint file will do, too"
    )


def open_backbone(name: str | Path, device: str = "auto", cache: Path | None = None) -> Backbone:
    """The backbone of that name, as `load_backbone` has it, on a device and with its embeddings kept in `cache`."""
    backbone = load_backbone(name).to(choose_device(device))
    return backbone if cache is None else cached(backbone, cache)


def _downloaded(hub_id: str, revision: str | None, download: bool) -> Path:
    """The folder in the hub's cache; with `download`, filled where it must be."""
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            local_files_only=not download,
            allow_patterns=["config.json", "model*.safetensors", "model.safetensors.index.json"],
        )
    except (OSError, ValueError) as error:
        if not download:
            raise _not_here(hub_id) from error
        raise CheckpointError(
            f"backbone {hub_id!r} cannot be downloaded ({first_line(error)}); connect this machine, or copy the hub's "
            "cache (HF_HOME) or the model's folder from one that is connected and give its path"
        ) from error
    return Path(folder)


def _not_here(hub_id: str) -> CheckpointError:
    return CheckpointError(
        f"backbone {hub_id!r} is not on this machine, and is downloaded only on request: name it with --backbone"
    )


def _downloaded_file(entry: BackboneEntry, download: bool) -> Path:
    """The entry's checkpoint in the hub's cache; CheckpointError where it is not the file that the entry describes."""
    assert entry.file is not None
    try:
        path = Path(_in_hub_cache(entry, entry.file, download))
    except (OSError, ValueError) as error:
        if not download:
            raise _not_here(str(entry.source)) from error
        raise CheckpointError(
            f"{entry.file} of {str(entry.source)!r} cannot be downloaded ({first_line(error)}); connect this machine, "
            f"or copy the file from one that is connected and give its path, as {entry.family}:/path/{entry.file}"
        ) from error
    found = digest_of_file(path)
    if found != entry.sha256:
        raise CheckpointError(
            f"{path} is damaged or another file: its SHA-256 is {found[:12]}, not {str(entry.sha256)[:12]}; "
            "remove it and try again"
        )
    return path


def _in_hub_cache(entry: BackboneEntry, file: str, download: bool) -> str:
    return hf_hub_download(str(entry.source), file, revision=entry.revision, local_files_only=not download)


def _from_file(path: Path, name: str, wanted: BackboneName) -> Backbone:
    from handful.backbones.official import load_official

    backbone = load_official(path, wanted.family, wanted.image_size)
    backbone.name = name
    _require_clear_family(backbone, wanted)
    return backbone


def _from_folder(folder: Path, name: str, wanted: BackboneName) -> Backbone:
    """A model that transformers saved; its class is that of its config and of its weights."""
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise CheckpointError(
            f"backbone {name!r}: {folder} must hold config.json and .safetensors weights, as transformers saves them"
        )
    if (folder / "adapter_config.json").exists():  # transformers would load the weights that it names
        raise CheckpointError(
            f"backbone {name!r}: {folder} holds an adapter (adapter_config.json); merge it into the weights first"
        )
    try:
        with _quiet_transformers():
            backbone = _built(folder, name, wanted)
    except ImportError as error:
        raise CheckpointError(
            f"backbone {name!r} needs a package that is not installed; EdgeTAM's image encoder comes from timm, which "
            "needs torchvision: pip install handful[edgetam]"
        ) from error
    except (HandfulError, MemoryError):
        raise
    except Exception as error:  # transformers raises errors of any class for configurations it cannot build
        raise CheckpointError(
            f"backbone {name!r} in {folder} cannot be read ({first_line(error)}); get the folder again from its source"
        ) from error
    _require_clear_family(backbone, wanted)
    return backbone


def _built(folder: Path, name: str, wanted: BackboneName) -> Backbone:
    if model_type(folder) == HANDFUL_SMALL:
        from handful.backbones.small import load_small

        family = FAMILIES[wanted.family or "handful-small"]
        _require_architecture(family, "sam2", name)
        return load_small(folder, name, wanted.image_size, family)
    read = read_folder_config(folder, name)
    family = _family_of(read, name, wanted)
    if read.kind == "sam":
        return _sam(folder, read, name, wanted, family)
    if read.kind == "edgetam_video":
        from transformers import EdgeTamVideoModel

        from handful.backbones.edgetam import EdgeTamBackbone

        return EdgeTamBackbone(*_sam2_model(_model(EdgeTamVideoModel, folder, read, name), name, wanted, family))
    if read.holds_memory:
        from transformers import Sam2VideoModel

        from handful.backbones.sam2_video import Sam2VideoBackbone

        return Sam2VideoBackbone(*_sam2_model(_model(Sam2VideoModel, folder, read, name), name, wanted, family))
    from transformers import Sam2Model

    from handful.backbones.sam2 import Sam2Backbone

    return Sam2Backbone(*_sam2_model(_model(Sam2Model, folder, read, name), name, wanted, family))


def _sam(folder: Path, read: FolderConfig, name: str, wanted: BackboneName, family: Family) -> Backbone:
    from transformers import SamModel

    from handful.backbones.sam import SamBackbone

    model = _model(SamModel, folder, read, name)
    usual_side = int(model.config.vision_config.image_size)
    if wanted.image_size is not None:
        resize_sam(model, wanted.image_size)
    return SamBackbone(model, name, family, usual_side)


def _sam2_model(model: Model, name: str, wanted: BackboneName, family: Family) -> tuple[Model, str, Family, int]:
    """Model, name, family and usual side; the model takes squares of the wanted side."""
    usual_side = int(model.prompt_encoder.input_image_size)
    if wanted.image_size not in (None, usual_side):
        model = resized_sam2(model, wanted.image_size)
    return model, name, family, usual_side


def _family_of(read: FolderConfig, name: str, wanted: BackboneName) -> Family:
    """The named family, or the one that the configuration shows."""
    architecture: Architecture = "sam" if read.kind == "sam" else "sam2"
    config: Any = read.of(CONFIGS[read.kind])
    # no published SAM 2 has one candidate mask only; models that handful pre-trains do
    small = architecture == "sam2" and config.mask_decoder_config.num_multimask_outputs == 1
    family = FAMILIES[wanted.family or ("handful-tiny" if small else architecture)]
    _require_architecture(family, architecture, name)
    return family


def _require_architecture(family: Family, architecture: Architecture, name: str) -> None:
    """SettingsError where the named family is of another architecture than the weights."""
    if family.architecture != architecture:
        named = next(key for key, one in FAMILIES.items() if one is family)
        fitting = [key for key, one in FAMILIES.items() if one.architecture == architecture]
        raise SettingsError(f"backbone {name!r} cannot be a {named!r}; it is one of {', '.join(fitting)}")


def _require_clear_family(backbone: Backbone, wanted: BackboneName) -> None:
    """SettingsError for a source called MedSAM without a named family: it has the keys of SAM, but not its pixels."""
    plain = next((name for name in MEDSAM if FAMILIES[name] == backbone.family), None)
    if wanted.family is not None or plain is None or "medsam" not in Path(wanted.source).name.lower():
        return
    medical = MEDSAM[plain]
    choice = f"{medical}:{wanted.source}, or " if medical else ""
    raise SettingsError(
        f"{wanted.source} may be a MedSAM, which was trained on other pixels than SAM, and its weights do not show "
        f"it; write {choice}{plain}:{wanted.source} for weights that were trained on SAM's pixels"
    )


def _model(kind: type[Model], folder: Path, read: FolderConfig, name: str) -> Model:
    """Every weight from the file: transformers would fill in random ones where some are missing."""
    config = read.of(kind.config_class)
    read.require_fitting(kind, config)
    model, found = kind.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    faults = [f"{what}: {', '.join(sorted(map(str, keys))[:5])}" for what, keys in found.items() if keys]
    if faults:
        raise CheckpointError(f"backbone {name!r} does not fit {kind.__name__} ({'; '.join(faults)})")
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no load reports meanwhile; an error says what is wrong."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
