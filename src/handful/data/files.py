"""Scans, label maps and cohorts on disk; cohorts may have one of several folder layouts."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Any

from handful.data.cases import Case, Cohort, LeftOut
from handful.data.dicom.segments import referenced_series
from handful.data.dicom.series import SeriesChoice, dicom_has_series, dicom_patient, dicom_series_of
from handful.data.dicom.sources import DICOM_SUFFIXES
from handful.data.formats import (
    SUFFIXES,
    is_scan,
    labels_in,
    read_label_map,
    read_volume,
    stem,
    write_label_map,
    write_volume,
)
from handful.data.inventory import (
    SIDECAR,
    Listing,
    case_name,
    is_dicom_case,
    leave_out_sidecars,
    list_folder,
    list_label_maps,
    list_surroundings,
    problem_of_name,
)
from handful.data.sequence_layout import AS_NIFTI, NUMBERED, Image, StatedChannels, are_numbered, grouped, not_in_dicom
from handful.data.sequences import SequenceFiles
from handful.data.volume import Labels
from handful.errors import HandfulError, InputError, UnsupportedInput
from handful.jobs.files import checked_path, text_of

__all__ = [
    "SUFFIXES",
    "References",
    "find_references",
    "read_cohort",
    "read_label_map",
    "read_volume",
    "stem",
    "write_label_map",
    "write_volume",
]


def read_cohort(
    folder: str | Path,
    *,
    images_only: bool = False,
    series: str | None = None,
    slice_tolerance: float | None = None,
    channels: Sequence[str] = (),
    default_channels: Sequence[str] = (),
) -> Cohort:
    """The cases in a folder, sorted by name.

    Supported layouts: `images/` and `labels/` with files of equal stem; nnU-Net's raw folders (`imagesTr/`); the
    Medical Segmentation Decathlon's `dataset.json`; a folder of images; a single image file. Hidden files are ignored.
    An image may be a folder, an archive (.zip) or a file of DICOM; a folder that holds nothing but DICOM is one case. A
    label map may be a DICOM segmentation (DICOM-SEG).

    Several sequences of a scan are files of one name with numbers (`case_0000.nii.gz`, `case_0001.nii.gz`), or one
    NIfTI or NRRD file with a fourth axis. `channels` are the names of the sequences, in their order; they go before
    those of dataset.json ("channel_names" or "modality"), and `default_channels` are taken if neither states any. A
    file with a fourth axis is read only if its sequences are named. A case that lacks a sequence is left out.

    `dataset.json` may state the label names, the modality, the value of unlabelled voxels ("ignore"), the patients
    ("patient": {case: id}), the DICOM series ("series": {case: number or UID}) and "slice_tolerance" in mm. DICOM cases
    with the same patient ID belong to one patient if no patients are stated. `series` and `slice_tolerance` are those
    of all cases, and go before dataset.json. Without label names, all references are read to find the label values;
    otherwise no voxels are read. `images_only` ignores references. Raises InputError if the folder has no supported
    layout.
    """
    folder = checked_path(folder)
    if folder.is_file():
        image = StatedChannels(tuple(channels or default_channels), "--channels").image(folder)
        case = Case(case_name(folder), image, choice=SeriesChoice(series, slice_tolerance))
        return Cohort((case,), None, case.name, files=frozenset({folder}))
    if not folder.is_dir():
        problem = "a pipe or a device, not a file" if folder.exists() else "no such file or folder"
        raise InputError(f"{folder}: {problem}; check the name")
    facts = _read_facts(folder, channels, default_channels)
    layout = _layout(folder, facts)
    pairs = layout.pairs
    _require_cases(folder, layout, images_only)
    choices = _choices(facts, pairs, SeriesChoice(series, slice_tolerance))
    patients = _patients(facts, pairs, choices)
    cases = tuple(
        replace(facts.case(name, image, label), patient=patients.get(name), choice=choices[name])
        for name, image, label in sorted(pairs, key=lambda pair: pair[0])
    )
    if images_only:
        cases = tuple(replace(case, reference=None) for case in cases)
    labels = facts.labels or _scan_labels(cases)
    files = frozenset(path for case in cases for path in case.files)
    files |= {label for _, _, label in pairs if label is not None}
    left_out = tuple(sorted(layout.left_out, key=lambda one: one.file))
    return Cohort(tuple(_with_labels(case, labels) for case in cases), labels, facts.name, left_out, files)


def _require_cases(folder: Path, layout: _Layout, images_only: bool) -> None:
    """Raise InputError if there is no scan, or if there are label maps and none belongs to a scan."""
    listed = "; ".join(f"{one.file}: {one.reason}" for one in layout.left_out[:5])
    if not layout.pairs:
        raise InputError(
            f"{folder}: no scans in a supported layout: images/ and labels/, nnU-Net raw (imagesTr/, labelsTr/), "
            f"MSD (dataset.json), DICOM files, or files ending in {', '.join(SUFFIXES)} directly in it"
            + (f". Left out: {listed}" if listed else "")
        )
    orphans = [one for one in layout.left_out if one.reason.startswith("labels without an image")]
    if orphans and not images_only and not any(label for _, _, label in layout.pairs):
        raise InputError(f"{folder}: no label map belongs to a scan. {listed}")


def is_single_scan(path: Path) -> bool:
    """Whether a path is one scan: a file, or a folder of nothing but DICOM files."""
    if not checked_path(path).is_dir():
        return path.is_file()
    try:
        cases = read_cohort(path, images_only=True).cases
    except HandfulError:
        return False
    return len(cases) == 1 and cases[0].image == path


def names_file(path: Path) -> bool:
    """Whether a path for output names a file of a known format, not a folder."""
    return not checked_path(path).is_dir() and path.name.lower().endswith((*SUFFIXES, *DICOM_SUFFIXES))


@dataclass(frozen=True)
class _Facts:
    """The contents of dataset.json that handful uses."""

    file: Path
    name: str
    content: Mapping[str, Any]
    labels: Labels | None
    ignore: int | None
    background: int
    """Value of voxels that are labelled as background; 0 unless a name says another one."""
    channels: StatedChannels
    """Names of the channels, or the modality."""

    def case(self, name: str, image: Image, reference: Path | None) -> Case:
        """A case of the data set."""
        case = Case(name, image, reference, self.labels, modality=self.modality, ignore=self.ignore)
        return replace(case, background=self.background)

    @property
    def modality(self) -> str | None:
        """The modality of scans with one channel."""
        return self.channels.names[0] if len(self.channels.names) == 1 else None


_Pair = tuple[str, Image, Path | None]
"""Name, image and label file of a case."""


@dataclass(frozen=True)
class References:
    """A folder of reference label maps, and the meaning of their values."""

    folder: Path
    labels: Labels | None = None
    """None if no dataset.json names them."""
    ignore: int | None = None
    """Value of unlabelled voxels."""
    background: int = 0
    """Value of voxels that are labelled as background."""
    problem: str | None = None
    """Why the label names are unknown although there is a dataset.json."""
    left_out: tuple[LeftOut, ...] = ()
    """Files of the cohort, or of the folder of label maps, that are not read."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The label maps by the name of their case, if dataset.json lists them; they may be in other folders."""


