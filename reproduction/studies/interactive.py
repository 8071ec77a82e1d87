"""Interactive tuning on real scans: clicks to a Dice, sensitivity to how people ask, other organs, and pruning.

    python -m reproduction.studies.interactive clicks --data FOLDER --sets chaos_mr_t2 acdc --shots 4 --out FILE
    python -m reproduction.studies.interactive generalise --fitted-on acdc --data FOLDER --sets chaos_mr_t2 --out FILE
    python -m reproduction.studies.interactive pruning --data FOLDER --sets chaos_mr_t2 acdc --seeds 0 1 2 --out FILE

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). Every cell is one line in the file, written when
it is known; one that is there already is not computed again, so a stopped run goes on where it was. Cells are spread
over processes of one thread each. With --table nothing is computed, and what is there is printed as Markdown.

An arm is "backbone", which is asked without training and without slots of padding, or the method with settings, such as
"interactive:prompts=centre". All arms answer for the same regions: each label of each unseen case on at most --slices
slices, evenly spaced among those that hold it. Each region is asked for in ten ways: the nine behaviours of training
(one at a time), and a click in the middle with a negative one on the neighbour; each by --people people. First prompts
are the same for all arms. A correction is clicked in the largest error, in the way of --reader, by the same person with
the same random numbers, and goes in with the answer before as mask prompt; where it falls depends on that answer.

Dice after n counts the first prompt (a box and a scribble are one, too); NoC is the number of prompts until a Dice is
reached, --most where it never is. Sensitivity is the standard deviation of the Dice of one region over all ways and
people, its mean over a case's regions. All figures are means over regions, then over cases; tests are paired by case.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.cached import encoded
from handful.backbones.catalog import load_backbone
from handful.data.cases import Case, SupportSet
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.evaluation.statistics import Comparison, compare_pairs
from handful.jobs.progress import Run
from handful.methods.base import CHUNK
from handful.methods.catalog import build_method
from handful.methods.interactive.method import InteractiveSegmenter
from handful.prompts.behaviours import BEHAVIOURS, SLOTS, Behaviours, behave, packed
from handful.prompts.heuristics import append_points
from handful.prompts.prompts import PADDING, Prompts
from handful.prompts.simulation import Reader, clicks_to_reach, correct, hard_dice
from reproduction.study import Line, my_backbone, read_lines, spread

ARMS = ("backbone", "interactive:prompts=centre", "interactive")
RULES = ("none", "random", "infobatch", "cbdp")
WAYS = {name: Behaviours.only(name) for name in BEHAVIOURS} | {
    "confusion": dataclasses.replace(Behaviours.only("centre"), confusion=1.0)
}
"""How regions are asked for; 'confusion' is a click in the middle and a negative one on the neighbour, if any."""
READERS = {
    "mixed": Reader(),
    "careful": Reader(careful=1.0, quick=0.0, sloppy=0.0),
}
AFTER = (1, 3, 5)
"""Prompts after which the Dice is recorded."""
LEVELS = (0.85, 0.90)
SMALLEST = 4
"""Pixels that a region must have to be asked for."""
ROWS = 32
"""Regions that go through the decoder at once."""

Ask = Callable[[ImageEmbeddings, Prompts, tuple[int, int]], Float[Tensor, "n k h w"]]


def main() -> None:
    arguments = _arguments()
    if not arguments.table:
        done = read_lines(arguments.out)
        todo = [cell for cell in cells(arguments) if not any(cell.key().items() <= line.items() for line in done)]
        spread(todo, measure, told, out=arguments.out, processes=arguments.processes, backbone=arguments.backbone)
    wanted = [line for line in read_lines(arguments.out) if not arguments.sets or line["set"] in arguments.sets]
    lines = [line for line in wanted if (line["part"] == "pruning") == (arguments.part == "pruning")]
    print(pruning_tables(lines) if arguments.part == "pruning" else click_tables(lines))


@dataclass(frozen=True)
class Cell:
    """One fit and its evaluation."""

    part: str
    data: Path
    set: str
    fitted_on: str
    arm: str
    shots: int
    draw: int
    cases_most: int
    slices: int
    seeds: int
    most: int
    reader: str
    iterations: int
    digest: str

    def key(self) -> Line:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """All cells asked for; where nothing is fitted, the set is its own."""
    digest = load_backbone(arguments.backbone).digest()[:12]
    for draw in arguments.draws:
        for name in arguments.sets:
            for arm in arguments.arms:
                own = arm == "backbone" or arguments.part != "generalise"
                yield Cell(
                    part="pruning" if arguments.part == "pruning" else "clicks",
                    data=arguments.data,
                    set=name,
                    fitted_on=name if own else arguments.fitted_on,
                    arm=arm,
                    shots=arguments.shots,
                    draw=draw,
                    cases_most=arguments.cases,
                    slices=arguments.slices,
                    seeds=arguments.people,
                    most=arguments.most,
                    reader=arguments.reader,
                    iterations=0 if arm == "backbone" else arguments.iterations,
                    digest=digest,
                )


def told(line: Line) -> str:
    what = f"{line['set']} {line['arm']} (fitted on {line['fitted_on']}), draw {line['draw']}"
    found = ", ".join(f"{name} {np.mean(line[name]):.3f}" for name in line if name.startswith("dice_"))
    costs = [f"{name} {line[f'{name}_s']:.0f} s ({line[f'{name}_cpu_s']:.0f} s CPU)" for name in ("fit", "ask")]
    return f"{what}: {found}; {', '.join(costs)}"


def measure(cell: Cell) -> Line:
    """Fits and asks in this process."""
    result, backbone = cell.key(), my_backbone()
    support = _support(cell, cell.fitted_on)
    watch, began, began_cpu = Stopwatch(), time.monotonic(), time.process_time()
    ask: Ask = functools.partial(ask_plainly, backbone)
    if cell.arm != "backbone":
        segmenter = _fitted(cell, support, watch)
        backbone, ask = segmenter.encoder, functools.partial(_asked, segmenter)
        if segmenter.pruning_report is not None:
            result |= {"fraction": segmenter.pruning_report.fraction, "steps": segmenter.pruning_report.steps}
    result |= {
        "fit_s": round(time.monotonic() - began, 1),
        "fit_cpu_s": round(time.process_time() - began_cpu, 1),
        "train_cpu_s": round(watch.cpu_s(), 1),
        "support": [case.name for case in support.cases],
        "held": _held(support) if cell.part == "pruning" else {},
    }
    began = time.monotonic()
    scenes = _scenes_of(cell, backbone)
    looked, looked_cpu = time.monotonic(), time.process_time()
    result |= _summary(cell, scenes, [converse(cell, scene, ask) for scene in scenes])
    return result | {
        "encode_s": round(looked - began, 1),
        "ask_s": round(time.monotonic() - looked, 1),
        "ask_cpu_s": round(time.process_time() - looked_cpu, 1),
    }


class Stopwatch:
    """CPU seconds of all steps of a training, without what came before the first."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def __call__(self, step: int, total: int, note: str) -> None:
        self.steps = [*self.steps[:1], (step, time.process_time())]

    def cpu_s(self) -> float:
        """The first step is taken for as long as the others."""
        if len(self.steps) < 2:
            return 0.0
        (first, began), (last, ended) = self.steps
        return (ended - began) / (last - first) * last


