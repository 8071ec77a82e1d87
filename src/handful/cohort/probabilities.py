"""The probability of each label in each voxel: one file per case and label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handful.data.probability_maps import write_probability
from handful.data.volume import Labels, Volume
from handful.jobs.scratch import zeros_in_file
from handful.methods.base import Segmenter


def probability_files(folder: Path, name: str, labels: Labels) -> list[Path]:
    """The files of a case in a folder, in the order of the labels."""
    return [folder / f"{name}_label{value}.nii.gz" for value in labels.values]


def remove_probabilities(folder: Path, name: str) -> None:
    """Remove the files of a case, whatever the labels of the model that they are from."""
    own = re.compile(rf"{re.escape(name)}_label[0-9]+\.nii\.gz")
    for file in folder.iterdir() if folder.is_dir() else ():
        if own.fullmatch(file.name):
            file.unlink()


def write_probabilities(files: Sequence[Path], volume: Volume, segmenter: Segmenter) -> None:
    """Write the probability of each label, on the grid of the volume.

    They are collected in a temporary file without a name, so that memory does not grow with the number of labels.
    """
    shape = (len(files), *volume.geometry.shape)
    collected = zeros_in_file(shape, np.float16)
    segmenter.add_probabilities(volume, collected)
    for file, probability in zip(files, collected, strict=True):
        write_probability(file, probability, volume.geometry)
