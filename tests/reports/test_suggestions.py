"""The table of suggestions and their contact sheet."""

import csv
from dataclasses import replace
from pathlib import Path

from PIL import Image

from handful.backbones.base import Backbone
from handful.checkpoint.model import load
from handful.curation.suggest import SuggestConfig, suggest
from handful.data.cases import Cohort
from handful.reports.suggestions import write_suggestions


def test_the_files_contain_the_suggestions(model: Path, cohort: Cohort, tmp_path: Path):
    segmenter = load(model)
    cases = tuple(replace(case, reference=None) if case.name != "case-0" else case for case in cohort.cases)
    cohort = replace(cohort, cases=cases)
    result = suggest(cohort, segmenter.backbone, segmenter, SuggestConfig(count=3))
    table, picture = write_suggestions(tmp_path / "new" / "suggestions", cohort, result)
    lines = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [line["rank"] for line in lines] == ["1", "2", "3"]
    for line, one in zip(lines, result.suggestions, strict=True):
        assert (line["case"], int(line["axis"]), int(line["index"])) == (one.slice.case, one.axis, one.slice.index)
        assert int(line["nearest_index"]) == one.nearest.index
        assert line["reason"] == one.reason
        assert line["nearest_case"] == "case-0"
    with Image.open(picture) as shown:
        assert shown.width > 800
        assert len(shown.convert("RGB").getcolors(2**24) or []) > 1000
    assert sorted(path.name for path in picture.parent.iterdir()) == ["suggestions.csv", "suggestions.png"]


def test_a_sheet_without_labels_or_model_can_be_drawn(backbone: Backbone, cohort: Cohort, tmp_path: Path):
    cases = tuple(replace(case, reference=None, labels=None) for case in cohort.cases)
    cohort = Cohort(cases, None, "new")
    _, picture = write_suggestions(tmp_path, cohort, suggest(cohort, backbone, config=SuggestConfig(count=5)))
    assert picture.is_file()
