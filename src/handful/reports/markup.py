"""HTML and SVG elements as a tree, in which all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as Tree

Element = Tree.Element
Attributes = Mapping[str, str | float]
Content = Element | str | None


def element(name: str, attributes: Attributes | None = None, *children: Content) -> Element:
    """The element `<name attributes>children</name>`; children that are None are left out."""
    created = Tree.Element(name, {key: _text(value) for key, value in (attributes or {}).items()})
    for child in children:
        append(created, child)
    return created


def append(parent: Element, child: Content) -> None:
    """Append an element or text to an element."""
    if child is None:
        return
    if isinstance(child, str):
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + child
        else:
            parent.text = (parent.text or "") + child
    else:
        parent.append(child)


def paragraph(text: str, soft: bool = False) -> Element:
    """A paragraph; `soft` for secondary text."""
    return element("p", {"class": "soft"} if soft else None, text)


def card(figure: str, text: str, soft: bool = False) -> Element:
    """A card with a number in large print above its description."""
    return element("div", {"class": "card"}, element("b", None, figure), paragraph(text, soft))


def page(title: str, style: str, body: Element, policy: str | None = None) -> bytes:
    """An HTML file in UTF-8; characters that cannot be encoded become question marks.

    `policy` is a Content-Security-Policy, which limits what the browser may load.
    """
    secure = {"http-equiv": "Content-Security-Policy", "content": policy or ""}
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", secure) if policy else None,
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("title", None, title),
        element("style", None, style),
    )
    text = Tree.tostring(element("html", {"lang": "en"}, head, body), encoding="unicode", method="html")
    return b"<!doctype html>\n" + text.encode("utf-8", "replace")


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
