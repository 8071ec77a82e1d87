"""More anatomies, for the wide world: rings, tubes, trunks and limbs as X-rays show them, rows, skin and glands."""

from __future__ import annotations

import math

import torch

from handful.synthesis.anatomy import Anatomy, Blobs, Coat, Field, Kind, Row, Structure
from handful.synthesis.bodies import joined, lesions, organ, outline, random_organ, tree, tube, winding
from handful.synthesis.rng import Rng


def rings(rng: Rng) -> Anatomy:
    """Return up to three organs with a thin wall around a cavity, among other organs."""
    structures: list[Structure] = [random_organ(rng) for _ in range(rng.integer(0, 3))]
    for _ in range(rng.integer(1, 3)):
        radius = 0.08 * (0.45 / 0.08) ** rng.host.random()
        place = (rng.between(-0.5, 0.5), rng.between(-0.5, 0.5), rng.between(-0.2, 0.2))
        radii = (radius, radius * math.exp(rng.gauss(0.25)), rng.between(0.3, 1.0))
        made = (Kind.WALL, Kind.CAVITY) if rng.chance(0.7) else (Kind.ORGAN, Kind.ORGAN)
        layers = (rng.between(0.5, 0.9),)
        structures.append(organ(place, radii, rng, rng.between(0, 0.15), rng.chance(0.15), layers, made))
    around = outline(rng) if rng.chance(0.5) else None
    return Anatomy(Field.random(rng.integer(2, 6), rng.integer(2, 6), rng), tuple(structures), around, None)


def tubes(rng: Rng) -> Anatomy:
    """Return two to four tubes among organs: vessels, trees, and loops that lie in the plane of axial slices."""
    structures: list[Structure] = [random_organ(rng) for _ in range(rng.integer(0, 2))]
    for _ in range(rng.integer(2, 4)):
        choice = rng.host.random()
        if choice < 0.4:
            structures.append(tube(rng))
        elif choice < 0.65:
            structures.append(tree(rng, tuple(rng.point((0.5, 0.5, 0.2)))))
        else:
            structures.append(_loop(rng))
    around = outline(rng) if rng.chance(0.6) else None
    return Anatomy(Field.random(rng.integer(2, 6), rng.integer(2, 6), rng), tuple(structures), around, None)


def torso(rng: Rng) -> Anatomy:
    """Return a trunk of finite depth for projections: lungs, heart, diaphragm, spine, ribs, sometimes lesions."""
    trunk = organ((0.0, 0.0, 0.0), (rng.between(0.85, 1.0), rng.between(1.1, 1.5), 0.75), rng, 0.03)
    lung = organ(
        (rng.between(0.4, 0.48), rng.between(-0.25, -0.1), 0.0),
        (rng.between(0.28, 0.36), rng.between(0.55, 0.75), rng.between(0.45, 0.6)),
        rng,
        waviness=rng.between(0.02, 0.12),
        paired=True,
        made_of=(Kind.LUNG,),
    )
    size = rng.between(0.2, 0.33)
    heart = organ((0.13, rng.between(0.05, 0.25), 0.2), (size, 1.2 * size, 0.3), rng, rng.between(0, 0.12))
    belly = organ((0.0, 1.0, 0.0), (1.2, rng.between(0.5, 0.7), 0.7), rng, rng.between(0.05, 0.15))
    spine = _spine(rng, (0.0, 0.0, -0.45), rng.between(0.07, 0.11))
    gaps = Field.random(1, rng.integer(7, 11), rng)
    start = rng.between(0.06, 0.14)
    ribs = Coat(trunk, start, start + rng.between(0.04, 0.08), Kind.BONE, gaps)
    structures: list[Structure] = [belly, heart, lung, spine, ribs]
    if rng.chance(0.4):
        structures.append(lesions(rng, [float(lung.centre[0]), -0.15, 0.0], widest=0.25, fewest=1))
    return Anatomy(Field.random(rng.integer(1, 3), 3, rng), tuple(structures), trunk, None)


def limb(rng: Rng) -> Anatomy:
    """Return two to five long bones in soft tissue, as in a hand, a forearm or a leg."""
    structures: list[Structure] = []
    many = rng.integer(2, 5)
    lean = rng.gauss(0.2)
    for number in range(many):
        x = (number - (many - 1) / 2) * 1.2 / many + rng.gauss(0.03)
        for top, bottom in ((-1.1, rng.between(-0.2, 0.1)), (rng.between(0.15, 0.25), 1.1)):
            height = (bottom - top) / 2
            wide = rng.between(0.06, 0.32 / many + 0.06)
            place = (x + lean * (top + height), top + height, rng.gauss(0.05))
            radii = (wide, height * rng.between(0.85, 0.98), wide)
            layers = (rng.between(0.5, 0.75),) if rng.chance(0.4) else ()
            made = (Kind.BONE, Kind.CAVITY)
            structures.append(organ(place, radii, rng, rng.between(0.02, 0.1), layers=layers, made_of=made))
    around = organ((0.0, 0.0, 0.0), (rng.between(0.65, 0.95), 2.0, 0.5), rng, 0.05)
    return Anatomy(Field.random(rng.integer(1, 3), 3, rng), tuple(structures), around, None)


