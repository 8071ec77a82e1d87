"""Generators of synthetic anatomies: bodies, hearts, chests, heads, retinas, mucosa, tissue layers and cells."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from handful.synthesis.anatomy import Anatomy, Blobs, Coat, Field, Kind, Organ, Structure, Tube, rotation
from handful.synthesis.rng import Rng


def random_anatomy(rng: Rng) -> Anatomy:
    """Return a body with 2 to 8 random structures: organs, pairs of organs, tubes, vessel trees, hearts, lesions."""
    structures: list[Structure] = []
    for _ in range(rng.integer(2, 8)):
        choice = rng.host.random()
        if choice < 0.65:
            structures.append(random_organ(rng))
        elif choice < 0.77:
            structures.append(tube(rng))
        elif choice < 0.85:
            structures += heart(rng, (rng.between(-0.4, 0.4), rng.between(-0.4, 0.4), 0.0))
        elif choice < 0.9:
            structures.append(tree(rng, tuple(rng.point((0.4, 0.4, 0.3)))))
        elif choice < 0.93:
            size = rng.between(0.025, 0.06)
            structures.append(
                Blobs.random(Kind.CELL, (8, 40), (size, 1.5 * size), (0.0, 0.0, 0.0), (0.7, 0.7, 0.4), rng)
            )
        else:
            host = structures[-1].middle if structures else None
            structures.append(lesions(rng, host))
    body = outline(rng) if rng.chance(0.7) else None
    if body is not None:
        structures += _coats(body, rng)
    stretch = rng.tensor([0.4, rng.between(1, 3), 1.0]) if rng.chance(0.12) else None
    regions = Field.random(rng.integer(2, 7), rng.integer(2, 7), rng)
    return Anatomy(regions, tuple(structures), body, stretch)


def chest(rng: Rng) -> Anatomy:
    """Return paired lungs, a heart and a diaphragm as in a chest X-ray; they hardly change along z."""
    lung = organ(
        (rng.between(0.4, 0.48), rng.between(-0.25, -0.1), 0.0),
        (rng.between(0.3, 0.4), rng.between(0.6, 0.8), 3.0),
        rng,
        waviness=rng.between(0.02, 0.12),
        paired=True,
        made_of=(Kind.LUNG,),
    )
    size = rng.between(0.2, 0.36)
    core = organ((0.12, rng.between(0.05, 0.25), 0.0), (size, 1.25 * size, 3.0), rng, rng.between(0, 0.15))
    middle = organ((0.0, -0.3, 0.0), (rng.between(0.08, 0.16), 0.7, 3.0), rng, rng.between(0, 0.15))
    belly = organ((0.0, 1.0, 0.0), (1.3, rng.between(0.5, 0.75), 3.0), rng, rng.between(0.05, 0.2))
    structures: list[Structure] = [lung, belly, middle, core]
    if rng.chance(0.3):
        structures.append(lesions(rng, [lung.centre[0].item(), -0.15, 0.0]))
    return Anatomy(Field.random(rng.integer(1, 3), 3, rng), tuple(structures), outline(rng, (0.95, 1.4)), None)


def chest_slice(rng: Rng) -> Anatomy:
    """Return a heart in short-axis view, surrounded by lung, liver and a chest wall with fat."""
    body = outline(rng)
    lung = organ((0.45, -0.05, 0.0), (0.4, 0.5, 1.5), rng, 0.15, paired=True, made_of=(Kind.LUNG,))
    liver = organ((-0.4, 0.6, 0.0), (0.5, 0.35, 1.0), rng, 0.1)
    spot = (rng.between(-0.1, 0.35), rng.between(-0.3, 0.2), 0.0)
    structures: list[Structure] = [lung, liver, *heart(rng, spot), *_coats(body, rng)]
    structures.append(tube(rng))
    return Anatomy(Field.random(rng.integer(2, 5), rng.integer(3, 6), rng), tuple(structures), body, None)


def head(rng: Rng) -> Anatomy:
    """Return a skull or a jaw around paired glands, organs and a cord; it may be much smaller than the picture."""
    body = outline(rng, (0.55, 0.9))
    outer = rng.between(0.05, 0.2)
    gaps = Field.random(1, 3, rng) if rng.chance(0.6) else None
    structures: list[Structure] = [Coat(body, outer, outer + rng.between(0.06, 0.15), Kind.BONE, gaps)]
    for _ in range(rng.integer(1, 3)):
        structures.append(random_organ(rng, paired=True, widest=0.25, sides_distinct=rng.chance(0.8)))
    for _ in range(rng.integer(1, 3)):
        structures.append(random_organ(rng, widest=0.2))
    cord = organ((0.0, rng.between(0.1, 0.5), 0.0), (0.08, 0.07, 2.0), rng, 0.05, layers=(0.6,))
    structures.append(cord if rng.chance(0.5) else tube(rng))
    return Anatomy(Field.random(rng.integer(2, 6), rng.integer(4, 8), rng), tuple(structures), body, None)


def two_part(rng: Rng) -> Anatomy:
    """Return an enlarged organ of two parts with the same appearance, as the hippocampus with its head and tail."""
    angle = rng.between(-math.pi, math.pi)
    normal = rng.tensor([math.cos(angle), math.sin(angle), rng.gauss(0.2)])
    spread = rng.tensor([rng.between(0.4, 0.65), 0.3, 0.5])  # longest across the cut
    axes = rotation([0.0, 0.0, -angle]).to(spread.device) / spread[:, None]
    wave = Field.random(1, rng.integer(3, 6), rng)
    place = rng.tensor(rng.point((0.2, 0.2, 0.1)))
    main = Organ(place, axes, wave, rng.between(0.1, 0.35), False, (), cut=normal)
    around: list[Structure] = [random_organ(rng) for _ in range(rng.integer(1, 4))]
    return Anatomy(Field.random(rng.integer(3, 6), rng.integer(3, 7), rng), (*around, main), None, None)


def retina(rng: Rng) -> Anatomy:
    """Return an optic disc with its cup, a macula, and vessels that branch from the disc."""
    x, y = rng.between(-0.5, 0.5), rng.between(-0.15, 0.15)
    size = rng.between(0.1, 0.22)
    cup = rng.between(0.35, 0.75)
    radii = (size, size * rng.between(0.95, 1.15), 3.0)
    made = (Kind.DISC, Kind.CUP)
    disc = organ((x, y, 0.0), radii, rng, rng.between(0.0, 0.1), layers=(cup,), made_of=made)
    macula = organ((x + (0.8 if x < 0 else -0.8), y + 0.05, 0.0), (0.14, 0.14, 3.0), rng, 0.1)
    structures: list[Structure] = [macula, disc, tree(rng, (x, y, 0.0), retinal=True)]
    if rng.chance(0.3):
        structures.append(lesions(rng, None, widest=0.12))
    return Anatomy(Field.random(rng.integer(1, 2), 3, rng), tuple(structures), None, None)


def mucosa(rng: Rng) -> Anatomy:
    """Return mucosa as in endoscopy: regions, polyps at any position, sometimes the dark lumen."""
    structures: list[Structure] = []
    if rng.chance(0.5):
        place = (rng.between(-0.7, 0.7), rng.between(-0.7, 0.7), 0.0)
        wide = rng.between(0.2, 0.55)
        structures.append(organ(place, (wide, wide, 2.0), rng, 0.25, made_of=(Kind.LUNG,)))
    structures.append(lesions(rng, None, smallest=0.12, widest=0.5, fewest=1))
    if rng.chance(0.3):
        structures.append(random_organ(rng))
    return Anatomy(Field.random(rng.integer(1, 3), rng.integer(2, 4), rng), tuple(structures), None, None)


def tissue_layers(rng: Rng) -> Anatomy:
    """Return layers of skin, fat and muscle with a lesion, sometimes a cavity, as in breast ultrasound."""
    structures: list[Structure] = [lesions(rng, [0.0, rng.between(-0.4, 0.1), 0.0], widest=0.4, fewest=1)]
    for _ in range(rng.integer(0, 2)):
        made = (Kind.WALL, Kind.CAVITY) if rng.chance(0.5) else (Kind.ORGAN, Kind.CAVITY)
        structures.insert(0, random_organ(rng, made_of=made))
    stretch = rng.tensor([rng.between(0.2, 0.5), rng.between(1.0, 2.0), 1.0])
    return Anatomy(Field.random(rng.integer(3, 7), rng.integer(3, 6), rng), tuple(structures), None, stretch)


def chambers(rng: Rng) -> Anatomy:
    """Return a long heart chamber with a wall and two smaller chambers below it, as in echocardiography."""
    tall, wide = rng.between(0.45, 0.7), rng.between(0.18, 0.32)
    place = (rng.between(-0.15, 0.15), rng.between(-0.2, 0.1), 0.0)
    made = (Kind.WALL, Kind.CAVITY)
    main = organ(place, (wide, tall, 1.0), rng, rng.between(0, 0.1), layers=(rng.between(0.6, 0.85),), made_of=made)
    structures: list[Structure] = []
    for x in (-0.35, 0.2):
        place = (x + rng.gauss(0.05), rng.between(0.5, 0.8), 0.0)
        size = (rng.between(0.15, 0.3), rng.between(0.15, 0.25), 1.0)
        structures.append(organ(place, size, rng, made_of=(Kind.CAVITY,)))
    return Anatomy(Field.random(rng.integer(2, 5), rng.integer(3, 5), rng), (*structures, main), None, None)


def cells(rng: Rng) -> Anatomy:
    """Return many cells of one or two kinds, some of them with a nucleus."""
    structures: list[Structure] = []
    for _ in range(1 + rng.chance(0.25)):
        low = rng.between(0.035, 0.14)
        most = min(120, int(rng.between(0.25, 1.0) / low**2))
        size = (low, low * rng.between(1.1, 1.6))
        around, reach = (0.0, 0.0, 0.0), (1.1, 1.1, 0.35)
        structures.append(Blobs.random(Kind.CELL, (max(6, most // 3), max(10, most)), size, around, reach, rng))
    regions = rng.integer(1, 3) if rng.chance(0.3) else 1
    return Anatomy(Field.random(regions, rng.integer(2, 8), rng), tuple(structures), None, None)


def organ(
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    rng: Rng,
    waviness: float = 0.08,
    paired: bool = False,
    layers: tuple[float, ...] = (),
    made_of: tuple[Kind, ...] = (Kind.ORGAN, Kind.CAVITY, Kind.ORGAN),
) -> Organ:
    """Return an ellipsoid of these radii, its axes along x, y and z."""
    axes = torch.diag(1 / rng.tensor(radii))
    wave = Field.random(1, rng.integer(3, 6), rng)
    return Organ(rng.tensor(centre), axes, wave, waviness, paired, layers, made_of)


def random_organ(
    rng: Rng,
    paired: bool | None = None,
    widest: float = 0.5,
    sides_distinct: bool = True,
    made_of: tuple[Kind, ...] | None = None,
) -> Organ:
    """Return an organ at a random position; its radius is 0.05 to `widest` (the body has about 1)."""
    radius = 0.05 * (widest / 0.05) ** rng.host.random()
    spread = torch.tensor([radius * math.exp(rng.gauss(0.35)) for _ in range(3)])
    spread[2] = spread[2].clamp_min(0.2)  # so that slices away from the centre still cut it
    axes = rotation([rng.gauss(0.3), rng.gauss(0.3), rng.gauss(1.5)]) / spread[:, None]
    centre = rng.point((0.6, 0.6, 0.4))
    paired = rng.chance(0.25) if paired is None else paired
    if paired:
        centre[0] = min(0.7, radius + 0.05 + rng.between(0, 0.4))
    layers: tuple[float, ...] = ()
    if rng.chance(0.35):
        deepest = 0.85 if rng.chance(0.6) else 0.92
        layers = tuple(sorted((rng.between(0.35, deepest) for _ in range(rng.integer(1, 2))), reverse=True))
    kinds = made_of or (
        (Kind.WALL, Kind.CAVITY, Kind.ORGAN) if layers and rng.chance(0.5) else (Kind.ORGAN, Kind.CAVITY, Kind.ORGAN)
    )
    cut = rng.tensor([rng.gauss(), rng.gauss(), rng.gauss(0.3)]) if rng.chance(0.1) and not layers else None
    wave = Field.random(1, rng.integer(4, 9), rng)
    kinds = kinds + (Kind.ORGAN,) * (1 + len(layers) - len(kinds))
    sides_distinct = sides_distinct and rng.chance(0.85)
    place, axes = rng.tensor(centre), axes.to(wave.values.device)
    return Organ(place, axes, wave, rng.between(0, 0.25), paired, layers, kinds, sides_distinct, cut)


def heart(rng: Rng, centre: tuple[float, ...]) -> list[Structure]:
    """Return a ring of muscle around a chamber, and a crescent-shaped chamber at its side."""
    radius = rng.between(0.12, 0.28)
    angle = rng.between(0, 2 * math.pi)
    away = radius * rng.between(0.7, 1.1)
    side = (centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle), centre[2])
    crescent = organ(side, (1.05 * radius, rng.between(0.9, 1.3) * radius, 0.8), rng, 0.12, made_of=(Kind.CAVITY,))
    thin = (rng.between(0.6, 0.85),)
    place = (centre[0], centre[1], centre[2])
    ring = organ(place, (radius, radius, 0.9), rng, 0.05, layers=thin, made_of=(Kind.WALL, Kind.CAVITY))
    return [crescent, ring]


def lesions(rng: Rng, host: list[float] | None, smallest: float = 0.04, widest: float = 0.4, fewest: int = 0) -> Blobs:
    """Return up to three irregular lesions at any position, or near the point `host`."""
    around, reach = ((0.0, 0.0, 0.0), (0.6, 0.6, 0.3)) if host is None else (tuple(host), (0.2, 0.2, 0.15))
    low = rng.between(smallest, max(smallest, 0.6 * widest))
    size = (low, rng.between(low, widest))
    middle = (around[0], around[1], around[2])
    return Blobs.random(Kind.LESION, (fewest, rng.integer(1, 3)), size, middle, reach, rng)


def tube(rng: Rng) -> Tube:
    """Return a tube through a few random points, mostly along z, so that axial slices cut it."""
    knots = torch.tensor([[*rng.point((0.5, 0.5)), z + rng.between(-0.3, 0.3)] for z in (-1, -0.5, 0, 0.5, 1)])
    path = F.interpolate(knots.T[None], size=32, mode="linear", align_corners=True)
    path = F.avg_pool1d(F.pad(path, (3, 3), mode="replicate"), 7, stride=1)[0].T
    kind = rng.host.choice([Kind.VESSEL, Kind.ORGAN])
    return joined([path], [torch.full((32,), rng.between(0.03, 0.16))], rng, rng.chance(0.3), kind)


def tree(rng: Rng, root: tuple[float, ...], retinal: bool = False) -> Tube:
    """Return winding vessels that start at `root`, become thinner and branch."""
    branches, radii = [], []
    width = rng.between(0.008, 0.022) if retinal else rng.between(0.03, 0.08)
    for number in range(rng.integer(4, 6) if retinal else rng.integer(2, 4)):
        heading = rng.between(0, 2 * math.pi)
        if retinal:  # vascular arcades leave the optic disc upwards and downwards
            heading = (0.5 + number % 2) * math.pi + rng.gauss(0.4)
        trunk = winding(list(root), heading, rng.between(0.7, 1.6), rng)
        side = winding(
            trunk[rng.integer(4, 10)].tolist(), heading + rng.host.choice([-0.7, 0.7]), rng.between(0.3, 0.9), rng
        )
        branches += [trunk, side]
        radii += [width * torch.linspace(1, 0.4, len(trunk)), width * torch.linspace(0.6, 0.3, len(side))]
    return joined(branches, radii, rng, False, Kind.VESSEL, flat=retinal)


def winding(start: list[float], heading: float, length: float, rng: Rng) -> torch.Tensor:
    """Return the points of a curve that changes direction slowly."""
    bend, pieces = rng.gauss(1.0), 16
    points = [start]
    for _ in range(pieces):
        heading += bend / pieces + rng.gauss(0.15)
        x, y, z = points[-1]
        step = length / pieces
        points.append([x + step * math.cos(heading), y + step * math.sin(heading), z + rng.gauss(0.3 * step)])
    return torch.tensor(points)


def joined(
    paths: list[torch.Tensor],
    radii: list[torch.Tensor],
    rng: Rng,
    hollow: bool = False,
    kind: Kind = Kind.VESSEL,
    flat: bool = False,
) -> Tube:
    """Return the tube around these curves; `radii` has one radius per point of each curve."""
    start = torch.cat([path[:-1] for path in paths])
    end = torch.cat([path[1:] for path in paths])
    radius = torch.cat([radius[:-1] for radius in radii])
    device = rng.generator.device
    return Tube(start.to(device), end.to(device), radius.to(device), hollow, kind, flat)


def outline(rng: Rng, between: tuple[float, float] = (0.75, 1.05)) -> Organ:
    """Return the surface of a body that hardly changes along z."""
    radii = (rng.between(*between), rng.between(*between), 3.0)
    return organ((0.0, 0.0, 0.0), radii, rng, rng.between(0, 0.06))


def _coats(body: Organ, rng: Rng) -> list[Structure]:
    """Return a layer of fat under the skin and one of bone below it, each with some probability."""
    coats: list[Structure] = []
    fat = rng.between(0.03, 0.16)
    if rng.chance(0.3):
        gaps = Field.random(1, rng.integer(4, 9), rng) if rng.chance(0.7) else None
        coats.append(Coat(body, fat, fat + rng.between(0.04, 0.1), Kind.BONE, gaps))
    if rng.chance(0.5):
        coats.append(Coat(body, 0.0, fat, Kind.FAT))
    return coats
