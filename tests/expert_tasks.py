"""Tasks for tests of models with experts: phantoms, their negatives with other labels, and pictures in colour."""

from __future__ import annotations

import dataclasses

import numpy as np

from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from phantoms import phantom, phantom_case

NEGATIVES = Labels((1, 2, 3), ("egg", "cube", "ball"))
"""Two names of the phantoms with other values, and a new name whose value is free."""
BLOBS = Labels((1,), ("blob",))


def scans(seeds: range) -> SupportSet:
    """Phantoms as they are."""
    return SupportSet(tuple(phantom_case(seed) for seed in seeds), Labels((1, 3), ("ball", "egg")))


def negatives(seeds: range) -> SupportSet:
    """Phantoms with dark for bright and stripes, in which a cube is labelled, too."""
    return SupportSet(tuple(negative_case(seed) for seed in seeds), NEGATIVES)


def negative_case(seed: int) -> Case:
    image, reference = phantom(seed)
    array = image.array.max() - image.array
    array[:, ::3] *= 0.2
    labels = np.where(reference.array == 1, 3, np.where(reference.array == 3, 1, 0)).astype(np.int16)
    labels[1:4, 1:4, 1:4] = 2
    changed = dataclasses.replace(image, array=array)
    return Case(f"phantom-{seed}", changed, LabelMap(labels, image.geometry, NEGATIVES), NEGATIVES)


def pictures(seeds: range) -> SupportSet:
    """Pictures in colour with a bright blob."""
    return SupportSet(tuple(picture_case(seed) for seed in seeds), BLOBS)


def picture_case(seed: int) -> Case:
    generator = np.random.default_rng(seed)
    array = generator.integers(0, 60, (3, 32, 32, 1)).astype(np.uint8)
    labels = np.zeros((32, 32, 1), np.int16)
    labels[8 + seed : 20, 10:22] = 1
    array[0][labels > 0] += 150
    geometry = Geometry((32, 32, 1), np.eye(4), unit="pixel")
    return Case(f"picture-{seed}", Volume(array, geometry), LabelMap(labels, geometry, BLOBS), BLOBS)
