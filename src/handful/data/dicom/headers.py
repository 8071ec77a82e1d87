"""The headers of DICOM files: what places, scales and encodes each frame, checked, and no name of a patient."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handful.data.dicom.sources import Bounded, Source, is_dicom_start, refusing
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.plain_text import counted

ENCODINGS = {
    **{f"1.2.840.10008.1.2{end}": "native" for end in ("", ".1", ".2")},
    **{f"1.2.840.10008.1.2.4.{n}": "JPEG" for n in (50, 51, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{n}": "JPEG-LS" for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": "JPEG 2000" for n in (90, 91, 201, 202, 203)},
    "1.2.840.10008.1.2.5": "RLE",
}
"""Transfer syntaxes that are read, and the kind of their pixel data."""
_STANDARD = "1.2.840.10008."
"""Start of the identifiers that the standard defines."""
_DEFLATED = "1.2.840.10008.1.2.1.99"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of DICOM-SEG: one bit per segment, and label maps."""
# fmt: off
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "PatientID",
    "IssuerOfPatientID", "FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "PixelSpacingCalibrationType",
    "SpacingBetweenSlices", "SliceThickness", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]
# fmt: on
_MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
"""The sequence of an enhanced object that holds each attribute of a frame."""


@dataclass(frozen=True)
class Frame:
    """One slice: its place in the patient (LPS, mm) and its scale."""

    name: str
    """File, and the number of the frame if the file has several."""
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    """Between rows and between columns."""
    thickness: float
    """Distance to the next slice by the header; 1 if it says nothing."""
    slope: float
    intercept: float
    is_rescaled: bool
    """Whether the header states slope and intercept, or one of them."""


@dataclass(frozen=True)
class Header:
    """One image file. Only `patient`, a digest, comes from the identity of the patient."""

    source: Source
    series: str
    number: int | None
    description: str
    modality: str | None
    patient: str | None
    frame_of_reference: str
    is_scout: bool
    is_mosaic: bool
    """Whether one picture holds many slices side by side, as Siemens stores fMRI and diffusion."""
    encoding: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None
    """Lowest and highest stored value that mean "not scanned"; None for colours, of which no value does."""
    is_calibrated: bool
    """Whether the pixel spacing of a projection is that in the patient, not on the detector."""
    frames: tuple[Frame, ...]

    @property
    def frame_bytes(self) -> int:
        """Bytes of a decoded frame; two colours of pixel pairs are shared in uncompressed YBR_FULL_422."""
        size = self.rows * self.columns * self.samples * self.bits_allocated // 8
        return size * 2 // 3 if self.encoding == "native" and self.photometric == "YBR_FULL_422" else size


def read_header(source: Source, where: str) -> Header | str:
    """The header of an image, or a phrase that says why the file is not one; `where` names the file in errors.

    Raises DamagedFile for values that cannot be, UnsupportedInput for encodings that are not read.
    """
    if source.size < 0:
        return "a link that leads nowhere"
    with source.open() as file:
        content = Bounded(file, source.size)
        start = content.read(132)
        if not is_dicom_start(start):
            if not start or source.name.lower().endswith((".dcm", ".ima")):
                found = "empty" if not start else "not a DICOM file in spite of its name"
                raise DamagedFile(f"{where}: {found}; copy or export it again, or remove it")
            return "not a DICOM file"
        with refusing(where, "unreadable DICOM header"):
            dataset, encoding = _parse(content, where)
            if what := _without_scan(dataset, where):
                return what
            return _header(source, dataset, encoding, where)


def _parse(content: Bounded, where: str) -> tuple[Any, str]:
    """The attributes that are used, without pixels, and the kind of pixel data."""
    from pydicom import dcmread

    encoding = encoding_of(content, where)
    return dcmread(content, stop_before_pixels=True, specific_tags=_TAGS), encoding


