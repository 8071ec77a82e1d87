"""A measured table replaces the earlier one only if it has all of its rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.studies import result
from handful.errors import InputError
from handful.evaluation.results import write_results
from reproduction.parts import replace_table


def test_a_table_that_lacks_rows_of_the_earlier_one_does_not_replace_it(tmp_path: Path):
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    rows = [result(case="a"), result(case="b")]
    write_results(rows, old)
    before = old.read_bytes()
    write_results(rows[:1], new)
    with pytest.raises(InputError, match=r"new.parquet lacks rows of .*old.parquet .1, such as .*'b'"):
        replace_table(new, old)
    assert old.read_bytes() == before

    write_results([*(replace(row, dice=0.3) for row in rows), result(case="c")], new)
    replace_table(new, old)
    assert old.read_bytes() == new.read_bytes()
    replace_table(new, tmp_path / "first.parquet")
    assert (tmp_path / "first.parquet").exists()
