"""The U-Net itself: MONAI's DynUNet, or a decoder on a pre-trained encoder, shaped by the slices of a support set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from handful.backbones.efficientnet import EfficientNetLite, imagenet_encoder
from handful.backbones.framing import PixelPolicy, colour_shares
from handful.data.slice_grid import SliceGrid
from handful.errors import SettingsError
from handful.methods.learned import Learned
from handful.tuning.seeds import seeded

Encoder = Literal["none", "imagenet"]
"""What the contracting path has learned before the first label: nothing, or ImageNet."""
IMAGENET_PIXELS = PixelPolicy(resize="stretch")
SMALLEST, LARGEST = 32, 4096
"""Pixels along the square of a plan, and largest number that may be in one."""
MOST_STAGES, MOST_SEQUENCES = 8, 64
WIDTHS = (1.0, 1.5, 2.5, 4.0, 8.0)
"""Channels of the decoder on a pre-trained encoder, finest stage first, as multiples of those of the finest."""


@dataclass(frozen=True)
class StackShape:
    """The slices of one scan."""

    count: int
    size: tuple[int, int]
    ratio: float
    """Their distance over the edge of a pixel that were the whole slice."""

    @classmethod
    def of(cls, grid: SliceGrid) -> StackShape:
        between, row, column = grid.spacing
        height, width = grid.size
        return cls(len(grid), grid.size, between / math.sqrt(row * height * column * width))


@dataclass(frozen=True)
class NetPlan:
    """The shape of the net, chosen from the slices of the support set."""

    side: int
    depth: int
    """Slices of a stack; 1 for a net of single slices."""
    channels: int
    """Of the finest stage."""
    encoder: Encoder
    mirror: bool
    """Whether it has learned from mirrored slices too, so that its output is the mean of both."""
    kernels: tuple[int, ...]
    """Extent of each stage's kernels from slice to slice; within slices it is 3."""
    strides: tuple[int, ...]
    """Step of each stage from slice to slice; within slices it is 1, then 2."""
    sequences: int = 0
    """Number of sequences that are the channels of a slice; 0 for grey and colour."""

    @classmethod
    def of(
        cls,
        stacks: Sequence[StackShape],
        side: int,
        depth: int,
        channels: int = 16,
        encoder: Encoder = "none",
        mirror: bool = False,
        sequences: int = 0,
    ) -> NetPlan:
        """Stages down to 4 pixels, at most 8; across slices as far as these are near enough to one another."""
        stages = 1
        while side % 2**stages == 0 and side // 2**stages >= 4 and stages < MOST_STAGES:
            stages += 1
        if depth == 1:
            return cls(side, 1, channels, encoder, mirror, (1,) * stages, (1,) * stages, sequences)
        if max(stack.count for stack in stacks) == 1:
            raise SettingsError("dims=3 wants volumes, and every support case is a single slice; set dims=2")
        ratios = sorted(stack.ratio * side for stack in stacks)
        kernels, strides = _kernels_and_strides(ratios[len(ratios) // 2], depth, stages)
        return cls(side, depth, channels, encoder, mirror, kernels, strides, sequences)

    def pack(self) -> Int[Tensor, " p"]:
        encoder = get_args(Encoder).index(self.encoder)
        fixed = [self.side, self.depth, self.channels, encoder, int(self.mirror)]
        return torch.tensor([*fixed, *self.kernels, *self.strides, *([self.sequences] if self.sequences else [])])

    @classmethod
    def unpack(cls, packed: Int[Tensor, " p"]) -> NetPlan:
        """The inverse of `pack`. Raises SettingsError for numbers that no plan has."""
        side, depth, channels, encoder, mirror, *rest = (
            Learned({"plan": packed}).whole("plan", "p", high=LARGEST).tolist()
        )
        sequences = rest.pop() if len(rest) % 2 else 0
        kernels, strides = tuple(rest[: len(rest) // 2]), tuple(rest[len(rest) // 2 :])
        stages = len(kernels)
        flat = depth == 1 and set(kernels) | set(strides) == {1}
        stacked = depth > 1 and encoder == 0 and depth % 4 == 0 and set(kernels) <= {1, 3} and set(strides) <= {1, 2}
        if not (
            (flat or stacked)
            and len(strides) == stages <= MOST_STAGES
            and strides[0] == 1
            and depth % math.prod(strides) == 0
            and side >= SMALLEST
            and side % 2 ** (stages - 1) == 0
            and channels >= 1
            and encoder < len(get_args(Encoder))
            and mirror <= 1
            and sequences <= MOST_SEQUENCES
        ):
            raise SettingsError(f"tensor 'plan' {packed.tolist()} describes no U-Net")
        return cls(side, depth, channels, get_args(Encoder)[encoder], bool(mirror), kernels, strides, sequences)


def _kernels_and_strides(ratio: float, depth: int, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernels and strides from slice to slice: as within them once slices are less than 2 pixels apart.

    `ratio` is their distance in pixels of the finest stage; a stage that halves pixels alone halves it.
    """
    kernels, strides = [], []
    for stage in range(stages):
        halves = stage > 0 and ratio < 2 and depth % 2 == 0 and depth > 4
        if stage > 0 and not halves:
            ratio /= 2
        depth = depth // 2 if halves else depth
        kernels.append(3 if ratio < 2 else 1)
        strides.append(2 if halves else 1)
    return tuple(kernels), tuple(strides)


class Net(nn.Module, ABC):
    """Between slices in [0, 1] and logits less that of the background."""

    def __init__(self, plan: NetPlan) -> None:
        super().__init__()
        self.plan = plan

    @property
    def inputs(self) -> int:
        """Channels that the first convolution takes."""
        return self.plan.sequences or 3

    def standardised(self, pixels: Float[Tensor, "b c *s"]) -> Float[Tensor, "b i *s"]:
        """The input of the first convolution, of zero mean and unit deviation per slice or stack.

        Each sequence has its own mean and deviation. Other channels have them together, and grey is repeated.
        """
        return _scaled(pixels, 2) if self.plan.sequences else standardised(pixels)

    def forward(self, stacks: Float[Tensor, "b c d s s"]) -> Float[Tensor, "b k d s s"]:
        """Logits of each label."""
        return self.exits(stacks)[0]

    @abstractmethod
    def exits(self, stacks: Float[Tensor, "b c d s s"]) -> list[Float[Tensor, "b k _ _ _"]]:
        """Logits of each label at each exit, finest first; while training under deep supervision there are several.

        A coarser exit has fewer pixels, and may have fewer slices, each time an integer part.
        """

    def drop_training_state(self) -> None:
        """Drops what the net keeps of its last training step."""


class PlainNet(Net):
    """MONAI's DynUNet, from random weights."""

    def __init__(self, plan: NetPlan, labels: int, deep_supervision: bool, seed: int) -> None:
        from monai.networks.nets import DynUNet  # seconds, not needed by other methods

        super().__init__(plan)
        stages, flat = len(plan.strides), plan.depth == 1
        within = [1] + [2] * (stages - 1)
        strides = within if flat else [[z, s, s] for z, s in zip(plan.strides, within, strict=True)]
        with seeded(seed):
            self.unet = DynUNet(
                spatial_dims=2 if flat else 3,
                in_channels=self.inputs,
                out_channels=labels + 1,
                kernel_size=[3] * stages if flat else [[kernel, 3, 3] for kernel in plan.kernels],
                strides=strides,
                upsample_kernel_size=strides[1:],
                filters=[plan.channels * min(2**stage, 16) for stage in range(stages)],
                deep_supervision=deep_supervision,
                deep_supr_num=min(3, stages - 2),
            )

    def exits(self, stacks: Float[Tensor, "b c d s s"]) -> list[Float[Tensor, "b k _ _ _"]]:
        shown, flat = self.standardised(stacks), self.plan.depth == 1
        # DynUNet itself enlarges its coarse exits, which takes time and, with many labels, memory
        finest: Tensor = self.unet.output_block(self.unet.skip_layers(shown[:, :, 0] if flat else shown))
        coarser = self.unet.heads if self.training and self.unet.deep_supervision else []
        return [_less_background(logits[:, :, None] if flat else logits) for logits in (finest, *coarser)]

    def contracting_path(self) -> nn.Sequential:
        """The very modules of the net."""
        return nn.Sequential(self.unet.input_block, *self.unet.downsamples, self.unet.bottleneck)

    def drop_training_state(self) -> None:
        """Drops the maps that DynUNet keeps of its last step, and their graph with them."""
        self.unet.heads[:] = [torch.zeros(1)] * len(self.unet.heads)


class PretrainedNet(Net):
    """A U-Net for single slices whose contracting path is EfficientNet-Lite, which knows ImageNet's pictures.

    A convolution at full resolution is added, for the encoder's finest features have half of it.
    """

    def __init__(self, plan: NetPlan, labels: int, deep_supervision: bool, seed: int, pretrained: bool = True) -> None:
        """`pretrained` is False where the weights are to be loaded from elsewhere."""
        super().__init__(plan)
        self.deep_supervision = deep_supervision
        with seeded(seed):
            self.encoder = imagenet_encoder() if pretrained else EfficientNetLite()
            widths = [round(plan.channels * factor) for factor in WIDTHS]
            self.full = _two_convolutions(self.inputs, widths[0])
            skips = [widths[0], *self.encoder.channels[:-1]]
            below = [*widths[1:], self.encoder.channels[-1]]
            self.ups = nn.ModuleList(
                _two_convolutions(deep + skip, wide) for deep, skip, wide in zip(below, skips, widths, strict=True)
            )
            self.heads = nn.ModuleList(
                nn.Conv2d(wide, labels + 1, 1) for wide in widths[: 4 if deep_supervision else 1]
            )
        self.colours = _colours_of(plan.sequences) if plan.sequences else nn.Identity()

    def exits(self, stacks: Float[Tensor, "b c 1 s s"]) -> list[Float[Tensor, "b k 1 _ _"]]:
        slices = stacks[:, :, 0]
        shown = IMAGENET_PIXELS.encoder_input(self.colours(slices), slices.shape[-1])
        skips = [self.full(_pixel_by_pixel(self.standardised(slices))), *self.encoder(_pixel_by_pixel(shown))]
        now = skips.pop()
        found: list[Tensor] = []
        for up in reversed(self.ups):
            skip = skips.pop()
            now = up(torch.cat([_enlarged(now, skip), skip], dim=1))
            found.append(now)
        heads = self.heads if self.training else self.heads[:1]
        return [_less_background(head(maps)[:, :, None]) for head, maps in zip(heads, reversed(found), strict=False)]


class InstanceNorm(nn.InstanceNorm2d):
    """Of zero mean and unit deviation per slice and channel, then scaled and shifted by learned numbers.

    On CPUs torch's own form first moves the channels apart, which takes longer than the rest of it.
    """

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if maps.device.type != "cpu" or not maps.is_contiguous(memory_format=torch.channels_last):
            return super().forward(maps)
        alone = (
            F.batch_norm(one, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for one in torch.split(maps, 1)
        )
        return torch.cat(list(alone))


def _two_convolutions(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, bias=False),
            InstanceNorm(after, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


def _pixel_by_pixel(maps: Float[Tensor, "n c h w"]) -> Tensor:
    """With the channels of a pixel side by side in memory, for which CPUs have the faster convolutions.

    Grey slices have to be repeated before: of a single channel, both orders are one to torch.
    """
    return maps.contiguous(memory_format=torch.channels_last)


def _enlarged(maps: Float[Tensor, "n c h w"], like: Float[Tensor, "n d rows columns"]) -> Tensor:
    """At the size of `like`, by linear interpolation in float32, which CPUs do faster than in bfloat16."""
    with torch.autocast(maps.device.type, enabled=False):
        found = F.interpolate(maps.float(), size=like.shape[-2:], mode="bilinear", align_corners=False)
    return found.to(maps.dtype)


def _less_background(logits: Float[Tensor, "b l *s"]) -> Float[Tensor, "b k *s"]:
    return logits[:, 1:] - logits[:, :1]


def _colours_of(sequences: int) -> nn.Conv2d:
    """A learned mixture of sequences as three colours; at the start that which a backbone is given."""
    mixture = nn.Conv2d(sequences, 3, 1, bias=False)
    mixture.weight = nn.Parameter(colour_shares(sequences)[..., None, None].clone())
    return mixture


def standardised(pixels: Float[Tensor, "b c *s"]) -> Float[Tensor, "b 3 *s"]:
    """Three channels (grey is repeated), of zero mean and unit deviation a slice or stack, all channels together."""
    scaled = _scaled(pixels, 1)
    return scaled if scaled.shape[1] == 3 else scaled.expand(-1, 3, *[-1] * (pixels.ndim - 2))


def _scaled(pixels: Float[Tensor, "b c *s"], first: int) -> Float[Tensor, "b c *s"]:
    """Of zero mean and unit deviation over the axes from `first` on."""
    axes = tuple(range(first, pixels.ndim))
    centred = pixels - pixels.mean(dim=axes, keepdim=True)
    return centred / centred.square().mean(dim=axes, keepdim=True).sqrt().clamp_min(1e-3)
