"""Pictures of the cases of a report: scan, prediction and reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handful.data.cases import Cohort
from handful.data.files import read_label_map
from handful.data.volume import Labels
from handful.evaluation.evaluate import Report
from handful.reports.overlay import write_overlay


@dataclass(frozen=True)
class OverlayResult:
    """The names of the cases, by what became of them."""

    written: tuple[str, ...]
    without_scan: tuple[str, ...]


def write_overlays(
    report: Report, scans: Cohort, out: Path, labels: Labels | None = None, ignore: int | None = None
) -> OverlayResult:
    """Writes `out`/CASE.png of every case that has a scan, a prediction and a reference, none of which failed."""
    scan_of = {case.name: case for case in scans.cases}
    failed = {one.case for one in report.failures}
    ready = [case for case, files in report.files.items() if files.prediction and case not in failed]
    written = tuple(case for case in ready if case in scan_of)
    for case in written:
        files = report.files[case]
        prediction = read_label_map(str(files.prediction), labels)
        reference = read_label_map(files.reference, labels, ignore)
        write_overlay(out / f"{case}.png", scan_of[case].read_image(), prediction, reference, case=case)
    return OverlayResult(written, tuple(case for case in ready if case not in scan_of))
