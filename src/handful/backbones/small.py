"""handful-small: the prompts, the mask decoder and the memory of SAM 2 on the convolutions of EfficientNet-Lite.

The main features have one cell per 16 pixels, as in SAM 2. Masks have one cell per 2 pixels, not 4: the decoder's last
upscaling has a stride of 4, and the finest features come from the first block of the encoder. As in EdgeTAM (Zhou et
al., arXiv 2501.07256), a feature pyramid joins the convolutional encoder to the decoder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoPositionEmbeddingSine

from handful.backbones.efficientnet import EfficientNetLite, Size
from handful.backbones.families import FAMILIES, STRETCHED, Family
from handful.backbones.folder_config import HANDFUL_SMALL
from handful.backbones.names import require_side
from handful.backbones.sam2_head import head_and_memory
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import CheckpointError, SettingsError
from handful.jobs.atomic import write_atomically
from handful.jobs.json_file import read_json

STRIDE = 16
"""Pixels along a cell of the main features."""
FINER = 8
"""Cells of a mask along one cell of the main features."""
MASK_CHANNELS = 32
"""Widest layer that reads a mask prompt."""
MOST_CHANNELS = 512


@dataclass(frozen=True, kw_only=True)
class SmallShape:
    """What the weights depend on."""

    channels: int = 128
    """Width of the main features, of prompts and of the mask decoder; a multiple of 64, the width of a memory."""
    trunk: Size = 0
    """Size of EfficientNet-Lite: 0, 1 or 2."""

    def __post_init__(self) -> None:
        if self.channels % 64 or not 64 <= self.channels <= MOST_CHANNELS:
            raise SettingsError(f"channels must be a multiple of 64 up to {MOST_CHANNELS}, got {self.channels}")


class Pyramid(nn.Module):
    """Joins the five levels of EfficientNet-Lite to three: one cell per 2, per 8 and per 16 pixels.

    Coarse levels are added to finer ones, as in Lin et al., "Feature pyramid networks" (CVPR 2017).
    """

    def __init__(self, inputs: tuple[int, ...], channels: int) -> None:
        super().__init__()
        half, quarter, eighth = channels // 2, channels // 4, channels // 8
        widths = (eighth, quarter, half, channels, channels)
        self.lateral = nn.ModuleList(nn.Conv2d(wide, own, 1) for wide, own in zip(inputs, widths, strict=True))
        self.narrow = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1) for fine, coarse in ((eighth, quarter), (quarter, half), (half, channels))
        )
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.detail = nn.Conv2d(quarter, quarter, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        at2, at4, at8, at16, at32 = (conv(level) for conv, level in zip(self.lateral, levels, strict=True))
        main = self.smooth(F.gelu(at16 + _enlarged(at32, at16)))
        at8 = at8 + _enlarged(self.narrow[2](main), at8)
        at4 = self.detail(F.gelu(at4 + _enlarged(self.narrow[1](at8), at4)))
        at2 = F.gelu(at2 + _enlarged(self.narrow[0](at4), at2))
        return at2, at8, main


@dataclass(frozen=True, eq=False)
class Encoded:
    """The output of the image encoder, named as transformers names it."""

    fpn_hidden_states: tuple[Tensor, Tensor, Tensor]
    """One cell per 2, per 8 and per 16 pixels."""


class _Neck(nn.Module):
    """Holds the position encoding of the memory attention, where SAM 2 has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_encoding = Sam2VideoPositionEmbeddingSine(channels // 2, normalize=True)


class TrunkEncoder(nn.Module):
    """EfficientNet-Lite and the feature pyramid, in place of SAM 2's Hiera."""

    def __init__(self, shape: SmallShape) -> None:
        super().__init__()
        self.trunk = EfficientNetLite(shape.trunk)
        self.pyramid = Pyramid(self.trunk.channels, shape.channels)
        self.neck = _Neck(shape.channels)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Encoded:
        return Encoded(self.pyramid(self.trunk(pixels)))


class SmallBackbone(Sam2VideoBackbone):
    """SAM 2's head and memory on EfficientNet-Lite; masks have 128 × 128 cells at 256 pixels."""

    def __init__(
        self,
        model: Sam2VideoModel,
        name: str,
        family: Family = FAMILIES["handful-small"],
        usual_side: int | None = None,
    ) -> None:
        super().__init__(model, name, family, usual_side)
        self.mask_side = FINER * self.feature_side
        self.usual_input = (STRETCHED, usual_side or self.side)


def small_model(shape: SmallShape, side: int = 256) -> Sam2VideoModel:
    """Return the model with untrained weights, for slices of `side` × `side` pixels; no weight depends on `side`.

    Raises SettingsError where `side` is no multiple of 32.
    """
    require_side(side)
    channels = shape.channels
    model = Sam2VideoModel(_config(shape, side))
    model.vision_encoder = TrunkEncoder(shape)
    decoder, prompts = model.mask_decoder, model.prompt_encoder
    decoder.upscale_conv2 = nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=FINER // 2, stride=FINER // 2)
    decoder.conv_s0 = nn.Conv2d(channels // 8, channels // 8, 3, padding=1)
    decoder.conv_s1 = nn.Conv2d(channels // 2, channels // 4, 1)
    prompts.mask_embed.conv1 = nn.Conv2d(1, MASK_CHANNELS // 4, kernel_size=FINER // 2, stride=FINER // 2)
    prompts.mask_input_size = (FINER * side // STRIDE,) * 2
    model.mask_downsample = nn.Conv2d(1, 1, kernel_size=STRIDE // FINER, stride=STRIDE // FINER)
    return model


def save_small(model: Sam2VideoModel, shape: SmallShape, folder: Path) -> None:
    """Write config.json and then model.safetensors, in half precision; the model in memory does not change."""
    folder.mkdir(parents=True, exist_ok=True)
    side = int(model.prompt_encoder.input_image_size)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    config = {"model_type": HANDFUL_SMALL, "side": side, **asdict(shape)}
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomically(folder / "model.safetensors", save(state, metadata={"format": "pt"}))


def read_shape(folder: Path, name: str) -> tuple[SmallShape, int]:
    """Return the shape and the usual input side that config.json states; CheckpointError where they are impossible."""
    file = folder / "config.json"
    content, _ = read_json(file)
    wrong = f"backbone {name!r}: {file} does not describe a handful-small"
    if not isinstance(content, dict) or set(content) != {"model_type", "side", "channels", "trunk"}:
        raise CheckpointError(f"{wrong}; its keys must be model_type, side, channels and trunk")
    numbers = [content[key] for key in ("side", "channels", "trunk")]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in numbers):
        raise CheckpointError(f"{wrong}; side, channels and trunk must be whole numbers, got {numbers}")
    side, channels, trunk = numbers
    if trunk not in (0, 1, 2):
        raise CheckpointError(f"{wrong}; trunk must be 0, 1 or 2, got {trunk}")
    try:
        require_side(side)
        return SmallShape(channels=channels, trunk=cast(Size, trunk)), side
    except SettingsError as error:
        raise CheckpointError(f"{wrong} ({error}); get the folder again from its source") from None


def load_small(folder: Path, name: str, side: int | None = None, family: Family | None = None) -> SmallBackbone:
    """Return the backbone that `save_small` wrote, in float32, for slices of `side` pixels (None: its usual side).

    Raises CheckpointError where the files do not belong together or are damaged.
    """
    shape, usual_side = read_shape(folder, name)
    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"backbone {name!r}: {folder / 'model.safetensors'} cannot be read ({error})") from None
    model = small_model(shape, side or usual_side)
    load_weights(model, state, name)
    return SmallBackbone(model, name, family or FAMILIES["handful-small"], usual_side)


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Write all weights into the model; CheckpointError where one is missing, unknown or of another shape."""
    own = model.state_dict()
    faults = sorted(own.keys() ^ state.keys())
    faults += sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if faults:
        raise CheckpointError(
            f"backbone {name!r}: {len(faults)} weights do not fit its config.json, {faults[0]} among them; "
            "get the folder again from its source"
        )
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})


def _config(shape: SmallShape, side: int) -> Sam2VideoConfig:
    """Return the configuration of the parts of SAM 2; its Hiera, as small as can be, is replaced."""
    channels, cells = shape.channels, side // STRIDE
    hiera: dict[str, Any] = {
        "model_type": "sam2_hiera_det_model",
        "image_size": [side, side],
        "hidden_size": 8,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 1, 1],
        "embed_dim_per_stage": [8, 8, 8, 8],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [8, 4, 8, 4],
        "global_attention_blocks": [],
    }
    return Sam2VideoConfig(
        image_size=side,
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": hiera,
            "backbone_channel_list": [8, 8, 8, 8],
            "backbone_feature_sizes": [[8 * cells, 8 * cells], [2 * cells, 2 * cells], [cells, cells]],
            "fpn_hidden_size": channels,
        },
        prompt_encoder_config={
            "hidden_size": channels,
            "image_size": side,
            "patch_size": STRIDE,
            "mask_input_channels": MASK_CHANNELS,
        },
        **head_and_memory(channels, cells),
    )


def _enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return the coarse level at the size of the fine one."""
    return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
