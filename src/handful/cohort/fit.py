"""A method fitted on a support set into a folder; a killed fit goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.names import BackboneName
from handful.checkpoint.folder import require_named, require_replaceable
from handful.checkpoint.model import SavedModel, open_model, save
from handful.checkpoint.record import RECORD, describe_support
from handful.data.intensities import intensity_notes, sequence_note
from handful.data.made_for import MadeFor
from handful.data.support import SupportFacts, SupportSet, require_reference
from handful.errors import CheckpointError, SettingsError
from handful.evaluation.metrics import overlap
from handful.jobs.atomic import remove_leftovers, remove_leftovers_of, write_atomically
from handful.jobs.digests import digest_of_json
from handful.jobs.files import checked_path
from handful.jobs.lock import LOCK, locked
from handful.jobs.plain_text import counted
from handful.jobs.progress import Report, Run, silent
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import method_settings, settings_from_backbone
from handful.methods.cost import FitCost, estimate_fit
from handful.methods.left_out import FOLDS, mean_of_labels, score_left_out

FINGERPRINT, TRAINING = "fingerprint.txt", "training"
AFFORDABLE_S = 300
"""Estimated seconds of all fits and predictions, up to which cases are left out by default."""
UNLEARNED = 0.1
"""Dice on the very case it was learned from, below which a label was not learned."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Circumstances of a fit, never part of its result."""

    overwrite: bool = False
    """Replace another model that lies in the folder."""
    save_every_s: float = 30.0
    """Seconds between two checkpoints of the training."""
    anonymous: bool = False
    """Make a model that holds no picture, path or name of its scans, which may be shared more widely."""
    leave_out: bool | None = None
    """Estimate the Dice on unseen scans by fits without each labelled case; None: where that takes minutes at most."""


@dataclass(frozen=True)
class FitResult:
    """What a fit came to."""

    anew: bool
    """False where this very segmenter lay there already."""
    dice_on_support: dict[str, float]
    """Of each label, by name; see `dice_on_support`. Empty for methods that train nothing."""
    decisions: tuple[str, ...] = ()
    """What the fit decided by itself, one sentence each."""
    dice_left_out: Mapping[str, float] = field(default_factory=dict)
    """Mean Dice of each label, by name, on cases that were left out of the fit; empty where it was not estimated."""

    @property
    def not_learned(self) -> list[str]:
        """Names of the labels that fail even on the case they were learned from."""
        return [name for name, dice in self.dice_on_support.items() if dice < UNLEARNED]


def fit_to_folder(
    name: str,
    method: Method,
    support: SupportSet,
    backbone: Backbone,
    out: str | Path,
    config: FitConfig | None = None,
    report: Report = silent,
) -> FitResult:
    """Fits `method`, called `name` in METHODS, and saves the segmenter into `out`, unless that was done before.

    Half-done work lies in `<out>.partial` until the segmenter is saved. The same fit, begun again after a kill, goes on
    from there and ends with the very bytes of an undisturbed one; another fit starts from the beginning. What makes two
    fits the same is written into the segmenter's provenance. Raises CheckpointError where another model or a foreign
    folder lies in the way, or foreign files in the folder of a model to be replaced, InputError if `out` has no name,
    BusyError while another process fits into `out`.
    """
    config, out = config or FitConfig(), require_named(out)
    if config.anonymous:
        support = _anonymous(name, method, support)
    scratch = out.with_name(f"{out.name}.partial")
    require_ours(scratch, FINGERPRINT, LOCK)
    require_ours(out, RECORD)
    with locked(scratch, remove_empty=True):
        try:
            provenance = _provenance(name, method, support, backbone)
            remove_leftovers(out.parent, lambda name: name == out.name)
            remove_leftovers_of(out / RECORD)
            saved = _fitted_before(out, str(provenance["fingerprint"]), backbone, config)
            if saved is not None:
                if _noted(scratch) == provenance["fingerprint"]:  # left by a kill just after the model was saved
                    shutil.rmtree(scratch / TRAINING, ignore_errors=True)
                return _with_estimate(saved, method, support, backbone, config, report)
            require_replaceable(out)
            training = _begin(scratch, str(provenance["fingerprint"]))
            segmenter, left_out = _fit(method, support, backbone, Run(training, report, config.save_every_s), config)
            provenance["dice_left_out"] = left_out
            decisions = _decisions(segmenter, method, support, backbone)
            provenance["decisions"] = list(decisions)
            if segmenter.reliability:
                provenance["reliability"] = segmenter.reliability
            dice: dict[str, float] = {}
            if method.trains:
                provenance["dice_on_support"] = dice = dice_on_support(segmenter, support)
            kind = MadeFor.of(support, segmenter.slicer)
            save(
                segmenter,
                out,
                method_name=name,
                method=method,
                provenance=provenance,
                made_for=kind,
                anonymous=config.anonymous,
            )
            shutil.rmtree(training)
            return FitResult(True, dice, decisions, left_out)
        finally:
            if not any((scratch / TRAINING).glob("**/*.*")):  # nothing that a later run could go on from
                shutil.rmtree(scratch / TRAINING, ignore_errors=True)
                (scratch / FINGERPRINT).unlink(missing_ok=True)


