"""Imitated modalities: brightness by kind of tissue, effects of the machine, and the shape of the field of view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from handful.synthesis.anatomy import Anatomy, Kind
from handful.synthesis.rng import Rng
from handful.synthesis.scans import Contrast, Finish, blur, noise, smooth

Shade = tuple[float, float]
"""Mean and standard deviation of a brightness in [0, 1]."""


@dataclass(frozen=True)
class Modality:
    """One imitated modality."""

    contrast: Callable[[Anatomy, Rng], Contrast]
    """Returns the contrast of a random protocol."""
    finish: Finish | None
    """Adds the typical effects of the modality to its images; None adds nothing."""
    region_contrast: float
    """Weight with which tissue regions become targets: 0 never, 1 as often as organs; low where they look alike."""
    frame: str
    """Usual shape of the field of view: "full", "circle", "corners" or "fan"."""
    planes: int = 1
    """Planes across the slice that one picture adds up: more than 1 for a projection."""


def anything(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return a random brightness for every label, as in no real modality."""
    return Contrast.random(anatomy.appearance, rng, colour=rng.chance(0.15))


def ct_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return a CT contrast: soft tissues in a narrow range, fat below, bone far above, all in a random window."""
    shades = {
        Kind.AIR: (0.0, 0.0),
        Kind.LUNG: (0.1, 0.03),
        Kind.FAT: (0.40, 0.01),
        Kind.BONE: (0.9, 0.08),
        Kind.VESSEL: (0.56, 0.05),
        Kind.CAVITY: (0.48, 0.03),
    }
    made = _shaded(anatomy, shades, (0.5, 0.03), 0.006, rng)
    middle, width = rng.between(0.42, 0.55), rng.between(0.15, 0.4 if rng.chance(0.6) else 1.0)
    return Contrast(((made.brightness - middle) / width + 0.5).clamp(0, 1), made.texture / width, made.grain)


def mr_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return an MR contrast: soft tissues vary freely, fat has one brightness, bone, air and lung are dark."""
    fat, blood = rng.between(0.1, 1.0), rng.between(0.0, 1.0)
    shades = {
        Kind.AIR: (0.0, 0.01),
        Kind.LUNG: (0.06, 0.03),
        Kind.BONE: (0.08, 0.04),
        Kind.FAT: (fat, 0.02),
        Kind.CAVITY: (blood, 0.1),
        Kind.VESSEL: (blood, 0.15),
        Kind.WALL: (rng.between(0.1, 0.6), 0.08),
    }
    return _shaded(anatomy, shades, (rng.between(0.25, 0.6), rng.between(0.05, 0.25)), 0.04, rng)


def ultrasound_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return an ultrasound contrast: fluids and lesions are dark, walls bright."""
    dark = rng.between(0.03, 0.2)
    shades = {
        Kind.AIR: (0.0, 0.0),
        Kind.CAVITY: (dark, 0.03),
        Kind.VESSEL: (dark, 0.03),
        Kind.LUNG: (0.1, 0.05),
        Kind.BONE: (0.9, 0.1),
        Kind.WALL: (0.65, 0.15),
        Kind.LESION: (rng.between(0.08, 0.45), 0.03),
    }
    return _shaded(anatomy, shades, (rng.between(0.35, 0.6), 0.18), 0.04, rng)


def xray_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return an X-ray contrast: the lungs are dark, the heart and the abdomen bright."""
    shades = {
        Kind.AIR: (0.02, 0.02),
        Kind.LUNG: (rng.between(0.12, 0.4), 0.03),
        Kind.BONE: (0.85, 0.05),
        Kind.LESION: (0.55, 0.1),
        Kind.TISSUE: (rng.between(0.45, 0.65), 0.06),
    }
    return _shaded(anatomy, shades, (rng.between(0.65, 0.85), 0.07), 0.03, rng)


