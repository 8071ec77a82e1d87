"""The table of what a backbone makes of prompts and memories does not mix unseen cases that were chosen differently."""

from reproduction.studies.foundation import FLOOR, MEMORY, table_of
from reproduction.study import Line


def line(name: str, measure: str, dice: float, **other: object) -> Line:
    plain = {"set": "busi", "seed": 0, "settings": [], "digest": name, "most_cases": 2, "absent": [[0, 0, 0]] * 2}
    return plain | {"name": name, "measure": measure, "cases": ["a", "b"], "dice": [dice] * 2} | other


OLD = [line("tiny", MEMORY, 0.5), line("pixels", FLOOR, 0.1)]


def test_a_later_line_of_the_same_cases_counts():
    shown = table_of("tiny", [*OLD, line("pixels", FLOOR, 0.2)])
    assert "| busi | 2 | – | – | – | – | – | – | 0.200 [" in shown
    assert "Unseen cases" not in shown


def test_the_floor_on_other_unseen_cases_changes_no_table_of_a_backbone():
    for other in ({"unseen": "random"}, {"most_cases": 3}):
        assert table_of("tiny", [*OLD, line("pixels", FLOOR, 0.2, **other)]) == table_of("tiny", OLD)


def test_a_backbone_on_other_unseen_cases_has_a_table_for_each():
    new = [line("tiny", MEMORY, 0.7, unseen="random"), line("pixels", FLOOR, 0.3, unseen="random")]
    first, second = table_of("tiny", [*OLD, *new]).split("Unseen cases: random, at most 2 per set.")
    assert "Unseen cases: first by name, at most 2 per set." in first
    assert "0.100 [" in first
    assert "0.500 [" in first
    assert "0.300 [" in second
    assert "0.700 [" in second
