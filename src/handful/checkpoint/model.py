"""Saving and loading of fitted segmenters, as folders with segmenter.json, weights.safetensors and a README.md.

Loading executes no code: nothing is unpickled. The backbone's weights are not copied. The folder has their name and
SHA-256, and can only be loaded with the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from handful.backbones.absent import AbsentBackbone
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.names import BackboneName
from handful.checkpoint.folder import require_replaceable
from handful.checkpoint.record import (
    CARD,
    EXPERTS,
    FORMAT,
    RECORD,
    WEIGHTS,
    Record,
    held_content,
    kinds_in_words,
    library_versions,
    model_card,
    parsed_record,
    record_as_json,
    recorded_scans,
    texts_in,
)
from handful.data.made_for import MadeFor
from handful.data.modality import ModalityEvidence
from handful.data.slicing import Slicer
from handful.data.volume import Labels, Volume
from handful.errors import CheckpointError, HandfulError, SettingsError, did_you_mean, first_line
from handful.jobs.atomic import replacing_folder, write_atomically
from handful.jobs.devices import choose_device
from handful.jobs.digests import digest_of, digest_of_file
from handful.jobs.files import checked_path
from handful.jobs.json_file import read_json
from handful.jobs.memory import AllocationLimit, is_lack_of_memory
from handful.methods.base import SHOWING, Method, Segmenter
from handful.methods.catalog import build_method, method_settings, settings_from_backbone
from handful.methods.experts import ExpertsSegmenter, RelabelledSegmenter
from handful.methods.router import Router
from handful.methods.settings import read_settings

MOST = 2**16
"""Largest whole number that a setting may have, except those of the training, which is over."""
OF_TRAINING = ("seed", "iterations", "draws")
"""Ends of the names of settings that only matter for the training."""
SPARE = 2**28
"""Bytes that loading may allocate beyond a multiple of the weights of model and backbone."""


def save(
    segmenter: Segmenter,
    folder: str | Path,
    *,
    method_name: str,
    method: Method,
    provenance: Mapping[str, object],
    made_for: MadeFor | None = None,
    anonymous: bool = False,
) -> None:
    """Write a segmenter into a folder, completely or not at all; an earlier segmenter there is replaced.

    `provenance` describes the origin of the segmenter in JSON values (see `describe_support`); it should not contain
    paths. `made_for` is the kind of its scans, with which scans are compared before they are segmented. With
    `anonymous`, the path of a backbone is recorded without its folders; the segmenter must have been fitted on cases
    without names (see `SupportSet.without_names`).

    Raises CheckpointError if the folder contains anything else, InputError if its path has no name, SettingsError if an
    anonymous segmenter holds pictures or masks.
    """
    folder = require_replaceable(folder)
    if segmenter.experts:
        raise SettingsError("a segmenter with experts is not saved again; copy its folder, or use fit_expert")
    if anonymous and segmenter.holds & SHOWING:
        raise SettingsError(
            f"{method_name} holds {kinds_in_words(sorted(segmenter.holds & SHOWING))} of the labelled slices, so the "
            "model cannot be anonymous; fit unet, lora or auto-sam"
        )
    learned = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.learned().items()}
    weights = safetensors.torch.save(learned)
    backbone = BackboneName.of(segmenter.backbone.name)
    record = Record(
        format=FORMAT,
        method=method_name,
        settings=method_settings(method.resolved(segmenter.backbone)),
        labels=segmenter.labels.as_dict(),
        slicer=TypeAdapter(Slicer).dump_python(segmenter.slicer, mode="json"),
        backbone=backbone.without_folders if anonymous else backbone.absolute,
        backbone_sha256=segmenter.backbone.digest(),
        backbone_input=segmenter.backbone.input_description(),
        settings_from_backbone=settings_from_backbone(method, segmenter.backbone),
        weights_sha256=digest_of(weights),
        versions=library_versions(),
        made_for=made_for,
        holds=sorted(segmenter.holds),
        anonymous=anonymous,
        provenance=dict(provenance),
    )
    card = model_card(record, len(weights))
    files = {RECORD: record_as_json(record).encode(), WEIGHTS: weights, CARD: card.encode()}
    with replacing_folder(folder) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)


@dataclass(frozen=True, kw_only=True)
class ModelContent:
    """What a model is, and what it holds of the scans that it was fitted on."""

    method: str
    handful: str
    """Version that fitted it."""
    labels: dict[int, str]
    backbone: str
    slicer: dict[str, Any]
    settings: dict[str, Any]
    made_for: MadeFor | None
    tensors: int
    """Number of tensors among the weights."""
    bytes: int
    """Size of the weights."""
    holds: list[str]
    """What it holds of its scans, one phrase each."""
    paths: list[str]
    """Paths in the record."""
    experts: dict[str, ModelContent] = field(default_factory=dict)
    """Experts by name, their labels as in the predictions of the whole model; empty for a model of a single task."""


@dataclass(frozen=True)
class SavedModel:
    """The folder of a saved segmenter and its record."""

    folder: Path
    record: Record
    sha256: str
    """SHA-256 of segmenter.json, which contains the digests of all weights."""
    written_as: Mapping[int, int] = field(default_factory=dict)
    """{value of a label: value in its place}, for the labels that an expert shares with others; empty for none."""

    @cached_property
    def experts(self) -> dict[str, SavedModel]:
        """The models of the experts by name; empty for a model of a single task.

        Raises CheckpointError if a folder of an expert is missing or is not the one that was added.
        """
        found = {}
        for name, entry in self.record.experts.items():
            part = _read_record(self.folder / EXPERTS / name)
            if part.sha256 != entry.sha256 or part.record.labels.keys() != entry.values.keys() or part.record.experts:
                raise CheckpointError(
                    f"{part.folder} is not the expert that was added to {self.folder}; copy the whole folder again"
                )
            found[name] = dataclasses.replace(part, written_as=entry.values)
        return found

    def expert(self, name: str) -> SavedModel:
        """The model of an expert. Raises SettingsError if there is none of that name."""
        if not self.record.experts:
            raise SettingsError(f"{self.folder} has no experts; leave out --expert")
        if name not in self.experts:
            hint = did_you_mean(name, self.experts)
            raise SettingsError(f"{self.folder} has no expert {name!r}; {hint}experts are {', '.join(self.experts)}")
        return self.experts[name]

    def require_unchanged(self, copy: Path | None = None) -> None:
        """Raise CheckpointError if the folder, or a copy of it, no longer contains the record that was read from it."""
        record = (copy or self.folder) / RECORD
        if not record.is_file() or digest_of_file(record) != self.sha256:
            raise CheckpointError(f"{self.folder} was changed during the fit; run the command again")

    def add_dice_left_out(self, dice: Mapping[str, float]) -> None:
        """Add the Dice of each label on cases that were left out to the record of a model of a single task."""
        provenance = self.record.provenance | {"dice_left_out": dict(dice)}
        record = dataclasses.replace(self.record, provenance=provenance)
        write_atomically(self.folder / RECORD, record_as_json(record).encode())

    def require_single_task(self, purpose: str) -> None:
        """Raise SettingsError for a model with experts; `purpose` is what cannot be done with it."""
        if self.record.experts:
            folders = ", ".join(str(self.folder / EXPERTS / name) for name in self.record.experts)
            raise SettingsError(f"{purpose} needs the model of one task, and this one has experts; name {folders}")

    @property
    def for_ct(self) -> bool:
        """Whether it, or any of its experts, was fitted on CT."""
        kinds = [model.record.made_for for model in (self, *self.experts.values())]
        return any(kind is not None and kind.is_ct for kind in kinds)

    @property
    def fitted_on(self) -> dict[str, str]:
        """{case: SHA-256 of its voxels} of the cases that it was fitted on; empty if they are not recorded."""
        return {scan["case"]: scan["image_sha256"] for scan in recorded_scans(self.record.provenance, "support")}

    @property
    def agreement(self) -> dict[str, float]:
        """{SHA-256 of its voxels: agreement from 0 to 1} of the unlabelled scans that self-training learned from."""
        provenance = self.record.provenance
        scans = [*recorded_scans(provenance, "unlabelled"), *recorded_scans(provenance, "support")]
        digests = {scan["case"]: scan["image_sha256"] for scan in scans}
        return {digests[case]: value for case, value in provenance.get("reliability", {}).items() if case in digests}

    def absolute(self) -> SavedModel:
        """The same model with an absolute path, which other processes can read."""
        return dataclasses.replace(self, folder=self.folder.absolute())

    def content(self) -> ModelContent:
        """What the model is and holds, from its record and the header of its weights."""
        record = self.record
        with self._errors_of(WEIGHTS), safe_open(self.folder / WEIGHTS, framework="pt") as file:
            tensors = len(list(file.keys()))
        raw = dataclasses.asdict(record)
        experts = {name: model.content() for name, model in self.experts.items()}
        paths = {text for text in texts_in(raw) if Path(text).is_absolute()}
        return ModelContent(
            method=record.method,
            handful=record.versions.get("handful", "unknown"),
            labels={self.written_as.get(value, value): name for value, name in record.labels.items()},
            backbone=record.backbone,
            slicer=record.slicer,
            settings=record.settings,
            made_for=record.made_for,
            tensors=tensors,
            bytes=(self.folder / WEIGHTS).stat().st_size,
            holds=list(held_content(record)),
            paths=sorted(paths.union(*(content.paths for content in experts.values()))),
            experts=experts,
        )

    def compared_with(self, volume: Volume, evidence: ModalityEvidence) -> tuple[str, ...]:
        """A sentence for each property in which a scan is unlike those that the model was fitted on.

        Raises UnsupportedInput if the model cannot be used for it.
        """
        kind = self.record.made_for
        if kind is None:
            return ()
        kind.require_usable(volume)
        return kind.differences(volume, evidence)

    def arranged(self, volume: Volume) -> Volume:
        """The scan with its sequences in the order of those that the model was fitted on; see `MadeFor.arranged`.

        Raises UnsupportedInput if the model cannot be used for it, as `compared_with` does.
        """
        kind = self.record.made_for
        if kind is None:
            return volume
        kind.require_usable(volume)
        return kind.arranged(volume)

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences that the scans must have; empty for grey and colour, and if experts differ."""
        if self.record.experts:
            names = {model.sequences for model in self.experts.values()}
            return names.pop() if len(names) == 1 else ()
        kind = self.record.made_for
        return () if kind is None else kind.sequences

    def method(self) -> Method:
        """The method with its settings.

        Raises CheckpointError if this version of handful does not have them, SettingsError for a model with experts.
        """
        self.require_single_task("fitting the same method")
        with self._errors_of(RECORD):
            _require_modest(self.record.settings)
            return build_method(self.record.method, self.record.settings)

    def load(
        self, backbone: Backbone | None = None, cache: str | Path | None = None, *, only_to_predict: bool = False
    ) -> Segmenter:
        """Load the segmenter, with embeddings stored in the folder `cache`, if given.

        `backbone` must be the one it was fitted on; by default, it is loaded, too, but never downloaded. With
        `only_to_predict`, it is left out where predictions do not use it, which saves seconds. Raises CheckpointError
        if the weights are damaged, do not fit the record, or belong to another backbone.
        """
        record = self.record
        weights = _read_weights(self.folder, record)
        if record.experts:
            return self._load_experts(weights, backbone, cache)
        _require_matching(self.folder, record, weights)
        method = self.method()
        with self._errors_of(WEIGHTS):
            alone = only_to_predict and backbone is None and not method.needs_backbone(weights)
        if alone:
            backbone = AbsentBackbone(record.backbone)
        else:
            backbone = self._checked(backbone or self.backbone())
            backbone = cached(backbone, cache) if cache is not None else backbone
        with self._errors_of(RECORD):
            labels = Labels.of(record.labels)
            slicer: Slicer = read_settings(Slicer, record.slicer, "slicer")
        own = sum(tensor.nbytes for tensor in weights.values())
        of_backbone = sum(parameter.nbytes for parameter in backbone.parameters())
        with self._errors_of(WEIGHTS), AllocationLimit(4 * (own + of_backbone) + SPARE):
            segmenter = method.restore(labels, slicer, backbone, weights)
            _require_complete(segmenter.learned(), weights)
        changed = any(old != new for old, new in self.written_as.items())
        return RelabelledSegmenter(segmenter, self.written_as) if changed else segmenter

    def _load_experts(
        self, weights: dict[str, Tensor], backbone: Backbone | None, cache: str | Path | None
    ) -> Segmenter:
        """The segmenters of all experts, with the router that picks one of them."""
        backbone = self._checked(backbone or self.backbone())
        backbone = cached(backbone, cache) if cache is not None else backbone
        with self._errors_of(WEIGHTS):
            router = Router.unpack(tuple(self.record.experts), weights)
            router.require_channels(backbone.channels)
        experts = {name: model.load(backbone) for name, model in self.experts.items()}
        kinds = {name: model.record.made_for for name, model in self.experts.items()}
        return ExpertsSegmenter(experts, kinds, Labels.of(self.record.labels), router)

    def router(self) -> Router:
        """The sums of the router of a model with experts."""
        with self._errors_of(WEIGHTS):
            return Router.unpack(tuple(self.record.experts), _read_weights(self.folder, self.record))

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """CheckpointError that names the model, for any error of a prediction that is not for the user."""
        try:
            yield
        except (HandfulError, MemoryError, OSError):
            raise
        except Exception as error:  # weights that were changed on purpose may fail anywhere
            if is_lack_of_memory(error):
                raise
            raise CheckpointError(
                f"{self.folder} fails on this scan ({type(error).__name__}: {first_line(error)}); fit "
                "again, or send a bug report if it does so after that"
            ) from error

    def backbone(self, name: str | None = None) -> Backbone:
        """The backbone of that name; without a name the recorded one, which is not downloaded."""
        from handful.backbones.catalog import load_backbone  # seconds, and not every model needs it

        if name is not None:
            return load_backbone(name)
        try:
            return load_backbone(self.record.backbone, download=False)
        except HandfulError as error:
            raise CheckpointError(
                f"the backbone of {self.folder} cannot be loaded: {error}; give the backbone that it was fitted on "
                f"with --backbone (recorded as {self.record.backbone!r}), if you trust it"
            ) from error

    def _checked(self, backbone: Backbone) -> Backbone:
        """The backbone, if it is the one that the model was fitted on; CheckpointError otherwise."""
        record = self.record
        _require_same_input(self.folder, record, backbone)
        digest = backbone.digest()
        if digest != record.backbone_sha256:
            raise CheckpointError(
                f"{self.folder} was fitted on backbone {record.backbone!r} (weights {record.backbone_sha256[:12]}), "
                f"but this is {backbone.name!r} (weights {digest[:12]}); give the backbone it was fitted on"
            )
        return backbone

    def open(
        self,
        device: str = "auto",
        cache: str | Path | None = None,
        backbone: str | None = None,
        *,
        only_to_predict: bool = False,
    ) -> Segmenter:
        """Load the segmenter onto a device (auto, cpu, cuda or mps); `backbone` is a name for `load_backbone`."""
        chosen = choose_device(device)
        named = self.backbone(backbone) if backbone else None
        return self.load(named, cache, only_to_predict=only_to_predict).to(chosen)

    @contextmanager
    def _errors_of(self, file: str) -> Iterator[None]:
        """CheckpointError for any error in reading `file`, which may have any content."""
        try:
            yield
        except HandfulError as error:
            raise CheckpointError(f"{self.folder / file} cannot be used: {error}; fit again") from error
        except MemoryError as error:
            raise CheckpointError(
                f"{self.folder / RECORD} describes a model larger than its weights ({error}); copy the folder again, "
                "or fit again"
            ) from error
        except Exception as error:  # settings and weights that do not fit together fail anywhere in a method
            raise CheckpointError(
                f"{self.folder / file} does not fit {RECORD} ({type(error).__name__}: {first_line(error)}); "
                "copy the folder again, or fit again"
            ) from error


