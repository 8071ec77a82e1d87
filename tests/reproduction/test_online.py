"""Prompts over scans in sequence: what counts as reached and as failed, and the differences to the frozen backbone."""

import pytest

from reproduction.studies.online import MOST_PROMPTS, prompts_to, tables


@pytest.mark.parametrize(
    ("start", "after", "prompts"), [(0.9, [0.9], 0), (0.2, [0.5, 0.85, 0.8], 2), (0.0, [0.1, 0.84], None)]
)
def test_the_first_prompt_that_reaches_the_level_counts(start: float, after: list[float], prompts: int | None):
    assert prompts_to(start, after, 0.85) == prompts


def test_a_failure_counts_as_all_prompts_and_differences_are_paired_by_scan():
    def line(side: str, first: list[float], second: list[float]) -> dict[str, object]:
        shared = {"set": "polyps", "scans": 30, "slices": None, "digest": "d", "split": 0, "cases": ["a", "b"]}
        return shared | {"side": side, "at_start": [[0.0], [0.0]], "after_prompts": [[first], [second]]}

    never, third = [0.1] * MOST_PROMPTS, [0.1, 0.2] + [0.95] * (MOST_PROMPTS - 2)
    text = tables([line("frozen", third, never), line("auxiliary", never, third)])
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| polyps")]
    assert ["polyps", "frozen", "2", "1", "no", "6.50", "6.50", "50 %", "50 %", "–", "–"] in rows
    assert ["polyps", "frozen", "2", "1", "yes", "10.00", "10.00", "100 %", "100 %", "–", "–"] in rows
    assert ["polyps", "auxiliary", "2", "1", "yes", "3.00", "3.00", "0 %", "0 %", "-7.000", "-7.000"] in rows
