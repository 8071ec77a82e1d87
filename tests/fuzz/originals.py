"""One sound file per format and encoding, small, without any voxel of value 0."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

Family = Literal["nifti", "gzip", "text", "png", "tiff", "bmp", "jpeg"]


@dataclass(frozen=True)
class Original:
    """The content of a file, and the second file that a detached header names."""

    name: str
    family: Family
    content: bytes
    beside: tuple[str, bytes] | None = None
    header: int = 0
    """Bytes before the voxels, where they are a block of their own."""
    packed: bool = False
    """Whether a checksum covers the voxels."""


def originals() -> list[Original]:
    """All files; the same in every process."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(1, 2000, (9, 7, 5)).astype(np.int16)
    pixels = rng.integers(1, 60_000, (24, 20)).astype(np.uint16)
    with TemporaryDirectory() as folder:
        return [*_niftis(voxels), *_itk(voxels, Path(folder)), *_pictures(pixels, Path(folder))]


def _niftis(voxels: np.ndarray) -> list[Original]:
    turn = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -20], [0, 0, 1, 7], [0, 0, 0, 1]]) @ np.diag(
        [1.5, 1.25, 3, 1]
    )
    made: dict[str, bytes] = {}
    for name, kind, both in (
        ("one.nii", nib.Nifti1Image, True),
        ("q.nii", nib.Nifti1Image, False),
        ("two.nii", nib.Nifti2Image, True),
    ):
        image = kind(voxels, turn)
        image.header.set_xyzt_units("mm")
        image.set_qform(turn, 1)
        image.set_sform(turn, 2 if both else 0)
        made[name] = image.to_bytes()
    swapped = nib.Nifti1Image(voxels.astype(">i2"), turn, nib.Nifti1Header(endianness=">"))
    swapped.set_data_dtype(">i2")
    swapped.header.set_slope_inter(0.5, 100)
    made["big.nii"] = swapped.to_bytes()
    plain = [Original(n, "nifti", c, header=544 if n == "two.nii" else 352) for n, c in made.items()]
    return [*plain, Original("one.nii.gz", "gzip", gzip.compress(made["one.nii"], mtime=0), packed=True)]


def _itk(voxels: np.ndarray, folder: Path) -> list[Original]:
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing((1.5, 1.25, 3.0))
    image.SetOrigin((10.0, -20.0, 30.5))
    image.SetDirection((0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1))
    found = []
    for name in (
        "raw.mha",
        "packed.mha",
        "raw.nrrd",
        "packed.nrrd",
        "raw.mhd",
        "packed.mhd",
        "raw.nhdr",
        "packed.nhdr",
    ):
        packed = name.startswith("packed")
        sitk.WriteImage(image, str(folder / name), packed)
        content = (folder / name).read_bytes()
        second = [file for file in folder.glob(f"{Path(name).stem}.*") if file.suffix in (".raw", ".zraw", ".gz")]
        beside = (second[0].name, second[0].read_bytes()) if second else None
        for file in folder.iterdir():
            file.unlink()
        end = (
            len(content)
            if beside
            else content.index(b"LOCAL\n") + 6
            if b"LOCAL" in content
            else content.index(b"\n\n") + 2
        )
        found.append(Original(name, "text", content, beside, end, packed))
    return found


def _pictures(pixels: np.ndarray, folder: Path) -> list[Original]:
    grey = (pixels % 254 + 1).astype(np.uint8)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    found = []
    for name, array in (
        ("grey.png", grey),
        ("deep.png", pixels),
        ("colour.png", colour),
        ("grey.bmp", grey),
        ("colour.jpg", colour),
    ):
        family: Family = {"png": "png", "bmp": "bmp", "jpg": "jpeg"}[name[-3:]]  # type: ignore[assignment]
        content = io.BytesIO()
        Image.fromarray(array).save(content, {"jpg": "JPEG"}.get(name[-3:], name[-3:].upper()))
        found.append(Original(name, family, content.getvalue(), packed=family == "png"))
    palette = Image.fromarray(grey % 4, "P")
    palette.putpalette(list(range(12)))
    palette.save(folder / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    found.append(Original("palette.png", "png", (folder / "a.png").read_bytes(), packed=True))
    for name, array, options in (
        ("raw.tif", pixels, {}),
        ("grey.tif", grey, {}),
        ("zlib.tif", pixels, {"compression": "zlib", "predictor": True}),
        ("lzw.tif", pixels, {"compression": "lzw"}),
        ("packbits.tif", grey, {"compression": "packbits"}),
        ("zstd.tif", pixels, {"compression": "zstd"}),
        ("tiled.tif", pixels.astype(np.float32), {"tile": (16, 16), "compression": "zlib"}),
        ("big.tif", colour, {"bigtiff": True, "byteorder": ">", "photometric": "rgb"}),
    ):
        if not (options.get("tile")):
            options = {**options, "rowsperstrip": 4}
        tifffile.imwrite(folder / "a.tif", array, metadata=None, **options)
        found.append(Original(name, "tiff", (folder / "a.tif").read_bytes()))
    return found
