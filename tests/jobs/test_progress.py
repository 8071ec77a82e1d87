"""A part of a job reports under its own name and keeps its half-done work in its own folder."""

from pathlib import Path

from handful.jobs.progress import Run


def test_a_part_has_its_own_folder_and_puts_its_name_before_each_note(tmp_path: Path):
    reports: list[tuple[int, int, str]] = []
    run = Run(tmp_path, lambda *report: reports.append(report), save_every_s=1.0)
    inner = run.part("unet").part("seed-1")
    inner.report(1, 2, "loss 0.5")
    assert inner.scratch == tmp_path / "unet" / "seed-1"
    assert inner.save_every_s == 1.0
    assert reports == [(1, 2, "unet: seed-1: loss 0.5")]


def test_a_part_of_a_job_that_keeps_nothing_keeps_nothing():
    assert Run().part("unet").scratch is None
