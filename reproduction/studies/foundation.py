"""What a backbone can do on real scans with nothing trained on them: prompts, memory from four volumes, and its speed.

    python -m reproduction.studies.foundation --data FOLDER --name "first handful-tiny"

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). Every result is one line in the file, with the
value of each case, written when it is known; a line that is there already is not computed again, so a stopped run goes
on where it was. With --table nothing is computed: the tables of the lines so far are printed, one a backbone.

Four volumes or 16 images are drawn as support; all else is measured on the same at most --cases unseen cases.

- prompts: the reference's box, each side moved by up to 5 % of the box, and as a floor the ellipse that fills this box,
  which asks no backbone; closer: each object seen in a window three times its box, encoded by itself, without and with
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
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor
from transformers import Sam2VideoModel

from handful.backbones.base import Backbone, ImageEmbeddings, Memory, MemoryBackbone
from handful.backbones.catalog import BACKBONES, load_backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.backbones.zoom import decode_zoomed
from handful.data.cases import Case, Cohort, SupportSet
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap
from handful.evaluation.evaluate import Estimate, score_case
from handful.jobs.allocator import tune_allocator
from handful.methods.base import CHUNK, Segmenter
from handful.methods.catalog import build_method
from handful.pretraining.architecture import initialise, tiny_config
from handful.prompts.heuristics import append_points, boxes, centre_points, deepest_corrections, ellipses
from handful.prompts.prompts import Prompts

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
PROMPTS = ("ellipse in box", "box", "box, closer", "box and ellipse, closer", "1 click", f"{CLICKS} clicks")
FLOOR, MEMORY, RANDOM = "nearest slice", "memory", "memory, random weights"
ABSENT = "absent called present"
LABELS, SUPPORTS, ROUNDS = 4, 5, 20

Line = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    if not arguments.table:
        tune_allocator()
        torch.set_num_threads(arguments.threads)
        backbone = load_backbone(arguments.backbone)
        log = Log(arguments.out, arguments.name or str(arguments.backbone))
        if "speed" in arguments.parts:
            measure_speed(log, backbone, arguments.backbone)
        for name in arguments.sets:
            cohort = read_cohort(arguments.data / name)
            for seed in arguments.seeds:
                draw = Draw.of(name, cohort, seed, arguments.cases)
                if "prompts" in arguments.parts:
                    measure_prompts(log, backbone, draw)
                if "memory" in arguments.parts:
                    measure_memory(log, backbone, draw, arguments.set)
    print(tables(read_lines(arguments.out)))


@dataclass(frozen=True)
class Log:
    """The file of results, a line each."""

    path: Path
    name: str
    """What the backbone is called in the tables."""

    def holds(self, key: Line) -> bool:
        return any({part: line.get(part) for part in key} == key for line in read_lines(self.path))

    def add(self, key: Line, found: Line) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(key | {"name": self.name} | found) + "\n")
        mean = f"{np.mean(found['dice']):.3f}" if "dice" in found else ""
        print(key["set"], key["measure"], mean, f"{found['seconds']:.0f} s", flush=True)


@dataclass(frozen=True)
class Draw:
    """The support and the unseen cases of a set."""

    name: str
    seed: int
    support: SupportSet
    unseen: tuple[Case, ...]
    most: int

    @classmethod
    def of(cls, name: str, cohort: Cohort, seed: int, most: int) -> Draw:
        assert cohort.labels is not None
        drawn, rest = cohort.draw(SHOTS[SETS[name]], seed)
        unseen = tuple(case for case in rest if case.reference is not None)[:most]
        return cls(name, seed, SupportSet(tuple(drawn), cohort.labels), unseen, most)

    def key(self, measure: str, digest: str, settings: Sequence[str] = ()) -> Line:
        return {
            "set": self.name,
            "measure": measure,
            "seed": self.seed,
            "digest": digest,
            "settings": list(settings),
            "most_cases": self.most,
        }

    def cases(self) -> Line:
        return {"support": [case.name for case in self.support.cases], "cases": [case.name for case in self.unseen]}


@torch.inference_mode()
def measure_prompts(log: Log, backbone: Backbone, draw: Draw) -> None:
    digest = backbone.digest()[:12]
    keys = {kind: draw.key(kind, digest) for kind in PROMPTS}
    if all(log.holds(key) for key in keys.values()):
        return
    began = time.monotonic()
    slicer = Slicer().resolve(draw.support.images())
    scores = [prompted_case(backbone, draw, slicer, case) for case in draw.unseen]
    seconds = round(time.monotonic() - began, 1)
    for kind, key in keys.items():
        if log.holds(key):
            continue
        log.add(key, draw.cases() | {"dice": [dice[kind] for dice in scores], "seconds": seconds})


def prompted_case(backbone: Backbone, draw: Draw, slicer: Slicer, case: Case) -> dict[str, float]:
    """Mean Dice over labels for each kind of prompt; every slice is encoded once."""
    rng = Generator().manual_seed(draw.seed)
    reference = case.read_reference()
    assert reference is not None
    view = slicer.view(case.read_image())
    classes = view.of(reference.array)
    labels = np.array(draw.support.labels.values)
    shown = np.flatnonzero(np.isin(classes, labels).any(axis=(1, 2)))[:: EVERY.get(draw.name, 1)]
    counts = {kind: np.zeros((len(labels), 2)) for kind in PROMPTS}
    for chunk in (shown[start : start + CHUNK] for start in range(0, len(shown), CHUNK)):
        slices = view.take(chunk.tolist())
        image = backbone.encode(slices.to(backbone.device))
        objects = [o for row, number in enumerate(chunk) for o in objects_of(draw.name, row, classes[number], labels)]
        for some in (objects[start : start + OBJECTS] for start in range(0, len(objects), OBJECTS)):
            truth = torch.from_numpy(np.stack([one.mask for one in some]))
            rows = [one.row for one in some]
            found = answers(backbone, slices[rows], image[rows], truth, rng)
            for kind, masks in found.items():
                twice = 2 * (masks & truth).sum(dim=(1, 2)).numpy()
                both = (masks.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))).numpy()
                np.add.at(counts[kind], [one.label for one in some], np.stack([twice, both], axis=1))
    present = next(iter(counts.values()))[:, 1] > 0
    return {kind: float(np.mean(c[present, 0] / c[present, 1])) for kind, c in counts.items()}


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
    closer = [decode_zoomed(backbone, slices, box, rough) for rough in (None, torch.where(ellipse, 6.0, -6.0))]
    prompts = centre_points(masks)
    clicked = logits = ask(prompts)
    for _ in range(CLICKS - 1):
        prompts = append_points(prompts, deepest_corrections(logits > 0, masks))
        logits = ask(replace(prompts, masks=logits))
    given = (ellipse, boxed > 0, *(seen > 0 for seen in closer), clicked > 0, logits > 0)
    return {kind: found[:, 0] for kind, found in zip(PROMPTS, given, strict=True)}


def measure_memory(log: Log, backbone: Backbone, draw: Draw, settings: list[str]) -> None:
    """The floor looks at pixels and the random weights are always the same: both are measured once for all."""
    values: dict[str, object] = {}
    values |= dict(pair.split("=", 1) for pair in settings)
    noise = random_backbone()
    draw = replace(draw, unseen=draw.unseen[: FEWER.get(draw.name)])
    for measure, method, model, own in (
        (FLOOR, "nearest-slice", None, ()),
        (RANDOM, "fate", noise, settings),
        (MEMORY, "fate", backbone, settings),
    ):
        key = draw.key(measure, "pixels" if model is None else model.digest()[:12], own)
        if log.holds(key):
            continue
        began = time.monotonic()
        segmenter = build_method(method, values if own else {}).fit(draw.support, model or backbone)
        fitted = time.monotonic()
        scores = [memory_case(segmenter, case) for case in draw.unseen]
        ended = time.monotonic()
        found: Line = {
            "dice": [dice for dice, _ in scores],
            "absent": [absent for _, absent in scores],
            "fit_s": round(fitted - began, 1),
            "case_s": round((ended - fitted) / len(scores), 3),
            "seconds": round(ended - began, 1),
        }
        log.add(key, draw.cases() | found)


def memory_case(segmenter: Segmenter, case: Case) -> tuple[float, tuple[int, int, int]]:
    """Mean Dice over the labels that are not absent; pairs of slice and absent label, those called, their voxels."""
    reference = case.read_reference()
    assert reference is not None
    prediction = segmenter.predict(case.read_image())
    rows = score_case(case.name, prediction, reference, labels=segmenter.labels)
    dice = float(np.mean([row.dice for row in rows if row.status != "absent"]))
    return dice, called_present(segmenter.slicer, case, prediction)


def called_present(slicer: Slicer, case: Case, prediction: LabelMap) -> tuple[int, int, int]:
    """Pairs of slice and label of which the reference holds nothing; those in which something is found; its voxels."""
    reference = case.read_reference()
    assert reference is not None
    view = slicer.view(case.read_image())
    truth, shown = view.of(reference.array), view.of(prediction.array)
    pairs = called = voxels = 0
    for value in prediction.labels.values:
        absent = (truth != IGNORE).any(axis=(1, 2)) & ~(truth == value).any(axis=(1, 2))
        invented = ((shown == value) & (truth != IGNORE)).sum(axis=(1, 2))[absent]
        pairs += int(absent.sum())
        called += int((invented > 0).sum())
        voxels += int(invented.sum())
    return pairs, called, voxels


def random_backbone() -> Sam2VideoBackbone:
    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_config(256))
    initialise(model)
    return Sam2VideoBackbone(model, "random weights")


@torch.inference_mode()
def measure_speed(log: Log, backbone: Backbone, source: str) -> None:
    """Milliseconds a slice: encode, decode of four boxes, and one label recalled from five memories and decoded."""
    key = {"set": "speed", "measure": "speed", "digest": backbone.digest()[:12]}
    if log.holds(key):
        return
    threads, began = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(2)
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
    torch.set_num_threads(threads)
    found["parameters"] = sum(parameter.numel() for parameter in backbone.parameters())
    entry = BACKBONES.get(source)
    folder = entry.source if entry else source
    files = list(Path(folder).glob("*.safetensors"))
    found["megabytes"] = round(sum(file.stat().st_size for file in files) / 1e6, 2) if files else None
    log.add(key, found | {"seconds": round(time.monotonic() - began, 1)})


def _least_ms(call: Callable[[], object]) -> float:
    """Of a call on CHUNK slices, a slice; the least is what the machine does when nobody disturbs it."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return round(1000 * min(times) / CHUNK, 2)


