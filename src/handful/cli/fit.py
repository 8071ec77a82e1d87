"""`handful fit`: a method learns from the labelled few."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from handful.cli import options
from handful.cli.terminal import counted, exit_on, print_failures, print_json, print_lines, print_note, progress

if TYPE_CHECKING:
    from handful.backbones.base import Backbone
    from handful.cohort.fit import FitConfig, FitResult
    from handful.data.cases import Cohort
    from handful.data.support import SupportSet
    from handful.evaluation.evaluate import Failure
    from handful.jobs.progress import Report
    from handful.methods.base import Method

MethodName = Annotated[str, typer.Argument(help="A method of 'handful list methods'; auto chooses one for your scans.")]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        help="Folder of scans whose images are used without labels, or none. Default: the scans of the cohort that "
        "have no labels. Only some methods use them.",
        show_default=False,
    ),
]
Boxes = Annotated[
    Path | None,
    typer.Option(
        help="CSV file of boxes round objects in unlabelled pictures: case, label, x_min, y_min, x_max, y_max. "
        "They become masks, from which self-training (or auto) learns.",
        show_default=False,
    ),
]
LeaveOut = Annotated[
    bool | None,
    typer.Option(
        "--leave-out/--no-leave-out",
        help="Estimate the Dice on unseen scans by fits without each labelled case, 8 at most. "
        "Default: for methods that train nothing, where it takes minutes at most.",
        show_default=False,
    ),
]
Anonymous = Annotated[
    bool,
    typer.Option(
        "--anonymous",
        help="Make a model without names, paths and pictures of its scans, for methods that keep none.",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Add what is learned to this model as an expert of its own. MODEL stays as it is.",
        show_default=False,
    ),
]
FromInput = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the scans that the model of --from was fitted on; needed if it has no experts yet.",
        show_default=False,
    ),
]
Expert = Annotated[
    str,
    typer.Option(
        help="Name of the expert. Default with --from: the name of the cohort's folder. Without --from: make a model "
        "with this one expert, to which --from adds others without the scans of this one.",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Time that the fit may take, roughly, if no method is named. Default: 30.", show_default=False),
]


def _named(folder: Path) -> Path:
    """A folder for a model. Raises InputError for one without a name, before anything is read."""
    from handful.checkpoint.folder import require_named

    return require_named(folder)


def fit(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the model to be made.", callback=_named)],
    method: MethodName = "auto",
    cases: options.Cases = "",
    shots: Annotated[int | None, typer.Option(help="Learn from this many cases, chosen at random.", min=1)] = None,
    split: Annotated[int, typer.Option(help="Which random split of the cases.")] = 0,
    labels: options.Labels = "",
    channels: options.Channels = "",
    unlabelled: Unlabelled = None,
    boxes: Boxes = None,
    backbone: options.Backbone = "handful-tiny",
    settings: options.Settings = [],  # noqa: B006
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; --set overrides it.")] = None,
    minutes: Minutes = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training.")] = None,
    device: options.Device = "auto",
    cache: options.CohortCache = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings.")] = False,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints of the training.", min=0)] = 30.0,
    leave_out: LeaveOut = None,
    anonymous: Anonymous = False,
    from_: From = None,
    from_input: FromInput = None,
    expert: Expert = "",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn from labelled cases: all of them, some by name, or a random few.

    Example: `handful fit -i my_cohort -o model`, which chooses the method and says why (`--minutes 60`: takes longer)

    Example: `handful fit fate -i my_cohort --cases anna,ben,carl -o model`

    Any method crops scans to the labelled region where that is safe (`--set roi_margin=none`: never), and keeps only
    the largest piece of labels that are one piece in all references (`--set largest_piece=none`: all); it says which.
    It takes `--set planes=axial,coronal,sagittal` (planes vote) and, if it trains, `--set seeds=3` (fits vote).
    Of several sequences, `--set slicer.sequences=T1,FLAIR` chooses; a U-Net learns from all, others from the first 3.
    `--from MODEL` adds a task to a model: each task has an expert of its own, and a router picks one for each scan.

    It prints the Dice to expect on unseen scans where that is quick (--leave-out: always), and the Dice of a trained
    method on the labelled cases: a label that fails even there was not learned. If stopped, repeat the command.
    """
    from handful.cohort.choice import named_backbone
    from handful.cohort.fit import FitConfig

    task = _task(expert, from_, from_input, input, anonymous)
    built = _build(method, settings, config, seed, minutes)
    cohort = options.cohort_in(input, channels=options.names_in(channels))
    labelled, failures = options.support_in(cohort, cases, shots, split, labels)
    support, unread = _with_unlabelled(labelled, cohort, built, unlabelled, boxes, quiet)
    model = named_backbone(backbone, device, None if no_cache else cache or options.embeddings_of(input))
    began = time.monotonic()
    with progress(f"fitting {method}", quiet) as report:
        limits = FitConfig(overwrite=overwrite, save_every_s=save_every, leave_out=leave_out, anonymous=anonymous)
        result = _fitted(task, method, built, support, model, out, limits, report, boxes)
    made = {"model": out, "method": method, "backbone": backbone, "cases": [case.name for case in support.cases]}
    _print_result(json, made, result, time.monotonic() - began, cohort, input)
    exit_on(cohort.left_out, failures, unread)


