"""What may be in the picture: synthetic bodies, hearts, chests, heads, retinas, mucosa, tissue layers and cells."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from handful.synthesis.anatomy import Anatomy, Blobs, Coat, Field, Kind, Organ, Structure, Tube, rotation
from handful.synthesis.draw import Draw


def random_anatomy(draw: Draw) -> Anatomy:
    """A body of tissue regions with 2 to 8 organs, pairs, layers, two-part organs, tubes, trees, hearts and lesions."""
    structures: list[Structure] = []
    for _ in range(draw.integer(2, 8)):
        choice = draw.host.random()
        if choice < 0.65:
            structures.append(random_organ(draw))
        elif choice < 0.77:
            structures.append(tube(draw))
        elif choice < 0.85:
            structures += heart(draw, (draw.between(-0.4, 0.4), draw.between(-0.4, 0.4), 0.0))
        elif choice < 0.9:
            structures.append(tree(draw, tuple(draw.point((0.4, 0.4, 0.3)))))
        elif choice < 0.93:
            size = draw.between(0.025, 0.06)
            structures.append(
                Blobs.random(Kind.CELL, (8, 40), (size, 1.5 * size), (0.0, 0.0, 0.0), (0.7, 0.7, 0.4), draw)
            )
        else:
            host = structures[-1].middle if structures else None
            structures.append(lesions(draw, host))
    body = _body(draw) if draw.chance(0.7) else None
    if body is not None:
        structures += _coats(body, draw)
    stretch = draw.tensor([0.4, draw.between(1, 3), 1.0]) if draw.chance(0.12) else None
    regions = Field.random(draw.integer(2, 7), draw.integer(2, 7), draw)
    return Anatomy(regions, tuple(structures), body, stretch)


def chest(draw: Draw) -> Anatomy:
    """Paired lungs, a heart between them, a diaphragm, in the plane of an X-ray: z changes little."""
    lung = organ(
        (draw.between(0.4, 0.48), draw.between(-0.25, -0.1), 0.0),
        (draw.between(0.3, 0.4), draw.between(0.6, 0.8), 3.0),
        draw,
        waviness=draw.between(0.02, 0.12),
        paired=True,
        made_of=(Kind.LUNG,),
    )
    size = draw.between(0.2, 0.36)
    core = organ((0.12, draw.between(0.05, 0.25), 0.0), (size, 1.25 * size, 3.0), draw, draw.between(0, 0.15))
    middle = organ((0.0, -0.3, 0.0), (draw.between(0.08, 0.16), 0.7, 3.0), draw, draw.between(0, 0.15))
    belly = organ((0.0, 1.0, 0.0), (1.3, draw.between(0.5, 0.75), 3.0), draw, draw.between(0.05, 0.2))
    structures: list[Structure] = [lung, belly, middle, core]
    if draw.chance(0.3):
        structures.append(lesions(draw, [lung.centre[0].item(), -0.15, 0.0]))
    return Anatomy(Field.random(draw.integer(1, 3), 3, draw), tuple(structures), _body(draw, (0.95, 1.4)), None)


def chest_slice(draw: Draw) -> Anatomy:
    """A heart as its short axis shows it, among lung, liver and a fatty chest wall."""
    body = _body(draw)
    lung = organ((0.45, -0.05, 0.0), (0.4, 0.5, 1.5), draw, 0.15, paired=True, made_of=(Kind.LUNG,))
    liver = organ((-0.4, 0.6, 0.0), (0.5, 0.35, 1.0), draw, 0.1)
    spot = (draw.between(-0.1, 0.35), draw.between(-0.3, 0.2), 0.0)
    structures: list[Structure] = [lung, liver, *heart(draw, spot), *_coats(body, draw)]
    structures.append(tube(draw))
    return Anatomy(Field.random(draw.integer(2, 5), draw.integer(3, 6), draw), tuple(structures), body, None)


def head(draw: Draw) -> Anatomy:
    """A skull or a jaw around paired glands, a stem and a cord; much smaller than the picture, perhaps."""
    body = _body(draw, (0.55, 0.9))
    outer = draw.between(0.05, 0.2)
    gaps = Field.random(1, 3, draw) if draw.chance(0.6) else None
    structures: list[Structure] = [Coat(body, outer, outer + draw.between(0.06, 0.15), Kind.BONE, gaps)]
    for _ in range(draw.integer(1, 3)):
        structures.append(random_organ(draw, paired=True, widest=0.25, told_apart=draw.chance(0.8)))
    for _ in range(draw.integer(1, 3)):
        structures.append(random_organ(draw, widest=0.2))
    cord = organ((0.0, draw.between(0.1, 0.5), 0.0), (0.08, 0.07, 2.0), draw, 0.05, layers=(0.6,))
    structures.append(cord if draw.chance(0.5) else tube(draw))
    return Anatomy(Field.random(draw.integer(2, 6), draw.integer(4, 8), draw), tuple(structures), body, None)


def two_part(draw: Draw) -> Anatomy:
    """A close look at a bent organ of two parts that look the same: hippocampus with head and tail."""
    angle = draw.between(-math.pi, math.pi)
    normal = draw.tensor([math.cos(angle), math.sin(angle), draw.gauss(0.2)])
    spread = draw.tensor([draw.between(0.4, 0.65), 0.3, 0.5])  # longest across the cut
    axes = rotation([0.0, 0.0, -angle]).to(spread.device) / spread[:, None]
    wave = Field.random(1, draw.integer(3, 6), draw)
    place = draw.tensor(draw.point((0.2, 0.2, 0.1)))
    main = Organ(place, axes, wave, draw.between(0.1, 0.35), False, (), cut=normal)
    around: list[Structure] = [random_organ(draw) for _ in range(draw.integer(1, 4))]
    return Anatomy(Field.random(draw.integer(3, 6), draw.integer(3, 7), draw), (*around, main), None, None)


def retina(draw: Draw) -> Anatomy:
    """A disc with a cup in it, a macula, and vessels that branch out of the disc."""
    x, y = draw.between(-0.5, 0.5), draw.between(-0.15, 0.15)
    size = draw.between(0.1, 0.22)
    cup = draw.between(0.35, 0.75)
    round_one = (size, size * draw.between(0.95, 1.15), 3.0)
    made = (Kind.DISC, Kind.CUP)
    disc = organ((x, y, 0.0), round_one, draw, draw.between(0.0, 0.1), layers=(cup,), made_of=made)
    macula = organ((x + (0.8 if x < 0 else -0.8), y + 0.05, 0.0), (0.14, 0.14, 3.0), draw, 0.1)
    structures: list[Structure] = [macula, disc, tree(draw, (x, y, 0.0), retinal=True)]
    if draw.chance(0.3):
        structures.append(lesions(draw, None, widest=0.12))
    return Anatomy(Field.random(draw.integer(1, 2), 3, draw), tuple(structures), None, None)


def mucosa(draw: Draw) -> Anatomy:
    """Folds of one colour, sometimes the dark of the lumen, and polyps that lie anywhere."""
    structures: list[Structure] = []
    if draw.chance(0.5):
        place = (draw.between(-0.7, 0.7), draw.between(-0.7, 0.7), 0.0)
        wide = draw.between(0.2, 0.55)
        structures.append(organ(place, (wide, wide, 2.0), draw, 0.25, made_of=(Kind.LUNG,)))
    structures.append(lesions(draw, None, smallest=0.12, widest=0.5, fewest=1))
    if draw.chance(0.3):
        structures.append(random_organ(draw))
    return Anatomy(Field.random(draw.integer(1, 3), draw.integer(2, 4), draw), tuple(structures), None, None)


def tissue_layers(draw: Draw) -> Anatomy:
    """Skin, fat and muscle one under the other, with a lesion or a cavity somewhere: an ultrasound of the breast."""
    structures: list[Structure] = [lesions(draw, [0.0, draw.between(-0.4, 0.1), 0.0], widest=0.4, fewest=1)]
    for _ in range(draw.integer(0, 2)):
        made = (Kind.WALL, Kind.CAVITY) if draw.chance(0.5) else (Kind.ORGAN, Kind.CAVITY)
        structures.insert(0, random_organ(draw, made_of=made))
    stretch = draw.tensor([draw.between(0.2, 0.5), draw.between(1.0, 2.0), 1.0])
    return Anatomy(Field.random(draw.integer(3, 7), draw.integer(3, 6), draw), tuple(structures), None, stretch)


def chambers(draw: Draw) -> Anatomy:
    """A long chamber with a bright wall and smaller ones below: a heart as an ultrasound fan shows it."""
    tall, wide = draw.between(0.45, 0.7), draw.between(0.18, 0.32)
    place = (draw.between(-0.15, 0.15), draw.between(-0.2, 0.1), 0.0)
    made = (Kind.WALL, Kind.CAVITY)
    main = organ(place, (wide, tall, 1.0), draw, draw.between(0, 0.1), layers=(draw.between(0.6, 0.85),), made_of=made)
    structures: list[Structure] = []
    for x in (-0.35, 0.2):
        place = (x + draw.gauss(0.05), draw.between(0.5, 0.8), 0.0)
        size = (draw.between(0.15, 0.3), draw.between(0.15, 0.25), 1.0)
        structures.append(organ(place, size, draw, made_of=(Kind.CAVITY,)))
    return Anatomy(Field.random(draw.integer(2, 5), draw.integer(3, 5), draw), (*structures, main), None, None)


def cells(draw: Draw) -> Anatomy:
    """Ten to eighty cells of one or two kinds, some with a nucleus."""
    structures: list[Structure] = []
    for _ in range(1 + draw.chance(0.25)):
        low = draw.between(0.035, 0.14)
        most = min(120, int(draw.between(0.25, 1.0) / low**2))
        size = (low, low * draw.between(1.1, 1.6))
        around, reach = (0.0, 0.0, 0.0), (1.1, 1.1, 0.35)
        structures.append(Blobs.random(Kind.CELL, (max(6, most // 3), max(10, most)), size, around, reach, draw))
    regions = draw.integer(1, 3) if draw.chance(0.3) else 1
    return Anatomy(Field.random(regions, draw.integer(2, 8), draw), tuple(structures), None, None)


def organ(
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    draw: Draw,
    waviness: float = 0.08,
    paired: bool = False,
    layers: tuple[float, ...] = (),
    made_of: tuple[Kind, ...] = (Kind.ORGAN, Kind.CAVITY, Kind.ORGAN),
) -> Organ:
    """An upright ellipsoid of these radii."""
    axes = torch.diag(1 / draw.tensor(radii))
    wave = Field.random(1, draw.integer(3, 6), draw)
    return Organ(draw.tensor(centre), axes, wave, waviness, paired, layers, made_of)


def random_organ(
    draw: Draw,
    paired: bool | None = None,
    widest: float = 0.5,
    told_apart: bool = True,
    made_of: tuple[Kind, ...] | None = None,
) -> Organ:
    """A blob somewhere in the body, a twentieth to half of it wide."""
    radius = 0.05 * (widest / 0.05) ** draw.host.random()
    spread = torch.tensor([radius * math.exp(draw.gauss(0.35)) for _ in range(3)])
    spread[2] = spread[2].clamp_min(0.2)  # slices away from the centre should still meet it
    axes = rotation([draw.gauss(0.3), draw.gauss(0.3), draw.gauss(1.5)]) / spread[:, None]
    centre = draw.point((0.6, 0.6, 0.4))
    paired = draw.chance(0.25) if paired is None else paired
    if paired:
        centre[0] = min(0.7, radius + 0.05 + draw.between(0, 0.4))
    layers: tuple[float, ...] = ()
    if draw.chance(0.35):
        deepest = 0.85 if draw.chance(0.6) else 0.92
        layers = tuple(sorted((draw.between(0.35, deepest) for _ in range(draw.integer(1, 2))), reverse=True))
    kinds = made_of or (
        (Kind.WALL, Kind.CAVITY, Kind.ORGAN) if layers and draw.chance(0.5) else (Kind.ORGAN, Kind.CAVITY, Kind.ORGAN)
    )
    cut = draw.tensor([draw.gauss(), draw.gauss(), draw.gauss(0.3)]) if draw.chance(0.1) and not layers else None
    wave = Field.random(1, draw.integer(4, 9), draw)
    kinds = kinds + (Kind.ORGAN,) * (1 + len(layers) - len(kinds))
    told_apart = told_apart and draw.chance(0.85)
    place, axes = draw.tensor(centre), axes.to(wave.values.device)
    return Organ(place, axes, wave, draw.between(0, 0.25), paired, layers, kinds, told_apart, cut)


def heart(draw: Draw, centre: tuple[float, ...]) -> list[Structure]:
    """A ring of muscle around a chamber, and a crescent that hugs it."""
    radius = draw.between(0.12, 0.28)
    angle = draw.between(0, 2 * math.pi)
    away = radius * draw.between(0.7, 1.1)
    beside = (centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle), centre[2])
    crescent = organ(beside, (1.05 * radius, draw.between(0.9, 1.3) * radius, 0.8), draw, 0.12, made_of=(Kind.CAVITY,))
    thin = (draw.between(0.6, 0.85),)
    place = (centre[0], centre[1], centre[2])
    ring = organ(place, (radius, radius, 0.9), draw, 0.05, layers=thin, made_of=(Kind.WALL, Kind.CAVITY))
    return [crescent, ring]


def lesions(
    draw: Draw, host: list[float] | None, smallest: float = 0.04, widest: float = 0.4, fewest: int = 0
) -> Blobs:
    """Up to three irregular blobs of one kind, 3 to 40 % of the width, anywhere or near the middle of a host."""
    around, reach = ((0.0, 0.0, 0.0), (0.6, 0.6, 0.3)) if host is None else (tuple(host), (0.2, 0.2, 0.15))
    low = draw.between(smallest, max(smallest, 0.6 * widest))
    size = (low, draw.between(low, widest))
    middle = (around[0], around[1], around[2])
    return Blobs.random(Kind.LESION, (fewest, draw.integer(1, 3)), size, middle, reach, draw)


def tube(draw: Draw) -> Tube:
    """A curve through a few random points, mostly along z so that axial slices cut it."""
    knots = torch.tensor([[*draw.point((0.5, 0.5)), z + draw.between(-0.3, 0.3)] for z in (-1, -0.5, 0, 0.5, 1)])
    path = F.interpolate(knots.T[None], size=32, mode="linear", align_corners=True)
    path = F.avg_pool1d(F.pad(path, (3, 3), mode="replicate"), 7, stride=1)[0].T
    kind = draw.host.choice([Kind.VESSEL, Kind.ORGAN])
    return _joined([path], [torch.full((32,), draw.between(0.03, 0.16))], draw, draw.chance(0.3), kind)


def tree(draw: Draw, root: tuple[float, ...], retinal: bool = False) -> Tube:
    """Vessels that leave a root, wind, grow thinner and branch."""
    branches, radii = [], []
    width = draw.between(0.008, 0.022) if retinal else draw.between(0.03, 0.08)
    for number in range(draw.integer(4, 6) if retinal else draw.integer(2, 4)):
        heading = draw.between(0, 2 * math.pi)
        if retinal:  # arcades leave a retina's disc up and down
            heading = (0.5 + number % 2) * math.pi + draw.gauss(0.4)
        trunk = _winding(list(root), heading, draw.between(0.7, 1.6), draw)
        side = _winding(
            trunk[draw.integer(4, 10)].tolist(), heading + draw.host.choice([-0.7, 0.7]), draw.between(0.3, 0.9), draw
        )
        branches += [trunk, side]
        radii += [width * torch.linspace(1, 0.4, len(trunk)), width * torch.linspace(0.6, 0.3, len(side))]
    return _joined(branches, radii, draw, False, Kind.VESSEL, flat=retinal)


def _winding(start: list[float], heading: float, length: float, draw: Draw) -> torch.Tensor:
    """Points of a curve whose heading drifts."""
    bend, pieces = draw.gauss(1.0), 16
    points = [start]
    for _ in range(pieces):
        heading += bend / pieces + draw.gauss(0.15)
        x, y, z = points[-1]
        step = length / pieces
        points.append([x + step * math.cos(heading), y + step * math.sin(heading), z + draw.gauss(0.3 * step)])
    return torch.tensor(points)


def _joined(
    paths: list[torch.Tensor], radii: list[torch.Tensor], draw: Draw, hollow: bool, kind: Kind, flat: bool = False
) -> Tube:
    start = torch.cat([path[:-1] for path in paths])
    end = torch.cat([path[1:] for path in paths])
    radius = torch.cat([radius[:-1] for radius in radii])
    device = draw.generator.device
    return Tube(start.to(device), end.to(device), radius.to(device), hollow, kind, flat)


def _body(draw: Draw, between: tuple[float, float] = (0.75, 1.05)) -> Organ:
    radii = (draw.between(*between), draw.between(*between), 3.0)
    return organ((0.0, 0.0, 0.0), radii, draw, draw.between(0, 0.06))


def _coats(body: Organ, draw: Draw) -> list[Structure]:
    """Fat under the skin and bone under the fat, each perhaps."""
    found: list[Structure] = []
    fat = draw.between(0.03, 0.16)
    if draw.chance(0.3):
        gaps = Field.random(1, draw.integer(4, 9), draw) if draw.chance(0.7) else None
        found.append(Coat(body, fat, fat + draw.between(0.04, 0.1), Kind.BONE, gaps))
    if draw.chance(0.5):
        found.append(Coat(body, 0.0, fat, Kind.FAT))
    return found
