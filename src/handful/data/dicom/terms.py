"""Coded terms of segments: what a segment is, for software that does not read names."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from handful.errors import InputError, SettingsError, did_you_mean
from handful.jobs.files import text_of


@dataclass(frozen=True)
class Code:
    """An entry of a terminology, for example 10200004 of SCT (SNOMED CT), "Liver"."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Term:
    """What a segment is (SegmentedPropertyTypeCodeSequence), and of which kind (…CategoryCodeSequence)."""

    type: Code
    category: Code = Code("123037004", "SCT", "Anatomical Structure")


TISSUE = Term(Code("85756007", "SCT", "Tissue"), Code("85756007", "SCT", "Tissue"))
"""The term of labels whose name is in no list of terms, as in 3D Slicer."""
_GROUPS = {
    "AnatomicalStructure": ("cid7152", "cid7153", "cid7154", "cid7155", "cid4031", "cid4"),
    "MorphologicallyAbnormalStructure": ("cid7159",),
    "Tissue": ("cid7166",),
}
"""Context groups of the DICOM standard (PS3.16) by the category of their terms: organs, lesions, tissues."""
_FORM = '"LABEL": {"type": {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}}, optionally with a "category"'


def read_terms(path: Path) -> dict[str, Term]:
    """Terms by label name, from a TOML or JSON file. Raises InputError if it has another form."""
    try:
        text = text_of(path)
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        return TypeAdapter(dict[str, Term]).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {place}: {first['msg']}; write {_FORM}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a readable file of terms ({error}); write {_FORM}") from error


def require_labels(terms: Mapping[str, Term], names: Iterable[str]) -> None:
    """Raise SettingsError if there is a term for a name that is no label."""
    known = list(names)
    for name in terms:
        if name not in known:
            raise SettingsError(
                f"a term for {name!r}, but {did_you_mean(name, known)}the labels of the model are {', '.join(known)}; "
                "correct the file of terms"
            )


def standard_term(name: str) -> Term:
    """The term whose meaning is the name of the label, in the lists of the DICOM standard; else TISSUE."""
    from pydicom.sr.codedict import codes

    wanted = "".join(mark for mark in name if mark.isalnum()).lower()
    for category, groups in _GROUPS.items():
        for group in groups:
            listed = getattr(codes, group)
            found = next((keyword for keyword in listed.dir() if keyword.lower() == wanted), None)
            if found is not None:
                return Term(_code(getattr(listed, found)), _code(getattr(codes.cid7150, category)))
    return TISSUE


def _code(entry: object) -> Code:
    value, scheme, meaning = (str(getattr(entry, part)) for part in ("value", "scheme_designator", "meaning"))
    return Code(value, scheme, meaning)