def _support(cell: Cell, name: str) -> SupportSet:
    cohort = read_cohort(cell.data / name)
    assert cohort.labels is not None
    return SupportSet(tuple(cohort.draw(cell.shots, cell.draw)[0]), cohort.labels)


def _held(support: SupportSet) -> dict[str, int]:
    """Labelled slices that hold each label."""
    there = torch.cat([one.masks.flatten(2).any(dim=2) for one in support.slices(Slicer())])
    return dict(zip(support.labels.names, there.sum(dim=0).tolist(), strict=True))


def _unseen(cell: Cell) -> list[Case]:
    """Cases of the set asked about that are in no fit of this draw, whatever set was fitted on."""
    rest = read_cohort(cell.data / cell.set).draw(cell.shots, cell.draw)[1]
    return [case for case in rest if case.reference is not None][: cell.cases_most]


def _fitted(cell: Cell, support: SupportSet, watch: Stopwatch) -> InteractiveSegmenter:
    name, _, text = cell.arm.partition(":")
    settings: dict[str, object] = {"train.seed": cell.draw, "train.iterations": cell.iterations}
    settings |= dict(pair.split("=", 1) for pair in text.split(",") if pair)
    segmenter = build_method(name, settings).fit(support, my_backbone(), Run(report=watch))
    assert isinstance(segmenter, InteractiveSegmenter), "other methods cannot be asked and corrected"
    return segmenter.eval()


