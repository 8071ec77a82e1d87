"""Hooks of MkDocs: the pages that are generated, and links to files that lie outside `docs/`.

Links in the documents are those of the repository, so they work in an editor and on a forge, too. On the site a link to
a file of `INCLUDED` leads to its copy, a link to a part of the reference's first page leads to the generated page of
that name (`reference/index.md#settings-fate` to `reference/settings.md#fate`), and a link to any other existing file
becomes plain text.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from docs.scripts import reference  # noqa: E402
from docs.scripts.notebooks import page_of  # noqa: E402

INCLUDED = {
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "CHANGELOG.md": "changelog.md",
    "src/handful/backbones/weights/handful-tiny/README.md": "evidence/handful_tiny_card.md",
    "src/handful/backbones/weights/handful-small/README.md": "evidence/handful_small_card.md",
}
"""Files of the repository that are pages of the site, with their place on it."""
GENERATED = {
    "reference/commands.md": reference.commands,
    "reference/settings.md": reference.settings,
    "reference/python.md": reference.python,
}
LINK = re.compile(r"(?P<words>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)

log = get_plugin_logger("handful")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the generated pages and those that lie elsewhere in the repository."""
    for path, write in GENERATED.items():
        files.append(File.generated(config, path, content=write()))
    for notebook in sorted((ROOT / "docs").rglob("*.ipynb")):
        path = str(notebook.relative_to(ROOT / "docs").with_suffix(".md"))
        files.append(File.generated(config, path, content=page_of(notebook)))
    for source, path in INCLUDED.items():
        files.append(File.generated(config, path, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page with its links as the site needs them; code blocks stay as they are."""
    source = next((one for one, path in INCLUDED.items() if path == page.file.src_uri), f"docs/{page.file.src_uri}")
    parts = FENCE.split(markdown)
    return "".join(
        part if number % 2 else rewritten(part, source, page.file.src_uri) for number, part in enumerate(parts)
    )


def rewritten(markdown: str, source: str, uri: str) -> str:
    """`markdown` of the repository's file `source` as the site's page `uri` needs it."""

    def new(link: re.Match[str]) -> str:
        words, target, anchor = link["words"], link["target"], link["anchor"] or ""
        if not target or ":" in target:
            return link[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path == "docs/reference/index.md" and anchor:
            page, _, part = anchor[1:].partition("-")
            path, anchor = f"docs/reference/{page}.md", f"#{part}" if part else ""
        place = INCLUDED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is not None:
            return f"{words}({os.path.relpath(place, os.path.dirname(uri) or '.')}{anchor})"
        if not (ROOT / path).exists():
            log.warning(f"{source} links to {target!r}, which is not in the repository")
        return words[1:-1].removeprefix("[")

    return LINK.sub(new, markdown)
