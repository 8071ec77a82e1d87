"""The site is complete and whole: every page is in its menu, every link leads somewhere, and MkDocs has no warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.scripts.commands import ROOT, pages

LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)(?:#[^)]*)?\)")
GENERATED = ("reference/commands.md", "reference/settings.md", "reference/python.md")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_repository(page: Path):
    targets = [
        found["target"] for found in LINK.finditer(re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL))
    ]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]))
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert written <= menu
    assert set(GENERATED) <= menu


@pytest.mark.process
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text("utf-8")), page.name
