"""Checkpoint files of SAM and its relatives with their authors' key names, as backbones; only tensors are unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model, Sam2VideoModel, SamModel

from handful.backbones.base import Backbone
from handful.backbones.families import FAMILIES, Family
from handful.backbones.names import require_side
from handful.backbones.official_names import from_mobile_sam, from_sam, from_sam2
from handful.backbones.official_sizes import (
    adapter_width,
    mobile_sam_config,
    sam2_image_config,
    sam2_video_config,
    sam_config,
    tiny_vit_shape,
)
from handful.backbones.resizing import resize_sam
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.backbones.sam_med2d import add_sam_med2d_adapters
from handful.backbones.tiny_vit import TinyVit
from handful.errors import CheckpointError, HandfulError, SettingsError, first_line
from handful.jobs.memory import is_lack_of_memory
from handful.jobs.plain_text import some

TRAINED = ("model", "model_state_dict")
"""Keys under which a training saves the weights."""

State = Mapping[str, Tensor]
_Model = TypeVar("_Model", bound=nn.Module)


def load_official(path: Path, family: str | None = None, image_size: int | None = None) -> Backbone:
    """The model in a .pth, .pt or .safetensors file with the authors' key names; float32, frozen.

    `family` is one of FAMILIES, by default what the keys of the file show: 'sam' for MedSAM, too, whose keys are the
    same. `image_size` is the side of the square input in pixels, by default that of the weights, or of the family where
    weights do not show it. Raises CheckpointError for a file that needs more than tensors unpickled, and for any other
    model; SettingsError for a family that cannot be in this file.
    """
    return from_official_state(read_state(path), str(path), family, image_size)


def from_official_state(state: State, name: str, family: str | None = None, image_size: int | None = None) -> Backbone:
    """As `load_official`, from tensors in memory; `name` is that of the backbone, and stands in errors."""
    chosen = _family(state, name, family)
    if image_size is not None:
        require_side(image_size)
    try:
        if chosen.architecture == "sam2":
            return _sam2(state, name, chosen, image_size)
        model = _mobile_sam(state, name) if chosen.architecture == "mobile-sam" else _sam(state, name)
    except KeyError as error:
        raise CheckpointError(f"{name} lacks {error.args[0]!r}, which every SAM has; fetch it again") from error
    except (HandfulError, MemoryError):
        raise
    except Exception as error:  # sizes are computed from the shapes of the weights, which may be any
        if is_lack_of_memory(error):
            raise
        raise CheckpointError(
            f"{name} has the keys of {chosen.architecture}, but weights of shapes that belong to none "
            f"({first_line(error)}); it is damaged or another model"
        ) from error
    usual_side = int(model.config.vision_config.image_size)
    if image_size is not None:
        resize_sam(model, image_size)
    return SamBackbone(model, name, chosen, usual_side)


def _family(state: State, name: str, wanted: str | None) -> Family:
    found = _family_by_keys(state)
    if found is None:
        raise CheckpointError(
            f"{name} holds {_described(state)}; handful reads SAM, MedSAM, SAM-Med2D, MobileSAM, SAM 2, SAM 2.1 and "
            "MedSAM2"
        )
    family = FAMILIES[wanted or found]
    if family.architecture != FAMILIES[found].architecture:
        fitting = [key for key, one in FAMILIES.items() if one.architecture == FAMILIES[found].architecture]
        raise SettingsError(f"{name} cannot be read as {wanted!r}; its keys are those of {', '.join(fitting)}")
    return family


def _family_by_keys(state: State) -> str | None:
    """The family that a file belongs to unless its user says otherwise; None for any other model."""
    if _is_of_volumes(state):
        return None
    if {"image_encoder.pos_embed", "mask_decoder.mask_tokens.weight"} <= state.keys():
        return "sam-med2d" if any(".Adapter." in key for key in state) else "sam"
    if {"image_encoder.patch_embed.seq.0.c.weight", "mask_decoder.mask_tokens.weight"} <= state.keys():
        return "mobile-sam"
    if {"image_encoder.trunk.pos_embed", "sam_mask_decoder.mask_tokens.weight"} <= state.keys():
        return "sam2"
    return None


def _sam(state: State, name: str) -> SamModel:
    shapes = _shapes(state)
    model = SamModel(sam_config(shapes))
    width = adapter_width(shapes)
    if width is not None:
        add_sam_med2d_adapters(model, width)
    return filled(model, from_sam(state), name)


def _mobile_sam(state: State, name: str) -> SamModel:
    shapes = _shapes(state)
    model = SamModel(mobile_sam_config(shapes))
    model.vision_encoder = TinyVit(tiny_vit_shape(shapes))
    return filled(model, from_mobile_sam(state), name)


def _sam2(state: State, name: str, family: Family, image_size: int | None) -> Backbone:
    """The side is no part of the weights, so that of SAM 2 is the usual one, whatever the family."""
    usual = FAMILIES["sam2"].side
    side = image_size or family.side or usual
    assert side is not None
    shapes, translated = _shapes(state), from_sam2(state)
    if not any(key.startswith("memory_attention.") for key in state):
        image = Sam2Model(Sam2Config(**sam2_image_config(shapes, side)))
        return Sam2Backbone(filled(image, translated, name), name, family, usual)
    video = Sam2VideoModel(sam2_video_config(shapes, side))
    return Sam2VideoBackbone(filled(video, translated, name), name, family, usual)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file: flat, or under a key of TRAINED; 'module.' of a multi-GPU run is dropped.

    Raises CheckpointError for a file that is damaged, holds anything else, or needs more than tensors unpickled.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors ({first_line(error)}); handful unpickles nothing else, "
            "for that could run any code: save its state dict alone, best as .safetensors"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); fetch it again") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make torch.load raise errors of any class
        if is_lack_of_memory(error):
            raise
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}); fetch it again"
        ) from error
    for key in TRAINED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict, but {type(content).__name__}")
    alien = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if alien:
        raise CheckpointError(f"{path} holds no state dict: {some(alien, 5)} are not tensors")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


def _unpickled(path: Path) -> Any:
    """Tensors and plain containers. SAM-Med2D's files also hold an optimiser: it becomes an empty object."""
    ignored: list[Any] = [(_Ignored, f"torch.optim.{name}") for name in ("adam.Adam", "adamw.AdamW", "sgd.SGD")]
    with torch.serialization.safe_globals([*ignored, (_empty_dict, "collections.defaultdict"), dict]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Ignored:
    """Stands for an object of a file that nobody needs; takes its state and drops it."""

    def __setstate__(self, state: object) -> None:
        pass


def _empty_dict(*_: object) -> dict[object, object]:
    return {}


def filled(model: _Model, state: State, name: str) -> _Model:
    """The model with these weights: each of them, and no other.

    Raises CheckpointError if they do not fit; `name` is that of the file.
    """
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    misshapen = sorted(key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    listed = "; ".join(f"{len(keys)} {fault}: {some(keys, 5)}" for fault, keys in faults.items() if keys)
    if listed:
        raise CheckpointError(f"{name} does not fit {type(model).__name__} ({listed}); it is damaged or another model")
    model.load_state_dict(state)
    return model


def _is_of_volumes(state: State) -> bool:
    return "image_encoder.pos_embed" in state and state["image_encoder.pos_embed"].dim() == 5


def _described(state: State) -> str:
    if _is_of_volumes(state):
        return "SAM-Med3D, a model of volumes (load_sam_med3d reads it)"
    foreign = {
        "image_encoder.trunk.body.": "EdgeTAM (a RepViT encoder)",
        "vision_encoder.": "a model in transformers' layout (give its folder, with config.json)",
    }
    for prefix, what in foreign.items():
        if any(key.startswith(prefix) for key in state):
            return what
    return f"another model, with keys such as {some(sorted(state), 5)}"
