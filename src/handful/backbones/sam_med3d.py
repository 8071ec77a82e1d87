"""SAM-Med3D (Wang et al., ECCV workshops 2024, arXiv 2310.15161): SAM for volumes, prompted with clicks in 3D.

It is no `Backbone`, whose input are slices. A cube of 128 voxels a side becomes 8 × 8 × 8 embeddings by a ViT with
three-dimensional patches, windows and relative positions. Clicks and the mask of the step before are embedded, and
SAM's two-way transformer decodes a mask of 32 voxels a side. Written from the paper and the names and shapes of the
authors' weights; the authors' details that change the numbers are kept:

* The first two axes of the positions of the embeddings are swapped, and those of clicks are not.
* Positions are encoded as sine, cosine and sine again.
* Windows are larger than the grid of embeddings. The missing ones are keys with the layer's bias.
* Terms of relative positions are added to scores of other queries and keys than they are computed for, see `_relative`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamFeedForward, SamTwoWayTransformer

from handful.backbones.official import filled, read_state
from handful.backbones.official_names import from_sam_med3d
from handful.backbones.two_way import two_way
from handful.errors import CheckpointError

CANDIDATES = 4
"""Masks of the decoder: the single one and three candidates."""
REDUCTION = 4
"""Input voxels along each side of a voxel of the mask."""


@dataclass(frozen=True, kw_only=True)
class SamMed3dShape:
    """Sizes of the model; the defaults are the published ones."""

    side: int = 128
    """Voxels along the input cube."""
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Numbers of the blocks without windows."""
    window: int = 14
    channels: int = 384
    """Of the embeddings, divisible by 24."""
    mask_channels: int = 16
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_width: int = 256

    @property
    def grid(self) -> int:
        """Embeddings along each side of the cube."""
        return self.side // self.patch

    @property
    def mask_side(self) -> int:
        """Voxels along each side of a mask."""
        return self.side // REDUCTION


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """Masks of k objects."""

    logits: Float[Tensor, "k m m m"]
    iou: Float[Tensor, " k"]
    """Predicted IoU; not bounded."""


class SamMed3d(nn.Module):
    """The model. Input cubes are grey, with the mean 0 and the deviation 1 of their voxels above 0."""

    def __init__(self, shape: SamMed3dShape) -> None:
        super().__init__()
        self.shape = shape
        self.vision_encoder = _Encoder(shape)
        self.prompt_encoder = _PromptEncoder(shape)
        self.mask_decoder = _Decoder(shape)

    @property
    def device(self) -> torch.device:
        return self.vision_encoder.pos_embed.device

    @torch.no_grad()
    def encode(self, cube: Float[Tensor, "side side side"]) -> Float[Tensor, "1 c g g g"]:
        """The embeddings of a cube."""
        embeddings: Tensor = self.vision_encoder(cube[None, None].to(self.device))
        return embeddings

    @torch.no_grad()
    def decode(
        self,
        embeddings: Float[Tensor, "1 c g g g"],
        clicks: Float[Tensor, "k p 3"],
        positive: Bool[Tensor, "k p"],
        previous: Float[Tensor, "k m m m"] | None = None,
    ) -> VolumePrediction:
        """The masks of k objects, each prompted with p clicks.

        Clicks are in voxels of the cube; (0, 0, 0) is the middle of the first one. `previous` are the logits of the
        step before. None stands for logits of 0, which the authors give with the first click.
        """
        if previous is None:
            previous = torch.zeros(len(clicks), *[self.shape.mask_side] * 3)
        tokens = self.prompt_encoder.tokens(clicks.to(self.device), positive.to(self.device))
        dense = self.prompt_encoder.mask_embed(previous[:, None].to(self.device))
        return self.mask_decoder.decode(embeddings + dense, self.prompt_encoder.grid_positions(), tokens)


def load_sam_med3d(path: str | Path) -> SamMed3d:
    """The model in a .pth, .pt or .safetensors file with the authors' key names; float32, frozen.

    Nothing but tensors is unpickled. Raises CheckpointError for a file that needs more, and for any other model.
    """
    return sam_med3d_of(read_state(Path(path)), str(path))


def sam_med3d_of(state: Mapping[str, Tensor], name: str) -> SamMed3d:
    """As `load_sam_med3d`, from tensors in memory; `name` stands in errors."""
    position = state.get("image_encoder.pos_embed")
    if position is None or position.dim() != 5:
        raise CheckpointError(f"{name} is no SAM-Med3D; for models of slices, use load_backbone")
    try:
        shape = _shape_of(state)
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{name} lacks {error.args[0]!r}, which SAM-Med3D has; fetch it again") from error
    model = filled(SamMed3d(shape), from_sam_med3d(state), name)
    return model.eval().requires_grad_(False)