def tables(lines: list[Line]) -> str:
    """A table a backbone, in the order in which they were measured; of two lines that say the same the later counts."""
    shared = [line for line in lines if line["measure"] in (FLOOR, RANDOM)]
    own = [line for line in lines if line["measure"] not in (FLOOR, RANDOM)]
    names = dict.fromkeys(line["name"] for line in own)
    return "\n\n".join(table(name, [line for line in own if line["name"] == name], shared) for name in names)


def table(name: str, own: list[Line], shared: list[Line]) -> str:
    """Means over the unseen cases of all draws with 95 % bootstrap intervals, then the means over sets."""
    digests = ", ".join(dict.fromkeys(line["digest"] for line in own))
    columns = (*PROMPTS, FLOOR, MEMORY, RANDOM)
    rows = [f"**{name}** ({digests})", ""]
    rows += ["| data set | cases | " + " | ".join((*columns, ABSENT)) + " |"]
    rows += ["|---" * (len(columns) + 3) + "|"]
    asked = [line["settings"] for line in own if line["measure"] == MEMORY]
    lines = own + [line for line in shared if line["measure"] == FLOOR or line["settings"] in asked[-1:]]
    found = {one: {column: _of(lines, one, column) for column in columns} for one in SETS}
    found = {one: by_column for one, by_column in found.items() if any(by_column.values())}
    for one, by_column in found.items():
        values = {column: [d for line in some for d in line["dice"]] for column, some in by_column.items()}
        cases = sorted({len(dice) for dice in values.values() if dice}, reverse=True)
        cells = [one, " / ".join(map(str, cases))]
        cells += [_cell(Estimate.of(values[column])) for column in columns]
        rows += ["| " + " | ".join([*cells, _absent(by_column[MEMORY])]) + " |"]
    for dimension in SHOTS:
        chosen = [by_column for one, by_column in found.items() if SETS[one] == dimension]
        cells = [f"mean {dimension}", ""]
        for column in columns:
            sets = [
                [d for line in by_column[column] for d in line["dice"]] for by_column in chosen if by_column[column]
            ]
            cells.append(_cell(_over_sets(sets)) + (f" ({len(sets)} sets)" if 0 < len(sets) < len(chosen) else ""))
        if chosen:
            rows += ["| " + " | ".join([*cells, ""]) + " |"]
    return "\n".join(rows + [_speed(line) for line in own if line["measure"] == "speed"][-1:])


