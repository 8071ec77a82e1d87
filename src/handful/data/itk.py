"""NRRD and MetaImage files by SimpleITK, after the voxels' bytes are verified: ITK misses some damage."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from handful.data.verified import verify_payload
from handful.data.volume import Geometry
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.files import open_file

MODALITY = "0008|0060"
"""Key of the DICOM modality in the headers that ITK writes."""
_MAX_HEADER = 2**16
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_NRRD_BYTES = {"char": 1, "short": 2, "int": 4, "long long": 8, "longlong": 8, "float": 4, "double": 8}


def read_itk(path: Path, max_bytes: int) -> tuple[NDArray[Any], Geometry]:
    """Voxels (1, i, j, k) as stored, and their grid in RAS coordinates."""
    payload = _payload(path)
    verify_payload(payload.file, payload.offset, payload.size, payload.compressed, max_bytes)
    geometry = itk_geometry(path)
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DamagedFile(f"{path}: unreadable ({_reason(error)}); copy the file again") from error
    return array.reshape(geometry.shape[::-1]).transpose(2, 1, 0)[None], geometry


def itk_geometry(path: Path) -> Geometry:
    """The grid, from the header."""
    open_file(path).close()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DamagedFile(f"{path}: unreadable header ({_reason(error)}); copy the file again") from error
    size, dimension = reader.GetSize(), reader.GetDimension()
    if reader.GetNumberOfComponents() != 1:
        raise UnsupportedInput(
            f"{path}: {reader.GetNumberOfComponents()} values per voxel; save one real-valued channel"
        )
    if any(n != 1 for n in size[3:]):
        raise UnsupportedInput(
            f"{path}: {dimension}D, shape {size}, but one volume is expected; split it into 3D files, one per frame"
        )
    affine = np.eye(4)
    axes = min(dimension, 3)
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:axes, :axes]
    affine[:axes, :axes] = direction * np.array(reader.GetSpacing())[:axes]
    affine[:axes, 3] = reader.GetOrigin()[:axes]
    i, j, k = (*size, 1)[:3]
    try:
        return Geometry((i, j, k), _LPS_TO_RAS @ affine)
    except UnsupportedInput as error:
        raise UnsupportedInput(f"{path}: {error}") from error


def itk_modality(path: Path) -> str | None:
    """The DICOM modality (0008,0060), if the program that made the file kept it."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetMetaData(MODALITY).strip() or None if reader.HasMetaDataKey(MODALITY) else None


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write one grey channel, compressed, header and voxels in one file."""
    if array.shape[0] != 1:
        raise UnsupportedInput(
            f"{path}: this format holds one channel, this volume has {array.shape[0]}; write .png instead"
        )
    image = sitk.GetImageFromArray(array[0].transpose(2, 1, 0), isVector=False)
    affine = _LPS_TO_RAS @ geometry.affine
    image.SetSpacing(geometry.spacing.tolist())
    image.SetDirection((affine[:3, :3] / geometry.spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({_reason(error)})") from error


@dataclass(frozen=True)
class _Payload:
    """Position of the voxels in a file: `size` bytes (after decompression) from `offset` on."""

    file: Path
    offset: int
    size: int
    compressed: bool


def _payload(path: Path) -> _Payload:
    with open_file(path) as file:
        start = file.read(_MAX_HEADER)
    try:
        return _nrrd_payload(path, start) if start.startswith(b"NRRD") else _meta_payload(path, start)
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"{path}: incomplete NRRD or MetaImage header ({error}); copy the file again") from error


def _nrrd_payload(path: Path, start: bytes) -> _Payload:
    header, blank, _ = start.partition(b"\n\n")
    if b"\r\n\r\n" in start:
        header, blank, _ = start.partition(b"\r\n\r\n")
    lines = (line.partition(":") for line in header.decode("latin1").splitlines()[1:] if not line.startswith("#"))
    fields = {name.strip().lower(): value.strip() for name, colon, value in lines if colon}
    if int(fields["dimension"]) == 3 and not ("space" in fields and "space directions" in fields):
        raise UnsupportedInput(f"{path}: no space directions, so left and right are unknown; set them in the header")
    if fields["encoding"].lower() not in ("raw", "gzip", "gz"):
        raise UnsupportedInput(f"{path}: encoding {fields['encoding']!r}; save it as raw or gzip")
    if any(fields.get(name, "0") != "0" for name in ("byte skip", "byteskip", "line skip", "lineskip")):
        raise UnsupportedInput(f"{path}: uses a byte or line skip; save header and voxels in one .nrrd file")
    kind = re.sub(r"^(signed|unsigned)\s+|\s+int$|_t$|^u(?=[a-z])", "", fields["type"].lower())
    item = int(bits.group(1)) // 8 if (bits := re.fullmatch(r"int(\d+)", kind)) else _NRRD_BYTES[kind]
    size = math.prod(int(n) for n in fields["sizes"].split()) * item
    compressed = fields["encoding"].lower() != "raw"
    if detached := fields.get("data file", fields.get("datafile")):
        return _Payload(_sibling(path, detached), 0, size, compressed)
    if not blank:
        raise DamagedFile(f"{path}: ends inside its header; copy the file again")
    return _Payload(path, len(header) + len(blank), size, compressed)


def _meta_payload(path: Path, start: bytes) -> _Payload:
    match = re.search(rb"^ElementDataFile *= *(.*?) *\r?\n", start, re.MULTILINE)
    if match is None:
        raise DamagedFile(f"{path}: no MetaImage header, it starts with {start[:16]!r}; check where it came from")
    lines = (line.partition("=") for line in start[: match.start()].decode("latin1").splitlines())
    fields = {name.strip(): value.strip() for name, equals, value in lines if equals}
    if fields.get("BinaryData", "True").lower() not in ("true", "t", "1") or int(fields.get("HeaderSize", "0")) > 0:
        raise UnsupportedInput(f"{path}: text voxels or an extra header; save one binary .mha file")
    item = _META_BYTES[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY").removeprefix("U")]
    size = math.prod(int(n) for n in fields["DimSize"].split()) * int(fields.get("ElementNumberOfChannels", "1")) * item
    compressed = fields.get("CompressedData", "False").lower() in ("true", "t", "1")
    where = match.group(1).decode("latin1")
    if where.upper() == "LOCAL":
        return _Payload(path, match.end(), size, compressed)
    return _Payload(_sibling(path, where), 0, size, compressed)


def _sibling(path: Path, name: str) -> Path:
    """The file of voxels in the folder of the header; voxels elsewhere or in several files are refused."""
    if name.startswith("LIST") or "%" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UnsupportedInput(f"{path}: voxels are in {name!r}; save header and voxels in one .nrrd or .mha file")
    return path.parent / name


def _reason(error: RuntimeError) -> str:
    """The main line of ITK's message, without addresses and source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ITK ERROR")), lines[0] if lines else "no reason given")
