"""Cases and cohorts: scans with their references, in memory or in files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from handful.data.formats import read_geometry, read_label_map, read_volume, require_known
from handful.data.volume import Geometry, LabelMap, Labels, Volume, require_finite
from handful.errors import InputError, SettingsError
from handful.jobs.digests import Digest, digest_of, digest_of_file

HEADERS = (".mhd", ".nhdr")
"""Suffixes of files that hold a header, and the voxels in a second file."""


@dataclass(frozen=True)
class Case:
    """One image, in memory or in a file, with the reference somebody drew on it, if any."""

    name: str
    image: Volume | Path
    reference: LabelMap | Path | None = None
    labels: Labels | None = None
    """The labels the reference may hold; None takes those it does hold."""
    patient: str | None = None
    """Who was scanned, where one person has several cases; None takes each case for its own patient."""
    modality: str | None = None
    ignore: int | None = None
    """Value of unlabelled voxels in the reference's file."""

    def read_image(self) -> Volume:
        """The image, verified."""
        return self._verified(self.image if isinstance(self.image, Volume) else read_volume(self.image))

    def read_image_and_digest(self) -> tuple[Volume, str]:
        """The image and its `image_digest`, the file read once for both wherever its format allows it."""
        if (file := self._own_file) is not None:
            digest = Digest()
            return self._verified(read_volume(file, digest=digest)), digest.hex()
        volume = self.read_image()
        return volume, _digest_of_volume(volume)

    def image_digest(self) -> str:
        """SHA-256 of the image's file; of voxels and grid where these are in memory, or in a second file."""
        file = self._own_file
        return _digest_of_volume(self.read_image()) if file is None else digest_of_file(file)

    @property
    def _own_file(self) -> Path | None:
        """The one file that holds the whole image."""
        return self.image if isinstance(self.image, Path) and self.image.suffix.lower() not in HEADERS else None

    def read_reference(self, geometry: Geometry | None = None) -> LabelMap | None:
        """The reference, verified and on the image's very grid; None where there is none.

        `geometry` is that of the image, where it is known; else the image's header is read. Raises GeometryMismatch
        where the reference's grid is another one (headers may differ by half a voxel), LabelError where it holds other
        values than `labels`.
        """
        if self.reference is None:
            return None
        if isinstance(self.reference, LabelMap):
            known = self.reference
            require_known(known.array, self.labels or known.labels, f"case {self.name!r}")
        else:
            known = read_label_map(self.reference, self.labels, self.ignore)
        geometry = geometry or self.read_geometry()
        what = f"case {self.name!r}: image and labels" + _beside(self.image, self.reference)
        geometry.require_same(known.geometry, what)
        return LabelMap(known.array, geometry, self.labels or known.labels)

    def _verified(self, volume: Volume) -> Volume:
        require_finite(volume.array, f"case {self.name!r}")
        return replace(volume, modality=self.modality or volume.modality)

    @property
    def is_in_files(self) -> bool:
        """Whether image or reference must be read from a file."""
        return isinstance(self.image, Path) or isinstance(self.reference, Path)

    def read_geometry(self) -> Geometry:
        """The image's grid, without its voxels."""
        return self.image.geometry if isinstance(self.image, Volume) else read_geometry(self.image)


@dataclass(frozen=True)
class Cohort:
    """Cases of one task."""

    cases: tuple[Case, ...]
    labels: Labels | None
    """None where no case has a reference."""
    name: str

    def __post_init__(self) -> None:
        names = [case.name for case in self.cases]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"cohort {self.name!r}: several cases called {', '.join(double)}; give each its own name")

    def split(self, shots: int, seed: int) -> tuple[list[Case], list[Case]]:
        """`shots` labelled cases of different patients, and all cases of the other patients.

        The split depends on seed and names only, never on the order of cases; a larger split contains the smaller one.
        Further cases of a drawn patient are in neither list: they would leak.
        """
        groups: dict[str, list[Case]] = {}
        for case in sorted(self.cases, key=lambda case: _rank(case.name, seed)):
            groups.setdefault(_patient(case), []).append(case)
        labelled = {who: [c for c in cases if c.reference is not None] for who, cases in groups.items()}
        candidates = sorted((who for who in groups if labelled[who]), key=lambda who: _rank(who, seed))
        if not 1 <= shots <= len(candidates):
            raise SettingsError(
                f"cohort {self.name!r}: cannot split {shots} of {len(candidates)} labelled patients; ask for fewer"
            )
        drawn = candidates[:shots]
        rest = [case for case in self.cases if _patient(case) not in drawn]
        return [labelled[who][0] for who in drawn], sorted(rest, key=lambda case: case.name)


def _digest_of_volume(volume: Volume) -> str:
    grid = f"{volume.array.dtype}{volume.array.shape}{volume.geometry.affine.tolist()}"
    return digest_of(volume.array, grid)


def _patient(case: Case) -> str:
    return case.name if case.patient is None else f"patient {case.patient}"


def _rank(name: str, seed: int) -> bytes:
    """A position in the seed's order of all names there could be."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _beside(image: Volume | Path, reference: LabelMap | Path) -> str:
    """Both file names, where there are files."""
    files = [str(part) for part in (image, reference) if isinstance(part, Path)]
    return f" ({', '.join(files)})" if files else ""
