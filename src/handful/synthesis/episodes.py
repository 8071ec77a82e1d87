"""Tasks out of synthetic anatomy: episodes to pre-train on, and a phantom cohort for the demo and the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Generator, Tensor

from handful.synthesis import bodies
from handful.synthesis.anatomy import Anatomy, Field, Kind, Subject, View, rotation
from handful.synthesis.draw import Draw
from handful.synthesis.looks import LOOKS, Look, burnt_in, frame
from handful.synthesis.scans import Contrast, Scanner, render


@dataclass(frozen=True, eq=False)
class Episode:
    """Neighbouring slices of several subjects of an anatomy, all its structures, and t of them to find.

    Slices come subject by subject, neighbours in order.
    """

    images: Float[Tensor, "n c h w"]
    """In [0, 1]; c is 1 or 3."""
    labels: Int[Tensor, "n h w"]
    """Number of the structure at each pixel, the same in every subject; 0 is air or outside the picture."""
    masks: Bool[Tensor, "n t h w"]
    """The targets to find, each in two subjects at least; some are absent from some slices."""
    subject: Int[Tensor, "n"]
    """Which individual a slice is of."""


CLOSER = 0.35
"""Share of the episodes that are cut out of their pictures round one structure and enlarged, as one looks closer."""


@dataclass(frozen=True)
class Scene:
    """A body, how often it is shown, in which looks, and whether one may come close or turn it."""

    weight: float
    body: Callable[[Draw], Anatomy]
    looks: tuple[str, ...]
    closest: float
    """Least half width of the picture; 1 shows the whole cube."""
    variety: float = 1.0
    """How unlike the individuals are, as a share of what bodies are."""


SCENES = (
    Scene(0.36, bodies.random_anatomy, ("anything", "anything", "mr", "ct", "ultrasound", "echo", "xray"), 0.35),
    Scene(0.14, bodies.chest_slice, ("mr", "mr", "ct", "anything"), 0.3),
    Scene(0.07, bodies.head, ("ct", "ct", "mr", "anything"), 0.3),
    Scene(0.09, bodies.two_part, ("mr", "mr", "anything"), 0.5),
    Scene(0.08, bodies.chest, ("xray", "xray", "xray", "anything"), 0.8, 0.6),
    Scene(0.05, bodies.retina, ("fundus", "fundus", "fundus", "anything"), 0.5, 0.5),
    Scene(0.06, bodies.mucosa, ("endoscopy", "endoscopy", "endoscopy", "anything"), 0.8),
    Scene(0.06, bodies.tissue_layers, ("ultrasound", "ultrasound", "anything"), 0.5),
    Scene(0.04, bodies.chambers, ("echo", "echo", "mr"), 0.7),
    Scene(0.05, bodies.cells, ("microscopy", "microscopy", "microscopy", "anything"), 0.5),
)


def random_episode(subjects: int, slices: int, targets: int, side: int, rng: Generator) -> Episode:
    """Individuals of a random anatomy at about one height, `slices` parallel neighbours each, made on rng's device."""
    with torch.no_grad(), torch.autocast(rng.device.type, enabled=False):  # half precision would tear thin things
        return _random_episode(subjects, slices, targets, side, Draw.of(rng))


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan: voxels (i, j, k), its label map, the affine to RAS mm, and what the labels are called."""

    name: str
    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    names: dict[int, str]


def phantom_cohort(cases: int, seed: int = 0, shape: tuple[int, int, int] = (96, 88, 20)) -> Iterator[Phantom]:
    """Individuals of one synthetic anatomy: a large organ, two separate kidneys, a heart of wall and chamber."""
    draw = Draw.of(torch.Generator().manual_seed(seed))
    anatomy = _phantom_anatomy(draw)
    contrast = Contrast.random(anatomy.alike, draw)
    first = 1 + len(anatomy.regions.values)
    brightness = [*torch.linspace(0.2, 0.35, first).tolist(), 0.75, 0.55, 0.55, 0.9, 0.45]
    contrast = Contrast(torch.tensor(brightness)[:, None], 0.3 * contrast.texture, contrast.grain)
    contrast.brightness[0] = 0.0
    names = {1: "liver", 2: "left kidney", 3: "right kidney", 4: "heart wall", 5: "heart chamber"}
    spacing = np.array([2.5, 2.5, 6.0])
    for case in range(cases):
        points = Subject.random(draw, variety=0.6).to_anatomy(_grid(shape))
        truth = anatomy.at(points)
        usual = Scanner.random(draw)
        scanner = replace(usual, noise=0.5 * usual.noise, coarser=(1.0, 1.0), ghost=0.0, inverted=False, tails=0.005)
        slices = render(truth.permute(2, 1, 0), contrast.like(draw, 0.03), scanner, draw)
        image = (slices[:, 0].permute(2, 1, 0) * 1000).round().short().numpy()
        labels = (truth - first + 1).clamp_min(0).to(torch.uint8).numpy()
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        yield Phantom(f"phantom_{case:02d}", image, labels, affine, names)


def _phantom_anatomy(draw: Draw) -> Anatomy:
    body = bodies.organ((0.0, 0.0, 0.0), (0.9, 0.85, 3.0), draw)
    liver = bodies.organ((-0.4, -0.15, 0.1), (0.32, 0.38, 0.7), draw)
    kidneys = bodies.organ((0.42, 0.42, -0.2), (0.15, 0.2, 0.55), draw, paired=True)
    heart = bodies.organ((0.35, -0.3, 0.3), (0.28, 0.26, 0.6), draw, layers=(0.6,))
    return Anatomy(Field.random(3, 4, draw), (liver, kidneys, heart), body)


def _grid(shape: tuple[int, int, int]) -> Float[Tensor, "i j k 3"]:
    lines = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def _random_episode(subjects: int, slices: int, targets: int, side: int, draw: Draw) -> Episode:
    while True:
        scene = draw.host.choices(SCENES, [scene.weight for scene in SCENES])[0]
        anatomy = scene.body(draw)
        look = LOOKS[draw.host.choice(scene.looks)]
        labels = _individuals(anatomy, scene, look, subjects, slices, side, draw)
        chosen = _targets(labels, anatomy, look, targets, draw)
        if chosen is not None:
            break
    images = _pictures(labels, anatomy, look, draw)
    if draw.chance(CLOSER):
        near, seen = _closer(labels, images, chosen[0], draw)
        again = _targets(near, anatomy, look, targets, draw)
        if again is not None:
            labels, images, chosen = near, seen, again
    flat = labels.flatten(0, 1)
    numbers = torch.arange(subjects, device=labels.device).repeat_interleave(slices)
    return Episode(images, flat, chosen[:, flat].transpose(0, 1).contiguous(), numbers)


def _individuals(
    anatomy: Anatomy, scene: Scene, look: Look, subjects: int, slices: int, side: int, draw: Draw
) -> Int[Tensor, "s m h w"]:
    """Label maps of each subject's neighbouring slices, cut off where the picture ends."""
    view = _view(anatomy, scene, draw)
    variety = scene.variety * draw.between(0.3, 1.2)
    apart = 3.0 if draw.chance(0.35) else 1.0  # of the heights of different subjects
    step = draw.between(0.01, 0.12) * max(0.4, min(1.0, view.zoom))
    shown = look.frame if draw.chance(0.9) else draw.host.choice(["full", "full", "circle", "fan"])
    same_frame = frame(shown, side, draw) if draw.chance(0.5) else None
    enlarge = 2 if side % 2 == 0 else 1
    found = []
    for _ in range(subjects):
        own = view.like(draw, variety)
        start = draw.gauss(0.08 * variety * apart) - 0.5 * step * (slices - 1)
        heights = [start + step * number for number in range(slices)]
        points = Subject.random(draw, variety).to_anatomy(own.points(side // enlarge, heights, draw))
        labels = anatomy.individual(draw).at(points, enlarge)
        found.append(labels * (frame(shown, side, draw) if same_frame is None else same_frame))
    return torch.stack(found)


def _view(anatomy: Anatomy, scene: Scene, draw: Draw) -> View:
    """From the whole body to one organ that fills the picture; mostly axial and upright."""
    zoom = draw.between(0.8, 1.15)
    middle = [draw.gauss(0.05), draw.gauss(0.05), draw.between(-0.4, 0.4)]
    places = [place for structure in anatomy.structures if (place := structure.middle) is not None]
    if draw.chance(0.5) and scene.closest < 0.8:
        zoom = scene.closest * (0.8 / scene.closest) ** draw.host.random()
        if places:
            middle = [m + draw.gauss(0.25 * zoom) for m in draw.host.choice(places)]
    elif anatomy.body is not None and draw.chance(0.15):  # a small body in much air
        zoom = draw.between(1.15, 1.9)
    turn = torch.eye(3)
    if scene.closest < 0.5 and draw.chance(0.2):  # coronal or sagittal
        turn = turn[draw.host.choice([[0, 2, 1], [2, 0, 1]])].T
    if draw.chance(0.35):
        quarter = draw.chance(0.4)
        angle = math.pi / 2 * draw.integer(1, 3) if quarter else draw.between(-math.pi, math.pi)
        turn = turn @ rotation([0.0, 0.0, angle])
    return View((middle[0], middle[1], middle[2]), zoom, tuple(map(tuple, turn.tolist())))


def _pictures(labels: Int[Tensor, "s m h w"], anatomy: Anatomy, look: Look, draw: Draw) -> Float[Tensor, "n c h w"]:
    """Every subject's slices in one acquisition; acquisitions differ a little, or in much, or altogether."""
    kinds = torch.tensor(anatomy.kinds).to(labels.device)
    contrast, scanner = look.contrast(anatomy, draw), Scanner.random(draw)
    change = draw.host.random()
    jitter = draw.between(0.0, 0.08)
    written, blank = draw.chance(0.06), draw.chance(0.4)
    images = []
    for number, own in enumerate(labels):
        if number and change > 0.7:  # another machine; then another protocol; then another modality
            scanner = Scanner.random(draw)
        if number and change > 0.86:
            contrast = look.contrast(anatomy, draw)
        if number and change > 0.95:
            contrast = Contrast.random(anatomy.alike, draw, colour=contrast.brightness.shape[1] == 3)
        image = render(own, contrast.like(draw, jitter), scanner.like(draw), draw, kinds, look.finish)
        if look.frame != "full" or blank:  # nothing is shown outside the frame, not even noise
            image = torch.where((own == 0)[:, None], image.amin(), image)
        images.append(burnt_in(image, draw) if written else image)
    widest = max(image.shape[1] for image in images)
    return torch.cat([image.expand(-1, widest, -1, -1) for image in images])


def _closer(
    labels: Int[Tensor, "s m h w"], images: Float[Tensor, "n c h w"], target: Bool[Tensor, " l"], draw: Draw
) -> tuple[Int[Tensor, "s m h w"], Float[Tensor, "n c h w"]]:
    """A window round the target in each individual, enlarged to the whole side: blurred, as small organs then are.

    The window is the same for neighbouring slices; an individual without the target lends that of another.
    """
    _, slices, side, _ = labels.shape
    context = draw.between(1.3, 4.0)
    shown = target[labels].any(dim=1).cpu()
    windows: list[tuple[int, int, int] | None] = []
    for mask in shown:
        if not mask.any():
            windows.append(None)
            continue
        rows, columns = (mask.any(dim=d).nonzero()[:, 0] for d in (1, 0))
        extent = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
        size = max(side // 12, min(side, round(extent * context * math.exp(draw.gauss(0.12)))))
        room = 0.4 * max(0, size - extent)
        middle = [float(line[0] + line[-1]) / 2 + draw.between(-room, room) for line in (rows, columns)]
        top, left = (min(max(0, round(m - size / 2)), side - size) for m in middle)
        windows.append((top, left, size))
    usual = next(window for window in windows if window is not None)
    near, seen = [], []
    for number, window in enumerate(windows):
        top, left, size = window or usual
        cut = (..., slice(top, top + size), slice(left, left + size))
        own = images[number * slices : (number + 1) * slices][cut]
        near.append(F.interpolate(labels[number][cut][:, None].float(), side, mode="nearest-exact")[:, 0].long())
        seen.append(F.interpolate(own, side, mode="bilinear", align_corners=False))
    return torch.stack(near), torch.cat(seen)


def _targets(
    labels: Int[Tensor, "s m h w"], anatomy: Anatomy, look: Look, count: int, draw: Draw
) -> Bool[Tensor, "t l"] | None:
    """Which labels make up each target: neither specks nor most of a slice, in two subjects; None if there are none."""
    subjects, slices, h, w = labels.shape
    top = anatomy.labels
    offset = torch.arange(subjects * slices, device=labels.device)[:, None] * top
    counts = (labels.reshape(subjects * slices, -1) + offset).flatten().bincount(minlength=offset.numel() * top)
    area = counts.reshape(subjects, slices, top).cpu().float() / (h * w)  # the one wait for the device
    least = max(0.0006, 25 / (h * w)) if draw.chance(0.3) else 0.004
    fit = [label for label in range(1, top) if _fits(area[:, :, label], least)]
    if all(anatomy.kinds[label] == Kind.TISSUE for label in fit):
        return None
    chosen: list[tuple[int, ...]] = []
    for _ in range(count):
        left = [label for label in fit if (label,) not in chosen] or fit
        sometimes = [label for label in left if bool((area[:, :, label] == 0).any())]
        if sometimes and draw.chance(0.5):
            left = sometimes
        usual = {Kind.TISSUE: look.seen_regions, Kind.WALL: 4.0}  # rings are the hardest to tell from what they hold
        weights = [usual.get(anatomy.kinds[label], 1.0) for label in left]
        target: tuple[int, ...] = (draw.host.choices(left, weights)[0],)
        together = tuple(sorted({*target, draw.host.choice(fit)}))
        if (draw.chance(0.1) or target in chosen) and _fits(area[:, :, list(together)].sum(dim=2), least):
            target = together
        chosen.append(target)
    rows = torch.zeros(count, top, dtype=torch.bool)
    for row, target in enumerate(chosen):
        rows[row, list(target)] = True
    return rows.to(labels.device)


def _fits(area: Float[Tensor, "s m"], least: float) -> bool:
    """Whether something that takes these shares of the slices can be learnt from one subject and found in another."""
    seen = (area > least).any(dim=1).sum()
    return int(seen) >= min(2, len(area)) and float(area.max()) < 0.5