def _shape_of(state: Mapping[str, Tensor]) -> SamMed3dShape:
    """The sizes of the weights."""
    lead = "image_encoder."
    grid, width = (int(state[f"{lead}pos_embed"].shape[axis]) for axis in (1, 4))
    depth = sum(key.startswith(f"{lead}blocks.") and key.endswith(".norm1.weight") for key in state)
    reach = [(len(state[f"{lead}blocks.{number}.attn.rel_pos_d"]) + 1) // 2 for number in range(depth)]
    patch = int(state[f"{lead}patch_embed.proj.weight"].shape[2])
    return SamMed3dShape(
        side=grid * patch,
        patch=patch,
        width=width,
        depth=depth,
        heads=width // int(state[f"{lead}blocks.0.attn.rel_pos_d"].shape[1]),
        global_blocks=tuple(number for number, one in enumerate(reach) if one == grid),
        window=max(reach),
        channels=int(state[f"{lead}neck.0.weight"].shape[0]),
        mask_channels=int(state["prompt_encoder.mask_downscaling.3.weight"].shape[0]),
        decoder_mlp=int(state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]),
        iou_width=int(state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0]),
    )


class _ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, cubes: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n c d h w"]:
        last = cubes.movedim(1, -1)
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, 1e-6).movedim(-1, 1)


class _Encoder(nn.Module):
    """The image encoder: (n, 1, side, side, side) to (n, c, g, g, g)."""

    def __init__(self, shape: SamMed3dShape) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv3d(1, shape.width, shape.patch, stride=shape.patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, *[shape.grid] * 3, shape.width))
        self.layers = nn.ModuleList(
            _Block(shape, shape.grid if number in shape.global_blocks else shape.window)
            for number in range(shape.depth)
        )
        self.neck = nn.ModuleDict(
            {
                "conv1": nn.Conv3d(shape.width, shape.channels, 1, bias=False),
                "layer_norm1": _ChannelNorm(shape.channels),
                "conv2": nn.Conv3d(shape.channels, shape.channels, 3, padding=1, bias=False),
                "layer_norm2": _ChannelNorm(shape.channels),
            }
        )

    def forward(self, cubes: Float[Tensor, "n 1 d h w"]) -> Float[Tensor, "n c g g g"]:
        tokens = self.patch_embed["projection"](cubes).movedim(1, -1) + self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens)
        embeddings: Tensor = tokens.movedim(-1, 1)
        for part in self.neck.values():
            embeddings = part(embeddings)
        return embeddings


class _Block(nn.Module):
    def __init__(self, shape: SamMed3dShape, reach: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = _Attention(shape.width, shape.heads, reach)
        self.layer_norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"lin1": nn.Linear(shape.width, 4 * shape.width), "lin2": nn.Linear(4 * shape.width, shape.width)}
        )

    def forward(self, tokens: Float[Tensor, "n d h w c"]) -> Float[Tensor, "n d h w c"]:
        tokens = tokens + self.attn(self.layer_norm1(tokens))
        out: Tensor = tokens + self.mlp["lin2"](F.gelu(self.mlp["lin1"](self.layer_norm2(tokens))))
        return out


