"""Every notebook of the documentation runs from its first cell to its last, in a kernel of its own."""

import ast
from pathlib import Path

import pytest

from docs.scripts.commands import ROOT
from docs.scripts.notebooks import page_of

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


@pytest.mark.process
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda one: one.stem)
def test_every_cell_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(notebook, as_version=4)
    patience = dict.fromkeys(("timeout", "startup_timeout", "iopub_timeout"), 1800)  # after the last, outputs are lost
    nbclient.NotebookClient(book, **patience, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    pages = [output["data"]["text/html"] for output in shown if "text/html" in output["data"]]
    assert len(pages) == 2
    assert all(page.startswith("<iframe") for page in pages)
    scores = next(
        ast.literal_eval(output["data"]["text/plain"])
        for output in shown
        if "'liver': 0" in output["data"]["text/plain"]
    )
    assert scores["liver"] > 0.5


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda one: one.stem)
def test_the_page_of_a_notebook_has_all_its_text_and_code_and_the_file_no_outputs(notebook: Path):
    page = page_of(notebook)
    assert page.startswith("# ")
    assert f"({notebook.name})" in page
    assert "handful.show(" in page
    assert '"outputs": []' in notebook.read_text("utf-8")
    assert "iframe" not in notebook.read_text("utf-8")
