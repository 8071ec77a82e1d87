"""Saving and loading of fitted segmenters, as folders with segmenter.json, weights.safetensors and a README.md.

Loading executes no code: nothing is unpickled. The backbone's weights are not copied. The folder has their name and
SHA-256, and can only be loaded with the same weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import BackboneName, load_backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import CheckpointError, SettingsError
from handful.jobs.atomic import replacing_folder
from handful.jobs.devices import choose_device
from handful.jobs.digests import digest_of
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import build_method, method_settings, settings_from_backbone
from handful.methods.settings import read_settings

FORMAT = 4
"""Version of the folder's layout and of the names of settings; other versions are refused."""
RECORD, WEIGHTS, CARD = "segmenter.json", "weights.safetensors", "README.md"
LIBRARIES = ("handful", "torch", "transformers", "monai", "numpy", "safetensors")


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
    provenance: dict[str, Any]


def save(
    segmenter: Segmenter, folder: Path, *, method_name: str, method: Method, provenance: Mapping[str, object]
) -> None:
    """Write a segmenter into a folder, completely or not at all; an earlier segmenter there is replaced.

    `provenance` describes the origin of the segmenter in JSON values (see `describe_support`); it should not contain
    paths. Raises CheckpointError if the folder contains anything else.
    """
    if folder.exists() and not (folder / RECORD).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not a segmenter; name another folder")
    learned = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.learned().items()}
    weights = safetensors.torch.save(learned)
    record = Record(
        format=FORMAT,
        method=method_name,
        settings=method_settings(method.resolved(segmenter.backbone)),
        labels=segmenter.labels.as_dict(),
        slicer=TypeAdapter(Slicer).dump_python(segmenter.slicer, mode="json"),
        backbone=segmenter.backbone.name,
        backbone_sha256=segmenter.backbone.digest(),
        backbone_input=segmenter.backbone.input_description(),
        settings_from_backbone=settings_from_backbone(method, segmenter.backbone),
        weights_sha256=digest_of(weights),
        versions=_versions(),
        provenance=dict(provenance),
    )
    card = _card(record, len(weights), segmenter.holds_pictures)
    files = {RECORD: _json(record).encode(), WEIGHTS: weights, CARD: card.encode()}
    with replacing_folder(folder) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)


@dataclass(frozen=True)
class SavedModel:
    """The folder of a saved segmenter and its record."""

    folder: Path
    record: Record
    sha256: str
    """SHA-256 of segmenter.json, which contains the digests of all weights."""

    @property
    def fitted_on(self) -> dict[str, str]:
        """{case: SHA-256 of its voxels} of the cases that it was fitted on; empty if they are not recorded."""
        return {case["case"]: case["image_sha256"] for case in self.record.provenance.get("support", [])}

    @property
    def agreement(self) -> dict[str, float]:
        """{SHA-256 of its voxels: agreement from 0 to 1} of the unlabelled scans that self-training learned from."""
        provenance = self.record.provenance
        scans = [*provenance.get("unlabelled", []), *provenance.get("support", [])]
        digests = {scan["case"]: scan["image_sha256"] for scan in scans}
        return {digests[case]: value for case, value in provenance.get("reliability", {}).items() if case in digests}

    def method(self) -> Method:
        """The method with its settings. Raises CheckpointError if this version of handful does not have them."""
        try:
            return build_method(self.record.method, self.record.settings)
        except SettingsError as error:
            raise CheckpointError(f"{self.folder / RECORD} cannot be used: {error}; fit again") from error

    def load(self, backbone: Backbone | None = None, cache: Path | None = None) -> Segmenter:
        """Load the segmenter, with embeddings stored in the folder `cache`, if given.

        `backbone` must be the one it was fitted on; by default, it is loaded, too. Raises CheckpointError if the
        weights are damaged or belong to another backbone.
        """
        record = self.record
        weights = _read_weights(self.folder, record)
        backbone = backbone or load_backbone(record.backbone)
        _require_same_input(self.folder, record, backbone)
        digest = backbone.digest()
        if digest != record.backbone_sha256:
            raise CheckpointError(
                f"{self.folder} was fitted on backbone {record.backbone!r} (weights {record.backbone_sha256[:12]}), "
                f"but this is {backbone.name!r} (weights {digest[:12]}); give the backbone it was fitted on"
            )
        try:
            slicer: Slicer = read_settings(Slicer, record.slicer, "slicer")
        except SettingsError as error:
            raise CheckpointError(f"{self.folder / RECORD} cannot be used: {error}; fit again") from error
        backbone = cached(backbone, cache) if cache is not None else backbone
        return self.method().restore(Labels.of(record.labels), slicer, backbone, weights)

    def open(self, device: str = "auto", cache: Path | None = None) -> Segmenter:
        """Load the segmenter onto a device (auto, cpu, cuda or mps)."""
        chosen = choose_device(device)
        return self.load(cache=cache).to(chosen)


def load(folder: Path, backbone: Backbone | None = None) -> Segmenter:
    """Load the segmenter in a folder.

    `backbone` must be the one it was fitted on; by default, it is loaded, too. Raises CheckpointError for a folder that
    is incomplete, damaged, of another format, or fitted on another backbone.
    """
    return open_model(folder).load(backbone)