def load(folder: str | Path, backbone: Backbone | None = None) -> Segmenter:
    """Load the segmenter in a folder.

    `backbone` must be the one it was fitted on; by default, it is loaded, too. Raises CheckpointError for a folder that
    is incomplete, damaged, of another format, or fitted on another backbone.
    """
    return open_model(Path(folder)).load(backbone)


def open_model(folder: Path) -> SavedModel:
    """Read the record of a segmenter in a folder, without its weights.

    Raises CheckpointError for a folder that is incomplete, or whose record is damaged or of another format.
    """
    saved = _read_record(folder)
    _ = saved.experts  # a missing one is reported here, not at the first scan
    return saved


def _read_record(folder: Path) -> SavedModel:
    """The model in a folder, whose experts are not read."""
    checked_path(folder)
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}: not a fitted model, or incomplete; create one with handful fit"
            )
    try:
        raw, content = read_json(folder / RECORD)
    except ValueError as error:
        raise CheckpointError(
            f"{folder / RECORD} cannot be read ({error}); copy the folder again, or fit again"
        ) from error
    return SavedModel(folder, parsed_record(folder / RECORD, raw), digest_of(content))


def open_segmenter(
    folder: Path, device: str = "auto", cache: Path | None = None, backbone: str | None = None
) -> Segmenter:
    """Load the segmenter in a folder onto a device, with embeddings stored in the folder `cache`, if given."""
    return open_model(folder).open(device, cache, backbone)