def fingerprint_of(name: str, method: Method, support: SupportSet, backbone: Backbone, config: FitConfig) -> str:
    """Identifies the fit by all that its result depends on; it is part of the provenance of the model."""
    if config.anonymous:
        support = _anonymous(name, method, support)
    return str(_provenance(name, method, support, backbone)["fingerprint"])


def past_result(model: SavedModel) -> FitResult:
    """The result of the fit that made a model, from its record."""
    past = model.record.provenance
    kept = tuple(past.get("decisions", ())), past.get("dice_left_out", {})
    return FitResult(False, past.get("dice_on_support", {}), *kept)


def lacks_estimate(result: FitResult, config: FitConfig) -> bool:
    """Whether the Dice on cases that were left out is requested, but no part of the result."""
    return config.leave_out is True and not result.dice_left_out


def _with_estimate(
    saved: SavedModel, method: Method, support: SupportSet, backbone: Backbone, config: FitConfig, report: Report
) -> FitResult:
    """The result of an earlier fit; the Dice on cases that were left out is added if it is requested and missing."""
    past = past_result(saved)
    if not lacks_estimate(past, config):
        return past
    with support.held() as held:
        dice = mean_of_labels(score_left_out(method, held, backbone, report))
    if dice:
        saved.add_dice_left_out(dice)
    return replace(past, dice_left_out=dice)


def _anonymous(name: str, method: Method, support: SupportSet) -> SupportSet:
    """The support set with numbers in place of names. Raises SettingsError if the method holds pictures."""
    if method.keeps_pictures:
        raise SettingsError(
            f"{name} keeps pictures or masks of the labelled slices, and --anonymous allows none; fit unet, lora or "
            "auto-sam"
        )
    return support.without_names()


def _leaves_out(config: FitConfig, method: Method, support: SupportSet, cost: FitCost | None) -> bool:
    if config.leave_out is not None:
        return config.leave_out
    if method.trains or cost is None or cost.predict_s is None:
        return False
    cases = len(support.cases)
    return min(FOLDS, cases) * cost.fit_s + cases * cost.predict_s <= AFFORDABLE_S


def _fit(
    method: Method, support: SupportSet, backbone: Backbone, run: Run, config: FitConfig
) -> tuple[Segmenter, dict[str, float]]:
    """The segmenter, and the mean Dice of each label on cases that were left out, if that is affordable.

    Reports the estimated time first. Each file is read once for all of this.
    """
    with support.held() as held:
        cost = estimate_fit(method, held, backbone)
        run.report(0, 1, str(cost or ""))
        segmenter = method.fit(held, backbone, run)
        if not _leaves_out(config, method, support, cost):
            return segmenter, {}
        return segmenter, mean_of_labels(score_left_out(method, held, backbone, run.report))


def _decisions(segmenter: Segmenter, method: Method, support: SupportSet, backbone: Backbone) -> tuple[str, ...]:
    """What the fit decided by itself, one sentence each."""
    notes = (*sequence_note(support, segmenter.slicer), *intensity_notes(support, method.slicer))
    return (*notes, *_scribble_note(support), *_taken_from(backbone, method), *segmenter.decisions)