class _Attention(nn.Module):
    """Attention of a cube of tokens within one window of `reach` tokens a side, of which those outside are zeros."""

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        for axis in "dhw":
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(torch.zeros(2 * reach - 1, width // heads)))

    def forward(self, tokens: Float[Tensor, "n d h w c"]) -> Float[Tensor, "n d h w c"]:
        width, side = tokens.shape[-1], tokens.shape[1]
        window = F.pad(tokens, (0, 0) + 3 * (0, self.reach - side))
        weight, bias = self.qkv.weight, self.qkv.bias
        key, value = F.linear(window, weight[width:], bias[width:]).chunk(2, dim=-1)
        rows = self._by_head(F.linear(window[:, :side, :side], weight[:width], bias[:width]))
        attended = F.scaled_dot_product_attention(
            rows[..., :side, :].flatten(2, 4),
            self._by_head(key).flatten(2, 4),
            self._by_head(value).flatten(2, 4),
            attn_mask=self._relative(rows),
        )
        together = rearrange(attended, "n a (d h w) c -> n d h w (a c)", d=side, h=side)
        projected: Tensor = self.proj(together)
        return projected

    def _by_head(self, tokens: Float[Tensor, "n d h w c"]) -> Float[Tensor, "n a d h w e"]:
        return rearrange(tokens, "n d h w (a e) -> n a d h w e", a=self.heads)

    def _relative(self, rows: Float[Tensor, "n a d h r e"]) -> Float[Tensor, "n a t u"]:
        """What relative positions add to the scores of the queries (d, h, w) and the keys (x, y, z) of the window.

        `rows` are the queries, along the last axis of the whole window. As in the authors' code, and so in their
        weights, the three terms are those of the query (d, h, w) and the place z, of (d, h, x) and z, and of (d, h, y)
        and z, where those of the query and x, y or z would be expected.
        """
        side, places = rows.shape[2], torch.arange(self.reach, device=rows.device)
        distance = places[:, None] - places[None] + self.reach - 1
        first, second, third = (self.get_parameter(f"rel_pos_{axis}")[distance] for axis in "dhw")
        of_query = torch.einsum("nadhwe,dze->nadhwz", rows[..., :side, :], first[:side])
        of_x = torch.einsum("nadhxe,hze->nadhxz", rows, second[:side])
        of_y = torch.einsum("nadhye,yze->nadhyz", rows, third)
        scores = of_query[..., None, None, :] + of_x[..., None, :, None, :] + of_y[..., None, None, :, :]
        return scores.flatten(5, 7).flatten(2, 4)


class _PromptEncoder(nn.Module):
    """Clicks to tokens, and masks to embeddings."""

    def __init__(self, shape: SamMed3dShape) -> None:
        super().__init__()
        self.side, self.grid = shape.side, shape.grid
        self.shared_embedding = nn.ParameterDict({"positional_embedding": torch.zeros(3, shape.channels // 3)})
        self.point_embed = nn.ModuleList(nn.Embedding(1, shape.channels) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, shape.channels)
        self.no_mask_embed = nn.Embedding(1, shape.channels)  # in the weights; a mask is always given
        self.mask_embed = _MaskEmbedding(shape)

    def tokens(self, clicks: Float[Tensor, "k p 3"], positive: Bool[Tensor, "k p"]) -> Float[Tensor, "k t c"]:
        """A token per click, then the one that stands for no click."""
        kinds = torch.cat([kind.get_parameter("weight") for kind in self.point_embed])
        points = self._encoded((clicks + 0.5) / self.side) + kinds[positive.long()]
        return torch.cat([points, self.not_a_point_embed.weight.expand(len(clicks), 1, -1)], dim=1)

    def grid_positions(self) -> Float[Tensor, "t c"]:
        """The encoded positions of the embeddings; their first two axes are swapped, as in the authors' code."""
        middles = (torch.arange(self.grid, device=self.no_mask_embed.weight.device) + 0.5) / self.grid
        first, second, third = torch.meshgrid(middles, middles, middles, indexing="ij")
        return self._encoded(torch.stack([second, first, third], dim=-1)).flatten(0, 2)

    def _encoded(self, places: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """The encoding of places, given as fractions of the cube."""
        angles = 2 * math.pi * ((2 * places - 1) @ self.shared_embedding["positional_embedding"])
        return torch.cat([angles.sin(), angles.cos(), angles.sin()], dim=-1)


class _MaskEmbedding(nn.Module):
    """Logits of a mask to embeddings: (k, 1, m, m, m) to (k, c, g, g, g)."""

    def __init__(self, shape: SamMed3dShape) -> None:
        super().__init__()
        few = shape.mask_channels // 4
        self.conv1, self.layer_norm1 = nn.Conv3d(1, few, 2, stride=2), _ChannelNorm(few)
        self.conv2, self.layer_norm2 = nn.Conv3d(few, shape.mask_channels, 2, stride=2), _ChannelNorm(4 * few)
        self.conv3 = nn.Conv3d(shape.mask_channels, shape.channels, 1)

    def forward(self, masks: Float[Tensor, "k 1 m m m"]) -> Float[Tensor, "k c g g g"]:
        half = F.gelu(self.layer_norm1(self.conv1(masks)))
        embedded: Tensor = self.conv3(F.gelu(self.layer_norm2(self.conv2(half))))
        return embedded


class _Decoder(nn.Module):
    """The mask decoder; of its masks only the single one is used, as by the authors."""

    def __init__(self, shape: SamMed3dShape) -> None:
        super().__init__()
        c = shape.channels
        self.transformer = SamTwoWayTransformer(
            SamMaskDecoderConfig(
                hidden_size=c,
                mlp_dim=shape.decoder_mlp,
                num_attention_heads=shape.decoder_heads,
                layer_norm_eps=1e-5,
                attn_implementation="eager",
            )
        )
        self.iou_token, self.mask_tokens = nn.Embedding(1, c), nn.Embedding(CANDIDATES, c)
        self.upscale_conv1, self.upscale_layer_norm = nn.ConvTranspose3d(c, c // 4, 2, stride=2), _ChannelNorm(c // 4)
        self.upscale_conv2 = nn.ConvTranspose3d(c // 4, c // 8, 2, stride=2)
        self.output_hypernetworks_mlps = nn.ModuleList(SamFeedForward(c, c, c // 8, 3) for _ in range(CANDIDATES))
        self.iou_prediction_head = SamFeedForward(c, shape.iou_width, CANDIDATES, 3)

    def decode(
        self, image: Float[Tensor, "k c g g g"], positions: Float[Tensor, "t c"], tokens: Float[Tensor, "k p c"]
    ) -> VolumePrediction:
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(tokens), -1, -1)
        answers, seen = two_way(
            self.transformer,
            torch.cat([own, tokens], dim=1)[:, None],
            rearrange(image, "k c d h w -> k 1 (d h w) c"),
            positions,
        )
        grid = image.shape[-1]
        cubes = rearrange(seen[:, 0], "k (d h w) c -> k c d h w", d=grid, h=grid)
        half = F.gelu(self.upscale_layer_norm(self.upscale_conv1(cubes)))
        fine = F.gelu(self.upscale_conv2(half))
        weights = self.output_hypernetworks_mlps[0](answers[:, 0, 1])
        iou = self.iou_prediction_head(answers[:, 0, 0])[:, 0]
        return VolumePrediction(torch.einsum("kc,kcdhw->kdhw", weights, fine), iou)
