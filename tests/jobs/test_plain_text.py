"""Names as text for terminals and spreadsheets."""

import pytest

from handful.jobs.plain_text import from_spreadsheet_text, spreadsheet_text, visible


def test_control_characters_surrogates_and_directions_are_shown_as_escapes():
    assert visible("a\x1b[2J\x9b\udcfc\u202eb\r\nü患\t") == "a\\x1b[2J\\x9b\\udcfc\\u202eb\\x0d\nü患\t"


@pytest.mark.parametrize("text", ["=1+1", "+a", "-2+3", "@SUM(A1)", "\tx", "'=1", "-1_0"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe_and_loses_it_again(text: str):
    assert spreadsheet_text(text) == f"'{text}"
    assert from_spreadsheet_text(f"'{text}") == text


@pytest.mark.parametrize("value", ["-2.5", "+1e-3", "-inf", "case", "'quoted'", "", -3, 2.5, None])
def test_numbers_and_other_text_stay(value: object):
    assert spreadsheet_text(value) == value
    if isinstance(value, str):
        assert from_spreadsheet_text(value) == value
