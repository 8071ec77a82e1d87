"""Text for people: numbers with nouns, and names, which may be any text, made harmless for terminals and tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of text, so that a name reads as another one."""


def counted(number: int, noun: str = "case") -> str:
    """The number and the noun, in the plural where there is not exactly one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are; "none" for no names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"


def visible(text: str) -> str:
    r"""The text with control characters (except line breaks and tabs) and lone surrogates as escapes such as \x1b."""
    return "".join(_escape(letter) if _is_hidden(letter) else letter for letter in text)


def spreadsheet_text(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula gets an apostrophe in front.

    Numbers, also as text, stay as they are.
    """
    if not isinstance(value, str) or not _FORMULA.match(value) or _is_number(value):
        return value
    return f"'{value}"


def from_spreadsheet_text(cell: str) -> str:
    """The text that `spreadsheet_text` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _is_hidden(letter: str) -> bool:
    return letter not in "\n\t" and (unicodedata.category(letter) in ("Cc", "Cs") or letter in _DIRECTIONS)


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 0x7F else f"\\x{ord(letter):02x}"
