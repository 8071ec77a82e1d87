"""Models with experts: the folders of several models, the router, and the labels of all of them.

The folder of each expert is a copy of its own model's, byte by byte, and can be used as that model.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from handful.checkpoint.folder import require_replaceable
from handful.checkpoint.model import SavedModel
from handful.checkpoint.record import (
    CARD,
    CONTINUAL,
    EXPERT_NAME,
    EXPERTS,
    FORMAT,
    RECORD,
    WEIGHTS,
    ExpertEntry,
    Record,
    library_versions,
    model_card,
    record_as_json,
)
from handful.errors import CheckpointError, SettingsError
from handful.jobs.atomic import replacing_folder
from handful.jobs.digests import digest_of, digest_of_file
from handful.methods.base import Held
from handful.methods.router import Router


@dataclass(frozen=True)
class MergedLabels:
    """The labels of several experts together: a name has the same value everywhere, and a value the same name."""

    names: dict[int, str]
    """{value: name} of all labels."""
    values: dict[str, dict[int, int]]
    """For each expert, {value in its own model: value in `names`}."""
    changes: dict[str, tuple[str, ...]]
    """For each expert, a sentence for each label that has another value than in its own model."""

    @classmethod
    def of(cls, labels: Mapping[str, Mapping[int, str]]) -> MergedLabels:
        """From {expert: {value: name}}, in the order in which the experts were added.

        The values of earlier experts stay. A new label with a name that is known (in upper or lower case) gets the
        value of that name. A new name gets its own value, or the lowest free one if another label has it.
        """
        names: dict[int, str] = {}
        values: dict[str, dict[int, int]] = {}
        changes: dict[str, tuple[str, ...]] = {}
        for expert, own in labels.items():
            values[expert] = _placed(own, names)
            changes[expert] = tuple(_changes(expert, own, values[expert], names))
            names |= {new: names.get(new, own[old]) for old, new in values[expert].items()}
        return cls(dict(sorted(names.items())), values, changes)


def save_experts(out: Path, models: Mapping[str, SavedModel], router: Router, provenance: Mapping[str, Any]) -> None:
    """Write a model of these experts into a folder, completely or not at all; an earlier model there is replaced.

    `models` are models of a single task, in the order of the router. `provenance` is added to that of the experts.
    Raises SettingsError for a name that cannot be one of a folder, CheckpointError for different backbones, for a model
    that was changed after it was opened, and if the folder contains anything else than a model.
    """
    out = require_replaceable(out)
    for name in models:
        require_name(name)
    _require_one_backbone(models)
    merged = MergedLabels.of({name: model.record.labels for name, model in models.items()})
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in router.pack().items()})
    first = next(iter(models.values())).record
    held: set[Held] = {"sums"}
    record = Record(
        format=FORMAT,
        method=CONTINUAL,
        settings={},
        labels=merged.names,
        slicer=first.slicer,
        backbone=first.backbone,
        backbone_sha256=first.backbone_sha256,
        backbone_input=first.backbone_input,
        settings_from_backbone={},
        weights_sha256=digest_of(weights),
        versions=library_versions(),
        made_for=None,
        holds=sorted(held.union(*(model.record.holds for model in models.values()))),
        anonymous=all(model.record.anonymous for model in models.values()),
        provenance=_joined_provenance(models) | dict(provenance),
        experts={name: ExpertEntry(sha256=one.sha256, values=merged.values[name]) for name, one in models.items()},
    )
    with replacing_folder(out) as fresh:
        size = len(weights) + sum(_copied(model, fresh / EXPERTS / name) for name, model in models.items())
        files = {RECORD: record_as_json(record).encode(), WEIGHTS: weights, CARD: model_card(record, size).encode()}
        for name, content in files.items():
            (fresh / name).write_bytes(content)


def _copied(model: SavedModel, folder: Path) -> int:
    """Copy the files of a model into a new folder; the size of its weights.

    Raises CheckpointError unless they are those of the model that was opened.
    """
    folder.mkdir(parents=True)
    for name in (RECORD, WEIGHTS, CARD):
        with suppress(FileNotFoundError):
            shutil.copyfile(model.folder / name, folder / name)
    model.require_unchanged(copy=folder)
    weights = folder / WEIGHTS
    if not weights.is_file() or digest_of_file(weights) != model.record.weights_sha256:
        raise CheckpointError(
            f"{model.folder / WEIGHTS} is not the file that its {RECORD} describes: it is damaged, or was changed "
            "during the fit; copy the folder again, or fit it again"
        )
    return weights.stat().st_size


def require_name(name: str) -> None:
    """Raise SettingsError for a name that no expert can have."""
    if not EXPERT_NAME.fullmatch(name):
        raise SettingsError(
            f"{name[:80]!r} cannot be the name of an expert; use up to 64 letters, digits, - and _, such as heart-mr"
        )


def _placed(own: Mapping[int, str], names: Mapping[int, str]) -> dict[int, int]:
    """{own value: value among all labels} of the labels of a new expert; `names` are the labels so far."""
    known = {name.casefold(): value for value, name in names.items()}
    placed: dict[int, int] = {}
    for value, name in own.items():
        if known.get(name.casefold(), 0) not in (0, *placed.values()):
            placed[value] = known[name.casefold()]
    for value in own:
        if value not in placed:
            taken = {*names, *placed.values()}
            free = (number for number in itertools.count(1) if number not in taken and number not in own)
            placed[value] = next(free) if value in taken else value
    return dict(sorted(placed.items()))


def _changes(expert: str, own: Mapping[int, str], placed: Mapping[int, int], names: Mapping[int, str]) -> Iterator[str]:
    for old, new in placed.items():
        if old == new:
            continue
        why = "the value that this name has already" if new in names else f"because {old} is {names.get(old)!r} already"
        yield f"label {old} {own[old]!r} of {expert} becomes {new}, {why}"


def _require_one_backbone(models: Mapping[str, SavedModel]) -> None:
    first_name, first = next(iter(models.items()))
    for name, model in models.items():
        there, here = first.record, model.record
        if (here.backbone_sha256, here.backbone_input) != (there.backbone_sha256, there.backbone_input):
            raise CheckpointError(
                f"{name} was fitted on backbone {here.backbone!r}, and {first_name} on {there.backbone!r}, but the "
                f"router compares embeddings of one backbone; fit {name} with --backbone {there.backbone}"
            )


def _joined_provenance(models: Mapping[str, SavedModel]) -> dict[str, Any]:
    """Cases of all experts, each named EXPERT/CASE, and their decisions."""
    joined: dict[str, Any] = {"support": [], "unlabelled": [], "decisions": [], "reliability": {}, "scribbles": {}}
    for name, model in models.items():
        past = model.record.provenance
        for key in ("support", "unlabelled"):
            joined[key] += [scan | {"case": f"{name}/{scan.get('case', '?')}"} for scan in past.get(key, [])]
        joined["decisions"] += [f"{name}: {line}" for line in past.get("decisions", [])]
        for key in ("reliability", "scribbles"):
            joined[key] |= {f"{name}/{case}": value for case, value in past.get(key, {}).items()}
    return {key: value for key, value in joined.items() if value}


def with_experts(model: SavedModel, name: str) -> dict[str, SavedModel]:
    """The experts of a model; a model of a single task is one expert, called `name`."""
    if not model.record.experts:
        return {name: model}
    return {expert: dataclasses.replace(part, written_as={}) for expert, part in model.experts.items()}