def _scribble_note(support: SupportSet) -> tuple[str, ...]:
    """A sentence on labels that are scribbles, if there are any."""
    if not support.scribbled:
        return ()
    shares = [facts.labelled_share for facts in support.scribbled]
    return (
        f"the labels of {len(shares)} of {counted(len(support.facts))} are scribbles: {sum(shares) / len(shares):.1%} "
        "of the pixels of their labelled slices. Their Dice is not estimated, since strokes do not show the edges",
    )


def _taken_from(backbone: Backbone, method: Method) -> list[str]:
    """A sentence on the settings that nobody set and that the backbone's defaults gave."""
    chosen = ", ".join(f"{key}={value}" for key, value in settings_from_backbone(method, backbone).items())
    return [f"settings that suit {BackboneName.of(backbone.name).without_folders}: {chosen}"] if chosen else []


def dice_on_support(segmenter: Segmenter, support: SupportSet) -> dict[str, float]:
    """Dice of each label, by name, on the very case it was learned from: that which shows most of it.

    No measure of what is to be expected of other cases, but a label that fails here was not learned. Cases of which
    only some slices are labelled are passed by, so it may be of fewer labels, or of none.
    """
    richest: dict[int, SupportFacts] = {}
    for facts in support.facts:
        for value in support.labels.values:
            best = richest[value].voxels[value] if value in richest else 0
            if facts.complete and facts.voxels.get(value, 0) > best:
                richest[value] = facts
    found: dict[str, float] = {}
    for facts in {facts.case.name: facts for facts in richest.values()}.values():
        volume = facts.case.read_image()
        prediction, reference = segmenter.predict(volume), require_reference(facts.case, volume.geometry)
        for value, own in richest.items():
            if own is facts:
                dice = overlap(prediction.array == value, reference.array == value).dice
                found[support.labels.as_dict()[value]] = round(dice, 4)
    return found


def require_ours(folder: Path, *marks: str) -> None:
    """Refuses a folder of other things before anything is computed."""
    holds_something = checked_path(folder).exists() and (not folder.is_dir() or any(folder.iterdir()))
    if holds_something and not any((folder / mark).exists() for mark in marks):
        raise CheckpointError(f"{folder} exists and handful did not make it; name another folder")


def _provenance(name: str, method: Method, support: SupportSet, backbone: Backbone) -> dict[str, object]:
    """Where the segmenter comes from; the fingerprint is of all that its weights depend on."""
    described = describe_support(support)
    grids = [
        [facts.geometry.affine.tolist(), facts.geometry.shape, facts.modality, facts.case.patient, *facts.sequences]
        for facts in support.facts
    ]
    decides = [
        version("handful"),
        name,
        method_settings(method.resolved(backbone)),
        support.labels.as_dict(),
        described,
        grids,
        backbone.digest(),
    ]
    fingerprint = digest_of_json(decides)
    entry = BackboneName.of(backbone.name).entry
    licence = {"backbone_licence": entry.licence} if entry else {}
    return {"fingerprint": fingerprint, **described, **licence}


def _fitted_before(out: Path, fingerprint: str, backbone: Backbone, config: FitConfig) -> SavedModel | None:
    """This very segmenter, where it lies there whole; raises where another one does that may not be replaced."""
    if not (out / RECORD).exists():
        return None
    try:
        saved = open_model(out)
        same = saved.record.provenance.get("fingerprint") == fingerprint
        if same and saved.record.anonymous == config.anonymous:
            saved.load(backbone)
            return saved
    except CheckpointError:
        if not config.overwrite:
            raise
        return None
    if not config.overwrite:
        how = "fitted with other settings or on other cases"
        if same:
            how = f"fitted {'with' if saved.record.anonymous else 'without'} --anonymous"
        raise CheckpointError(f"{out} holds another segmenter ({how}); name another folder, or add --overwrite")
    return None


def _begin(scratch: Path, fingerprint: str) -> Path:
    """The folder of half-done work, emptied where that was another fit's."""
    training = scratch / TRAINING
    if _noted(scratch) != fingerprint:
        if training.exists():
            shutil.rmtree(training)
        write_atomically(scratch / FINGERPRINT, fingerprint.encode())
    training.mkdir(exist_ok=True)
    return training


def _noted(scratch: Path) -> str | None:
    """The fingerprint of the fit whose half-done work is there; None without any."""
    note = scratch / FINGERPRINT
    return note.read_text("utf-8") if note.exists() else None
