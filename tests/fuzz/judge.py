"""What a reader made of a damaged file: equal, refused by name, or what no checksum could tell. All else is a fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fuzz.mutations import Mutated
from fuzz.originals import Original
from handful.data.formats import read_geometry, read_label_map, read_notes, read_volume
from handful.data.volume import Volume
from handful.errors import HandfulError, LabelError

_NEEDED = {
    "a": (b"TransformMatrix", b"Offset", b"ElementSpacing", b"DimSize", b"ElementType"),
    "n": (b"space:", b"space directions:", b"space origin:", b"sizes:", b"type:"),
}
"""Fields that place and shape the voxels, of MetaImage and NRRD."""


def outcome(mutated: Mutated, truth: Volume, folder: Path) -> str:
    """One of `workers.GOOD`, or a description of the fault."""
    path = folder / mutated.original.name
    path.write_bytes(mutated.content)
    if mutated.original.beside is not None and mutated.beside is not None:
        (folder / mutated.original.beside[0]).write_bytes(mutated.beside)
    found: list[Volume] = []
    refused = ""
    for read in (lambda: found.append(read_volume(path)), *_other_reads(path)):
        try:
            read()
        except HandfulError as error:
            if path.stem not in str(error):
                return f"refused without the name of the file: {error}"
            if "needs more memory" in str(error) or "cannot be read (" in str(error):
                return f"refused by the last resort: {error}"
            if not found and not isinstance(error, LabelError):
                refused = refused or str(error)
        except Exception as error:
            return f"raw {type(error).__name__}: {error}"
    if not found:
        return "refused" if refused else "no result"
    return judged(mutated, truth, found[0])


def _other_reads(path: Path) -> list:
    return [lambda: read_label_map(path), lambda: read_geometry(path), lambda: read_notes(path)]


def judged(mutated: Mutated, truth: Volume, found: Volume) -> str:
    """Whether a file that was read is equal to the original, or differs in what the bytes cannot tell."""
    same_grid = found.geometry.shape == truth.geometry.shape and np.allclose(
        found.geometry.affine, truth.geometry.affine, rtol=1e-9, atol=0
    )
    if same_grid and found.array.shape == truth.array.shape and np.array_equal(found.array, truth.array):
        return "equal"
    fault = _fault(mutated, truth, found)
    return f"silently wrong: {fault}" if fault else "no checksum could tell"


def _fault(mutated: Mutated, truth: Volume, found: Volume) -> str:
    """Why the bytes could have told that the voxels or their place are wrong; "" if they could not."""
    original = mutated.original
    if original.family == "jpeg":
        return ""
    if original.packed and not mutated.mended and not mutated.in_header:
        return "a checksum covers what was changed"
    per_pixel = 1 if original.family in ("tiff", "png", "bmp") else truth.array.itemsize
    wrong = found.array.size != truth.array.size and found.array.nbytes != truth.array.size * per_pixel
    coloured = found.array.shape == (3, *truth.array.shape[1:])  # by another palette
    if wrong and not (original.family in ("tiff", "png") or (original.family == "bmp" and coloured)):
        return f"{found.array.shape} voxels of the {truth.array.shape} in the file"
    if original.family in ("nifti", "gzip", "bmp") and not mutated.touched:
        return "the file has another length"
    if original.name in ("raw.tif", "grey.tif", "big.tif"):
        zeros = int((found.array == 0).sum() - (truth.array == 0).sum())
        if zeros > max(found.array.size // 2, 64) and "262" not in mutated.what:
            return f"{zeros} pixels are 0"
    if original.family == "text":
        missing = [name for name in _NEEDED[_dialect(original)] if name not in mutated.content]
        if missing:
            return f"made up for want of {missing}"
        if original.packed and found.array.shape == truth.array.shape and not mutated.in_header:
            return "a checksum covers the voxels"
    if not mutated.in_header and found.array.shape == truth.array.shape and original.family in ("nifti", "text"):
        changed = int((found.array != truth.array).sum())
        if changed > mutated.touched:
            return f"{changed} voxels differ, but {mutated.touched} bytes were changed"
    return ""


def _dialect(original: Original) -> str:
    return "n" if original.name.endswith(("nrrd", "nhdr")) else "a"