def open_model(folder: Path) -> SavedModel:
    """Read the record of a segmenter in a folder, without its weights.

    Raises CheckpointError for a folder that is incomplete, or whose record is damaged or of another format.
    """
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}: not a fitted model, or incomplete; create one with handful fit"
            )
    content = (folder / RECORD).read_bytes()
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{folder / RECORD} is not JSON ({error}); fit again") from error
    return SavedModel(folder, _parsed(folder / RECORD, raw), digest_of(content))


def open_segmenter(folder: Path, device: str = "auto", cache: Path | None = None) -> Segmenter:
    """Load the segmenter in a folder onto a device, with embeddings stored in the folder `cache`, if given."""
    return open_model(folder).open(device, cache)


def describe_support(support: SupportSet) -> dict[str, object]:
    """The provenance of a support set: names of the cases, SHA-256 of voxels and labels; no paths and no patients.

    If there are unlabelled scans, their names and the SHA-256 of their voxels as well.
    """
    described: dict[str, object] = {}
    described["support"] = [
        {"case": facts.case.name, "image_sha256": facts.image_sha256, "labels_sha256": facts.labels_sha256}
        for facts in support.facts
    ]
    if support.unlabelled:
        pairs = zip(support.unlabelled.cases, support.unlabelled.digests, strict=True)
        described["unlabelled"] = [{"case": case.name, "image_sha256": digest} for case, digest in pairs]
    if support.unlabelled.labels:
        described["labels_from_boxes_sha256"] = support.unlabelled.labels_digest
    return described


def _parsed(path: Path, raw: Any) -> Record:
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
        return TypeAdapter(Record).validate_python(raw)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path} does not describe a segmenter ({wrong}); fit again") from error


def _read_weights(folder: Path, record: Record) -> dict[str, Any]:
    weights = (folder / WEIGHTS).read_bytes()
    digest = digest_of(weights)
    if digest != record.weights_sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged: its SHA-256 is {digest[:12]}, but {RECORD} has "
            f"{record.weights_sha256[:12]}; copy the folder again, or fit again"
        )
    try:
        return safetensors.torch.load(weights)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is not a safetensors file ({error}); fit again") from error


def _require_same_input(folder: Path, record: Record, backbone: Backbone) -> None:
    """CheckpointError for a backbone that makes other pixels of a slice than the one that was fitted on."""
    there, here = record.backbone_input, backbone.input_description()
    differences = [
        f"{key} {there.get(key)} there, {value} here" for key, value in here.items() if there.get(key) != value
    ]
    if differences:
        raise CheckpointError(
            f"{folder} was fitted on backbone {record.backbone!r} with other pixels than {backbone.name!r} takes "
            f"({'; '.join(differences)}); load the backbone by the name {record.backbone!r}"
        )


def _json(record: Record) -> str:
    try:
        return json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise CheckpointError(
            f"provenance must be plain JSON ({error}); give text, numbers, lists and dicts"
        ) from error


def _versions() -> dict[str, str]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def _card(record: Record, size: int, with_pictures: bool) -> str:
    labels = "\n".join(f"- {value}: {name}" for value, name in record.labels.items())
    support = "\n".join(f"- {_support_line(case)}" for case in record.provenance.get("support", ["not recorded"]))
    scores = record.provenance.get("dice_on_support") or {}
    lines = "\n".join(f"- {name}: {value:.2f}" for name, value in scores.items())
    dice = f"Dice on these cases (no estimate of the Dice on other cases):\n\n{lines}\n\n" if scores else ""
    chosen = ", ".join(f"{key} = {value}" for key, value in record.settings_from_backbone.items())
    from_backbone = f"\nSettings taken from the backbone's defaults: {chosen}.\n" if chosen else ""
    entry = BackboneName.of(record.backbone).entry
    licence = entry.licence if entry else f"see the source of the weights {record.backbone!r}"
    pictures = ",\nand small pictures of these slices with their labels" if with_pictures else ""
    return f"""# Segmenter: {", ".join(record.labels.values())}

Fitted by handful {record.versions["handful"]} with the method `{record.method}` on the backbone `{record.backbone}`
(weights SHA-256 `{record.backbone_sha256}`). This folder contains the learned weights ({size / 1e6:.1f} MB), but not
the weights of the backbone.

## Labels

{labels}

## Fitted on

{support}

{dice}Slices: {json.dumps(record.slicer)}.
{from_backbone}

## Licence and privacy

Licence of the base weights: {licence}.

`weights.safetensors` was learned from images of patients: it contains embeddings or labels of their slices{pictures}.
It is patient-derived data: treat it like the images, and share it only with people who may have these images.

Not a medical device. A qualified person must check every result before it is used.
"""


def _support_line(case: object) -> str:
    if not isinstance(case, Mapping):
        return str(case)
    hashes = [f"{key.removesuffix('_sha256')} `{str(value)[:12]}`" for key, value in case.items() if key != "case"]
    return f"{case.get('case', '?')} ({', '.join(hashes)})" if hashes else str(case.get("case", "?"))