def _asked(
    segmenter: InteractiveSegmenter, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]
) -> Float[Tensor, "n k h w"]:
    return segmenter.ask(image, prompts, size).logits


@torch.no_grad()
def ask_plainly(
    backbone: Backbone, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]
) -> Float[Tensor, "n 1 h w"]:
    """The backbone's answer as it wants to be asked: prompts of one kind together, no slots of padding."""
    full = packed(prompts)
    assert full.points is not None
    assert full.point_labels is not None
    assert full.boxes is not None
    counts, boxed = (full.point_labels[:, 0] != PADDING).sum(dim=1), full.boxes[:, 0].any(dim=1)
    logits = torch.zeros(len(counts), 1, *size)
    for count, box in sorted(set(zip(counts.tolist(), boxed.tolist(), strict=True))):
        rows = torch.nonzero((counts == count) & (boxed == box))[:, 0]
        some = Prompts(
            full.points[rows, :, :count] if count else None,
            full.point_labels[rows, :, :count] if count else None,
            full.boxes[rows] if box else None,
            None if full.masks is None else full.masks[rows],
        )
        answer = backbone.decode_square(image[rows], backbone.embed(some, size))
        logits[rows] = backbone.to_slice(answer.logits, size)
    return logits


@dataclass(frozen=True, eq=False)
class Scene:
    """What is asked about one case: some of its slices, encoded, and the regions on them."""

    case: str
    image: ImageEmbeddings
    masks: Bool[Tensor, "n k h w"]
    numbers: tuple[int, ...]
    """Of the slices in their case."""
    regions: tuple[tuple[int, int], ...]
    """Slice (a row of `masks`) and label (a column) of each region."""


@dataclass(frozen=True, eq=False)
class Seat:
    """One person with one region to ask for, in one way."""

    region: int
    way: str
    person: int


_scenes: dict[tuple[str, int, nn.Module], list[Scene]] = {}


def _scenes_of(cell: Cell, backbone: Backbone) -> list[Scene]:
    """The regions of a cell; those of the last cell are kept, for most arms share the set and the encoder."""
    key = (cell.set, cell.draw, backbone.image_encoder)
    if key not in _scenes:
        _scenes.clear()
        slicer = Slicer().resolve(_support(cell, cell.set).images())
        labels = _support(cell, cell.set).labels.values
        _scenes[key] = [_scene(cell, case, labels, slicer, backbone) for case in _unseen(cell)]
    return _scenes[key]


def _scene(cell: Cell, case: Case, labels: Sequence[int], slicer: Slicer, backbone: Backbone) -> Scene:
    reference = case.read_reference()
    assert reference is not None
    view = slicer.view(case.read_image())
    classes = view.of(reference.array)
    regions: list[tuple[int, int]] = []
    for column, value in enumerate(labels):
        holding = np.flatnonzero((classes == value).sum(axis=(1, 2)) >= SMALLEST)
        count = min(cell.slices, len(holding))
        chosen = ((np.arange(count) + 0.5) * len(holding) / max(1, count)).astype(int)
        regions += [(int(number), column) for number in holding[chosen]]
    numbers = sorted({number for number, _ in regions})
    masks = np.stack([classes[numbers] == value for value in labels], axis=1)
    images = [encoded(backbone, view.take(numbers[start : start + CHUNK])) for start in range(0, len(numbers), CHUNK)]
    places = tuple((numbers.index(number), column) for number, column in regions)
    return Scene(case.name, ImageEmbeddings.cat(images), torch.from_numpy(masks), tuple(numbers), places)


def converse(cell: Cell, scene: Scene, ask: Ask) -> NDArray[np.float64]:
    """Dice (region, way, person, prompts given) of one case.

    Whoever has the highest of LEVELS, and has given as many prompts as Dice is recorded after, stops there, and the
    last Dice stands for the rest.
    """
    seats = [Seat(r, way, p) for r in range(len(scene.regions)) for way in WAYS for p in range(cell.seeds)]
    dice = np.full((len(seats), cell.most), np.nan)
    live = list(range(len(seats)))
    prompts = _joined([_first(scene, seat) for seat in seats])
    for number in range(cell.most):
        logits = _answers(scene, [seats[row] for row in live], prompts, ask)
        truth = _truth(scene, [seats[row] for row in live])
        dice[live, number:] = hard_dice(logits > 0, truth)[:, :1].numpy()
        if number + 1 == cell.most:
            break
        reached = number + 1 >= min(max(AFTER), cell.most)
        on = [i for i, row in enumerate(live) if not (reached and dice[row].max() >= max(LEVELS))]
        if not on:
            break
        live, logits, truth = [live[i] for i in on], logits[on], truth[on]
        clicks = [
            correct(one[None] > 0, true[None], READERS[cell.reader], _generator(scene, seats[row], number + 1))
            for row, one, true in zip(live, logits, truth, strict=True)
        ]
        said = append_points(_some(prompts, torch.tensor(on)), _joined(clicks))
        prompts = dataclasses.replace(packed(said), masks=logits)
    return dice.reshape(len(scene.regions), len(WAYS), cell.seeds, cell.most)