def column(rng: Rng) -> Anatomy:
    """Return a row of similar objects, such as vertebrae or teeth, with discs between them and organs around."""
    spine = _spine(rng, (rng.gauss(0.15), 0.0, 0.0), rng.between(0.09, 0.2))
    structures: list[Structure] = [random_organ(rng) for _ in range(rng.integer(0, 3))]
    structures.append(spine)
    if rng.chance(0.5):
        structures.append(_loop(rng))
    around = outline(rng) if rng.chance(0.5) else None
    return Anatomy(Field.random(rng.integer(2, 5), rng.integer(3, 6), rng), tuple(structures), around, None)


def skin(rng: Rng) -> Anatomy:
    """Return skin or a wound: one irregular lesion, often with a core, sometimes under hairs."""
    place = (rng.gauss(0.15), rng.gauss(0.15), 0.0)
    radius = rng.between(0.15, 0.6)
    layers = (rng.between(0.3, 0.75),) if rng.chance(0.4) else ()
    radii = (radius, radius * math.exp(rng.gauss(0.25)), 2.0)
    made = (Kind.LESION, Kind.ORGAN)
    structures: list[Structure] = [organ(place, radii, rng, rng.between(0.05, 0.4), layers=layers, made_of=made)]
    if rng.chance(0.4):
        structures.append(lesions(rng, None, smallest=0.02, widest=0.15))
    if rng.chance(0.3):
        paths = [_hair(rng) for _ in range(rng.integer(2, 12))]
        structures.append(joined(paths, [torch.full((len(path),), 0.008) for path in paths], rng, flat=True))
    return Anatomy(Field.random(rng.integer(1, 3), rng.integer(2, 5), rng), tuple(structures), None, None)


def glands(rng: Rng) -> Anatomy:
    """Return rings of cells around a lumen, and scattered nuclei, as in stained tissue."""
    low = rng.between(0.1, 0.25)
    around, reach = (0.0, 0.0, 0.0), (1.0, 1.0, 0.3)
    size = (low, low * rng.between(1.1, 1.8))
    wave = Field.random(1, rng.integer(5, 12), rng)
    nothing = rng.normal(0, 3)
    core = rng.between(0.4, 0.75)
    most = rng.integer(4, max(5, int(1.2 / low**2 / 3)))
    ring = Blobs(nothing, nothing, wave, rng.between(0, 0.3), Kind.CAVITY, core, 3, most, size, around, reach)
    small = rng.between(0.02, 0.05)
    nuclei = Blobs.random(Kind.CELL, (10, rng.integer(20, 90)), (small, 1.6 * small), around, reach, rng)
    structures = (nuclei, ring.individual(rng)) if rng.chance(0.5) else (ring.individual(rng), nuclei)
    return Anatomy(Field.random(rng.integer(1, 3), rng.integer(3, 8), rng), structures, None, None)


def _spine(rng: Rng, place: tuple[float, float, float], size: float) -> Row:
    """Return blocks along a slightly bent line from top to bottom."""
    count = max(3, min(14, round(2.2 / (size * rng.between(1.3, 2.2)))))
    along = torch.linspace(-1.05, 1.05, count)
    bend = rng.gauss(0.15) * torch.sin(along * rng.between(1, 2.5))
    centres = torch.stack([bend + place[0], along + place[1], torch.full_like(along, place[2])], dim=1)
    half = 1.05 / count * rng.between(0.6, 0.9)
    radii = torch.tensor([[size, half, max(0.25, size)]]).expand(count, 3)
    wave = Field.random(1, rng.integer(5, 9), rng)
    device = rng.generator.device
    waviness = rng.between(0.05, 0.2)
    reach = (0.0, 0.0, 0.0)
    return Row(
        centres.to(device),
        radii.contiguous().to(device),
        wave,
        waviness,
        Kind.BONE,
        None,
        count,
        count,
        (size, size),
        place,
        reach,
    )


def _loop(rng: Rng) -> Structure:
    """Return a thick winding tube near one plane, hollow or not, as a bowel loop or an aorta along its course."""
    path = winding(rng.point((0.5, 0.5, 0.15)), rng.between(0, 2 * math.pi), rng.between(0.8, 2.5), rng)
    wide = rng.between(0.04, 0.15)
    kind = rng.host.choice([Kind.VESSEL, Kind.ORGAN])
    return joined([path], [torch.full((len(path),), wide)], rng, rng.chance(0.4), kind)


def _hair(rng: Rng) -> torch.Tensor:
    return winding([*rng.point((0.9, 0.9)), 0.0], rng.between(0, 2 * math.pi), rng.between(0.3, 1.5), rng)
