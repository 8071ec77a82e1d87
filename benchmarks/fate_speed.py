"""FATE against a straight reading of its authors' algorithm: seconds a volume on the same model, and where they go.

    python benchmarks/fate_speed.py --data FOLDER [--set acdc] [--case NAME] [--slices N]

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). The model is SAM 2.1 Hiera-tiny at its true size
with random weights, four cases are the support, all labels are asked for; without --case the unseen case with the
fewest slices is segmented. --slices keeps the middle slices of every volume, support and query alike, so that encodes
keep their proportions; then the whole case is projected from the cost of each call. Every variant is one line of --out.

Reference is the algorithm of the authors' code in our words, on the same verbs of the same backbone, with transformers'
own memory attention: two copies of the model; for every volume all support slices and all of its own slices are encoded
to compare them; then for each slice each of its three supports joins the video as a further frame, is encoded for its
mask prompt and again for its memory, gets a memory object by object, and is forgotten; the slice itself is encoded
again. 6 neighbours, pointers over 15 slices. It is spared what costs time in the original beside the model: pictures
written and read as JPEG, the copies of the whole video, four openings of it with an encode each. Objects are asked one
at a time, where the authors' last step takes them together, which on a processor costs the same. Mended is what would
change answers and not the cost: support pointers count in both directions, no memory is left over from other supports,
and the largest logit wins.

Ours at equal settings is `fate` with top_k 3, window 6, similarity l1, pointers, only slices with a label retrieved and
an empty mask remembered where a support lacks a label. Then both must give the same label map, up to the half precision
of our bank, except where none of the three supports holds a label: there ours says absent, and does not ask.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from against_transformers import modules_of_transformers
from handful.backbones.base import ImageEmbeddings, Memory, MemoryBackbone
from handful.data.cases import Case
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.data.volume import Geometry, LabelMap, Volume
from handful.jobs.allocator import tune_allocator
from handful.methods.base import assemble_label_map, to_classes
from handful.methods.fate.method import Fate, FateSegmenter
from material import sam2_video_tiny
from measure import short

SUPPORTS, NEIGHBOURS, POINTERS = 3, 6, 15
SHOTS = 4
VERBS = ("encode", "recall", "decode_recalled", "remember", "memorize")
EQUAL = Fate(top_k=SUPPORTS, window=NEIGHBOURS, similarity="l1", pointers=True, foreground_only=True, allow_empty=True)
REFERENCE, OURS = "reference", "ours, equal settings"

Line = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    tune_allocator()
    torch.set_num_threads(arguments.threads)
    task = Task.of(arguments.data / arguments.set, arguments.case, arguments.seed, arguments.slices)
    full, half = sam2_video_tiny(arguments.side), sam2_video_tiny(arguments.side // 2)
    half.model.load_state_dict(full.model.state_dict())
    began = os.getloadavg()[0]
    variants, fits = prepared(task, full, half)
    costs: dict[str, list[Cost]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, variant in variants.items():
            costs[name].append(measured(variant, task.query, fits[name]))
            print(f"{name}: {costs[name][-1].core:.1f} core-s", flush=True)
    base = task.key() | {"side": arguments.side, "threads": arguments.threads, "torch": torch.__version__}
    base |= {"cores": os.cpu_count(), "load": [round(began, 1), round(os.getloadavg()[0], 1)]}
    lines = [base | line for line in summed(task, variants, costs)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    print(table(lines))


@dataclass(frozen=True, eq=False)
class Task:
    """Four labelled cases and one to segment."""

    name: str
    support: SupportSet
    query: Case
    whole: tuple[int, int]
    """Slices of the query and of the support before any were cut away."""
    cut: tuple[int, int]
    """The same as they are now."""

    @classmethod
    def of(cls, folder: Path, case: str | None, seed: int, slices: int | None) -> Task:
        cohort = read_cohort(folder)
        assert cohort.labels is not None, f"{folder} holds no references"
        some, rest = cohort.split(SHOTS, seed)
        slicer = Slicer().resolve(one.read_image() for one in some)
        known = {one.name: one for one in rest}
        name = case or min(known, key=lambda name: (slicer_count(slicer, known[name]), name))
        whole = (slicer_count(slicer, known[name]), sum(slicer_count(slicer, one) for one in some))
        kept = [middle(one, slicer, slices) for one in (known[name], *some)]
        cut = (slicer_count(slicer, kept[0]), sum(slicer_count(slicer, one) for one in kept[1:]))
        return cls(folder.name, SupportSet(tuple(kept[1:]), cohort.labels), kept[0], whole, cut)

    def key(self) -> Line:
        return {
            "set": self.name,
            "case": self.query.name,
            "support": [case.name for case in self.support.cases],
            "labels": len(self.support.labels),
            "slices": self.cut[0],
            "support_slices": self.cut[1],
            "whole_slices": self.whole[0],
            "whole_support_slices": self.whole[1],
        }


def slicer_count(slicer: Slicer, case: Case) -> int:
    return len(slicer.view(case.read_image()))


def middle(case: Case, slicer: Slicer, count: int | None) -> Case:
    """The case with the `count` slices in the middle of it alone, None for all, in memory."""
    image, reference = case.read_image(), case.read_reference()
    assert reference is not None, f"case {case.name!r} has no reference"
    view = slicer.view(image)
    start = 0 if count is None else max(0, (len(view) - count) // 2)
    numbers = np.empty(image.geometry.shape, dtype=np.int64)
    view.of(numbers)[...] = np.arange(len(view))[:, None, None]
    kept = np.argwhere((numbers >= start) & (numbers < start + (count or len(view))))
    low, high = kept.min(axis=0), kept.max(axis=0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    affine = image.geometry.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    i, j, k = (int(n) for n in high - low)
    geometry = Geometry((i, j, k), affine, image.geometry.unit)
    shown = LabelMap(reference.array[box], geometry, reference.labels)
    return replace(case, image=Volume(image.array[:, *box], geometry, image.modality), reference=shown)


@dataclass(frozen=True, eq=False)
class Answer:
    """What either algorithm says of a volume."""

    label_map: LabelMap
    object_score: Tensor
    """n × k; nan where it was not asked for."""
    retrieved: list[tuple[tuple[str, int], ...]]


@dataclass(frozen=True, eq=False)
class Reference:
    """The authors' algorithm, as it is told at the top: nothing is kept from one volume to the next."""

    support: SupportSet
    slicer: Slicer
    finder: MemoryBackbone
    tracker: MemoryBackbone
    window: int = NEIGHBOURS

    def answer(self, volume: Volume) -> Answer:
        shots = [shot for case in self.support.slices(self.slicer) for shot in shots_of(case)]
        view = self.slicer.view(volume)
        slices = [view.take([number]) for number in range(len(view))]
        retrieved = self.retrieved(slices, shots)
        k = len(self.support.labels)
        logits: list[Tensor] = [torch.empty(0)] * len(slices)
        scores = torch.full((len(slices), k), torch.nan)
        left: dict[int, list[Memory]] = {}
        start = len(slices) // 2
        for order, way in ((range(start, -1, -1), -1), (range(start + 1, len(slices)), 1)):
            for here in order:
                shown = [self.memories(shots[s]) for s in retrieved[here]]
                image = self.tracker.encode(slices[here])
                found, own = [], []
                for label in range(k):
                    near = {(here - there) * way: known[label] for there, known in left.items()}
                    memory = joined([one[label] for one in shown], near)
                    prediction = self.tracker.decode_recalled(self.tracker.recall(image, memory))
                    own.append(self.tracker.remember(image, prediction, distance=1))
                    assert prediction.object_score is not None
                    scores[here, label] = prediction.object_score[0, 0]
                    found.append(torch.where(prediction.object_score[..., None, None] > 0, prediction.logits, -1024.0))
                left[here] = own
                logits[here] = self.tracker.to_image_frame(torch.cat(found, dim=1), view.size)
        classes = ((([number]), to_classes(one)) for number, one in enumerate(logits))
        names = [tuple(shots[s].source for s in supports) for supports in retrieved]
        return Answer(assemble_label_map(view, self.support.labels, classes), scores, names)

    def retrieved(self, slices: Sequence[Tensor], shots: Sequence[Shot]) -> list[list[int]]:
        """For each slice the three labelled support slices that differ least over all levels."""
        known = [self.finder.encode(shot.pixels) for shot in shots]
        asked = [self.finder.encode(one) for one in slices]
        found = []
        for image in asked:
            order = np.argsort([difference(image, other) for other in known], kind="stable").tolist()
            found.append([s for s in order if shots[s].masks.any()][:SUPPORTS])
        return found

    def memories(self, shot: Shot) -> list[Memory]:
        """One an object; only the last frame's features are kept, so mask prompts and memories each cost an encode."""
        self.tracker.encode(shot.pixels)
        image = self.tracker.encode(shot.pixels)
        return [self.tracker.memorize(image, mask[None]) for mask in shot.masks]