def encoding_of(content: Bounded, where: str) -> str:
    """The kind of pixel data, one of ENCODINGS; afterwards `content` is at its start.

    Raises UnsupportedInput for other transfer syntaxes.
    """
    from pydicom.filereader import read_dataset, read_preamble

    content.seek(0)
    read_preamble(content, False)
    meta = read_dataset(content, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = str(meta.get("TransferSyntaxUID", "")).strip()
    if syntax not in ENCODINGS:
        named = f"{syntax[:64]!r} (deflated)" if syntax == _DEFLATED else f"{syntax[:64]!r}"
        raise UnsupportedInput(
            f"{where}: transfer syntax {named} is not read; convert the file to Explicit VR Little Endian, "
            "for example with dcmconv +te or gdcmconv --raw"
        )
    content.seek(0)
    return ENCODINGS[syntax]


def _without_scan(dataset: Any, where: str) -> str | None:
    """What the file is if it is no image, else None. Raises DamagedFile if it should be one."""
    from pydicom.uid import UID

    kind = UID(text_of(dataset, "SOPClassUID"))
    if kind not in SEGMENTATIONS and any(name in dataset for name in ("Rows", "Columns", "BitsAllocated")):
        return None
    unknown = not kind.is_valid or (kind.startswith(_STANDARD) and kind.name == kind)
    if unknown or "Image Storage" in kind.name:
        raise DamagedFile(f"{where}: an image file without an image, so it is truncated; copy the file again")
    return f"a DICOM object without a scan ({kind.name[:64]})"


def _header(source: Source, dataset: Any, encoding: str, where: str) -> Header:
    rows, columns, allocated, stored = (
        whole_number(dataset, name, where, least=1) for name in ("Rows", "Columns", "BitsAllocated", "BitsStored")
    )
    samples = whole_number(dataset, "SamplesPerPixel", where, least=1, default=1)
    photometric = text_of(dataset, "PhotometricInterpretation")
    _require_pixels(
        where, samples, photometric, allocated, stored, whole_number(dataset, "HighBit", where, 0, stored - 1)
    )
    if dataset.get("ModalityLUTSequence"):
        raise UnsupportedInput(f"{where}: grey values go through a table (Modality LUT); export them with a rescale")
    signed = bool(whole_number(dataset, "PixelRepresentation", where, least=0, default=0))
    number = _numbers([dataset], "SeriesNumber", 1, where)
    kind = dataset.get("ImageType") or ()
    kinds = [kind] if isinstance(kind, str) else list(kind)
    return Header(
        source=source,
        series=text_of(dataset, "SeriesInstanceUID"),
        number=int(number[0]) if number else None,
        description=text_of(dataset, "SeriesDescription"),
        modality=text_of(dataset, "Modality") or None,
        patient=_patient(dataset),
        frame_of_reference=text_of(dataset, "FrameOfReferenceUID"),
        is_scout="LOCALIZER" in kinds,
        is_mosaic="MOSAIC" in kinds,
        encoding=encoding,
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        padding=_padding(dataset, signed, allocated, where) if samples == 1 else None,
        is_calibrated=_is_calibrated(dataset, where),
        frames=frames_of(source, dataset, where),
    )


def _require_pixels(where: str, samples: int, photometric: str, allocated: int, stored: int, high: int) -> None:
    grey, colours = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if not ((samples == 1 and photometric in grey) or (samples == 3 and photometric in colours and allocated == 8)):
        raise UnsupportedInput(
            f"{where}: {samples} samples of {photometric[:16]!r} with {allocated} bits per pixel; "
            "export grey values, or RGB with 8 bits"
        )
    if allocated not in (8, 16, 32) or stored > allocated:
        raise UnsupportedInput(f"{where}: {stored} of {allocated} bits per pixel; export 8 or 16 bits")
    if high != stored - 1:
        raise UnsupportedInput(f"{where}: highest bit {high} of {stored} stored bits; export it with bit {stored - 1}")


def _padding(dataset: Any, signed: bool, allocated: int, where: str) -> tuple[int, int] | None:
    values = [_numbers([dataset], f"PixelPadding{part}", 1, where) for part in ("Value", "RangeLimit")]
    stated = [int(value[0]) for value in values if value]
    if not stated or not values[0]:
        return None
    if signed:
        stated = [value - 2**allocated if value >= 2 ** (allocated - 1) else value for value in stated]
    return min(stated), max(stated)


def _is_calibrated(dataset: Any, where: str) -> bool:
    detector = _numbers([dataset], "ImagerPixelSpacing", 2, where)
    if text_of(dataset, "PixelSpacingCalibrationType") or not detector:
        return True
    return _numbers([dataset], "PixelSpacing", 2, where) != detector


def frames_of(source: Source, dataset: Any, where: str) -> tuple[Frame, ...]:
    """Place and scale of each frame, from the header of an image or a segmentation."""
    count = whole_number(dataset, "NumberOfFrames", where, least=1, default=1)
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if own and len(own) != count:
        raise DamagedFile(f"{where}: {counted(count, 'frame')}, but descriptions of {len(own)}; export the file again")
    if not own and count > 1:
        raise UnsupportedInput(
            f"{where}: {count} frames without positions (a film or several views); export single frames as pictures"
        )
    if not own:
        return (_frame([*shared, dataset], source.name, where),)
    return tuple(
        _frame([group, *shared, dataset], f"{source.name} (frame {index})", where)
        for index, group in enumerate(own, start=1)
    )


def _frame(groups: Sequence[Any], name: str, where: str) -> Frame:
    def found(keyword: str, count: int) -> tuple[float, ...] | None:
        return _numbers([*_items(groups, keyword), groups[-1]], keyword, count, where)

    slope, intercept = found("RescaleSlope", 1), found("RescaleIntercept", 1)
    if slope and slope[0] == 0:
        raise DamagedFile(f"{where}: RescaleSlope is 0, which erases the grey values; export the file again")
    gaps = (found("SpacingBetweenSlices", 1), found("SliceThickness", 1))
    return Frame(
        name,
        position=found("ImagePositionPatient", 3),
        orientation=found("ImageOrientationPatient", 6),
        spacing=_positive(found("PixelSpacing", 2), where),
        thickness=next((gap[0] for gap in gaps if gap and gap[0] > 0), 1.0),
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        is_rescaled=bool(slope or intercept),
    )


def _items(groups: Sequence[Any], keyword: str) -> list[Any]:
    """The items of functional groups that may hold an attribute, those of the frame first."""
    return [item for group in groups for item in list(group.get(_MACROS[keyword]) or ())[:1]]


def _positive(spacing: tuple[float, ...] | None, where: str) -> tuple[float, ...] | None:
    if spacing and min(spacing) <= 0:
        raise DamagedFile(f"{where}: PixelSpacing is {_listed(spacing)} mm, but must be positive; correct the header")
    return spacing


def _numbers(places: Sequence[Any], keyword: str, count: int, where: str) -> tuple[float, ...] | None:
    """The values of an attribute in the first place that states it; None if none does."""
    for place in places:
        with refusing(where, f"{keyword} is not a number"):
            value = place.get(keyword)
            if value is None or value == "":
                continue
            parts = [value] if isinstance(value, str | int | float) else list(value)
            values = tuple(float(part) for part in parts)
        if not values:
            continue
        if len(values) != count:
            raise DamagedFile(
                f"{where}: {keyword} has {counted(len(values), 'value')}, not {count}; correct the header"
            )
        if not all(map(math.isfinite, values)):
            raise DamagedFile(f"{where}: {keyword} is {_listed(values)}, not finite; correct the header")
        return values
    return None


def whole_number(dataset: Any, keyword: str, where: str, least: int, default: int | None = None) -> int:
    """An attribute that is a whole number from `least`. Raises DamagedFile otherwise, `where` naming the file."""
    values = _numbers([dataset], keyword, 1, where)
    if values is None and default is not None:
        return default
    if values is None or values[0] < least or values[0] != int(values[0]):
        found = "missing" if values is None else f"{values[0]:g}"
        raise DamagedFile(f"{where}: {keyword} is {found}; export the file again")
    return int(values[0])


def text_of(dataset: Any, keyword: str) -> str:
    """An attribute as text without control characters; "" if it is missing."""
    return "".join(mark for mark in str(dataset.get(keyword) or "") if mark.isprintable()).strip()


def _patient(dataset: Any) -> str | None:
    identity = text_of(dataset, "PatientID")
    return (
        hashlib.sha256(f"{text_of(dataset, 'IssuerOfPatientID')}\n{identity}".encode()).hexdigest()
        if identity
        else None
    )


def _listed(values: Sequence[float]) -> str:
    return " \\ ".join(f"{value:g}" for value in values)
