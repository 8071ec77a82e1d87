"""How a modality shows a body: contrasts by kind of tissue, what the machine adds, and the frame of its picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from handful.synthesis.anatomy import Anatomy, Kind
from handful.synthesis.draw import Draw
from handful.synthesis.scans import Contrast, Finish, blur, noise, smooth

Shade = tuple[float, float]
"""Mean and deviation of a brightness."""


@dataclass(frozen=True)
class Look:
    """A modality."""

    contrast: Callable[[Anatomy, Draw], Contrast]
    """A protocol of it."""
    finish: Finish | None
    seen_regions: float
    """How clearly tissue regions differ, so that they may be targets: 0 not at all, 1 as well as organs."""
    frame: str
    """"full", "circle", "corners" or "fan": the field of view it mostly has."""


def anything(anatomy: Anatomy, draw: Draw) -> Contrast:
    """No modality there is: any brightness for any label."""
    return Contrast.random(anatomy.alike, draw, colour=draw.chance(0.15))


def ct_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """Soft tissues in a narrow band, fat below it, bone far above, all through a window."""
    shades = {
        Kind.AIR: (0.0, 0.0),
        Kind.LUNG: (0.1, 0.03),
        Kind.FAT: (0.40, 0.01),
        Kind.BONE: (0.9, 0.08),
        Kind.VESSEL: (0.56, 0.05),
        Kind.CAVITY: (0.48, 0.03),
    }
    made = _shaded(anatomy, shades, (0.5, 0.03), 0.006, draw)
    middle, width = draw.between(0.42, 0.55), draw.between(0.15, 0.4 if draw.chance(0.6) else 1.0)
    return Contrast(((made.brightness - middle) / width + 0.5).clamp(0, 1), made.texture / width, made.grain)


def mr_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """Every tissue as it comes; fat is one brightness, bone and air and lung are dark."""
    fat, blood = draw.between(0.1, 1.0), draw.between(0.0, 1.0)
    shades = {
        Kind.AIR: (0.0, 0.01),
        Kind.LUNG: (0.06, 0.03),
        Kind.BONE: (0.08, 0.04),
        Kind.FAT: (fat, 0.02),
        Kind.CAVITY: (blood, 0.1),
        Kind.VESSEL: (blood, 0.15),
        Kind.WALL: (draw.between(0.1, 0.6), 0.08),
    }
    return _shaded(anatomy, shades, (draw.between(0.25, 0.6), draw.between(0.05, 0.25)), 0.04, draw)


def ultrasound_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """Fluids and lesions dark, walls bright."""
    dark = draw.between(0.03, 0.2)
    shades = {
        Kind.AIR: (0.0, 0.0),
        Kind.CAVITY: (dark, 0.03),
        Kind.VESSEL: (dark, 0.03),
        Kind.LUNG: (0.1, 0.05),
        Kind.BONE: (0.9, 0.1),
        Kind.WALL: (0.65, 0.15),
        Kind.LESION: (draw.between(0.08, 0.45), 0.03),
    }
    return _shaded(anatomy, shades, (draw.between(0.35, 0.6), 0.18), 0.04, draw)


def xray_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """Lungs dark, the heart and the belly bright."""
    shades = {
        Kind.AIR: (0.02, 0.02),
        Kind.LUNG: (draw.between(0.12, 0.4), 0.03),
        Kind.BONE: (0.85, 0.05),
        Kind.LESION: (0.55, 0.1),
        Kind.TISSUE: (draw.between(0.45, 0.65), 0.06),
    }
    return _shaded(anatomy, shades, (draw.between(0.65, 0.85), 0.07), 0.03, draw)


def endoscopy_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """One hue for all, polyps nearly the same, the lumen dark."""
    near = draw.between(0.6, 0.8)
    shades = {
        Kind.LUNG: (0.12, 0.05),
        Kind.LESION: (near + draw.gauss(0.1), 0.02),
        Kind.TISSUE: (near, 0.015),
        Kind.AIR: (0.02, 0.01),
    }
    made = _shaded(anatomy, shades, (near, 0.05), 0.015, draw)
    hue = [1.0, draw.between(0.42, 0.75), draw.between(0.25, 0.65)]
    return _coloured(made, hue, 0.015, draw)


def fundus_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """Orange ground, bright disc, brighter cup, dark red vessels."""
    ground = draw.between(0.4, 0.65)
    disc = ground + draw.between(0.12, 0.3)
    shades = {
        Kind.VESSEL: (ground * draw.between(0.5, 0.8), 0.02),
        Kind.DISC: (disc, 0.03),
        Kind.CUP: (disc + draw.between(0.03, 0.25), 0.03),
        Kind.LESION: (ground + draw.gauss(0.25), 0.05),
        Kind.TISSUE: (ground, 0.015),
        Kind.AIR: (0.0, 0.01),
    }
    made = _shaded(anatomy, shades, (ground, 0.03), 0.015, draw)
    hue = [draw.between(1.1, 1.4), draw.between(0.5, 0.8), draw.between(0.1, 0.35)]
    return _coloured(made, hue, 0.02, draw)


def microscopy_contrast(anatomy: Anatomy, draw: Draw) -> Contrast:
    """Purple on pink or white, bright on dark, or dark on grey."""
    style = draw.integer(0, 4)
    if style <= 1:  # fluorescence
        bright = draw.between(0.35, 0.9)
        body = draw.between(0.05, 0.25)
        shades = {Kind.CELL: (bright, 0.05), Kind.WALL: (body, 0.03), Kind.AIR: (0.0, 0.0)}
        made = _shaded(anatomy, shades, (draw.between(0.0, 0.12), 0.02), 0.06, draw)
        return made if style == 0 else _coloured(made, [draw.host.random() for _ in range(3)], 0.0, draw)
    if style <= 3:  # stained
        cell = draw.between(0.2, 0.5)
        ground = draw.between(0.7, 0.95)
        shades = {Kind.CELL: (cell, 0.05), Kind.WALL: (0.5 * (cell + ground), 0.08)}
        made = _shaded(anatomy, shades, (ground, 0.06), 0.06, draw)
        pale = made.brightness
        stain = draw.tensor([1.0, draw.between(0.9, 1.6), draw.between(0.3, 0.8)])  # how fast each colour fades
        return Contrast((1 - (1 - pale) * stain).clamp(0, 1), made.texture, made.grain)
    ground = draw.between(0.3, 0.7)
    shades = {Kind.CELL: (ground + draw.host.choice([-0.25, 0.25]), 0.05)}
    return _shaded(anatomy, shades, (ground, 0.05), 0.05, draw)


def ct(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Rarely streaks from something of metal."""
    if not draw.chance(0.1):
        return image
    x, y = _grid(image)
    x, y = x - draw.between(-0.5, 0.5), y - draw.between(-0.5, 0.5)
    spokes = torch.cos(draw.integer(6, 20) * torch.atan2(y, x) + draw.between(0, 6)) ** 3
    return image + draw.between(0.1, 0.4) * spokes * torch.exp(-3 * torch.hypot(x, y))


