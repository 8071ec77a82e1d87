"""What a backbone can do on real scans with nothing trained on them: prompts, memory from four volumes, and its speed.

    python -m reproduction.studies.foundation --data FOLDER --name "first handful-tiny"

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). Every result is one line in the file, with the
value of each case. With --table the tables of the lines are printed, one per backbone, and nothing is measured.

Four volumes or 16 images are drawn as support; all else is measured on the same at most --cases unseen cases, which
are chosen at random. Intervals are over splits; of one split, over its cases; of a mean over sets, over sets.

- prompts: the reference's box, each side moved by up to 5 % of the box, and as a floor the ellipse that fills this box,
  which asks no backbone; cropped: each object seen in a window three times its box, encoded by itself, without and with
  the ellipse as a rough mask prompt; a click on the centre; that and four corrective clicks, each on the centre of the
  largest error with the logits so far as mask prompt. An object is a label on a slice; in dsb2018, busi and kvasir_seg
  it is a connected component of at least 30 pixels, of which the 30 largest are asked for. Only slices that hold a
  label are shown, of openkbp every third. A case's Dice is of each label, pooled over its objects, then the mean over
  labels.
- memory: the method `fate` fitted on the support, the same with random weights, and the nearest-slice floor, of openkbp
  on at most 6 cases. A case's Dice is the mean over labels. Absent called present, of `fate`: the share of (slice,
  label) pairs in which the reference does not hold the label but the prediction has a voxel of it, averaged over cases;
  and how many voxels, averaged over these pairs.
- speed: the least of several runs, on two threads, of slices of the backbone's own side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor
from transformers import Sam2VideoModel

from handful.backbones.base import Backbone, ImageEmbeddings, Memory, MemoryBackbone
from handful.backbones.box_crop import decode_box_crop
from handful.backbones.names import BACKBONES
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.evaluation.evaluate import Estimate
from handful.evaluation.statistics import over_splits
from handful.methods.base import CHUNK, Segmenter
from handful.pretraining.architecture import initialise, tiny_config
from handful.prompts.heuristics import append_points, boxes, centre_points, deepest_corrections, ellipses
from handful.prompts.prompts import Prompts
from reproduction.configurations import build
from reproduction.evidence import FIRST
from reproduction.markdown import interval, table
from reproduction.scoring import called_present, reference_of, score
from reproduction.study import Line, Split, Study, Trial, by_split, digest_of

SHOTS = {"3D": 4, "2D": 16}
SETS = {
    "msd_hippocampus": "3D",
    "acdc": "3D",
    "chaos_mr_t2": "3D",
    "openkbp": "3D",
    "busi": "2D",
    "camus": "2D",
    "cxr_covid": "2D",
    "drishti_gs": "2D",
    "kvasir_seg": "2D",
    "dsb2018": "2D",
}
COMPONENTS = ("dsb2018", "busi", "kvasir_seg")
"""Sets of one label with several objects an image."""
EVERY = {"openkbp": 3}
"""Which slices with a label are prompted, where not all are."""
FEWER = {"openkbp": 6}
"""Unseen cases for memory, where a volume's 128 slices times five labels take long."""
LEAST_PIXELS, MOST_COMPONENTS = 30, 30
JITTER, CLICKS = 0.05, 5
OBJECTS = 16
"""Objects decoded at once."""
PROMPTS = ("ellipse in box", "box", "box, cropped", "box and ellipse, cropped", "1 click", f"{CLICKS} clicks")
FLOOR, MEMORY, RANDOM = "nearest slice", "memory", "memory, random weights"
ABSENT = "absent called present"
LABELS, SUPPORTS, ROUNDS = 4, 5, 20
PARTS = ("prompts", "memory", "speed")


