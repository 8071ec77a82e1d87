"""Synthetic data: episodes for pre-training, and a phantom cohort for the demo and the tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Generator, Tensor

from handful.synthesis import bodies
from handful.synthesis.anatomy import Anatomy, Field, Kind, Shape, Subject, View, rotation
from handful.synthesis.looks import dressed
from handful.synthesis.modalities import MODALITIES, Modality, burnt_in, frame
from handful.synthesis.rng import Rng
from handful.synthesis.scans import Contrast, Scanner, render
from handful.synthesis.worlds import TINY_WORLD, Scene, World


@dataclass(frozen=True, eq=False)
class Episode:
    """One few-shot task: n slices of several subjects of one anatomy, all its structures, and t target masks.

    Slices are ordered by subject; the slices of a subject are parallel neighbours in order.
    """

    images: Float[Tensor, "n c h w"]
    """In [0, 1]; c is 1 or 3."""
    labels: Int[Tensor, "n h w"]
    """Number of the structure at each pixel, the same in every subject; 0 is air or outside the field of view."""
    masks: Bool[Tensor, "n t h w"]
    """The target masks; each target is in at least two subjects, if there are two, but not always in every slice."""
    subject: Int[Tensor, "n"]
    """Index of the subject of each slice."""
    shapes: tuple[Shape, ...]
    """What each target looks like."""
    modality: str
    """Name of the imitated modality, one of MODALITIES."""


WANTED = (Shape.BLOB, Shape.RING, Shape.TUBE, Shape.TUBE, Shape.PIECES, Shape.PIECES)
"""Shapes of targets in a balanced world; those that a slice often misses are wanted twice as often."""
PREFERENCE = 12.0
"""How much more likely a label of the wanted shape is to be a target than one of another shape."""
TINY = 0.005
"""Mean area, as a share of the slice, below which a target of a balanced world is not enlarged by a crop."""
ATTEMPTS = 8
"""Anatomies among which one with the wanted shape is looked for."""
MOST = 1000
"""Anatomies after which no more slices with a target are looked for."""


def random_episode(
    subjects: int, slices: int, targets: int, side: int, rng: Generator, world: World = TINY_WORLD
) -> Episode:
    """Return a random episode of `subjects` × `slices` images with `targets` masks, on the device of `rng`.

    Images are `side` × `side` pixels. All subjects have one anatomy; their slices lie at about the same height. Raises
    ValueError if slices of the world have no targets.
    """
    with torch.no_grad(), torch.autocast(rng.device.type, enabled=False):  # half precision would break thin structures
        return _random_episode(subjects, slices, targets, side, Rng.of(rng), world)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan: voxels (i, j, k), its label map, the affine to RAS mm, and the names of the labels."""

    name: str
    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    names: dict[int, str]


def phantom_cohort(cases: int, seed: int = 0, shape: tuple[int, int, int] = (96, 88, 20)) -> Iterator[Phantom]:
    """Yield subjects of one synthetic anatomy: a liver, a left and a right kidney, and a heart of wall and chamber."""
    rng = Rng.of(torch.Generator().manual_seed(seed))
    anatomy = _phantom_anatomy(rng)
    contrast = Contrast.random(anatomy.appearance, rng)
    first = 1 + len(anatomy.regions.values)
    brightness = [*torch.linspace(0.2, 0.35, first).tolist(), 0.75, 0.55, 0.55, 0.9, 0.45]
    contrast = Contrast(torch.tensor(brightness)[:, None], 0.3 * contrast.texture, contrast.grain)
    contrast.brightness[0] = 0.0
    names = {1: "liver", 2: "left kidney", 3: "right kidney", 4: "heart wall", 5: "heart chamber"}
    spacing = np.array([2.5, 2.5, 6.0])
    for case in range(cases):
        points = Subject.random(rng, variety=0.6).to_anatomy(_grid(shape))
        truth = anatomy.at(points)
        noisy = Scanner.random(rng)
        scanner = replace(noisy, noise=0.5 * noisy.noise, coarser=(1.0, 1.0), ghost=0.0, inverted=False, tails=0.005)
        slices = render(truth.permute(2, 1, 0), contrast.like(rng, 0.03), scanner, rng)
        image = (slices[:, 0].permute(2, 1, 0) * 1000).round().short().numpy()
        labels = (truth - first + 1).clamp_min(0).to(torch.uint8).numpy()
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        yield Phantom(f"phantom_{case:02d}", image, labels, affine, names)


