"""TinyViT, the image encoder of MobileSAM, in plain PyTorch.

After Wu et al., "TinyViT" (ECCV 2022, arXiv 2207.10666), in the form that Zhang et al. distilled from SAM, "Faster
Segment Anything" (arXiv 2306.14289): the last of three downsamplings keeps the resolution, and SAM's neck follows.
Parameters have the authors' names. Only rows of `qkv` are in another order: queries, keys and values of all heads one
after the other, as in SAM, where the authors have them head by head (see `official_names`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamLayerNorm, SamVisionEncoderOutput

EXPANSION = 4
"""Hidden channels of a convolution block, and of an MLP, per channel."""


@dataclass(frozen=True, kw_only=True)
class TinyVitShape:
    """Sizes of the four stages; the first consists of convolutions, the others of attention in windows."""

    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int] = (4, 5, 10)
    """Of the stages with attention."""
    windows: tuple[int, int, int] = (7, 14, 7)
    """Cells along the windows of attention."""
    channels: int = 256
    """Of the embeddings."""


class TinyVit(nn.Module):
    """The image encoder: pixels (n, 3, s, s) to embeddings of a sixteenth of the side, for any s divisible by 16."""

    def __init__(self, shape: TinyVitShape) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(shape.widths[0])
        following = (*shape.widths[1:], None)
        stages: list[nn.Module] = [Stage([ConvBlock(shape.widths[0]) for _ in range(shape.depths[0])])]
        for width, depth, heads, window in zip(
            shape.widths[1:], shape.depths[1:], shape.heads, shape.windows, strict=True
        ):
            stages.append(Stage([AttentionBlock(width, heads, window) for _ in range(depth)]))
        for number, (stage, width, out) in enumerate(zip(stages, shape.widths, following, strict=True)):
            if out is not None:
                stage.downsample = Downsampling(width, out, stride=1 if number == 2 else 2)
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(shape.widths[-1], shape.channels, 1, bias=False),
            SamLayerNorm(shape.channels, data_format="channels_first"),
            nn.Conv2d(shape.channels, shape.channels, 3, padding=1, bias=False),
            SamLayerNorm(shape.channels, data_format="channels_first"),
        )

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> SamVisionEncoderOutput:
        maps = self.patch_embed(pixels)
        for stage in self.layers:
            maps = stage(maps)
        return SamVisionEncoderOutput(last_hidden_state=self.neck(maps))


class Stage(nn.Module):
    """Blocks of one resolution, then the step to the next one, if any."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample: nn.Module | None = None

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        for block in self.blocks:
            maps = block(maps)
        return maps if self.downsample is None else self.downsample(maps)


class ConvNorm(nn.Sequential):
    """A convolution without bias, and a batch norm."""

    def __init__(self, into: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))


class PatchEmbedding(nn.Module):
    """Two convolutions to a quarter of the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, width // 2, 3, 2), nn.GELU(), ConvNorm(width // 2, width, 3, 2))

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n c h w"]:
        maps: Tensor = self.seq(pixels)
        return maps


class ConvBlock(nn.Module):
    """An inverted residual block (MobileNetV2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        inner: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(maps)))))
        return F.gelu(inner + maps)


class Downsampling(nn.Module):
    """To the next stage's width, and with a stride of 2 to half the resolution."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, out)
        self.conv2 = ConvNorm(out, out, 3, stride, groups=out)
        self.conv3 = ConvNorm(out, out)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        smaller: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(maps)))))
        return smaller


class AttentionBlock(nn.Module):
    """Attention in windows, a depthwise convolution, and an MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        maps = self.local_conv(maps + self._attended(maps))
        tokens = rearrange(maps, "n c h w -> n h w c")
        out: Tensor = maps + rearrange(self.mlp(tokens), "n h w c -> n c h w")
        return out

    def _attended(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Windows over the edge are filled with zeros, which take part in the attention, as the authors have it."""
        h, w = maps.shape[-2:]
        side = self.window
        padded = F.pad(maps, (0, -w % side, 0, -h % side))
        rows, columns = padded.shape[-2] // side, padded.shape[-1] // side
        windows = rearrange(padded, "n c (r i) (s j) -> (n r s) (i j) c", i=side, j=side)
        attended: Tensor = rearrange(
            self.attn(windows), "(n r s) (i j) c -> n c (r i) (s j)", r=rows, s=columns, i=side, j=side
        )
        return attended[..., :h, :w]


class WindowAttention(nn.Module):
    """Attention among the cells of a window, with a learned bias per head and distance."""

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))
        self.register_buffer("offsets", _offsets(window), persistent=False)

    def forward(self, tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        parts = rearrange(
            self.qkv(self.norm(tokens)), "n t (part heads d) -> part n heads t d", part=3, heads=self.heads
        )
        query, key, value = parts.unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, self.attention_biases[:, self.offsets])
        out: Tensor = self.proj(rearrange(attended, "n heads t d -> n t (heads d)"))
        return out


class Mlp(nn.Module):
    """A norm and two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return out


def _offsets(window: int) -> Tensor:
    """For each pair of cells of a window, the column of the bias table: how far apart they are in rows and columns.

    Columns are numbered in the order in which the pairs of the authors' double loop first have such a distance.
    """
    cells = list(product(range(window), range(window)))
    distances = [(abs(a - c), abs(b - d)) for a, b in cells for c, d in cells]
    number = {distance: i for i, distance in enumerate(dict.fromkeys(distances))}
    return torch.tensor([number[distance] for distance in distances]).reshape(len(cells), len(cells))
