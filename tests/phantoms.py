"""Phantom scans for the tests: two ellipsoids of their own grey in a noisy body, on a grid with an odd affine."""

from __future__ import annotations

import numpy as np

from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Geometry, LabelMap, Labels, Volume

LABELS = Labels((1, 3), ("ball", "egg"))
SHAPE = (24, 6, 28)
"""Voxels along i, j, k; the six thick slices lie along j."""


def geometry() -> Geometry:
    """Axes permuted and one flipped, 1.1 × 5 × 0.9 mm voxels, a slight tilt, and an origin of its own."""
    tilt = np.deg2rad(4)
    axes = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0.0], [np.sin(tilt), np.cos(tilt), 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag([1.1, 5.0, 0.9])
    affine[:3, 3] = [12.5, -40.0, 7.25]
    return Geometry(SHAPE, affine)


def phantom(seed: int) -> tuple[Volume, LabelMap]:
    """An image of any offset and scale, and its labels; the ellipsoids move and change size with the seed."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1).astype(float)
    shift = rng.uniform(-1.2, 1.2, size=(2, 3)) * [1, 0.3, 1]
    ball = _inside(at, np.array([8.0, 2.5, 8.5]) + shift[0], rng.uniform(4.2, 5.2, 3) * [1, 0.42, 1])
    egg = _inside(at, np.array([15.0, 2.7, 19.0]) + shift[1], rng.uniform(4.8, 5.8, 3) * [1, 0.4, 1.1])
    body = _inside(at, np.array([11.5, 2.5, 13.5]), np.array([11.5, 5.0, 13.5]))
    grey = 0.35 * body + 0.55 * ball - 0.25 * (egg & ~ball) + rng.normal(0, 0.03, SHAPE)
    labels = np.where(ball, 1, np.where(egg, 3, 0)).astype(np.int16)
    return (
        Volume((40 + 300 * grey).astype(np.float32)[None], geometry(), modality="MR"),
        LabelMap(labels, geometry(), LABELS),
    )


def phantom_case(seed: int) -> Case:
    """A labelled case named after its seed."""
    image, reference = phantom(seed)
    return Case(name=f"phantom-{seed}", image=image, reference=reference, labels=LABELS, patient=f"patient-{seed}")


def sequence_phantom(seed: int, names: tuple[str, ...] = ("T1", "FLAIR")) -> tuple[Volume, LabelMap]:
    """A scan with several sequences, of which only the last shows the labels, each on a scale of its own."""
    image, reference = phantom(seed)
    rng = np.random.default_rng(1000 + seed)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1).astype(float)
    body = _inside(at, np.array([11.5, 2.5, 13.5]), np.array([11.5, 5.0, 13.5]))
    blind = [(number + 1) * (body + rng.normal(0, 0.05, SHAPE)).astype(np.float32) for number in range(len(names) - 1)]
    array = np.stack([*blind, image.array[0]])
    return Volume(array, image.geometry, sequences=names), reference


def sequence_case(seed: int, names: tuple[str, ...] = ("T1", "FLAIR")) -> Case:
    """A labelled case of several sequences, named after its seed."""
    image, reference = sequence_phantom(seed, names)
    return Case(f"phantom-{seed}", image, reference, LABELS, f"patient-{seed}")


def sequence_support(n: int = 2, names: tuple[str, ...] = ("T1", "FLAIR")) -> SupportSet:
    """The first n cases of several sequences, all slices labelled."""
    return SupportSet(tuple(sequence_case(seed, names) for seed in range(n)), LABELS)


def support_set(n: int = 3) -> SupportSet:
    """The first n phantoms, all slices labelled."""
    return SupportSet(tuple(phantom_case(seed) for seed in range(n)), LABELS)


def dot(seed: int, negative: bool = False) -> Case:
    """A picture of a light disc on a dark ground, or its negative."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    disc = (rows - rng.integers(10, 22)) ** 2 + (columns - rng.integers(10, 22)) ** 2 < 40
    grey = 20 + 200 * disc + rng.normal(0, 4, disc.shape)
    geometry = Geometry((32, 32, 1), np.eye(4), unit="pixel")
    labels = Labels((1,), ("disc",))
    image = Volume((255 - grey if negative else grey)[None, :, :, None].astype(np.float32), geometry)
    return Case(f"dot-{seed}", image, LabelMap(disc[:, :, None].astype(np.int16), geometry, labels), labels)


def dots(negatives: int) -> SupportSet:
    """Two labelled discs and eight without labels, of which some are negatives."""
    unlabelled = tuple(dot(10 + seed, negative=seed < negatives) for seed in range(8))
    return SupportSet((dot(0), dot(1)), Labels((1,), ("disc",)), unlabelled=UnlabelledScans.of(unlabelled))


def _inside(at: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    inside: np.ndarray = (((at - centre) / radii) ** 2).sum(axis=-1) <= 1
    return inside