def find_references(folder: Path) -> References:
    """The label maps of a cohort or in a folder of label maps, with the label names from its dataset.json.

    The scans need not be there. If dataset.json cannot be used, the meaning of the values is missing; see `problem`.
    """
    checked_path(folder)
    inside = [folder / name for name in ("labels", "labelsTr") if (folder / name).is_dir()]
    maps = inside[0] if inside else folder
    listed = _lists_cases(folder / "dataset.json")
    root = folder if inside or listed else folder.parent
    stated: tuple[Labels | None, int | None, int] = (None, None, 0)
    problem: str | None = None
    cohort: Cohort | None = None
    try:
        stated = stated_values(root)
    except HandfulError as error:
        problem = str(error)
    if problem is None and (root / "dataset.json").is_file():
        with suppress(HandfulError):  # without scans there is no cohort
            cohort = read_cohort(root)
    left_out = tuple(list_label_maps(maps, folder).left_out) if cohort is None else cohort.left_out
    cases = cohort.cases if cohort is not None and listed else ()
    files = {case.name: case.reference for case in cases if isinstance(case.reference, Path)}
    return References(maps, *stated, problem, left_out, files)


def _lists_cases(file: Path) -> bool:
    """Whether a dataset.json lists the files of each case."""
    try:
        content = _content(file)
    except HandfulError:
        return False
    return isinstance(content.get("training"), list) or isinstance(content.get("dataset"), dict)


