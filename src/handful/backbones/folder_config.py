"""The config.json of a folder that transformers saved: read as JSON, without what would load code or other files.

The folder may be a stranger's. Keys that make transformers import code of the folder, fetch kernels or quantisers, or
load other weights are dropped, and no number may be larger than the weights in the folder allow.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    EdgeTamVideoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Sam2Config,
    Sam2VideoConfig,
    SamConfig,
)

from handful.errors import CheckpointError
from handful.jobs.json_file import read_json

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "sam": SamConfig,
    "sam2": Sam2Config,
    "sam2_video": Sam2VideoConfig,
    "edgetam_video": EdgeTamVideoConfig,
}
"""The models that handful knows, by their model_type."""
HANDFUL_SMALL = "handful_small"
"""The `model_type` of handful-small, whose folder is none of transformers."""
_DROPPED = re.compile(
    r"auto_map|custom_.*|trust_remote_code|_?attn_implementation.*|_?experts_implementation.*|use_kernels|kernel_config"
    r"|quantization_config|torch_dtype|dtype|_name_or_path|name_or_path|_commit_hash|base_model_.*_plan|pretrained"
    r"|use_pretrained_backbone|backbone|backbone_kwargs"
)
"""Keys, at any depth, that make the loader of transformers import, fetch or convert something."""
_COUNTS = re.compile(r".*(layers|depths?|blocks.*|stages|num_maskmem|num_heads|attention_heads.*)")
"""Keys of numbers that count parts of a model; each part has weights of its own."""
_PARTS = re.compile(r"(sam|sam2|edgetam)(_\w+)?|timm_wrapper")
"""Values of model_type for the parts of a model."""
_TIMM_ARGUMENTS = {"in_chans", "features_only", "out_indices"}
MOST_WINDOW = 64
"""Largest attention window in cells: the whole grid of SAM."""
MOST = 2**16
"""Largest number that any entry may have."""
SPARE = 2**24
"""Elements that a model may have beyond its weights: positions that are computed, not stored."""


@dataclass(frozen=True)
class FolderConfig:
    """The checked configuration of a folder."""

    kind: str
    """One of CONFIGS."""
    content: Mapping[str, Any]
    """Entries of config.json."""
    holds_memory: bool
    """Whether there are weights of a memory."""
    elements: int
    """Number of elements of all weights in the folder."""

    def of(self, config: type[PreTrainedConfig]) -> PreTrainedConfig:
        """The configuration as one of this class."""
        return config.from_dict(copy.deepcopy(dict(self.content)))

    def require_fitting(self, model: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Raise CheckpointError if the model would be larger than the weights; nothing is allocated for this."""
        with torch.device("meta"):
            built = model(copy.deepcopy(config))
        size = sum(tensor.numel() for tensor in (*built.parameters(), *built.buffers()))
        if size > 2 * self.elements + SPARE:
            raise CheckpointError(
                f"config.json describes a model of {size} elements, but the weights have {self.elements}; "
                "get config.json and weights from the same source"
            )


def model_type(folder: Path) -> object:
    """The `model_type` of config.json, of any type; None where it has none. CheckpointError if it is not JSON."""
    file = folder / "config.json"
    try:
        raw, _ = read_json(file)
    except ValueError as error:
        raise _wrong(file, str(error)) from None
    return raw.get("model_type") if isinstance(raw, dict) else None


def read_folder_config(folder: Path, name: str) -> FolderConfig:
    """The checked configuration of the folder of backbone `name`, which has config.json and .safetensors files.

    Raises CheckpointError for an unknown kind of model, and for entries that are out of range.
    """
    file = folder / "config.json"
    try:
        raw, _ = read_json(file)
    except ValueError as error:
        raise _wrong(file, str(error)) from None
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in CONFIGS:
        raise CheckpointError(
            f"backbone {name!r} is a {str(kind)[:40]!r} model; handful knows sam, sam2, sam2_video and edgetam_video"
        )
    shapes = _shapes(folder)
    try:
        cleaned = _without_loaders(raw)
        _require_modest(file, cleaned, len(shapes))
        _require_local_parts(file, cleaned, kind)
    except RecursionError:
        raise _wrong(file, "nested too deeply") from None
    memory = any(key.startswith("memory_attention.") for key in shapes)
    return FolderConfig(kind, cleaned, memory, sum(shapes.values()))


def _shapes(folder: Path) -> dict[str, int]:
    """{name of a tensor: number of its elements} of all weights, from the headers of their files."""
    sizes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                sizes[name] = int(torch.Size(file.get_slice(name).get_shape()).numel())
    return sizes


def _without_loaders(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_loaders(value) for key, value in raw.items() if not _DROPPED.fullmatch(key)}
    return [_without_loaders(value) for value in raw] if isinstance(raw, list) else raw


def _require_modest(file: Path, raw: Any, tensors: int, key: str = "config") -> None:
    """CheckpointError for numbers and lists that no model with so many tensors has."""
    if isinstance(raw, Mapping):
        for inner, value in raw.items():
            _require_modest(file, value, tensors, inner)
    elif isinstance(raw, list):
        if len(raw) > MOST:
            raise _wrong(file, f"{key} has {len(raw)} entries")
        for value in raw:
            _require_modest(file, value, tensors, key)
    elif isinstance(raw, int | float) and not isinstance(raw, bool):
        most = MOST_WINDOW if "window_size" in key else tensors if _COUNTS.fullmatch(key) else MOST
        if isinstance(raw, int) and abs(raw) > most:
            raise _wrong(file, f"{key} = {raw}, but at most {most} fits its weights")


def _require_local_parts(file: Path, raw: Mapping[str, Any], kind: str) -> None:
    """CheckpointError for parts of other models, and for those that would be fetched."""
    for part in _mappings(raw):
        of = part.get("model_type", "sam")
        if not (isinstance(of, str) and _PARTS.fullmatch(of)):
            raise _wrong(file, f"a part is a {str(of)[:40]!r} model")
        if of == "timm_wrapper":
            arguments = part.get("model_args") or {}
            named = re.fullmatch(r"[A-Za-z0-9_.]+", str(part.get("architecture", "")))
            if not (named and isinstance(arguments, dict) and arguments.keys() <= _TIMM_ARGUMENTS):
                raise _wrong(file, "its image encoder is not one that timm has by its plain name")
    vision = raw.get("vision_config")
    if kind == "edgetam_video" and not (isinstance(vision, dict) and isinstance(vision.get("backbone_config"), dict)):
        raise _wrong(file, "vision_config.backbone_config is missing")


def _mappings(raw: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(raw, Mapping):
        yield raw
        for value in raw.values():
            yield from _mappings(value)
    elif isinstance(raw, list):
        for value in raw:
            yield from _mappings(value)


def _wrong(file: Path, finding: str) -> CheckpointError:
    return CheckpointError(f"{file} cannot be used ({finding}); get the folder again from its source")
