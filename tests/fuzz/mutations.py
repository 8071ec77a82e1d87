"""Damage to files: by chance, and by someone who knows the format."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from fuzz.originals import Original

FLOATS = (0.0, -1.0, 1.0, 0.5, 1e30, -1e30, 1e-40, float("nan"), float("inf"), 352.0, 2.0**31)
WHOLE = (0, -1, 1, 2, 3, 5, 7, 8, 255, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**62)
TEXTS = (
    "",
    "0",
    "-1",
    "1",
    "1 1",
    "9",
    "99999999999",
    "nan",
    "inf",
    "1e999",
    "True",
    "A" * 1500,
    "()",
    "none",
    "(1,2,3)",
)
NIFTI1 = [(40 + 2 * n, "h") for n in range(8)] + [(76 + 4 * n, "f") for n in range(4)]
NIFTI1 += [(at, "f") for at in (108, 112, 116, *range(256, 328, 4))]
NIFTI1 += [(0, "i"), (68, "h"), (70, "h"), (72, "h"), (123, "b"), (252, "h"), (254, "h")]
NIFTI2 = [(16 + 8 * n, "q") for n in range(8)] + [(104 + 8 * n, "d") for n in range(4)]
NIFTI2 += [(168, "q"), (176, "d"), (184, "d"), *((at, "d") for at in range(352, 496, 8))]
NIFTI2 += [(0, "i"), (12, "h"), (14, "h"), (344, "i"), (348, "i"), (500, "i"), (504, "i")]


@dataclass(frozen=True)
class Mutated:
    """A damaged file and what was done to it."""

    original: Original
    content: bytes
    beside: bytes | None
    what: str
    touched: int
    """Bytes that were overwritten with others; 0 if bytes were added or removed."""
    in_header: bool
    mended: bool = False
    """Whether checksums were made right again, as someone does who knows the format."""


def mutate(original: Original, rng: np.random.Generator) -> Mutated:
    """One random mutation."""
    if rng.random() < 0.45:
        if original.name.endswith(".nii"):
            return _nifti_field(original, rng)
        if original.family == "text":
            return _line(original, rng)
        if original.family == "png":
            return _png_chunk(original, rng)
        if original.family == "tiff":
            return _tiff_entry(original, rng)
        if original.family == "gzip":
            inner = replace(
                original, content=gzip.decompress(original.content), family="nifti", header=352, name="one.nii"
            )
            done = mutate(inner, rng)
            return replace(done, original=original, content=gzip.compress(done.content, mtime=0), mended=True)
    return _by_chance(original, rng)


def _by_chance(original: Original, rng: np.random.Generator) -> Mutated:
    second = original.beside is not None and rng.random() < 0.5
    whole = original.beside[1] if second and original.beside else original.content
    limit = min(len(whole), 500) if rng.random() < 0.4 else len(whole)
    at, size = int(rng.integers(limit)), int(rng.integers(1, 12))
    kind = str(rng.choice(["flip", "bytes", "cut", "insert", "delete", "zeros", "append"]))
    part = whole[at : at + size]
    if kind == "flip":
        new = whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :]
    elif kind == "bytes":
        new = whole[:at] + rng.bytes(len(part)) + whole[at + len(part) :]
    elif kind == "cut":
        new = whole[:at]
    elif kind == "insert":
        new = whole[:at] + rng.bytes(size) + whole[at:]
    elif kind == "delete":
        new = whole[:at] + whole[at + size :]
    elif kind == "zeros":
        new = whole[:at] + bytes(len(part)) + whole[at + len(part) :]
    else:
        new = whole + rng.bytes(size)
    touched = sum(a != b for a, b in zip(whole, new, strict=True)) if len(new) == len(whole) else 0
    header = not second and at < original.header
    what = f"{kind} at {at} of {len(whole)}{' in the second file' if second else ''}"
    if second:
        return Mutated(original, original.content, new, what, touched, header)
    return Mutated(original, new, original.beside[1] if original.beside else None, what, touched, header)


def _nifti_field(original: Original, rng: np.random.Generator) -> Mutated:
    fields = NIFTI2 if original.name == "two.nii" else NIFTI1
    at, kind = fields[int(rng.integers(len(fields)))]
    order = ">" if original.name == "big.nii" else "<"
    content = bytearray(original.content)
    if kind in "fd":
        value = float(rng.choice(FLOATS))
        value = value if kind == "d" or abs(value) < 3e38 or not np.isfinite(value) else 0.0
    else:
        bits = 8 * struct.calcsize(kind) - 1
        value = int(rng.choice([n for n in WHOLE if -(2**bits) <= n < 2**bits]))
    struct.pack_into(order + kind, content, at, value)
    return Mutated(original, bytes(content), None, f"{kind} at {at} = {value}", struct.calcsize(kind), True)


def _line(original: Original, rng: np.random.Generator) -> Mutated:
    head, rest = original.content[: original.header], original.content[original.header :]
    lines = head.split(b"\n")
    number = int(rng.integers(len(lines) - 1))
    separator = b"=" if original.name.endswith(("mha", "mhd")) else b":"
    key, found, value = lines[number].partition(separator)
    kind = str(rng.choice(["value", "value", "value", "remove", "double", "misspell", "unit"]))
    if kind == "remove":
        lines.pop(number)
    elif kind == "double":
        lines.insert(number, lines[number])
    elif kind == "misspell" and key:
        place = int(rng.integers(len(key)))
        lines[number] = key[:place] + bytes([key[place] ^ 1 << int(rng.integers(5))]) + key[place + 1 :] + found + value
    elif kind == "unit":
        words = value.split()
        if words:
            words[int(rng.integers(len(words)))] = str(rng.choice(TEXTS)).encode()
        lines[number] = key + found + b" " + b" ".join(words)
    else:
        lines[number] = key + found + b" " + str(rng.choice(TEXTS)).encode()
    what = f"{kind} of {key.decode('latin1')!r} -> {lines[min(number, len(lines) - 1)][:60]!r}"
    beside = original.beside[1] if original.beside else None
    return Mutated(original, b"\n".join(lines) + rest, beside, what, 0, True)


def _png_chunk(original: Original, rng: np.random.Generator) -> Mutated:
    """Change, remove or double a chunk, with a right checksum."""
    chunks, at = [], 8
    while at < len(original.content):
        size = int.from_bytes(original.content[at : at + 4], "big")
        chunks.append((original.content[at + 4 : at + 8], original.content[at + 8 : at + 8 + size]))
        at += 12 + size
    number = int(rng.integers(len(chunks)))
    name, data = chunks[number]
    kind = str(rng.choice(["byte", "byte", "byte", "remove", "double", "rename", "shorten"]))
    if kind == "byte" and data:
        place = int(rng.integers(len(data)))
        data = data[:place] + bytes([int(rng.integers(256))]) + data[place + 1 :]
    elif kind == "rename":
        name = bytes([name[0] ^ 32]) + name[1:]
    elif kind == "shorten":
        data = data[:-1]
    chunks[number : number + 1] = {"remove": [], "double": [(name, data)] * 2}.get(kind, [(name, data)])
    content = original.content[:8] + b"".join(
        len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in chunks
    )
    return Mutated(original, content, None, f"{kind} of chunk {name!r}", 1, True, mended=True)


def _tiff_entry(original: Original, rng: np.random.Generator) -> Mutated:
    """Change tag, type, count or value of an entry."""
    content = bytearray(original.content)
    big = original.name == "big.tif"
    order, word, size = (">", "Q", 20) if big else ("<", "I", 12)
    at = struct.unpack_from(order + word, content, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), content, at)[0]
    entry = at + (8 if big else 2) + size * int(rng.integers(count))
    place, kind = ((0, "H"), (2, "H"), (4, word), (4 + struct.calcsize(word), word))[int(rng.integers(4))]
    tag = struct.unpack_from(order + "H", content, entry)[0]
    if rng.random() < 0.5:
        value = int(rng.choice([n for n in WHOLE if 0 <= n < 2 ** (8 * struct.calcsize(kind))]))
    else:
        value = struct.unpack_from(order + kind, content, entry + place)[0] ^ 1 << int(rng.integers(16))
    struct.pack_into(order + kind, content, entry + place, value)
    return Mutated(original, bytes(content), None, f"tag {tag}: byte {place} of its entry = {value}", 1, True)