def _of(lines: list[Line], name: str, measure: str) -> list[Line]:
    """The newest line of each seed."""
    found = {line["seed"]: line for line in lines if line["set"] == name and line["measure"] == measure}
    return list(found.values())


def _over_sets(sets: list[list[float]]) -> Estimate:
    """The mean of the means of sets, each counting once; the interval draws cases again within each set."""
    if not sets:
        return Estimate.of([])
    rng = np.random.default_rng(0)
    means = [rng.choice(dice, (2000, len(dice))).mean(axis=1) for dice in sets]
    low, high = np.percentile(np.mean(means, axis=0), (2.5, 97.5))
    mean = float(np.mean([np.mean(dice) for dice in sets]))
    return Estimate(mean, float("nan"), float(low), float(high))


def _cell(estimate: Estimate) -> str:
    if np.isnan(estimate.mean):
        return "–"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _absent(lines: list[Line]) -> str:
    """Shares of cases, averaged, with their interval, and voxels a pair; sets of whole objects have no such pairs."""
    counts = [count for line in lines for count in line["absent"] if count[0]]
    if not counts:
        return "–"
    share = Estimate.of([100 * called / pairs for pairs, called, _ in counts])
    voxels = sum(count[2] for count in counts) / sum(count[0] for count in counts)
    return f"{share.mean:.1f} % [{share.low:.1f}, {share.high:.1f}], {voxels:.0f} voxels"


def _speed(line: Line) -> str:
    recall = f", recall and decode of a label {line['recall_ms']:.1f}" if "recall_ms" in line else ""
    size = "" if line["megabytes"] is None else f", {line['megabytes']:.1f} MB"
    return (
        f"\nMilliseconds a slice on two threads: encode {line['encode_ms']:.1f}, decode of {LABELS} boxes "
        f"{line['decode_ms']:.1f}{recall}. {line['parameters'] / 1e6:.1f} M parameters{size}."
    )


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--backbone", default="handful-tiny", help="name, hub id or folder")
    parser.add_argument("--name", help="what the backbone is called in the tables; its name where none is given")
    parts = ["prompts", "memory", "speed"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--cases", type=int, default=25, help="at most so many unseen cases a set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of fate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/foundation.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, compute nothing")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.table:
        parser.error("--data is needed, unless --table only prints")
    return arguments


if __name__ == "__main__":
    main()
