"""Documents that differ from the results are named; the answer is remembered until something changes."""

from pathlib import Path

from reproduction.check import REMEMBERED, differing
from reproduction.document import CLAIMS_PAGE, documents
from reproduction.evidence import Evidence


def test_documents_that_differ_are_named_and_a_success_is_remembered(tmp_path: Path):
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    (tmp_path / "reproduction" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("no tables\n", "utf-8")
    page = tmp_path / CLAIMS_PAGE
    page.write_text("old\n", "utf-8")
    assert differing(tmp_path) == ["docs/evidence/claims.md"]
    assert not (tmp_path / REMEMBERED).exists()

    page.write_text(documents(Evidence(), tmp_path)[page], "utf-8")
    assert differing(tmp_path) == []
    assert (tmp_path / REMEMBERED).exists()

    page.write_text("old again\n", "utf-8")
    assert differing(tmp_path) == ["docs/evidence/claims.md"]