@dataclass(frozen=True, eq=False)
class Shot:
    """A support slice (1, c, h, w) with its masks (k, h, w)."""

    source: tuple[str, int]
    pixels: Tensor
    masks: Tensor


def shots_of(case: LabelledSlices) -> Iterator[Shot]:
    for row, number in enumerate(case.index):
        yield Shot((case.case, number), case.slices[[row]], case.masks([row])[0])


def difference(a: ImageEmbeddings, b: ImageEmbeddings) -> float:
    levels = zip(a.features, b.features, strict=True)
    return float(np.mean([(one - other).abs().sum(dim=1).mean().item() for one, other in levels]))


def joined(supports: Sequence[Memory], near: dict[int, Memory]) -> Memory:
    """Supports and the neighbours behind, by their distance: six memories, and the pointers of fifteen."""
    parts = list(supports)
    for away, memory in near.items():
        if 0 < away <= POINTERS:
            seen = replace(memory, distance=(away,), pointer_distance=(away,))
            if away > NEIGHBOURS:
                nothing = seen.spatial[:, :0]
                seen = replace(seen, spatial=nothing, spatial_position=nothing, distance=())
            parts.append(seen)
    return Memory.cat(parts)


@dataclass(frozen=True, eq=False)
class Ours:
    """A fitted segmenter, which keeps what it knows of the support."""

    segmenter: FateSegmenter

    @property
    def window(self) -> int:
        return self.segmenter.method.window

    def answer(self, volume: Volume) -> Answer:
        found, confidence = self.segmenter.predict_explained(volume)
        return Answer(found, confidence.object_score, list(confidence.retrieved))