@dataclass(frozen=True)
class _Task:
    """What the user says of experts."""

    expert: str
    """Name of the expert; empty for a model without experts."""
    add_to: Path | None
    scans: Path | None
    """Folder of the scans of `add_to`."""


def _task(expert: str, add_to: Path | None, scans: Path | None, input: Path, anonymous: bool) -> _Task:
    """Expert and earlier model; the expert has the name of the cohort's folder, or a number, if the user gives none."""
    from handful.checkpoint.model import open_model
    from handful.cohort.experts import expert_name

    if add_to is None:
        if scans is not None:
            raise typer.BadParameter("--from-input is for --from; leave it out")
        return _Task(expert, None, None)
    number = 1 + max(1, len(open_model(add_to).experts))
    return _Task(expert or (f"expert-{number}" if anonymous else expert_name(input)), add_to, scans)


def _fitted(
    task: _Task,
    name: str,
    method: Method,
    support: SupportSet,
    backbone: Backbone,
    out: Path,
    config: FitConfig,
    report: Report,
    boxes: Path | None,
) -> FitResult:
    """The fit of a model, or of an expert, with masks made from the boxes in the file, if there is one."""
    from handful.cohort.experts import fit_expert
    from handful.cohort.fit import fit_to_folder

    support = _with_boxes(support, boxes, method, backbone, report)
    if not task.expert:
        return fit_to_folder(name, method, support, backbone, out, config, report)
    scans = options.cohort_in(task.scans).cases if task.scans else ()
    return fit_expert(
        name,
        method,
        support,
        backbone,
        out,
        expert=task.expert,
        add_to=task.add_to,
        scans=scans,
        config=config,
        report=report,
    )


def _print_result(
    json: bool, made: dict[str, object], result: FitResult, seconds: float, cohort: Cohort, folder: Path
) -> None:
    if json:
        print_json(made | _as_json(result, seconds, cohort))
        return
    took = f"fitted {made['method']} on {counted(len(cast('list[str]', made['cases'])))} in {seconds:.0f} s"
    model, cohort_folder = shlex.quote(str(made["model"])), shlex.quote(str(folder))
    next_step = f"next: handful predict {model} -i {cohort_folder} -o predictions"
    first = f"{took if result.anew else 'already fitted'}: {made['model']}"
    print_lines(first, *result.decisions, *_learned(result), next_step)


def _as_json(result: FitResult, seconds: float, cohort: Cohort) -> dict[str, object]:
    return {
        "left_out": cohort.left_out,
        "already_fitted": not result.anew,
        "decisions": result.decisions,
        "dice_left_out": dict(result.dice_left_out),
        "dice_on_support": result.dice_on_support,
        "seconds": round(seconds, 1),
    }


def _learned(result: FitResult) -> list[str]:
    """The Dice to expect, the Dice on the labelled cases themselves, and the labels that failed even there."""
    lines = []
    if result.dice_left_out:
        lines.append(f"Dice to expect on unseen scans (labelled cases left out in turn): {_dice(result.dice_left_out)}")
    if result.dice_on_support:
        lines.append(f"Dice on the labelled cases themselves: {_dice(result.dice_on_support)}")
    if result.not_learned:
        labels = ", ".join(result.not_learned)
        lines.append(f"not learned: {labels}; train longer (--set train.iterations=...)")
    return lines


def _dice(by_label: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {dice:.2f}" for name, dice in by_label.items())


def _with_unlabelled(
    support: SupportSet, cohort: Cohort, method: Method, folder: str | None, boxes: Path | None, quiet: bool
) -> tuple[SupportSet, list[Failure]]:
    """The support with the unlabelled scans that the method uses, and those that cannot be read, which are printed."""
    from handful.cohort.choice import choose_unlabelled
    from handful.errors import SettingsError

    if boxes is not None and not method.uses_uncertain_labels:
        raise SettingsError("only self-training and auto learn from boxes; fit one of them, or leave out --boxes")
    if method.uses_unlabelled:
        failures: list[Failure] = []
        with progress("reading unlabelled scans", quiet) as report:
            scans = choose_unlabelled(cohort, support, folder, failures, report)
        support = replace(support, unlabelled=scans)
        print_failures(failures)
        return support, failures
    if folder is not None:
        print_note("this method uses labelled scans only; --unlabelled changes nothing")
    return support, []


def _with_boxes(
    support: SupportSet, boxes: Path | None, method: Method, backbone: Backbone, report: Report
) -> SupportSet:
    """The support with masks made from the boxes in the file, if there is one."""
    from handful.cohort.boxes import with_boxes

    return with_boxes(support, boxes, method.slicer, backbone, report) if boxes else support


def _build(name: str, pairs: list[str], config: Path | None, seed: int | None, minutes: float | None) -> Method:
    """The method with the settings of file, --set, --seed and --minutes, later ones first."""
    from handful.methods.catalog import build_method, seed_setting

    settings = options.settings_from(config) | options.settings_in(pairs)
    if minutes is not None and name == "auto":
        settings["budget_minutes"] = minutes
    elif minutes is not None:
        print_note(f"--minutes is for fits without a named method; {name} takes as long as its settings say")
    if seed is not None:
        if key := seed_setting(name):
            settings[key] = seed
        else:
            print_note(f"{name} draws nothing at random; --seed changes nothing")
    return build_method(name, settings)
