"""Label maps as DICOM segmentations (DICOM-SEG), by highdicom: frames in the planes of the scan that they refer to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handful.data.dicom.headers import Header
from handful.data.dicom.segments import LONGEST_NAME
from handful.data.dicom.series import ONLY_SERIES, SeriesChoice, opened, stack_of
from handful.data.dicom.sources import Bounded, refusing
from handful.data.dicom.stack import Stack
from handful.data.dicom.terms import Code, Term, standard_term
from handful.data.label_colours import label_colours
from handful.data.label_values import renumbered
from handful.data.volume import IGNORE, LabelMap
from handful.errors import HandfulError, LabelError, UnsupportedInput
from handful.jobs.atomic import replacing

Encoding = Literal["BINARY", "LABELMAP"]
"""One bit per voxel and segment, which all viewers read; or one number per voxel (DICOM 2023b), which few read yet."""
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of patient and study that every image must have, if without a value."""
MANUAL = "manual"
"""In place of a method, for labels that are not a model's."""
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@dataclass(frozen=True)
class Maker:
    """What made a segmentation, for its header."""

    method: str = MANUAL
    """The method of the model; empty if it is unknown, `MANUAL` for labels by hand, which state no algorithm."""
    model: str = ""
    """The SHA-256 of the model; empty if it is unknown."""

    @property
    def name(self) -> str:
        """The program and the method."""
        return f"handful {self.method}".rstrip()[:LONGEST_NAME]

    @property
    def by_hand(self) -> bool:
        """Whether these are labels by hand."""
        return self.method == MANUAL

    @property
    def description(self) -> str:
        """What the segmentation is."""
        return "Labels finished by a person" if self.by_hand else "Segmentation by handful, to be checked"


@dataclass(frozen=True)
class SegmentationStyle:
    """How label maps become DICOM segmentations."""

    encoding: Encoding = "BINARY"
    terms: Mapping[str, Term] = field(default_factory=dict)
    """Coded terms by label name. Others get that of `standard_term`."""
    maker: Maker = Maker()


BINARY = SegmentationStyle()
"""One bit per voxel and segment, standard terms."""


def write_segmentation(
    path: Path,
    label_map: LabelMap,
    scan: Path,
    choice: SeriesChoice = ONLY_SERIES,
    style: SegmentationStyle = BINARY,
) -> None:
    """Write the label map of a DICOM scan as a DICOM segmentation, completely or not at all.

    `label_map` lies on the grid of the scan (voxels (i, j, k)); `scan` and `choice` are those it was read by. Each
    frame has position and orientation of its source image, and refers to it. Patient and study are copied from the
    scan. Segments are numbered 1, 2, … in the order of the labels; in a LABELMAP they have the values of the labels.
    Their recommended colours are those of handful's pictures. Names of segments have 64 letters; longer ones are cut.
    Frames without a label are left out. The UIDs follow from scan, model and voxels, so the same result has the same
    ones. (DICOM PS3.3, A.51.)

    Raises GeometryMismatch if the grids differ, LabelError for unlabelled voxels and for names that are equal once they
    are cut, UnsupportedInput if the scan lacks what a segmentation must refer to.
    """
    if find_spec("highdicom") is None:
        raise UnsupportedInput(f"{path}: writing DICOM needs highdicom; run pip install 'handful[dicom]'")
    if (label_map.array == IGNORE).any():
        raise LabelError(f"{path}: DICOM-SEG cannot store unlabelled voxels ({IGNORE}); write .nii.gz")
    require_own_names(label_map.labels.names)
    with opened(scan) as sources, _clear(scan):
        found = stack_of(scan, sources, choice)
        found.geometry.require_same(label_map.geometry, f"{scan} and its label map")
        images, planes = _aligned(found, _images(scan, found), label_map.array)
        segmentation = _segmentation(images, planes, label_map, style)
    with replacing(path) as temporary:
        segmentation.save_as(temporary, enforce_file_format=True)


def require_own_names(names: Iterable[str]) -> None:
    """Raise LabelError for names that are equal once DICOM-SEG has cut them."""
    counts = Counter(name[:LONGEST_NAME] for name in names)
    if equal := [name for name, count in counts.items() if count > 1]:
        raise LabelError(
            f"DICOM-SEG has {LONGEST_NAME} letters for a name, and several labels begin with {equal[0]!r}; shorten "
            "their names in dataset.json and fit again, or write .nii.gz"
        )