def _read_facts(folder: Path, channels: Sequence[str], default: Sequence[str]) -> _Facts:
    file = folder / "dataset.json"
    content = _content(file)
    labels, ignore, background = _read_labels(file, content)
    stated = StatedChannels(tuple(channels), "--channels") if channels else _stated_channels(file, content)
    if not stated.names and folder.name in _IMAGES:  # the images of an nnU-Net data set, given alone
        above = folder.parent / file.name
        stated = _stated_channels(above, _content(above))
    if not stated.names and default:
        stated = StatedChannels(tuple(default), "the model")
    name = str(content.get("name") or folder.resolve().name)
    return _Facts(file, name, content, labels, ignore, background, stated)


def _content(file: Path) -> dict[str, Any]:
    """The content of a dataset.json; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(text_of(file), object_pairs_hook=_without_doubles)
        json.dumps(content, ensure_ascii=False).encode()  # no half of a character, such as "\\ud800"
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON in UTF-8 ({error}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must be a JSON object, is a {type(content).__name__}; correct it")
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON object. Raises ValueError for a key that is there twice, since one value would be lost."""
    counts = Counter(key for key, _ in pairs)
    if doubles := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"the entry {json.dumps(doubles[0])} is there {counts[doubles[0]]} times")
    return dict(pairs)


def stated_values(folder: Path) -> tuple[Labels | None, int | None, int]:
    """The values that dataset.json in a folder states: the labels, the value of unlabelled voxels, that of background.

    (None, None, 0) without such a file. Raises InputError if it is not correct.
    """
    file = folder / "dataset.json"
    return _read_labels(file, _content(file))


def _stated_channels(file: Path, content: Mapping[str, Any]) -> StatedChannels:
    """The names of channels, as nnU-Net ("channel_names") or MSD ("modality") has them: {"0": name}, list or name."""
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, dict):
        numbers = all(str(key).isdecimal() for key in channels)
        channels = [channels[key] for key in (sorted(channels, key=int) if numbers else channels)]
    if not isinstance(channels, list):
        channels = [] if channels is None else [channels]
    return StatedChannels(tuple(map(str, channels)), file.name)