def _first(scene: Scene, seat: Seat) -> Prompts:
    """What a person says first; the neighbours matter only for a negative click on one of them."""
    row, column = scene.regions[seat.region]
    behaviours, generator = WAYS[seat.way], _generator(scene, seat, 0)
    if not behaviours.confusion:
        return behave(scene.masks[row : row + 1, column : column + 1], behaviours, generator)
    return _column(behave(scene.masks[row : row + 1], behaviours, generator), column)


def _generator(scene: Scene, seat: Seat, number: int) -> Generator:
    """The random numbers of one click of one person: the same whatever the arm."""
    row, column = scene.regions[seat.region]
    text = f"{scene.case}/{scene.numbers[row]}/{column}/{seat.way}/{seat.person}/{number}"
    return Generator().manual_seed(zlib.crc32(text.encode()))


def _answers(scene: Scene, seats: Sequence[Seat], prompts: Prompts, ask: Ask) -> Float[Tensor, "m 1 h w"]:
    """Those with as many slots of points go together, so that nobody's padding depends on the others."""
    assert prompts.point_labels is not None
    h, w = scene.masks.shape[-2:]
    slots = torch.div((prompts.point_labels[:, 0] != PADDING).sum(dim=1) + SLOTS - 1, SLOTS, rounding_mode="floor")
    logits = torch.zeros(len(seats), 1, h, w)
    for count in sorted(set(slots.tolist())):
        for rows in torch.split(torch.nonzero(slots == count)[:, 0], ROWS):
            slices = [scene.regions[seats[row].region][0] for row in rows.tolist()]
            logits[rows] = ask(scene.image[slices], packed(_some(prompts, rows)), (h, w))
    return logits


def _truth(scene: Scene, seats: Sequence[Seat]) -> Bool[Tensor, "m 1 h w"]:
    row, column = torch.tensor([scene.regions[seat.region] for seat in seats]).unbind(1)
    return scene.masks[row, column][:, None]


def _parts(prompts: Prompts) -> tuple[Tensor | None, ...]:
    return (prompts.points, prompts.point_labels, prompts.boxes, prompts.masks)


def _some(prompts: Prompts, rows: Tensor) -> Prompts:
    return Prompts(*[None if part is None else part[rows] for part in _parts(prompts)])


def _column(prompts: Prompts, column: int) -> Prompts:
    return Prompts(*[None if part is None else part[:, column : column + 1] for part in _parts(prompts)])


def _joined(prompts: Sequence[Prompts]) -> Prompts:
    """One after the other; each with as many points as any, unused slots last."""
    most = max(one.points.shape[2] for one in prompts if one.points is not None)
    full = [packed(one, most) for one in prompts]
    return Prompts(
        *[torch.cat(parts) if parts[0] is not None else None for parts in zip(*map(_parts, full), strict=True)]
    )


def _summary(cell: Cell, scenes: Sequence[Scene], found: Sequence[NDArray[np.float64]]) -> Line:
    """Means over the regions of each case, in the order of the cases."""
    kept = [(scene, dice) for scene, dice in zip(scenes, found, strict=True) if len(dice)]
    line: Line = {"cases": [scene.case for scene, _ in kept], "regions": sum(len(dice) for _, dice in kept)}
    after = [n for n in AFTER if n <= cell.most]
    for n in after:
        line[f"dice_{n}"] = _rounded(dice[..., n - 1].mean() for _, dice in kept)
    for n in after:
        spread = [dice[..., n - 1].reshape(len(dice), -1).std(axis=1, ddof=1).mean() for _, dice in kept]
        line[f"sensitivity_{n}"] = _rounded(spread)
    for level in LEVELS:
        name = round(100 * level)
        clicks = [clicks_to_reach(torch.from_numpy(dice), level).double() for _, dice in kept]
        line[f"noc_{name}"] = _rounded(one.mean().item() for one in clicks)
        line[f"never_{name}"] = _rounded((dice.max(axis=-1) < level).mean() for _, dice in kept)
    line["ways"] = {
        way: {f"dice_{n}": _rounded(dice[:, i, :, n - 1].mean() for _, dice in kept) for n in after}
        for i, way in enumerate(WAYS)
    }
    names = _support(cell, cell.set).labels.names
    line["labels"] = {
        name: {f"dice_{n}": [_of_label(scene, dice[..., n - 1], k) for scene, dice in kept] for n in after}
        for k, name in enumerate(names)
    }
    return line


