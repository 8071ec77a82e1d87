"""Cases and cohorts: scans and their reference label maps, in memory or in files."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from handful.data.dicom.segments import require_same_frame
from handful.data.dicom.series import ONLY_SERIES, SeriesChoice
from handful.data.dicom.sources import is_dicom
from handful.data.formats import SUFFIXES, is_scan, read_geometry, read_label_map, read_volume, require_known
from handful.data.hounsfield import hounsfield_shift
from handful.data.modality import ModalityEvidence
from handful.data.sequences import SequenceFiles
from handful.data.volume import Geometry, LabelMap, Labels, Volume, require_finite
from handful.data.voxel_order import in_order_of
from handful.errors import InputError, SettingsError
from handful.jobs.digests import Digest, digest_of, digest_of_file
from handful.jobs.plain_text import counted

HEADERS = (".mhd", ".nhdr")
"""Suffixes of header files whose voxels are in a second file."""


@dataclass(frozen=True)
class Case:
    """One image, in memory or in files, with its reference label map, if it has one.

    An image or a reference that is a string becomes a Path.
    """

    name: str
    image: Volume | str | Path | SequenceFiles
    reference: LabelMap | str | Path | None = None
    labels: Labels | None = None
    """Labels that the reference may contain. None: those it does contain."""
    patient: str | None = None
    """Identifies the patient, for patients with several cases. None: the case is its own patient."""
    modality: str | None = None
    """For example "CT" or "MR", as dataset.json has it; the DICOM tag of a file goes before it."""
    ignore: int | None = None
    """Value of unlabelled voxels in the reference's file."""
    choice: SeriesChoice = ONLY_SERIES
    """Which series of a DICOM folder is the image."""
    background: int = 0
    """Value of voxels labelled as background in the reference's file, where 0 is the value of unlabelled ones."""

    def __post_init__(self) -> None:
        for name in ("image", "reference"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))

    def read_image(self) -> Volume:
        """Read and verify the image. Raises UnsupportedInput if voxels are not finite."""
        if isinstance(self.image, SequenceFiles):
            return self._verified(self.image.read())
        return self._verified(self.image if isinstance(self.image, Volume) else self._read(self.image))

    def read_image_and_digest(self) -> tuple[Volume, str]:
        """The image and its `image_digest`. Each file is read only once where its format allows it."""
        digest = Digest()
        own = self._own_files
        if isinstance(own, SequenceFiles):
            return self._verified(own.read(digest)), digest.hex()
        if own is not None:
            return self._verified(self._read(own, digest)), digest.hex()
        volume = self.read_image()
        return volume, _digest_of_volume(volume)

    def image_digest(self) -> str:
        """SHA-256 of the image file, or of the names and files of its sequences.

        Of voxels and grid if the image is in memory, in a header file with a file of voxels, or DICOM.
        """
        own = self._own_files
        if isinstance(own, SequenceFiles):
            digest = Digest()
            own.add_to(digest)
            return digest.hex()
        return _digest_of_volume(self.read_image()) if own is None else digest_of_file(own)

    @property
    def patient_key(self) -> str:
        """Equal for the cases of one patient. A case without a stated patient is its own."""
        return self.name if self.patient is None else f"patient {self.patient}"

    @property
    def _own_files(self) -> str | Path | SequenceFiles | None:
        """The files that hold the whole image and nothing else; None for images in memory, with header files, DICOM."""
        if isinstance(self.image, Volume) or self.is_dicom:
            return None
        return None if any(file.suffix.lower() in HEADERS for file in self.files) else self.image

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of the image, or those of its sequences; none for an image in memory."""
        if isinstance(self.image, SequenceFiles):
            return self.image.paths
        return (self.image,) if isinstance(self.image, Path) else ()

    @property
    def is_dicom(self) -> bool:
        """Whether the image is a DICOM series, which may be in many files or share its archive with others."""
        if not isinstance(self.image, Path):
            return False
        return self.image.is_dir() or (not self.image.name.lower().endswith(SUFFIXES) and is_dicom(self.image))

    def _read(self, file: str | Path, digest: Digest | None = None) -> Volume:
        choice = self.choice
        return read_volume(file, digest=digest, series=choice.series, slice_tolerance=choice.slice_tolerance)

    def read_reference(self, geometry: Geometry | None = None) -> LabelMap | None:
        """The verified reference on the grid of the image; None if the case has no reference.

        A reference whose voxels are stored in another order or direction is turned.

        `geometry` is that of the image. If it is not given, the image's header is read. Raises GeometryMismatch if the
        grids of image and reference differ by more than half a voxel, LabelError if the reference contains values that
        are not in `labels`.
        """
        if self.reference is None:
            return None
        if isinstance(self.reference, LabelMap):
            label_map = self.reference
            require_known(label_map.array, self.labels or label_map.labels, f"case {self.name!r}")
            geometry = geometry or self.read_geometry()
        else:
            geometry = geometry or self.read_geometry()
            self._require_same_frame(Path(self.reference))
            label_map = read_label_map(self.reference, self.labels, self.ignore, self.background, grid=geometry)
        label_map = in_order_of(label_map, geometry)
        names = f"case {self.name!r}: image and labels" + _file_names(self.files, self.reference)
        geometry.require_same(label_map.geometry, names)
        return LabelMap(label_map.array, geometry, self.labels or label_map.labels)

    def _require_same_frame(self, reference: Path) -> None:
        """Raise GeometryMismatch if a DICOM segmentation belongs to another DICOM series."""
        if isinstance(self.image, Path) and self.is_dicom and not is_scan(reference):
            require_same_frame(reference, self.image, self.choice)

    def modality_evidence(self, image: Volume) -> ModalityEvidence:
        """Evidence from file, data set and voxels for the modality; `image` is the result of `read_image`."""
        if image.sequences:
            return ModalityEvidence(None, None, None, image.sequences)
        from_file = isinstance(self.image, Path)
        tag = image.modality if from_file and image.modality != self.modality else None
        declared = self.modality if from_file else self.modality or image.modality
        return ModalityEvidence(tag, declared, hounsfield_shift(image.array))

    def _verified(self, volume: Volume) -> Volume:
        require_finite(volume.array, f"case {self.name!r}")
        if volume.sequences:
            return volume
        return replace(volume, modality=volume.modality or self.modality)

    def absolute(self) -> Case:
        """The same case with absolute paths, which other processes can read."""
        image, reference = self.image, self.reference
        return replace(
            self,
            image=image.absolute() if isinstance(image, Path | SequenceFiles) else image,
            reference=reference.absolute() if isinstance(reference, Path) else reference,
        )

    @property
    def is_in_files(self) -> bool:
        """Whether image or reference is in a file."""
        return not isinstance(self.image, Volume) or isinstance(self.reference, Path)

    def read_geometry(self) -> Geometry:
        """The image's grid, read without its voxels."""
        if isinstance(self.image, SequenceFiles):
            return self.image.geometry()
        return self.image.geometry if isinstance(self.image, Volume) else read_geometry(self.image, self.choice)


