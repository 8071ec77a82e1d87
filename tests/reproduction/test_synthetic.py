"""Validations of the training and of other backbones stand in one table."""

from pathlib import Path

import pytest

from reproduction.studies.synthetic import COLUMNS, main, table_of
from reproduction.study import read_lines


def test_a_backbone_is_scored_once_and_stands_below_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, scores = tmp_path / "lines.jsonl", dict.fromkeys(COLUMNS, 0.5)
    monkeypatch.setattr("reproduction.studies.synthetic.validate", lambda *_: scores)
    monkeypatch.setattr("sys.argv", ["synthetic", "--out", str(out)])
    main()
    main()
    (line,) = read_lines(out)
    rows = table_of([{"part": "part1", "step": 2000} | dict.fromkeys(COLUMNS, 0.4), line]).splitlines()[2:]
    assert rows[0].startswith("| part1, after 2000 steps | 0.40 |")
    assert rows[1].startswith("| `handful-tiny` | 0.50 |")