def _read_weights(folder: Path, record: Record) -> dict[str, Any]:
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read ({error.strerror}); copy the folder again") from error
    digest = digest_of(weights)
    if digest != record.weights_sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged: its SHA-256 is {digest[:12]}, but {RECORD} has "
            f"{record.weights_sha256[:12]}; copy the folder again, or fit again"
        )
    try:
        tensors = safetensors.torch.load(weights)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is not a safetensors file ({error}); fit again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{folder / WEIGHTS} has values in {name!r} that are not finite; fit again")
    return tensors


def _require_matching(folder: Path, record: Record, weights: Mapping[str, Tensor]) -> None:
    """CheckpointError for settings that say other numbers of parts than the weights have, before any is built."""
    seeds = record.settings.get("seeds", "none")
    if seeds not in ("none", None) and f"{seeds}" != str(_members(weights, "seed-")):
        raise CheckpointError(
            f"{folder / RECORD} says seeds = {str(seeds)[:40]}, but {WEIGHTS} has {_members(weights, 'seed-')}; "
            "copy the folder again, or fit again"
        )


def _members(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The number of parts of tensor names that start with `prefix`."""
    parts = {part for name in weights for part in name.split("/") if part.startswith(prefix)}
    return len(parts)


def _require_modest(settings: Mapping[str, Any] | Sequence[Any], name: str = "settings") -> None:
    """SettingsError for whole numbers that no model has."""
    pairs = settings.items() if isinstance(settings, Mapping) else ((name, value) for value in settings)
    for key, value in pairs:
        if isinstance(value, Mapping | list):
            _require_modest(value, key)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
        if isinstance(number, int) and abs(number) > MOST and not key.endswith(OF_TRAINING):
            raise SettingsError(f"setting {key} = {value} is larger than {MOST}")


def _require_complete(restored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """SettingsError unless the segmenter has every tensor of the file, in its shape and number format."""
    there, here = (
        {name: f"{str(t.dtype).removeprefix('torch.')}{tuple(t.shape)}" for name, t in tensors.items()}
        for tensors in (weights, restored)
    )
    if different := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
        name = different[0]
        raise SettingsError(
            f"tensor {name!r} is {there.get(name, 'missing')} in the file, but by the settings "
            f"{here.get(name, 'unknown')}"
        )


def _require_same_input(folder: Path, record: Record, backbone: Backbone) -> None:
    """CheckpointError for a backbone that makes other pixels of a slice than the one that was fitted on."""
    there, here = record.backbone_input, backbone.input_description()
    differences = [
        f"{key} {there.get(key)} there, {value} here" for key, value in here.items() if there.get(key) != value
    ]
    if differences:
        raise CheckpointError(
            f"{folder} was fitted on backbone {record.backbone!r} with other pixels than {backbone.name!r} takes "
            f"({'; '.join(differences)}); give the backbone by the name {record.backbone!r}"
        )
