"""A fitted segmenter as a folder: segmenter.json (what it is), weights.safetensors (what it learned), its card.

Nothing is ever unpickled. The backbone's weights are not copied: the folder names them and their SHA-256, and loads
with no others.
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
from handful.methods.catalog import build_method, method_settings, read_settings, settings_from_backbone

FORMAT = 3
"""Version of the folder's layout and of the names of settings; other versions are refused."""
RECORD, WEIGHTS, CARD = "segmenter.json", "weights.safetensors", "README.md"
LIBRARIES = ("handful", "torch", "transformers", "monai", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What segmenter.json says."""

    format: int
    method: str
    settings: dict[str, Any]
    labels: dict[int, str]
    slicer: dict[str, Any]
    """Plane and window as the support resolved them."""
    backbone: str
    backbone_sha256: str
    backbone_input: dict[str, Any]
    """Side of the backbone's square input, and how slices become it."""
    settings_from_backbone: dict[str, Any]
    """Those of the settings that nobody set, and that the backbone's defaults gave."""
    weights_sha256: str
    versions: dict[str, str]
    provenance: dict[str, Any]


def save(
    segmenter: Segmenter, folder: Path, *, method_name: str, method: Method, provenance: Mapping[str, object]
) -> None:
    """Writes the folder whole or not at all; an earlier segmenter there is replaced, anything else refused.

    `provenance` is JSON-able: where the segmenter comes from (see `describe_support`). Give no paths in it.
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
    """A segmenter's folder and its record, which was read once."""

    folder: Path
    record: Record
    sha256: str
    """Of the record's file; the record names the digests of all weights."""

    @property
    def fitted_on(self) -> dict[str, str]:
        """SHA-256 of the voxels of each image that it was fitted on, by case; empty where none were recorded."""
        return {case["case"]: case["image_sha256"] for case in self.record.provenance.get("support", [])}

    def method(self) -> Method:
        """The method with its settings; CheckpointError where this handful does not know them."""
        try:
            return build_method(self.record.method, self.record.settings)
        except SettingsError as error:
            raise CheckpointError(f"{self.folder / RECORD} cannot be used: {error}; fit again") from error

    def load(self, backbone: Backbone | None = None, cache: Path | None = None) -> Segmenter:
        """The segmenter, on its own backbone or on the same one given, which keeps its embeddings in `cache`.

        Raises CheckpointError for weights that are damaged or made for another backbone.
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
        """The segmenter on a device of that name, with the embeddings kept in `cache`."""
        found = choose_device(device)
        return self.load(cache=cache).to(found)


def load(folder: Path, backbone: Backbone | None = None) -> Segmenter:
    """The segmenter that was saved there, on its own backbone or on the same one given.

    Raises CheckpointError for a folder that is incomplete, damaged, of a newer format, or made for another backbone.
    """
    return open_model(folder).load(backbone)


def open_model(folder: Path) -> SavedModel:
    """Reads the record in a folder, and no weights yet.

    Raises CheckpointError for a folder that is incomplete, or whose record is damaged or of a newer format.
    """
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} holds no {name}: not a fitted model, or half written; make one with handful fit"
            )
    content = (folder / RECORD).read_bytes()
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{folder / RECORD} is not JSON ({error}); fit again") from error
    return SavedModel(folder, _parsed(folder / RECORD, raw), digest_of(content))


def open_segmenter(folder: Path, device: str = "auto", cache: Path | None = None) -> Segmenter:
    """The segmenter that was saved in `folder`, on a device and with the embeddings kept in `cache`."""
    return open_model(folder).open(device, cache)


def describe_support(support: SupportSet) -> dict[str, object]:
    """Provenance of a support set: each case's name, SHA-256 of its voxels and labels; no paths, no patients."""
    return {
        "support": [
            {"case": facts.case.name, "image_sha256": facts.image_sha256, "labels_sha256": facts.labels_sha256}
            for facts in support.facts
        ]
    }


def _parsed(path: Path, raw: Any) -> Record:
    found = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(f"{path.parent} has format {found}, this handful reads up to {FORMAT}; update handful")
    if isinstance(found, int) and found < FORMAT:
        raise CheckpointError(
            f"{path.parent} was fitted by an earlier handful (format {found}, this one reads {FORMAT}), whose record "
            f"says less; fit again: handful fit {raw.get('method')} -i COHORT -o {path.parent} --overwrite"
        )
    unknown = sorted(raw.keys() - {field.name for field in dataclasses.fields(Record)}) if isinstance(raw, dict) else []
    if unknown:
        raise CheckpointError(f"{path} says more than this handful knows: {', '.join(unknown)}; fit again")
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
            f"{folder / WEIGHTS} is damaged: its SHA-256 is {digest[:12]}, {RECORD} says {record.weights_sha256[:12]}; "
            "copy the folder again or fit again"
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
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def _card(record: Record, size: int, with_pictures: bool) -> str:
    labels = "\n".join(f"- {value}: {name}" for value, name in record.labels.items())
    support = "\n".join(f"- {_support_line(case)}" for case in record.provenance.get("support", ["not recorded"]))
    own = record.provenance.get("dice_on_support") or {}
    dice = "\n".join(f"- {name}: {value:.2f}" for name, value in own.items())
    learned = f"Dice on these very cases, no measure of what is to be expected of others:\n\n{dice}\n\n" if own else ""
    chosen = ", ".join(f"{key} = {value}" for key, value in record.settings_from_backbone.items())
    taken = f"\nSettings taken from the backbone's defaults: {chosen}.\n" if chosen else ""
    known = BackboneName.of(record.backbone).entry
    licence = known.licence if known else f"as where the weights {record.backbone!r} come from says"
    pictures = ",\nand small pictures of these slices with their labels" if with_pictures else ""
    return f"""# Segmenter: {", ".join(record.labels.values())}

Fitted by handful {record.versions["handful"]} with the method `{record.method}` on the backbone `{record.backbone}`
(weights SHA-256 `{record.backbone_sha256}`). The backbone's weights are not in this folder; what was learned is
({size / 1e6:.1f} MB).

## Labels

{labels}

## Fitted on

{support}

{learned}Slices: {json.dumps(record.slicer)}.
{taken}

## Licence and privacy

Licence of the base weights: {licence}.

`weights.safetensors` was learned from patients' images: it holds embeddings or labels of their slices{pictures}.
Treat it as patient-derived data, and share it only where you might share the images themselves.

Not a medical device. A person must look at every result before anyone acts on it.
"""


def _support_line(case: object) -> str:
    if not isinstance(case, Mapping):
        return str(case)
    hashes = [f"{key.removesuffix('_sha256')} `{str(value)[:12]}`" for key, value in case.items() if key != "case"]
    return f"{case.get('case', '?')} ({', '.join(hashes)})" if hashes else str(case.get("case", "?"))
