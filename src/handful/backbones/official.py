"""The authors' own checkpoint files of SAM, MedSAM, SAM 2 and SAM 2.1 as backbones: tensors only, nothing unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model, Sam2VideoModel, SamModel

from handful.backbones.base import Backbone
from handful.backbones.official_names import from_sam, from_sam2
from handful.backbones.official_sizes import sam2_image_config, sam2_video_config, sam_config
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import CheckpointError, SettingsError

SUFFIXES = (".pth", ".pt", ".safetensors")


def load_official(path: Path, image_size: int = 1024) -> Backbone:
    """The model in a .pth, .pt or .safetensors file with the authors' key names; float32, frozen.

    The size of the model is told by its shapes. SAM's square is part of its weights; SAM 2's is not, and `image_size`
    gives it. Raises CheckpointError for a file that needs more than tensors unpickled, and for any other model.
    """
    return from_official_state(_read(path), str(path), image_size)


def from_official_state(state: Mapping[str, Tensor], name: str, image_size: int = 1024) -> Backbone:
    """The same from tensors already in memory; `name` is the backbone's, and what errors call them by."""
    if image_size <= 0 or image_size % 32:
        raise SettingsError(
            f"image_size must be a multiple of 32 pixels, got {image_size}; SAM 2 was trained with 1024"
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    try:
        if {"image_encoder.pos_embed", "mask_decoder.mask_tokens.weight"} <= state.keys():
            sam = SamModel(sam_config(shapes))
            return SamBackbone(_filled(sam, from_sam(state), name), name)
        if {"image_encoder.trunk.pos_embed", "sam_mask_decoder.mask_tokens.weight"} <= state.keys():
            translated = from_sam2(state)
            if not any(key.startswith("memory_attention.") for key in state):
                image = Sam2Model(Sam2Config(**sam2_image_config(shapes, image_size)))
                return Sam2Backbone(_filled(image, translated, name), name)
            video = Sam2VideoModel(sam2_video_config(shapes, image_size))
            return Sam2VideoBackbone(_filled(video, translated, name), name)
    except KeyError as error:
        raise CheckpointError(f"{name} lacks {error.args[0]!r}, which every SAM has; fetch it again") from error
    raise CheckpointError(f"{name} holds {_described(state)}; handful reads SAM, MedSAM, SAM 2 and SAM 2.1")


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict of a file: flat, or under 'model' beside an optimizer; 'module.' of a multi-GPU run dropped."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors ({_first_line(error)}); handful unpickles nothing else, "
            "for that could run any code: save its state dict alone, best as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); fetch it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict, but {type(content).__name__}")
    alien = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if alien:
        raise CheckpointError(f"{path} holds no state dict: {_some(alien)} are not tensors")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


def _filled(model: nn.Module, state: Mapping[str, Tensor], name: str) -> nn.Module:
    """The model with these weights: each of them, and no other."""
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    misshapen = sorted(key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    said = "; ".join(f"{len(keys)} {fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
    if said:
        raise CheckpointError(f"{name} does not fit {type(model).__name__} ({said}); it is damaged or another model")
    model.load_state_dict(state)
    return model


def _described(state: Mapping[str, Tensor]) -> str:
    foreign = {
        "image_encoder.patch_embed.seq.": "MobileSAM (a TinyViT encoder)",
        "image_encoder.trunk.body.": "EdgeTAM (a RepViT encoder)",
        "vision_encoder.": "a model in transformers' layout (give its folder, with config.json)",
    }
    for prefix, what in foreign.items():
        if any(key.startswith(prefix) for key in state):
            return what
    return f"another model, with keys such as {_some(sorted(state))}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
