"""Continual learning: a method is fitted on a new task and becomes one more expert of a model."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from handful.backbones.base import Backbone
from handful.checkpoint.experts import MergedLabels, require_name, save_experts, with_experts
from handful.checkpoint.folder import require_named, require_replaceable
from handful.checkpoint.model import SavedModel, open_model
from handful.checkpoint.record import EXPERTS, RECORD
from handful.cohort.fit import (
    FINGERPRINT,
    FitConfig,
    FitResult,
    fingerprint_of,
    fit_to_folder,
    lacks_estimate,
    past_result,
    require_ours,
)
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.errors import CheckpointError, InputError, SettingsError
from handful.jobs.atomic import remove_leftovers, remove_leftovers_of
from handful.jobs.digests import digest_of, digest_of_json
from handful.jobs.lock import LOCK, locked
from handful.jobs.plain_text import counted
from handful.jobs.progress import Report, silent
from handful.methods.base import Method
from handful.methods.router import Router, features_of_volume


def fit_expert(
    name: str,
    method: Method,
    support: SupportSet,
    backbone: Backbone,
    out: str | Path,
    *,
    expert: str,
    add_to: str | Path | None = None,
    scans: Sequence[Case] = (),
    config: FitConfig | None = None,
    report: Report = silent,
) -> FitResult:
    """Fit `method`, called `name` in METHODS, and save it into `out` as an expert, added to those of `add_to`.

    `expert` is its name. The model `add_to` stays as it is: its files are copied. A router picks the expert of each
    scan at prediction, by ridge regression on pooled embeddings (after EvoSAM, arXiv 2503.06236). It keeps sums over
    the scans of each task, so that earlier scans are not needed again. A model without experts has no such sums: then
    `scans` must contain the cases that it was fitted on, and it becomes an expert with the name of its folder.

    Labels with the same name have the same value in the predictions, that of the earlier model; a new label whose value
    another label has gets the lowest free one. `FitResult.decisions` says which.

    Raises SettingsError for a name that is taken or impossible, CheckpointError if `add_to` has another backbone or is
    changed during the fit, or if `out` contains something else, InputError if scans of `add_to` are missing or `out`
    has no name.
    """
    config, out = config or FitConfig(), require_named(out)
    require_name(expert)
    base = None if add_to is None else _base(Path(add_to), out, backbone, config)
    earlier = {} if base is None else _earlier(base, expert)
    parts = [*([one, model.sha256] for one, model in earlier.items()), [expert]]
    fingerprint = digest_of_json([parts, fingerprint_of(name, method, support, backbone, config)])
    scratch = out.with_name(f"{out.name}.partial")
    require_ours(scratch, FINGERPRINT, LOCK)
    own = scratch / "expert"
    with locked(scratch, remove_empty=True):
        remove_leftovers(out.parent, lambda found: found == out.name)
        remove_leftovers_of(out / RECORD)
        of_own = dataclasses.replace(config, overwrite=True)  # a model that a stopped fit left

        def fit() -> FitResult:
            return fit_to_folder(name, method, support, backbone, own, of_own, report)

        if _is_there(out, fingerprint, config):
            result = _past(open_model(out), expert, own, config, fit)
        else:
            require_replaceable(out)
            result = dataclasses.replace(fit(), anew=True)
            report(0, 1, "adding the scans to the sums of the router")
            router = Router.of(expert, _features((facts.case for facts in support.facts), backbone))
            if base is not None:
                base.require_unchanged()
                router = _router_of(base, next(iter(earlier)), scans, backbone).joined(router)
            save_experts(out, {**earlier, expert: open_model(own)}, router, {"fingerprint": fingerprint})
        model = open_model(out)
        shutil.rmtree(own, ignore_errors=True)
    return _with_changes(result, model, expert)


def expert_name(folder: Path) -> str:
    """A name for an expert, made from the name of a folder."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.absolute().name).strip("-_")[:64]
    return name or "expert"