def _phantom_anatomy(rng: Rng) -> Anatomy:
    body = bodies.organ((0.0, 0.0, 0.0), (0.9, 0.85, 3.0), rng)
    liver = bodies.organ((-0.4, -0.15, 0.1), (0.32, 0.38, 0.7), rng)
    kidneys = bodies.organ((0.42, 0.42, -0.2), (0.15, 0.2, 0.55), rng, paired=True)
    heart = bodies.organ((0.35, -0.3, 0.3), (0.28, 0.26, 0.6), rng, layers=(0.6,))
    return Anatomy(Field.random(3, 4, rng), (liver, kidneys, heart), body)


def _grid(shape: tuple[int, int, int]) -> Float[Tensor, "i j k 3"]:
    lines = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def _random_episode(subjects: int, slices: int, targets: int, side: int, rng: Rng, world: World) -> Episode:
    for _ in range(MOST):
        wanted = rng.host.choice(WANTED) if world.balanced else None
        scene, anatomy = _scene(world, wanted, rng)
        name = rng.host.choice(scene.modalities)
        modality = MODALITIES[name]
        planes = _individuals(anatomy, scene, modality, (subjects, slices, side), rng, world)
        labels = planes[:, :, 0] if modality.planes == 1 else planes.amax(dim=2)  # later structures cover earlier ones
        chosen = _targets(labels, anatomy, modality, targets, rng, world, wanted)
        if chosen is not None:
            break
    else:
        raise ValueError(f"none of {MOST} slices of this world had a target")
    images = _pictures(labels, anatomy, modality, rng, planes if modality.planes > 1 else None, world.dressed)
    if rng.chance(world.cropped) and not (world.balanced and float(chosen[0][labels].float().mean()) < TINY):
        cropped_labels, cropped_images = _cropped(labels, images, chosen[0], rng)
        still_there = _targets(cropped_labels, anatomy, modality, targets, rng, world, wanted)
        if still_there is not None:
            labels, images, chosen = cropped_labels, cropped_images, still_there
    flat = labels.flatten(0, 1)
    numbers = torch.arange(subjects, device=labels.device).repeat_interleave(slices)
    masks = chosen[:, flat].transpose(0, 1).contiguous()
    shapes = tuple(anatomy.shape_of(row.nonzero().flatten().tolist()) for row in chosen)
    return Episode(images, flat, masks, numbers, shapes, name)


def _scene(world: World, wanted: Shape | None, rng: Rng) -> tuple[Scene, Anatomy]:
    """Return a random scene and anatomy, one with a structure of the wanted shape if a few attempts give one."""
    for _ in range(ATTEMPTS):
        scene = rng.host.choices(world.scenes, [scene.weight for scene in world.scenes])[0]
        anatomy = scene.body(rng)
        if wanted is None or wanted in anatomy.shapes:
            break
    return scene, anatomy


