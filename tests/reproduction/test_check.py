"""Documents that differ from the results are named; the answer is remembered until something changes."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from reproduction.check import REMEMBERED, differing
from reproduction.document import CLAIMS_PAGE, documents
from reproduction.evidence import Evidence
from reproduction.pictures import differing_pictures, draw
from reproduction.studies import quality


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


def test_a_picture_of_other_numbers_is_named_and_drawn_again(tmp_path: Path, measured: Callable[..., Evidence]):
    means = {("hearts", "FATE", n): 0.5 + n / 100 for n in (1, 2, 4)}
    assert draw(measured({}), tmp_path) == [], "nothing to show"
    evidence, picture = measured(means), tmp_path / "docs" / "evidence" / "label_efficiency.png"
    assert differing_pictures(evidence, tmp_path) == [picture], "it is missing"
    assert draw(evidence, tmp_path) == [picture]
    assert draw(evidence, tmp_path) == []
    newer = measured(means | {("hearts", "FATE", 4): 0.9})
    assert differing_pictures(newer, tmp_path) == [picture]
    Image.new("L", (8, 8)).save(picture)
    assert draw(newer, tmp_path) == [picture]
    assert differing_pictures(newer, tmp_path) == []


def test_a_picture_of_predicted_dice_shows_every_case():
    rows = [{"label": "wall", "calibrated": 0.4, "dice": 0.5}, {"label": "cavity", "calibrated": 0.7, "dice": 0.8}]
    line = {"set": "hearts", "configuration": "fate", "shots": 4, "digest": "d", "most_cases": 8, "rows": rows}
    newest = line | {"digest": "e", "rows": rows[:1]}
    assert quality.numbers([line]) == {"hearts, fate": {"wall": [(0.4, 0.5)], "cavity": [(0.7, 0.8)]}}
    found = quality.numbers([line, newest])
    assert found == {"hearts, fate": {"wall": [(0.4, 0.5)]}}
    assert len(quality.draw(found).axes) == 1