def _base(add_to: Path, out: Path, backbone: Backbone, config: FitConfig) -> SavedModel:
    """The earlier model, after all checks that need no scan."""
    if out.resolve() == add_to.resolve():
        raise SettingsError(f"{out} is the model to which the expert is added, and stays as it is; name another folder")
    model = open_model(add_to)
    record = model.record
    if (record.backbone_sha256, record.backbone_input) != (backbone.digest(), backbone.input_description()):
        raise CheckpointError(
            f"{add_to} was fitted on backbone {record.backbone!r}, and this is {backbone.name!r}, but the router "
            f"compares embeddings of one backbone; add --backbone {record.backbone}"
        )
    if config.anonymous and not record.anonymous:
        raise SettingsError(f"{add_to} has the names of its cases; leave out --anonymous, or fit it again with it")
    return model


def _earlier(base: SavedModel, expert: str) -> dict[str, SavedModel]:
    """The experts of the earlier model. Raises SettingsError if one of them has the name of the new one."""
    earlier = with_experts(base, expert_name(base.folder))
    if expert in earlier:
        raise SettingsError(
            f"{base.folder} has an expert {expert!r} already (experts: {', '.join(earlier)}); name the new one with "
            "--expert"
        )
    return earlier


def _is_there(out: Path, fingerprint: str, config: FitConfig) -> bool:
    """Whether this very model lies in `out`. Raises CheckpointError for another one that may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).exists():
        raise CheckpointError(f"{out} exists and is no model; name another folder")
    if config.overwrite:
        return False
    record = open_model(out).record
    if (record.provenance.get("fingerprint"), record.anonymous) != (fingerprint, config.anonymous):
        raise CheckpointError(f"{out} contains another model; name another folder, or add --overwrite")
    return True


def _past(model: SavedModel, expert: str, own: Path, config: FitConfig, fit: Callable[[], FitResult]) -> FitResult:
    """The result of the fit that made the expert of a model, with the Dice on left-out cases if that is wanted.

    `fit` adds that Dice to a copy of the expert in the folder `own`, and the copy replaces the expert.
    """
    past = past_result(model.expert(expert))
    if not lacks_estimate(past, config):
        return past
    require_replaceable(model.folder)
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(model.folder / EXPERTS / expert, own)
    result = fit()
    if result.dice_left_out:
        experts = {**with_experts(model, expert), expert: open_model(own)}
        save_experts(model.folder, experts, model.router(), {"fingerprint": model.record.provenance["fingerprint"]})
    return result


def _router_of(model: SavedModel, name: str, scans: Sequence[Case], backbone: Backbone) -> Router:
    """The router of the earlier model; that of a model without experts from the scans that it was fitted on."""
    if model.record.experts:
        return model.router()
    wanted = set(model.fitted_on.values())
    found: dict[str, Case] = {}
    unreadable: list[str] = []
    for case in scans:
        try:
            digest = digest_of(case.read_image().array)
        except Exception as error:  # a broken scan that the model did not learn from is in nobody's way
            unreadable.append(f"{case.name} cannot be read: {error}")
        else:
            if digest in wanted:
                found[digest] = case
    if missing := sorted(case for case, digest in model.fitted_on.items() if digest not in found) or not wanted:
        names = ", ".join(missing[:5]) if isinstance(missing, list) else "its cases are not recorded"
        raise InputError(
            f"{model.folder} has no sums for a router, which are made once from the scans that it was fitted on, but "
            f"these are missing ({names}); name their folder with --from-input, or fit it again with --expert NAME"
            + "".join(f"; {one}" for one in unreadable[:5])
        )
    return Router.of(name, _features((found[digest] for digest in sorted(found)), backbone))


def _features(cases: Iterable[Case], backbone: Backbone) -> torch.Tensor:
    return torch.cat([features_of_volume(case.read_image(), backbone) for case in cases])


def _with_changes(result: FitResult, model: SavedModel, expert: str) -> FitResult:
    """The result with a sentence on each label and all scans that the new expert shares with earlier ones."""
    merged = MergedLabels.of({name: one.record.labels for name, one in model.experts.items()})
    own = set(model.experts[expert].fitted_on.values())
    shared = [
        f"{counted(count, 'scan')} in common with the expert {name}: the router cannot tell the two tasks apart by "
        "that, so name the expert with --expert at prediction"
        for name, one in model.experts.items()
        if name != expert and (count := len(own & set(one.fitted_on.values())))
    ]
    return dataclasses.replace(result, decisions=(*result.decisions, *merged.changes[expert], *shared))
