"""The record of a saved model, segmenter.json: its content, how it is read, and the model card made of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from handful.backbones.names import BackboneName
from handful.data.made_for import MadeFor
from handful.data.support import SupportSet
from handful.errors import CheckpointError, SettingsError
from handful.methods.base import SHOWING, Held

FORMAT = 5
"""Version of the folder's layout and of the names of settings; other versions are refused."""
RECORD, WEIGHTS, CARD = "segmenter.json", "weights.safetensors", "README.md"
EXPERTS = "experts"
"""Folder of the model folders of the experts."""
CONTINUAL = "continual"
"""In place of a method, for a model with experts."""
EXPERT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names of experts, which are names of folders."""
MOST_LABELS, HIGHEST_LABEL = 1000, 2**31 - 1
"""Limits on the number of labels of a model, and on their values."""
HELD_IN_WORDS: Mapping[Held, str] = {
    "pictures": "small pictures of the labelled slices",
    "masks": "masks of the labelled slices",
    "embeddings": "embeddings of the labelled slices or of the labels on them",
    "names": "names of the labelled cases, among the weights",
    "sums": "sums of embeddings over slices of all labelled cases (for the router, or to place crops); no single "
    "embedding, no picture",
}
LIBRARIES = ("handful", "torch", "transformers", "monai", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class ExpertEntry:
    """An expert, as the model that contains it records it."""

    sha256: str
    """SHA-256 of the expert's segmenter.json, which contains the digest of its weights."""
    values: dict[int, int]
    """{value of a label in the expert's own model: its value in the predictions of all experts}."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of segmenter.json."""

    format: int
    method: str
    settings: dict[str, Any]
    labels: dict[int, str]
    slicer: dict[str, Any]
    """Slice plane and intensity window, as chosen for the support set."""
    backbone: str
    backbone_sha256: str
    backbone_input: dict[str, Any]
    """Width of the backbone's input, and how slices are resized to it."""
    settings_from_backbone: dict[str, Any]
    """Settings that were not set and come from the defaults of the backbone."""
    weights_sha256: str
    versions: dict[str, str]
    made_for: MadeFor | None
    """The kind of scans that it was fitted on; None if it is not known."""
    holds: list[Held]
    """What the weights contain of the labelled cases."""
    anonymous: bool
    """Whether neither names of cases nor paths were recorded."""
    provenance: dict[str, Any]
    experts: dict[str, ExpertEntry] = field(default_factory=dict)
    """Experts by name; empty for a model of a single task. Their model folders lie in the folder `experts`."""


def describe_support(support: SupportSet) -> dict[str, object]:
    """The provenance of a support set: names of the cases, SHA-256 of voxels and labels; no paths and no patients.

    For scribbles the share of labelled voxels on the labelled slices, too.

    If there are unlabelled scans, their names and the SHA-256 of their voxels as well.
    """
    described: dict[str, object] = {}
    described["support"] = [
        {"case": facts.case.name, "image_sha256": facts.image_sha256, "labels_sha256": facts.labels_sha256}
        for facts in support.facts
    ]
    if support.scribbled:
        described["scribbles"] = {facts.case.name: round(facts.labelled_share, 6) for facts in support.scribbled}
    if support.unlabelled:
        pairs = zip(support.unlabelled.cases, support.unlabelled.digests, strict=True)
        described["unlabelled"] = [{"case": case.name, "image_sha256": digest} for case, digest in pairs]
    if support.unlabelled.labels:
        described["labels_from_boxes_sha256"] = support.unlabelled.labels_digest
    return described


def parsed_record(path: Path, raw: Any) -> Record:
    """The record in the JSON value `raw` of the file `path`.

    Raises CheckpointError if it is none that this version reads.
    """
    saved_format = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(saved_format, int) and saved_format > FORMAT:
        raise CheckpointError(
            f"{path.parent} has format {saved_format}, but this version of handful reads up to {FORMAT}; update handful"
        )
    if isinstance(saved_format, int) and saved_format < FORMAT:
        raise CheckpointError(
            f"{path.parent} was fitted by an earlier version of handful (format {saved_format}, this one reads "
            f"{FORMAT}), whose record has less content; fit again: "
            f"handful fit {raw.get('method')} -i COHORT -o {path.parent} --overwrite"
        )
    unknown = sorted(raw.keys() - {field.name for field in dataclasses.fields(Record)}) if isinstance(raw, dict) else []
    if unknown:
        raise CheckpointError(
            f"{path} has entries that this version of handful does not know: {', '.join(unknown)}; fit again"
        )
    try:
        record = TypeAdapter(Record).validate_python(raw)
        TypeAdapter(_Provenance).validate_python(record.provenance)
    except (ValidationError, SettingsError) as error:
        errors = error.errors()[:3] if isinstance(error, ValidationError) else []
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors) or str(error)
        raise CheckpointError(f"{path} does not describe a segmenter ({wrong}); fit again") from error
    if not 0 < len(record.labels) <= MOST_LABELS or not all(0 < value <= HIGHEST_LABEL for value in record.labels):
        raise CheckpointError(
            f"{path} has {len(record.labels)} labels with values up to {max(record.labels, default=0)}, but a model "
            f"has 1 to {MOST_LABELS} labels with values from 1 to {HIGHEST_LABEL}; fit again"
        )
    _require_sound_experts(path, record)
    return record