@dataclass(frozen=True)
class LeftOut:
    """A file in the folder of a cohort that is not read, and why."""

    file: str
    """Relative to the folder of the cohort."""
    reason: str
    """What is wrong, and how to fix it."""


@dataclass(frozen=True)
class Cohort:
    """Cases of one task."""

    cases: tuple[Case, ...]
    labels: Labels | None
    """None if no case has a reference."""
    name: str
    left_out: tuple[LeftOut, ...] = ()
    """Files in the folder of the cohort that belong to no case, in the order of their names."""
    files: frozenset[str | Path] = frozenset()
    """Scans and label maps of the folder, also those that are not used. No output may replace them."""

    def __post_init__(self) -> None:
        names = Counter(case.name for case in self.cases)
        if double := sorted(name for name, count in names.items() if count > 1):
            raise InputError(f"cohort {self.name!r}: several cases called {', '.join(double)}; give each its own name")

    def absolute(self) -> Cohort:
        """The same cohort with absolute paths, which other processes can read."""
        return replace(self, cases=tuple(case.absolute() for case in self.cases))

    def split(self, shots: int, seed: int) -> tuple[list[Case], list[Case]]:
        """A random split: `shots` labelled cases of different patients, and all cases of the other patients.

        The split depends on the seed and the names only, not on the order of the cases. With the same seed, a larger
        number of shots contains the cases of a smaller one. Further cases of a chosen patient are in neither list, so
        that no patient is both learned from and tested.
        """
        candidates = self._labelled_patients(seed)
        if not 1 <= shots <= len(candidates):
            raise SettingsError(
                f"cohort {self.name!r}: cannot choose {counted(shots, 'labelled patient')}, there are "
                f"{len(candidates)}; choose fewer"
            )
        chosen = list(candidates)[:shots]
        others = [case for case in self.cases if case.patient_key not in chosen]
        return [candidates[patient] for patient in chosen], sorted(others, key=lambda case: case.name)

    def test_cases(self, shots: int, seed: int, most: int | None = None) -> list[Case]:
        """Cases with a reference of the patients that `split` does not choose, in the order of their names.

        If there are more than `most`, a random part of them: the part depends on the seed, and is mostly the same for
        every number of shots. (The first ones by name may all have the same disease.)
        """
        found = [case for case in self.split(shots, seed)[1] if case.reference is not None]
        if most is None or len(found) <= most:
            return found
        # from the end of the random order: more shots take patients from its start
        place = {patient: number for number, patient in enumerate(self._labelled_patients(seed))}
        found.sort(key=lambda case: (-place[case.patient_key], case.name))
        return sorted(found[:most], key=lambda case: case.name)

    def _labelled_patients(self, seed: int) -> dict[str, Case]:
        """The patients with a reference in the random order of the seed, each with a random labelled case."""
        chosen: dict[str, Case] = {}
        for case in sorted(self.cases, key=lambda case: _rank(case.name, seed)):
            if case.reference is not None:
                chosen.setdefault(case.patient_key, case)
        return {patient: chosen[patient] for patient in sorted(chosen, key=lambda name: _rank(name, seed))}


def _digest_of_volume(volume: Volume) -> str:
    grid = f"{volume.array.dtype}{volume.array.shape}{volume.geometry.affine.tolist()}"
    return digest_of(volume.array, grid, "".join(volume.sequences))


def _rank(name: str, seed: int) -> bytes:
    """A sort key that puts names into a random order, which depends on the seed only."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _file_names(images: tuple[Path, ...], reference: LabelMap | str | Path) -> str:
    """The names of those that are files, in brackets; of several sequences the first."""
    files = [str(part) for part in (*images[:1], reference) if isinstance(part, Path)]
    return f" ({', '.join(files)})" if files else ""
