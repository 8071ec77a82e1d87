"""Which files of a folder are sequences of one scan: by nnU-Net's numbers at the end of names, or by a fourth axis."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handful.data.inventory import Listing
from handful.data.sequences import SequenceFiles, different_names

NUMBERED = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)
"""The name of a file of one sequence in nnU-Net's layout: name of the case, and number of the sequence."""
PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")

AS_NIFTI = (
    "sequences are not read from DICOM: convert each series to NIfTI (for example with dcm2niix), and name the files "
    "CASE_0000.nii.gz, CASE_0001.nii.gz"
)
"""Why DICOM series next to scans with several sequences are left out, and how to use them."""

Image = Path | SequenceFiles


@dataclass(frozen=True)
class StatedChannels:
    """The names of the channels of all scans, as stated."""

    names: tuple[str, ...]
    """Names of the channels; a single one is the modality; empty if nothing is stated."""
    where: str
    """Where they are stated, for messages."""

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences if there are several."""
        return different_names(self.names) if len(self.names) > 1 else ()

    def image(self, path: Path) -> Image:
        """A file that holds a whole scan: its sequences along a fourth axis, if several are stated.

        Three channels of a picture are its colours.
        """
        if not self.sequences or (len(self.names) == 3 and path.name.lower().endswith(PICTURES)):
            return path
        return SequenceFiles((path,), self.sequences)


def are_numbered(names: Collection[str], labelled: Collection[str], stated: StatedChannels) -> bool:
    """Whether the scans of a folder outside of nnU-Net's layout are numbered sequences.

    Either their number is that of the stated names, or the label maps have the names without numbers, and each has the
    same sequences. `names` are those of the scans, `labelled` those of the label maps.
    """
    matches = [NUMBERED.fullmatch(name) for name in names]
    if not matches or not all(matches) or not set(labelled).isdisjoint(names):
        return False
    numbers: dict[str, set[str]] = {}
    for match in matches:
        assert match is not None
        numbers.setdefault(match[1], set()).add(match[2])
    most = {f"{number:04d}" for number in range(max(map(len, numbers.values())))}
    if len(most) < 2 or most != set().union(*numbers.values()):
        return False
    if stated.names:
        return len(most) == len(stated.names)
    return bool(labelled) and set(labelled) <= numbers.keys() and all(most == found for found in numbers.values())


def not_in_dicom(stated: StatedChannels) -> str | None:
    """Why DICOM series are left out, if names state several sequences; three colours are those of DICOM pictures."""
    if not stated.sequences or {name[:1].lower() for name in stated.names} == set("rgb"):
        return None
    names = ", ".join(stated.names)
    return f"a DICOM series, but {stated.where} names {len(stated.names)} sequences ({names}); {AS_NIFTI}"


def grouped(images: Listing, stated: StatedChannels) -> dict[str, Image]:
    """The scans of numbered files by the name of their case; a case without one of the sequences is left out.

    Without stated names, the sequences are called by their numbers.
    """
    files: dict[str, dict[str, Path]] = {}
    for name, path in images.scans.items():
        match = NUMBERED.fullmatch(name)
        if match is None:
            images.leave_out(path, "no channel at the end of the name, such as _0000 in nnU-Net's imagesTr/; rename it")
        else:
            files.setdefault(match[1], {})[match[2]] = path
    numbers = sorted({number for found in files.values() for number in found})
    colours = [path for found in files.values() for path in found.values() if _is_colour(path, stated)]
    if colours and numbers == ["0000"]:
        return {case: found["0000"] for case, found in files.items()}
    names = _names(numbers, stated)
    return _complete(images, files, names, stated)


def _is_colour(path: Path, stated: StatedChannels) -> bool:
    return len(stated.names) == 3 and path.name.lower().endswith(PICTURES)


def _names(numbers: Sequence[str], stated: StatedChannels) -> dict[str, str]:
    """The name of each numbered sequence."""
    if not stated.names:
        return {number: number for number in numbers}
    names = stated.sequences or stated.names
    return {f"{number:04d}": name for number, name in enumerate(names)}


def _complete(
    images: Listing, files: Mapping[str, Mapping[str, Path]], names: Mapping[str, str], stated: StatedChannels
) -> dict[str, Image]:
    """The cases that have all sequences; the files of others, and those of other numbers, are left out."""
    complete: dict[str, Image] = {}
    for case, found in files.items():
        for number in sorted(found.keys() - names.keys()):
            images.leave_out(
                found[number],
                f"sequence {number}, but {stated.where} names {len(names)} ({', '.join(names.values())}); "
                "name all sequences there, or remove the file",
            )
        known = {number: path for number, path in found.items() if number in names}
        missing = [number for number in names if number not in found]
        if not missing:
            ordered = tuple(known[number] for number in names)
            complete[case] = ordered[0] if len(ordered) == 1 else SequenceFiles(ordered, tuple(names.values()))
        elif known:
            images.leave_out(next(iter(known.values())), _why_incomplete(case, missing, names))
    return complete


def _why_incomplete(case: str, missing: Sequence[str], names: Mapping[str, str]) -> str:
    called = ", ".join(
        f"{case}_{number}" + ("" if names[number] == number else f" ({names[number]})") for number in missing
    )
    return f"the sequence {called} of this case is missing, so the case is left out; add it, or remove the case's files"