def _read_labels(file: Path, content: Mapping[str, Any]) -> tuple[Labels | None, int | None, int]:
    """Label names, the value of unlabelled voxels and that of background, from {"0": name} or {name: value}.

    If a value above 0 is called "background" and 0 is not, 0 is the value of unlabelled voxels, as where somebody
    scribbles in a program whose empty voxels are 0.
    """
    ignore, stated = content.get("ignore"), content.get("labels")
    if not (ignore is None or type(ignore) is int) or not (stated is None or isinstance(stated, dict)):
        raise InputError(f'{file}: "labels" must be an object and "ignore" a whole number; correct it')
    if not stated:
        return None, ignore, 0
    by_value = all(re.fullmatch(r"-?[0-9]+", str(key)) for key in stated)
    items = [(key, name) for key, name in stated.items()] if by_value else [(v, name) for name, v in stated.items()]
    if any(isinstance(value, list) for value, _ in items):
        raise UnsupportedInput(f"{file}: region-based labels are not supported; give each value its own name")
    if not all(type(value) is int or (by_value and isinstance(name, str)) for value, name in items):
        raise InputError(f'{file}: "labels" must be {{"0": "background", "1": name}} or {{name: value}}, is {stated}')
    names = {int(value): str(name) for value, name in items}
    if len(names) < len(items):
        raise InputError(f'{file}: the same value has several names in "labels": {stated}; correct it')
    for value in [value for value, name in names.items() if name == "ignore" and value != 0]:
        ignore = value
    background = next((value for value, name in names.items() if name == "background"), 0)
    if background > 0 and ignore is None:
        ignore = 0
    names = {value: name for value, name in names.items() if value > 0 and value not in (ignore, background)}
    if wrong := [name for name, count in Counter(names.values()).items() if count > 1 or not name.strip()]:
        raise InputError(f'{file}: "labels" has the name {wrong[0]!r} twice, or empty; give each label its own name')
    return Labels.of(names) if names else None, ignore, background


@dataclass
class _Layout:
    """The cases in a folder, and the files in it that belong to none."""

    pairs: list[_Pair]
    left_out: list[LeftOut]


def _layout(folder: Path, facts: _Facts) -> _Layout:
    if isinstance(facts.content.get("training"), list):
        return _listed_layout(folder, facts, facts.content["training"], "training")
    if isinstance(named := facts.content.get("dataset"), dict):
        return _listed_layout(folder, facts, [_entry(name, files) for name, files in named.items()], "dataset")
    if (folder / "imagesTr").is_dir():
        return _paired(folder, ("imagesTr", "labelsTr"), facts)
    if (folder / "images").is_dir():
        return _paired(folder, ("images", "labels"), facts)
    return _flat(folder, facts.channels)


def _flat(folder: Path, stated: StatedChannels) -> _Layout:
    """Scans directly in a folder; a folder that holds nothing but DICOM files and folders is one scan itself."""
    listing = list_folder(folder, folder)
    archives = [path for path in listing.dicom if path.suffix.lower() == ".zip" and path.is_file()]
    if not listing.scans and not archives and listing.dicom:
        if reason := not_in_dicom(stated):
            raise UnsupportedInput(f"{folder}: {reason}")
        return _Layout([(folder.resolve().name, folder, None)], [])  # its notes list other files
    right = {f"{stem(path)}{SIDECAR}" for path in listing.scans.values()}
    for path in listing.sidecars:
        if path.name not in right:
            listing.leave_out(
                path, f"a list of slices; it belongs into labels/, named CASE{SIDECAR} like its label map"
            )
    all_numbered = bool(listing.scans) and all(NUMBERED.fullmatch(name) for name in listing.scans)
    if (folder.name in _IMAGES and all_numbered) or are_numbered(listing.scans, (), stated):
        images = grouped(listing, stated)
    else:
        images = {name: stated.image(path) for name, path in listing.scans.items()}
    for path in listing.dicom:
        if path.is_file() and path not in archives:
            listing.leave_out(path, "a DICOM file next to other scans; put the files of each series into a folder")
        elif reason := not_in_dicom(stated):
            listing.leave_out(path, reason)
        else:
            _add_dicom(images, path)
    return _Layout([(name, image, None) for name, image in images.items()], listing.left_out)