def _require_sound_experts(path: Path, record: Record) -> None:
    """CheckpointError for names that are no names of folders, and for values that are not those of the labels."""
    if wrong := [name for name in record.experts if not EXPERT_NAME.fullmatch(name)]:
        raise CheckpointError(f"{path} names an expert {wrong[0][:80]!r}, which no expert is called; fit again")
    for name, entry in record.experts.items():
        written = list(entry.values.values())
        if len(set(written)) < len(written) or not set(written) <= record.labels.keys():
            raise CheckpointError(f"{path}: the labels of the expert {name!r} are not those of the model; fit again")
    if bool(record.experts) != (record.method == CONTINUAL):
        raise CheckpointError(f"{path} has the method {record.method[:40]!r} and {len(record.experts)} experts")


class _Provenance(TypedDict, total=False):
    """The entries of a provenance that handful reads."""

    fingerprint: str
    support: list[dict[str, str]]
    scribbles: dict[str, float]
    unlabelled: list[dict[str, str]]
    decisions: list[str]
    reliability: dict[str, float]
    dice_on_support: dict[str, float]
    dice_left_out: dict[str, float]


def held_content(record: Record) -> Iterator[str]:
    """A phrase for each kind of content that comes from the labelled cases."""
    for key in ("support", "unlabelled"):
        scans = record.provenance.get(key, [])
        what = "digests" if record.anonymous else "names and digests"
        kind = "labelled cases" if key == "support" else "scans without labels"
        if scans:
            names = "" if record.anonymous else f": {', '.join(scan.get('case', '?') for scan in scans)}"
            yield f"{what} of {len(scans)} {kind}{names}"
    for thing in record.holds:
        if not (thing == "names" and record.anonymous):
            yield HELD_IN_WORDS[thing]


def kinds_in_words(things: Sequence[Held]) -> str:
    """Kinds of content, as part of a sentence."""
    return " and ".join({"pictures": "small pictures", "masks": "masks"}[thing] for thing in things)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in JSON values, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


def recorded_scans(provenance: Mapping[str, Any], key: str) -> list[dict[str, str]]:
    """The scans under this key whose name and voxels are recorded."""
    return [scan for scan in provenance.get(key, []) if {"case", "image_sha256"} <= scan.keys()]


def record_as_json(record: Record) -> str:
    """The text of segmenter.json. Raises CheckpointError if the provenance holds other than JSON values."""
    try:
        return json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise CheckpointError(
            f"provenance must be plain JSON ({error}); give text, numbers, lists and dicts"
        ) from error


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries on which results depend."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def model_card(record: Record, size: int) -> str:
    """The text of README.md; `size` is that of the weights in bytes."""
    labels = "\n".join(f"- {value}: {name}" for value, name in record.labels.items())
    support = "\n".join(f"- {_support_line(case)}" for case in record.provenance.get("support", ["not recorded"]))
    scores = record.provenance.get("dice_on_support") or {}
    lines = "\n".join(f"- {name}: {value:.2f}" for name, value in scores.items())
    dice = f"Dice on these cases (no estimate of the Dice on other cases):\n\n{lines}\n\n" if scores else ""
    chosen = ", ".join(f"{key} = {value}" for key, value in record.settings_from_backbone.items())
    from_backbone = f"\nSettings taken from the backbone's defaults: {chosen}.\n" if chosen else ""
    entry = BackboneName.of(record.backbone).entry
    backbone = BackboneName.of(record.backbone).without_folders
    licence = entry.licence if entry else f"see the source of the weights {backbone!r}"
    held = "\n".join(f"- {thing}" for thing in held_content(record)) or "- nothing but these weights"
    experts = "\n".join(f"- {name}: `{EXPERTS}/{name}`" for name in record.experts)
    tasks = f"## Experts\n\nEach of them is a model of its own, with a card.\n\n{experts}\n\n" if experts else ""
    shared = "these images" if set(record.holds) & SHOWING else "a model that was trained on these images"
    return f"""# Segmenter: {", ".join(record.labels.values())}

Fitted by handful {record.versions["handful"]} with the method `{record.method}` on the backbone `{backbone}`
(weights SHA-256 `{record.backbone_sha256}`). This folder contains the learned weights ({size / 1e6:.1f} MB), but not
the weights of the backbone.

## Labels

{labels}

{tasks}## Fitted on

{support}

{dice}Slices: {json.dumps(record.slicer)}.
{from_backbone}

## Licence and privacy

Licence of the base weights: {licence}.

`weights.safetensors` was learned from images of patients. Of these images, the folder holds:

{held}

It is patient-derived data: share it only with people who may have {shared}.

Not a medical device. A qualified person must check every result before it is used.
"""


def _support_line(case: object) -> str:
    if not isinstance(case, Mapping):
        return str(case)
    hashes = [f"{key.removesuffix('_sha256')} `{str(value)[:12]}`" for key, value in case.items() if key != "case"]
    return f"{case.get('case', '?')} ({', '.join(hashes)})" if hashes else str(case.get("case", "?"))
