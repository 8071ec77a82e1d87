"""U-Net: nnU-Net's architecture trained from scratch on the labelled slices; the baseline a foundation model must beat.

After Isensee, Jaeger, Kohl, Petersen and Maier-Hein, "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation" (Nature Methods 2021), with MONAI's DynUNet as the network: stages down to 4 pixels,
instance norm, leaky ReLU, deep supervision, Dice over the batch with cross entropy. Its encoder may first be trained
by SimCLR (Chen, Kornblith, Norouzi and Hinton, ICML 2020) on slices that nobody labelled. The backbone is never asked:
the net works on its device and looks at no more pixels than it would.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.backbones.framing import from_square, into_square
from handful.data.cases import Case
from handful.data.files import read_cohort
from handful.data.slice_grid import SliceGrid
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels
from handful.errors import SettingsError
from handful.jobs.digests import digest_of
from handful.jobs.progress import Run
from handful.methods.base import CHUNK, Method, Segmenter, below, drawn, has_signal, to_classes
from handful.methods.encoded_support import integer
from handful.tuning.augment import augmented, coarsened
from handful.tuning.loop import History, TrainConfig, train
from handful.tuning.losses import dice_ce, fading
from handful.tuning.trainable import load_trainable_state, trainable_state

UNKNOWN = -1
"""Class number of pixels that nobody has labelled."""
SMALLEST, GRANULE = 64, 32
"""Pixels: the least a side is chosen as, and what it is a multiple of then."""
MOST_UNLABELLED = 4096
"""Slices kept in memory for SimCLR; a larger cohort gives evenly spaced ones."""


@dataclass(frozen=True, kw_only=True)
class UNet(Method):
    """A U-Net trained on the labelled slices alone; of the backbone it takes the device and the largest side."""

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    dims: Literal[2, 3] = 2
    """2: slice by slice. 3: through stacks of neighbouring slices; wants volumes of many slices, and a GPU."""
    side: int | None = None
    """Pixels along the square that slices are stretched onto, a multiple of 16; None takes the longest edge of the
    support's slices, as further pixels would hold nothing new, and at most the backbone's own side."""
    depth: int = 16
    """Slices of a stack, a multiple of 4, where `dims` is 3; shorter volumes repeat their outermost slices."""
    channels: int = 16
    """Channels of the finest stage; they double with every stage, up to 16 times as many. nnU-Net has 32."""
    deep_supervision: bool = True
    """Judge the three next coarser stages of the decoder as well, each with half the weight of the one before."""
    elastic: float = 0.0
    """Strongest bending of a training slice, as a share of its side; 0, as in nnU-Net, leaves it straight."""
    batch: int = 8
    """Slices (or stacks) a training step; every other one holds a label drawn at random, the rest are any."""
    balance: float = 0.0
    """How much more a pixel of a rare class counts than one of a common one in the cross entropy: the power of how many
    times rarer it is, at the start of the training; it falls to 0 towards its end. At 0, as in nnU-Net, all count
    alike; in short trainings 0.5 finds labels of few pixels sooner."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=1000, learning_rate=5e-3))
    """Length and rate of the training."""
    pretrain: Literal["none", "simclr"] = "none"
    """What the encoder learns before: nothing, or by SimCLR to tell slices apart; only where `dims` is 2."""
    unlabelled: Path | None = None
    """Folder of a cohort whose images, never its labels, are used by SimCLR; None takes all slices of the support."""
    contrast_batch: int = 32
    """Slices that SimCLR tells apart at once; each is seen in two views."""
    contrast: TrainConfig = field(default_factory=lambda: TrainConfig(iterations=1000, learning_rate=1e-3))
    """Length and rate of SimCLR."""

    def __post_init__(self) -> None:
        for name, least in (("depth", 4), ("channels", 1), ("batch", 1), ("contrast_batch", 2)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.side is not None and (self.side < 32 or self.side % 16):
            raise SettingsError(f"side must be a multiple of 16 from 32 on, got {self.side}")
        if self.depth % 4:
            raise SettingsError(f"depth must be a multiple of 4, got {self.depth}")
        for name in ("elastic", "balance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.pretrain == "simclr" and self.dims == 3:
            raise SettingsError("SimCLR trains the encoder of single slices; set dims=2 or pretrain=none")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> UNetSegmenter:  # noqa: B008
        slicer = support.resolve(self.slicer)
        plan = Plan.of(self, support, slicer, backbone)
        simclr = self.pretrain == "simclr"
        with support.held() if simclr else nullcontext(support) as held:
            seen = _look(held, slicer, plan)
            slices = _unlabelled(self, held, slicer, plan.side) if simclr else torch.zeros(0)
        net = Net(plan, self, len(support.labels)).to(backbone.device)
        first, then = _phases(self, run, _fingerprint(self, plan, seen, slices))
        if simclr:
            pretrain_encoder(net, slices, self.contrast_batch, self.contrast, first)
        train(net, _Steps(self, plan, net, seen, len(support.labels)), self.train, then)
        net.let_go()
        return UNetSegmenter(support.labels, slicer, backbone, net)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> UNetSegmenter:
        net = Net(Plan.unpack(learned["plan"]), self, len(labels)).to(backbone.device)
        load_trainable_state(net, below("net", learned))
        return UNetSegmenter(labels, slicer, backbone, net)


class UNetSegmenter(Segmenter):
    """A trained net; one for stacks takes the slices it is given for neighbours, in their order."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone, net: Net) -> None:
        super().__init__(labels, slicer, backbone)
        self.net = net

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        if self.net.plan.depth == 1:
            return self._of_stacks(slices[:, :, None])[:, :, 0]
        blocks = list(_blocks(len(slices), self.net.plan.depth))
        return torch.cat([self._in_the_middle(slices[window], len(kept)) for kept, window in blocks])

    def segment(self, stack: SliceView) -> LabelMap:
        if self.net.plan.depth == 1:
            return super().segment(stack)
        return drawn(stack, self.labels, self._block_by_block(stack))

    def learned(self) -> dict[str, Tensor]:
        return {f"net/{name}": value for name, value in trainable_state(self.net).items()} | {
            "plan": self.net.plan.pack()
        }

    def _block_by_block(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Tensor]]:
        for kept, window in _blocks(len(stack), self.net.plan.depth):
            slices = stack.take(window).to(self.backbone.device)
            start = self.net.plan.depth // 4
            shown = has_signal(slices[start : start + len(kept)])
            yield kept, to_classes(self._in_the_middle(slices, len(kept))) * shown[:, None, None]

    def _in_the_middle(self, slices: Float[Tensor, "d c h w"], count: int) -> Float[Tensor, "n k h w"]:
        """Logits of `count` slices of a stack, from its first quarter on."""
        logits = self._of_stacks(rearrange(slices, "d c h w -> 1 c d h w"))
        start = self.net.plan.depth // 4
        return rearrange(logits[0, :, start : start + count], "k d h w -> d k h w")

    def _of_stacks(self, stacks: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        b, size = len(stacks), (stacks.shape[-2], stacks.shape[-1])
        square = into_square(rearrange(stacks, "b c d h w -> (b d) c h w"), self.net.plan.side)
        logits = self.net(rearrange(square, "(b d) c h w -> b c d h w", b=b))[:, 0]
        back = from_square(rearrange(logits, "b k d h w -> (b d) k h w"), size)
        return rearrange(back, "(b d) k h w -> b k d h w", b=b)


def _blocks(count: int, depth: int) -> Iterator[tuple[range, list[int]]]:
    """Numbers of the slices to be answered, half a stack at a time, and of those shown: a quarter more either side."""
    for start in range(0, count, depth // 2):
        kept = range(start, min(start + depth // 2, count))
        window = [min(max(start - depth // 4 + place, 0), count - 1) for place in range(depth)]
        yield kept, window


@dataclass(frozen=True)
class Plan:
    """The net's shape as the support asks for it."""

    side: int
    depth: int
    """Slices of a stack; 1 for a net of single slices."""
    kernels: tuple[int, ...]
    """Extent of each stage's kernels from slice to slice; within slices it is 3."""
    strides: tuple[int, ...]
    """Step of each stage from slice to slice; within slices it is 1, then 2."""

    @classmethod
    def of(cls, method: UNet, support: SupportSet, slicer: Slicer, backbone: Backbone) -> Plan:
        """Stages down to 4 pixels, at most 8; across slices as far as these are near enough to one another."""
        views = [_shape(slicer.grid(facts.geometry)) for facts in support.facts]
        side = method.side or _side([edge for _, size, _ in views for edge in size], backbone.side)
        stages = 1
        while side % 2**stages == 0 and side // 2**stages >= 4 and stages < 8:
            stages += 1
        if method.dims == 2:
            return cls(side, 1, (1,) * stages, (1,) * stages)
        if max(count for count, _, _ in views) == 1:
            raise SettingsError("dims=3 wants volumes, and every support case is a single slice; set dims=2")
        ratios = sorted(ratio * side for _, _, ratio in views)
        return cls(side, method.depth, *_across(ratios[len(ratios) // 2], method.depth, stages))

    def pack(self) -> Int[Tensor, " p"]:
        return torch.tensor([self.side, self.depth, *self.kernels, *self.strides])

    @classmethod
    def unpack(cls, packed: Int[Tensor, " p"]) -> Plan:
        side, depth, *rest = packed.tolist()
        return cls(side, depth, tuple(rest[: len(rest) // 2]), tuple(rest[len(rest) // 2 :]))


def _shape(view: SliceGrid) -> tuple[int, tuple[int, int], float]:
    """Number of slices, their size, and their distance over the edge of a pixel that were the whole slice."""
    between, row, column = view.spacing
    height, width = view.size
    return len(view), view.size, between / math.sqrt(row * height * column * width)


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

    def __init__(self, plan: Plan, method: UNet, labels: int) -> None:
        from monai.networks.nets import DynUNet  # seconds, not needed by other methods

        super().__init__()
        self.plan = plan
        stages, flat = len(plan.strides), plan.depth == 1
        within = [1] + [2] * (stages - 1)
        strides = within if flat else [[z, s, s] for z, s in zip(plan.strides, within, strict=True)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(method.train.seed)
            self.unet = DynUNet(
                spatial_dims=2 if flat else 3,
                in_channels=3,
                out_channels=labels + 1,
                kernel_size=[3] * stages if flat else [[kernel, 3, 3] for kernel in plan.kernels],
                strides=strides,
                upsample_kernel_size=strides[1:],
                filters=[method.channels * min(2**stage, 16) for stage in range(stages)],
                deep_supervision=method.deep_supervision,
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


@dataclass(frozen=True, eq=False)
class _Seen:
    """The support's slices in the net's square; where stacks are wanted, those without labels too."""

    slices: Float[Tensor, "v c s s"]
    """Half precision, to hold many."""
    classes: Int[Tensor, "v s s"]
    """0 for background, else 1 + the label's index, or UNKNOWN."""
    first: Int[Tensor, " v"]
    """Row of the first slice of the same case."""
    last: Int[Tensor, " v"]

    def around(self, rows: Int[Tensor, " b"], depth: int) -> tuple[Float[Tensor, "b c d s s"], Int[Tensor, "b d s s"]]:
        """Stacks with these rows in the middle; what a case's end makes them repeat is unknown."""
        wanted = rows[:, None] + torch.arange(depth) - depth // 2
        index = torch.minimum(torch.maximum(wanted, self.first[rows, None]), self.last[rows, None])
        classes = self.classes[index].masked_fill((index != wanted)[..., None, None], UNKNOWN)
        return rearrange(self.slices[index].float(), "b d c h w -> b c d h w"), classes

    def digest(self) -> str:
        """SHA-256 of all that training sees."""
        return digest_of(self.slices, self.classes, self.first)


def _look(support: SupportSet, slicer: Slicer, plan: Plan) -> _Seen:
    """Reads the labelled slices, and for stacks their neighbours, one volume at a time."""
    slices: list[Tensor] = []
    classes: list[Tensor] = []
    ends: list[tuple[int, int]] = []
    for scan in support.scans(slicer):
        labelled, view = scan.labelled(), scan.view
        known = _class_numbers(labelled.masks, labelled.known, plan.side)
        if plan.depth == 1:
            slices.append(_in_square(labelled.slices, plan.side))
        else:
            slices.append(_from_view(view, range(len(view)), plan.side))
            every = torch.full((len(view), plan.side, plan.side), UNKNOWN, dtype=known.dtype)
            every[list(labelled.index)] = known
            known = every
        start = sum(map(len, classes))
        classes.append(known)
        ends += [(start, start + len(known) - 1)] * len(known)
    first, last = torch.tensor(ends).unbind(1)
    return _Seen(_of_one_depth(slices), torch.cat(classes), first, last)


def _from_view(view: SliceView, index: Sequence[int], side: int) -> Float[Tensor, "n c s s"]:
    """Slices of a volume in the square, a few of native size in memory at a time."""
    parts = [index[start : start + CHUNK] for start in range(0, len(index), CHUNK)]
    return torch.cat([_in_square(view.take(part), side) for part in parts])


def _in_square(slices: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c s s"]:
    return into_square(slices, side).clamp(0, 1).half()


def _class_numbers(masks: Float[Tensor, "n k h w"], known: Tensor, side: int) -> Int[Tensor, "n s s"]:
    """What covers most of each pixel of the square; UNKNOWN where any of it is not labelled."""
    background = (1 - masks.sum(dim=1, keepdim=True)).clamp_min(0)
    classes = torch.split(torch.cat([background, masks], dim=1), CHUNK)
    found = []
    for shares, shown in zip(classes, torch.split(known[:, None].float(), CHUNK), strict=True):
        winner = into_square(shares, side).argmax(dim=1).to(torch.int16)
        found.append(winner.masked_fill(into_square(shown, side)[:, 0] < 0.999, UNKNOWN))
    return torch.cat(found)


def _of_one_depth(slices: Sequence[Tensor]) -> Tensor:
    """All slices; grey ones become colour where others are."""
    most = max(part.shape[1] for part in slices)
    return torch.cat([part.expand(-1, most, -1, -1) for part in slices])


class _Steps:
    """The loss of one training step: slices drawn from the support, moved, bent and relit afresh."""

    def __init__(self, method: UNet, plan: Plan, net: Net, seen: _Seen, labels: int) -> None:
        self.method, self.plan, self.net, self.seen, self.labels = method, plan, net, seen, labels
        self.labelled = torch.nonzero((seen.classes != UNKNOWN).flatten(1).any(1))[:, 0]
        holding = [torch.nonzero((seen.classes == c + 1).flatten(1).any(1))[:, 0] for c in range(labels)]
        self.holding = [rows for rows in holding if len(rows)] or [self.labelled]

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        self.net.train()
        stacks, classes = self.seen.around(self._draw(generator), self.plan.depth)
        slices, masks, known = self._varied(stacks, classes, generator)
        device = next(self.net.parameters()).device
        exits = self.net(slices.to(device)).unbind(1)
        target = rearrange(masks, "b k d h w -> 1 k (b d h) w").to(device)
        shown = rearrange(known, "b d h w -> 1 (b d h) w").to(device)
        # the Dice of the whole batch, as nnU-Net has it for slices: many hold but a sliver of a label, or none
        balance = fading(self.method.balance, step, self.method.train.iterations)
        losses = [dice_ce(rearrange(said, "b k d h w -> 1 k (b d h) w"), target, shown, balance) for said in exits]
        weights = torch.tensor([0.5**place for place in range(len(losses))], device=device)
        return (torch.stack(losses) * weights).sum() / weights.sum()

    def _draw(self, generator: torch.Generator) -> Int[Tensor, " b"]:
        """The first half hold a label drawn at random, so that rare labels and empty slices both come."""
        rows = []
        for place in range(self.method.batch):
            choice = self.labelled
            if place < (self.method.batch + 1) // 2:
                choice = self.holding[integer(len(self.holding), generator)]
            rows.append(int(choice[integer(len(choice), generator)]))
        return torch.tensor(rows)

    def _varied(
        self, stacks: Float[Tensor, "b c d s s"], classes: Int[Tensor, "b d s s"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b c d s s"], Float[Tensor, "b k d s s"], Tensor]:
        """Another view of stacks, all slices of one moved alike; with their labels and what is known of them."""
        values = torch.arange(1, self.labels + 1)[:, None, None, None]
        masks = (classes[:, None] == values).float()
        maps = torch.cat([masks, (classes != UNKNOWN).float()[:, None]], dim=1)
        everywhere = torch.ones(len(stacks), *stacks.shape[-2:], dtype=torch.bool)
        seen, maps, _ = augmented(stacks.flatten(1, 2), maps.flatten(1, 2), everywhere, generator)
        if self.method.elastic:
            seen, maps = _bent(seen, maps, self.method.elastic, generator)
        maps = rearrange(maps, "b (m d) h w -> b m d h w", d=self.plan.depth)
        # a pixel is known where nothing unknown was mixed into it; outside of the slice all is unknown
        return (
            rearrange(seen, "b (c d) h w -> b c d h w", d=self.plan.depth),
            maps[:, :-1],
            maps[:, -1] >= 0.999,
        )


def _bent(
    slices: Float[Tensor, "n c h w"], maps: Float[Tensor, "n m h w"], strongest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both moved by a smooth random field: shifts at 6 × 6 knots, of a deviation of up to `strongest` sides."""
    n, _, h, w = slices.shape
    strength = 2 * strongest * torch.rand(n, 1, 1, 1, generator=generator)  # grid_sample's frame is 2 wide
    knots = strength * torch.randn(n, 2, 6, 6, generator=generator)
    shifts = F.interpolate(knots, (h, w), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), [n, 1, h, w], align_corners=False) + shifts
    return F.grid_sample(slices, grid, align_corners=False), F.grid_sample(maps, grid, align_corners=False)


def pretrain_encoder(
    net: Net,
    slices: Float[Tensor, "v c s s"],
    batch: int,
    config: TrainConfig,
    run: Run | None = None,
    temperature: float = 0.5,
) -> History:
    """Trains the contracting path of a net for single slices by SimCLR, in place; the rest of it stays as it was.

    Two views of each slice, drawn independently of one another, shall lie nearer to each other than to those of all
    other slices of the batch. The projection head is dropped afterwards. It sees the means of the four quarters, not
    one mean as in the paper: instance norm has taken that out of every channel, and there was nothing to learn from.
    """
    from monai.losses import ContrastiveLoss  # seconds, not needed by other methods

    if len(slices) < 2:
        raise SettingsError(
            f"SimCLR tells slices apart and got {len(slices)} with any signal; name an unlabelled cohort"
        )
    device, width = next(net.parameters()).device, int(net.unet.filters[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 128)).to(device)
    model = nn.ModuleDict({"encoder": net.encoder(), "head": head})
    nearest = ContrastiveLoss(temperature=temperature)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randperm(len(slices), generator=generator)[:batch]
        views = torch.cat([_view(slices[rows].float(), generator) for _ in range(2)])
        features = F.adaptive_avg_pool2d(model["encoder"](standardised(views.to(device))), 2)
        one, other = model["head"](features.flatten(1)).chunk(2)
        answer: Tensor = nearest(one, other)
        return answer

    return train(model, loss, config, run)


def _view(slices: Float[Tensor, "n c s s"], generator: torch.Generator) -> Float[Tensor, "n c t t"]:
    """A piece of each slice on half as many pixels: 40 to 100 % of its edges, turned by ±15°, gamma .4 to 2.5, noise.

    Never flipped: left and right shall stay apart.
    """
    n, _, side, _ = slices.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    tall, wide = uniform(0.4, 1.0), uniform(0.4, 1.0)
    angle, down, across = uniform(-math.pi / 12, math.pi / 12), uniform(-1, 1) * (1 - tall), uniform(-1, 1) * (1 - wide)
    sine, cosine = angle.sin(), angle.cos()
    rows = torch.stack([cosine * wide, -sine * tall, across, sine * wide, cosine * tall, down], dim=1)
    grid = F.affine_grid(rows.view(n, 2, 3), [n, 1, side // 2, side // 2], align_corners=False)
    seen = F.grid_sample(slices, grid, align_corners=False).clamp_min(0)
    gamma = torch.exp(uniform(math.log(0.4), math.log(2.5)))[:, None, None, None]
    noise = uniform(0, 0.1)[:, None, None, None] * torch.randn(seen.shape, generator=generator)
    return coarsened(seen.pow(gamma) + noise, 0.5, generator)


def _unlabelled(method: UNet, support: SupportSet, slicer: Slicer, side: int) -> Float[Tensor, "v c s s"]:
    """Slices with any signal for SimCLR, evenly spaced where a cohort has more than can be held."""
    cases: tuple[Case, ...] = support.cases if method.unlabelled is None else read_cohort(method.unlabelled).cases
    most = max(1, MOST_UNLABELLED // len(cases))
    found = []
    for case in cases:
        view = slicer.view(case.read_image())
        places = torch.linspace(0, len(view) - 1, min(most, len(view))).round().long().tolist()
        slices = _from_view(view, places, side)
        found.append(slices[has_signal(slices)])
    return _of_one_depth(found)


def _phases(method: UNet, run: Run, fingerprint: str) -> tuple[Run, Run]:
    """The run of SimCLR and that of the training proper: folders of their own, and steps counted through both."""
    before = method.contrast.iterations if method.pretrain == "simclr" else 0
    whole = before + method.train.iterations
    scratch = run.scratch and run.scratch / fingerprint

    def first(step: int, total: int, note: str) -> None:
        run.report(step, whole, f"simclr {note}")

    def then(step: int, total: int, note: str) -> None:
        run.report(before + step, whole, note)

    return (
        dataclasses.replace(run, scratch=scratch and scratch / "simclr", report=first),
        dataclasses.replace(run, scratch=scratch and scratch / "unet", report=then),
    )


def _fingerprint(method: UNet, plan: Plan, seen: _Seen, unlabelled: Tensor) -> str:
    """Names the fit by all that decides its result, so that only its own half-done work is taken up again."""
    settings = json.dumps(dataclasses.asdict(method), sort_keys=True, default=str)
    return digest_of(f"{settings}:{plan}:{seen.digest()}", unlabelled)[:16]