def _paired(folder: Path, layout: tuple[str, str], facts: _Facts) -> _Layout:
    """Images and labels of equal names; in nnU-Net's layout, image names end in the number of a channel."""
    images, labels = list_folder(folder / layout[0], folder), list_label_maps(folder / layout[1], folder)
    around = list_surroundings(folder, layout)
    leave_out_sidecars([*images.sidecars, *around.sidecars], labels)
    if layout[0] == "imagesTr":
        for path in images.dicom:
            images.leave_out(
                path, "DICOM in imagesTr/; put DICOM and other scans into images/, their labels into labels/"
            )
        image_of = grouped(images, facts.channels)
    elif are_numbered(images.scans, labels.scans, facts.channels):
        for path in images.dicom:
            images.leave_out(path, f"a DICOM series next to scans with several sequences; {AS_NIFTI}")
        image_of = grouped(images, facts.channels)
    else:
        image_of = _with_dicom(images, facts.channels)
    unread = {_WITHOUT_NUMBER.sub("", Path(one.file).name.partition(".")[0]) for one in images.left_out}
    orphans = [path for name, path in labels.scans.items() if name not in image_of]
    for path in orphans:
        labels.leave_out(path, _why_orphan(case_name(path), image_of, unread, layout))
    pairs = [(name, image, labels.scans.get(name)) for name, image in image_of.items()]
    return _Layout(pairs, [*around.left_out, *images.left_out, *labels.left_out])


def _why_orphan(name: str, images: Collection[str], unread: Collection[str], layout: tuple[str, str]) -> str:
    """Why a label map belongs to no image, with the image that may be meant."""
    if name.partition(".")[0] in unread:
        return f"labels whose image in {layout[0]}/ is left out, too"
    near = [image for image in images if image in name or name in image or image.lower() == name.lower()]
    meant = max(near, key=len) if near else next(iter(get_close_matches(name, images, n=1)), None)
    example = f"; if {meant} is meant, call the label map {meant}, without additions such as _seg, _mask or _0000"
    return (
        f"labels without an image in {layout[0]}/; the names of image and label map must be equal"
        f"{example if meant else ''}; rename it, add the image, or remove the labels"
    )


_IMAGES = ("imagesTr", "imagesTs")
_WITHOUT_NUMBER = re.compile(r"_[0-9]{4}$")


def _with_dicom(images: Listing, stated: StatedChannels) -> dict[str, Image]:
    """The scans in a folder by name, DICOM among them; a slice of a DICOM series is not taken for a scan."""
    files = [path for path in images.dicom if path.is_file() and path.suffix.lower() != ".zip"]
    slices = dicom_series_of(files)
    while slices:
        for path in slices:
            images.leave_out(path, "a slice of a DICOM series; put the files of each series into a folder of their own")
        images.dicom = [path for path in images.dicom if path not in slices]
        files = [path for path in files if path not in slices]
        slices = dicom_series_of(files)
    image_of = {name: stated.image(path) for name, path in images.scans.items()}
    reason = not_in_dicom(stated)
    for path in images.dicom:
        if reason:
            images.leave_out(path, reason)
        else:
            _add_dicom(image_of, path)
    return image_of


def _add_dicom(images: dict[str, Image], path: Path) -> None:
    if (other := images.setdefault(case_name(path), path)) != path:
        raise InputError(f"two images for one case: {other} and {path}; remove one of them")


def _entry(name: str, files: Any) -> Any:
    """An entry of nnU-Net's "dataset" as one of a list, with the name of its case."""
    if not isinstance(files, dict):
        return files
    images = files.get("images")
    image = images[0] if isinstance(images, list) and len(images) == 1 else images
    return {"name": name, "image": image, "label": files.get("label")}