def mr(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Surface coils: far parts fade."""
    h, w = image.shape[2:]
    if draw.chance(0.5):
        image = image * torch.exp(draw.between(0.1, 0.4) * smooth(1, h, w, 3, draw)).clamp(0.3, 2.5)
    return image


def ultrasound(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Interfaces across the beam shine, fibres lie sideways, depth and shadows darken; then speckle."""
    n, _, h, w = image.shape
    _, y = _grid(image)
    step = image[:, :, 2:] - image[:, :, :-2]
    edges = torch.nn.functional.pad(step.abs(), (0, 0, 1, 1))
    fibres = smooth(n, h, w, (draw.integer(20, 48), draw.integer(4, 12)), draw)
    image = image * (1 + draw.between(0.05, 0.35) * fibres).clamp_min(0.1) + draw.between(0.2, 1.0) * blur(edges, 1.0)
    image = image * torch.exp(-draw.between(0, 1.0) * (y + 1) / 2)
    if draw.chance(0.5):
        shadow = torch.sigmoid(4 * smooth(1, 1, w, (1, draw.integer(4, 9)), draw) - draw.between(2, 5))
        image = image * (1 - 0.8 * shadow * torch.sigmoid(6 * (y - draw.between(-0.8, 0.3))))
    grain = max(1, h // 128)
    across = grain * draw.integer(1, 3)
    speckle = torch.hypot(noise(n, h, w, (grain, across), draw), noise(n, h, w, (grain, across), draw))
    image = image * (1 + draw.between(0.3, 0.8) * (speckle / 1.25 - 1)).clamp_min(0)
    return blur(image, draw.between(0.2, 0.7) * grain).clamp_min(0) ** draw.between(0.7, 1.2)


def xray(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Soft borders, and what lies before and behind: ribs, spine, collar bones, vessels of the lung."""
    n, _, h, w = image.shape
    x, y = _grid(image)
    image = blur(image, draw.between(0.5, 2.0) * h / 128)
    x = x - draw.gauss(0.04)
    inside = torch.sigmoid(12 * (0.8 - x.abs())) * torch.sigmoid(10 * (draw.between(0.3, 0.6) - y))
    bend, many = draw.between(0.3, 0.9), draw.between(12, 20)
    ribs = torch.sigmoid(6 * (torch.sin(many * (y + bend * x.abs() ** 1.5 + 0.04 * smooth(1, h, w, 4, draw))) - 0.3))
    image = image + draw.between(0.0, 0.18) * ribs * inside
    spine = torch.exp(-((x / draw.between(0.06, 0.12)) ** 2))
    image = image + draw.between(0.05, 0.25) * spine * (1 + 0.3 * torch.sin(25 * y))
    lung = (kinds == Kind.LUNG)[:, None]
    haze = draw.between(0.02, 0.12) * smooth(n, h, w, draw.integer(12, 30), draw)
    cloud = draw.between(0.0, 0.3) * smooth(n, h, w, 4, draw).clamp_min(0) * float(draw.chance(0.4))
    slope = draw.gauss(0.1) * x + draw.gauss(0.1) * y
    return (image + torch.where(lung, haze + cloud, 0.3 * haze) + slope).clamp(0, 1.2)


def endoscopy(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Light from the tip, folds, fine vessels, polyps that bulge, and highlights."""
    n, _, h, w = image.shape
    x, y = _grid(image)
    image = blur(image, draw.between(0.4, 1.8) * h / 128)
    away = torch.hypot(x - draw.gauss(0.3), y - draw.gauss(0.3))
    light = 1.15 - draw.between(0.1, 0.6) * away**2
    folds = -smooth(n, h, w, draw.integer(4, 7), draw).abs() * draw.between(0.0, 0.35)
    veins = torch.exp(-((smooth(n, h, w, draw.integer(8, 16), draw) / 0.08) ** 2)) * draw.between(0, 0.12)
    bump = blur((kinds == Kind.LESION).float()[:, None], draw.between(2, 5) * h / 128)
    relief = torch.nn.functional.pad(bump[:, :, 2:] - bump[:, :, :-2], (0, 0, 1, 1)) * draw.gauss(1.5)
    shade = (light + folds + relief + 0.15 * smooth(n, h, w, 4, draw)).clamp(0.1, 1.6)
    fade = image.new_tensor([0.3, 1.0, 1.0])[:, None, None]  # veins take green and blue away
    image = image * shade * (1 - veins * fade)
    if draw.chance(0.7):
        spots = noise(n, h, w, max(2, 3 * h // 128), draw) + 0.8 * (shade - 1)
        image = image + torch.sigmoid(12 * (spots - draw.between(1.7, 2.4)))
    return image.clamp(0, 1)


def fundus(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Light that falls off to one side, soft disc borders."""
    n, _, h, w = image.shape
    x, y = _grid(image)
    light = 1 + draw.gauss(0.15) * x + draw.gauss(0.15) * y - draw.between(0, 0.3) * (x**2 + y**2)
    return (blur(image, 0.8 * h / 128) * light + 0.03 * smooth(n, h, w, 8, draw)).clamp(0, 1)


def microscopy(image: Tensor, kinds: Tensor, draw: Draw) -> Tensor:
    """Cells are not equally bright."""
    n, _, h, w = image.shape
    depth = draw.between(0.0, 0.4)
    cells = ((kinds == Kind.CELL) | (kinds == Kind.WALL))[:, None]
    uneven = 1 + depth * smooth(n, h, w, draw.integer(5, 12), draw)
    return torch.where(cells, image * uneven, image).clamp(0, 1)


LOOKS = {
    "anything": Look(anything, None, 0.4, "full"),
    "ct": Look(ct_contrast, ct, 0.2, "full"),
    "mr": Look(mr_contrast, mr, 0.3, "full"),
    "ultrasound": Look(ultrasound_contrast, ultrasound, 0.03, "full"),
    "echo": Look(ultrasound_contrast, ultrasound, 0.03, "fan"),
    "xray": Look(xray_contrast, xray, 0.05, "full"),
    "endoscopy": Look(endoscopy_contrast, endoscopy, 0.02, "corners"),
    "fundus": Look(fundus_contrast, fundus, 0.02, "circle"),
    "microscopy": Look(microscopy_contrast, microscopy, 0.05, "full"),
}


def frame(name: str, side: int, draw: Draw) -> Bool[Tensor, "h w"]:
    """Where the picture shows something; rarely with black bands or a covered corner."""
    line = (torch.arange(side, device=draw.generator.device) + 0.5) / side * 2 - 1
    x, y = line[None, :].expand(side, side), line[:, None].expand(side, side)
    seen = torch.ones(side, side, dtype=torch.bool, device=line.device)
    if name == "circle":
        seen = (x**2 + y**2).sqrt() < draw.between(0.95, 1.1)
        seen &= y.abs() < draw.between(0.8, 1.2)
    if name == "corners":
        seen = x.abs() + y.abs() < draw.between(1.35, 2.2)
        if draw.chance(0.4):
            seen &= ~((x < -draw.between(0.1, 0.5)) & (y > draw.between(0.3, 0.6)))
    if name == "fan":
        top, wide = draw.between(-1.3, -0.95), draw.between(0.45, 0.9)
        away = torch.hypot(x, y - top)
        seen = (torch.atan2(x, y - top).abs() < wide) & (away < 0.97 - top) & (away > draw.between(0, 0.3))
    if draw.chance(0.12):
        band = draw.between(0.6, 0.95)
        seen &= (y if draw.chance(0.5) else x).abs() < band
    return seen


def burnt_in(images: Float[Tensor, "n c h w"], draw: Draw) -> Float[Tensor, "n c h w"]:
    """With a line or two of something like letters near a border, and a marker or two."""
    h, w = images.shape[2:]
    cell = max(1, h // 128)
    images = images.clone()
    for _ in range(draw.integer(1, 3)):
        letters = (draw.uniform(5, draw.integer(8, 24)) < 0.55).float()
        letters[:, 3::4] = 0
        letters = letters.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        top = draw.host.choice([draw.integer(1, h // 6), draw.integer(4 * h // 5, h - letters.shape[0] - 1)])
        left = draw.integer(1, w - letters.shape[1] - 1)
        region = images[:, :, top : top + letters.shape[0], left : left + letters.shape[1]]
        region.copy_(torch.maximum(region, letters))
    return images


def _shaded(anatomy: Anatomy, shades: dict[Kind, Shade], other: Shade, texture: float, draw: Draw) -> Contrast:
    """Brightness by kind, `other` for kinds that are not told; labels that are alike get the same."""
    drawn = [shades.get(kind, other) for kind in anatomy.kinds]
    brightness = [mean + draw.gauss(deviation) for mean, deviation in drawn]
    rough = [texture * draw.host.random() for _ in drawn]
    rough[0] = 0.0
    chosen = draw.tensor([[brightness[same], rough[same]] for same in anatomy.alike])
    return Contrast(chosen[:, :1].clamp(0, 1), chosen[:, 1], draw.integer(1, 4))


def _coloured(made: Contrast, hue: list[float], variety: float, draw: Draw) -> Contrast:
    """A grey contrast in shades of a hue, each label with a little of its own."""
    colours = made.brightness * draw.tensor([hue]) + variety * draw.normal(len(made.brightness), 3)
    colours[0] = made.brightness[0]
    return Contrast(colours.clamp(0, 1), made.texture, made.grain)


def _grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """x across and y down, from -1 to 1."""
    h, w = image.shape[2:]
    y = torch.linspace(-1, 1, h, device=image.device)[:, None].expand(h, w)
    return torch.linspace(-1, 1, w, device=image.device)[None].expand(h, w), y