Variant = Reference | Ours


def prepared(task: Task, full: MemoryBackbone, half: MemoryBackbone) -> tuple[dict[str, Variant], dict[str, float]]:
    """All that is compared, and the core-seconds that fitting each took."""
    slicer = task.support.resolve(Slicer())
    fits, fitted = {REFERENCE: 0.0}, {}
    for backbone in (full, half):
        began = time.process_time()
        fitted[backbone.side] = EQUAL.fit(task.support, backbone)
        fits[backbone.name] = time.process_time() - began
    equal, small = fitted[full.side], fitted[half.side]
    bounded = replace(EQUAL, window=1).restore(equal.labels, equal.slicer, full, equal.learned())
    coarse = replace(EQUAL, precision="bfloat16").restore(equal.labels, equal.slicer, full, equal.learned())
    both = replace(EQUAL, window=1).restore(small.labels, small.slicer, half, small.learned())
    variants: dict[str, Variant] = {
        REFERENCE: Reference(task.support, slicer, copy.deepcopy(full), copy.deepcopy(full)),
        OURS: Ours(equal),
        "ours, bfloat16": Ours(coarse),
        "ours, window 1": Ours(bounded),
        f"ours, {half.side} px": Ours(small),
        f"ours, {half.side} px, window 1": Ours(both),
    }
    for name, variant in variants.items():
        if isinstance(variant, Ours):
            fits[name] = fits[variant.segmenter.backbone.name]
    return variants, fits