@contextmanager
def _clear(scan: Path) -> Iterator[None]:
    """UnsupportedInput in place of any error that highdicom raises; its text may quote the header."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HandfulError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UnsupportedInput(
            f"{scan}: its headers lack what a DICOM-SEG must refer to ({type(error).__name__}); write .nii.gz instead"
        ) from None


def _images(scan: Path, found: Stack) -> list[Any]:
    """The headers of the source images in the order of the slices, with equal values where the stack allows noise."""
    headers = list({id(header): header for header, _ in found.slices}.values())
    if len(headers) > 1 and any(len(header.frames) > 1 for header in headers):
        raise UnsupportedInput(f"{scan}: a series of several multi-frame files; DICOM-SEG refers to one: write .nii.gz")
    images = [_image(scan, header) for header in headers]
    if not found.is_picture:
        if not images[0].get("FrameOfReferenceUID"):
            raise UnsupportedInput(f"{scan}: no FrameOfReferenceUID, which a DICOM-SEG must state; write .nii.gz")
        for image in images:
            _settle(image, found)
    return images


def _image(scan: Path, header: Header) -> Any:
    from pydicom import dcmread

    where = f"{scan}: {header.source.name}"
    with header.source.open() as file, refusing(where, "unreadable DICOM header"):
        image = dcmread(Bounded(file, header.source.size), stop_before_pixels=True)
    for keyword in _NEEDED:
        if not image.get(keyword):
            raise UnsupportedInput(f"{where}: no {keyword}, which a DICOM-SEG must refer to; write .nii.gz instead")
    for keyword in _MAY_BE_EMPTY:
        if keyword not in image:
            setattr(image, keyword, None)
    return image


def _settle(image: Any, found: Stack) -> None:
    """Give an image the orientation and the slice spacing of the stack, which vary by rounding from file to file."""
    from pydicom.dataset import Dataset

    _, frame = found.slices[0]
    gap = float(f"{found.geometry.spacing[2]:.10g}")
    assert frame.orientation is not None
    assert frame.spacing is not None
    if "PerFrameFunctionalGroupsSequence" not in image:
        image.ImageOrientationPatient, image.PixelSpacing = list(frame.orientation), list(frame.spacing)
        image.SpacingBetweenSlices = gap
        image.SliceThickness = image.get("SliceThickness") or gap
        return
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = list(frame.orientation)
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = list(frame.spacing), gap, gap
    if not image.get("SharedFunctionalGroupsSequence"):
        image.SharedFunctionalGroupsSequence = [Dataset()]
    shared = image.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]


def _aligned(found: Stack, images: list[Any], array: NDArray[Any]) -> tuple[list[Any], NDArray[Any]]:
    """Images, and planes (slices, rows, columns) such that each belongs to an image, or to a frame of the only one."""
    planes = array.transpose(2, 1, 0)
    frames = found.slices[0][0].frames
    if len(frames) > 1:
        place = {id(frame): index for index, (_, frame) in enumerate(found.slices)}
        planes = planes[[place[id(frame)] for frame in frames]]
    elif not planes.any():
        return images[:1], planes[:1]  # a frame per segment has to be there
    return images, planes


def _segmentation(images: Sequence[Any], planes: NDArray[Any], label_map: LabelMap, style: SegmentationStyle) -> Any:
    from highdicom.seg import Segmentation

    labels = label_map.labels
    numbers = labels.values if style.encoding == "LABELMAP" else tuple(range(1, len(labels) + 1))
    if max(numbers) >= 2**16:
        raise UnsupportedInput(
            f"label value {max(numbers)}: a DICOM label map holds values up to 65,535; write BINARY (dicom-seg)"
        )
    pixels = renumbered(np.ascontiguousarray(planes), dict(zip(labels.values, numbers, strict=True)))
    pixels = pixels.astype(np.uint8 if max(numbers) < 256 else np.uint16)
    first = images[0]
    number = first.get("SeriesNumber")
    return Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=style.encoding,
        segment_descriptions=[
            _description(one, name, colour, style)
            for one, (_, name, colour) in zip(numbers, label_colours(labels), strict=True)
        ],
        series_instance_uid=_uid("series", first.SeriesInstanceUID, pixels, labels.names, style),
        series_number=min(int(number or 0) + 1000, 2**31 - 1),
        sop_instance_uid=_uid("instance", first.SeriesInstanceUID, pixels, labels.names, style),
        instance_number=1,
        manufacturer="handful",
        manufacturer_model_name="handful",
        software_versions=version("handful"),
        device_serial_number=style.maker.model[:16] or "none",
        content_label="SEGMENTATION",
        content_description=style.maker.description,
        series_description=style.maker.name,
    )


def _description(number: int, name: str, colour: str, style: SegmentationStyle) -> Any:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    term = style.terms.get(name) or standard_term(name)
    maker = style.maker
    return SegmentDescription(
        segment_number=number,
        segment_label=name[:LONGEST_NAME],
        segmented_property_category=_coded(term.category),
        segmented_property_type=_coded(term.type),
        algorithm_type="MANUAL" if maker.by_hand else "AUTOMATIC",
        algorithm_identification=None if maker.by_hand else _algorithm(maker),
        display_color=CIELabColor.from_string(colour),
    )


def _algorithm(maker: Maker) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    return AlgorithmIdentificationSequence(
        name=maker.name,
        family=codes.cid7162.ArtificialIntelligence,
        version=version("handful"),
        parameters={"model_sha256": maker.model} if maker.model else None,
    )


def _coded(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def _uid(what: str, series: str, pixels: NDArray[Any], names: Sequence[str], style: SegmentationStyle) -> str:
    """A UID (2.25.…, from 128 bits) that is the same for the same result."""
    terms = sorted(style.terms.items())
    facts = map(str, (what, series, style.encoding, style.maker, terms, names, version("handful"), pixels.shape))
    digest = hashlib.sha256("\n".join(facts).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return f"2.25.{int.from_bytes(digest.digest()[:16])}"