def _of_label(scene: Scene, dice: NDArray[np.float64], column: int) -> float | None:
    rows = [r for r, (_, own) in enumerate(scene.regions) if own == column]
    return round(float(dice[rows].mean()), 5) if rows else None


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 5) for value in values]


def click_tables(lines: list[Line]) -> str:
    """A set, and a set that was fitted on: what each arm came to, in which ways, and how arms differ."""
    parts = []
    for name, on in dict.fromkeys((line["set"], line["fitted_on"]) for line in lines):
        own = [line for line in lines if line["set"] == name and line["fitted_on"] in (on, name)]
        if on != name:  # of what was fitted on the set itself, only that nothing was fitted belongs here
            own = [line for line in own if line["fitted_on"] == on or line["arm"] == "backbone"]
        for settings in dict.fromkeys(_settings(line) for line in own if line["fitted_on"] == on):
            same = [line for line in own if _settings(line) == settings]
            if any(line["arm"] != "backbone" for line in same):
                parts.append(_click_table(name, on, same))
    return "\n\n".join(parts)


def _settings(line: Line) -> tuple[object, ...]:
    return tuple(line[name] for name in ("shots", "cases_most", "slices", "seeds", "most", "reader", "digest"))


def _click_table(name: str, on: str, lines: list[Line]) -> str:
    arms = list(dict.fromkeys((line["arm"], line["iterations"]) for line in lines))
    titles = {arm: arm[0] + (f" ({arm[1]} iterations)" if arm[1] else "") for arm in arms}
    by_arm = {titles[arm]: [line for line in lines if (line["arm"], line["iterations"]) == arm] for arm in arms}
    some = lines[0]
    measures = [key for key in some if key.startswith(("dice_", "noc_", "never_", "sensitivity_"))]
    title = f"**{name}**" + (f", fitted on **{on}**" if on != name else "")
    draws, cases = len({line["draw"] for line in lines}), max(len(line["cases"]) for line in lines)
    title += (
        f" ({some['shots']} labelled cases, {draws} draws, up to {cases} unseen cases and {some['regions']} regions "
        f"each, asked for in {len(some['ways'])} ways by {some['seeds']} people; {some['reader']} reader; "
        f"at most {some['most']} prompts)"
    )
    rows = [[arm, *[_mean(_all(own, key)) for key in measures], *_took(own)] for arm, own in by_arm.items()]
    tables = [title, _markdown(["arm", *[_heading(key) for key in measures], "fit s", "asking s"], rows)]
    ways = list(some["ways"])
    rows = [
        [arm, *[_mean([d for x in own for d in x["ways"][way]["dice_1"]]) for way in ways]]
        for arm, own in by_arm.items()
    ]
    tables.append(_markdown(["Dice after 1", *ways], rows))
    rows = [
        [_heading(key), f"{one.first} − {one.second}", *_difference(one)]
        for key in measures
        for one in compare_pairs({arm: _by_case(own, key) for arm, own in reversed(by_arm.items())})
    ]
    if rows:
        tables.append(_markdown(["measure", "difference", "mean [95 %]", "p", "p (Holm)", "cases"], rows))
    return "\n\n".join(tables)