@dataclass(frozen=True, eq=False)
class Cost:
    """Of one volume."""

    answer: Answer
    core: float
    wall: float
    fit: float
    encodes: int
    verbs: dict[str, float]
    """Core-seconds in each verb."""
    calls: dict[str, int]
    """Slices or objects that went through each verb."""
    recalls: list[tuple[int, float]]
    """Memories and core-seconds of each object recalled."""


@torch.inference_mode()
def measured(variant: Variant, query: Case, fit: float) -> Cost:
    image = query.read_image()
    backbones = (variant.finder, variant.tracker) if isinstance(variant, Reference) else (variant.segmenter.backbone,)
    with watched(backbones) as seen, modules_of_transformers() if isinstance(variant, Reference) else nullcontext():
        core, wall = time.process_time(), time.perf_counter()
        answer = variant.answer(image)
        core, wall = time.process_time() - core, time.perf_counter() - wall
    verbs = {verb: sum(seconds for _, _, seconds in seen[verb]) for verb in VERBS}
    calls = {verb: sum(rows for rows, _, _ in seen[verb]) for verb in VERBS}
    recalls = [(held, seconds / rows) for rows, held, seconds in seen["recall"] for _ in range(rows)]
    return Cost(answer, core, wall, fit, calls["encode"], verbs, calls, recalls)