def _listed_layout(folder: Path, facts: _Facts, entries: list[Any], key: str) -> _Layout:
    """The cases that `key` of dataset.json lists; entries that cannot be used, and other scans, are left out.

    It is "training" of MSD and nnU-Net v1, or "dataset" of nnU-Net v2, which has the images of each case by its name.
    """
    pairs: list[_Pair] = []
    problems: list[InputError] = []
    layout = _Layout(pairs, [])
    for entry in entries:
        if _is_hidden(entry):
            continue
        try:
            pairs.append(_listed(folder, facts, entry))
        except InputError as error:
            problems.append(error)
            layout.left_out.append(LeftOut(f"{facts.file.name}: {_short(entry)}", str(error)))
    if problems and not pairs:
        raise problems[0]
    used = {path for _, image, label in pairs for path in (*_files_of(image), label) if path is not None}
    labels = {label for _, _, label in pairs if label is not None}
    right = {label.with_name(f"{stem(label)}{SIDECAR}") for label in labels}
    folders = {str(parent) for path in used for parent in path.relative_to(folder).parents}
    for place in sorted({path.parent for path in used}):
        listing = list_folder(place, folder, by_case=False)
        for path in (*listing.scans.values(), *listing.dicom):
            if path not in used:
                listing.leave_out(path, f'not in "{key}" of dataset.json; add it, or remove the file')
        layout.left_out += [one for one in listing.left_out if one.file not in folders]
        here = {label for label in labels if label.parent == place}
        meant = Listing(folder, folder, {case_name(label): label for label in sorted(here or labels)})
        known = set(meant.scans.values())
        leave_out_sidecars([path for path in listing.sidecars if path not in right], meant)
        layout.left_out += meant.left_out
        labels -= known - set(meant.scans.values())
    layout.pairs = [(name, image, label if label in labels else None) for name, image, label in pairs]
    return layout


def _short(entry: Any) -> str:
    text = str(entry.get("image", entry)) if isinstance(entry, dict) else str(entry)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _is_hidden(entry: Any) -> bool:
    return isinstance(entry, dict) and PureWindowsPath(str(entry.get("image"))).name.startswith(".")


def _files_of(image: Image) -> tuple[Path, ...]:
    return image.paths if isinstance(image, SequenceFiles) else (image,)


def _listed(folder: Path, facts: _Facts, entry: Any) -> _Pair:
    """A case as MSD lists it: paths of image and label, relative to the folder, with / or \\ between folders."""
    file = facts.file
    if not isinstance(entry, dict) or "image" not in entry:
        raise InputError(f'{file}: an entry must hold {{"image": path, "label": path}}, got {entry!r}; correct it')
    label = _listed_path(folder, file, entry, "label")
    several = entry["image"] if isinstance(entry["image"], list) and len(entry["image"]) > 1 else []
    images = [_listed_path(folder, file, {"image": one}, "image") for one in several or [entry["image"]]]
    files = tuple(image for image in images if image is not None)
    if not files or len(files) < len(several):
        raise InputError(f'{file}: no "image" in {entry!r}; correct it')
    if several and len(facts.channels.sequences) != len(files):
        raise InputError(
            f'{file}: {len(files)} images in {_short(entry)}, but "channel_names" names '
            f"{len(facts.channels.names)}; name each sequence"
        )
    name = unicodedata.normalize("NFC", str(entry.get("name") or case_name(files[0])))
    if problem := problem_of_name(name):
        raise InputError(f"{file}: case {name!r}: {problem}")
    scan = (
        SequenceFiles(files, facts.channels.sequences)
        if several
        else _numbered(files[0], facts.channels) or facts.channels.image(files[0])
    )
    for path in (*_files_of(scan), label):
        if path is not None and not path.exists():
            link = path.is_symlink()
            remedy = "a link that leads nowhere; fetch the file" if link else "missing; add the file"
            raise InputError(f"{path}: listed in {file.name}, but {remedy} or remove the entry")
    return name, scan, label


def _numbered(image: Path, stated: StatedChannels) -> Image | None:
    """The files of sequences that are listed without their numbers, as nnU-Net v1 has them; None if it is one file."""
    count = max(1, len(stated.names))
    files = tuple(
        image.with_name(f"{stem(image)}_{number:04d}{image.name[len(stem(image)) :]}") for number in range(count)
    )
    if os.path.lexists(image) or not files[0].exists():
        return None
    return SequenceFiles(files, stated.sequences) if isinstance(stated.image(files[0]), SequenceFiles) else files[0]


