"""The U-Net itself: MONAI's DynUNet, with stages as nnU-Net plans them for the slices of a support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from handful.data.slice_grid import SliceGrid
from handful.errors import SettingsError

SMALLEST, GRANULE = 64, 32
"""Pixels: the least a side is chosen as, and what it is a multiple of then."""


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
    """The net's shape as the support asks for it."""

    side: int
    depth: int
    """Slices of a stack; 1 for a net of single slices."""
    kernels: tuple[int, ...]
    """Extent of each stage's kernels from slice to slice; within slices it is 3."""
    strides: tuple[int, ...]
    """Step of each stage from slice to slice; within slices it is 1, then 2."""

    @classmethod
    def of(cls, stacks: Sequence[StackShape], depth: int, side: int | None, largest: int) -> NetPlan:
        """Stages down to 4 pixels, at most 8; across slices as far as these are near enough to one another.

        `side` is chosen to fit the slices where it is None, and then at most `largest`.
        """
        side = side or _side([edge for stack in stacks for edge in stack.size], largest)
        stages = 1
        while side % 2**stages == 0 and side // 2**stages >= 4 and stages < 8:
            stages += 1
        if depth == 1:
            return cls(side, 1, (1,) * stages, (1,) * stages)
        if max(stack.count for stack in stacks) == 1:
            raise SettingsError("dims=3 wants volumes, and every support case is a single slice; set dims=2")
        ratios = sorted(stack.ratio * side for stack in stacks)
        return cls(side, depth, *_across(ratios[len(ratios) // 2], depth, stages))

    def pack(self) -> Int[Tensor, " p"]:
        return torch.tensor([self.side, self.depth, *self.kernels, *self.strides])

    @classmethod
    def unpack(cls, packed: Int[Tensor, " p"]) -> NetPlan:
        side, depth, *rest = packed.tolist()
        return cls(side, depth, tuple(rest[: len(rest) // 2]), tuple(rest[len(rest) // 2 :]))


def _side(edges: Sequence[int], most: int) -> int:
    """The longest edge, rounded up, at most `most` rounded down to a multiple of 16."""
    chosen = max(SMALLEST, math.ceil(max(edges) / GRANULE) * GRANULE)
    return min(chosen, max(32, most // 16 * 16))


def _across(ratio: float, depth: int, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
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


class Net(nn.Module):
    """MONAI's DynUNet between slices in [0, 1] and logits less that of the background."""

    def __init__(self, plan: NetPlan, labels: int, channels: int, deep_supervision: bool, seed: int) -> None:
        from monai.networks.nets import DynUNet  # seconds, not needed by other methods

        super().__init__()
        self.plan = plan
        stages, flat = len(plan.strides), plan.depth == 1
        within = [1] + [2] * (stages - 1)
        strides = within if flat else [[z, s, s] for z, s in zip(plan.strides, within, strict=True)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.unet = DynUNet(
                spatial_dims=2 if flat else 3,
                in_channels=3,
                out_channels=labels + 1,
                kernel_size=[3] * stages if flat else [[kernel, 3, 3] for kernel in plan.kernels],
                strides=strides,
                upsample_kernel_size=strides[1:],
                filters=[channels * min(2**stage, 16) for stage in range(stages)],
                deep_supervision=deep_supervision,
                deep_supr_num=min(3, stages - 2),
            )

    def forward(self, stacks: Float[Tensor, "b c d s s"]) -> Float[Tensor, "b e k d s s"]:
        """Logits of each label; while training under deep supervision of e exits, finest first, else e is 1."""
        shown = standardised(stacks)
        said: Tensor = self.unet(shown[:, :, 0] if self.plan.depth == 1 else shown)
        if self.plan.depth == 1:
            said = said[..., None, :, :]
        exits = said if self.training and self.unet.deep_supervision else said[:, None]
        return exits[:, :, 1:] - exits[:, :, :1]

    def encoder(self) -> nn.Sequential:
        """The contracting path, the very modules of the net."""
        return nn.Sequential(self.unet.input_block, *self.unet.downsamples, self.unet.bottleneck)

    def let_go(self) -> None:
        """Drops the maps that DynUNet keeps of its last step, and their graph with them."""
        self.unet.heads[:] = [torch.zeros(1)] * len(self.unet.heads)


def standardised(pixels: Float[Tensor, "b c *s"]) -> Float[Tensor, "b 3 *s"]:
    """Three channels (grey is repeated), of zero mean and unit deviation a slice or stack, all channels together."""
    axes = tuple(range(1, pixels.ndim))
    centred = pixels - pixels.mean(dim=axes, keepdim=True)
    scaled = centred / centred.square().mean(dim=axes, keepdim=True).sqrt().clamp_min(1e-3)
    return scaled if scaled.shape[1] == 3 else scaled.expand(-1, 3, *[-1] * (pixels.ndim - 2))
