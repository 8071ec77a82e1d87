"""Small DICOM series for tests, written by pydicom: regular ones, and one for each fault."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from handful.data.volume import Volume

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY = "1.2.3"
ROWS, COLUMNS, SLICES = 8, 10, 6
NAME, IDENTITY = "Doe^Jane^Secret", "MRN-7731-SECRET"
"""Of the patient in every series: neither may be in a message or a record."""

AXIAL = np.eye(3)
ORIENTATIONS = [
    np.array([np.eye(3)[axis] * sign for axis, sign in zip(order, signs, strict=True)])
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
"""All 48 ways to lay rows, columns and slices along the axes of the patient; half of them are left-handed."""


def image(
    pixels: NDArray[Any],
    *,
    position: Sequence[float] | None = (0.0, 0.0, 0.0),
    axes: NDArray[Any] = AXIAL,
    series: str = "1.2.3.4",
    number: int = 1,
    modality: str = "CT",
    **changes: Any,
) -> FileDataset:
    """One image; `changes` are attributes to set, or to leave out if None."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CT
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CT, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = NAME, IDENTITY
    data.StudyInstanceUID, data.StudyDate, data.StudyTime = STUDY, "20260102", "101112"
    data.SeriesInstanceUID, data.SeriesNumber, data.SeriesDescription = series, number, f"series {number}"
    data.Modality, data.FrameOfReferenceUID, data.ImageType = modality, "1.2.9", ["ORIGINAL", "PRIMARY", "AXIAL"]
    set_pixels(data, pixels)
    data.PixelSpacing, data.SliceThickness = [0.75, 0.5], 3.0
    if position is not None:
        data.ImagePositionPatient = [float(part) for part in position]
        data.ImageOrientationPatient = [float(part) for part in axes[:2].ravel()]
    for keyword, value in changes.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return data


def set_pixels(data: Dataset, pixels: NDArray[Any]) -> None:
    """Put native pixels (rows, columns), (rows, columns, 3) or (frames, rows, columns) into a data set."""
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    data["PixelData"].VR = "OW" if bits > 8 else "OB"


def voxels(slices: int = SLICES, dtype: Any = np.int16) -> NDArray[Any]:
    """All different, (slices, rows, columns)."""
    return np.arange(slices * ROWS * COLUMNS, dtype=dtype).reshape(slices, ROWS, COLUMNS)


def series(
    slices: int = SLICES, gap: float = 3.0, axes: NDArray[Any] = AXIAL, dtype: Any = np.int16, **changes: Any
) -> list[FileDataset]:
    """A regular series; the slices lie along axes[2]."""
    origin = np.array([-12.5, 7.25, 40.0])
    return [
        image(pixels, position=origin + index * gap * axes[2], axes=axes, **changes)
        for index, pixels in enumerate(voxels(slices, dtype))
    ]


def write(folder: Path, images: Sequence[FileDataset], names: Sequence[str] | None = None) -> Path:
    """Write images in a shuffled order of names, without suffixes; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(images):
        name = names[index] if names else f"IM{(index * 5 + 3) % 7 + 7 * (index // 7):04d}"
        data.save_as(folder / name, enforce_file_format=True)
    return folder


def zipped(folder: Path) -> Path:
    """The folder's files in an archive next to it."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


def compressed(data: FileDataset, encoding: str) -> FileDataset:
    """The same image with compressed pixels."""
    pixels = data.pixel_array
    uid, content = {
        "jpeg": ("1.2.840.10008.1.2.4.50", lambda: imagecodecs.jpeg8_encode(pixels, level=100)),
        "jpeg lossless": ("1.2.840.10008.1.2.4.70", lambda: imagecodecs.ljpeg_encode(pixels, bitspersample=16)),
        "jpeg-ls": ("1.2.840.10008.1.2.4.80", lambda: imagecodecs.jpegls_encode(pixels)),
        "jpeg 2000": (
            "1.2.840.10008.1.2.4.90",
            lambda: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0),
        ),
        "rle": ("1.2.840.10008.1.2.5", None),
    }[encoding]
    if content is None:
        data.compress(uid, encoding_plugin="pydicom", generate_instance_uid=False)
        return data
    encoded = bytes(content())
    data.PixelData = encapsulate([encoded + b"\0" * (len(encoded) % 2)])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = uid
    return data


def enhanced(slopes: Sequence[float], order: Sequence[int] | None = None) -> FileDataset:
    """An enhanced multi-frame MR with a rescale per frame; `order` is that of its frames in the file."""
    order = order or range(len(slopes))
    data = image(voxels(len(slopes))[list(order)], position=None, modality="MR", PixelSpacing=None, SliceThickness=None)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    data.NumberOfFrames = len(slopes)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=[0.75, 0.5], SliceThickness=3.0)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1.0, 0, 0, 0, 1.0, 0])
    data.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for index in order:
        frame = Dataset()
        frame.PlanePositionSequence = _item(ImagePositionPatient=[1.0, 2.0, 3.0 * index])
        frame.PixelValueTransformationSequence = _item(RescaleSlope=slopes[index], RescaleIntercept=1, RescaleType="US")
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    return data


def _item(**attributes: Any) -> Items:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Items([item])


def contours(structures: Mapping[str, Sequence[NDArray[Any]]], kind: str = "CLOSED_PLANAR") -> FileDataset:
    """An RTSTRUCT for the series 1.2.3.4; contours are corners (n, 3) in LPS mm."""
    data = image(np.zeros((1, 1), np.uint8), position=None, modality="RTSTRUCT", series="1.2.3.99")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData", "FrameOfReferenceUID"):
        delattr(data, keyword)
    series = _item(SeriesInstanceUID="1.2.3.4")
    study = _item(RTReferencedSeriesSequence=series)
    data.ReferencedFrameOfReferenceSequence = _item(FrameOfReferenceUID="1.2.9", RTReferencedStudySequence=study)
    names, found = [], []
    for number, (name, outlines) in enumerate(structures.items(), start=7):
        names += _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID="1.2.9")
        drawn = [
            _item(
                ContourGeometricType=kind,
                NumberOfContourPoints=len(one),
                ContourData=[f"{value:.9g}" for value in one.ravel()],
            )[0]
            for one in outlines
        ]
        found += _item(ReferencedROINumber=number, ContourSequence=Items(drawn))
    data.StructureSetROISequence, data.ROIContourSequence = Items(names), Items(found)
    return data


def of_volume(volume: Volume, **changes: Any) -> list[FileDataset]:
    """The slices of a grey volume whose axes are right-handed, values rounded to 16 bits."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.affine
    spacing = volume.geometry.spacing
    changes = {"PixelSpacing": [float(spacing[1]), float(spacing[0])], **changes}
    return [
        image(
            np.ascontiguousarray(np.rint(volume.array[0, :, :, k]).astype(np.int16).T),
            position=(affine @ [0, 0, k, 1])[:3],
            axes=(affine[:3, :3] / spacing).T,
            **changes,
        )
        for k in range(volume.geometry.shape[2])
    ]