def _listed_path(folder: Path, file: Path, entry: Mapping[str, Any], part: str) -> Path | None:
    """The path in an entry of a list; some programs write a list of one path. None if there is none."""
    stated = entry.get(part)
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    if stated is None or stated == [] or stated == "":
        return None
    if not isinstance(stated, str):
        raise UnsupportedInput(f'{file}: "{part}" must be one path, is {stated!r}; list one file for each case')
    path = Path(stated)
    if not checked_path(folder / path).exists() and "\\" in stated:
        path = Path(stated.replace("\\", "/"))
    if PureWindowsPath(stated).anchor or path.is_absolute() or ".." in path.parts:
        raise InputError(f"{file}: {stated} is outside the folder; list files inside it, relative to it")
    return folder / path


def _patients(facts: _Facts, pairs: list[_Pair], choices: Mapping[str, SeriesChoice]) -> dict[str, str]:
    """The patient of each case by dataset.json; without it, cases of equal DICOM patient ID bear the first one's name.

    So neither an ID nor a digest of it reaches a record.
    """
    stated = _by_case(facts, "patient")
    missing = sorted({name for name, _, _ in pairs} - stated.keys())
    if stated and missing:
        raise InputError(
            f'{facts.file}: no "patient" for {", ".join(missing[:5])}; add them, so that no patient is in both '
            "the labelled and the test cases"
        )
    if stated:
        return {case: str(patient) for case, patient in stated.items()}
    dicom = sorted((name, image) for name, image, _ in pairs if isinstance(image, Path) and is_dicom_case(image))
    identities = {name: dicom_patient(image, choices[name]) for name, image in dicom}
    first: dict[str, str] = {}
    return {name: first.setdefault(identity, name) for name, identity in identities.items() if identity}


def _choices(facts: _Facts, pairs: list[_Pair], chosen: SeriesChoice) -> dict[str, SeriesChoice]:
    """Series and tolerance of each case: those chosen for all, else those of dataset.json.

    Without them, a case has the series that its DICOM segmentation refers to.
    """
    tolerance = chosen.slice_tolerance
    if tolerance is None:
        tolerance = facts.content.get("slice_tolerance")
    if tolerance is not None and not (type(tolerance) in (int, float) and 0 <= tolerance < float("inf")):
        raise InputError(f"slice tolerance {tolerance!r} is not a length in mm; give a number from 0")
    stated = {case: str(series) for case, series in _by_case(facts, "series").items()}
    return {
        name: SeriesChoice(chosen.series or stated.get(name) or _labelled_series(image, label), tolerance)
        if isinstance(image, Path) and is_dicom_case(image)
        else SeriesChoice()
        for name, image, label in pairs
    }


def _labelled_series(image: Path, label: Path | None) -> str | None:
    """The series of a DICOM folder or archive that the label map refers to, if it is a DICOM segmentation."""
    if label is None or is_scan(label):
        return None
    uid = referenced_series(label)
    return uid if uid and dicom_has_series(image, uid) else None


def _by_case(facts: _Facts, entry: str) -> dict[str, Any]:
    stated = facts.content.get(entry, {})
    if not isinstance(stated, dict):
        raise InputError(f'{facts.file}: "{entry}" must be {{case: value}}; correct it')
    return {unicodedata.normalize("NFC", case): value for case, value in stated.items()}


def _scan_labels(cases: tuple[Case, ...]) -> Labels | None:
    """The values in the references, for cohorts without label names. A file that cannot be read fails later."""
    references = [case for case in cases if isinstance(case.reference, Path)]
    ignore = references[0].ignore if references else None
    labels, failure = labels_in([case.reference for case in references if isinstance(case.reference, Path)], ignore)
    if failure and labels is None:
        raise failure
    return labels


def _with_labels(case: Case, labels: Labels | None) -> Case:
    return replace(case, labels=labels)