def main() -> None:
    parser = STUDY.parser(splits=(0,))
    parser.add_argument("--name", help="what the backbone is called in the tables; its name where none is given")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cases", type=int, default=25, help="at most so many unseen cases a set")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of fate")
    STUDY.main(parser)


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    """Speed is measured alone, before the others keep the machine busy."""
    name = arguments.name or str(arguments.backbone)
    if "speed" in arguments.parts:
        speed = SpeedTrial(data=arguments.data, set="speed", digest=digest, name=name, source=str(arguments.backbone))
        STUDY.measure([speed], arguments, workers=1)
    for data_set in arguments.sets:
        for seed in arguments.splits:
            place = {"data": arguments.data, "set": data_set, "seed": seed, "most_cases": arguments.cases, "name": name}
            if "prompts" in arguments.parts:
                yield PromptTrial(**place, digest=digest)
            if "memory" in arguments.parts:
                settings = tuple(arguments.set)
                yield FloorTrial(**place, digest="pixels")
                yield RandomTrial(**place, digest=digest_of(random_backbone()), settings=settings)
                yield MemoryTrial(**place, digest=digest, settings=settings)


@dataclass(frozen=True, kw_only=True)
class FoundationTrial(Trial):
    """Something measured on the unseen cases of one split of a set."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "name")

    measure: str
    seed: int
    settings: tuple[str, ...] = ()
    most_cases: int
    name: str
    """What the backbone is called in the tables."""

    def split(self, most: int) -> Split:
        return Split.of(self.folder, SHOTS[SETS[self.set]], self.seed, most)

    def line(self, split: Split, found: Line) -> Line:
        return self.key() | {"name": self.name} | split.names() | found


@dataclass(frozen=True, kw_only=True)
class PromptTrial(FoundationTrial):
    """What the backbone answers to each kind of prompt; every slice is encoded once for all kinds."""

    measure: str = "prompts"

    def line_keys(self) -> list[Line]:
        return [self.key() | {"measure": kind} for kind in PROMPTS]

    @torch.inference_mode()
    def results(self, backbone: Backbone) -> list[Line]:
        began, split = time.monotonic(), self.split(self.most_cases)
        slicer = split.support.resolve(Slicer())
        scores = [self._case(backbone, slicer, case, split.labels.values) for case in split.unseen]
        seconds = round(time.monotonic() - began, 1)
        return [
            self.line(split, {"measure": kind, "dice": [dice[kind] for dice in scores], "seconds": seconds})
            for kind in PROMPTS
        ]

    def _case(self, backbone: Backbone, slicer: Slicer, case: Case, values: Sequence[int]) -> dict[str, float]:
        """Mean Dice over labels for each kind of prompt."""
        rng = Generator().manual_seed(self.seed)
        view = slicer.view(case.read_image())
        classes, labels = view.of(reference_of(case).array), np.array(values)
        shown = np.flatnonzero(np.isin(classes, labels).any(axis=(1, 2)))[:: EVERY.get(self.set, 1)]
        counts = {kind: np.zeros((len(labels), 2)) for kind in PROMPTS}
        for chunk in (shown[start : start + CHUNK] for start in range(0, len(shown), CHUNK)):
            slices = view.take(chunk.tolist())
            image = backbone.encode_exact(slices.to(backbone.device))
            objects = [o for row, n in enumerate(chunk) for o in objects_of(self.set, row, classes[n], labels)]
            for some in (objects[start : start + OBJECTS] for start in range(0, len(objects), OBJECTS)):
                truth = torch.from_numpy(np.stack([one.mask for one in some]))
                rows = [one.row for one in some]
                for kind, masks in answers(backbone, slices[rows], image[rows], truth, rng).items():
                    np.add.at(counts[kind], [one.label for one in some], overlaps(masks, truth))
        present = next(iter(counts.values()))[:, 1] > 0
        return {kind: float(np.mean(c[present, 0] / c[present, 1])) for kind, c in counts.items()}


def overlaps(masks: Bool[Tensor, "o h w"], truth: Bool[Tensor, "o h w"]) -> Float[np.ndarray[Any, Any], "o 2"]:
    """Twice the pixels in both masks, and the sum of the pixels in each: Dice, once summed over objects and divided."""
    twice = 2 * (masks & truth).sum(dim=(1, 2)).numpy()
    both = (masks.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))).numpy()
    return np.stack([twice, both], axis=1)


@dataclass(frozen=True, eq=False)
class Object:
    """Something to be asked for: where it is, among which slices and labels."""

    row: int
    label: int
    mask: Bool[np.ndarray[Any, Any], "h w"]


def objects_of(name: str, row: int, classes: NDArray[Any], labels: NDArray[Any]) -> Iterator[Object]:
    """Each label that a slice holds, or each of its larger components; the largest one, however small it is."""
    for index, value in enumerate(labels):
        mask = np.ascontiguousarray(classes == value)
        if not mask.any():
            continue
        if name not in COMPONENTS:
            yield Object(row, index, mask)
            continue
        parts, _ = ndimage.label(mask)
        areas = np.bincount(parts.ravel())[1:]
        order = np.argsort(-areas, kind="stable")[:MOST_COMPONENTS]
        for place, part in enumerate(order.tolist()):
            if place == 0 or areas[part] >= LEAST_PIXELS:
                yield Object(row, index, parts == part + 1)


def answers(
    backbone: Backbone,
    slices: Float[Tensor, "o c h w"],
    image: ImageEmbeddings,
    truth: Bool[Tensor, "o h w"],
    rng: Generator,
) -> dict[str, Bool[Tensor, "o h w"]]:
    """What the backbone answers to each kind of prompt, one object a row."""
    masks, size = truth[:, None], (truth.shape[-2], truth.shape[-1])

    def ask(prompts: Prompts) -> Float[Tensor, "o 1 h w"]:
        return backbone.decode(image, backbone.embed(prompts, size)).cpu()

    box = boxes(masks, JITTER, rng)
    ellipse = ellipses(box, size)
    boxed = ask(Prompts(boxes=box))
    cropped = [decode_box_crop(backbone, slices, box, rough) for rough in (None, torch.where(ellipse, 6.0, -6.0))]
    prompts = centre_points(masks)
    clicked = logits = ask(prompts)
    for _ in range(CLICKS - 1):
        prompts = append_points(prompts, deepest_corrections(logits > 0, masks))
        logits = ask(replace(prompts, masks=logits))
    given = (ellipse, boxed > 0, *(seen > 0 for seen in cropped), clicked > 0, logits > 0)
    return {kind: found[:, 0] for kind, found in zip(PROMPTS, given, strict=True)}


@dataclass(frozen=True, kw_only=True)
class MemoryTrial(FoundationTrial):
    """FATE on the support."""

    measure: str = MEMORY

    def results(self, backbone: Backbone) -> list[Line]:
        split = self.split(min(FEWER.get(self.set, self.most_cases), self.most_cases))
        began = time.monotonic()
        segmenter = self.fitted(split, backbone)
        fitted = time.monotonic()
        predictions = [(case, segmenter.predict(case.read_image())) for case in split.unseen]
        ended = time.monotonic()
        found: Line = {
            "dice": [score(prediction, case, split.labels).dice for case, prediction in predictions],
            "absent": [called_present(segmenter.slicer, case, prediction) for case, prediction in predictions],
            "fit_s": round(fitted - began, 1),
            "case_s": round((ended - fitted) / len(predictions), 3),
            "seconds": round(ended - began, 1),
        }
        return [self.line(split, found)]

    def fitted(self, split: Split, backbone: Backbone) -> Segmenter:
        settings = dict(pair.split("=", 1) for pair in self.settings)
        return build("fate", settings, self.seed).fit(split.support, backbone)


@dataclass(frozen=True, kw_only=True)
class RandomTrial(MemoryTrial):
    """FATE with random weights, which are the same whatever the backbone."""

    measure: str = RANDOM

    def fitted(self, split: Split, backbone: Backbone) -> Segmenter:
        return super().fitted(split, random_backbone())


@dataclass(frozen=True, kw_only=True)
class FloorTrial(MemoryTrial):
    """The nearest slice, which depends on pixels alone."""

    measure: str = FLOOR

    def fitted(self, split: Split, backbone: Backbone) -> Segmenter:
        return build("nearest-slice", {}, self.seed).fit(split.support, backbone)


def random_backbone() -> Sam2VideoBackbone:
    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_config(256))
    initialise(model)
    return Sam2VideoBackbone(model, "random weights")


@dataclass(frozen=True, kw_only=True)
class SpeedTrial(Trial):
    """Milliseconds a slice: encode, decode of four boxes, and one label recalled from five memories and decoded."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "name", "source", "unseen")

    measure: str = "speed"
    name: str
    source: str
    """Name, hub id or folder of the backbone."""

    @torch.inference_mode()
    def results(self, backbone: Backbone) -> list[Line]:
        threads, began = torch.get_num_threads(), time.monotonic()
        torch.set_num_threads(2)
        found = speeds(backbone)
        torch.set_num_threads(threads)
        found["parameters"] = sum(parameter.numel() for parameter in backbone.parameters())
        entry = BACKBONES.get(self.source)
        files = list(Path(entry.source if entry else self.source).glob("*.safetensors"))
        found["megabytes"] = round(sum(file.stat().st_size for file in files) / 1e6, 2) if files else None
        return [self.key() | {"name": self.name} | found | {"seconds": round(time.monotonic() - began, 1)}]