def endoscopy_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return an endoscopy contrast: one hue, polyps nearly as bright as the mucosa, a dark lumen."""
    near = rng.between(0.6, 0.8)
    shades = {
        Kind.LUNG: (0.12, 0.05),
        Kind.LESION: (near + rng.gauss(0.1), 0.02),
        Kind.TISSUE: (near, 0.015),
        Kind.AIR: (0.02, 0.01),
    }
    made = _shaded(anatomy, shades, (near, 0.05), 0.015, rng)
    hue = [1.0, rng.between(0.42, 0.75), rng.between(0.25, 0.65)]
    return _coloured(made, hue, 0.015, rng)


def fundus_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return a fundus contrast: orange background, bright disc, brighter cup, dark red vessels."""
    ground = rng.between(0.4, 0.65)
    disc = ground + rng.between(0.12, 0.3)
    shades = {
        Kind.VESSEL: (ground * rng.between(0.5, 0.8), 0.02),
        Kind.DISC: (disc, 0.03),
        Kind.CUP: (disc + rng.between(0.03, 0.25), 0.03),
        Kind.LESION: (ground + rng.gauss(0.25), 0.05),
        Kind.TISSUE: (ground, 0.015),
        Kind.AIR: (0.0, 0.01),
    }
    made = _shaded(anatomy, shades, (ground, 0.03), 0.015, rng)
    hue = [rng.between(1.1, 1.4), rng.between(0.5, 0.8), rng.between(0.1, 0.35)]
    return _coloured(made, hue, 0.02, rng)


def microscopy_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return a microscopy contrast: fluorescence, a stain on a bright background, or unstained cells on grey."""
    style = rng.integer(0, 4)
    if style <= 1:  # fluorescence
        bright = rng.between(0.35, 0.9)
        body = rng.between(0.05, 0.25)
        shades = {Kind.CELL: (bright, 0.05), Kind.WALL: (body, 0.03), Kind.AIR: (0.0, 0.0)}
        made = _shaded(anatomy, shades, (rng.between(0.0, 0.12), 0.02), 0.06, rng)
        return made if style == 0 else _coloured(made, [rng.host.random() for _ in range(3)], 0.0, rng)
    if style <= 3:  # stained
        cell = rng.between(0.2, 0.5)
        ground = rng.between(0.7, 0.95)
        shades = {Kind.CELL: (cell, 0.05), Kind.WALL: (0.5 * (cell + ground), 0.08)}
        made = _shaded(anatomy, shades, (ground, 0.06), 0.06, rng)
        pale = made.brightness
        stain = rng.tensor([1.0, rng.between(0.9, 1.6), rng.between(0.3, 0.8)])  # how fast each colour fades
        return Contrast((1 - (1 - pale) * stain).clamp(0, 1), made.texture, made.grain)
    ground = rng.between(0.3, 0.7)
    shades = {Kind.CELL: (ground + rng.host.choice([-0.25, 0.25]), 0.05)}
    return _shaded(anatomy, shades, (ground, 0.05), 0.05, rng)


def ct(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add streaks as from metal to one image in ten."""
    if not rng.chance(0.1):
        return image
    x, y = _grid(image)
    x, y = x - rng.between(-0.5, 0.5), y - rng.between(-0.5, 0.5)
    spokes = torch.cos(rng.integer(6, 20) * torch.atan2(y, x) + rng.between(0, 6)) ** 3
    return image + rng.between(0.1, 0.4) * spokes * torch.exp(-3 * torch.hypot(x, y))


