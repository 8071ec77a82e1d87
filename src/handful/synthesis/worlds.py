"""Worlds of synthetic episodes: which anatomies there are, how they are imaged, and which of their parts are targets.

A world is versioned by its name: handful-tiny was trained on `TINY_WORLD`, handful-small on `WIDE_WORLD`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from handful.synthesis import bodies, wide_bodies
from handful.synthesis.anatomy import Anatomy
from handful.synthesis.rng import Rng


@dataclass(frozen=True)
class Scene:
    """A kind of anatomy, how often it occurs, and how it is imaged."""

    weight: float
    """Relative frequency."""
    body: Callable[[Rng], Anatomy]
    """Returns a random anatomy of this kind."""
    modalities: tuple[str, ...]
    """Names in MODALITIES, each as likely as the others; a name that occurs twice is twice as likely."""
    min_zoom: float
    """Smallest half width of the picture; 1 shows the whole cube. Only scenes below 0.5 have other planes."""
    variety: float = 1.0
    """How much subjects differ, relative to the usual differences between bodies."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Frequencies of everything that an episode may show."""

    scenes: tuple[Scene, ...]
    cropped: float = 0.35
    """Share of the episodes whose slices are cropped around one structure and enlarged, as by `roi_margin`."""
    balanced: bool = False
    """Whether blobs, rings, tubes and labels in pieces are targets equally often; otherwise each structure is."""
    lacking: float = 0.0
    """Probability that a subject lacks a structure that others have."""
    thick: float = 0.0
    """Share of the episodes whose neighbouring slices are two to five times as far apart."""
    tiny: float = 0.3
    """Share of the episodes whose targets may be tiny."""
    smallest: float = 0.0006
    """Smallest area of a tiny target, as a share of the slice."""
    fewest: int = 25
    """Smallest area of a tiny target in pixels."""
    whole: float = 0.0
    """Probability that a part is a target together with all parts of its structure."""
    dressed: float = 0.0
    """Probability of each effect of `looks`: textures, colour casts, vignettes, text and marks."""


TINY_WORLD = World(
    scenes=(
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
)
"""The world of handful-tiny."""

WIDE_WORLD = World(
    scenes=(
        Scene(
            0.22, bodies.random_anatomy, ("anything", "anything", "mr", "ct", "ultrasound", "speckled", "photo"), 0.3
        ),
        Scene(0.10, wide_bodies.rings, ("mr", "mr", "ct", "echo", "speckled", "photo", "anything"), 0.3),
        Scene(0.08, wide_bodies.tubes, ("mr", "ct", "ct", "projection", "speckled", "photo", "anything"), 0.35),
        Scene(0.09, bodies.chest_slice, ("mr", "mr", "ct", "anything"), 0.3),
        Scene(0.06, bodies.head, ("ct", "ct", "mr", "anything"), 0.3),
        Scene(0.06, bodies.two_part, ("mr", "mr", "anything"), 0.45),
        Scene(0.03, bodies.chest, ("xray", "xray", "anything"), 0.8, 0.6),
        Scene(0.05, wide_bodies.torso, ("projection", "projection", "projection", "ct"), 0.6, 0.7),
        Scene(0.03, wide_bodies.limb, ("projection", "projection", "ct", "mr"), 0.5, 0.7),
        Scene(0.04, wide_bodies.column, ("mr", "ct", "projection", "photo"), 0.4),
        Scene(0.05, bodies.retina, ("fundus", "fundus", "fundus", "photo"), 0.4, 0.5),
        Scene(0.06, bodies.mucosa, ("endoscopy", "endoscopy", "photo"), 0.7),
        Scene(0.03, wide_bodies.skin, ("photo",), 0.6),
        Scene(0.05, bodies.tissue_layers, ("ultrasound", "speckled", "anything"), 0.5),
        Scene(0.04, bodies.chambers, ("echo", "speckled", "mr"), 0.6),
        Scene(0.05, bodies.cells, ("microscopy", "microscopy", "stained", "anything"), 0.4),
        Scene(0.03, wide_bodies.glands, ("stained", "stained", "microscopy", "photo"), 0.5),
    ),
    balanced=True,
    lacking=0.1,
    thick=0.25,
    tiny=0.45,
    smallest=0.0003,
    fewest=12,
    whole=0.15,
    dressed=0.12,
)
"""The world of handful-small: more colour, rings, tubes, labels in pieces, tiny and absent targets, thick slices."""

WORLDS = {"tiny": TINY_WORLD, "wide": WIDE_WORLD}
"""By the name that a training records."""
