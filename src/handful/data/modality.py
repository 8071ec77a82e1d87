"""What kind of scan it is: by its DICOM tag, by dataset.json, or by its voxels, in this order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ModalityEvidence:
    """What each source says about the kind of a scan."""

    tag: str | None
    """Of the DICOM header, as far as the file kept it."""
    declared: str | None
    """In dataset.json, or by the program that made the case."""
    shift: float | None
    """Constant that was added to Hounsfield units in the voxels; None if they are not those of a CT."""
    sequences: tuple[str, ...] = ()
    """Names of the sequences of a scan that has several; such a scan has no single kind."""

    @cached_property
    def is_ct(self) -> bool:
        """What the strongest source says; the voxels count only if the others are silent."""
        if self.sequences:
            return False
        stated = self.tag or self.declared
        return self.shift is not None if stated is None else is_ct_by_name(stated)

    def __str__(self) -> str:
        """For example 'CT by its voxels, stored as Hounsfield units + 1024'."""
        if self.sequences:
            return f"{len(self.sequences)} sequences: {', '.join(self.sequences)}"
        units = f", stored as Hounsfield units{_plus(self.shift)}" if self.is_ct and self.shift is not None else ""
        if self.tag:
            return f"{self.tag} by its DICOM tag{units}"
        if self.declared:
            return f"{self.declared} by dataset.json{units}"
        if self.is_ct:
            return f"CT by its voxels{units}"
        return "of unknown modality, and by its voxels not a CT in Hounsfield units"

    def disagreements(self) -> Iterator[str]:
        """A sentence for each pair of sources that contradict each other."""
        if self.tag and self.declared and is_ct_by_name(self.tag) != is_ct_by_name(self.declared):
            yield f"the DICOM tag says {self.tag}, dataset.json says {self.declared}; the tag is used"
        named, source = (self.tag, "the DICOM tag") if self.tag else (self.declared, "dataset.json")
        if named and not is_ct_by_name(named) and self.shift is not None:
            yield (
                f"{source} says {named}, but the voxels have the peaks of a CT in Hounsfield units{_plus(self.shift)}; "
                f"{source} is used, so correct it if it is wrong"
            )
        if named and is_ct_by_name(named) and self.shift is None:
            yield (
                f"{source} says {named}, but the voxels lack the peaks of air and soft tissue of a CT; convert them to "
                "Hounsfield units, or choose a window (--set slicer.window=LOW,HIGH)"
            )


def is_ct_by_name(modality: str) -> bool:
    """Whether a modality or the name of a sequence is that of a CT."""
    return modality.upper().startswith("CT")


def _plus(shift: float) -> str:
    return f" + {shift:g}" if shift else ""
