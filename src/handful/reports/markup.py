"""Elements of a page: a tree, so that every text is escaped where it is written."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as Tree

Element = Tree.Element
Attributes = Mapping[str, str | float]
Content = Element | str | None


def element(name: str, attributes: Attributes | None = None, *children: Content) -> Element:
    """`<name attributes>children</name>`; None is left out, a number is written in four digits."""
    made = Tree.Element(name, {key: _text(value) for key, value in (attributes or {}).items()})
    for child in children:
        append(made, child)
    return made


def append(parent: Element, child: Content) -> None:
    """One more child at the end: an element or a text."""
    if child is None:
        return
    if isinstance(child, str):
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + child
        else:
            parent.text = (parent.text or "") + child
    else:
        parent.append(child)


def page(root: Element) -> bytes:
    """The HTML file of an `<html>` element; what Unicode cannot say is replaced by question marks."""
    return b"<!doctype html>\n" + Tree.tostring(root, encoding="unicode", method="html").encode("utf-8", "replace")


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
