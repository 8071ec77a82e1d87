"""Which features find the labelled slice that is most like a new one? Dice of its labels, copied onto the new one.

    python -m reproduction.studies.retrieval --data FOLDER --sets acdc busi --features pixels handful-tiny imagenet-16

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). Slices are compared as `nearest-slice` does,
with its automatic crop, by one of these features:

    pixels          thumbnails, the default of nearest-slice
    handful-tiny    the embeddings of that backbone, or of any other that is named
    imagenet-16     features of EfficientNet-Lite0, trained on ImageNet, at 1/16 (or 1/8, 1/32) of the pixels

All features of a split have the same labelled and unseen cases. A case's Dice is the mean over its labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from jaxtyping import Float
from torch import Tensor

from handful.backbones.absent import AbsentBackbone
from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.catalog import load_backbone
from handful.backbones.efficientnet import imagenet_encoder
from handful.evaluation.statistics import differences, over_splits
from handful.methods.catalog import build_method
from handful.methods.unet.network import IMAGENET_PIXELS
from reproduction.markdown import interval, signed, table
from reproduction.scoring import score
from reproduction.study import Line, Split, Study, Trial, by_split

PIXELS = "pixels"
IMAGENET = {"imagenet-8": 2, "imagenet-16": 3, "imagenet-32": 4}
"""Names of ImageNet's features, and their place among those of the encoder."""
FEATURES = (PIXELS, "handful-tiny", "handful-small", *IMAGENET)
Dice = dict[int, dict[str, float]]
"""Of each split's unseen cases, by name."""
SIDE = 256


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--features", nargs="+", default=list(FEATURES), metavar="FEATURES")
    parser.add_argument("--shots", type=int, default=4, help="labelled cases")
    parser.add_argument("--cases", type=int, default=8, help="unseen cases a split, at most")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class RetrievalTrial(Trial):
    """The nearest labelled slices by one kind of features."""

    features: str
    shots: int
    split: int
    most_cases: int

    def results(self, backbone: Backbone) -> list[Line]:
        split = Split.of(self.folder, self.shots, self.split, self.most_cases)
        method = build_method("nearest-slice", {"similarity": "pixels" if self.features == PIXELS else "embedding"})
        features = backbone if self.features == PIXELS else features_of(self.features)
        segmenter = method.fit(split.support, features)
        began = time.monotonic()
        scores = [score(segmenter.predict(case.read_image()), case, split.labels) for case in split.unseen]
        seconds = (time.monotonic() - began) / len(split.unseen)
        line = self.key() | split.names()
        return [line | {"dice": [round(one.dice, 5) for one in scores], "case_s": round(seconds, 3)}]


class ImageNetFeatures(AbsentBackbone):
    """Encodes slices by EfficientNet-Lite0 as ImageNet left it, at one of its resolutions."""

    side = SIDE
    _in_parts = Backbone._in_parts

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.encoder = imagenet_encoder().eval()
        self.level = IMAGENET[name]
        self.channels = self.encoder.channels[self.level]
        self.feature_side = SIDE // 2 ** (self.level + 1)

    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        levels = self.encoder(IMAGENET_PIXELS.encoder_input(slices, SIDE))
        return ImageEmbeddings((levels[self.level],), (slices.shape[-2], slices.shape[-1]))


@cache
def features_of(name: str) -> Backbone:
    """What encodes slices under that name."""
    return ImageNetFeatures(name) if name in IMAGENET else load_backbone(name)


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    for split in arguments.splits:
        for name in arguments.sets:
            for features in arguments.features:
                yield RetrievalTrial(
                    data=arguments.data,
                    set=name,
                    digest=digest,
                    features=features,
                    shots=arguments.shots,
                    split=split,
                    most_cases=arguments.cases,
                )


def tables(lines: Iterable[Line]) -> str:
    """A row per data set and way to measure: Dice by each kind of features, and the paired difference of the others to
    pixels."""
    lines = list(lines)
    features = [one for one in FEATURES if any(line["features"] == one for line in lines)]
    rows = []
    for group in dict.fromkeys(tuple(line[key] for key in _SETTINGS) for line in lines):
        own = [line for line in lines if tuple(line[key] for key in _SETTINGS) == group]
        by_features = {one: by_split([line for line in own if line["features"] == one], "dice") for one in features}
        pixels = by_features.get(PIXELS, {})
        cells = [_cell(found, pixels, one == PIXELS) for one, found in by_features.items()]
        rows.append((group[0], *cells, str(group[1]), str(max(map(len, by_features.values())))))
    return table(("data set", *features, "labelled", "splits"), rows)


_SETTINGS = ("set", "shots", "most_cases", "digest", "unseen")
"""Entries in which the lines of one row agree."""


def _cell(found: Dice, pixels: Dice, is_first: bool) -> str:
    """Mean Dice and, for other features, how much better than pixels."""
    if not found:
        return "–"
    mean = over_splits([*found.values()])
    gains = [] if is_first else differences(found, pixels)
    return f"{mean.mean:.3f} ({signed(over_splits(gains))})" if gains else interval(mean)


STUDY = Study(about=__doc__, results="retrieval", trials=trials, tables=tables)

if __name__ == "__main__":
    main()