def mr(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add the sensitivity of surface coils: distant parts are darker."""
    h, w = image.shape[2:]
    if rng.chance(0.5):
        image = image * torch.exp(rng.between(0.1, 0.4) * smooth(1, h, w, 3, rng)).clamp(0.3, 2.5)
    return image


def ultrasound(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add bright interfaces, horizontal fibres, attenuation, acoustic shadows and speckle."""
    n, _, h, w = image.shape
    _, y = _grid(image)
    step = image[:, :, 2:] - image[:, :, :-2]
    edges = torch.nn.functional.pad(step.abs(), (0, 0, 1, 1))
    fibres = smooth(n, h, w, (rng.integer(20, 48), rng.integer(4, 12)), rng)
    image = image * (1 + rng.between(0.05, 0.35) * fibres).clamp_min(0.1) + rng.between(0.2, 1.0) * blur(edges, 1.0)
    image = image * torch.exp(-rng.between(0, 1.0) * (y + 1) / 2)
    if rng.chance(0.5):
        shadow = torch.sigmoid(4 * smooth(1, 1, w, (1, rng.integer(4, 9)), rng) - rng.between(2, 5))
        image = image * (1 - 0.8 * shadow * torch.sigmoid(6 * (y - rng.between(-0.8, 0.3))))
    grain = max(1, h // 128)
    across = grain * rng.integer(1, 3)
    speckle = torch.hypot(noise(n, h, w, (grain, across), rng), noise(n, h, w, (grain, across), rng))
    image = image * (1 + rng.between(0.3, 0.8) * (speckle / 1.25 - 1)).clamp_min(0)
    return blur(image, rng.between(0.2, 0.7) * grain).clamp_min(0) ** rng.between(0.7, 1.2)


def xray(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Soft borders, and what lies before and behind: ribs, spine, collar bones, vessels of the lung."""
    n, _, h, w = image.shape
    x, y = _grid(image)
    image = blur(image, rng.between(0.5, 2.0) * h / 128)
    x = x - rng.gauss(0.04)
    inside = torch.sigmoid(12 * (0.8 - x.abs())) * torch.sigmoid(10 * (rng.between(0.3, 0.6) - y))
    bend, many = rng.between(0.3, 0.9), rng.between(12, 20)
    ribs = torch.sigmoid(6 * (torch.sin(many * (y + bend * x.abs() ** 1.5 + 0.04 * smooth(1, h, w, 4, rng))) - 0.3))
    image = image + rng.between(0.0, 0.18) * ribs * inside
    spine = torch.exp(-((x / rng.between(0.06, 0.12)) ** 2))
    image = image + rng.between(0.05, 0.25) * spine * (1 + 0.3 * torch.sin(25 * y))
    lung = (kinds == Kind.LUNG)[:, None]
    haze = rng.between(0.02, 0.12) * smooth(n, h, w, rng.integer(12, 30), rng)
    cloud = rng.between(0.0, 0.3) * smooth(n, h, w, 4, rng).clamp_min(0) * float(rng.chance(0.4))
    slope = rng.gauss(0.1) * x + rng.gauss(0.1) * y
    return (image + torch.where(lung, haze + cloud, 0.3 * haze) + slope).clamp(0, 1.2)


def endoscopy(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add the light of the tip, folds, fine vessels, raised polyps and specular highlights."""
    n, _, h, w = image.shape
    x, y = _grid(image)
    image = blur(image, rng.between(0.4, 1.8) * h / 128)
    away = torch.hypot(x - rng.gauss(0.3), y - rng.gauss(0.3))
    light = 1.15 - rng.between(0.1, 0.6) * away**2
    folds = -smooth(n, h, w, rng.integer(4, 7), rng).abs() * rng.between(0.0, 0.35)
    veins = torch.exp(-((smooth(n, h, w, rng.integer(8, 16), rng) / 0.08) ** 2)) * rng.between(0, 0.12)
    bump = blur((kinds == Kind.LESION).float()[:, None], rng.between(2, 5) * h / 128)
    relief = torch.nn.functional.pad(bump[:, :, 2:] - bump[:, :, :-2], (0, 0, 1, 1)) * rng.gauss(1.5)
    shade = (light + folds + relief + 0.15 * smooth(n, h, w, 4, rng)).clamp(0.1, 1.6)
    fade = image.new_tensor([0.3, 1.0, 1.0])[:, None, None]  # veins absorb green and blue
    image = image * shade * (1 - veins * fade)
    if rng.chance(0.7):
        spots = noise(n, h, w, max(2, 3 * h // 128), rng) + 0.8 * (shade - 1)
        image = image + torch.sigmoid(12 * (spots - rng.between(1.7, 2.4)))
    return image.clamp(0, 1)


def fundus(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add uneven illumination and soft borders."""
    n, _, h, w = image.shape
    x, y = _grid(image)
    light = 1 + rng.gauss(0.15) * x + rng.gauss(0.15) * y - rng.between(0, 0.3) * (x**2 + y**2)
    return (blur(image, 0.8 * h / 128) * light + 0.03 * smooth(n, h, w, 8, rng)).clamp(0, 1)


def microscopy(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Vary the brightness from cell to cell."""
    n, _, h, w = image.shape
    depth = rng.between(0.0, 0.4)
    cells = ((kinds == Kind.CELL) | (kinds == Kind.WALL))[:, None]
    uneven = 1 + depth * smooth(n, h, w, rng.integer(5, 12), rng)
    return torch.where(cells, image * uneven, image).clamp(0, 1)


def photo_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return colours of a photograph: any hue, structures that differ from it in brightness, hue or texture alone."""
    ground, spread = rng.between(0.25, 0.85), rng.between(0.03, 0.25)
    made = _shaded(anatomy, {Kind.AIR: (0.02, 0.01)}, (ground, spread), rng.between(0.02, 0.12), rng)
    hue = [rng.between(0.4, 1.2) for _ in range(3)]
    coloured = _coloured(made, hue, rng.between(0.01, 0.12), rng)
    same = torch.tensor(anatomy.appearance).to(coloured.brightness.device)
    return Contrast(coloured.brightness[same], coloured.texture, coloured.grain)


def projection_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return what a projection adds up: much for bone and for vessels with contrast medium, little for lungs."""
    tissue = rng.between(0.15, 0.35)
    shades = {
        Kind.AIR: (0.0, 0.0),
        Kind.LUNG: (rng.between(0.02, 0.08), 0.01),
        Kind.FAT: (0.7 * tissue, 0.02),
        Kind.BONE: (rng.between(0.8, 1.0), 0.05),
        Kind.VESSEL: (rng.host.choice([tissue, rng.between(0.7, 1.0)]), 0.03),
        Kind.TISSUE: (tissue, 0.01),
    }
    return _shaded(anatomy, shades, (tissue + rng.between(0.0, 0.3), 0.08), 0.02, rng)


def stained_contrast(anatomy: Anatomy, rng: Rng) -> Contrast:
    """Return a stained section: purple nuclei, pink tissue, white lumen, in varying strength."""
    white = rng.between(0.85, 1.0)
    pink = [white, rng.between(0.5, 0.8), rng.between(0.7, 0.9)]
    purple = [rng.between(0.3, 0.6), rng.between(0.15, 0.45), rng.between(0.45, 0.7)]
    by_kind = {Kind.CELL: purple, Kind.CAVITY: [white] * 3, Kind.AIR: [white] * 3}
    colours = rng.tensor([by_kind.get(kind, pink) for kind in anatomy.kinds])
    colours = (colours + 0.05 * rng.normal(len(colours), 1) + 0.02 * rng.normal(len(colours), 3)).clamp(0, 1)
    texture = rng.between(0.02, 0.12) * rng.uniform(len(colours))
    same = torch.tensor(anatomy.appearance).to(colours.device)
    return Contrast(colours[same], texture[same], rng.integer(1, 3))


def speckled(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add the coarse speckle, shadows below bone and gas, and bright bands below fluid of a poor ultrasound."""
    n, _, h, w = image.shape
    hard = ((kinds == Kind.BONE) | (kinds == Kind.LUNG)).float()[:, None].cumsum(dim=2) / h
    fluid = ((kinds == Kind.CAVITY) | (kinds == Kind.VESSEL)).float()[:, None].cumsum(dim=2) / h
    image = image * torch.exp(-rng.between(0, 12) * hard + rng.between(0, 1.5) * fluid)
    image = image * (1 + 0.3 * smooth(1, h, 1, (rng.integer(3, 8), 1), rng)).clamp_min(0.2)  # gain by depth
    grain = max(1, h // 128)
    size = (grain * rng.integer(1, 2), grain * rng.integer(2, 5))
    views = rng.integer(1, 4)  # pictures from several directions that the machine averages
    speckle = sum((noise(n, h, w, size, rng) ** 2 for _ in range(2 * views)), torch.zeros(())) / (2 * views)
    intensity = image.clamp_min(0.004) ** rng.between(2.0, 3.5) * speckle
    dynamic = rng.between(1.8, 3.5)  # decades that the display shows
    return (1 + torch.log10(intensity.clamp_min(1e-8)) / dynamic).clamp(0, 1)


def projection(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add what a detector does to a sum of planes: scatter, noise in dark parts, sometimes a collimator."""
    h = image.shape[2]
    scatter = blur(image, h / 10)
    image = image + rng.between(0.0, 0.4) * (scatter - image.mean())
    image = blur(image, rng.between(0.2, 1.2) * h / 128)
    x, y = _grid(image)
    if rng.chance(0.2):
        edge = rng.between(0.7, 0.95)
        image = image * ((x.abs() < edge) & (y.abs() < edge * rng.between(0.9, 1.1)))
    return image + rng.between(0.0, 0.03) * rng.normal(*image.shape)


def photo(image: Tensor, kinds: Tensor, rng: Rng) -> Tensor:
    """Add patterns of colour that differ from structure to structure, uneven light, and reflections."""
    n, _, h, w = image.shape
    numbers = kinds[:, None].float()
    pattern = torch.cat([fractal(n, h, w, rng) for _ in range(3)], dim=1)
    amount = rng.between(0.02, 0.25) * (0.6 + 0.4 * torch.sin(rng.between(1, 3) * numbers + rng.between(0, 6)))
    image = image * (1 + amount * pattern)
    x, y = _grid(image)
    light = 1 + rng.gauss(0.2) * x + rng.gauss(0.2) * y + rng.between(0, 0.15) * smooth(1, h, w, 4, rng)
    image = blur(image, rng.between(0.2, 1.4) * h / 128) * light.clamp(0.2, 1.8)
    if rng.chance(0.3):
        spots = noise(n, h, w, max(2, h // 24), rng)
        image = image + torch.sigmoid(10 * (spots - rng.between(2.0, 2.8)))
    return image.clamp(0, 1)


def fractal(n: int, h: int, w: int, rng: Rng) -> Float[Tensor, "n 1 h w"]:
    """Return noise of four octaves, each half as strong as the coarser one before."""
    coarsest = rng.integer(3, 10)
    sides = [min(h, coarsest * 2**octave) for octave in range(4)]
    return sum((smooth(n, h, w, side, rng) / 2**octave for octave, side in enumerate(sides)), torch.zeros(()))


MODALITIES = {
    "anything": Modality(anything, None, 0.4, "full"),
    "ct": Modality(ct_contrast, ct, 0.2, "full"),
    "mr": Modality(mr_contrast, mr, 0.3, "full"),
    "ultrasound": Modality(ultrasound_contrast, ultrasound, 0.03, "full"),
    "echo": Modality(ultrasound_contrast, ultrasound, 0.03, "fan"),
    "xray": Modality(xray_contrast, xray, 0.05, "full"),
    "endoscopy": Modality(endoscopy_contrast, endoscopy, 0.02, "corners"),
    "fundus": Modality(fundus_contrast, fundus, 0.02, "circle"),
    "microscopy": Modality(microscopy_contrast, microscopy, 0.05, "full"),
    "speckled": Modality(ultrasound_contrast, speckled, 0.03, "fan"),
    "projection": Modality(projection_contrast, projection, 0.0, "full", planes=6),
    "photo": Modality(photo_contrast, photo, 0.2, "full"),
    "stained": Modality(stained_contrast, microscopy, 0.05, "full"),
}


def frame(name: str, side: int, rng: Rng) -> Bool[Tensor, "h w"]:
    """Return the field of view of this shape, True inside; sometimes with black bands or a covered corner."""
    line = (torch.arange(side, device=rng.generator.device) + 0.5) / side * 2 - 1
    x, y = line[None, :].expand(side, side), line[:, None].expand(side, side)
    inside = torch.ones(side, side, dtype=torch.bool, device=line.device)
    if name == "circle":
        inside = (x**2 + y**2).sqrt() < rng.between(0.95, 1.1)
        inside &= y.abs() < rng.between(0.8, 1.2)
    if name == "corners":
        inside = x.abs() + y.abs() < rng.between(1.35, 2.2)
        if rng.chance(0.4):
            inside &= ~((x < -rng.between(0.1, 0.5)) & (y > rng.between(0.3, 0.6)))
    if name == "fan":
        top, wide = rng.between(-1.3, -0.95), rng.between(0.45, 0.9)
        away = torch.hypot(x, y - top)
        inside = (torch.atan2(x, y - top).abs() < wide) & (away < 0.97 - top) & (away > rng.between(0, 0.3))
    if rng.chance(0.12):
        band = rng.between(0.6, 0.95)
        inside &= (y if rng.chance(0.5) else x).abs() < band
    return inside


def burnt_in(images: Float[Tensor, "n c h w"], rng: Rng) -> Float[Tensor, "n c h w"]:
    """Return a copy with one to three lines of random letter-like marks near the upper or lower border."""
    h, w = images.shape[2:]
    cell = max(1, h // 128)
    images = images.clone()
    for _ in range(rng.integer(1, 3)):
        letters = (rng.uniform(5, rng.integer(8, 24)) < 0.55).float()
        letters[:, 3::4] = 0
        letters = letters.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        top = rng.host.choice([rng.integer(1, h // 6), rng.integer(4 * h // 5, h - letters.shape[0] - 1)])
        left = rng.integer(1, w - letters.shape[1] - 1)
        region = images[:, :, top : top + letters.shape[0], left : left + letters.shape[1]]
        region.copy_(torch.maximum(region, letters))
    return images


def _shaded(anatomy: Anatomy, shades: dict[Kind, Shade], other: Shade, texture: float, rng: Rng) -> Contrast:
    """Return a contrast with the brightness of each label's kind; `other` is for kinds that `shades` lacks."""
    by_label = [shades.get(kind, other) for kind in anatomy.kinds]
    brightness = [mean + rng.gauss(deviation) for mean, deviation in by_label]
    rough = [texture * rng.host.random() for _ in by_label]
    rough[0] = 0.0
    values = rng.tensor([[brightness[same], rough[same]] for same in anatomy.appearance])
    return Contrast(values[:, :1].clamp(0, 1), values[:, 1], rng.integer(1, 4))


def _coloured(made: Contrast, hue: list[float], variety: float, rng: Rng) -> Contrast:
    """Return the grey contrast in shades of one hue, with a small random deviation per label."""
    colours = made.brightness * rng.tensor([hue]) + variety * rng.normal(len(made.brightness), 3)
    colours[0] = made.brightness[0]
    return Contrast(colours.clamp(0, 1), made.texture, made.grain)


def _grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates of every pixel from -1 to 1: x to the right and y downwards."""
    h, w = image.shape[2:]
    y = torch.linspace(-1, 1, h, device=image.device)[:, None].expand(h, w)
    return torch.linspace(-1, 1, w, device=image.device)[None].expand(h, w), y
