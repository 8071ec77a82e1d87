"""The progress of a long job where there is no terminal: lines with the time left."""

import re
import time

import pytest

from handful.cli.terminal import PLAIN_EVERY_S, progress


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def seconds_left(clock: Clock, steps: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]) -> list[int]:
    """The times in the lines for these steps and totals, each of which takes a little longer than a line waits."""
    with progress("job") as report:
        for step, total in steps:
            report(step, total, "note")
            clock.now += PLAIN_EVERY_S + 1
    return [int(found) for found in re.findall(r"(\d+) s left", capsys.readouterr().err)]


def test_time_left_follows_the_steps_so_far(clock: Clock, capsys: pytest.CaptureFixture[str]):
    assert seconds_left(clock, [(0, 10), (1, 10), (2, 10)], capsys) == [99, 88]


def test_another_part_of_a_job_counts_its_own_time(clock: Clock, capsys: pytest.CaptureFixture[str]):
    steps = [(step, 4) for step in range(5)] + [(step, 100) for step in range(3)]
    assert seconds_left(clock, steps, capsys)[-2:] == [99 * 11, 98 * 11]


def test_a_resumed_job_counts_only_its_new_steps(clock: Clock, capsys: pytest.CaptureFixture[str]):
    assert seconds_left(clock, [(5000, 5010), (5001, 5010), (5002, 5010)], capsys) == [99, 88]