def _individuals(
    anatomy: Anatomy, scene: Scene, modality: Modality, shape: tuple[int, int, int], rng: Rng, world: World
) -> Int[Tensor, "s m p h w"]:
    """Return the label maps of each subject's neighbouring slices, 0 outside the field of view.

    `shape` is the number of subjects, of slices of each, and the side in pixels. A slice has as many planes as the
    modality adds up.
    """
    subjects, slices, side = shape
    view = _view(anatomy, scene, rng)
    variety = scene.variety * rng.between(0.3, 1.2)
    spread = 3.0 if rng.chance(0.35) else 1.0  # of the heights of different subjects
    step = rng.between(0.01, 0.12) * max(0.4, min(1.0, view.zoom))
    if world.thick and rng.chance(world.thick):
        step *= rng.between(2.0, 5.0)
    field = modality.frame if rng.chance(0.9) else rng.host.choice(["full", "full", "circle", "fan"])
    same_frame = frame(field, side, rng) if rng.chance(0.5) else None
    enlarge = 2 if side % 2 == 0 else 1
    label_maps = []
    for _ in range(subjects):
        subject_view = view.like(rng, variety)
        start = rng.gauss(0.08 * variety * spread) - 0.5 * step * (slices - 1)
        heights = [start + step * number for number in range(slices)]
        if modality.planes > 1:
            across = torch.linspace(-0.6, 0.6, modality.planes).tolist()
            heights = [0.1 * height + plane for height in heights for plane in across]
        points = Subject.random(rng, variety).to_anatomy(subject_view.points(side // enlarge, heights, rng))
        individual = anatomy.individual(rng)
        if world.lacking:
            individual = individual.lacking(world.lacking, rng)
        labels = individual.at(points, enlarge)
        label_maps.append(labels * (frame(field, side, rng) if same_frame is None else same_frame))
    return torch.stack(label_maps).reshape(subjects, slices, modality.planes, side, side)


def _view(anatomy: Anatomy, scene: Scene, rng: Rng) -> View:
    """Return a random view, from the whole body to one organ that fills the picture; mostly axial and upright."""
    zoom = rng.between(0.8, 1.15)
    middle = [rng.gauss(0.05), rng.gauss(0.05), rng.between(-0.4, 0.4)]
    places = [place for structure in anatomy.structures if (place := structure.middle) is not None]
    if rng.chance(0.5) and scene.min_zoom < 0.8:
        zoom = scene.min_zoom * (0.8 / scene.min_zoom) ** rng.host.random()
        if places:
            middle = [m + rng.gauss(0.25 * zoom) for m in rng.host.choice(places)]
    elif anatomy.body is not None and rng.chance(0.15):  # a small body surrounded by air
        zoom = rng.between(1.15, 1.9)
    turn = torch.eye(3)
    if scene.min_zoom < 0.5 and rng.chance(0.2):  # coronal or sagittal
        turn = turn[rng.host.choice([[0, 2, 1], [2, 0, 1]])].T
    if rng.chance(0.35):
        quarter = rng.chance(0.4)
        angle = math.pi / 2 * rng.integer(1, 3) if quarter else rng.between(-math.pi, math.pi)
        turn = turn @ rotation([0.0, 0.0, angle])
    return View((middle[0], middle[1], middle[2]), zoom, tuple(map(tuple, turn.tolist())))


def _pictures(
    labels: Int[Tensor, "s m h w"],
    anatomy: Anatomy,
    modality: Modality,
    rng: Rng,
    planes: Int[Tensor, "s m p h w"] | None,
    effects: float,
) -> Float[Tensor, "n c h w"]:
    """Return images of every subject's slices, one acquisition per subject.

    Acquisitions differ slightly, by scanner, by protocol or by modality; each is less likely than the one before.
    `planes` are the label maps that each image adds up, `effects` the probability of each effect of `looks`.
    """
    kinds = torch.tensor(anatomy.kinds).to(labels.device)
    contrast, scanner = modality.contrast(anatomy, rng), Scanner.random(rng)
    change = rng.host.random()
    jitter = rng.between(0.0, 0.08)
    with_letters, blank = rng.chance(0.06), rng.chance(0.4)
    images = []
    for number, slices in enumerate(labels):
        if number and change > 0.7:  # another scanner; above 0.86 another protocol; above 0.95 another modality
            scanner = Scanner.random(rng)
        if number and change > 0.86:
            contrast = modality.contrast(anatomy, rng)
        if number and change > 0.95:
            contrast = Contrast.random(anatomy.appearance, rng, colour=contrast.brightness.shape[1] == 3)
        added = None if planes is None else planes[number]
        image = render(slices, contrast.like(rng, jitter), scanner.like(rng), rng, kinds, modality.finish, added)
        if modality.frame != "full" or blank:  # outside the field of view there is not even noise
            image = torch.where((slices == 0)[:, None], image.amin(), image)
        image = burnt_in(image, rng) if with_letters else image
        images.append(dressed(image, slices, effects, rng) if effects else image)
    widest = max(image.shape[1] for image in images)
    return torch.cat([image.expand(-1, widest, -1, -1) for image in images])


def _cropped(
    labels: Int[Tensor, "s m h w"], images: Float[Tensor, "n c h w"], target: Bool[Tensor, " l"], rng: Rng
) -> tuple[Int[Tensor, "s m h w"], Float[Tensor, "n c h w"]]:
    """Crop each subject's slices around the target and enlarge them to the full side, which blurs them.

    The crop is the same for the slices of a subject. A subject without the target takes the crop of another one.
    """
    _, slices, side, _ = labels.shape
    context = rng.between(1.3, 4.0)
    masks = target[labels].any(dim=1).cpu()
    crops: list[tuple[int, int, int] | None] = []
    for mask in masks:
        if not mask.any():
            crops.append(None)
            continue
        rows, columns = (mask.any(dim=d).nonzero()[:, 0] for d in (1, 0))
        extent = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
        size = max(side // 12, min(side, round(extent * context * math.exp(rng.gauss(0.12)))))
        room = 0.4 * max(0, size - extent)
        middle = [float(line[0] + line[-1]) / 2 + rng.between(-room, room) for line in (rows, columns)]
        top, left = (min(max(0, round(m - size / 2)), side - size) for m in middle)
        crops.append((top, left, size))
    default = next(crop for crop in crops if crop is not None)
    enlarged_labels, enlarged_images = [], []
    for number, crop in enumerate(crops):
        top, left, size = crop or default
        region = (..., slice(top, top + size), slice(left, left + size))
        label_map = labels[number][region][:, None].float()
        image = images[number * slices : (number + 1) * slices][region]
        enlarged_labels.append(F.interpolate(label_map, side, mode="nearest-exact")[:, 0].long())
        enlarged_images.append(F.interpolate(image, side, mode="bilinear", align_corners=False))
    return torch.stack(enlarged_labels), torch.cat(enlarged_images)


def _targets(
    labels: Int[Tensor, "s m h w"],
    anatomy: Anatomy,
    modality: Modality,
    count: int,
    rng: Rng,
    world: World,
    wanted: Shape | None,
) -> Bool[Tensor, "t l"] | None:
    """Choose the labels of each target, as a mask of labels per target; None if no structure is suitable.

    A target is one part of a structure, sometimes several together. It is present in two subjects, if there are two,
    never most of a slice, and tiny only in some episodes.
    """
    subjects, slices, h, w = labels.shape
    top = anatomy.labels
    offset = torch.arange(subjects * slices, device=labels.device)[:, None] * top
    counts = (labels.reshape(subjects * slices, -1) + offset).flatten().bincount(minlength=offset.numel() * top)
    area = counts.reshape(subjects, slices, top).cpu().float() / (h * w)  # the only transfer from the device
    small = rng.chance(world.tiny)
    least = max(world.smallest, world.fewest / (h * w)) if small else 0.004
    fit = [label for label in range(1, top) if _fits(area[:, :, label], least)]
    if world.balanced and modality.region_contrast < 0.1:  # regions that look alike are no targets
        fit = [label for label in fit if anatomy.shapes[label] != Shape.TISSUE]
    if all(anatomy.kinds[label] == Kind.TISSUE for label in fit):
        return None
    chosen: list[tuple[int, ...]] = []
    for _ in range(count):
        left = [label for label in fit if (label,) not in chosen] or fit
        sometimes = [label for label in left if bool((area[:, :, label] == 0).any())]
        if sometimes and rng.chance(0.5):
            left = sometimes
        weights = _weights(left, anatomy, modality, wanted)
        if world.balanced and small:
            weights = [weight / float(area[:, :, one].mean()) ** 2 for one, weight in zip(left, weights, strict=True)]
        target: tuple[int, ...] = (rng.host.choices(left, weights)[0],)
        together = tuple(sorted({*target, rng.host.choice(fit)}))
        if world.whole and rng.chance(world.whole):
            together = next((whole for whole in anatomy.wholes if target[0] in whole), together)
            if _fits(area[:, :, list(together)].sum(dim=2), least):
                target = together
        elif (rng.chance(0.1) or target in chosen) and _fits(area[:, :, list(together)].sum(dim=2), least):
            target = together
        chosen.append(target)
    rows = torch.zeros(count, top, dtype=torch.bool)
    for row, target in enumerate(chosen):
        rows[row, list(target)] = True
    return rows.to(labels.device)


def _weights(labels: list[int], anatomy: Anatomy, modality: Modality, wanted: Shape | None) -> list[float]:
    """Return how likely each label is to be the next target; those of the wanted shape are the most likely."""
    if wanted is None:
        by_kind = {Kind.TISSUE: modality.region_contrast, Kind.WALL: 4.0}  # walls are the hardest targets
        return [by_kind.get(anatomy.kinds[label], 1.0) for label in labels]
    shapes = [anatomy.shapes[label] for label in labels]
    by_shape = {Shape.TISSUE: modality.region_contrast, wanted: PREFERENCE}
    return [by_shape.get(shape, 1.0) / shapes.count(shape) for shape in shapes]


def _fits(area: Float[Tensor, "s m"], least: float) -> bool:
    """Return whether a structure with these area shares can be a target.

    It must be larger than `least` in two subjects (or the only one), so that one can be the support of the other.
    """
    present = (area > least).any(dim=1).sum()
    return int(present) >= min(2, len(area)) and float(area.max()) < 0.5