def speeds(backbone: Backbone) -> Line:
    """Of slices of the backbone's own side."""
    side = backbone.side
    shown = torch.rand(CHUNK, 1, side, side, generator=Generator().manual_seed(0))
    image = backbone.encode(shown)
    box = torch.tensor([side / 4, side / 4, side / 2, side / 2]).expand(CHUNK, LABELS, 4)
    found: Line = {
        "encode_ms": _least_ms(lambda: backbone.encode(shown)),
        "decode_ms": _least_ms(lambda: backbone.decode(image, backbone.embed(Prompts(boxes=box), (side, side)))),
    }
    if isinstance(backbone, MemoryBackbone):
        masks = torch.full((CHUNK, side, side), -1.0)
        masks[:, : side // 2, : side // 2] = 1.0
        memory = Memory.cat([backbone.memorize(image, masks)] * SUPPORTS)
        found["recall_ms"] = _least_ms(lambda: backbone.decode_recalled(backbone.recall(image, memory)))
    return found


def _least_ms(call: Callable[[], object]) -> float:
    """Of a call on CHUNK slices, a slice; the least is what the machine does when nobody disturbs it."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return round(1000 * min(times) / CHUNK, 2)


def tables(lines: list[Line]) -> str:
    """A table per backbone, in the order in which they were measured."""
    names = dict.fromkeys(line["name"] for line in lines if line["measure"] not in (FLOOR, RANDOM))
    return "\n\n".join(table_of(name, lines) for name in names)


def table_of(name: str, lines: Sequence[Line]) -> str:
    """Means over the unseen cases of all splits, then the means over sets; of two lines for the same the later counts.

    The floor and the random weights, which depend on no backbone, are measured once for all. Lines of other unseen
    cases stand in a table of their own.
    """
    own = [line for line in lines if line["name"] == name and line["measure"] not in (FLOOR, RANDOM)]
    settings = [line["settings"] for line in own if line["measure"] == MEMORY][-1:]
    shared = [x for x in lines if x["measure"] == FLOOR or (x["measure"] == RANDOM and x["settings"] in settings)]
    speed = [_speed(line) for line in own if line["measure"] == "speed"][-1:]
    ways = dict.fromkeys(_chosen(line) for line in own if line["measure"] != "speed")
    parts = [f"**{name}** ({', '.join(dict.fromkeys(line['digest'] for line in own))})"]
    for way in ways:
        if len(ways) > 1:
            parts.append(f"Unseen cases: {way[0]}, at most {way[1]} per set.")
        parts.append(_table([line for line in (*own, *shared) if _chosen(line) == way]))
    return "\n\n".join([*parts, *speed])


def _chosen(line: Line) -> tuple[str, int | None]:
    """How the unseen cases were chosen, and how many at most."""
    return line.get("unseen", FIRST), line.get("most_cases")


def _table(lines: Sequence[Line]) -> str:
    columns = (*PROMPTS, FLOOR, MEMORY, RANDOM)
    found = {one: {column: _newest(lines, one, column) for column in columns} for one in SETS}
    found = {one: by_column for one, by_column in found.items() if any(by_column.values())}
    rows = [_set_row(one, by_column) for one, by_column in found.items()]
    for dimension in SHOTS:
        chosen = [by_column for one, by_column in found.items() if SETS[one] == dimension]
        if chosen:
            rows.append([f"mean {dimension}", "", *[_mean_of_sets(chosen, column) for column in columns], ""])
    return table(("data set", "cases", *columns, ABSENT), rows)


def _newest(lines: Iterable[Line], name: str, measure: str) -> list[Line]:
    """The newest line of each seed."""
    found = {line["seed"]: line for line in lines if line["set"] == name and line["measure"] == measure}
    return list(found.values())


def _set_row(name: str, by_column: dict[str, list[Line]]) -> list[str]:
    sizes = {sum(len(line["dice"]) for line in lines) for lines in by_column.values() if lines}
    cells = [interval(_of_lines(by_split(lines, "dice"))) for lines in by_column.values()]
    return [name, " / ".join(map(str, sorted(sizes, reverse=True))), *cells, _absent(by_column[MEMORY])]


def _mean_of_sets(chosen: Sequence[dict[str, list[Line]]], column: str) -> str:
    """Of the means of sets; the interval is over sets."""
    sets = [by_split(of_set[column], "dice") for of_set in chosen if of_set[column]]
    few = f" ({len(sets)} sets)" if 0 < len(sets) < len(chosen) else ""
    return (
        interval(over_splits([{(n, *key): one for key, one in _flat(of_set)} for n, of_set in enumerate(sets)])) + few
    )


def _of_lines(splits: Mapping[int, Mapping[str, float]]) -> Estimate:
    """Over splits; of a single one, over its cases."""
    if len(splits) == 1:
        return Estimate.of([value for _, value in _flat(splits)])
    return over_splits([*splits.values()])


def _flat(splits: Mapping[int, Mapping[str, float]]) -> Iterator[tuple[tuple[int, str], float]]:
    for split, scores in splits.items():
        for case, value in scores.items():
            yield (split, case), value


def _absent(lines: Sequence[Line]) -> str:
    """Shares of cases, averaged, with their interval, and voxels a pair; sets of whole objects have no such pairs."""
    counts = {split: {case: count for case, count in of.items() if count[0]} for split, of in _counts(lines).items()}
    if not any(counts.values()):
        return "–"
    share = _of_lines(
        {split: {case: 100 * called / pairs for case, (pairs, called, _) in of.items()} for split, of in counts.items()}
    )
    pairs, voxels = (sum(count[entry] for of in counts.values() for count in of.values()) for entry in (0, 2))
    return f"{share.mean:.1f} % [{share.low:.1f}, {share.high:.1f}], {voxels / pairs:.0f} voxels"


def _counts(lines: Sequence[Line]) -> dict[int, dict[str, list[int]]]:
    return {line["seed"]: dict(zip(line["cases"], line["absent"], strict=True)) for line in lines}


def _speed(line: Line) -> str:
    recall = f", recall and decode of one label {line['recall_ms']:.1f}" if "recall_ms" in line else ""
    size = "" if line["megabytes"] is None else f", {line['megabytes']:.1f} MB"
    return (
        f"Milliseconds per slice on two threads: encode {line['encode_ms']:.1f}, decode of {LABELS} boxes "
        f"{line['decode_ms']:.1f}{recall}. {line['parameters'] / 1e6:.1f} M parameters{size}."
    )


STUDY = Study(__doc__, "foundation", trials, tables, tuple(SETS))

if __name__ == "__main__":
    main()