@contextmanager
def watched(backbones: Sequence[MemoryBackbone]) -> Iterator[dict[str, list[tuple[int, int, float]]]]:
    """Rows, memories a row and core-seconds of every call of a verb meanwhile."""
    seen: dict[str, list[tuple[int, int, float]]] = {verb: [] for verb in VERBS}

    def timed(verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def again(first: Any, *others: Any, **named: Any) -> Any:
            began = time.process_time()
            result = call(first, *others, **named)
            held = len(others[0].distance) if verb == "recall" else 0
            seen[verb].append((len(first), held, time.process_time() - began))
            return result

        return again

    for backbone in backbones:
        for verb in VERBS:
            setattr(backbone, verb, timed(verb, getattr(backbone, verb)))
    yield seen
    for backbone in backbones:
        for verb in VERBS:
            delattr(backbone, verb)


def summed(task: Task, variants: dict[str, Variant], costs: dict[str, list[Cost]]) -> list[Line]:
    """A line a variant: medians over rounds, ratios round by round."""
    lines = []
    for name, rounds in costs.items():
        base = costs[REFERENCE]
        verbs = {verb: float(np.median([one.verbs[verb] for one in rounds])) for verb in VERBS}
        core = float(np.median([one.core for one in rounds]))
        line: Line = {
            "variant": name,
            "rounds": len(rounds),
            "core_s": core,
            "wall_s": float(np.median([one.wall for one in rounds])),
            "fit_core_s": rounds[0].fit,
            "times_faster": float(np.median([b.core / one.core for b, one in zip(base, rounds, strict=True)])),
            "encodes": rounds[0].encodes,
            "encodes_per_slice": rounds[0].encodes / task.cut[0],
            "objects_recalled": len(rounds[0].recalls),
            "memories_per_object": float(np.mean([held for held, _ in rounds[0].recalls])),
            "core_s_in": verbs | {"the rest": core - sum(verbs.values())},
            "calls": rounds[0].calls,
        }
        lines.append(line | compared(base[0].answer, rounds[0].answer))
    if task.whole != task.cut:
        whole = [projected(task, variants[name], rounds[0]) for name, rounds in costs.items()]
        for line, seconds in zip(lines, whole, strict=True):
            line |= {"whole_case_core_s": seconds, "whole_case_times_faster": whole[0] / seconds}
    return lines


def compared(a: Answer, b: Answer) -> Line:
    """How far an answer is from the reference's: supports, object scores where both asked, voxels."""
    both = ~(a.object_score.isnan() | b.object_score.isnan())
    apart = (a.object_score - b.object_score)[both].abs()
    return {
        "same_supports": float(np.mean([one == other for one, other in zip(a.retrieved, b.retrieved, strict=True)])),
        "not_asked": int(b.object_score.isnan().sum()),
        "object_score_apart": float(apart.max()) if len(apart) else float("nan"),
        "voxels_apart": float(np.mean(a.label_map.array != b.label_map.array)),
        "foreground_apart": float(np.mean((a.label_map.array > 0) != (b.label_map.array > 0))),
        "labelled_voxels": float(np.mean(b.label_map.array > 0)),
    }


def projected(task: Task, variant: Variant, cost: Cost) -> float:
    """Core-seconds of the uncut case: each verb at its measured price, recall as its price grows with the memories."""
    slices, supports = task.whole
    k, start = len(task.support.labels), slices // 2
    price = {verb: cost.verbs[verb] / max(1, cost.calls[verb]) for verb in VERBS}
    held, seconds = np.array(cost.recalls).T
    slope, base = np.polyfit(held, seconds, 1)
    near = [min(variant.window, start - i if i <= start else i) for i in range(slices)]
    total = k * sum(base + slope * (SUPPORTS + n) + price["decode_recalled"] + price["remember"] for n in near)
    if isinstance(variant, Reference):
        total += (supports + slices * (2 + 2 * SUPPORTS)) * price["encode"] + slices * SUPPORTS * k * price["memorize"]
    else:
        total += slices * price["encode"]
    return float(total + (cost.core - sum(cost.verbs.values())) * slices / task.cut[0])


def table(lines: list[Line]) -> str:
    """The run as Markdown: how fast each variant is and how near to the reference, then where its time goes."""
    first, verbs = lines[0], (*VERBS, "the rest")
    speed = ["variant", "core-s a volume", "wall s", "times faster", "encodes a slice", "memories an object"]
    speed += ["fit once, core-s", "whole case, core-s", "times faster"]
    near = ["same supports", "object score apart", "voxels apart", "of them foreground or not", "not asked"]
    fast = []
    for line in lines:
        row = [line["variant"], short(line["core_s"]), short(line["wall_s"]), f"{line['times_faster']:.1f}"]
        row += [f"{line['encodes_per_slice']:.1f}", f"{line['memories_per_object']:.1f}", short(line["fit_core_s"])]
        whole = "whole_case_core_s" in line
        row += [short(line["whole_case_core_s"]), f"{line['whole_case_times_faster']:.1f}"] if whole else ["", ""]
        row += [f"{100 * line['same_supports']:.0f} %", f"{line['object_score_apart']:.1e}"]
        row += [f"{100 * line[part]:.3f} %" for part in ("voxels_apart", "foreground_apart")]
        fast.append([*row, str(line["not_asked"])])
    spent = [[line["variant"], *(short(line["core_s_in"][verb]) for verb in verbs)] for line in lines]
    said = (
        f"{first['set']}, case {first['case']}: {first['slices']} of its {first['whole_slices']} slices, "
        f"{first['support_slices']} of {first['whole_support_slices']} slices of {len(first['support'])} supports, "
        f"{first['labels']} labels, {first['side']} px, threads: {first['threads']}, load {first['load']}"
    )
    return "\n\n".join((said, _markdown([*speed, *near], fast), _markdown(["core-s in", *verbs], spent)))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--set", default="acdc", help="data set")
    parser.add_argument("--case", help="the case to segment; without it the unseen one with the fewest slices")
    parser.add_argument("--slices", type=int, help="keep so many slices of each volume; without it all")
    parser.add_argument("--side", type=int, default=1024, help="of the model's square")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the split of the support")
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/fate_speed.jsonl"))
    arguments = parser.parse_args()
    if arguments.slices is not None and arguments.slices < 2:
        parser.error(f"--slices must be at least 2, got {arguments.slices}")
    return arguments


if __name__ == "__main__":
    main()