def pruning_tables(lines: list[Line]) -> str:
    """A set: what each rule came to, and what it cost."""
    parts = []
    for name, *settings in dict.fromkeys((line["set"], line["iterations"], *_settings(line)) for line in lines):
        own = [x for x in lines if [x["set"], x["iterations"], *_settings(x)] == [name, *settings]]
        by_arm = {arm: [x for x in own if x["arm"] == arm] for arm in dict.fromkeys(x["arm"] for x in own)}
        measures = [key for key in own[0] if key.startswith("dice_")]
        last = measures[-1]
        organs = list(own[0]["labels"])
        heads = ["rule", *map(_heading, measures), *[f"{o} {_heading(last)}" for o in organs]]
        heads += ["rarest of a fit", "share of steps", "measured fraction", "training, CPU s", "fit, wall s"]
        heads += ["Δ to none [95 %]", "p"]
        rows = [_pruned(arm, some, by_arm, measures, organs) for arm, some in by_arm.items()]
        draws = len({x["draw"] for x in own})
        title = f"**{name}** ({own[0]['shots']} labelled cases, {draws} draws, {settings[0]} iterations before pruning)"
        parts.append(f"{title}\n\n{_markdown(heads, rows)}")
    return "\n\n".join(parts)


def _pruned(
    arm: str, own: list[Line], by_arm: dict[str, list[Line]], measures: list[str], organs: list[str]
) -> list[str]:
    last = measures[-1]
    row = [arm.partition("pruning.rule=")[2] or arm, *[_mean(_all(own, key)) for key in measures]]
    row += [_mean([d for x in own for d in x["labels"][o][last] if d is not None]) for o in organs]
    rarest = [x["labels"][_rarest(x["held"])][last] for x in own]
    row.append(_mean([d for one in rarest for d in one if d is not None]))
    row.append(f"{np.mean([x['steps'] / x['iterations'] for x in own]):.3f}")
    row.append(f"{np.mean([x['fraction'] for x in own]):.3f}")
    row += [f"{np.mean([x[key] for x in own]):.0f}" for key in ("train_cpu_s", "fit_s")]
    plain = "interactive:pruning.rule=none"
    if arm == plain or plain not in by_arm:
        return [*row, "–", "–"]
    found = compare_pairs({arm: _by_case(own, last), plain: _by_case(by_arm[plain], last)})[0]
    return [*row, *_difference(found)[:2]]


def _rarest(held: dict[str, int]) -> str:
    return min(held, key=held.__getitem__)


def _difference(found: Comparison) -> list[str]:
    one = found.difference
    return [
        f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]",
        _chance(found.p),
        _chance(found.p_holm),
        str(found.n),
    ]


def _chance(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _took(lines: list[Line]) -> list[str]:
    return [f"{np.mean([line[key] for line in lines]):.0f}" for key in ("fit_s", "ask_s")]


def _all(lines: list[Line], key: str) -> list[float]:
    return [value for line in lines for value in line[key]]


def _by_case(lines: list[Line], key: str) -> dict[str, float]:
    """One value a draw and case."""
    return {f"{x['draw']}/{case}": v for x in lines for case, v in zip(x["cases"], x[key], strict=True)}


def _heading(key: str) -> str:
    name, _, number = key.partition("_")
    words = {"dice": "Dice after", "sensitivity": "sensitivity after", "noc": "NoC", "never": "never"}
    return f"{words[name]} {number}" + (" %" if name in ("noc", "never") else "")


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("clicks", "generalise", "pruning"))
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/interactive_study.jsonl"))
    parser.add_argument("--sets", nargs="+", default=[], help="sets that are asked about")
    parser.add_argument("--fitted-on", help="with generalise: the set that arms are fitted on")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM[:KEY=VALUE,…]")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES, help="with pruning")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--draws", "--seeds", dest="draws", nargs="+", type=int, default=[0])
    parser.add_argument("--cases", type=int, default=6, help="unseen cases a draw, at most")
    parser.add_argument("--slices", type=int, default=6, help="slices of each label of a case, at most")
    parser.add_argument("--people", type=int, help="who ask for a region in each way (2; with pruning 1)")
    parser.add_argument("--most", type=int, help="prompts a region, at most (10; with pruning 3)")
    parser.add_argument("--reader", choices=tuple(READERS), default="mixed", help="where corrections are clicked")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, compute nothing")
    found = parser.parse_args()
    if not found.table and not (found.data and found.sets):
        parser.error("give --data and --sets, or --table")
    if found.part == "generalise" and not found.fitted_on and not found.table:
        parser.error("generalise needs --fitted-on")
    pruning = found.part == "pruning"
    found.people = found.people or (1 if pruning else 2)
    found.most = found.most or (3 if pruning else 10)
    if pruning:
        found.arms = [f"interactive:pruning.rule={rule}" for rule in found.rules]
    return found


if __name__ == "__main__":
    main()
